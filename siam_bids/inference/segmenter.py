"""nnU-Net v2 model folders: reading plans, building the network, writing our own.

The only importer of nnunetv2. Axes: nnU-Net reads files with SimpleITK, so its arrays run
[z, y, x], the reverse of nibabel's (i, j, k); plans (spacing, patch size) follow that order.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from scipy import ndimage
from torch import nn

from siam_bids.config import Inference
from siam_bids.errors import ImageError, ModelError, UsageError
from siam_bids.image.grid import Crop, Grid, Volume
from siam_bids.inference.head_pose import Window, centres
from siam_bids.inference.intensity_refinement import following
from siam_bids.inference.prediction import Prediction, Progress, prediction_of
from siam_bids.inference.resampling import Logits
from siam_bids.inference.rotated_resampling import TurnedLogits
from siam_bids.inference.sliding_window import TILE_STEP, predict_tiled
from siam_bids.models.settings import Intensities
from siam_bids.nnunet.int8_unet import Int8UNet, has_fast_int8
from siam_bids.nnunet.lean_unet import LeanUNet, is_unet
from siam_bids.nnunet.test_time_mirroring import Mirrored
from siam_bids.support.memory import free_memory

with contextlib.redirect_stdout(io.StringIO()):  # it prints advice on environment variables
    from nnunetv2.preprocessing.normalization import default_normalization_schemes
    from nnunetv2.preprocessing.resampling.default_resampling import (
        compute_new_shape,
        determine_do_sep_z_and_axis,
    )
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from typing import Protocol

from siam_bids.inference.cost import load_of
from siam_bids.inference.runner import reduced_precision
from siam_bids.nnunet.checkpoints import load_weights
from siam_bids.nnunet.model import NnunetModel, axes_to_mirror, empty_network
from siam_bids.nnunet.preprocessing import assumed_spacing, box_needed, nonzero_mask, seen_shape

logger = logging.getLogger(__name__)
_NEVER = -6e4
"""A logit, within float16, of what must not be chosen."""


class NnunetSegmenter:
    """Runs a model folder on scans, the network built once.

    The steps and their order are stock nnU-Net's (and siam-pred's): RAS+ order, crop to non-zero,
    normalise, resample, overlapping tiles, mean over folds, resample logits back, argmax.

    Parameters
    ----------
    model
        What to run.
    device
        `cpu`, `cuda` or `mps`.
    options
        How to run it. Precision `auto` is bfloat16 or int8 where the model allows it and the CPU
        is fast in it, float16 on CUDA as in stock nnU-Net, else float32.
    intensities
        How far the labels follow the intensities of the scan. Default: not at all, as in nnU-Net.

    Raises
    ------
    UsageError
        The model lacks a fold of the options, was not trained for mirroring, or int8 is asked for
        and this CPU lacks it.
    """

    def __init__(
        self,
        model: NnunetModel,
        device: torch.device,
        options: Inference | None = None,
        intensities: Intensities | None = None,
    ) -> None:
        self._following = intensities
        self.options = options or Inference()
        self.model = model.with_folds(self.options.folds)
        model = self.model
        self._written = {path: path.stat().st_mtime_ns for path in model.folds}
        self._axes_mirrored = axes_to_mirror(model, self.options)
        if self.options.mirror and not self._axes_mirrored:
            raise UsageError(
                f"{model.folder.name} was not trained for mirroring.", "Omit --mirror."
            )
        plans = PlansManager(model.plans)
        self._axes = tuple(plans.transpose_forward)
        self._back = [int(axis) for axis in np.argsort(self._axes)]
        self._plan = model.plan
        self._intensities = plans.foreground_intensity_properties_per_channel
        self._build(device)

    def _build(self, device: torch.device, *, lean: bool = False) -> None:
        self.device = device
        self.load = load_of(self.model, device, self.options, lean=lean)
        self._network = empty_network(self.model, device)
        self._runner = self._network
        self._loaded: Path | None = None
        if self.load.precision == "int8":
            if not has_fast_int8():
                raise UsageError(
                    "This CPU, or this torch, does not multiply 8-bit integers (VNNI).",
                    "Omit --precision int8.",
                )
            self._runner = Int8UNet(self._network)
        elif self.load.lean:
            self._runner = LeanUNet(self._network, getattr(torch, self.load.precision))
        if self._axes_mirrored:
            self._runner = Mirrored(self._runner, self._axes_mirrored)

    @property
    def precisions(self) -> tuple[str, ...]:
        """That of the feature maps: `float32`, `float16`, `bfloat16` or `int8`."""
        return (self.load.precision,)

    def segment(
        self,
        volume: Volume,
        *,
        inside: npt.NDArray[np.bool_] | None = None,
        probabilities: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Prediction:
        """Segment one scan on its own grid; see `Segmenter.segment`.

        Parameters
        ----------
        inside
            (I, J, K) region to label, for a model of two channels: within it no voxel becomes
            background, outside all do.

        Raises
        ------
        ImageError
            It needs more memory than there is, see `memory_of_scan`.
        """
        keep = bool(probabilities)
        logits, crop = self.scores(volume, inside=inside, keep=keep, progress=progress)
        scores = following(logits, volume, crop, self._following, keep=keep)
        mask = None if inside is None else crop.cut(inside)
        return prediction_of(scores, crop, self.model.labels, probabilities, inside=mask)

    def scores(
        self,
        volume: Volume,
        *,
        inside: npt.NDArray[np.bool_] | None = None,
        part: Sequence[slice] | None = None,
        step: float = TILE_STEP,
        keep: bool = False,
        progress: Progress | None = None,
    ) -> tuple[Logits, Crop]:
        """Run the network over a scan; other arguments and errors as for `segment`.

        Parameters
        ----------
        part
            Of the crop around everything that is not zero, [z, y, x]: all that the network sees
            of the scan, normalised as the whole is.
        step
            Tile edges between two tiles, at most.

        Returns
        -------
        scores
            On the voxels of the scan that the crop keeps; with `keep`, probabilities too.
        crop
            Around everything that is not zero, or that part of it.
        """
        whole = [volume.data] if inside is None else [volume.data, inside.astype(np.float32)]
        crop = Crop.around(nonzero_mask(whole), volume.grid)
        part = part or tuple(slice(0, length) for length in crop.shape)
        self._check_memory(volume.grid, crop.within(part).grid)
        cropped = [crop.cut(channel).transpose(self._axes) for channel in whole]
        image = np.stack([self._normalised(cropped, index) for index in range(len(cropped))])
        seen = tuple(part[axis] for axis in self._axes)
        crop, image = crop.within(part), image[(slice(None), *seen)]
        spacing = assumed_spacing(
            self.model, [crop.voxel_size[axis] for axis in self._axes], self.options
        )
        image = self._resample(image, spacing)
        logits = self._padded(
            image,
            inside=None if inside is None else cropped[1][seen] > 0,
            step=step,
            progress=progress,
        )
        shape = [crop.shape[axis] for axis in self._axes]
        logits, nearest_axis = self._resampled(logits, shape, spacing)
        if inside is not None:
            with torch.inference_mode():
                logits[0] = _NEVER
        return Logits(
            logits.permute(0, *(1 + axis for axis in self._back)),
            crop.shape,
            nearest_axis=None if nearest_axis is None else self._axes[nearest_axis],
            keep=keep,
        ), crop

    def turned_scores(
        self,
        volume: Volume,
        window: Window,
        *,
        step: float = TILE_STEP,
        elsewhere: bool = False,
        keep: bool = False,
        progress: Progress | None = None,
    ) -> TurnedLogits:
        """Run a network of one channel over a scan with the head turned upright.

        Beyond the scan its outermost voxels go on.

        Parameters
        ----------
        window
            What the network sees.
        elsewhere
            Whether what lies outside is background; else nothing is said of it.
        step, keep, progress
            As for `scores`.

        Returns
        -------
        On the voxels of the scan in the crop around everything that is not zero.
        """
        crop = Crop.around(volume.data != 0, volume.grid)
        z, y, x = (int(n) for n in np.ceil((window.high - window.low) / crop.voxel_size))
        self._check_memory(volume.grid, Grid((x, y, z), crop.grid.affine))
        image = self._normalised([crop.cut(volume.data).transpose(self._axes)], 0)[None]
        spacing = assumed_spacing(
            self.model, [crop.voxel_size[axis] for axis in self._axes], self.options
        )
        image = self._resample(image, spacing)[0].transpose(self._back)
        edges = np.array(crop.shape) * crop.voxel_size / image.shape
        upright = centres(edges, window.low)
        image = ndimage.affine_transform(
            image,
            np.linalg.inv(window.pose.affine @ centres(edges)) @ upright,
            output_shape=[max(1, round(n)) for n in (window.high - window.low) / edges],
            order=3,
            mode="nearest",
        )
        image = np.ascontiguousarray(image.transpose(self._axes))[None]
        logits = self._padded(image, step=step, progress=progress)
        unseen = torch.full((len(logits),), _NEVER if elsewhere else torch.nan)
        if elsewhere:
            unseen[0] = 0
        return TurnedLogits(
            logits.permute(0, *(1 + axis for axis in self._back)),
            upright,
            window.pose.affine @ centres(crop.voxel_size),
            crop.shape,
            unseen,
            keep=keep,
        )

    def _padded(
        self,
        image: npt.NDArray[np.float32],
        *,
        inside: npt.NDArray[np.bool_] | None = None,
        step: float,
        progress: Progress | None,
    ) -> torch.Tensor:
        """Return the logits of an image (channels, I, J, K), which may be smaller than a tile."""
        padded, inner = pad_nd_image(
            torch.from_numpy(image), self._plan.patch_size, "constant", {"value": 0}, True
        )
        wanted = None if inside is None else box_needed(inside, inner[1:])
        return self._predict(padded, wanted, step, progress)[(slice(None), *inner[1:])]

    def _check_memory(self, grid: Grid, part: Grid) -> None:
        need, given = self.memory_of_scan(grid, part), self.options.memory
        there = given or free_memory() + psutil.Process().memory_info().rss
        what = f"about {need / 1e9:.1f} GB of memory"
        limit = f"{there / 1e9:.1f} GB are {'given' if given else 'free'}"
        logger.info("Needs %s; %s.", what, limit)
        if need > there:
            leaner = []
            if self.load.on_cpu and self.load.lean and self.load.precision == "float32":
                leaner.append("--precision bfloat16")
            if len(self.model.folds) > 1:
                leaner.append("a single one of --folds")
            if not self.options.low_memory:
                leaner.append("--low-mem")
            helps = f"{', '.join(leaner)} or more memory" if leaner else "More memory"
            raise ImageError(
                f"The scan needs {what}; {limit}.",
                f"{helps[0].upper()}{helps[1:]} (--mem-gb) helps.",
            )

    def _predict(
        self,
        image: torch.Tensor,
        wanted: Sequence[slice] | None,
        step: float,
        progress: Progress | None,
    ) -> torch.Tensor:
        """Run all folds over an image (channels, I, J, K); see `_make_smaller` for small GPUs.

        Tiles outside the box `wanted` are left out.
        """
        while True:
            trouble = self._lack_of_gpu_memory()
            if not trouble:
                try:
                    return self._predict_here(image, wanted, step, progress)
                except torch.OutOfMemoryError:
                    if self.device.type == "cpu":
                        raise
                    trouble = f"Out of memory on {self.device}"
            self._make_smaller(trouble)

    def _lack_of_gpu_memory(self) -> str:
        """Say what the GPU lacks, or nothing."""
        if self.device.type != "cuda":
            return ""
        need = self.load.network_memory()
        free, _ = torch.cuda.mem_get_info(self.device)
        free += torch.cuda.memory_reserved(self.device)  # by this network and its last scan
        if need <= free:
            return ""
        return f"The GPU has {free / 1e9:.1f} GB free, about {need / 1e9:.1f} GB are needed"

    def _make_smaller(self, trouble: str) -> None:
        """Work in smaller pieces on the same device, or else on the CPU, from now on."""
        pieces = not self.load.lean and is_unet(self._network)
        way = "in smaller pieces" if pieces else "on the CPU"
        logger.warning("%s: going on %s.", trouble, way)
        del self._network, self._runner
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        self._build(self.device if pieces else torch.device("cpu"), lean=True)

    def _predict_here(
        self,
        image: torch.Tensor,
        wanted: Sequence[slice] | None,
        step: float,
        progress: Progress | None,
    ) -> torch.Tensor:
        return predict_tiled(
            self._folds(),
            image,
            tile=self._plan.patch_size,
            classes=len(self.model.labels),
            fold_count=len(self.model.folds),
            autocast=None if self.load.lean else reduced_precision(self.device),
            wanted=wanted,
            step=step,
            on_disk=self.options.low_memory,
            progress=progress,
        )

    def memory_of_scan(self, grid: Grid, part: Grid | None = None) -> float:
        """Estimate in bytes the most main memory that a scan needs, see `sizing.Load.memory`.

        `part` is what the network sees of it; default: all.
        """
        seen = seen_shape(self.model, part or grid, self.options)
        return self.load.memory(math.prod(grid.shape), seen)

    def _resample(
        self, image: npt.NDArray[np.float32], spacing: Sequence[float]
    ) -> npt.NDArray[np.float32]:
        """Resample an image (channels, I, J, K) to the network's voxels."""
        shape = compute_new_shape(image.shape[1:], spacing, self._plan.spacing)
        resampled = self._plan.resampling_fn_data(image, shape, spacing, self._plan.spacing)
        return np.ascontiguousarray(resampled, dtype=np.float32)

    def _normalised(
        self, channels: Sequence[npt.NDArray[np.float32]], index: int
    ) -> npt.NDArray[np.float32]:
        name = self._plan.normalization_schemes[index]
        scheme = getattr(default_normalization_schemes, name, None)
        if scheme is None:
            raise ModelError(f"{self.model.folder} asks for the unknown normalisation {name}.")
        masked = self._plan.use_mask_for_norm[index]
        outside = None
        if masked:
            outside = -(~ndimage.binary_fill_holes(nonzero_mask(channels))).astype(np.int8)
        properties = self._intensities[str(index)]
        normalise = scheme(use_mask_for_norm=masked, intensityproperties=properties)
        normal: npt.NDArray[np.float32] = normalise.run(channels[index].copy(), outside)
        return normal

    def _resampled(
        self, logits: torch.Tensor, shape: Sequence[int], spacing: Sequence[float]
    ) -> tuple[torch.Tensor, int | None]:
        """Resample logits as the plans say, or tell the axis of thick slices if that is linear.

        Linear interpolation, nnU-Net's default, is left to `resampling.Logits`.
        """
        configuration = self._plan.configuration
        options = configuration["resampling_fn_probabilities_kwargs"]
        if (
            configuration["resampling_fn_probabilities"] == "resample_data_or_seg_to_shape"
            and (options["order"], options["order_z"]) == (1, 0)
        ):  # fmt: skip
            _, axis = determine_do_sep_z_and_axis(
                options["force_separate_z"], self._plan.spacing, spacing
            )
            return logits, axis
        resample = self._plan.resampling_fn_probabilities
        return torch.as_tensor(resample(logits, shape, self._plan.spacing, spacing)), None

    def _folds(self) -> Iterator[nn.Module]:
        for path in self.model.folds:
            if self._loaded != path:
                if not path.exists() or path.stat().st_mtime_ns != self._written[path]:
                    raise ModelError(f"{path} changed while it was in use.", "Run again.")
                try:
                    self._network.load_state_dict(load_weights(path))
                except RuntimeError as error:
                    raise ModelError(f"{path} does not fit the network in plans.json.") from error
                self._loaded = path
            yield self._runner


class Segmenter(Protocol):
    """Anything that labels the voxels of a scan."""

    def segment(
        self, volume: Volume, *, probabilities: Sequence[str] = (), progress: Progress | None = None
    ) -> Prediction:
        """Segment one scan; the result lies on exactly the scan's grid."""
        ...
