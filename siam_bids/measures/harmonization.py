"""ComBat: volumes without what sites or scanners add to them, covariates preserved.

Johnson, Li and Rabinovic, Biostatistics 2007 (empirical Bayes); Fortin et al., NeuroImage 2018
(brain measures, covariates preserved); Pomponio et al., NeuroImage 2020 (volumes of regions).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from siam_bids.errors import UsageError
from siam_bids.measures.formula import level_name
from siam_bids.measures.outliers import check_columns
from siam_bids.measures.volumes import INTRACRANIAL
from siam_bids.support.tsv import number_of

logger = logging.getLogger(__name__)

HARMONIZED = "harmonized_mL"
"""Ending of the names of harmonized volumes."""

PRESERVED = ("age", "sex", INTRACRANIAL)
"""Columns whose effects on volumes are kept, where they are there."""

FEWEST = 5
"""Scans of a site below which its shift and spread cannot be estimated."""

_CONFOUNDED = 0.9
"""Share of a covariate's variance that sites may explain."""

DICTIONARY: dict[str, dict[str, Any]] = {
    "protocol": {"Description": "The scans that were harmonized together."},
    "site": {"Description": "Level of the column of --harmonize."},
    "tissue": {"Description": "Tissue."},
    "scans": {"Description": "Included scans of the site with all values."},
    "mean_before_mL": {"Description": "Mean volume as measured.", "Units": "mL"},
    "mean_after_mL": {"Description": "Mean volume after harmonization.", "Units": "mL"},
    "shift_mL": {"Description": "What the site adds, as ComBat estimates it.", "Units": "mL"},
    "scale": {
        "Description": "Spread of the site relative to all, as ComBat estimates it.",
        "Units": "1",
    },
}
"""Meaning of the columns of `Harmonization.effects`, as a BIDS data dictionary."""

NO_EFFECTS = pd.DataFrame(columns=list(DICTIONARY))

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Harmonization:
    """Volumes without effects of sites, and these.

    Attributes
    ----------
    volumes
        Columns `GM_harmonized_mL` and so on, rows as the table's; NaN where a value is missing.
    effects
        Columns as in `DICTIONARY`.
    """

    volumes: pd.DataFrame
    effects: pd.DataFrame


def harmonize(
    table: pd.DataFrame, tissues: Sequence[str], site: str, excluded: Collection[str] = ()
) -> Harmonization:
    """Adjust the volumes of every protocol by ComBat; age, sex and TIV are preserved.

    Scans count as independent: for repeated scans of a person that is an approximation.

    Parameters
    ----------
    table
        One row per scan: protocol, scan, volumes in mL by tissue, the column `site`, covariates.
    tissues
        Columns to adjust; TIV is preserved instead.
    site
        Column of the sites or scanners.
    excluded
        Scans that are adjusted, but from which nothing is estimated.

    Raises
    ------
    UsageError
        No such column, or no protocol can be harmonized.
    """
    check_columns(table, [site], "--harmonize")
    kept = [name for name in PRESERVED if name in table and table[name].notna().any()]
    tissues = [name for name in tissues if name != INTRACRANIAL]
    volumes = pd.DataFrame(
        np.nan, index=table.index, columns=[f"{name}_{HARMONIZED}" for name in tissues]
    )
    effects, refused = [], []
    for protocol, scans in table.groupby("protocol", sort=True):
        complete = scans.dropna(subset=[site, *kept, *tissues])
        counted = ~complete["scan"].isin(list(excluded)).to_numpy()
        sites = complete[site].map(level_name)
        covariates = _covariates(complete[kept])
        reason = _refusal(sites[counted], covariates[counted], site)
        known = sites.isin(sites[counted].unique()).to_numpy()
        if reason:
            refused.append(f"{protocol}: {reason}")
            continue
        found = _combat(
            complete.loc[known, tissues].to_numpy(dtype=np.float64),
            sites[known].to_numpy(),
            covariates[known].to_numpy(),
            counted[known],
        )
        volumes.loc[complete.index[known]] = found.adjusted
        effects.append(_effects(complete[counted], sites[counted], volumes, tissues, found))
        effects[-1].insert(0, "protocol", str(protocol))
        if len(complete) < len(scans):
            logger.warning(
                "%s: %s cannot be harmonized without all of %s.",
                protocol, number_of(len(scans) - len(complete), "scan"), ", ".join([site, *kept]),
            )  # fmt: skip
    for reason in refused:
        logger.warning("Not harmonized: %s", reason)
    if not effects:
        raise UsageError(f"--harmonize {site} is not possible. {refused[0]}")
    return Harmonization(volumes=volumes, effects=pd.concat(effects, ignore_index=True))


def _covariates(table: pd.DataFrame) -> pd.DataFrame:
    """Return covariates as numbers, words as indicators of all levels but one, that vary."""
    numbers = pd.get_dummies(table, drop_first=True).astype(np.float64)
    return numbers.loc[:, (numbers.max() > numbers.min()).to_numpy()]


def _refusal(sites: pd.Series[str], covariates: pd.DataFrame, column: str) -> str:
    """Say why scans cannot be harmonized; empty if they can."""
    counts = sites.value_counts().sort_index()
    if len(counts) < 2:
        return f"there is one {column} only."
    few = counts[counts < FEWEST]
    if len(few):
        named = ", ".join(f"{name} has {count}" for name, count in few.items())
        return (
            f"a {column} needs {FEWEST} scans or more with all values, {named}. Leave such scans "
            f"out, for example --exclude {column}={few.index[0]}."
        )
    for name, values in covariates.items():
        between = values.groupby(sites.to_numpy()).transform("mean")
        total = float(((values - values.mean()) ** 2).sum())
        if total and float(((between - values.mean()) ** 2).sum()) / total > _CONFOUNDED:
            return f"{column} and {name} are nearly collinear; their effects cannot be separated."
    design = np.column_stack([pd.get_dummies(sites).to_numpy(dtype=np.float64), covariates])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return f"{column} and the covariates {', '.join(map(str, covariates))} cannot be separated."
    if len(design) < design.shape[1] + FEWEST:
        return f"{len(design)} scans are too few for {design.shape[1]} sites and covariates."
    return ""


@dataclass(frozen=True, kw_only=True)
class _Combat:
    """Adjusted values (scans, tissues); shift in their unit and scale (sites, tissues)."""

    adjusted: Array
    names: tuple[str, ...]
    shift: Array
    scale: Array


def _combat(
    values: Array, sites: npt.NDArray[Any], covariates: Array, counted: npt.NDArray[np.bool_]
) -> _Combat:
    """Adjust values (scans, tissues) for their sites; estimate from the counted rows alone."""
    names, codes = np.unique(sites, return_inverse=True)
    indicators = np.eye(len(names))[codes]
    own = values[counted]
    design = np.column_stack([indicators, covariates])[counted]
    coefficients, *_ = np.linalg.lstsq(design, own, rcond=None)
    weights = indicators[counted].mean(axis=0)
    expected = weights @ coefficients[: len(names)] + covariates @ coefficients[len(names) :]
    deviation = np.sqrt(np.square(own - design @ coefficients).mean(axis=0))
    deviation = np.where(deviation > 0, deviation, 1.0)
    standard = (values - expected) / deviation
    shifts, scales = [], []
    for code in range(len(names)):
        shift, variance = _shrunk(standard[counted & (codes == code)])
        shifts.append(shift)
        scales.append(np.sqrt(variance))
    shift, scale = np.array(shifts), np.array(scales)
    adjusted = (standard - shift[codes]) / scale[codes] * deviation + expected
    return _Combat(
        adjusted=adjusted, names=tuple(map(str, names)), shift=shift * deviation, scale=scale
    )


def _shrunk(values: Array) -> tuple[Array, Array]:
    """Return mean and variance of one site's standardized values (scans, tissues) by tissue.

    Drawn towards their distribution over tissues, normal and inverse gamma (Johnson et al. 2007,
    section 3.2); with fewer than three tissues there is none.
    """
    count = len(values)
    mean, variance = values.mean(axis=0), values.var(axis=0, ddof=1)
    variance = np.where(variance > 0, variance, 1.0)
    if values.shape[1] < 3 or not mean.var() or not variance.var():
        return mean, variance
    centre, spread = mean.mean(), mean.var(ddof=1)
    m, s = variance.mean(), variance.var(ddof=1)
    shape, rate = (2 * s + m**2) / s, (m * s + m**3) / s
    shift, scale = mean, variance
    for _ in range(1000):
        before = shift, scale
        shift = (spread * count * mean + scale * centre) / (spread * count + scale)
        squares = np.square(values - shift).sum(axis=0)
        scale = (squares / 2 + rate) / (count / 2 + shape - 1)
        if np.allclose(shift, before[0], rtol=1e-8) and np.allclose(scale, before[1], rtol=1e-8):
            break
    return shift, scale


def _effects(
    scans: pd.DataFrame,
    sites: pd.Series[str],
    volumes: pd.DataFrame,
    tissues: Sequence[str],
    found: _Combat,
) -> pd.DataFrame:
    rows = []
    for code, name in enumerate(found.names):
        own = scans.index[(sites == name).to_numpy()]
        for place, tissue in enumerate(tissues):
            rows.append(
                {
                    "site": name,
                    "tissue": tissue,
                    "scans": len(own),
                    "mean_before_mL": float(scans.loc[own, tissue].mean()),
                    "mean_after_mL": float(volumes.loc[own, f"{tissue}_{HARMONIZED}"].mean()),
                    "shift_mL": found.shift[code, place],
                    "scale": found.scale[code, place],
                }
            )
    return pd.DataFrame(rows)
