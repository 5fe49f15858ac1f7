"""Tiled inference: a network over overlapping tiles, folds averaged, labels on a finer grid."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional

from siam_bids.volume import Segmentation, Volume

Progress = Callable[[float], None]
"""Told the share of the work done, 0 to 1."""


@dataclass(frozen=True)
class Prediction:
    """What a segmenter answers.

    Attributes
    ----------
    segmentation
        On the scan's own grid.
    probabilities
        (I, J, K) float32 in [0, 1] per label name, only for the names that were asked for.
    confidence
        Per label name, the mean probability that the network gave to the voxels of that label;
        absent labels are not listed.
    entropy
        Mean normalised entropy over all labelled voxels, 0 sure to 1 clueless; None if unknown.
    """

    segmentation: Segmentation
    probabilities: dict[str, npt.NDArray[np.float32]]
    confidence: dict[str, float] = field(default_factory=dict)
    entropy: float | None = None


class Segmenter(Protocol):
    """Anything that labels the voxels of a scan."""

    def segment(
        self, volume: Volume, *, probabilities: Sequence[str] = (), progress: Progress | None = None
    ) -> Prediction:
        """Segment one scan; the result lies on exactly the scan's grid."""
        ...


def tile_starts(length: int, tile: int, step: float = 0.5) -> list[int]:
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
    weight = torch.from_numpy((weight * (10 / weight.max())).astype(np.float16)).float()
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
    progress: Progress | None = None,
) -> torch.Tensor:
    """Average the logits of overlapping tiles over all folds.

    Folds are used one after the other and summed into one accumulator, so that memory holds one
    network and one set of logits however many folds there are.

    Parameters
    ----------
    folds
        Networks, each already on the device of choice.
    image
        (1, I, J, K) float32 on the CPU, at least one tile along every axis.
    tile
        Tile edges in voxels.
    autocast
        Reduced precision to run the network in, or None for float32.

    Returns
    -------
    (classes, I, J, K) float32 logits on the CPU.
    """
    shape = tuple(image.shape[1:])
    starts = [tile_starts(length, edge) for length, edge in zip(shape, tile, strict=True)]
    corners = list(itertools.product(*starts))
    weight = tile_weight(tile)
    logits = torch.zeros((classes, *shape))
    total = torch.zeros(shape)
    done = 0
    for network in folds:
        network.eval()
        device = next(network.parameters()).device
        for corner in corners:
            window = tuple(slice(at, at + edge) for at, edge in zip(corner, tile, strict=True))
            patch = image[(slice(None), *window)][None].to(device)
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                answer = network(patch)[0]
            logits[(slice(None), *window)] += answer.float().cpu() * weight
            total[window] += weight
            done += 1
            if progress:
                progress(done / (len(corners) * fold_count))
    return logits.div_(total)


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


def labels_from_logits(
    logits: torch.Tensor,
    shape: Sequence[int],
    *,
    probabilities: Sequence[int] = (),
    certainty: Certainty | None = None,
) -> tuple[npt.NDArray[np.uint8], dict[int, npt.NDArray[np.float32]]]:
    """Interpolate logits linearly to a grid of the same extent, and take the likeliest class.

    Works slab by slab, so the logits never exist at full size. Voxel centres are aligned by
    extent (half-pixel rule, edges clamped), as `skimage.transform.resize` does for nnU-Net.

    Parameters
    ----------
    logits
        (classes, I, J, K) float32.
    shape
        (I', J', K') of the wanted grid.
    probabilities
        Class indices whose softmax is wanted too.
    certainty
        Told every slab, if given.

    Returns
    -------
    labels
        (I', J', K') uint8.
    probability
        (I', J', K') float32 per class index asked for.
    """
    labels = np.empty(tuple(shape), np.uint8)
    asked = {index: np.empty(tuple(shape), np.float32) for index in probabilities}
    rows = logits.shape[1]
    place = (np.arange(shape[0]) + 0.5) * rows / shape[0] - 0.5
    place = place.clip(0, rows - 1)
    below = np.floor(place).astype(int)
    above = np.minimum(below + 1, rows - 1)
    for row in range(shape[0]):
        slab = torch.lerp(
            logits[:, below[row]], logits[:, above[row]], float(place[row] - below[row])
        )
        slab = functional.interpolate(slab[None], tuple(shape[1:]), mode="bilinear")[0]
        chosen = slab.argmax(0).to(torch.uint8)
        labels[row] = chosen.numpy()
        if certainty:
            certainty.add(slab, chosen)
        if asked:
            likelihood = slab.softmax(0)
            for index, target in asked.items():
                target[row] = likelihood[index].numpy()
    return labels, asked
