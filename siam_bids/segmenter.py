"""What every segmenter answers, and tiled inference: a network over overlapping tiles."""

from __future__ import annotations

import contextlib
import itertools
import math
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter

from siam_bids.errors import UsageError
from siam_bids.labels import LabelTable
from siam_bids.pose import Pose
from siam_bids.scores import Certainty, Scores, labels_of
from siam_bids.usage import memory_reused, release_memory
from siam_bids.volume import Crop, Segmentation, Volume

TILE_STEP = 0.5
"""Tile edges between two tiles, at most, as in nnU-Net."""

_SMALL = 1 << 27
"""Bytes of a tile's logits up to which freed memory is kept for the next tile.

Of larger networks it would hold too much: that of SIAM's size took 6.3 GB instead of 4.0.
"""

Progress = Callable[[float], None]
"""Told the share of the work done, 0 to 1."""


class ProbabilityMaps(Mapping[str, npt.NDArray[np.float32]]):
    """Maps by label name, made anew each time one is asked for, so that memory holds one at most.

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
        (I, J, K) float32 in [0, 1] per label name, only for the names that were asked for. While
        it lives, it holds the logits of the scan.
    confidence
        Per label name, the mean probability that the network gave to the voxels of that label;
        absent labels are not listed.
    entropy
        Mean normalised entropy over all labelled voxels, 0 sure to 1 clueless; None if unknown.
    pose
        How the head lies, if it was looked at again because of that.
    """

    segmentation: Segmentation
    probabilities: Mapping[str, npt.NDArray[np.float32]]
    confidence: dict[str, float] = field(default_factory=dict)
    entropy: float | None = None
    pose: Pose | None = None


class Segmenter(Protocol):
    """Anything that labels the voxels of a scan."""

    def segment(
        self, volume: Volume, *, probabilities: Sequence[str] = (), progress: Progress | None = None
    ) -> Prediction:
        """Segment one scan; the result lies on exactly the scan's grid."""
        ...


def prediction_of(
    scores: Scores,
    crop: Crop,
    table: LabelTable,
    probabilities: Sequence[str] = (),
    *,
    inside: npt.NDArray[np.bool_] | None = None,
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
    """
    certainty = Certainty(scores.classes)
    found = labels_of(scores, inside=inside, certainty=certainty)
    wanted = {name: table.by_name[name].index for name in probabilities}

    def probability(name: str) -> npt.NDArray[np.float32]:
        return crop.undo(scores.probability(wanted[name]), outside=int(wanted[name] == 0))

    return Prediction(
        Segmentation(crop.undo(found), crop.turn.source, table),
        ProbabilityMaps(probabilities, probability) if probabilities else {},
        confidence={table.labels[i].name: p for i, p in certainty.confidence().items()},
        entropy=certainty.entropy(),
    )


def choose_device(wish: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `mps`.

    Raises
    ------
    UsageError
        There is none of the wanted kind.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wish == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    if not available[wish]:
        raise UsageError(f"There is no {wish} device here.", "Use --device auto or cpu.")
    return torch.device(wish)


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
    folds: Iterable[torch.nn.Module],
    image: torch.Tensor,
    *,
    tile: Sequence[int],
    classes: int,
    fold_count: int = 1,
    autocast: torch.dtype | None = None,
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
        Networks, each already on the device of choice.
    image
        (channels, I, J, K) float32 on the CPU, at least one tile along every axis.
    tile
        Tile edges in voxels.
    autocast
        Reduced precision to run the network in, or None for the network's own.
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
            network.eval()
            device = next(network.parameters()).device
            logits, let_go = _sums((classes, *shape), on_disk=on_disk)
            total = torch.zeros(shape, dtype=torch.float16)
            for done, corner in enumerate(corners, start=1):
                window = tuple(slice(at, at + edge) for at, edge in zip(corner, tile, strict=True))
                if not small:
                    release_memory()
                patch = image[(slice(None), *window)][None].to(device)
                with torch.autocast(device.type, autocast, enabled=autocast is not None):
                    _add_weighted(logits[(slice(None), *window)], network(patch)[0].cpu(), weight)
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
