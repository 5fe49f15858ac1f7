"""Several models of the same labels, averaged: what nnU-Net calls an ensemble."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from itertools import pairwise

import numpy as np
import torch

from siam_bids.config import Inference
from siam_bids.focus import Focus
from siam_bids.intensities import Intensities
from siam_bids.nnunet import NnunetModel, NnunetSegmenter, estimate
from siam_bids.posterior import following
from siam_bids.scores import MeanScores
from siam_bids.segmenter import TILE_STEP, Prediction, Progress, prediction_of
from siam_bids.volume import Volume


class EnsembleSegmenter:
    """Runs models one after the other; each voxel gets the class of the highest mean probability.

    Means are taken on the scan's own grid (Isensee et al., Nat. Methods 2021), so that the models
    may differ in voxel size and architecture.

    Parameters
    ----------
    models
        Two or more, with the same labels.
    device, options
        As for `NnunetSegmenter`.
    focus
        Where the members but the first look; elsewhere the first one decides. Default: everywhere.
    intensities
        How far the labels follow the intensities of the scan. Default: not at all.
    """

    def __init__(
        self,
        models: Sequence[NnunetModel],
        device: torch.device,
        options: Inference,
        focus: Focus | None = None,
        intensities: Intensities | None = None,
    ) -> None:
        self._members = [NnunetSegmenter(model, device, options) for model in models]
        self._focus = focus
        self._intensities = intensities

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those of the members' feature maps: `float32`, `bfloat16` or `float16`, each once."""
        return precisions_of(self._members)

    def segment(
        self, volume: Volume, *, probabilities: Sequence[str] = (), progress: Progress | None = None
    ) -> Prediction:
        """Segment one scan on its own grid; see `Segmenter.segment`."""
        keep = bool(probabilities)
        first, *others = self._members
        told, *parts = self._parts(volume, progress)
        coarse, crop = first.scores(volume, keep=keep, progress=told)
        box, step = None, TILE_STEP
        if self._focus:
            step = self._focus.step
            seen = [first.model.labels.by_name[name].index for name in self._focus.tissues]
            box = coarse.box_of(seen, [self._focus.margin / size for size in crop.voxel_size])
        finer = [
            member.scores(volume, part=box, step=step, keep=keep, progress=part)[0]
            for member, part in zip(others, parts, strict=True)
        ]
        mean = MeanScores(coarse, finer, box, self._focus.share if self._focus else None)
        scores = following(mean, volume, crop, self._intensities, keep=keep)
        return prediction_of(scores, crop, first.model.labels, probabilities)

    def _parts(self, volume: Volume, progress: Progress | None) -> list[Progress | None]:
        """Divide the progress among the models by the time that each is estimated to take."""
        if progress is None:
            return [None] * len(self._members)
        looks = focus_of_each(self._members, self._focus)
        seconds = [
            estimate(
                each.model, [volume.grid], each.device, each.options, cpus=1, focus=focus
            ).seconds
            for each, focus in zip(self._members, looks, strict=True)
        ]
        ends = np.cumsum([0.0, *seconds]) / sum(seconds)

        def part(start: float, end: float) -> Progress:
            return lambda done: progress(start + (end - start) * done)

        return [part(start, end) for start, end in pairwise(ends)]


def precisions_of(segmenters: Iterable[NnunetSegmenter | EnsembleSegmenter]) -> tuple[str, ...]:
    """Return the precisions that several networks run in, each once."""
    return tuple(dict.fromkeys(name for each in segmenters for name in each.precisions))


def focus_of_each(members: Sized, focus: Focus | None) -> list[Focus | None]:
    """Return what each member of an ensemble looks at: the first at everything (None)."""
    return [None, *([focus] * (len(members) - 1))]
