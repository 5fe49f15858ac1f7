"""How far a model's labels follow the intensities of the scan; `posterior` does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from siam_bids.errors import ModelError


@dataclass(frozen=True)
class Intensities:
    """How a network's probabilities follow the intensities of the scan.

    Attributes
    ----------
    weight
        Power of the likelihood. 1 is Bayes' rule for a network that had not seen the image.
    reach
        Standard deviation in mm of the windows in which the Gaussians are measured.
    spread
        Share of the mean variance of all classes that is added to that of each, so that no class
        is trusted to be purer than a real tissue.
    neighbours
        Weight of the neighbours' vote.
    temperature
        What the logarithms are divided by at the end, so that of the voxels with a probability of
        80 % as many are right (Guo et al., ICML 2017); labels stay the same.
    rounds
        How often the Gaussians are measured: first one of each class, by the network's own
        probabilities, then two of each.
    """

    weight: float
    reach: float
    spread: float
    neighbours: float
    temperature: float
    rounds: int

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Intensities:
        """Read the entry `intensities` of a model in models.json.

        Raises
        ------
        ModelError
            Something is missing or no number.
        """
        names = ("weight", "reach", "spread", "neighbours", "temperature")
        try:
            weight, reach, spread, neighbours, heat = (float(entry[name]) for name in names)
            return cls(weight, reach, spread, neighbours, heat, int(entry["rounds"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"The intensities of a model cannot be read ({error!r}).",
                'Write {"weight": 1.5, "reach": 20, "spread": 0.3, "neighbours": 18, '
                '"temperature": 6, "rounds": 5}.',
            ) from error

    def describe(self) -> dict[str, Any]:
        """Return the choices as sidecars tell them."""
        return {
            "Weight": self.weight,
            "ReachInMillimetres": self.reach,
            "Spread": self.spread,
            "Neighbours": self.neighbours,
            "Temperature": self.temperature,
            "Rounds": self.rounds,
        }
