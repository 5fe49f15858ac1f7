"""Intensity refinement: a network's probabilities updated by the scan's intensities.

A small network locates tissues better than it delineates them. Its probabilities are therefore
used as a prior. From voxels with confident labels the intensities of each class are estimated
locally: with one Gaussian first, then two, since skull and CSF have mixed intensities.
Their means and variances vary slowly with the bias field. The likelihood of a voxel's intensity in
each class then moves the borders. This is the model of unified segmentation (Wells et al., IEEE
Trans. Med. Imaging 1996; Ashburner and Friston, NeuroImage 2005) with a network instead of the
atlas. Neighbouring voxels are coupled, as in a Markov random field (Zhang et al., IEEE Trans. Med.
Imaging 2001), to suppress noise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch.nn import functional

from siam_bids.image.grid import Crop, Volume
from siam_bids.inference.local_gaussians import Gaussians, estimate_gaussians
from siam_bids.inference.resampling import Prior, Scores, log_, softmax
from siam_bids.models.settings import Intensities

_APART = 2.0
"""Distance in mm of the voxels that Gaussians are estimated from: every other one at 1 mm."""
_LOWEST = -40.0
"""Log probabilities are clipped here: exp is 50 times slower below -87."""


class Posterior:
    """Scores refined with the intensities of the scan.

    With p the given probabilities of classes c, x the intensity, m and s the mean and standard
    deviation around the voxel of a class, or of each of its components a with weight r, q =
    softmax(log p + weight log sum_a r / s exp(-(x - m)^2 / 2 s^2)); and the log
    probabilities, times `temperature`, are those of q plus `neighbours` times the mean of q over
    the neighbours, which count 1/4, 1/2, 1/4 along each axis, or less where they are further away
    than 1 mm: 1 / (4 mm^2). In the first round a class has one component; later two, the voxels
    above and below its mean. Voxels longer than 1 mm have partial volume and follow no
    Gaussian: the weight is divided by their longest edge in mm.

    Means and deviations are estimated from voxels about 2 mm apart (one in eight at 1 mm),
    treated as neighbours there.

    Parameters
    ----------
    scores
        Of the network; read plane by plane, and once before for the subsampled voxels.
    image
        (I, J, K) intensities, on the grid of the scores.
    voxel_size
        In mm.
    """

    def __init__(
        self,
        scores: Prior,
        image: npt.NDArray[np.float32],
        voxel_size: Sequence[float],
        how: Intensities,
    ) -> None:
        self.shape, self.classes = scores.shape, scores.classes
        self._scores, self._how = scores, how
        spread = float(image.std()) or 1.0
        self._image, self._scale = image, (float(image.mean()), spread)
        self._size = tuple(voxel_size)

    def planes(self) -> Iterator[torch.Tensor]:
        """Yield (classes, J, K) float32 logarithms of the probabilities, plane by plane."""
        for scores in self._rule.followed(plane.float() for plane in self._scores.planes()):
            yield scores.div_(self._how.temperature).log_softmax(0).clamp_(min=_LOWEST)

    def probability(self, index: int) -> npt.NDArray[np.float32]:
        """Return the probability (I, J, K) of a class, float32 in [0, 1]."""
        before, after = self._normalisers
        found = self._scores.log_probability(index)
        for place in range(len(found)):
            found[place] += self._rule.likelihood(place, slice(index, index + 1))[0].numpy()
        votes = np.subtract(found, before)
        np.exp(np.maximum(votes, _LOWEST, out=votes), out=votes)
        for axis, side in enumerate(self._rule.sides):
            kernel = [side, 1 - 2 * side, side]
            votes = ndimage.correlate1d(votes, kernel, axis=axis, mode="nearest")
        found += np.float32(self._how.neighbours) * votes
        found /= np.float32(self._how.temperature)
        found -= after
        np.exp(np.maximum(found, _LOWEST, out=found), out=found)
        return np.minimum(found, 1, out=found)

    @cached_property
    def _normalisers(self) -> npt.NDArray[np.float32]:
        """What is subtracted before and after the votes, (2, I, J, K)."""
        before, after = found = np.empty((2, *self.shape), np.float32)
        prior = (plane.float().log_softmax(0) for plane in self._scores.planes())
        for place, scores in enumerate(self._rule.followed(prior, before)):
            after[place] = scores.div_(self._how.temperature).logsumexp(0).numpy()
        return found

    def _plane(self, place: int, stride: Sequence[int] = (1, 1, 1)) -> torch.Tensor:
        """Return a plane (J, K) of the standardised image, subsampled by `stride`."""
        mean, spread = self._scale
        i, j, k = stride
        plane = self._image[place * i, ::j, ::k]
        return torch.from_numpy((plane - np.float32(mean)) / np.float32(spread))

    @cached_property
    def _rule(self) -> _Rule:
        """Estimate the Gaussians, in each round with the probabilities of the one before."""
        stride = [max(1, round(_APART / size)) for size in self._size]
        few = self._scores.subsample(stride)
        prior = [plane.float().log_softmax(0).half() for plane in few.planes()]
        image = functools.partial(self._plane, stride=stride)
        measure = functools.partial(
            estimate_gaussians,
            image=image,
            shape=few.shape,
            voxel_size=[size * step for size, step in zip(self._size, stride, strict=True)],
            reach=self._how.reach,
            spread=self._how.spread,
        )
        (whole,) = gaussians = measure(plane.float().exp() for plane in prior)
        again = range(1, self._how.rounds)
        above = [whole.below(place, image(place)) for place in range(len(prior))] if again else []
        for _ in again:
            followed = self._rule_of(gaussians, image).followed(plane.float() for plane in prior)
            gaussians = measure((softmax(scores) for scores in followed), above=above)
        here = tuple(each.on(self.shape, stride) for each in gaussians)
        return self._rule_of(here, self._plane)

    def _rule_of(
        self, gaussians: tuple[Gaussians, ...], image: Callable[[int], torch.Tensor]
    ) -> _Rule:
        return _Rule(
            gaussians,
            image,
            weight=self._how.weight / max(1.0, *self._size),
            neighbours=self._how.neighbours,
            sides=tuple(0.25 / max(1.0, size) ** 2 for size in self._size),
        )


@dataclass(frozen=True)
class _Rule:
    """Bayes' rule and the votes of neighbours.

    Attributes
    ----------
    gaussians
        Of each class, or of its two components.
    image
        Returns the intensities (J, K) of a plane.
    weight
        Power of the likelihood.
    neighbours
        Weight of their votes.
    sides
        What the voxel on either side counts along each axis.
    """

    gaussians: tuple[Gaussians, ...]
    image: Callable[[int], torch.Tensor]
    weight: float
    neighbours: float
    sides: tuple[float, ...]

    def likelihood(self, place: int, classes: slice = slice(None)) -> torch.Tensor:
        """Return weighted log likelihoods (classes, J, K) of a plane, but for a constant."""
        x = self.image(place)
        heights = [
            torch.addcmul(height, distance, distance, value=-0.5)
            for distance, height in (each.at(place, x, classes) for each in self.gaussians)
        ]
        return functools.reduce(_log_of_sum, heights).mul_(self.weight)

    def followed(
        self,
        prior: Iterable[torch.Tensor],
        normalisers: npt.NDArray[np.float32] | None = None,
    ) -> Iterator[torch.Tensor]:
        """Yield logarithms of the probabilities (classes, J, K) of all planes, but for a constant.

        Parameters
        ----------
        prior
            Logarithms of those before, float32, but for a constant.
        normalisers
            (I, J, K), overwritten with the constant before the votes.
        """
        before: torch.Tensor | None = None
        here: tuple[torch.Tensor, torch.Tensor] | None = None
        for place, plane in enumerate(prior):
            scores = self.likelihood(place).add_(plane)
            if normalisers is not None:
                normalisers[place] = scores.logsumexp(0).numpy()
            votes = _smoothed(softmax(scores), self.sides[1:])
            if here:
                yield self._voted(here, before, votes)
                before = here[1]
            here = scores, votes
        if here:
            yield self._voted(here, before, None)

    def _voted(
        self,
        here: tuple[torch.Tensor, torch.Tensor],
        before: torch.Tensor | None,
        after: torch.Tensor | None,
    ) -> torch.Tensor:
        scores, votes = here
        side = self.sides[0]
        around = votes * (1 - 2 * side)
        for plane in (before, after):
            around.add_(votes if plane is None else plane, alpha=side)
        return scores.add_(around, alpha=self.neighbours)


def _log_of_sum(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return log(exp(one) + exp(other)), as torch.logaddexp, whose logarithm is slow."""
    more = one.sub(other).abs_().sigmoid_()
    return torch.maximum(one, other).sub_(log_(more))


def _smoothed(planes: torch.Tensor, sides: Sequence[float]) -> torch.Tensor:
    """Average planes (classes, J, K) with neighbouring voxels, weighted by `sides` on each axis."""
    padded = functional.pad(planes[None], (1, 1, 1, 1), mode="replicate")[0]
    across, along = sides
    rows = padded[:, 1:-1] * (1 - 2 * across)
    rows.add_(padded[:, :-2], alpha=across).add_(padded[:, 2:], alpha=across)
    smooth = rows[:, :, 1:-1] * (1 - 2 * along)
    return smooth.add_(rows[:, :, :-2], alpha=along).add_(rows[:, :, 2:], alpha=along)


def following(scores: Prior, volume: Volume, crop: Crop, how: Intensities | None) -> Scores:
    """Let the scores of a crop of a scan follow its intensities, if that is wanted."""
    if how is None:
        return scores
    return Posterior(scores, crop.cut(volume.data), crop.voxel_size, how)
