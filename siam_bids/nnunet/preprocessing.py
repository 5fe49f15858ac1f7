"""A scan on a network's voxels, as stock nnU-Net puts it there."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from functools import reduce

import numpy as np
import numpy.typing as npt

from siam_bids.config import Inference
from siam_bids.image.grid import Grid, Reorientation, box_of

with contextlib.redirect_stdout(io.StringIO()):  # it prints advice on environment variables
    from nnunetv2.preprocessing.resampling.default_resampling import (
        compute_new_shape,
    )
from siam_bids.nnunet.model import NnunetModel


def seen_shape(model: NnunetModel, grid: Grid, options: Inference) -> tuple[int, ...]:
    """Return the voxels (I, J, K) of a whole scan as the network sees it, at least a tile."""
    target = Reorientation.to_ras(grid).target
    order = [2 - axis for axis in model.plans["transpose_forward"]]
    spacing = assumed_spacing(model, [target.voxel_size[axis] for axis in order], options)
    shape = compute_new_shape([target.shape[axis] for axis in order], spacing, model.plan.spacing)
    return tuple(int(n) for n in np.maximum(shape, model.plan.patch_size))


def assumed_spacing(model: NnunetModel, true: list[float], options: Inference) -> list[float]:
    """Return the voxel size that a scan is taken to have, in the plans' axis order."""
    if not options.interpolate:
        return list(model.plan.spacing)
    if options.voxel_size:
        true = [options.voxel_size] * 3
    return [size * options.scale for size in true]


def nonzero_mask(channels: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.bool_]:
    """Return (I, J, K) bool, True where any channel is not zero."""
    return reduce(np.logical_or, [channel != 0 for channel in channels])


def box_needed(mask: npt.NDArray[np.bool_], inner: Sequence[slice]) -> list[slice]:
    """Return a box around all voxels of the network that interpolation to a mask may ask for.

    Parameters
    ----------
    mask
        (I, J, K) on the cropped scan's grid.
    inner
        Where that lies in the network's padded grid.
    """
    return [
        slice(
            max(int(part.start * scale) - 2, 0) + whole.start,
            math.ceil(part.stop * scale) + 2 + whole.start,
        )
        for part, whole, scale in zip(
            box_of(mask),
            inner,
            [(s.stop - s.start) / n for s, n in zip(inner, mask.shape, strict=True)],
            strict=True,
        )
    ]
