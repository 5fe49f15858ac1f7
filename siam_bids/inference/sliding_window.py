"""A network over overlapping tiles."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d

from siam_bids.inference.prediction import Progress
from siam_bids.support.memory import memory_reused, release_memory

TILE_STEP = 0.5
"""Tile edges between two tiles, at most, as in nnU-Net."""

_SMALL = 1 << 27
"""Bytes of a tile's logits up to which freed memory is kept for the next tile.

Of larger networks it would hold too much: that of SIAM's size took 6.3 GB instead of 4.0.
"""


def tile_starts(length: int, tile: int, step: float = TILE_STEP) -> list[int]:
    """Return where tiles begin along one axis: evenly spread, at most `step` tiles apart.

    The rule of nnU-Net's sliding window (Isensee et al., Nat. Methods 2021). For example a length
    of 110 in tiles of 64 gives 0, 23, 46.
    """
    if length <= tile:
        return [0]
    count = int(np.ceil((length - tile) / (tile * step))) + 1
    return [int(np.round(place * (length - tile) / (count - 1))) for place in range(count)]


def tile_weight(tile: Sequence[int]) -> torch.Tensor:
    """Return nnU-Net's Gaussian tile weight: sigma an eighth of each edge, 10 in the centre."""
    peaks = [np.arange(edge) == edge // 2 for edge in tile]
    along = [gaussian_filter1d(peak * 1.0, peak.size / 8, mode="constant") for peak in peaks]
    weight = torch.from_numpy(functools.reduce(np.multiply.outer, along))
    weight = (weight / (weight.max() / 10)).half().float()
    return weight.clamp_min(float(weight[weight > 0].min()))


@dataclass(frozen=True)
class Tiling:
    """Where tiles lie on an image.

    Attributes
    ----------
    tile
        Tile edges in voxels.
    step
        Tile edges between two tiles, at most.
    wanted
        Box whose logits are wanted; tiles that do not touch it are left out. None: all.
    """

    tile: Sequence[int]
    step: float = TILE_STEP
    wanted: Sequence[slice] | None = None

    def windows(self, shape: Sequence[int]) -> list[tuple[slice, ...]]:
        """Return all tiles of an image (I, J, K) of at least one tile along every axis."""
        along = [
            [slice(start, start + edge) for start in tile_starts(length, edge, self.step)]
            for length, edge in zip(shape, self.tile, strict=True)
        ]
        return [window for window in itertools.product(*along) if self._is_wanted(window)]

    def _is_wanted(self, window: Sequence[slice]) -> bool:
        return self.wanted is None or all(
            one.start < other.stop and one.stop > other.start
            for one, other in zip(window, self.wanted, strict=True)
        )


@torch.inference_mode()
def predict_tiled(
    folds: Iterable[Callable[[torch.Tensor], torch.Tensor]],
    image: torch.Tensor,
    tiling: Tiling,
    *,
    classes: int,
    on_disk: bool = False,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Average the logits of overlapping tiles over all folds.

    Folds are used one after the other and summed into one accumulator, so that memory holds one
    network and at most two sets of logits however many folds there are. Sums are float16, in
    nnU-Net's order (nnUNetPredictor), so that labels equal nnU-Net's where two classes nearly tie.

    Parameters
    ----------
    folds
        Networks: each maps a tile (1, channels, I, J, K) to float logits (1, classes, I, J, K),
        which are its own to overwrite, both on the CPU.
    image
        (channels, I, J, K) float32 on the CPU, at least one tile along every axis.
    on_disk
        Keep the logits in a nameless scratch file; the result is a view of it.
    progress
        Is told how many folds are done: 1.5 in the middle of the second one.

    Returns
    -------
    (classes, I, J, K) float16 logits on the CPU.

    Raises
    ------
    OSError
        The scratch file does not fit the disk.
    """
    shape = tuple(image.shape[1:])
    windows, weight = tiling.windows(shape), tile_weight(tiling.tile)
    small = 4 * classes * weight.numel() <= _SMALL
    count, mean = 0, torch.empty(0)
    with memory_reused() if small else contextlib.nullcontext():
        for count, network in enumerate(folds, start=1):
            sums = _WeightedSums((classes, *shape), weight, on_disk=on_disk)
            for done, window in enumerate(windows, start=1):
                if not small:
                    release_memory()
                sums.add(window, network(image[(slice(None), *window)][None])[0])
                if progress:
                    progress(count - 1 + done / len(windows))
            mean = sums.mean() if count == 1 else mean.add_(sums.mean())
    if not count:
        raise ValueError("no fold to predict with")
    return mean.div_(count) if count > 1 else mean


class _WeightedSums:
    """Sums of the logits (classes, I, J, K) of one fold, and of the weights of its tiles."""

    def __init__(self, shape: Sequence[int], weight: torch.Tensor, *, on_disk: bool) -> None:
        self._logits, self._let_go = _zeros(shape, on_disk=on_disk)
        self._total = torch.zeros(tuple(shape[1:]), dtype=torch.float16)
        self._weight = weight

    def add(self, window: tuple[slice, ...], answer: torch.Tensor) -> None:
        """Add a tile's logits, overwriting them, class by class: torch copies what it converts.

        No name for any of them outlives the call, so that they are gone when the next tile comes.
        """
        for whole, tile in zip(self._logits[(slice(None), *window)], answer, strict=True):
            whole.add_(tile.mul_(self._weight))
        self._total[window] += self._weight
        self._let_go()

    def mean(self) -> torch.Tensor:
        """Divide the sums by the weights where there are any, in place, and return them."""
        self._total.masked_fill_(self._total == 0, 1)
        for logit in self._logits:
            logit.div_(self._total)
        return self._logits


def _zeros(shape: Sequence[int], *, on_disk: bool) -> tuple[torch.Tensor, Callable[[], None]]:
    """Return float16 zeros, and what takes those on disk out of memory until the next use."""
    if not on_disk:
        return torch.zeros(tuple(shape), dtype=torch.float16), lambda: None
    size = 2 * math.prod(shape)
    with tempfile.TemporaryFile(prefix="siam-bids-") as file:
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here, a crash later
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        area = mmap.mmap(file.fileno(), size)

    def let_go() -> None:
        if hasattr(mmap, "MADV_DONTNEED"):  # of a shared file: its pages stay written
            area.madvise(mmap.MADV_DONTNEED)

    return torch.frombuffer(area, dtype=torch.float16).view(tuple(shape)), let_go
