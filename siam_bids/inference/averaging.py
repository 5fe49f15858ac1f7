"""Mean scores of several networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from siam_bids.inference.resampling import (
    LEAST_PROBABILITY,
    Part,
    log_,
    softmax,
)


class MeanScores:
    """The mean probabilities of several networks, on one grid.

    Parameters
    ----------
    first
        On the whole grid.
    others
        On the box, with the same classes; NaN where they have no prediction.
    box
        Part of the grid; outside, only the first is used. Default: the whole grid.
    share
        Total weight of the others, 0 to 1. Default: equal weights.
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

    def tensors(self) -> list[torch.Tensor]:
        """Return the logits of all networks."""
        return [each for part in (self._first, *self._others) for each in part.tensors()]

    def with_tensors(self, tensors: Iterator[torch.Tensor]) -> MeanScores:
        """Return the same scores of other logits, see `Prior`."""
        first, *others = (part.with_tensors(tensors) for part in (self._first, *self._others))
        return MeanScores(first, others, self._box, self._share)

    def planes(self) -> Iterator[torch.Tensor]:
        """Yield (classes, J, K) logarithms of the mean probabilities of each plane, float32."""
        rows, *window = self._box
        others = [part.planes() for part in self._others]
        for place, plane in enumerate(self._first.planes()):
            total = softmax(plane.float())
            if rows.start <= place < rows.stop:
                here = total[(slice(None), *window)]
                known = [fill_unknown(softmax(next(other).float()), here) for other in others]
                here.mul_(1 - self._share)
                for each in known:
                    here.add_(each, alpha=self._share / len(others))
            yield log_(total.clamp_(min=LEAST_PROBABILITY))

    def subsample(self, stride: Sequence[int]) -> MeanScores:
        """Return the scores of every n-th voxel along each axis."""
        offset = [-part.start % step for part, step in zip(self._box, stride, strict=True)]
        box = [
            slice(-(-part.start // step), -(-part.stop // step))
            for part, step in zip(self._box, stride, strict=True)
        ]
        others = [part.subsample(stride, offset) for part in self._others]
        return MeanScores(self._first.subsample(stride), others, box, self._share)

    def probability(self, index: int) -> npt.NDArray[np.float32]:
        """Return the mean probability (I, J, K) of one class."""
        total = self._first.probability(index)
        inner = total[self._box]
        first = inner.copy()
        inner *= np.float32(1 - self._share)
        for part in self._others:
            known = part.probability(index)
            known = np.where(np.isnan(known), first, known)
            inner += np.float32(self._share / len(self._others)) * known
        return total

    def log_probability(self, index: int) -> npt.NDArray[np.float32]:
        """Return the logarithm (I, J, K) of the mean probability of one class."""
        found = self.probability(index)
        np.maximum(found, LEAST_PROBABILITY, out=found)
        return np.log(found, out=found)


def fill_unknown(probabilities: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """Replace unknown probabilities (NaN) by those of the first network."""
    unknown = probabilities[0].isnan()
    return torch.where(unknown, first, probabilities) if unknown.any() else probabilities
