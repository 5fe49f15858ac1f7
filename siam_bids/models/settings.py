"""Settings of a model in addition to its weights: focus, refinement, head orientation."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from siam_bids.errors import ModelError
from siam_bids.image.grid import Grid, Reorientation

logger = logging.getLogger(__name__)


_SMALLEST_STEP = 0.1
"""Tile edges between two tiles; half as much makes eight times as many tiles."""


def _number(value: Any, *, above: float = -math.inf, most: float = 1e6) -> float:
    """Return a finite number from 0; `ValueError` or `TypeError` for anything else."""
    number = float(value)
    if not 0 <= number <= most or number <= above:
        raise ValueError(f"{value} is out of range")
    return number


@dataclass(frozen=True)
class Focus:
    """Where a member of an ensemble looks; the first sees the whole scan.

    Attributes
    ----------
    tissues
        Labels; the member looks at a box around what the first one found of these, and is left out
        where that found none.
    margin
        By which the box is wider at each end, in mm.
    step
        Tiles in the box are at most so many tile edges apart, 0.1 to 1.
    extent
        What such tissues measure from left to right, back to front and bottom to top in large
        heads, in mm: for estimates of time and memory.
    share
        What the member's probabilities count in the mean with those of the members before, 0 to 1;
        that of several in a row with the same focus together. None for each as much as the others.
    taper
        The share falls to 0 over this length at the ends of the box, in mm.
    normalise_box
        Whether the member sees intensities normalised in its box alone, instead of in the scan, as
        one that was trained on such boxes.
    """

    tissues: tuple[str, ...]
    margin: float
    step: float
    extent: tuple[float, float, float]
    share: float | None = None
    taper: float = 0.0
    normalise_box: bool = False

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Focus:
        """Read the entry `focus` of an ensemble in models.json.

        Raises
        ------
        ModelError
            Something is missing or no number, or a share or step is out of range.
        """
        try:
            x, y, z = (_number(edge) for edge in entry["extent"])
            margin, step = _number(entry["margin"]), _number(entry["step"], most=1)
            if step < _SMALLEST_STEP:
                raise ValueError(f"step {step} is below {_SMALLEST_STEP}")
            share = _number(entry["share"]) if "share" in entry else None
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"share {share}")
            taper = _number(entry.get("taper", 0))
            alone = entry.get("normalise_box", False)
            if not isinstance(alone, bool):
                raise TypeError(f"normalise_box {alone}")
            tissues = tuple(map(str, entry["tissues"]))
            return cls(tissues, margin, step, (x, y, z), share, taper, alone)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"The focus of an ensemble cannot be read ({error!r}).",
                'Write {"tissues": [LABEL], "margin": MM, "step": 0.5, "extent": [MM, MM, MM], '
                '"share": 0.5}.',
            ) from error

    def describe(self) -> dict[str, Any]:
        """Return the focus as an entry of sidecars."""
        return {
            "Tissues": list(self.tissues),
            "MarginInMillimetres": self.margin,
            "TileStep": self.step,
            **({"Share": self.share} if self.share is not None else {}),
            **({"TaperInMillimetres": self.taper} if self.taper else {}),
            **({"NormalisedInBox": True} if self.normalise_box else {}),
        }

    def typical(self, grid: Grid) -> Grid:
        """Return a grid of the voxels of `grid`, no larger than a box is expected to be."""
        turned = Reorientation.to_ras(grid).target
        i, j, k = (
            min(length, math.ceil((edge + 2 * self.margin) / size))
            for length, edge, size in zip(turned.shape, self.extent, turned.voxel_size, strict=True)
        )
        return Grid((i, j, k), turned.affine)


def read_focus(entry: Any) -> Focus | tuple[Focus | None, ...] | None:
    """Read the entry `focus` of an ensemble: one for all members but the first, or one for each.

    Raises
    ------
    ModelError
        One of them cannot be read, see `Focus.of`.
    """
    if isinstance(entry, list):
        return tuple(None if each is None else Focus.of(each) for each in entry)
    return None if entry is None else Focus.of(entry)


def describe_focus(
    focus: Sequence[Focus | None],
) -> dict[str, Any] | list[dict[str, Any] | None] | None:
    """Return the focus of each member but the first as an entry of sidecars, one if all are alike.

    None where all see the whole scan.
    """
    told = [each.describe() if each else None for each in focus]
    return told if any(each != told[0] for each in told) else next(iter(told), None)


@dataclass(frozen=True)
class Outliers:
    """When voxels of white matter count as lesions, see `inference.white_matter_outliers`.

    Attributes
    ----------
    deviations
        Least difference to the white matter around, in its standard deviations.
    contrast
        Least difference, as a share of that between cortex and white matter.
    place
        How much the least difference rises where lesions are ten times rarer than around the
        ventricles, as a share of it.
    edge
        What voxels around a lesion need of that difference to belong to it, 0 to 1.
    smallest
        Lesions below this volume in mm3 are left out.
    """

    deviations: float
    contrast: float
    place: float
    edge: float
    smallest: float

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Outliers:
        """Read the entry `outliers` of `intensities` in models.json.

        Raises
        ------
        ModelError
            Something is missing or no number.
        """
        try:
            return cls(
                _number(entry["deviations"], above=0),
                _number(entry["contrast"]),
                _number(entry["place"]),
                _number(entry["edge"], most=1),
                _number(entry["smallest"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"The outliers of a model cannot be read ({error!r}).",
                'Write {"deviations": 4, "contrast": 0.5, "place": 0.6, "edge": 0.8, '
                '"smallest": 10}.',
            ) from error

    def describe(self) -> dict[str, float]:
        """Return the settings as an entry of sidecars."""
        return {
            "Deviations": self.deviations,
            "Contrast": self.contrast,
            "Place": self.place,
            "Edge": self.edge,
            "SmallestInCubicMillimetres": self.smallest,
        }


@dataclass(frozen=True)
class Intensities:
    """How a network's probabilities follow the intensities of the scan.

    Attributes
    ----------
    weight
        Power of the likelihood. 1 is Bayes' rule for a network that had not seen the image.
    reach
        Standard deviation in mm of the windows in which the Gaussians are estimated.
    spread
        Share of the mean variance of all classes that is added to that of each, so that no class
        is trusted to be purer than a real tissue.
    neighbours
        Weight of the neighbours' vote.
    temperature
        What the logarithms are divided by at the end, so that of the voxels with a probability of
        80 % as many are right (Guo et al., ICML 2017); labels stay the same.
    rounds
        How often the Gaussians are estimated: first one per class, by the network's own
        probabilities, then two of each.
    outliers
        When white matter counts as a lesion; None leaves that to the network.
    """

    weight: float
    reach: float
    spread: float
    neighbours: float
    temperature: float
    rounds: int
    outliers: Outliers | None = None

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
            weight, reach, spread, neighbours, heat = (_number(entry[name]) for name in names)
            rounds = _number(entry["rounds"], most=100)
            outliers = Outliers.of(entry["outliers"]) if "outliers" in entry else None
            return cls(weight, reach, spread, neighbours, heat, int(rounds), outliers)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"The intensities of a model cannot be read ({error!r}).",
                'Write {"weight": 1.5, "reach": 20, "spread": 0.3, "neighbours": 18, '
                '"temperature": 6, "rounds": 5}.',
            ) from error

    def describe(self) -> dict[str, Any]:
        """Return the settings as an entry of sidecars."""
        return {
            "Weight": self.weight,
            "ReachInMillimetres": self.reach,
            "Spread": self.spread,
            "Neighbours": self.neighbours,
            "Temperature": self.temperature,
            "Rounds": self.rounds,
            **({"WhiteMatterOutliers": self.outliers.describe()} if self.outliers else {}),
        }


@dataclass(frozen=True)
class Upright:
    """Heads that a model segments again in standard orientation and average size.

    Attributes
    ----------
    degrees
        Heads rotated by more than this.
    size
        Those smaller or larger by more than this factor.
    margin
        Kept around the head that the first look found, in mm.
    """

    degrees: float
    size: float
    margin: float

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Upright:
        """Read the entry `upright` of a model in models.json.

        Raises
        ------
        ModelError
            Something is missing or no number, or the size is less than 1.
        """
        try:
            degrees, size, margin = (_number(entry[name]) for name in ("degrees", "size", "margin"))
            if size < 1:
                raise ValueError(f"size {size}")
            return cls(degrees, size, margin)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"The upright setting of a model cannot be read ({error!r}).",
                'Write {"degrees": 25, "size": 1.12, "margin": 8}.',
            ) from error

    def describe(self) -> dict[str, Any]:
        """Return the settings as an entry of sidecars."""
        return {
            "TurnedByMoreDegreesThan": self.degrees,
            "OfSizeFactorMoreThan": self.size,
            "MarginInMillimetres": self.margin,
        }
