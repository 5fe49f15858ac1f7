"""Intensities of each class around every position of a scan: Gaussians in local windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

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
    axes
        (voxels, blocks) weights of linear interpolation along each axis.
    """

    parts: torch.Tensor
    edges: tuple[int, ...]
    axes: tuple[torch.Tensor, ...]

    def on(self, shape: Sequence[int], apart: Sequence[int]) -> Gaussians:
        """Return the same on a finer grid of a shape, `apart` voxels of which were one."""
        edges = tuple(edge * step for edge, step in zip(self.edges, apart, strict=True))
        return replace(self, edges=edges, axes=tuple(map(_between, shape, edges)))

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
        across, rows, columns = self.axes
        near = across[place].nonzero()[:, 0]  # one block or two
        plane = torch.einsum("i,pcijk->pcjk", across[place, near], self.parts[:, classes, near])
        shift, sharp, height = rows @ (plane @ columns.T)
        return torch.addcmul(shift, x, sharp, value=-1), height

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
    counts = [-(-length // edge) for length, edge in zip(shape, edges, strict=True)]
    sums: torch.Tensor | None = None
    for place, chances in enumerate(planes):
        if sums is None:
            sums = torch.zeros((1 if above is None else 2, 3, len(chances), *counts))
        weights = chances.square_()  # what is sure counts most
        x = image(place)
        parts = [weights]
        if above is not None:
            upper = weights * above[place]
            parts = [weights.sub_(upper), upper]
        for part, found in zip(parts, sums, strict=True):
            for power in range(3):
                found[power, :, place // edges[0]] += _block_sums(part, edges[1:])
                part.mul_(x)
    if sums is None:
        raise ValueError("there is no plane")
    sums *= math.prod(voxel_size)
    blocks = [reach / (size * edge) for size, edge in zip(voxel_size, edges, strict=True)]
    shares = _shares(sums[:, 0], blocks)
    axes = tuple(map(_between, shape, edges))
    return tuple(
        Gaussians(_parts(part, share, blocks, spread), edges, axes)
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
    still = (0,) * (sums.ndim - 3)
    near = ndimage.gaussian_filter(sums.numpy(), (*still, *reach), mode="constant", truncate=3.0)
    return torch.from_numpy(near)


def _shares(counts: torch.Tensor, reach: Sequence[float]) -> torch.Tensor:
    """Return the shares (parts, classes, I', J', K') of parts in their class, by their counts."""
    near = _windows(counts, reach)
    whole = counts.sum((2, 3, 4), keepdim=True)
    near += _RARE * whole / whole.sum(0).clamp_min(_SMALLEST_WEIGHT)
    return (near / near.sum(0).clamp_min(_SMALLEST_WEIGHT)).clamp_min(_RARE)


def _between(voxels: int, edge: int) -> torch.Tensor:
    """Return weights (voxels, blocks) of linear interpolation between the centres of blocks."""
    blocks = -(-voxels // edge)
    where = ((torch.arange(voxels) + 0.5) / edge - 0.5).clamp(0, blocks - 1)
    return (1 - (where[:, None] - torch.arange(blocks)).abs()).clamp_min(0)


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
    return functional.avg_pool2d(planes[None], tuple(block), ceil_mode=True, divisor_override=1)[0]
