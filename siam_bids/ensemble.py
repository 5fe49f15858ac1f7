"""Several models of the same labels, averaged: what nnU-Net calls an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from siam_bids.config import Inference
from siam_bids.nnunet import NnunetModel, NnunetSegmenter, estimate
from siam_bids.segmenter import Prediction, ProbabilityMaps, Progress
from siam_bids.volume import Segmentation, Volume


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
        return tuple(dict.fromkeys(name for each in self._members for name in each.precisions))

    def segment(
        self, volume: Volume, *, probabilities: Sequence[str] = (), progress: Progress | None = None
    ) -> Prediction:
        """Segment one scan on its own grid; see `Segmenter.segment`."""
        labels = self._members[0].model.labels
        names = [label.name for label in labels]
        answers = [
            member.segment(volume, probabilities=names, progress=part)
            for member, part in zip(self._members, self._parts(volume, progress), strict=True)
        ]

        def mean(name: str) -> npt.NDArray[np.float32]:
            total = answers[0].probabilities[name].copy()
            for answer in answers[1:]:
                total += answer.probabilities[name]
            return total / np.float32(len(answers))

        highest, entropy = (np.zeros(volume.data.shape, np.float32) for _ in range(2))
        found = np.zeros(volume.data.shape, np.uint8)
        for label in labels:
            chance = mean(label.name)
            found[chance > highest] = label.index
            np.maximum(highest, chance, out=highest)
            entropy -= chance * np.log(np.maximum(chance, np.float32(1e-9)))
        inside = found > 0
        voxels = np.bincount(found.ravel(), minlength=256)
        sure = np.bincount(found.ravel(), highest.ravel(), minlength=256)
        return Prediction(
            Segmentation(found, volume.grid, labels),
            ProbabilityMaps(probabilities, mean) if probabilities else {},
            confidence={
                label.name: float(sure[label.index] / voxels[label.index])
                for label in labels
                if voxels[label.index]
            },
            entropy=float(entropy[inside].mean() / np.log(len(names))) if inside.any() else None,
        )

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
