"""A scan on a network's voxels, and its logits back on the scan's, as stock nnU-Net does it.

Arrays run as the model's plans order the axes, see `axis_order`, but for those of `seen_shape` and
`nonzero_mask`.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from functools import reduce

import numpy as np
import numpy.typing as npt
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from scipy import ndimage

from siam_bids.config import Inference
from siam_bids.image.grid import Grid, Reorientation, box_of
from siam_bids.nnunet.model import NnunetModel
from siam_bids.nnunet.plans import NORMALISATIONS

with contextlib.redirect_stdout(io.StringIO()):  # it prints advice on environment variables
    from nnunetv2.preprocessing.resampling.default_resampling import (
        compute_new_shape,
        determine_do_sep_z_and_axis,
    )


def axis_order(model: NnunetModel) -> tuple[int, ...]:
    """Return which axis of a scan's array [z, y, x] is each axis of the plans' arrays."""
    return tuple(model.plan.transpose_forward)


def seen_shape(model: NnunetModel, grid: Grid, options: Inference) -> tuple[int, ...]:
    """Return the voxels (I, J, K) of a whole scan as the network sees it, at least a tile."""
    target = Reorientation.to_ras(grid).target
    order = [2 - axis for axis in model.plan.transpose_forward]
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


def normalise(
    model: NnunetModel, channels: Sequence[npt.NDArray[np.float32]], index: int
) -> npt.NDArray[np.float32]:
    """Normalise one of a scan's channels (I, J, K), cropped to non-zero, as in the plans."""
    scheme = NORMALISATIONS[model.plan.normalization_schemes[index]].make
    masked = model.plan.use_mask_for_norm[index]
    outside = None
    if masked:
        outside = -(~ndimage.binary_fill_holes(nonzero_mask(channels))).astype(np.int8)
    scaled: npt.NDArray[np.float32] = scheme(
        use_mask_for_norm=masked, intensityproperties=model.plan.intensities[index]
    ).run(channels[index].copy(), outside)
    return scaled


def resample(
    model: NnunetModel, image: npt.NDArray[np.float32], spacing: Sequence[float]
) -> npt.NDArray[np.float32]:
    """Resample an image (channels, I, J, K) of a voxel size in mm to the network's."""
    shape = compute_new_shape(image.shape[1:], spacing, model.plan.spacing)
    resampled = model.plan.resampling_fn_data(image, shape, spacing, model.plan.spacing)
    return np.ascontiguousarray(resampled, dtype=np.float32)


def pad_to_tile(
    model: NnunetModel, image: npt.NDArray[np.float32]
) -> tuple[torch.Tensor, tuple[slice, ...]]:
    """Pad an image (channels, I, J, K) with zeros to at least a tile.

    Returns
    -------
    padded
        (channels, I', J', K').
    inner
        Where the image lies along the last three axes.
    """
    padded, inner = pad_nd_image(
        torch.from_numpy(image), model.plan.patch_size, "constant", {"value": 0}, True
    )
    return padded, tuple(inner[1:])


def resample_logits(
    model: NnunetModel, logits: torch.Tensor, shape: Sequence[int], spacing: Sequence[float]
) -> tuple[torch.Tensor, int | None]:
    """Resample logits (classes, I, J, K) to a scan's voxels, unless plane by plane does as well.

    Linear interpolation, nnU-Net's default, is left to `inference.resampling.Logits`.

    Returns
    -------
    logits
        Resampled, or as they were.
    nearest_axis
        Of those as they were, the axis of thick slices, along which the nearest plane is taken.
    """
    configuration = model.plan.configuration
    options = configuration["resampling_fn_probabilities_kwargs"]
    if (
        configuration["resampling_fn_probabilities"] == "resample_data_or_seg_to_shape"
        and (options["order"], options["order_z"]) == (1, 0)
    ):  # fmt: skip
        _, axis = determine_do_sep_z_and_axis(
            options["force_separate_z"],
            model.plan.spacing,
            spacing,
            options["separate_z_anisotropy_threshold"],
        )
        return logits, axis
    function = model.plan.resampling_fn_probabilities
    return torch.as_tensor(function(logits, shape, model.plan.spacing, spacing)), None


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
