"""Several models of the same labels, averaged: what nnU-Net calls an ensemble."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import torch

from siam_bids.config import Inference
from siam_bids.nnunet import NnunetModel, NnunetSegmenter, estimate
from siam_bids.scores import MeanScores
from siam_bids.segmenter import Prediction, Progress, prediction_of
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
    """

    def __init__(
        self, models: Sequence[NnunetModel], device: torch.device, options: Inference
    ) -> None:
        self._members = [NnunetSegmenter(model, device, options) for model in models]

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those of the members' feature maps: `float32`, `bfloat16` or `float16`, each once."""
        return precisions_of(self._members)

    def segment(
        self, volume: Volume, *, probabilities: Sequence[str] = (), progress: Progress | None = None
    ) -> Prediction:
        """Segment one scan on its own grid; see `Segmenter.segment`."""
        answers = [
            member.scores(volume, keep=bool(probabilities), progress=part)
            for member, part in zip(self._members, self._parts(volume, progress), strict=True)
        ]
        crop = answers[0][1]
        scores = MeanScores([part for part, _ in answers])
        return prediction_of(scores, crop, self._members[0].model.labels, probabilities)

    def _parts(self, volume: Volume, progress: Progress | None) -> list[Progress | None]:
        """Divide the progress among the models by the time that each is estimated to take."""
        if progress is None:
            return [None] * len(self._members)
        seconds = [
            estimate(each.model, [volume.grid], each.device, each.options, cpus=1).seconds
            for each in self._members
        ]
        ends = np.cumsum([0.0, *seconds]) / sum(seconds)

        def part(start: float, end: float) -> Progress:
            return lambda done: progress(start + (end - start) * done)

        return [part(start, end) for start, end in pairwise(ends)]


def precisions_of(segmenters: Iterable[NnunetSegmenter | EnsembleSegmenter]) -> tuple[str, ...]:
    """Return the precisions that several networks run in, each once."""
    return tuple(dict.fromkeys(name for each in segmenters for name in each.precisions))
