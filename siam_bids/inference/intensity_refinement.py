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
from siam_bids.inference.resampling import Prior, Scores
from siam_bids.models.settings import Intensities

_APART = 2.0
"""Distance in mm of the voxels that Gaussians are estimated from: every other one at 1 mm."""
_SMALLEST_PROBABILITY = 1e-12
"""A probability that counts as 0."""
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
        return self._followed()

    def probability(self, index: int) -> npt.NDArray[np.float32]:
        """Return the probability (I, J, K) of a class, float32 in [0, 1]."""
        first, second = self._normalisers
        found = self._scores.probability(index)
        np.log(np.maximum(found, _SMALLEST_PROBABILITY, out=found), out=found)
        for place in range(len(found)):
            found[place] += self._rule.likelihood(place, slice(index, index + 1))[0].numpy()
        votes = np.exp(found - first)
        for axis, side in enumerate(self._rule.sides):
            kernel = [side, 1 - 2 * side, side]
            votes = ndimage.correlate1d(votes, kernel, axis=axis, mode="nearest")
        found += np.float32(self._how.neighbours) * votes
        found /= np.float32(self._how.temperature)
        found -= second
        np.exp(found, out=found)
        return np.minimum(found, 1, out=found)

    @cached_property
    def _normalisers(self) -> npt.NDArray[np.float32]:
        """What is subtracted before and after the votes, (2, I, J, K)."""
        found = np.empty((2, *self.shape), np.float32)
        for _ in self._followed(found):
            pass
        return found

    def _followed(
        self, normalisers: npt.NDArray[np.float32] | None = None
    ) -> Iterator[torch.Tensor]:
        prior = (plane.float() for plane in self._scores.planes())
        return self._rule.followed(prior, self._how.temperature, normalisers)

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
            gaussians = measure((plane.exp() for plane in followed), above=above)
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
            height.addcmul_(distance, distance, value=-0.5)
            for distance, height in (each.at(place, x, classes) for each in self.gaussians)
        ]
        return functools.reduce(torch.logaddexp, heights).mul_(self.weight)

    def followed(
        self,
        prior: Iterable[torch.Tensor],
        temperature: float = 1.0,
        normalisers: npt.NDArray[np.float32] | None = None,
    ) -> Iterator[torch.Tensor]:
        """Yield logarithms of the probabilities (classes, J, K) of all planes.

        Parameters
        ----------
        prior
            Logarithms of those before, float32, but for a constant.
        normalisers
            (2, I, J, K), overwritten with what was subtracted before and after the votes.
        """

        def normalised(step: int, place: int, scores: torch.Tensor) -> torch.Tensor:
            logarithms = scores.log_softmax(0)
            if normalisers is not None:
                normalisers[step, place] = (scores[0] - logarithms[0]).numpy()
            return logarithms.clamp_(min=_LOWEST)

        before: torch.Tensor | None = None
        here: tuple[torch.Tensor, torch.Tensor] | None = None
        place = -1
        for place, plane in enumerate(prior):
            scores = plane.log_softmax(0).add_(self.likelihood(place))
            votes = _smoothed(normalised(0, place, scores).exp_(), self.sides[1:])
            if here:
                voted = self._voted(here, before, votes).div_(temperature)
                yield normalised(1, place - 1, voted)
                before = here[1]
            here = scores, votes
        if here:
            voted = self._voted(here, before, None).div_(temperature)
            yield normalised(1, place, voted)

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
