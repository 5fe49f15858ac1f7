"""Intensities of each class around every position of a scan: Gaussians in local windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

_FEW = 100.0
"""mm^3 (weighted) below which a class borrows its Gaussian from the whole scan."""
_BLOCK_MM = 8.0
"""Edge in mm of the blocks in which voxels are summed up."""
_RARE = 1e-3
"""Least share of a part in its class."""
_SMALLEST_WEIGHT = 1e-12
"""A sum of weights that counts as 0."""


@dataclass(frozen=True)
class Gaussians:
    """One Gaussian of each class around every block of voxels.

    Attributes
    ----------
    parts
        (3, classes, I', J', K') means over standard deviations, 1 over these, and logarithms of
        the share of the class over these.
    edges
        Voxels to a block along each axis.
    shape
        (I, J, K) of all voxels.
    """

    parts: torch.Tensor
    edges: tuple[int, ...]
    shape: tuple[int, ...]

    def on(self, shape: Sequence[int], apart: Sequence[int]) -> Gaussians:
        """Return the same on a finer grid of a shape, `apart` voxels of which were one."""
        edges = tuple(edge * step for edge, step in zip(self.edges, apart, strict=True))
        return replace(self, edges=edges, shape=tuple(shape))

    def at(
        self, place: int, x: torch.Tensor, classes: slice = slice(None)
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compare the intensities x (J, K) of a plane of voxels with each class.

        Returns
        -------
        distance
            (classes, J, K) of the mean above x, in standard deviations.
        height
            (classes, J, K) logarithms of the share over the standard deviation.
        """
        blocks = self.parts.shape[2]
        where = min(max((place + 0.5) / self.edges[0] - 0.5, 0), blocks - 1)
        low, high = (self.parts[:, classes, block(where)] for block in (math.floor, math.ceil))
        plane = torch.lerp(low, high, where % 1) @ self._columns
        shift, sharp, height = (_along_rows(part, self.shape[1], self._rows) for part in plane)
        return torch.addcmul(shift, x, sharp, value=-1), height

    @cached_property
    def _columns(self) -> torch.Tensor:
        """Weights (K', K) of linear interpolation between blocks along the last axis."""
        voxels, edge, blocks = self.shape[2], self.edges[2], self.parts.shape[4]
        where = ((torch.arange(voxels) + 0.5) / edge - 0.5).clamp(0, blocks - 1)
        return (1 - (where - torch.arange(blocks)[:, None]).abs()).clamp_min(0)

    @cached_property
    def _rows(self) -> torch.Tensor:
        """Weights (rows, 1) of the upper one of two blocks in the rows between their centres."""
        edge = self.edges[1]
        first = (edge + 1) // 2  # rows up to the centre of the first block
        return (torch.arange(edge)[:, None] + 0.5 - first) / edge + 0.5

    def below(self, place: int, x: torch.Tensor) -> torch.Tensor:
        """Return where intensities exceed the mean of each class: bool (classes, J, K)."""
        return self.at(place, x)[0] < 0


def estimate_gaussians(
    planes: Iterable[torch.Tensor],
    image: Callable[[int], torch.Tensor],
    shape: Sequence[int],
    voxel_size: Sequence[float],
    *,
    reach: float,
    spread: float,
    above: Sequence[torch.Tensor] | None = None,
) -> tuple[Gaussians, ...]:
    """Measure a Gaussian of each class; or two, of the voxels `above` and of the others.

    Parameters
    ----------
    planes
        (classes, J, K) probabilities, which are overwritten, of each plane along the first axis.
    image
        Returns the intensities (J, K) of a plane.
    shape
        (I, J, K) of all planes.
    voxel_size
        In mm.
    reach
        Standard deviation in mm of the windows.
    spread
        Share of the mean variance of all classes that is added to that of each.
    above
        Of each plane, bool (classes, J, K), see `Gaussians.below`.
    """
    edges = tuple(max(1, round(_BLOCK_MM / size)) for size in voxel_size)
    layers = []  # of blocks
    for place, chances in enumerate(planes):
        weights = chances.square_()  # what is sure counts most
        x = image(place)
        parts = [weights]
        if above is not None:
            upper = weights * above[place]
            parts = [weights.sub_(upper), upper]
        if place % edges[0] == 0:
            layer = torch.zeros((len(parts), 3, *weights.shape))
        for part, found in zip(parts, layer, strict=True):
            found[0].add_(part)
            found[1].addcmul_(part, x)
            found[2].addcmul_(part, x * x)
        if place % edges[0] == edges[0] - 1 or place == shape[0] - 1:
            layers.append(_block_sums(layer, edges[1:]))
    sums = torch.stack(layers, 3) * math.prod(voxel_size)
    blocks = [reach / (size * edge) for size, edge in zip(voxel_size, edges, strict=True)]
    shares = _shares(sums[:, 0], blocks)
    return tuple(
        Gaussians(_parts(part, share, blocks, spread), edges, tuple(shape))
        for part, share in zip(sums, shares, strict=True)
    )


def _parts(
    sums: torch.Tensor, share: torch.Tensor, reach: Sequence[float], spread: float
) -> torch.Tensor:
    """Return `Gaussians.parts` in Gaussian windows.

    Parameters
    ----------
    sums
        (3, classes, I', J', K') of weights in mm^3, times intensities, and times their squares.
    share
        (classes, I', J', K') of the voxels of each class.
    reach
        Of the windows, in blocks.
    """
    whole = sums.sum((2, 3, 4), dtype=torch.float64).float()[..., None, None, None]
    count, total, squares = (part.sum(0) for part in whole)
    mean = total / count.clamp_min(_SMALLEST_WEIGHT)
    all_of_it = mean, (squares / count.clamp_min(_SMALLEST_WEIGHT) - mean**2).clamp_min(0)
    everywhere = _borrowed(whole, *all_of_it)
    window = (2 * math.pi) ** 1.5 * math.prod(reach)
    mean, variance = _borrowed(_windows(sums, reach) * window, *everywhere)
    typical = variance.mean(0, keepdim=True)
    scale = (variance + spread * typical).clamp_min(1e-6).sqrt()
    return torch.stack((mean / scale, 1 / scale, (share / scale).log()))


def _windows(sums: torch.Tensor, reach: Sequence[float]) -> torch.Tensor:
    """Average (..., I', J', K') in Gaussian windows."""
    for axis, sigma in zip((-3, -2, -1), reach, strict=True):
        ones = np.eye(sums.shape[axis], dtype=np.float32)
        window = ndimage.gaussian_filter1d(ones, sigma, mode="constant", truncate=3.0)
        sums = (sums.movedim(axis, -1) @ torch.from_numpy(window)).movedim(-1, axis)
    return sums


def _shares(counts: torch.Tensor, reach: Sequence[float]) -> torch.Tensor:
    """Return the shares (parts, classes, I', J', K') of parts in their class, by their counts."""
    near = _windows(counts, reach)
    whole = counts.sum((2, 3, 4), keepdim=True)
    near += _RARE * whole / whole.sum(0).clamp_min(_SMALLEST_WEIGHT)
    return (near / near.sum(0).clamp_min(_SMALLEST_WEIGHT)).clamp_min(_RARE)


def _along_rows(blocks: torch.Tensor, rows: int, share: torch.Tensor) -> torch.Tensor:
    """Interpolate (classes, J', K) linearly between the centres of blocks, to (classes, rows, K).

    Parameters
    ----------
    share
        See `Gaussians._rows`.
    """
    first = (len(share) + 1) // 2  # rows up to the centre of the first block
    low = torch.cat((blocks[:, :1], blocks), 1)[:, :, None]
    high = torch.cat((blocks, blocks[:, -1:]), 1)[:, :, None]
    return torch.lerp(low, high, share).flatten(1, 2)[:, first : first + rows]


def _borrowed(
    sums: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return means and variances of weighted sums; where these are small, mostly those given."""
    count, total, squares = sums
    own = total / count.clamp_min(_SMALLEST_WEIGHT)
    scatter = (squares - total * own).clamp_min(0)
    whole = count + _FEW
    return (total + _FEW * mean) / whole, (scatter + _FEW * variance) / whole


def _block_sums(planes: torch.Tensor, block: Sequence[int]) -> torch.Tensor:
    """Sum up the voxels (parts, powers, classes, J, K) of each block of planes."""
    rows, columns = (
        -(-length // edge) for length, edge in zip(planes.shape[-2:], block, strict=True)
    )
    whole = functional.pad(planes, (0, 0, 0, rows * block[0] - planes.shape[-2]))
    belongs = torch.arange(planes.shape[-1])[:, None] // block[1] == torch.arange(columns)
    sums: torch.Tensor = whole.unflatten(-2, (rows, block[0])).sum(-2) @ belongs.float()
    return sums
