"""How much volumes change between two scans of a head that did not change.

Measured on drawn heads (`benchmarks/person.md`); `data/change_noise.tsv` has the standard deviation
of each tissue in percent, of scans segmented alone and of scans combined with each other. Real
scans add what differs between visits besides (motion, distortion, the scanner): it is the least
that a change must exceed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

from siam_bids.measures.volumes import NOT_COMBINED
from siam_bids.support.package_data import resource
from siam_bids.support.tsv import read_rows

MODEL, CONTRAST, LONGEST_EDGE = "compact", "T1w", 1.2
"""Where it holds: the model, and scans of this contrast with voxels up to this edge in mm."""

BAND = 1.96
"""Standard deviations within which 95 % of the changes without change are."""

ALONE, COMBINED = "alone", "combined"
"""Columns of the table: scans segmented alone, and combined with each other."""

OVER_VISITS = ("sessions", "all")
"""Choices of --combine that combine visits with each other."""
_MEASURED = "sessions"
_HARMLESS = {"probabilities", "segmentations", "volume"}
"""Options that change no label of a given image."""

_OF_MEDIAN = math.pi / 2
"""Variance of the median over that of the mean, of many normal values."""


@lru_cache(1)
def change_noise() -> Mapping[str, Mapping[str, float]]:
    """Return the standard deviation in percent by tissue, for each of `ALONE` and `COMBINED`."""
    rows = read_rows(resource("data", "change_noise.tsv"))
    return {kind: {row["tissue"]: float(row[kind]) for row in rows} for kind in (ALONE, COMBINED)}


def noise_kind(
    model: str,
    options: Collection[str],
    contrast: str,
    voxel_size: Sequence[float],
    combined: str,
) -> str:
    """Return which noise holds for the changes of a scan: `ALONE`, `COMBINED`, or empty for none.

    Parameters
    ----------
    options
        Names of those that were not the default.
    voxel_size
        Edges in mm.
    combined
        The choice of --combine that its prior is of, or `NOT_COMBINED`. What was measured is the
        noise of visits in one contrast that are combined with each other.
    """
    measured = (
        model == MODEL
        and contrast == CONTRAST
        and max(voxel_size) <= LONGEST_EDGE
        and _HARMLESS.issuperset(options)
    )
    if not measured:
        return ""
    if combined == NOT_COMBINED:
        return ALONE
    return COMBINED if combined == _MEASURED else ""


def noise_between(first: str, second: str) -> Mapping[str, float]:
    """Return the noise by tissue of the change between scans of these kinds; empty if unknown."""
    return change_noise()[first] if first and first == second else {}


def noise_of_median(squares: Sequence[float]) -> float:
    """Return the standard deviation of the median of independent changes without change.

    Parameters
    ----------
    squares
        Variance of each change. Of one or two values the median is the mean, for which the formula
        of many is too large, never too small.
    """
    count = len(squares)
    mean = sum(squares) / count
    return float((mean * min(1.0, _OF_MEDIAN / count)) ** 0.5)
