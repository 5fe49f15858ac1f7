"""Loading scans and label maps: what cannot be an image of a head is refused."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from siam_bids.errors import ImageError
from siam_bids.image.grid import Grid, Volume
from siam_bids.image.image_file import ImageFile
from siam_bids.image.spikes import find_spikes
from siam_bids.support.memory import free_memory

logger = logging.getLogger(__name__)

SMALLEST_VOXEL, LARGEST_VOXEL = 0.05, 25.0
"""Edges in mm beyond which a header is wrong, or the image no head."""


def _grid(image: ImageFile, index: int | None) -> Grid:
    """Refuse images that cannot be a head scan by their header; return the grid of one volume."""
    name, (i, j, k) = image.path.name, _shape(image, index)
    _check_affine(image)
    need, free = BYTES_PER_VOXEL * i * j * k, free_memory()
    if need > free:
        raise ImageError(
            f"{name} has {i} x {j} x {k} voxels, which need about "
            f"{need / 1e9:.0f} GB of memory; {free / 1e9:.0f} GB are free.",
            "Give the job more memory or leave the scan out.",
        )
    if image.dtype.fields or np.issubdtype(image.dtype, np.complexfloating):
        raise ImageError(
            f"{name} holds {image.dtype} voxels, not plain intensities.",
            "Leave it out with --bids-filter-file or convert it to magnitude.",
        )
    if image.forms and (trouble := image.forms.contradiction((i, j, k))):
        logger.warning("%s: in its header, %s. Check where it comes from.", name, trouble)
    return Grid((i, j, k), image.affine, image.forms)


def _shape(image: ImageFile, index: int | None) -> tuple[int, int, int]:
    """Return the voxels of one volume."""
    name, shape = image.path.name, image.shape
    if len(shape) < 3:
        raise ImageError(
            f"{name} is {len(shape)}-D {shape}, one 3-D volume is needed.",
            "Leave it out with --bids-filter-file.",
        )
    if index is None and image.volumes > 1:
        while shape[-1] == 1:
            shape = shape[:-1]
        raise ImageError(
            f"{name} is {len(shape)}-D {shape}, one 3-D volume is needed.",
            f"Choose one of its {image.volumes} with --volume (from 0), "
            "leave it out with --bids-filter-file or split it.",
        )
    if index is not None and len(shape) > 3 and index >= image.volumes:
        raise ImageError(
            f"{name} has {image.volumes} volumes, there is no volume {index}.",
            "Volumes are counted from 0.",
        )
    i, j, k = shape[:3]
    if min(i, j, k) < 8:
        raise ImageError(f"{name} is {(i, j, k)} voxels, too thin to contain a head.")
    return i, j, k


def _place(image: ImageFile, index: int | None) -> int:
    """Return the place of the chosen volume; a 3-D image has one, whichever is chosen."""
    return index or 0 if len(image.shape) > 3 else 0


def _check_affine(image: ImageFile) -> None:
    name, affine = image.path.name, image.affine
    with np.errstate(all="ignore"):
        edges = np.linalg.norm(affine[:3, :3], axis=0)
        flat = abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * edges.prod()
    if flat or not np.isfinite(affine).all():
        raise ImageError(f"{name} has no usable affine (sform/qform).", "Repair its header.")
    if edges.min() < SMALLEST_VOXEL or edges.max() > LARGEST_VOXEL:
        raise ImageError(
            f"{name} has voxels of {' x '.join(f'{edge:g}' for edge in edges)} mm, "
            "which is impossible for a head scan.",
            "Repair the voxel size in its header (in mm).",
        )


def read_grid(path: Path, *, index: int | None = None) -> Grid:
    """Read where the voxels of a scan are, from its header alone.

    Raises
    ------
    ImageError
        As `load_volume`, as far as the header shows.
    """
    return _grid(ImageFile.open(path), index)


def has_volumes(path: Path) -> bool:
    """Tell by its header whether an image holds several volumes.

    Raises
    ------
    ImageError
        As `load_volume`, as far as the header tells.
    """
    return math.prod(ImageFile.open(path).shape[3:]) > 1


def load_volume(path: Path, *, index: int | None = None) -> Volume:
    """Load a scan as float32 with its scaling applied.

    Non-finite voxels become 0. Trailing axes of length one are dropped.

    Parameters
    ----------
    index
        Which volume of an image of more than three dimensions is taken, from 0, in the order of the
        file; None refuses images of several volumes.

    Raises
    ------
    ImageError
        Unreadable file, not 3-D, an affine, voxel or matrix size that no head scan has, more
        voxels than memory holds, complex or RGB data, or a constant image.
    """
    image = ImageFile.open(path)
    grid = _grid(image, index)
    return _volume(image.read(_place(image, index)), grid, path)


def as_volume(
    image: nib.spatialimages.SpatialImage, path: Path, index: int | None = None
) -> Volume:
    """Do what `load_volume` does for an image that is open already; `path` names it in errors."""
    described = ImageFile.of_image(image, path)
    grid = _grid(described, index)
    proxy = image.dataobj
    if isinstance(proxy, nib.arrayproxy.ArrayProxy) and isinstance(proxy.file_like, str):
        return _volume(described.read(_place(described, index)), grid, path)
    volumes = np.asanyarray(proxy).reshape((*grid.shape, -1), order="F")
    return _volume(volumes[..., _place(described, index)], grid, path)


def _volume(data: npt.NDArray[Any], grid: Grid, path: Path) -> Volume:
    with np.errstate(over="ignore"):
        data = np.asarray(data, dtype=np.float32)
    if not np.isfinite(data).all():
        data = np.nan_to_num(data, nan=0.0, posinf=0.0, neginf=0.0)
    if float(data.max()) == float(data.min()):
        raise ImageError(f"{path.name} is constant ({float(data.max()):g} everywhere).")
    hot = find_spikes(data)
    if hot is not None:
        far = float(np.abs(data[hot]).max())
        logger.warning(
            "%s has %d hot voxels, far beyond all others (up to %g).", path.name, hot.sum(), far
        )
    return Volume(data, grid)


def load_labels(path: Path) -> tuple[npt.NDArray[np.int32], Grid]:
    """Load a label map of any integer coding as int32 (I, J, K) and its grid.

    Raises
    ------
    ImageError
        Unreadable file, not 3-D, or values that are not whole numbers.
    """
    image = ImageFile.open(path)
    grid = _grid(image, None)
    data = image.read()
    with np.errstate(invalid="ignore"):
        whole = np.asarray(np.rint(data), dtype=np.int32)
    if not np.array_equal(whole, data):
        raise ImageError(
            f"{path.name} holds values that are not whole numbers, so it is not a label map."
        )
    return whole, grid


BYTES_PER_VOXEL = 16.0
"""Least memory for a voxel of a scan: float32 intensities, a reordered copy, and labels."""
