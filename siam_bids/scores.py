"""From logits on a network's voxels to labels and probabilities on the scan's, plane by plane."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

_LEAST = 1e-9
"""A probability that counts as 0, where its logarithm is taken."""


def _steps(source: int, target: int, *, nearest: bool) -> torch.Tensor:
    """Return weights (target, source) that resize an axis: linear ones, or those of the nearest.

    Aligned by extent (half-pixel rule, edges clamped), as in `skimage.transform.resize`.
    """
    place = (torch.arange(target, dtype=torch.float64) + 0.5) * source / target - 0.5
    place = place.clamp(0, source - 1)
    if nearest:
        place = (place + 0.5).floor().clamp(0, source - 1)
    return linear_weights(place, source).float()


def linear_weights(places: torch.Tensor, count: int) -> torch.Tensor:
    """Return weights (places, count) of linear interpolation at places 0 to `count` - 1."""
    return (1 - (places[:, None] - torch.arange(count)).abs()).clamp_min(0)


class Scores(Protocol):
    """How likely each class is in every voxel of a grid."""

    shape: tuple[int, ...]
    classes: int

    def planes(self) -> Iterator[torch.Tensor]:
        """Yield (classes, J, K) logits of each plane along the first axis."""
        ...

    def probability(self, index: int) -> npt.NDArray[np.float32]:
        """Return the probability (I, J, K) of a class, float32 in [0, 1]; after `planes`."""
        ...


class Prior(Scores, Protocol):
    """Scores that can be had for a part of the voxels alone."""

    def every(self, apart: Sequence[int]) -> Scores:
        """Return those of every few voxels along each axis, without `probability`."""
        ...


class Part(Prior, Protocol):
    """Scores of one network among several."""

    def every(self, apart: Sequence[int], first: Sequence[int] = (0, 0, 0)) -> Part:
        """Return those of every few voxels along each axis, beginning with these."""
        ...


class Interpolated(ABC):
    """Logits of a network, interpolated plane by plane to the voxels of another grid.

    Parameters
    ----------
    classes
        Number of classes, background included.
    shape
        (I, J, K) of the wanted grid.
    keep
        Whether `probability` will be asked for.
    """

    def __init__(self, classes: int, shape: Sequence[int], *, keep: bool) -> None:
        self.classes, self.shape = classes, tuple(shape)
        self._normaliser = np.empty(self.shape, np.float32) if keep else None

    def planes(self) -> Iterator[torch.Tensor]:
        """Yield (classes, J, K) float16 logits of each plane along the first axis."""
        for place, plane in enumerate(self._interpolated(slice(None))):
            if self._normaliser is not None:
                self._normaliser[place] = plane.float().logsumexp(0).numpy()
            yield plane

    def probability(self, index: int) -> npt.NDArray[np.float32]:
        """Return the softmax (I, J, K) of one class; NaN where nothing is known."""
        if self._normaliser is None:
            raise ValueError("probabilities were not to be kept")
        found = np.empty_like(self._normaliser)
        for place, plane in enumerate(self._interpolated(slice(index, index + 1))):
            np.exp(plane[0].float().numpy() - self._normaliser[place], out=found[place])
        return np.minimum(found, 1, out=found)

    @abstractmethod
    def _interpolated(self, classes: slice) -> Iterator[torch.Tensor]:
        """Yield (some classes, J, K) float16 logits of each plane along the first axis."""


class Logits(Interpolated):
    """Logits interpolated linearly to a grid of the same extent, as nnU-Net does.

    Works plane by plane, so the logits never exist at full size. Interpolated logits are rounded
    to float16.

    Parameters
    ----------
    logits
        (classes, I', J', K').
    shape
        (I, J, K) of the wanted grid.
    nearest_axis
        Axis along which the nearest plane is taken (nnU-Net's rule for thick slices), if any.
    keep
        Whether `probability` will be asked for.
    voxels
        Of the wanted grid; the others are left out. Default: all.
    """

    def __init__(
        self,
        logits: torch.Tensor,
        shape: Sequence[int],
        *,
        nearest_axis: int | None = None,
        keep: bool = False,
        voxels: Sequence[slice] = (slice(None),) * 3,
    ) -> None:
        self._logits = logits
        self._whole, self._nearest_axis = tuple(shape), nearest_axis
        self._steps = [
            _steps(source, target, nearest=axis == nearest_axis)[part]
            for axis, (source, target, part) in enumerate(
                zip(logits.shape[1:], shape, voxels, strict=True)
            )
        ]
        super().__init__(len(logits), [len(steps) for steps in self._steps], keep=keep)

    def every(self, apart: Sequence[int], first: Sequence[int] = (0, 0, 0)) -> Logits:
        """Return those of every few voxels along each axis, without `probability`."""
        voxels = [slice(start, None, step) for start, step in zip(first, apart, strict=True)]
        return Logits(self._logits, self._whole, nearest_axis=self._nearest_axis, voxels=voxels)

    @cached_property
    def own_labels(self) -> npt.NDArray[np.uint8]:
        """The likeliest class (I', J', K') of each of the network's own voxels."""
        planes = self._logits.unbind(1)
        likeliest = [plane.float().max(0).indices.to(torch.uint8) for plane in planes]
        return torch.stack(likeliest).numpy()

    def box_of(self, classes: Sequence[int], margin: Sequence[float]) -> tuple[slice, ...]:
        """Return a box of the wanted grid around the voxels where one of the classes is likeliest.

        Islands of less than a twentieth of the largest connected piece do not count; where there
        is nothing, the box is the whole grid.

        Parameters
        ----------
        margin
            Voxels of the wanted grid by which the box is wider, at each end of each axis.
        """
        mask = np.isin(self.own_labels, classes)
        pieces, count = ndimage.label(mask)
        if not count:
            return tuple(slice(0, length) for length in self.shape)
        sizes = np.bincount(pieces.ravel())[1:]
        large = np.flatnonzero(sizes >= 0.05 * sizes.max())
        found = [each for place, each in enumerate(ndimage.find_objects(pieces)) if place in large]
        box = []
        for axis, (length, edge) in enumerate(zip(self.shape, margin, strict=True)):
            scale = length / mask.shape[axis]
            low = scale * min(piece[axis].start for piece in found) - edge
            high = scale * max(piece[axis].stop for piece in found) + edge
            box.append(slice(max(0, int(low)), min(length, int(np.ceil(high)))))
        return tuple(box)

    def _interpolated(self, classes: slice) -> Iterator[torch.Tensor]:
        across, *others = self._steps
        rows, columns = (
            None if torch.equal(steps, torch.eye(steps.shape[1])) else steps for steps in others
        )
        logits = self._logits[classes]
        for weights in across:
            near = weights.nonzero()[:, 0]  # one plane or two
            low, high = logits[:, near[0]].float(), logits[:, near[-1]].float()
            plane = torch.lerp(low, high, float(1 - weights[near[0]]))
            yield _resized(rows, _resized(columns, plane.mT).mT).half()


def _resized(steps: torch.Tensor | None, planes: torch.Tensor) -> torch.Tensor:
    """Resize (classes, J, K) along J; None leaves it as it is."""
    return planes if steps is None else steps @ planes


class MeanScores:
    """The mean of the probabilities that several networks give, on one grid.

    Parameters
    ----------
    first
        On the whole grid.
    others
        On the box, of the same classes; NaN where they say nothing.
    box
        Of the grid; outside it the first one's probabilities stand alone. Default: everything.
    share
        What the others count together, 0 to 1. Default: each as much as the first.
    """

    def __init__(
        self,
        first: Part,
        others: Sequence[Part],
        box: Sequence[slice] | None = None,
        share: float | None = None,
    ) -> None:
        self.shape, self.classes = first.shape, first.classes
        self._first, self._others = first, others
        self._share = len(others) / (1 + len(others)) if share is None else share
        self._box = tuple(box or (slice(0, length) for length in self.shape))

    def planes(self) -> Iterator[torch.Tensor]:
        """Yield (classes, J, K) logarithms of the mean probabilities of each plane, float32."""
        rows, *window = self._box
        others = [part.planes() for part in self._others]
        for place, plane in enumerate(self._first.planes()):
            total = plane.float().softmax(0)
            if rows.start <= place < rows.stop:
                here = total[(slice(None), *window)]
                inner = here * (1 - self._share)
                for other in others:
                    told = _told(next(other).float().softmax(0), here)
                    inner.add_(told, alpha=self._share / len(others))
                total[(slice(None), *window)] = inner
            yield total.clamp_(min=_LEAST).log_()

    def every(self, apart: Sequence[int]) -> MeanScores:
        """Return those of every few voxels along each axis, without `probability`."""
        first = [-part.start % step for part, step in zip(self._box, apart, strict=True)]
        box = [
            slice(-(-part.start // step), -(-part.stop // step))
            for part, step in zip(self._box, apart, strict=True)
        ]
        others = [part.every(apart, first) for part in self._others]
        return MeanScores(self._first.every(apart), others, box, self._share)

    def probability(self, index: int) -> npt.NDArray[np.float32]:
        """Return the mean probability (I, J, K) of one class."""
        total = self._first.probability(index)
        inner = total[self._box]
        first = inner.copy()
        inner *= np.float32(1 - self._share)
        for part in self._others:
            told = part.probability(index)
            told = np.where(np.isnan(told), first, told)
            inner += np.float32(self._share / len(self._others)) * told
        return total


def _told(probabilities: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """Put the first network's probabilities where another says nothing (NaN)."""
    unknown = probabilities[0].isnan()
    return torch.where(unknown, first, probabilities) if unknown.any() else probabilities


class Certainty:
    """Sums up, slab by slab, how sure a network is of the classes it chose.

    Parameters
    ----------
    classes
        Number of classes, background included.
    """

    def __init__(self, classes: int) -> None:
        self._chances = np.zeros(classes)
        self._voxels = np.zeros(classes, np.int64)
        self._entropy = 0.0

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Count one slab: (classes, J, K) logits and the (J, K) classes chosen from them.

        With z the logits and p their softmax, the entropy is log(sum(exp z)) - sum(p z) (Shannon,
        1948), divided by log(classes).
        """
        classes = len(self._voxels)
        chosen = labels.ravel().long()
        inside = torch.nonzero(chosen).squeeze(1)
        if not inside.numel():
            return
        scores = logits.reshape(classes, -1)[:, inside].float()
        chosen = chosen[inside]
        normaliser = scores.logsumexp(0)
        chance = (scores.gather(0, chosen[None])[0] - normaliser).exp()
        entropy = normaliser - ((scores - normaliser).exp_() * scores).sum(0)
        self._entropy += float(entropy.sum(dtype=torch.float64)) / float(np.log(classes))
        self._voxels += np.bincount(chosen.numpy(), minlength=classes)
        self._chances += np.bincount(chosen.numpy(), chance.double().numpy(), minlength=classes)

    def confidence(self) -> dict[int, float]:
        """Return the mean probability of each class over the voxels that got it."""
        return {
            int(index): float(self._chances[index] / self._voxels[index])
            for index in np.flatnonzero(self._voxels)
        }

    def entropy(self) -> float | None:
        """Return the mean normalised entropy over all labelled voxels; None without any."""
        total = int(self._voxels.sum())
        return self._entropy / total if total else None


def labels_of(
    scores: Scores,
    *,
    inside: npt.NDArray[np.bool_] | None = None,
    certainty: Certainty | None = None,
) -> npt.NDArray[np.uint8]:
    """Take the likeliest class of each voxel; the first of equal ones wins, as in nnU-Net.

    Parameters
    ----------
    inside
        (I, J, K) where labels are wanted; 0 elsewhere.
    certainty
        Told every slab, if given.

    Returns
    -------
    (I, J, K) uint8.
    """
    labels = np.empty(scores.shape, np.uint8)
    for place, plane in enumerate(scores.planes()):
        chosen = plane.float().max(0).indices.to(torch.uint8)  # argmax: the same, but slower
        if inside is not None:
            chosen *= torch.from_numpy(inside[place])
        labels[place] = chosen.numpy()
        if certainty:
            certainty.add(plane, chosen)
    return labels
