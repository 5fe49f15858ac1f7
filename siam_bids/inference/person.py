"""One prior of all scans of a person, for the intensity refinement of each.

The probabilities that the networks give to each scan are brought to a space in the middle of all
scans, and averaged there. The prior of a scan is a mean of these and of its own probabilities,

    prior = p_own (m / m_own)^(1 - s) / sum over classes,    m = sum_j w_j p_j / sum_j w_j,

where w is the weight of a scan (`weight_of`) and m_own its own part of m: it is interpolated as
often as m, so that its blur cancels. s is near 1 where a scan differs from all together over more
than the width of a border: see `_own_share`. What differs between scans elsewhere then comes
mostly from their intensities (Wells et al., 1996; for time series Reuter et al., NeuroImage 2012).
Between sessions anatomy may change: where there are several, m is the mean of the scan's own
session by `SESSION`, and that of all scans by the rest. Scans of one contrast are given the same
bias field before: see `differential_bias`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from siam_bids.image.grid import Crop, Segmentation, Volume, box_of
from siam_bids.image.labels import LabelTable
from siam_bids.image.transforms import Affine, move
from siam_bids.inference.alignment import (
    Alignment,
    Appearance,
    align,
    brain_values,
    halfway,
    inside_values,
    tissue_values,
)
from siam_bids.inference.prediction import NetworkScores
from siam_bids.inference.resampling import LEAST_PROBABILITY, Logits, Part, Prior
from siam_bids.inference.rotated_resampling import RotatedLogits

logger = logging.getLogger(__name__)

SPACING = 1.5
"""Voxel size in mm at which probabilities of several scans are averaged."""
_COARSE = 2.0
"""About the voxel size in mm at which those of one scan are kept."""
SESSION = 0.85
"""Share of a scan's own session in its prior, so that change is not averaged away."""
_NEGLIGIBLE = 1e-3
"""Probability below which classes are not compared."""
_MARGIN = 10.0
"""mm around everything inside the skull that are kept."""
_UNKNOWN = torch.nan
_SURE = 0.8
"""Probability of a label from which intensities of scans are compared."""
LESION = 2.0
"""Votes of a scan that sees a lesion."""
NO_VOTE = 255
"""A label that no model has."""
_WINDOW = 3.0
"""Standard deviation in mm of the windows in which scans are compared."""
_SIMILAR, _DIFFERENT = 0.4, 0.7
"""Total variation in a window up to which a scan follows the others, and from which it does not."""


@dataclass(frozen=True)
class Coarse:
    """The probabilities of one scan in a box around the brain, on a coarse grid.

    Attributes
    ----------
    logarithms
        (classes, I, J, K) float16, axes [z, y, x] of the crop.
    affine
        (4, 4), voxel to RAS+ mm.
    appearance
        For alignment, on the same grid.
    box
        Voxels of the crop from the first to the last of these, along each axis.
    weight
        What the scan counts in means.
    image
        (I, J, K) float32, intensities, a little smoothed.
    tissues
        (I, J, K) uint8, the label where it is sure and of the brain, but no lesion; 0 elsewhere.
    contrast
        (2,) logarithms of the mean intensities of cortex and ventricles over that of white matter;
        NaN if not known.
    """

    logarithms: torch.Tensor
    affine: Affine
    box: tuple[slice, ...]
    appearance: Appearance
    weight: float
    image: npt.NDArray[np.float32]
    tissues: npt.NDArray[np.uint8]
    contrast: npt.NDArray[np.float64]


def crop_affine(crop: Crop) -> Affine:
    """Return the affine from voxels of a crop, [z, y, x], to RAS+ mm."""
    z, y, x = crop.box
    swapped = np.eye(4)[[2, 1, 0, 3]]
    swapped[:3, 3] = x.start, y.start, z.start
    return crop.turn.target.affine @ swapped


def coarse_scores(volume: Volume, seen: NetworkScores, table: LabelTable) -> Coarse | None:
    """Keep of a scan what is needed to combine it with others; None if no brain was found."""
    crop = seen.crop
    stride = [max(1, round(_COARSE / size)) for size in crop.voxel_size]
    planes = [
        plane.float().log_softmax(0).half() for plane in seen.prior.subsample(stride).planes()
    ]
    logarithms = torch.stack(planes, 1)
    labels = logarithms.argmax(0).numpy()
    affine = crop_affine(crop) @ np.diag([*stride, 1.0])
    inside = np.isin(labels, inside_values(table))
    pieces, count = ndimage.label(inside)
    if not count:
        return None
    largest = 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    box = tuple(
        slice(
            max(0, part.start - round(_MARGIN / size)),
            min(length, part.stop + round(_MARGIN / size)),
        )
        for part, size, length in zip(box_of(pieces == largest), sizes, labels.shape, strict=True)
    )
    moved = np.eye(4)
    moved[:3, 3] = [part.start for part in box]
    affine = affine @ moved
    logarithms = logarithms[(slice(None), *box)].clone()
    brain = np.isin(labels, brain_values(table))[box] & (pieces == largest)[box]
    if not brain.any():
        return None
    chances = logarithms.float().exp()
    values = torch.from_numpy(tissue_values(table))
    tissue = torch.einsum("c,cijk->ijk", values, chances).numpy()
    sure = float(chances.max(0).values[torch.from_numpy(brain)].mean())
    appearance = Appearance(tissue, brain, affine)
    ends = tuple(
        slice(part.start * step, (part.stop - 1) * step + 1)
        for part, step in zip(box, stride, strict=True)
    )
    image = _smoothed(crop.cut(volume.data), ends, stride)
    tissues = _sure_tissues(chances, table)
    tissues[~brain] = 0
    return Coarse(
        logarithms,
        affine,
        ends,
        appearance,
        weight_of(crop.voxel_size, sure),
        image,
        tissues,
        _contrast(image, tissues, table),
    )


def _smoothed(
    image: npt.NDArray[np.float32], box: Sequence[slice], stride: Sequence[int]
) -> npt.NDArray[np.float32]:
    """Return every n-th voxel of a box, averaged with its neighbours."""
    sigma = [0.5 * step if step > 1 else 0.0 for step in stride]
    smooth = ndimage.gaussian_filter(image[tuple(box)].astype(np.float32), sigma, truncate=2.0)
    few: npt.NDArray[np.float32] = smooth[tuple(slice(None, None, step) for step in stride)]
    return few


def _sure_tissues(chances: torch.Tensor, table: LabelTable) -> npt.NDArray[np.uint8]:
    """Return the places in the table (I, J, K) of sure labels that are no lesion; else 0."""
    highest, places = chances.max(0)
    sure = places.numpy().astype(np.uint8)
    lesions = [place for place, label in enumerate(table) if label.role == "lesion"]
    sure[(highest < _SURE).numpy() | np.isin(sure, lesions)] = 0
    return sure


def _contrast(
    image: npt.NDArray[np.float32], tissues: npt.NDArray[np.uint8], table: LabelTable
) -> npt.NDArray[np.float64]:
    """Return `Coarse.contrast`."""
    means = []
    for role in ("white_matter", "cortex", "ventricles"):
        inside = np.isin(tissues, [n for n, label in enumerate(table) if label.role == role])
        mean = float(image[inside].mean()) if inside.any() else np.nan
        means.append(np.log(mean) if mean > 0 else np.nan)
    return np.array(means[1:]) - means[0]


def weight_of(voxel_size: Sequence[float], sure: float) -> float:
    """Return what a scan counts: its mean highest probability over its longest edge from 1 mm."""
    return sure / max(1.0, *voxel_size)


class PersonMean:
    """The mean probabilities of all scans, in the space in the middle of them.

    Parameters
    ----------
    scans, motions
        Scans, and the motion from each to that space.
    """

    def __init__(self, scans: Sequence[Coarse], motions: Sequence[Affine]) -> None:
        corners = np.concatenate(
            [_corners(motion @ scan.affine, scan.logarithms.shape[1:])
             for scan, motion in zip(scans, motions, strict=True)]
        )  # fmt: skip
        low = corners.min(0)
        shape = np.ceil((corners.max(0) - low) / SPACING).astype(int) + 1
        self.affine = np.diag([SPACING, SPACING, SPACING, 1.0])
        self.affine[:3, 3] = low
        self.shape = tuple(int(n) for n in shape)
        classes = len(scans[0].logarithms)
        self.weight = sum(scan.weight for scan in scans)
        total = torch.zeros((classes, *self.shape))
        weights = torch.zeros(self.shape)
        for scan, motion in zip(scans, motions, strict=True):
            for place, plane in enumerate(
                _pulled(scan.logarithms, motion @ scan.affine, self.affine, self.shape)
            ):
                chances = plane.float().softmax(0)
                known = ~chances[0].isnan()
                total[:, place] += torch.where(known, chances, 0.0) * scan.weight
                weights[place] += known * scan.weight
        total /= weights.clamp_min(1e-12)
        self.logarithms = total.clamp_(min=LEAST_PROBABILITY).log_().half()
        self.logarithms[:, weights == 0] = _UNKNOWN

    def on(self, affine: Affine, shape: Sequence[int]) -> torch.Tensor:
        """Return the logarithms (classes, I, J, K) on another grid; NaN where unknown.

        Parameters
        ----------
        affine
            From its voxels to mm in the space of the mean.
        """
        return torch.stack([*_pulled(self.logarithms, self.affine, affine, shape)], 1)

    def share(self, scan: Coarse) -> float:
        """Return what one of the scans counts in the mean, 0 to 1."""
        return scan.weight / self.weight


@dataclass(frozen=True)
class SessionMean:
    """The mean of the scans of a session by `SESSION`, and that of all scans by the rest."""

    session: PersonMean
    every: PersonMean

    def on(self, affine: Affine, shape: Sequence[int]) -> torch.Tensor:
        """Return its logarithms on another grid; see `PersonMean.on`."""
        own, total = (each.on(affine, shape).float().exp_() for each in (self.session, self.every))
        mixed = SESSION * own + (1 - SESSION) * total
        return torch.where(mixed.isnan(), total, mixed).log_()

    def share(self, scan: Coarse) -> float:
        """Return what one of the session's scans counts in it, 0 to 1."""
        return SESSION * self.session.share(scan) + (1 - SESSION) * self.every.share(scan)


def _pulled(
    logarithms: torch.Tensor, own: Affine, wanted: Affine, shape: Sequence[int]
) -> Iterator[torch.Tensor]:
    unseen = torch.full((len(logarithms),), _UNKNOWN)
    return RotatedLogits(logarithms, own, wanted, shape, unseen).planes()


def _corners(affine: Affine, shape: Sequence[int]) -> npt.NDArray[np.float64]:
    ends = np.array(np.meshgrid(*([0, length - 1] for length in shape))).reshape(3, -1).T
    return move(affine, ends)


class PersonPrior:
    """The scan's own probabilities times factors in which the other scans speak; see the module.

    Parameters
    ----------
    own
        Of the scan's networks.
    factors
        Logarithms, on the voxels of the box.
    box
        Outside, only the scan's own count.
    """

    def __init__(self, own: Prior, factors: Part, box: Sequence[slice]) -> None:
        self.shape, self.classes = own.shape, own.classes
        self._own, self._factors, self._box = own, factors, tuple(box)

    def tensors(self) -> list[torch.Tensor]:
        """Return the scan's own logits, then the factors."""
        return [*self._own.tensors(), *self._factors.tensors()]

    def with_tensors(self, tensors: Iterator[torch.Tensor]) -> PersonPrior:
        """Return the same scores of other logits, see `Prior`."""
        own = self._own.with_tensors(tensors)
        return PersonPrior(own, self._factors.with_tensors(tensors), self._box)

    def planes(self) -> Iterator[torch.Tensor]:
        """Yield (classes, J, K) logarithms of the probabilities of each plane, float32."""
        rows, *window = self._box
        factors = self._factors.planes()
        least = math.log(LEAST_PROBABILITY)
        for place, plane in enumerate(self._own.planes()):
            total = plane.float().log_softmax(0)
            if rows.start <= place < rows.stop:
                here = total[(slice(None), *window)]
                here += next(factors)
                here -= here.logsumexp(0)
            yield total.clamp_(min=least)

    def subsample(self, stride: Sequence[int]) -> PersonPrior:
        """Return the scores of every n-th voxel along each axis."""
        offset = [-part.start % step for part, step in zip(self._box, stride, strict=True)]
        box = [
            slice(-(-part.start // step), -(-part.stop // step))
            for part, step in zip(self._box, stride, strict=True)
        ]
        factors = self._factors.subsample(stride, offset)
        return PersonPrior(self._own.subsample(stride), factors, box)

    def probability(self, index: int) -> npt.NDArray[np.float32]:
        """Return the probability (I, J, K) of a class, float32 in [0, 1]."""
        found = self.log_probability(index)
        return np.exp(found, out=found)

    def log_probability(self, index: int) -> npt.NDArray[np.float32]:
        """Return the logarithm (I, J, K) of the probability of a class."""
        found = np.empty(self.shape, np.float32)
        for place, plane in enumerate(self.planes()):
            found[place] = plane[index].numpy()
        return found


def person_prior(
    own: Prior, scan: Coarse, mean: PersonMean | SessionMean, motion: Affine, *, least: float = 0
) -> PersonPrior:
    """Return the prior of one of the scans of a mean.

    Parameters
    ----------
    own
        Of its networks.
    motion
        From the scan to the space of the mean.
    least
        Share of its own probabilities, 0 to 1.
    """
    shape, affine = scan.logarithms.shape[1:], motion @ scan.affine
    logarithms = mean.on(affine, shape).float()
    blurred = PersonMean([scan], [motion]).on(affine, shape).float()
    share = _own_share(scan, logarithms, mean.share(scan), least)
    ratio = logarithms.clamp_(min=math.log(_NEGLIGIBLE))
    ratio -= blurred.clamp_(min=math.log(_NEGLIGIBLE))
    factors = (ratio * (1 - share)).nan_to_num_(0.0).half()
    size = [part.stop - part.start for part in scan.box]
    return PersonPrior(own, Logits(factors, size, ends_meet=True), scan.box)


def _own_share(scan: Coarse, mean: torch.Tensor, weight: float, least: float) -> torch.Tensor:
    """Return what a scan's own probabilities count in its prior, (I, J, K).

    With d the total variation between these and the mean of the other scans, averaged in Gaussian
    windows: `least` where d is small, as along borders; 1 where it is large.
    """
    apart = torch.zeros(mean.shape[1:])
    for own, other in zip(scan.logarithms, mean, strict=True):
        apart += (own.float().exp() - other.float().exp()).abs_()
    apart = (apart / (2 * (1 - weight))).nan_to_num_(0.0)
    sigma = [_WINDOW / size for size in np.linalg.norm(scan.affine[:3, :3], axis=0)]
    near = torch.from_numpy(ndimage.gaussian_filter(apart.numpy(), sigma, truncate=2.5))
    rise = ((near - _SIMILAR) / (_DIFFERENT - _SIMILAR)).clamp_(0, 1)
    return least + (1 - least) * rise * rise * (3 - 2 * rise)


@dataclass(frozen=True)
class Together:
    """How the scans of a person lie to each other; one entry per scan.

    Attributes
    ----------
    motions
        From each scan to the space in the middle of all; None for a scan that is done alone.
    likeness
        See `alignment.likeness`, with the scan that all were aligned to; for that scan the median
        over those that were aligned to it, or over all if none was. NaN where there was nothing
        to align.
    refusals
        Why a scan is done alone; empty if it is not.
    """

    motions: tuple[Affine | None, ...]
    likeness: tuple[float, ...]
    refusals: tuple[str, ...]


def align_scans(scans: Sequence[Coarse | None]) -> Together:
    """Align the scans of one person to the best of them that most agree with.

    Parameters
    ----------
    scans
        None where no brain was found.
    """
    known = [place for place, scan in enumerate(scans) if scan]
    known.sort(key=lambda place: -_known(scans[place]).weight)
    best: dict[int, Alignment] = {}
    first = known[0] if known else 0
    for place in known:
        found = {
            other: align(_known(scans[other]).appearance, _known(scans[place]).appearance)
            for other in known
            if other != place
        }
        if not best or _agreeing(found) > _agreeing(best):
            best, first = found, place
        if 2 * _agreeing(best) >= len(best):
            break
    used = sorted([first, *(place for place, each in best.items() if not each.refusal)])
    motions: list[Affine | None] = [None] * len(scans)
    if len(used) > 1:
        to_first = [np.eye(4) if place == first else best[place].matrix for place in used]
        centre = _known(scans[first]).appearance.centre
        for place, motion in zip(used, halfway(to_first, centre), strict=True):
            motions[place] = motion
    alike = [best[place].likeness if place in best else np.nan for place in range(len(scans))]
    if best:
        agreeing = [each for each in best.values() if not each.refusal] or [*best.values()]
        alike[first] = float(np.median([each.likeness for each in agreeing]))
    refusals = []
    for place, scan in enumerate(scans):
        if not scan:
            refusals.append("no brain was found")
        elif place in best:
            refusals.append(best[place].refusal)
        else:
            refusals.append("" if len(used) > 1 else "no other scan could be aligned with it")
    return Together(tuple(motions), tuple(alike), tuple(refusals))


def _agreeing(found: Mapping[int, Alignment]) -> int:
    return sum(not each.refusal for each in found.values())


def _known(scan: Coarse | None) -> Coarse:
    if scan is None:
        raise ValueError("no brain was found")
    return scan


def consensus(
    scans: Sequence[Segmentation],
    motions: Sequence[Affine],
    weights: Sequence[float],
    best: int,
) -> Segmentation:
    """Let the label maps of a session vote, on the grid of the best scan.

    Weighted voting (Artaechevarria et al., IEEE Trans. Med. Imaging 2009). A vote for a lesion
    counts `LESION` times, because a lesion that one contrast shows may be invisible in others.

    Parameters
    ----------
    motions
        From each scan to one space.
    weights
        Of the scans' votes; where votes are equal, the best scan's label is kept.
    """
    grid, table = scans[best].grid, scans[best].labels
    to_space = motions[best] @ grid.affine
    lesions = [label.index for label in table.of_role("lesion")]
    chosen, most = scans[best].data.copy(), np.zeros(grid.shape, np.float32)
    votes = [_nearest(scan, np.linalg.inv(motion @ scan.grid.affine) @ to_space, grid.shape)
             for scan, motion in zip(scans, motions, strict=True)]  # fmt: skip
    order = [best, *(place for place in range(len(scans)) if place != best)]
    for label in np.unique(np.concatenate([np.unique(each) for each in votes])):
        if label == NO_VOTE:
            continue
        score = np.zeros(grid.shape, np.float32)
        for place in order:
            score += np.float32(weights[place]) * (votes[place] == label)
        if label in lesions:
            score *= np.float32(LESION)
        score += np.float32(1e-4) * (votes[best] == label)
        higher = score > most
        chosen[higher] = label
        most[higher] = score[higher]
    return Segmentation(chosen, grid, table)


def _nearest(scan: Segmentation, voxels: Affine, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Return the label of the nearest voxel on another grid; `NO_VOTE` beyond the scan."""
    if np.allclose(voxels, np.eye(4), atol=1e-6) and scan.data.shape == shape:
        return scan.data
    found: npt.NDArray[np.uint8] = ndimage.affine_transform(
        scan.data, voxels, output_shape=shape, order=0, mode="constant", cval=NO_VOTE
    )
    return found
