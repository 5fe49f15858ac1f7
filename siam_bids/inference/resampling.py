"""From logits on a network's voxels to labels and probabilities on the scan's, plane by plane."""

from __future__ import annotations

import copy
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

if TYPE_CHECKING:
    from typing import Self  # Python 3.11

LEAST_PROBABILITY = 1e-9
"""A probability that counts as 0, where its logarithm is taken."""


@dataclass(frozen=True)
class _Resize:
    """How to resize an axis: every new voxel lies between two old ones.

    Attributes
    ----------
    low, high
        (target,) int64 places of the two.
    share
        (target,) float32 weight of the higher one, 0 to 1.
    """

    low: torch.Tensor
    high: torch.Tensor
    share: torch.Tensor

    @classmethod
    def of(
        cls, source: int, target: int, part: slice, *, nearest: bool, ends_meet: bool = False
    ) -> _Resize:
        """Resize from `source` to `target` voxels, of which a part is wanted.

        Aligned by extent (half-pixel rule, edges clamped), as in `skimage.transform.resize`; or by
        the centres of the first and last voxels.
        """
        place = torch.arange(target, dtype=torch.float64)
        if ends_meet:
            place *= (source - 1) / max(1, target - 1)
        else:
            place = (place + 0.5) * source / target - 0.5
        place = place.clamp(0, source - 1)
        if nearest:
            place = (place + 0.5).floor().clamp(0, source - 1)
        place = place[part]
        low = place.floor()
        high = (low + 1).clamp_max(source - 1)
        return cls(low.long(), high.long(), (place - low).float())

    def __len__(self) -> int:
        return len(self.low)

    def along(self, axis: int, planes: torch.Tensor) -> torch.Tensor:
        """Resize (classes, J, K) along axis 1 or 2."""
        if len(self) == planes.shape[axis] and not self.share.any():
            return planes
        low = planes.index_select(axis, self.low)
        if not self.share.any():
            return low
        high = planes.index_select(axis, self.high)
        return torch.lerp(low, high, self.share[:, None] if axis == 1 else self.share)


def log_(values: torch.Tensor) -> torch.Tensor:
    """Replace values by their logarithms: torch's takes four times as long as numpy's."""
    np.log(values.numpy(), out=values.numpy())
    return values


def softmax(scores: torch.Tensor) -> torch.Tensor:
    """Return the softmax of scores over classes, the first axis.

    As torch.softmax, but by exp2, which takes a quarter of the time of exp; a probability below
    2^-120 becomes that, as smaller numbers are slow.
    """
    powers = scores * math.log2(math.e)
    powers.sub_(powers.amax(0)).clamp_(min=-120).exp2_()
    return powers.mul_(powers.sum(0).reciprocal_())


class Scores(Protocol):
    """Class scores of every voxel of a grid."""

    shape: tuple[int, ...]
    classes: int

    def planes(self) -> Iterator[torch.Tensor]:
        """Yield (classes, J, K) logits of each plane along the first axis."""
        ...

    def probability(self, index: int) -> npt.NDArray[np.float32]:
        """Return the probability (I, J, K) of a class, float32 in [0, 1]."""
        ...


class Prior(Scores, Protocol):
    """Scores that can be had for a part of the voxels alone, and as logarithms."""

    def log_probability(self, index: int) -> npt.NDArray[np.float32]:
        """Return the logarithm (I, J, K) of the probability of a class, as in `planes`."""
        ...

    def subsample(self, stride: Sequence[int]) -> Prior:
        """Return the scores of every n-th voxel along each axis."""
        ...

    def tensors(self) -> list[torch.Tensor]:
        """Return the logits that all is computed from, which take most of the memory."""
        ...

    def with_tensors(self, tensors: Iterator[torch.Tensor]) -> Prior:
        """Return the same scores of other logits, which are taken in the order of `tensors`."""
        ...


class Observer(Protocol):
    """What looks at each plane on its way."""

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Take the next plane: (classes, J, K) logits and the (J, K) classes chosen from them."""
        ...


class Part(Prior, Protocol):
    """Scores of one network among several."""

    def subsample(self, stride: Sequence[int], offset: Sequence[int] = (0, 0, 0)) -> Part:
        """Return the scores of every n-th voxel along each axis, starting at `offset`."""
        ...

    def with_tensors(self, tensors: Iterator[torch.Tensor]) -> Part:
        """Return the same scores of other logits, see `Prior`."""
        ...


class Interpolated(ABC):
    """Logits of a network, interpolated plane by plane to the voxels of another grid.

    Parameters
    ----------
    classes
        Number of classes, background included.
    shape
        (I, J, K) of the wanted grid.
    """

    _logits: torch.Tensor

    def __init__(self, classes: int, shape: Sequence[int]) -> None:
        self.classes, self.shape = classes, tuple(shape)

    def tensors(self) -> list[torch.Tensor]:
        """Return the logits, on the voxels of the network."""
        return [self._logits]

    def with_tensors(self, tensors: Iterator[torch.Tensor]) -> Self:
        """Return the same scores of other logits, the next of `tensors`."""
        found = copy.copy(self)
        found.__dict__.pop("_normaliser", None)
        found._logits = next(tensors)  # noqa: SLF001 (its own kind)
        return found

    def planes(self) -> Iterator[torch.Tensor]:
        """Return an iterator over (classes, J, K) float16 logits of planes along the first axis."""
        return self._interpolated(slice(None))

    def probability(self, index: int) -> npt.NDArray[np.float32]:
        """Return the softmax (I, J, K) of one class; NaN where nothing is known."""
        found = self.log_probability(index)
        np.exp(found, out=found)
        return np.minimum(found, 1, out=found)

    def log_probability(self, index: int) -> npt.NDArray[np.float32]:
        """Return the log softmax (I, J, K) of one class; NaN where nothing is known."""
        found = np.empty_like(self._normaliser)
        for place, plane in enumerate(self._interpolated(slice(index, index + 1))):
            np.subtract(plane[0].float().numpy(), self._normaliser[place], out=found[place])
        return found

    @cached_property
    def _normaliser(self) -> npt.NDArray[np.float32]:
        """The logarithm (I, J, K) of the sum of all exponentials."""
        found = np.empty(self.shape, np.float32)
        for place, plane in enumerate(self.planes()):
            found[place] = plane.float().logsumexp(0).numpy()
        return found

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
    voxels
        Of the wanted grid; the others are left out. Default: all.
    ends_meet
        The first and last voxels of both grids have the same centres, instead of the same ends.
    """

    def __init__(
        self,
        logits: torch.Tensor,
        shape: Sequence[int],
        *,
        nearest_axis: int | None = None,
        voxels: Sequence[slice] = (slice(None),) * 3,
        ends_meet: bool = False,
    ) -> None:
        self._logits, self._ends_meet = logits, ends_meet
        self._whole, self._nearest_axis = tuple(shape), nearest_axis
        self._resizes = [
            _Resize.of(source, target, part, nearest=axis == nearest_axis, ends_meet=ends_meet)
            for axis, (source, target, part) in enumerate(
                zip(logits.shape[1:], shape, voxels, strict=True)
            )
        ]
        super().__init__(len(logits), [len(each) for each in self._resizes])

    def subsample(self, stride: Sequence[int], offset: Sequence[int] = (0, 0, 0)) -> Logits:
        """Return the scores of every n-th voxel along each axis."""
        voxels = [slice(start, None, step) for start, step in zip(offset, stride, strict=True)]
        return Logits(
            self._logits,
            self._whole,
            nearest_axis=self._nearest_axis,
            voxels=voxels,
            ends_meet=self._ends_meet,
        )

    @cached_property
    def own_labels(self) -> npt.NDArray[np.uint8]:
        """Most probable class (I', J', K') of each of the network's own voxels."""
        planes = self._logits.unbind(1)
        likeliest = [_first_of_highest(plane) for plane in planes]
        return torch.stack(likeliest).numpy()

    def box_of(self, classes: Sequence[int], margin: Sequence[float]) -> tuple[slice, ...] | None:
        """Return the box of the grid in which one of the classes is the most probable.

        Islands of less than a twentieth of the largest connected piece do not count.

        Parameters
        ----------
        margin
            Voxels of the wanted grid by which the box is wider, at each end of each axis.

        Returns
        -------
        None where there is nothing.
        """
        mask = np.isin(self.own_labels, classes)
        pieces, count = ndimage.label(mask)
        if not count:
            return None
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
        across, rows, columns = self._resizes
        logits = self._logits[classes]

        @functools.lru_cache(maxsize=2)
        def resized(place: int) -> torch.Tensor:
            plane = logits[:, place].float()
            if len(rows) < plane.shape[1]:  # the smaller plane next
                return columns.along(2, rows.along(1, plane))
            return rows.along(1, columns.along(2, plane))

        for below, above, share in zip(
            across.low.tolist(), across.high.tolist(), across.share.tolist(), strict=True
        ):
            low = resized(below)
            yield (torch.lerp(low, resized(above), share) if share else low).half()


def labels_of(
    scores: Scores,
    *,
    inside: npt.NDArray[np.bool_] | None = None,
    observers: Sequence[Observer] = (),
) -> npt.NDArray[np.uint8]:
    """Return the most probable class of each voxel; the first of equal ones, as in nnU-Net.

    Parameters
    ----------
    inside
        (I, J, K) where labels are wanted; 0 elsewhere.
    observers
        Told of every plane.

    Returns
    -------
    (I, J, K) uint8.
    """
    labels = np.empty(scores.shape, np.uint8)
    for place, plane in enumerate(scores.planes()):
        chosen = _first_of_highest(plane)
        if inside is not None:
            chosen *= torch.from_numpy(inside[place])
        labels[place] = chosen.numpy()
        for observer in observers:
            observer.add(plane, chosen)
    return labels


def _first_of_highest(scores: torch.Tensor) -> torch.Tensor:
    """Return the index (J, K) uint8 of the highest score (classes, J, K), sooner than torch.max."""
    rank = torch.arange(len(scores), 0, -1, dtype=torch.uint8)[:, None, None]
    return (len(scores) - ((scores == scores.amax(0)) * rank).amax(0)) % len(scores)
