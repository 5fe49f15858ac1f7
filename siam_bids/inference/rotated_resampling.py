"""Logits of a rotated scan, resampled to the scan's own voxels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from siam_bids.inference.resampling import Interpolated, Logits

_VOXELS_AT_ONCE = 1 << 20
"""Voxels interpolated at once: 38 MB of float16 logits of 18 classes."""


class RotatedLogits(Interpolated):
    """Logits interpolated linearly to a rotated grid; see `resampling.Prior`.

    Parameters
    ----------
    logits
        (classes, I', J', K').
    own, wanted
        (4, 4) affines from the voxels of the logits and of the wanted grid to the same space in mm.
    shape
        (I, J, K) of the wanted grid.
    unseen
        (classes,) logits outside; NaN if unknown.
    """

    def __init__(
        self,
        logits: torch.Tensor,
        own: npt.NDArray[np.float64],
        wanted: npt.NDArray[np.float64],
        shape: Sequence[int],
        unseen: torch.Tensor,
    ) -> None:
        super().__init__(len(logits), shape)
        self._logits, self._own, self._wanted, self._unseen = logits, own, wanted, unseen

    def subsample(self, stride: Sequence[int], offset: Sequence[int] = (0, 0, 0)) -> RotatedLogits:
        """Return the scores of every n-th voxel along each axis."""
        return self.within(
            [slice(start, None, step) for start, step in zip(offset, stride, strict=True)]
        )

    def within(self, part: Sequence[slice]) -> RotatedLogits:
        """Return those of a part of the wanted grid."""
        ranges = [
            range(*each.indices(length)) for each, length in zip(part, self.shape, strict=True)
        ]
        moved = np.diag([*(each.step for each in ranges), 1.0])
        moved[:3, 3] = [each.start for each in ranges]
        shape = [len(each) for each in ranges]
        wanted = self._wanted @ moved
        return RotatedLogits(self._logits, self._own, wanted, shape, self._unseen)

    def seen(self) -> tuple[slice, ...]:
        """Return the smallest box of the wanted grid around all that the network saw."""
        edges = [(-0.5, length - 0.5) for length in self._logits.shape[1:]]
        corners = np.array(np.meshgrid(*edges, [1.0])).reshape(4, -1)
        ends = (np.linalg.inv(self._wanted) @ self._own @ corners)[:3]
        low, high = np.floor(ends.min(1)), np.ceil(ends.max(1)) + 1
        return tuple(
            slice(max(0, int(start)), min(length, int(stop)))
            for start, stop, length in zip(low, high, self.shape, strict=True)
        )

    def box_of(
        self, classes: Sequence[int], margin: float
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
        """Return the low and the high corner (3,) in mm of a box, if any; see `Logits.box_of`.

        Parameters
        ----------
        margin
            By which it is wider at each end, in mm.
        """
        sizes, start = np.diag(self._own)[:3], self._own[:3, 3]
        box = Logits(self._logits, self._logits.shape[1:]).box_of(classes, list(margin / sizes))
        if box is None:
            return None
        low, high = np.array([part.start for part in box]), np.array([part.stop for part in box])
        return start + (low - 0.5) * sizes, start + (high - 0.5) * sizes

    def _interpolated(self, classes: slice) -> Iterator[torch.Tensor]:
        affine = torch.from_numpy(np.linalg.inv(self._own) @ self._wanted)
        matrix, offset = affine[:3, :3], affine[:3, 3]
        last = torch.tensor(self._logits.shape[1:]) - 1.0
        rows, *across = self.shape
        columns = [torch.arange(length, dtype=torch.float64) for length in across]
        grid = torch.stack(torch.meshgrid(*columns, indexing="ij"), -1)
        here = grid @ matrix[:, 1:].T + offset
        step = max(1, _VOXELS_AT_ONCE // max(1, grid[..., 0].numel()))
        pairs = list(zip(self._logits[classes], self._unseen[classes], strict=True))
        for start in range(0, rows, step):
            row = torch.arange(start, min(start + step, rows), dtype=torch.float64)
            place = (here + row[:, None, None, None] * matrix[:, 0]).float()
            outside = ((place < -0.5) | (place > last + 0.5)).any(-1)
            place = (2 * place / last.clamp_min(1) - 1).flip(-1)[None]
            block = [
                functional.grid_sample(
                    logits[None, None].float(), place, padding_mode="border", align_corners=True
                )[0, 0].masked_fill_(outside, unseen)
                for logits, unseen in pairs
            ]
            yield from torch.stack(block).half().unbind(1)
