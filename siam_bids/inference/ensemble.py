"""Several models of the same labels, averaged: what nnU-Net calls an ensemble."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch

from siam_bids.config import Inference
from siam_bids.image.grid import Crop, Volume
from siam_bids.inference.averaging import MeanScores
from siam_bids.inference.cost import Load, estimate
from siam_bids.inference.head_pose import Window, upright_window
from siam_bids.inference.intensity_refinement import following
from siam_bids.inference.prediction import (
    NetworkScores,
    Prediction,
    Progress,
    prediction_of,
)
from siam_bids.inference.resampling import Logits, Part, Prior
from siam_bids.inference.segmenter import NnunetSegmenter
from siam_bids.inference.sliding_window import TILE_STEP
from siam_bids.inference.white_matter_outliers import outlier_rule
from siam_bids.models.settings import Focus, Intensities, Upright
from siam_bids.nnunet.model import NnunetModel


class EnsembleSegmenter:
    """Runs models one after the other; each voxel gets the class of the highest mean probability.

    Means are taken on the scan's own grid (Isensee et al., Nat. Methods 2021), so that the models
    may differ in voxel size and architecture.

    Parameters
    ----------
    models
        One or more, with the same labels.
    device, options
        As for `NnunetSegmenter`.
    focus
        Box for all members but the first; outside, the first decides. Default: everywhere.
    intensities
        Settings of intensity refinement. Default: none.
    upright
        Heads to segment again in standard orientation. Default: none.
    """

    def __init__(
        self,
        models: Sequence[NnunetModel],
        device: torch.device,
        options: Inference,
        *,
        focus: Focus | None = None,
        intensities: Intensities | None = None,
        upright: Upright | None = None,
    ) -> None:
        self._members = [NnunetSegmenter(model, device, options) for model in models]
        self._focus = focus
        self._intensities = intensities
        self._upright = upright if options.interpolate else None

    @property
    def loads(self) -> tuple[Load, ...]:
        """What each network asks of the machine where it runs now."""
        return tuple(member.load for member in self._members)

    def segment(
        self, volume: Volume, *, probabilities: Sequence[str] = (), progress: Progress | None = None
    ) -> Prediction:
        """Segment one scan on its own grid; see `Segmenter.segment`."""
        return self.finish(volume, self.network(volume, progress=progress), probabilities)

    def network(self, volume: Volume, *, progress: Progress | None = None) -> NetworkScores:
        """Run the networks over a scan."""
        first_progress, *shares = self._shares(volume, progress)
        coarse, crop = self._members[0].scores(volume, progress=first_progress)
        if window := self._window(coarse, crop):
            return NetworkScores(self._upright_scores(volume, window, shares), crop, window.pose)
        return NetworkScores(self._scores(volume, coarse, crop, shares), crop)

    def finish(
        self, volume: Volume, seen: NetworkScores, probabilities: Sequence[str] = ()
    ) -> Prediction:
        """Label a scan by the scores of the networks and its intensities."""
        scores = following(seen.prior, volume, seen.crop, self._intensities)
        table = self._members[0].model.labels
        outliers = outlier_rule(volume, seen.crop, self._intensities)
        found = prediction_of(scores, seen.crop, table, probabilities, outliers=outliers)
        return replace(found, pose=seen.pose)

    def _scores(
        self,
        volume: Volume,
        coarse: Logits,
        crop: Crop,
        shares: Sequence[Progress | None],
    ) -> Prior:
        """Run the other members on the scan in its own orientation."""
        box, step = None, TILE_STEP
        if self._focus:
            step = self._focus.step
            box = coarse.box_of(self._seen, [self._focus.margin / size for size in crop.voxel_size])
        finer = [
            member.scores(volume, part=box, step=step, progress=share)[0]
            for member, share in zip(self._members[1:], shares, strict=True)
        ]
        return self._mean(coarse, finer, box)

    def _upright_scores(
        self, volume: Volume, head: Window, shares: Sequence[Progress | None]
    ) -> Prior:
        """Run all members, the first one again, on the head in standard orientation."""
        first, *others = self._members
        again = first.turned_scores(volume, head, elsewhere=True)
        step, window = TILE_STEP, head
        if self._focus:
            step = self._focus.step
            window = Window(head.pose, *again.box_of(self._seen, self._focus.margin))
        finer = [
            member.turned_scores(volume, window, step=step, progress=share)
            for member, share in zip(others, shares, strict=True)
        ]
        box = finer[0].seen() if finer else None
        inner = [each.within(box) for each in finer] if box else []
        return self._mean(again, inner, box)

    def _mean(self, first: Part, finer: Sequence[Part], box: Sequence[slice] | None) -> Prior:
        """Average the scores of the first network with those of the others in a box."""
        if not finer:
            return first
        return MeanScores(first, finer, box, self._focus.share if self._focus else None)

    def _window(self, coarse: Logits, crop: Crop) -> Window | None:
        """Return the window in standard orientation; None if the head is not segmented again."""
        if self._upright is None:
            return None
        labels = coarse.own_labels
        edges = np.array(crop.shape) * crop.voxel_size / labels.shape
        return upright_window(self._upright, labels, edges, self._members[0].model.labels)

    @property
    def _seen(self) -> list[int]:
        """Return the classes that the others look at."""
        table = self._members[0].model.labels
        return [table.by_name[name].index for name in self._focus.tissues] if self._focus else []

    def _shares(self, volume: Volume, progress: Progress | None) -> list[Progress | None]:
        """Divide the progress among the models by the time that each is estimated to take."""
        if progress is None:
            return [None] * len(self._members)
        looks = focus_of_each(self._members, self._focus)
        seconds = [
            estimate(
                each.model,
                [volume.grid],
                each.runner.device,
                each.options,
                cpus=1,
                focus=focus,
                load=each.load,
            ).seconds
            for each, focus in zip(self._members, looks, strict=True)
        ]
        ends = np.cumsum([0.0, *seconds]) / sum(seconds)

        def share(start: float, end: float) -> Progress:
            return lambda done: progress(start + (end - start) * done)

        return [share(start, end) for start, end in pairwise(ends)]


def focus_of_each(members: Sized, focus: Focus | None) -> list[Focus | None]:
    """Return the box of each member of an ensemble; None (the whole scan) for the first."""
    return [None, *([focus] * (len(members) - 1))]
