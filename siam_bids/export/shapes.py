"""Morphology of masks in millimetres, whatever the voxels are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Mask = npt.NDArray[np.bool_]


def dilated(mask: Mask, radius: float, voxel: Sequence[float]) -> Mask:
    """Dilate a mask (I, J, K), which is not empty, by a ball of `radius` mm."""
    distance = ndimage.distance_transform_edt(~mask, sampling=voxel)
    within: Mask = distance <= radius
    return within


def eroded(mask: Mask, radius: float, voxel: Sequence[float]) -> Mask:
    """Erode a mask by a ball of `radius` mm; outside the image counts as inside the mask."""
    if mask.all():
        return mask
    within: Mask = ndimage.distance_transform_edt(mask, sampling=voxel) > radius
    return within


def closed(mask: Mask, radius: float, voxel: Sequence[float]) -> Mask:
    """Close a mask with a ball of `radius` mm, which may reach beyond the image."""
    margin = [int(np.ceil(radius / size)) + 1 for size in voxel]
    wide = np.pad(mask, [(each, each) for each in margin])
    filled = eroded(dilated(wide, radius, voxel), radius, voxel)
    i, j, k = (slice(each, -each) for each in margin)
    return filled[i, j, k]


def opened(mask: Mask, radius: float, voxel: Sequence[float]) -> Mask:
    """Open a mask with a ball of `radius` mm; outside the image counts as inside the mask."""
    core = eroded(mask, radius, voxel)
    return dilated(core, radius, voxel) & mask if core.any() else core


def largest(mask: Mask) -> Mask:
    """Return the largest part of a mask whose voxels share faces."""
    parts, number = ndimage.label(mask)
    if number < 2:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    biggest: Mask = parts == sizes.argmax()
    return biggest
