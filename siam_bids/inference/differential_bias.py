"""Scans of one person and contrast are given the same bias field: what they have on average.

The intensities of two scans of a head differ by noise, by what changed, and by their bias fields,
which move borders everywhere. The ratio of both scans where they agree on a tissue, averaged in
small windows, is the ratio of their bias fields, and needs no model of the tissues: differential
bias correction (Lewis and Fox, NeuroImage 2004). What is left of the bias is then the same in all
scans, and so are the errors that it makes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from siam_bids.image.grid import Crop, Volume
from siam_bids.image.transforms import Affine
from siam_bids.inference.person import Coarse

Map = npt.NDArray[np.float32]

WINDOW = 8.0
"""Standard deviation in mm of the windows in which ratios are averaged."""
_FEW = 0.02
"""Share of a window in the brain below which the ratio tends to that of the whole brain."""
_UNLIKE = 3.0
"""Standard deviations of the ratio from which a voxel has changed."""
SAME_CONTRAST = (0.1, 0.7)
"""Largest difference of `Coarse.contrast` within one contrast."""


def differential_bias(scans: Sequence[Coarse], motions: Sequence[Affine]) -> list[Map | None]:
    """Return the logarithm of what each scan is multiplied by, on its coarse grid.

    Parameters
    ----------
    scans, motions
        Aligned scans, and the motion from each to one space.

    Returns
    -------
    (I, J, K) for each scan; None where no other scan has its contrast.
    """
    return [_towards_the_others(place, scans, motions) for place in range(len(scans))]


def same_contrast(one: Coarse, other: Coarse) -> bool:
    """Tell whether tissues have the same relative intensities in two scans."""
    apart = np.abs(one.contrast - other.contrast)
    return bool((apart <= SAME_CONTRAST).all())  # not if unknown


def corrected(volume: Volume, crop: Crop, scan: Coarse, field: Map) -> Volume:
    """Return a scan multiplied by a field on its coarse grid; nearest values outside.

    Parameters
    ----------
    field
        Logarithms, see `differential_bias`.
    """
    shape = crop.shape
    steps = [
        (part.stop - 1 - part.start) / max(1, length - 1) or 1.0
        for part, length in zip(scan.box, field.shape, strict=True)
    ]
    offset = [-part.start / step for part, step in zip(scan.box, steps, strict=True)]
    fine = ndimage.affine_transform(
        field, 1 / np.array(steps), offset=offset, output_shape=shape, order=1, mode="nearest"
    )
    factor = crop.undo(np.exp(fine, out=fine), outside=1)
    return Volume(volume.data * factor, volume.grid)


def _towards_the_others(
    place: int, scans: Sequence[Coarse], motions: Sequence[Affine]
) -> Map | None:
    own = scans[place]
    alike = [n for n, scan in enumerate(scans) if n != place and same_contrast(own, scan)]
    if not alike:
        return None
    total = np.zeros(own.image.shape, np.float32)
    for other in alike:
        scan = scans[other]
        there = np.linalg.inv(motions[other] @ scan.affine) @ motions[place] @ own.affine
        total += np.float32(scan.weight) * _log_ratio(own, scan, there)
    return total / np.float32(own.weight + sum(scans[other].weight for other in alike))


def _log_ratio(own: Coarse, other: Coarse, there: Affine) -> Map:
    """Return the logarithm of the ratio of bias fields (I, J, K); its mean is about 0.

    Parameters
    ----------
    there
        (4, 4) from voxels of the one scan to voxels of the other.
    """
    shape = own.image.shape
    labels = ndimage.affine_transform(other.tissues, there, output_shape=shape, order=0)
    image = ndimage.affine_transform(other.image, there, output_shape=shape, order=1)
    same = (own.tissues > 0) & (own.tissues == labels) & (own.image > 0) & (image > 0)
    if not same.any():
        return np.zeros(shape, np.float32)
    typical = float(np.median(own.image[same] * image[same]))
    weights = np.where(same, own.image * image / np.float32(typical), np.float32(0))
    np.minimum(weights, 2, out=weights)  # noise of a logarithm is that of the intensity over it
    ratio = np.zeros(shape, np.float32)
    ratio[same] = np.log(image[same] / own.image[same])
    ratio[same] -= np.median(ratio[same])
    sizes = np.linalg.norm(own.affine[:3, :3], axis=0)
    left = (ratio - _averaged(ratio, weights, sizes)) * np.sqrt(weights)
    spread = 1.4826 * float(np.median(np.abs(left[same])))
    weights[np.abs(left) > _UNLIKE * spread] = 0
    return _averaged(ratio, weights, sizes)


def _averaged(values: Map, weights: Map, sizes: npt.NDArray[np.float64]) -> Map:
    """Average in Gaussian windows; towards 0 where few voxels count."""
    sigma = [WINDOW / size for size in sizes]
    total, weight = (
        ndimage.gaussian_filter(each, sigma, mode="constant", truncate=3.0)
        for each in (values * weights, weights)
    )
    averaged: Map = total / (weight + np.float32(_FEW))
    return averaged
