"""Outliers among the scans of each protocol, by median and MAD."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from siam_bids.errors import UnknownColumnError, UsageError, known_names
from siam_bids.support.tsv import some

logger = logging.getLogger(__name__)

LIMIT = 3.5
"""|robust z| beyond this is an outlier (Iglewicz and Hoaglin, How to Detect Outliers, 1993)."""

FEWEST = 5
"""Scans of a protocol below which nothing is called an outlier."""

KEYS = ("participant_id", "session_id", "contrast", "protocol", "scan")
"""What names one scan, first in every table of the group."""

COLUMNS = (*KEYS, "measure", "value", "median", "expected", "robust_z", "scans", "reason")


def robust_z(
    values: npt.NDArray[np.float64], counted: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.float64]:
    """Return (values - median) / (1.4826 MAD), NaN for NaN; zeros if all are the same.

    Where more than half of the values agree, so that MAD is 0, the mean absolute deviation times
    sqrt(pi / 2) takes its place; both estimate the standard deviation of normal data. Median and
    MAD are those of the values that are `counted` (all without).
    """
    among = values if counted is None else values[counted]
    distance = values - np.nanmedian(among)
    spread = np.abs(among - np.nanmedian(among))
    scale = 1.4826 * np.nanmedian(spread)
    if scale == 0:
        scale = np.sqrt(np.pi / 2) * np.nanmean(spread)
    return np.asarray(distance / scale if scale > 0 else np.where(np.isnan(distance), np.nan, 0.0))


def find_outliers(
    table: pd.DataFrame,
    measures: Sequence[str],
    *,
    adjust: Sequence[str] = (),
    excluded: Collection[str] = (),
) -> pd.DataFrame:
    """List every outlier within its protocol, the farthest first.

    Parameters
    ----------
    table
        One row per scan: participant_id, session_id, contrast, protocol, scan, the measures,
        covariates.
    measures
        Numeric columns to look at.
    adjust
        Columns regressed out first, by Huber's M-estimator so that outliers do not bend the fit
        (statsmodels RLM); text columns enter as categories. A covariate is not adjusted for itself,
        and protocols with too few scans are not adjusted, which the reason then does not claim.
    excluded
        Scans that are compared with the others, but not the others with them.

    Raises
    ------
    UsageError
        A column of `adjust` is absent or empty.
    """
    check_columns(table, adjust, "--adjust-for")
    found: list[dict[Hashable, Any]] = []
    for protocol, scans in table.groupby("protocol", sort=True):
        counted = ~scans["scan"].isin(list(excluded)).to_numpy()
        unadjusted = []
        for measure in _measures(scans, measures, adjust, counted):
            found += measure.outliers(scans, str(protocol))
            if measure.expected is None and {*adjust} - {measure.name}:
                unadjusted.append(measure.name)
        if unadjusted:
            logger.warning(
                "%s: too few scans have %s: outliers are detected without adjustment in %s.",
                protocol, ", ".join(adjust), some(unadjusted),
            )  # fmt: skip
    listed = pd.DataFrame(found, columns=list(COLUMNS))
    order = listed["robust_z"].astype(float).abs().sort_values(ascending=False, kind="stable").index
    return listed.loc[order].reset_index(drop=True)


@dataclass(frozen=True, kw_only=True)
class _Measure:
    """One measure of the scans of a protocol.

    Attributes
    ----------
    values, known
        (scans,) values, and which of them the others are compared with.
    expected
        (scans,) values that the covariates `adjusted` let expect; None without adjustment.
    """

    name: str
    values: npt.NDArray[np.float64]
    known: npt.NDArray[np.bool_]
    expected: npt.NDArray[np.float64] | None
    adjusted: tuple[str, ...]

    @classmethod
    def of(
        cls, scans: pd.DataFrame, name: str, adjust: Sequence[str], known: npt.NDArray[np.bool_]
    ) -> _Measure:
        values = scans[name].to_numpy(dtype=np.float64)
        expected = _expected(values, scans[list(adjust)], known) if adjust else None
        adjusted = tuple(adjust) if expected is not None else ()
        return cls(name=name, values=values, known=known, expected=expected, adjusted=adjusted)

    def outliers(self, scans: pd.DataFrame, protocol: str) -> list[dict[Hashable, Any]]:
        """Return a row for each scan beyond the limit."""
        away = self.values if self.expected is None else self.values - self.expected
        score = robust_z(away, self.known)
        keys = scans[list(KEYS)].to_dict("records")
        median = float(np.median(self.values[self.known]))
        return [
            {
                **keys[place],
                "measure": self.name,
                "value": self.values[place],
                "median": median,
                "expected": np.nan if self.expected is None else self.expected[place],
                "robust_z": score[place],
                "scans": int(self.known.sum()),
                "reason": f"{self.name} {self.values[place]:.4g} "
                f"{self._words(int(place), score[place], median, protocol)}"
                f"robust z {score[place]:+.1f}).",
            }
            for place in np.flatnonzero(np.abs(score) > LIMIT)
        ]

    def _words(self, place: int, score: float, median: float, protocol: str) -> str:
        side = "above" if score > 0 else "below"
        if self.expected is None:
            return f"is far {side} the other {protocol} scans (median {median:.4g}, "
        given = ", ".join(self.adjusted)
        expected = f"{self.expected[place]:.4g}"
        return f"is far {side} the {expected} expected of a {protocol} scan given {given} ("


def _measures(
    scans: pd.DataFrame,
    names: Sequence[str],
    adjust: Sequence[str],
    counted: npt.NDArray[np.bool_],
) -> Iterator[_Measure]:
    """Yield the measures of a protocol that enough of the scans that count have."""
    for name in names:
        known = counted & np.isfinite(scans[name].to_numpy(dtype=np.float64))
        if known.sum() >= FEWEST:
            yield _Measure.of(scans, name, [each for each in adjust if each != name], known)


def check_columns(
    table: pd.DataFrame, names: Sequence[str], where: str, *, empty: bool = False
) -> None:
    """Raise `UsageError` unless all `names` are columns of `table`, with values or `empty`."""
    absent = [name for name in names if name not in table]
    if absent:
        raise UnknownColumnError(
            f"{where} names {', '.join(absent)}, but no table has such a column.",
            known_names(absent[0], map(str, table), "columns"),
        )
    without = [name for name in names if table[name].isna().all()]
    if without and not empty:
        raise UsageError(
            f"{where} names {', '.join(without)}, but this column is empty for all scans.",
            "Fill the column in participants.tsv or sessions.tsv, or leave it out.",
        )


def _expected(
    values: npt.NDArray[np.float64], covariates: pd.DataFrame, counted: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64] | None:
    """Return what a robust linear fit to the counted values gives; NaN without a covariate.

    None with fewer than ten complete scans beyond the number of coefficients, or nothing to fit.
    """
    import statsmodels.api as sm

    design = pd.get_dummies(covariates, drop_first=True, dummy_na=False).astype(np.float64)
    complete = covariates.notna().all(axis=1).to_numpy()
    fitted = complete & counted
    if not fitted.any():
        return None
    varies = (design[fitted].max() > design[fitted].min()).to_numpy()
    same = (design.loc[:, ~varies] == design.loc[fitted, ~varies].iloc[0]).all(axis=1).to_numpy()
    matrix = sm.add_constant(design.to_numpy()[:, varies], has_constant="add")
    if fitted.sum() < matrix.shape[1] + 10 or np.ptp(values[fitted]) == 0:
        return None
    model = sm.RLM(values[fitted], matrix[fitted], M=sm.robust.norms.HuberT())
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of convergence: the last weights are good enough here
        expected = matrix @ model.fit().params
    return np.where(complete & same, expected, np.nan)
