"""A network over overlapping tiles."""

from __future__ import annotations

import contextlib
import itertools
import math
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

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
    peak = np.zeros(tuple(tile))
    peak[tuple(edge // 2 for edge in tile)] = 1
    weight = gaussian_filter(peak, [edge / 8 for edge in tile], mode="constant")
    weight = torch.from_numpy((weight / (weight.max() / 10)).astype(np.float16)).float()
    return weight.clamp_min(float(weight[weight > 0].min()))


@torch.inference_mode()
def predict_tiled(
    folds: Iterable[Callable[[torch.Tensor], torch.Tensor]],
    image: torch.Tensor,
    *,
    tile: Sequence[int],
    classes: int,
    fold_count: int = 1,
    wanted: Sequence[slice] | None = None,
    step: float = TILE_STEP,
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
    tile
        Tile edges in voxels.
    wanted
        Box whose logits are wanted; tiles that do not touch it are left out. Default: all.
    step
        Tile edges between two tiles, at most.
    on_disk
        Keep the logits in a nameless scratch file; the result is a view of it.

    Returns
    -------
    (classes, I, J, K) float16 logits on the CPU.

    Raises
    ------
    OSError
        The scratch file does not fit the disk.
    """
    shape = tuple(image.shape[1:])
    starts = [tile_starts(length, edge, step) for length, edge in zip(shape, tile, strict=True)]
    corners = list(itertools.product(*starts))
    if wanted is not None:
        corners = [corner for corner in corners if _touches(corner, tile, wanted)]
    weight = tile_weight(tile)
    small = 4 * classes * math.prod(tile) <= _SMALL
    mean: torch.Tensor | None = None
    with memory_reused() if small else contextlib.nullcontext():
        for fold, network in enumerate(folds):
            logits, let_go = _sums((classes, *shape), on_disk=on_disk)
            total = torch.zeros(shape, dtype=torch.float16)
            for done, corner in enumerate(corners, start=1):
                window = tuple(slice(at, at + edge) for at, edge in zip(corner, tile, strict=True))
                if not small:
                    release_memory()
                patch = image[(slice(None), *window)][None]
                _add_weighted(logits[(slice(None), *window)], network(patch)[0], weight)
                total[window] += weight
                let_go()
                if progress:
                    progress((fold + done / len(corners)) / fold_count)
            if wanted is not None:
                total.masked_fill_(total == 0, 1)
            for logit in logits:
                logit.div_(total)
            mean = logits if mean is None else mean.add_(logits)
    if mean is None:
        raise ValueError("no fold to predict with")
    return mean.div_(fold_count) if fold_count > 1 else mean


def _add_weighted(sums: torch.Tensor, answer: torch.Tensor, weight: torch.Tensor) -> None:
    """Add a tile's logits, overwriting them, class by class: torch copies what it converts.

    No name for any part of them outlives the call, so that they are gone when the next tile comes.
    """
    for whole, part in zip(sums, answer, strict=True):
        whole.add_(part.mul_(weight))


def _touches(corner: Sequence[int], tile: Sequence[int], box: Sequence[slice]) -> bool:
    return all(
        at < part.stop and at + edge > part.start
        for at, edge, part in zip(corner, tile, box, strict=True)
    )


def _sums(shape: Sequence[int], *, on_disk: bool) -> tuple[torch.Tensor, Callable[[], None]]:
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
