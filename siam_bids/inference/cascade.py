"""Cascades: a model or an ensemble, and models that refine its labels in regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from siam_bids.config import Inference
from siam_bids.errors import LabelError, ModelError, UsageError
from siam_bids.image.grid import Box, Grid, Segmentation, Volume, box_of
from siam_bids.image.labels import LabelTable
from siam_bids.image.spikes import without_spikes
from siam_bids.inference.cost import Cost, Load, estimate
from siam_bids.inference.ensemble import EnsembleSegmenter, focus_of_each
from siam_bids.inference.prediction import (
    NetworkScores,
    Prediction,
    ProbabilityMaps,
    Progress,
)
from siam_bids.inference.runner import check_options
from siam_bids.inference.segmenter import NnunetSegmenter
from siam_bids.models.labels import check_names
from siam_bids.models.model import Model
from siam_bids.models.settings import Focus, Intensities, Upright
from siam_bids.nnunet.model import NnunetModel

MARGIN = 4
"""Margin in voxels around a region in the crop for its model, as in SIAM."""


@dataclass(frozen=True)
class Cascade:
    """What `--model` names, opened: usually one model, without regions.

    Attributes
    ----------
    heads
        Label the whole head; where there are several, their probabilities are averaged.
    focus
        Box of each head but the first, None for the whole scan; empty for that alone.
    intensities
        Settings of intensity refinement; None for none.
    upright
        Heads to segment again in standard orientation; None for none.
    repair_spikes
        Whether hot voxels are replaced before a network sees a scan.
    regions
        Names of labels that make up a region together, and the model that refines them there, in
        order. Such a model sees a crop of the scan around the region, normalised by itself, and
        (if it has a second channel) the mask of the region there; its own background cannot win in
        the region, and nothing outside of it changes.
    """

    heads: tuple[NnunetModel, ...]
    regions: tuple[tuple[tuple[str, ...], NnunetModel], ...] = ()
    focus: tuple[Focus | None, ...] = ()
    intensities: Intensities | None = None
    upright: Upright | None = None
    repair_spikes: bool = False

    @classmethod
    def open(cls, model: Model, folds: Sequence[str] = ()) -> Cascade:
        """Open the folders of a model; `folds` are those of the first model, empty for all.

        Raises
        ------
        ModelError
            A folder is unusable, or a model does not fit its place.
        UsageError
            There is no such fold.
        """
        heads = tuple(_open(each).with_folds(folds) for each in model.members or (model,))
        regions = tuple((region.inside, _open(region.model)) for region in model.regions)
        for head in heads:
            if head.channels != 1:
                raise ModelError(
                    f"{head.folder} needs {head.channels} input channels, but a scan has only one."
                )
            if head.labels != heads[0].labels:
                raise ModelError(
                    f"{head.folder} has different labels from {heads[0].folder}: "
                    "they cannot be averaged."
                )
        for _, finer in regions:
            if finer.channels > 2:
                raise ModelError(
                    f"{finer.folder} is not a model of a region: it has {finer.channels} channels, "
                    "but is given an image and a mask at most."
                )
        for name in dict.fromkeys(name for each in model.focus if each for name in each.tissues):
            if name not in heads[0].labels.by_name:
                raise ModelError(f"There is no label {name} in {heads[0].folder}.")
        cascade = cls(
            heads,
            regions,
            model.focus,
            model.intensities,
            model.upright,
            model.repair_spikes,
        )
        cascade.tables  # noqa: B018 (raises at once if models do not fit)
        return cascade

    @cached_property
    def tables(self) -> tuple[LabelTable, ...]:
        """Label tables before and after each region.

        Raises
        ------
        ModelError
            A region is not a label of the models before it.
        """
        tables = [self.heads[0].labels]
        for inside, model in self.regions:
            for name in inside:
                if name not in tables[-1].by_name:
                    raise ModelError(f"There is no label {name} for {model.folder} to refine.")
            try:
                tables.append(tables[-1].refined(inside, model.labels))
            except LabelError as error:
                raise ModelError(f"{model.folder} does not fit: {error}") from error
            check_names(f"{model.folder}, with the models before it,", tables[-1])
        return tuple(tables)

    @property
    def labels(self) -> LabelTable:
        """All labels that the result may hold."""
        return self.tables[-1]

    def check(self, options: Inference) -> None:
        """Refuse options that do not suit the models.

        Raises
        ------
        UsageError
            `--no-interpolation` is given and the models expect different voxel sizes.
        """
        if not options.interpolate and len({tuple(head.plan.spacing) for head in self.heads}) > 1:
            names = " or ".join(f"--model {head.folder.name}" for head in self.heads)
            raise UsageError(
                "--no-interpolation needs a model with a single voxel size.", f"Give one: {names}."
            )

    def check_device(self, device: torch.device, options: Inference) -> None:
        """Refuse options that a model cannot fulfil on a device; see `runner.check_options`."""
        for model in self.models:
            check_options(model, device, options)

    @property
    def models(self) -> tuple[NnunetModel, ...]:
        """Those of the whole head and those of the regions."""
        return (*self.heads, *(model for _, model in self.regions))

    @property
    def folds(self) -> int:
        """Networks that label the whole head."""
        return sum(len(head.folds) for head in self.heads)

    def estimate(
        self, grids: Sequence[Grid], device: torch.device, options: Inference, *, cpus: int
    ) -> Cost:
        """Estimate time and memory of the largest of some scans, see `nnunet.estimate`."""
        looks = [None, *focus_of_each(self.heads, self.focus), *(None for _ in self.regions)]
        sizes = [
            estimate(model, grids, device, options, cpus=cpus, focus=focus)
            for model, focus in zip(self.models, looks, strict=True)
        ]
        heads = sizes[: len(self.heads)]
        kept = sum(size.answer for size in heads)
        together = max(size.memory + kept - size.answer for size in heads)
        return Cost(
            memory=max([together, *(size.memory for size in sizes)]),
            seconds=sum(size.seconds for size in sizes),
        )


def _open(model: Model) -> NnunetModel:
    return NnunetModel.open(
        model.folder,
        checkpoint=model.checkpoint,
        precisions=model.precisions,
        mirror=model.mirror,
    )


class CascadeSegmenter:
    """Runs a cascade on scans: each model within the region that the previous ones found.

    Raises
    ------
    UsageError
        A model was not trained for mirroring, which the options ask for; or see `Cascade.check`.
    """

    def __init__(self, cascade: Cascade, device: torch.device, options: Inference) -> None:
        cascade.check(options)
        self.cascade = cascade
        self.options = options
        own = replace(options, folds=())
        self._first: NnunetSegmenter | EnsembleSegmenter = (
            EnsembleSegmenter(
                cascade.heads,
                device,
                own,
                focus=cascade.focus,
                intensities=cascade.intensities,
                upright=cascade.upright,
            )
            if len(cascade.heads) > 1 or cascade.upright
            else NnunetSegmenter(cascade.heads[0], device, own, cascade.intensities)
        )
        self._finer = [NnunetSegmenter(model, device, own) for _, model in cascade.regions]

    @property
    def loads(self) -> tuple[Load, ...]:
        """What each network asks of the machine where it runs now."""
        return (*self._first.loads, *(finer.load for finer in self._finer))

    def segment(
        self, volume: Volume, *, probabilities: Sequence[str] = (), progress: Progress | None = None
    ) -> Prediction:
        """Segment one scan on its own grid; see `Segmenter.segment`.

        The probability of a finer label is that within its region, as the models before saw it.
        """
        volume = self._repaired(volume)
        seen = self._first.network(volume, progress=self._share(progress, 0))
        return self._labelled(volume, seen, probabilities, progress)

    def network(self, volume: Volume, *, progress: Progress | None = None) -> NetworkScores:
        """Run the networks of the whole head over a scan, the first part of `segment`."""
        return self._first.network(self._repaired(volume), progress=self._share(progress, 0))

    def finish(
        self,
        volume: Volume,
        seen: NetworkScores,
        *,
        probabilities: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Prediction:
        """Label a scan by those scores, its intensities and the models of the regions."""
        return self._labelled(self._repaired(volume), seen, probabilities, progress)

    def _labelled(
        self,
        volume: Volume,
        seen: NetworkScores,
        probabilities: Sequence[str],
        progress: Progress | None,
    ) -> Prediction:
        own = self.cascade.tables[0].by_name
        wanted = [name for name in probabilities if name in own]
        found = self._first.finish(volume, seen, wanted)
        for step, finer in enumerate(self._finer, start=1):
            before, after = self.cascade.tables[step - 1 : step + 1]
            values = [before.by_name[name].index for name in self.cascade.regions[step - 1][0]]
            mask = np.isin(found.segmentation.data, values)
            if not mask.any():
                same = Segmentation(found.segmentation.data, volume.grid, after)
                found = replace(found, segmentation=same)
                continue
            own = finer.model.labels.by_name
            box = box_around(mask, MARGIN)
            part = finer.segment(
                volume.cut(box),
                inside=mask[box],
                probabilities=[name for name in probabilities if name in own],
                progress=self._share(progress, step),
            )
            found = _joined(found, part, mask, box, after)
        return found

    def _repaired(self, volume: Volume) -> Volume:
        return without_spikes(volume) if self.cascade.repair_spikes else volume

    def _share(self, progress: Progress | None, step: int) -> Progress | None:
        """Return what moves the progress of one step: that of the whole head, or of a region."""
        steps = 1 + len(self._finer)
        return (lambda done: progress((step + done) / steps)) if progress else None


def box_around(mask: npt.NDArray[np.bool_], margin: int) -> Box:
    """Return the box (I, J, K) around a mask that is not empty, wider by `margin` voxels."""
    i, j, k = (
        slice(max(part.start - margin, 0), min(part.stop + margin, length))
        for part, length in zip(box_of(mask), mask.shape, strict=True)
    )
    return i, j, k


def _joined(
    coarse: Prediction,
    finer: Prediction,
    mask: npt.NDArray[np.bool_],
    box: Box,
    labels: LabelTable,
) -> Prediction:
    """Take what is inside the mask from the finer prediction, made of a box of the scan.

    `labels` names what both may hold.
    """
    table = finer.segmentation.labels
    values = np.zeros(table.labels[-1].index + 1, np.uint8)
    for label in table.foreground:
        values[label.index] = labels.by_name[label.name].index
    data = coarse.segmentation.data.copy()
    data[mask] = values[finer.segmentation.data[mask[box]]]

    def probability(name: str) -> npt.NDArray[np.float32]:
        outer = coarse.probabilities.get(name)
        whole = np.zeros(mask.shape, np.float32) if outer is None else outer.copy()
        inner = finer.probabilities.get(name)
        whole[mask] = 0 if inner is None else inner[mask[box]]
        return whole

    names = dict.fromkeys([*coarse.probabilities, *finer.probabilities])
    return Prediction(
        Segmentation(data, coarse.segmentation.grid, labels),
        ProbabilityMaps(tuple(names), probability),
        {**coarse.confidence, **finer.confidence},
        coarse.entropy,
        coarse.pose,
        _joined_lesions(coarse, finer, mask, box),
    )


def _joined_lesions(
    coarse: Prediction, finer: Prediction, mask: npt.NDArray[np.bool_], box: Box
) -> npt.NDArray[np.float16] | None:
    """Return the probability of lesions (I, J, K): inside the mask the finer prediction's."""
    if coarse.lesions is None and finer.lesions is None:
        return None
    whole = np.zeros(mask.shape, np.float16) if coarse.lesions is None else coarse.lesions.copy()
    whole[mask] = 0 if finer.lesions is None else finer.lesions[mask[box]]
    return whole
