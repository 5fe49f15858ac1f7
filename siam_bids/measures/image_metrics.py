"""Metrics of an image alone: focus, smoothness, uniformity, clipping, CT, its header."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage, special

from siam_bids.image.grid import Grid, box_of
from siam_bids.image.spikes import find_spikes

_WINDOW_MM = 20.0
_COARSE_MM = 4.0
_AIR_HU = (-1100.0, -900.0)
_CT_SHARE = 0.05


def entropy_focus(image: npt.NDArray[np.float32]) -> float:
    """Return the entropy focus criterion, 0 for one bright voxel to 1 for all alike.

    Atkinson et al., IEEE Trans. Med. Imaging 1997, divided by its largest value as MRIQC does:
    E = -sum(x / b ln(x / b)) with b the root of the sum of squares, over sqrt(n) ln sqrt(n). Of
    images with negative values the magnitude is taken.
    """
    squares = total = entropy = 0.0
    for plane in image:  # float64 of one plane at a time
        values = np.abs(plane, dtype=np.float64)
        squares += float(np.square(values).sum())
        total += float(values.sum())
        entropy += float(special.xlogy(values, values).sum())
    energy, root = math.sqrt(squares), math.sqrt(image.size)
    if not energy or root <= 1:
        return math.nan
    return (total * math.log(energy) - entropy) / (energy * root * math.log(root))


def smoothness(
    image: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]
) -> tuple[float, float, float]:
    """Return the full width at half maximum of the image's smoothness along I, J, K, in voxels.

    Forman et al., Magn. Reson. Med. 1995: sqrt(-2 ln 2 / ln(1 - var(d) / (2 var(x)))), with d the
    differences of neighbours that both lie in the mask. That is what MRIQC takes from AFNI's
    `3dFWHMx -ShowMeClassicFWHM`. NaN where neighbours are not alike at all.
    """
    if not mask.any():
        return math.nan, math.nan, math.nan
    box = box_of(mask)
    image, mask = image[box], mask[box]
    spread = float(image[mask].var(dtype=np.float64))
    widths = []
    for axis in range(3):
        one, two = _without(0, axis), _without(-1, axis)
        both = mask[one] & mask[two]
        steps = (image[one] - image[two])[both]
        share = float(steps.var(dtype=np.float64)) / (2 * spread) if spread and both.any() else 1.0
        alike = 0 < share < 1
        widths.append(math.sqrt(-2 * math.log(2) / math.log(1 - share)) if alike else math.nan)
    return widths[0], widths[1], widths[2]


def _without(end: int, axis: int) -> tuple[slice, ...]:
    """Return an index that leaves out the first (0) or the last (-1) plane along an axis."""
    part = slice(1, None) if end == 0 else slice(None, -1)
    return tuple(part if each == axis else slice(None) for each in range(3))


def nonuniformity(
    image: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_], voxel_size: Sequence[float]
) -> float:
    """Return how far the brightness of one tissue drifts, as a share of its mean.

    The 95th less the 5th percentile of the local mean over the tissue (Gaussian window of 20 mm
    full width), divided by the median. MRIQC's `inu_range` is the same range of the field that N4
    finds in the whole brain; here the labels take the place of N4.
    """
    step = [max(1, round(_COARSE_MM / size)) for size in voxel_size]
    apart = tuple(slice(None, None, each) for each in step)
    inside = mask[apart]
    if not inside.any():
        return math.nan
    fwhm = _WINDOW_MM / math.sqrt(8 * math.log(2))
    sigma = [fwhm / (size * each) for size, each in zip(voxel_size, step, strict=True)]
    weight = ndimage.gaussian_filter(inside.astype(np.float64), sigma, mode="constant")
    total = np.where(inside, image[apart], 0).astype(np.float64)
    field = ndimage.gaussian_filter(total, sigma, mode="constant")[inside] / weight[inside]
    low, middle, high = np.percentile(field, (5, 50, 95))
    return float((high - low) / abs(middle)) if middle else math.nan


def clipped_share(image: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> float:
    """Return the percentage of a region that has the highest intensity of the image."""
    return 100 * float((image[mask] == image.max()).mean()) if mask.any() else math.nan


def hot_voxels(image: npt.NDArray[np.float32]) -> float:
    """Return the number of voxels far beyond all others, see `image.spikes`."""
    hot = find_spikes(image)
    return 0.0 if hot is None else float(hot.sum())


def looks_like_ct(image: npt.NDArray[np.float32]) -> bool:
    """Tell whether more than a twentieth of an image has the Hounsfield units of air."""
    low, high = _AIR_HU
    return float(((image > low) & (image < high)).mean()) > _CT_SHARE


def header_metrics(grid: Grid) -> dict[str, float]:
    """Return what the header contradicts itself on; NaN for a format without two forms."""
    forms = grid.forms
    return {
        "form_flip": float(forms.flipped) if forms else math.nan,
        "form_scale": forms.scale if forms else math.nan,
        "form_distance": forms.distance(grid.shape) if forms else math.nan,
    }
