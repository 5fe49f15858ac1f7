"""Reading scans and label maps from disk: the one place for header hygiene."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from siam_bids.errors import ImageError
from siam_bids.image.grid import Grid, Volume
from siam_bids.support.memory import free_memory

SMALLEST_VOXEL, LARGEST_VOXEL = 0.05, 25.0
"""Edges in mm beyond which a header is wrong, or the image no head."""

_READ_ERRORS = (
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    OSError,
    EOFError,
    ValueError,
    zlib.error,
)


def _open(path: Path) -> nib.spatialimages.SpatialImage:
    if not path.exists():
        kind = "is a broken link (content not fetched?)" if path.is_symlink() else "does not exist"
        raise ImageError(f"{path.name} {kind}.", "Fetch it or leave it out.")
    if path.is_dir():
        raise ImageError(f"{path.name} is a folder, not an image.", "Leave it out.")
    if path.stat().st_size == 0:
        raise ImageError(f"{path.name} is empty.", "Fetch or convert it again.")
    try:
        image = nib.load(path)
    except _READ_ERRORS as error:
        raise ImageError(
            f"{path.name} cannot be read: it is damaged, or neither NIfTI nor MGH.",
            "Fetch or convert it again.",
        ) from error
    if not isinstance(image, nib.spatialimages.SpatialImage):
        raise ImageError(f"{path.name} is not a volume image.", "Give a NIfTI or MGH file.")
    return image


def _one_volume(
    image: nib.spatialimages.SpatialImage, path: Path, index: int
) -> nib.spatialimages.SpatialImage:
    """Take one volume of a 4-D image; a 3-D one stays as it is."""
    if len(image.shape) != 4:
        return image
    if index >= image.shape[3]:
        raise ImageError(
            f"{path.name} has {image.shape[3]} volumes, there is no volume {index}.",
            "They are counted from 0.",
        )
    return image.slicer[..., index]


def _grid(image: nib.spatialimages.SpatialImage, path: Path) -> Grid:
    shape = tuple(int(size) for size in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise ImageError(
            f"{path.name} is {len(shape)}-D {shape}, one 3-D volume is needed.",
            "Choose one with --volume, leave it out with --bids-filter-file or split it.",
        )
    if min(shape) < 8:
        raise ImageError(f"{path.name} is {shape} voxels, too thin to segment a head in.")
    affine = np.asarray(image.affine, dtype=np.float64)
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * edges.prod():
        raise ImageError(f"{path.name} has no usable affine (sform/qform).", "Repair its header.")
    if edges.min() < SMALLEST_VOXEL or edges.max() > LARGEST_VOXEL:
        raise ImageError(
            f"{path.name} has voxels of {' x '.join(f'{edge:g}' for edge in edges)} mm, "
            "which is no head scan.",
            "Repair the voxel size in its header (in mm).",
        )
    need, free = BYTES_PER_VOXEL * math.prod(shape), free_memory()
    if need > free:
        raise ImageError(
            f"{path.name} has {' x '.join(map(str, shape))} voxels, which need about "
            f"{need / 1e9:.0f} GB of memory; {free / 1e9:.0f} GB are free.",
            "Give the job more memory or leave the scan out.",
        )
    return Grid((shape[0], shape[1], shape[2]), affine)


def _checked(
    image: nib.spatialimages.SpatialImage, path: Path, index: int | None
) -> tuple[nib.spatialimages.SpatialImage, Grid]:
    """Refuse what the header alone tells is no scan; return the volume asked for and its grid."""
    if index is not None:
        image = _one_volume(image, path, index)
    grid = _grid(image, path)
    if image.get_data_dtype().fields or np.issubdtype(image.get_data_dtype(), np.complexfloating):
        raise ImageError(
            f"{path.name} holds {image.get_data_dtype()} voxels, not plain intensities.",
            "Leave it out with --bids-filter-file or convert it to magnitude.",
        )
    return image, grid


def read_grid(path: Path, *, index: int | None = None) -> Grid:
    """Read where the voxels of a scan are, from its header alone.

    Raises
    ------
    ImageError
        As `load_volume`, as far as the header tells.
    """
    return _checked(_open(path), path, index)[1]


def load_volume(path: Path, *, index: int | None = None) -> Volume:
    """Load a scan as float32 with its scaling applied.

    Non-finite voxels become 0. Trailing axes of length one are dropped.

    Parameters
    ----------
    index
        Which volume of a 4-D image is taken, from 0; None refuses images of several volumes.

    Raises
    ------
    ImageError
        Unreadable file, not 3-D, an affine, voxel or matrix size that no head scan has, more
        voxels than memory holds, complex or RGB data, or a constant image.
    """
    return as_volume(_open(path), path, index)


def as_volume(
    image: nib.spatialimages.SpatialImage, path: Path, index: int | None = None
) -> Volume:
    """Do what `load_volume` does for an image that is open already; `path` names it in errors."""
    image, grid = _checked(image, path, index)
    try:
        data = np.asarray(image.dataobj, dtype=np.float32).reshape(grid.shape)
    except _READ_ERRORS as error:
        raise ImageError(f"{path.name} is damaged.", "Fetch or convert it again.") from error
    data = np.nan_to_num(data, nan=0.0, posinf=0.0, neginf=0.0)
    if float(data.max()) == float(data.min()):
        raise ImageError(f"{path.name} is constant ({float(data.max()):g} everywhere).")
    return Volume(data, grid)


def load_labels(path: Path) -> tuple[npt.NDArray[np.int32], Grid]:
    """Load a label map of any integer coding as int32 (I, J, K) and its grid.

    Raises
    ------
    ImageError
        Unreadable file, not 3-D, or values that are not whole numbers.
    """
    image = _open(path)
    grid = _grid(image, path)
    try:
        data = np.asarray(image.dataobj).reshape(grid.shape)
    except _READ_ERRORS as error:
        raise ImageError(f"{path.name} is damaged.", "Fetch or convert it again.") from error
    whole = np.asarray(np.rint(data), dtype=np.int32)
    if not np.array_equal(whole, data):
        raise ImageError(f"{path.name} holds values that are not whole numbers, no label map.")
    return whole, grid


BYTES_PER_VOXEL = 16.0
"""Least memory for a voxel of a scan: float32 intensities, a reordered copy, and labels."""
