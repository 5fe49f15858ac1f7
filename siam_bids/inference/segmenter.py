"""Segmenting a scan with one nnU-Net model."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import psutil
import torch
from scipy import ndimage

from siam_bids.config import Inference
from siam_bids.errors import ImageError
from siam_bids.image.grid import Crop, Grid, Volume
from siam_bids.inference.cost import Load
from siam_bids.inference.head_pose import Window, centres
from siam_bids.inference.intensity_refinement import following
from siam_bids.inference.prediction import (
    NetworkScores,
    Prediction,
    Progress,
    prediction_of,
)
from siam_bids.inference.resampling import Logits
from siam_bids.inference.rotated_resampling import RotatedLogits
from siam_bids.inference.runner import Runner
from siam_bids.inference.sliding_window import TILE_STEP
from siam_bids.inference.white_matter_outliers import outlier_rule
from siam_bids.models.settings import Intensities
from siam_bids.nnunet.model import NnunetModel
from siam_bids.nnunet.preprocessing import (
    assumed_spacing,
    axis_order,
    box_needed,
    nonzero_mask,
    normalise,
    pad_to_tile,
    resample,
    resample_logits,
    seen_shape,
)
from siam_bids.support.memory import free_memory

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
        How to run it, see `Runner`.
    intensities
        How far the labels follow the intensities of the scan. Default: not at all, as in nnU-Net.

    Raises
    ------
    UsageError
        The model lacks a fold of the options; or see `Runner`.
    """

    def __init__(
        self,
        model: NnunetModel,
        device: torch.device,
        options: Inference | None = None,
        intensities: Intensities | None = None,
    ) -> None:
        self.options = options or Inference()
        self.model = model.with_folds(self.options.folds)
        self.runner = Runner(self.model, device, self.options)
        self._intensities = intensities
        self._axes = axis_order(self.model)
        self._back = [int(axis) for axis in np.argsort(self._axes)]

    @property
    def load(self) -> Load:
        """What the network asks of the machine where it runs now."""
        return self.runner.load

    @property
    def loads(self) -> tuple[Load, ...]:
        """That of the one network."""
        return (self.load,)

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
            (I, J, K) region to label: within it no voxel becomes background, outside all do. A
            model of two channels is told it as the second.

        Raises
        ------
        ImageError
            It needs more memory than there is, see `memory_of_scan`.
        """
        logits, crop = self.scores(volume, inside=inside, progress=progress)
        scores = following(logits, volume, crop, self._intensities)
        mask = None if inside is None else crop.cut(inside)
        outliers = outlier_rule(volume, crop, self._intensities)
        return prediction_of(
            scores, crop, self.model.labels, probabilities, inside=mask, outliers=outliers
        )

    def network(self, volume: Volume, *, progress: Progress | None = None) -> NetworkScores:
        """Run the network over a scan."""
        return NetworkScores(*self.scores(volume, progress=progress))

    def finish(
        self, volume: Volume, seen: NetworkScores, probabilities: Sequence[str] = ()
    ) -> Prediction:
        """Label a scan by the scores of the network and its intensities."""
        scores = following(seen.prior, volume, seen.crop, self._intensities)
        return prediction_of(scores, seen.crop, self.model.labels, probabilities)

    def scores(
        self,
        volume: Volume,
        *,
        inside: npt.NDArray[np.bool_] | None = None,
        part: Sequence[slice] | None = None,
        normalise_part: bool = False,
        step: float = TILE_STEP,
        progress: Progress | None = None,
    ) -> tuple[Logits, Crop]:
        """Run the network over a scan; other arguments and errors as for `segment`.

        Parameters
        ----------
        part
            Of the crop around everything that is not zero, [z, y, x]: all that the network sees
            of the scan.
        normalise_part
            Whether its intensities are normalised by themselves, instead of as the whole's are.
        step
            Tile edges between two tiles, at most.

        Returns
        -------
        scores
            On the voxels of the scan that the crop keeps.
        crop
            Around everything that is not zero, or that part of it.
        """
        whole = [volume.data] if inside is None else [volume.data, inside.astype(np.float32)]
        crop = Crop.around(nonzero_mask(whole), volume.grid)
        part = part or tuple(slice(0, length) for length in crop.shape)
        shown = crop.within(part)
        self._check_memory(volume.grid, shown.grid)
        known = shown if normalise_part else crop
        channels = [known.cut(channel).transpose(self._axes) for channel in whole]
        image = np.stack(
            [normalise(self.model, channels, index) for index in range(self.model.channels)]
        )
        if known is crop:
            image = image[(slice(None), *(part[axis] for axis in self._axes))]
        crop = shown
        spacing = assumed_spacing(
            self.model, [crop.voxel_size[axis] for axis in self._axes], self.options
        )
        image = resample(self.model, image, spacing)
        logits = self._padded(
            image,
            inside=None if inside is None else crop.cut(inside).transpose(self._axes),
            step=step,
            progress=progress,
        )
        shape = [crop.shape[axis] for axis in self._axes]
        logits, nearest_axis = resample_logits(self.model, logits, shape, spacing)
        if inside is not None:
            with torch.inference_mode():
                logits[0] = _NEVER
        return Logits(
            logits.permute(0, *(1 + axis for axis in self._back)),
            crop.shape,
            nearest_axis=None if nearest_axis is None else self._axes[nearest_axis],
        ), crop

    def turned_scores(
        self,
        volume: Volume,
        window: Window,
        *,
        normalise_window: bool = False,
        step: float = TILE_STEP,
        elsewhere: bool = False,
        progress: Progress | None = None,
    ) -> RotatedLogits:
        """Run a network with one channel on a scan rotated to standard orientation.

        Outside the scan its outermost voxels are repeated.

        Parameters
        ----------
        window
            What the network sees.
        normalise_window
            Whether intensities in it are normalised by themselves, instead of as the whole's are.
        elsewhere
            Whether the outside is background; else it is unknown.
        step, progress
            As for `scores`.

        Returns
        -------
        On the voxels of the scan in the crop around everything that is not zero.
        """
        crop = Crop.around(volume.data != 0, volume.grid)
        z, y, x = (int(n) for n in np.ceil((window.high - window.low) / crop.voxel_size))
        self._check_memory(volume.grid, Grid((x, y, z), crop.grid.affine))
        image = normalise(self.model, [crop.cut(volume.data).transpose(self._axes)], 0)[None]
        spacing = assumed_spacing(
            self.model, [crop.voxel_size[axis] for axis in self._axes], self.options
        )
        image = resample(self.model, image, spacing)[0].transpose(self._back)
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
        if normalise_window:
            image = normalise(self.model, [image[0]], 0)[None]
        logits = self._padded(image, step=step, progress=progress)
        unseen = torch.full((len(logits),), _NEVER if elsewhere else torch.nan)
        if elsewhere:
            unseen[0] = 0
        return RotatedLogits(
            logits.permute(0, *(1 + axis for axis in self._back)),
            upright,
            window.pose.affine @ centres(crop.voxel_size),
            crop.shape,
            unseen,
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
        padded, inner = pad_to_tile(self.model, image)
        wanted = None if inside is None else box_needed(inside, inner)
        logits = self.runner.predict(padded, wanted=wanted, step=step, progress=progress)
        return logits[(slice(None), *inner)]

    def _check_memory(self, grid: Grid, part: Grid) -> None:
        """Refuse a scan that does not fit, or work in smaller pieces if it fits then."""
        given = self.options.memory
        there = given or free_memory() + psutil.Process().memory_info().rss
        limit = f"{there / 1e9:.1f} GB are {'given' if given else 'free'}"
        while True:
            need = self.memory_of_scan(grid, part)
            what = f"about {need / 1e9:.1f} GB of memory"
            logger.info("Needs %s; %s.", what, limit)
            if need <= there:
                return
            if not (self.load.on_cpu and self.runner.may_save_memory):
                raise ImageError(f"The scan needs {what}; {limit}.", self._more_memory)
            self.runner.make_smaller(f"The scan needs {what}; {limit}")

    @property
    def _more_memory(self) -> str:
        """Name the options that would need less memory, or give more."""
        leaner = []
        if self.load.on_cpu and self.load.unet and self.load.precision == "float32":
            leaner.append("--precision bfloat16")
        if len(self.model.folds) > 1:
            leaner.append("a single one of --folds")
        if not self.options.low_memory:
            leaner.append("--low-mem")
        helps = f"{', '.join(leaner)} or more memory" if leaner else "More memory"
        return f"{helps[0].upper()}{helps[1:]} (--mem-gb) may help."

    def memory_of_scan(self, grid: Grid, part: Grid | None = None) -> float:
        """Estimate in bytes the most main memory that a scan needs, see `sizing.Load.memory`.

        `part` is what the network sees of it; default: all.
        """
        seen = seen_shape(self.model, part or grid, self.options)
        return self.load.memory(math.prod(grid.shape), seen)


class Segmenter(Protocol):
    """Anything that labels the voxels of a scan."""

    def segment(
        self, volume: Volume, *, probabilities: Sequence[str] = (), progress: Progress | None = None
    ) -> Prediction:
        """Segment one scan; the result is on exactly the scan's grid."""
        ...
