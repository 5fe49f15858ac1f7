"""A network's answer brought in line with the scan's own intensities: Bayes' rule, voxel by voxel.

A small network knows where tissues lie better than where exactly they end. So its probabilities are
taken as a prior. From the voxels that it is sure of we learn what each class looks like around
every place of this very scan: a Gaussian at first, then two, since skull or fluid mix tissues.
Their means and variances drift slowly with the bias field. How likely a voxel's intensity is under
each class then shifts the borders. This is the model of unified segmentation (Wells et al., IEEE
Trans. Med. Imaging 1996; Ashburner and Friston, NeuroImage 2005) with a network in the place of the
atlas. Neighbours vote too, as in a Markov random field (Zhang et al., IEEE Trans. Med. Imaging
2001), so that noise does not come through.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch.nn import functional

from siam_bids.intensities import Intensities
from siam_bids.scores import Scores
from siam_bids.volume import Crop, Volume

_FEW = 50.0
"""Voxels (weighted) below which a class borrows its Gaussian from the whole scan."""
_BLOCK = 8.0
"""Edge in mm of the blocks in which voxels are summed up."""
_RARE = 1e-3
"""Least share of a part in its class."""
_LEAST = 1e-12
"""A probability, or a sum of weights, that counts as 0."""


class Posterior:
    """Scores that follow the intensities of the scan.

    With p the given probabilities of classes c, x the intensity, m and s the mean and standard
    deviation around the voxel of a class, or of each of its parts a of share r, q =
    softmax(log p + weight log sum_a r / s exp(-(x - m)^2 / 2 s^2)); and the logarithms of the
    answer, times `temperature`, are those of q plus `neighbours` times the mean of q over the
    voxels around, which count 1/4, 1/2, 1/4 along each axis, or less where they are further away
    than 1 mm: 1 / (4 mm^2). In the first round a class is one part; then it is two, the voxels
    above and below its mean. Where voxels are longer than 1 mm, they mix tissues and follow no
    Gaussian: the weight is divided by their longest edge in mm.

    Parameters
    ----------
    scores
        Of the network; gone through once more often than there are rounds, plane by plane.
    image
        (I, J, K) intensities, on the grid of the scores.
    voxel_size
        In mm.
    keep
        Whether `probability` will be asked for.
    """

    def __init__(
        self,
        scores: Scores,
        image: npt.NDArray[np.float32],
        voxel_size: Sequence[float],
        how: Intensities,
        *,
        keep: bool = False,
    ) -> None:
        self.shape, self.classes = scores.shape, scores.classes
        self._scores, self._how = scores, how
        spread = float(image.std()) or 1.0
        self._image, self._scale = image, (float(image.mean()), spread)
        self._size = tuple(voxel_size)
        self._weight = how.weight / max(1.0, *voxel_size)
        self._sides = [0.25 / max(1.0, size) ** 2 for size in voxel_size]
        self._gaussians: tuple[_Gaussians, ...] = ()
        self._normalisers = np.zeros((2, *self.shape), np.float32) if keep else None

    def planes(self) -> Iterator[torch.Tensor]:
        """Yield (classes, J, K) float32 logarithms of the probabilities, plane by plane."""
        if not self._gaussians:
            (whole,) = self._gaussians = self._measured(p.softmax(0) for p in self._network())
            for _ in range(1, self._how.rounds):
                self._gaussians = self._measured((p.exp() for p in self._followed(1)), whole)
        return self._followed(self._how.temperature)

    def _network(self) -> Iterator[torch.Tensor]:
        return (plane.float() for plane in self._scores.planes())

    def _followed(self, temperature: float) -> Iterator[torch.Tensor]:
        before: torch.Tensor | None = None
        here: tuple[torch.Tensor, torch.Tensor] | None = None
        for place, plane in enumerate(self._network()):
            scores = plane.log_softmax(0).add_(self._likelihood(place))
            votes = _smoothed(self._normalised(0, place, scores).exp_(), self._sides[1:])
            if here:
                voted = self._voted(here, before, votes).div_(temperature)
                yield self._normalised(1, place - 1, voted)
                before = here[1]
            here = scores, votes
        if here:
            voted = self._voted(here, before, None).div_(temperature)
            yield self._normalised(1, self.shape[0] - 1, voted)

    def _voted(
        self,
        here: tuple[torch.Tensor, torch.Tensor],
        before: torch.Tensor | None,
        after: torch.Tensor | None,
    ) -> torch.Tensor:
        scores, votes = here
        side = self._sides[0]
        around = votes * (1 - 2 * side)
        for plane in (before, after):
            around.add_(votes if plane is None else plane, alpha=side)
        return scores.add_(around, alpha=self._how.neighbours)

    def _normalised(self, step: int, place: int, scores: torch.Tensor) -> torch.Tensor:
        logarithms = scores.log_softmax(0)
        if self._normalisers is not None:
            self._normalisers[step, place] = (scores[0] - logarithms[0]).numpy()
        return logarithms

    def probability(self, index: int) -> npt.NDArray[np.float32]:
        """Return the probability (I, J, K) of a class, float32 in [0, 1]; after `planes`."""
        if self._normalisers is None:
            raise ValueError("probabilities were not to be kept")
        first, second = self._normalisers
        found = self._scores.probability(index)
        np.log(np.maximum(found, _LEAST, out=found), out=found)
        for place in range(len(found)):
            found[place] += self._likelihood(place, slice(index, index + 1))[0].numpy()
        votes = np.exp(found - first)
        for axis, side in enumerate(self._sides):
            kernel = [side, 1 - 2 * side, side]
            votes = ndimage.correlate1d(votes, kernel, axis=axis, mode="nearest")
        found += np.float32(self._how.neighbours) * votes
        found /= np.float32(self._how.temperature)
        found -= second
        np.exp(found, out=found)
        return np.minimum(found, 1, out=found)

    def _standard(self, place: int) -> torch.Tensor:
        mean, spread = self._scale
        return torch.from_numpy((self._image[place] - np.float32(mean)) / np.float32(spread))

    def _likelihood(self, place: int, classes: slice = slice(None)) -> torch.Tensor:
        """Return weighted log likelihoods (classes, J, K) of a plane, but for a constant."""
        if not self._gaussians:
            raise ValueError("planes come first")
        x = self._standard(place)
        heights = [
            height.addcmul_(distance, distance, value=-0.5)
            for distance, height in (each.at(place, x, classes) for each in self._gaussians)
        ]
        return functools.reduce(torch.logaddexp, heights).mul_(self._weight)

    def _measured(
        self, planes: Iterator[torch.Tensor], whole: _Gaussians | None = None
    ) -> tuple[_Gaussians, ...]:
        """Measure a Gaussian of each class by probabilities (classes, J, K) of all planes.

        Given those of whole classes, measure two: of the voxels below and above their means.
        """
        block = [max(1, round(_BLOCK / size)) for size in self._size]
        counts = [-(-length // edge) for length, edge in zip(self.shape, block, strict=True)]
        sums = torch.zeros((2 if whole else 1, 3, self.classes, *counts))
        for place, chances in enumerate(planes):
            if block[0] > 1 and place % 2:  # every other plane tells enough
                continue
            weights = chances.square_()  # what is sure counts most
            x = self._standard(place)
            parts = [weights]
            if whole:
                distance, _ = whole.at(place, x, slice(None))
                above = weights * (distance < 0)
                parts = [weights.sub_(above), above]
            for part, found in zip(parts, sums, strict=True):
                for power in range(3):
                    found[power, :, place // block[0]] += _block_sums(part, block[1:])
                    part.mul_(x)
        edges = [size * count for size, count in zip(self._size, block, strict=True)]
        reach = [self._how.reach / edge for edge in edges]
        shares = _shares(sums[:, 0], reach)
        axes = tuple(map(_between, self.shape, counts, block))
        return tuple(
            _Gaussians.of(part, share, reach, self._how.spread, axes)
            for part, share in zip(sums, shares, strict=True)
        )


@dataclass(frozen=True)
class _Gaussians:
    """One Gaussian of each class around every block of voxels.

    Attributes
    ----------
    parts
        (3, classes, I', J', K') means over standard deviations, 1 over these, and logarithms of
        the share of the class over these.
    axes
        (voxels, blocks) weights of linear interpolation along each axis.
    """

    parts: torch.Tensor
    axes: tuple[torch.Tensor, ...]

    @classmethod
    def of(
        cls,
        sums: torch.Tensor,
        share: torch.Tensor,
        reach: Sequence[float],
        spread: float,
        axes: tuple[torch.Tensor, ...],
    ) -> _Gaussians:
        """Measure them in Gaussian windows.

        Parameters
        ----------
        sums
            (3, classes, I', J', K') of weights, weighted intensities and weighted squares.
        share
            (classes, I', J', K') of the voxels of each class.
        reach
            Of the windows, in blocks.
        """
        whole = sums.sum((2, 3, 4), dtype=torch.float64).float()[..., None, None, None]
        count, total, squares = (part.sum(0) for part in whole)
        mean = total / count.clamp_min(_LEAST)
        all_of_it = mean, (squares / count.clamp_min(_LEAST) - mean**2).clamp_min(0)
        everywhere = _borrowed(whole, *all_of_it)
        window = (2 * math.pi) ** 1.5 * math.prod(reach)
        mean, variance = _borrowed(_windows(sums, reach) * window, *everywhere)
        typical = variance.mean(0, keepdim=True)
        scale = (variance + spread * typical).clamp_min(1e-6).sqrt()
        return cls(torch.stack((mean / scale, 1 / scale, (share / scale).log())), axes)

    def at(self, place: int, x: torch.Tensor, classes: slice) -> tuple[torch.Tensor, torch.Tensor]:
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


def _windows(sums: torch.Tensor, reach: Sequence[float]) -> torch.Tensor:
    """Average (..., I', J', K') in Gaussian windows."""
    still = (0,) * (sums.ndim - 3)
    near = ndimage.gaussian_filter(sums.numpy(), (*still, *reach), mode="constant", truncate=3.0)
    return torch.from_numpy(near)


def _shares(counts: torch.Tensor, reach: Sequence[float]) -> torch.Tensor:
    """Return the shares (parts, classes, I', J', K') of parts in their class, by their counts."""
    near = _windows(counts, reach)
    whole = counts.sum((2, 3, 4), keepdim=True)
    near += _RARE * whole / whole.sum(0).clamp_min(_LEAST)
    return (near / near.sum(0).clamp_min(_LEAST)).clamp_min(_RARE)


def _between(voxels: int, blocks: int, edge: int) -> torch.Tensor:
    """Return weights (voxels, blocks) of linear interpolation between the centres of blocks."""
    where = ((torch.arange(voxels) + 0.5) / edge - 0.5).clamp(0, blocks - 1)
    return (1 - (where[:, None] - torch.arange(blocks)).abs()).clamp_min(0)


def _borrowed(
    sums: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return means and variances of weighted sums; where these are small, mostly those given."""
    count, total, squares = sums
    own = total / count.clamp_min(_LEAST)
    scatter = (squares - total * own).clamp_min(0)
    whole = count + _FEW
    return (total + _FEW * mean) / whole, (scatter + _FEW * variance) / whole


def _block_sums(planes: torch.Tensor, block: Sequence[int]) -> torch.Tensor:
    return functional.avg_pool2d(planes[None], tuple(block), ceil_mode=True, divisor_override=1)[0]


def _smoothed(planes: torch.Tensor, sides: Sequence[float]) -> torch.Tensor:
    """Average planes (classes, J, K) with the voxels beside, which count `sides` on each axis."""
    padded = functional.pad(planes[None], (1, 1, 1, 1), mode="replicate")[0]
    across, along = sides
    rows = padded[:, 1:-1] * (1 - 2 * across)
    rows.add_(padded[:, :-2], alpha=across).add_(padded[:, 2:], alpha=across)
    smooth = rows[:, :, 1:-1] * (1 - 2 * along)
    return smooth.add_(rows[:, :, :-2], alpha=along).add_(rows[:, :, 2:], alpha=along)


def following(
    scores: Scores, volume: Volume, crop: Crop, how: Intensities | None, *, keep: bool
) -> Scores:
    """Let the scores of a crop of a scan follow its intensities, if that is wanted."""
    if how is None:
        return scores
    return Posterior(scores, crop.cut(volume.data), crop.voxel_size, how, keep=keep)
