"""Mean scores of several networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from siam_bids.inference.resampling import (
    LEAST_PROBABILITY,
    Part,
    Prior,
    log_,
    softmax,
)


class MeanScores:
    """The mean probabilities of several networks, on one grid.

    Parameters
    ----------
    first
        On the whole grid; may be such a mean itself.
    others
        On the box, with the same classes; NaN where they have no prediction.
    box
        Part of the grid; outside, only the first is used. Default: the whole grid.
    share
        Total weight of the others, 0 to 1; one for all voxels of the box or (I, J, K) one for each.
        Default: equal weights.
    """

    def __init__(
        self,
        first: Prior,
        others: Sequence[Part],
        box: Sequence[slice] | None = None,
        share: float | torch.Tensor | None = None,
    ) -> None:
        self.shape, self.classes = first.shape, first.classes
        self._first, self._others = first, others
        self._box = tuple(box or (slice(0, length) for length in self.shape))
        if share is None:
            share = len(others) / (1 + len(others))
        size = [part.stop - part.start for part in self._box]
        self._share = torch.as_tensor(share, dtype=torch.float32).expand(size)

    def tensors(self) -> list[torch.Tensor]:
        """Return the logits of all networks."""
        return [each for part in (self._first, *self._others) for each in part.tensors()]

    def with_tensors(self, tensors: Iterator[torch.Tensor]) -> MeanScores:
        """Return the same scores of other logits, see `Prior`."""
        first = self._first.with_tensors(tensors)
        others = [part.with_tensors(tensors) for part in self._others]
        return MeanScores(first, others, self._box, self._share)

    def planes(self) -> Iterator[torch.Tensor]:
        """Yield (classes, J, K) logarithms of the mean probabilities of each plane, float32."""
        for plane in self._probabilities():
            yield log_(plane.clamp_(min=LEAST_PROBABILITY))

    def _probabilities(self) -> Iterator[torch.Tensor]:
        """Yield (classes, J, K) mean probabilities of each plane, float32."""
        rows, *window = self._box
        others = [part.planes() for part in self._others]
        for place, total in enumerate(_probabilities_of(self._first)):
            if rows.start <= place < rows.stop:
                here = total[(slice(None), *window)]
                known = [fill_unknown(softmax(next(other).float()), here) for other in others]
                share = self._share[place - rows.start]
                here.mul_(1 - share)
                for each in known:
                    here.addcmul_(each, share, value=1 / len(others))
            yield total

    def subsample(self, stride: Sequence[int]) -> MeanScores:
        """Return the scores of every n-th voxel along each axis."""
        offset = [-part.start % step for part, step in zip(self._box, stride, strict=True)]
        box = [
            slice(-(-part.start // step), -(-part.stop // step))
            for part, step in zip(self._box, stride, strict=True)
        ]
        voxels = [slice(start, None, step) for start, step in zip(offset, stride, strict=True)]
        others = [part.subsample(stride, offset) for part in self._others]
        return MeanScores(self._first.subsample(stride), others, box, self._share[tuple(voxels)])

    def probability(self, index: int) -> npt.NDArray[np.float32]:
        """Return the mean probability (I, J, K) of one class."""
        total = self._first.probability(index)
        inner, share = total[self._box], self._share.numpy()
        first = inner.copy()
        inner *= 1 - share
        for part in self._others:
            known = part.probability(index)
            known = np.where(np.isnan(known), first, known)
            inner += share / np.float32(len(self._others)) * known
        return total

    def log_probability(self, index: int) -> npt.NDArray[np.float32]:
        """Return the logarithm (I, J, K) of the mean probability of one class."""
        found = self.probability(index)
        np.maximum(found, LEAST_PROBABILITY, out=found)
        return np.log(found, out=found)


def _probabilities_of(scores: Prior) -> Iterator[torch.Tensor]:
    """Yield (classes, J, K) probabilities of each plane, float32, free to be changed."""
    if isinstance(scores, MeanScores):
        return scores._probabilities()  # noqa: SLF001 (its own kind)
    return (softmax(plane.float()) for plane in scores.planes())


def fill_unknown(probabilities: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """Replace unknown probabilities (NaN) by those of the first network."""
    unknown = probabilities[0].isnan()
    return torch.where(unknown, first, probabilities) if unknown.any() else probabilities


def tapered(
    shape: Sequence[int],
    affine: npt.NDArray[np.float64],
    low: npt.NDArray[np.float64],
    high: npt.NDArray[np.float64],
    reach: float,
) -> torch.Tensor:
    """Return a weight (I, J, K) float32 that falls smoothly from 1 to 0 at the ends of a box.

    Parameters
    ----------
    affine
        (4, 4), from voxels to mm along the axes of the box.
    low, high
        (3,) ends of the box in mm; infinite where the weight does not fall.
    reach
        Length over which it falls, in mm.
    """
    away = np.full(tuple(shape), reach)
    places = np.ogrid[tuple(slice(length) for length in shape)]
    for row, least, most in zip(affine, low, high, strict=False):
        along = sum(step * place for step, place in zip(row, places, strict=False)) + row[3]
        np.minimum(away, np.minimum(along - least, most - along), out=away)
    rise = np.clip(away / reach, 0, 1)
    return torch.from_numpy((rise * rise * (3 - 2 * rise)).astype(np.float32))
