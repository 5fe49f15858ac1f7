"""Several models of the same labels, averaged: what nnU-Net calls an ensemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from operator import itemgetter

import numpy as np
import numpy.typing as npt
import torch

from siam_bids.config import Inference
from siam_bids.image.grid import Crop, Volume
from siam_bids.inference.averaging import MeanScores, tapered
from siam_bids.inference.cost import Load, estimate
from siam_bids.inference.head_pose import Window, centres, upright_window
from siam_bids.inference.intensity_refinement import following
from siam_bids.inference.prediction import (
    NetworkScores,
    Prediction,
    Progress,
    prediction_of,
)
from siam_bids.inference.resampling import Logits, Prior
from siam_bids.inference.segmenter import NnunetSegmenter
from siam_bids.inference.sliding_window import TILE_STEP
from siam_bids.inference.white_matter_outliers import outlier_rule
from siam_bids.models.settings import Focus, Intensities, Upright
from siam_bids.nnunet.model import NnunetModel

_Shares = Mapping[NnunetSegmenter, Progress]
"""What moves the share of each member in the progress."""


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
        Box of each member but the first, None for the whole scan; outside of it the members before
        decide. Default: the whole scan for all.
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
        focus: Sequence[Focus | None] = (),
        intensities: Intensities | None = None,
        upright: Upright | None = None,
    ) -> None:
        self._members = [NnunetSegmenter(model, device, options) for model in models]
        self._focus = focus_of_each(models, focus)
        self._groups = _grouped(self._members, self._focus)
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
        shares = self._shares(volume, progress)
        first = self._members[0]
        coarse, crop = first.scores(volume, progress=shares.get(first))
        if window := self._window(coarse, crop):
            scores = self._upright_scores(volume, window, crop, shares)
            found = NetworkScores(scores, crop, window.pose)
        else:
            found = NetworkScores(self._scores(volume, coarse, crop, shares), crop)
        if progress:
            progress(1.0)
        return found

    def finish(
        self, volume: Volume, seen: NetworkScores, probabilities: Sequence[str] = ()
    ) -> Prediction:
        """Label a scan by the scores of the networks and its intensities."""
        scores = following(seen.prior, volume, seen.crop, self._intensities)
        table = self._members[0].model.labels
        outliers = outlier_rule(volume, seen.crop, self._intensities)
        found = prediction_of(scores, seen.crop, table, probabilities, outliers=outliers)
        return replace(found, pose=seen.pose)

    def _scores(self, volume: Volume, coarse: Logits, crop: Crop, shares: _Shares) -> Prior:
        """Run the other members on the scan in its own orientation."""
        mean: Prior = coarse
        for group in self._groups:
            box = tuple(slice(0, length) for length in coarse.shape)
            if focus := group.focus:
                margin = [focus.margin / size for size in crop.voxel_size]
                found = coarse.box_of(self._labels_of(focus), margin)
                if not found:
                    continue
                box = found
            parts = [
                member.scores(
                    volume,
                    part=box,
                    step=group.step,
                    normalise_part=group.normalise_box,
                    progress=shares.get(member),
                )[0]
                for member in group.members
            ]
            ends = [
                (part.start or -np.inf, part.stop if part.stop < length else np.inf)
                for part, length in zip(box, coarse.shape, strict=True)
            ]
            low, high = np.transpose(ends) * crop.voxel_size
            weight = group.weight(box, centres(crop.voxel_size), low, high)
            mean = MeanScores(mean, parts, box, weight)
        return mean

    def _upright_scores(self, volume: Volume, head: Window, crop: Crop, shares: _Shares) -> Prior:
        """Run all members, the first one again, on the head in standard orientation."""
        again = self._members[0].turned_scores(volume, head, elsewhere=True)
        upright = head.pose.affine @ centres(crop.voxel_size)
        mean: Prior = again
        for group in self._groups:
            window = head
            if focus := group.focus:
                found = again.box_of(self._labels_of(focus), focus.margin)
                if not found:
                    continue
                window = Window(head.pose, *found)
            parts = [
                member.turned_scores(
                    volume,
                    window,
                    step=group.step,
                    normalise_window=group.normalise_box,
                    progress=shares.get(member),
                )
                for member in group.members
            ]
            box = parts[0].seen()
            weight = group.weight(box, upright, window.low, window.high)
            mean = MeanScores(mean, [part.within(box) for part in parts], box, weight)
        return mean

    def _window(self, coarse: Logits, crop: Crop) -> Window | None:
        """Return the window in standard orientation; None if the head is not segmented again."""
        if self._upright is None:
            return None
        labels = coarse.own_labels
        edges = np.array(crop.shape) * crop.voxel_size / labels.shape
        return upright_window(self._upright, labels, edges, self._members[0].model.labels)

    def _labels_of(self, focus: Focus) -> list[int]:
        """Return the classes that a box is put around."""
        return self._members[0].model.labels.indices(focus.tissues)

    def _shares(self, volume: Volume, progress: Progress | None) -> _Shares:
        """Divide the progress among the models by the time that each is estimated to take."""
        if progress is None:
            return {}
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
            for each, focus in zip(self._members, [None, *self._focus], strict=True)
        ]
        ends = np.cumsum([0.0, *seconds]) / sum(seconds)

        def share(start: float, end: float) -> Progress:
            return lambda done: progress(start + (end - start) * done)

        parts = [share(start, end) for start, end in pairwise(ends)]
        return dict(zip(self._members, parts, strict=True))


@dataclass(frozen=True)
class _Group:
    """Members in a row with the same focus.

    Attributes
    ----------
    focus
        None for the whole scan.
    share
        Their total weight in the mean with the members before them.
    """

    members: tuple[NnunetSegmenter, ...]
    focus: Focus | None
    share: float

    @property
    def step(self) -> float:
        """Tile edges between two tiles, at most."""
        return self.focus.step if self.focus else TILE_STEP

    @property
    def normalise_box(self) -> bool:
        """Whether intensities are normalised in the box alone."""
        return bool(self.focus and self.focus.normalise_box)

    def weight(
        self,
        box: Sequence[slice],
        affine: npt.NDArray[np.float64],
        low: npt.NDArray[np.float64],
        high: npt.NDArray[np.float64],
    ) -> float | torch.Tensor:
        """Return the share, or what it is in each voxel (I, J, K) of a box.

        Parameters
        ----------
        affine
            (4, 4), from voxels of the whole grid to mm along the axes of what the members saw.
        low, high
            (3,) ends of that in mm; infinite where it ends with the scan.
        """
        if not (self.focus and self.focus.taper):
            return self.share
        shifted = affine.copy()
        shifted[:3, 3] += affine[:3, :3] @ [part.start for part in box]
        shape = [part.stop - part.start for part in box]
        return self.share * tapered(shape, shifted, low, high, self.focus.taper)


def _grouped(members: Sequence[NnunetSegmenter], focus: Sequence[Focus | None]) -> list[_Group]:
    """Return all members but the first."""
    groups, before = [], 1
    for look, pairs in groupby(zip(members[1:], focus, strict=True), key=itemgetter(1)):
        these = tuple(member for member, _ in pairs)
        equal = len(these) / (before + len(these))
        given = look.share if look else None
        groups.append(_Group(these, look, equal if given is None else given))
        before += len(these)
    return groups


def focus_of_each(members: Sized, focus: Sequence[Focus | None]) -> list[Focus | None]:
    """Return the box of each member of an ensemble but the first; None for the whole scan."""
    return [*focus] or [None] * (len(members) - 1)
