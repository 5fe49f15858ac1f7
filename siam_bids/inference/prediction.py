"""The result of every segmenter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from siam_bids.image.grid import Crop, Segmentation
from siam_bids.image.labels import LabelTable
from siam_bids.inference.certainty import Certainty, LesionChances
from siam_bids.inference.resampling import Observer, Prior, Scores, labels_of
from siam_bids.inference.white_matter_outliers import OutlierRule
from siam_bids.measures.pose import Pose

Progress = Callable[[float], None]
"""Called with the share of the work done, 0 to 1."""


class ProbabilityMaps(Mapping[str, npt.NDArray[np.float32]]):
    """Maps by label name, computed on each access, so that at most one is in memory.

    Parameters
    ----------
    names
        Of the labels.
    make
        Given a name, returns the probabilities (I, J, K), float32 in [0, 1].
    """

    def __init__(
        self, names: Sequence[str], make: Callable[[str], npt.NDArray[np.float32]]
    ) -> None:
        self._names = tuple(names)
        self._make = make

    def __getitem__(self, name: str) -> npt.NDArray[np.float32]:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class Prediction:
    """What a segmenter answers.

    Attributes
    ----------
    segmentation
        On the scan's own grid.
    probabilities
        (I, J, K) float32 in [0, 1] per label name, only for the requested names. While
        it lives, it holds the logits of the scan.
    confidence
        Per label name, the mean probability that the network gave to the voxels of that label;
        absent labels are not listed.
    entropy
        Mean normalised entropy over all labelled voxels, 0 sure to 1 clueless; None if unknown.
    pose
        Head pose, if the head was segmented again because of it.
    lesions
        (I, J, K) float16, the probability of a lesion in the voxels of lesions; 0 elsewhere. None
        if no label is a lesion.
    """

    segmentation: Segmentation
    probabilities: Mapping[str, npt.NDArray[np.float32]]
    confidence: dict[str, float] = field(default_factory=dict)
    entropy: float | None = None
    pose: Pose | None = None
    lesions: npt.NDArray[np.float16] | None = None


@dataclass(frozen=True)
class NetworkScores:
    """What the networks of a whole head say of a scan, before its intensities refine it.

    Attributes
    ----------
    prior
        On the voxels of the crop, axes [z, y, x].
    crop
        Of the scan.
    pose
        Head pose, if the head was segmented again because of it.
    """

    prior: Prior
    crop: Crop
    pose: Pose | None = None


def prediction_of(
    scores: Scores,
    crop: Crop,
    table: LabelTable,
    probabilities: Sequence[str] = (),
    *,
    inside: npt.NDArray[np.bool_] | None = None,
    outliers: OutlierRule | None = None,
) -> Prediction:
    """Label a scan by its scores.

    Parameters
    ----------
    scores
        Of the voxels in the crop, classes numbered as in the table.
    probabilities
        Names of the labels whose maps are wanted; the scores must be able to give them.
    inside
        Voxels of the crop where labels are wanted; the others become background.
    outliers
        Decides what is a lesion in white matter; None leaves that to the scores.
    """
    certainty = Certainty(scores.classes)
    rivals = outliers.rivals(scores.shape, table) if outliers else None
    lesions = LesionChances(scores.shape, table)
    observers: list[Observer] = [certainty, lesions, *([rivals] if rivals else [])]
    found = labels_of(scores, inside=inside, observers=observers)
    revision = outliers.revise(rivals, found, table) if outliers and rivals else None
    if revision:
        certainty.move(*revision.moved())
        found[revision.where] = revision.labels
        lesions.chances[revision.where] = revision.lesion_chances
    wanted = {name: table.by_name[name].index for name in probabilities}

    def probability(name: str) -> npt.NDArray[np.float32]:
        index = wanted[name]
        chances = scores.probability(index)
        if revision:
            chances = revision.revised(chances, index)
        return crop.undo(chances, outside=int(index == 0))

    return Prediction(
        Segmentation(crop.undo(found), crop.turn.source, table),
        ProbabilityMaps(probabilities, probability) if probabilities else {},
        confidence={table.labels[i].name: p for i, p in certainty.confidence().items()},
        entropy=certainty.entropy(),
        lesions=crop.undo(lesions.chances) if lesions.indices else None,
    )
