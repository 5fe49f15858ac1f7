"""Scans that stand apart from the others of their contrast, by median and MAD."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from siam_bids.errors import UsageError

LIMIT = 3.5
"""|robust z| beyond this is an outlier (Iglewicz and Hoaglin, How to Detect Outliers, 1993)."""

FEWEST = 5
"""Scans of a contrast below which nothing is called an outlier."""

COLUMNS = (
    "participant_id", "session_id", "contrast", "scan", "measure", "value", "median", "expected",
    "robust_z", "reason",
)  # fmt: skip


def robust_z(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return (values - median) / (1.4826 MAD), NaN for NaN; zeros if all values are the same.

    Where more than half of the values agree, so that MAD is 0, the mean absolute deviation times
    sqrt(pi / 2) takes its place; both estimate the standard deviation of normal data.
    """
    distance = values - np.nanmedian(values)
    scale = 1.4826 * np.nanmedian(np.abs(distance))
    if scale == 0:
        scale = np.sqrt(np.pi / 2) * np.nanmean(np.abs(distance))
    return np.asarray(distance / scale if scale > 0 else np.where(np.isnan(distance), np.nan, 0.0))


def find_outliers(
    table: pd.DataFrame, measures: Sequence[str], *, adjust: Sequence[str] = ()
) -> pd.DataFrame:
    """List every value that stands apart within its contrast, the farthest first.

    Parameters
    ----------
    table
        One row per scan: participant_id, session_id, contrast, scan, the measures, covariates.
    measures
        Numeric columns to look at.
    adjust
        Columns regressed out first, by Huber's M-estimator so that outliers do not bend the fit
        (statsmodels RLM); text columns enter as categories. A covariate is not adjusted for itself,
        and contrasts with too few scans are not adjusted, which the reason then does not claim.

    Raises
    ------
    UsageError
        A column of `adjust` is absent or empty.
    """
    check_columns(table, adjust, "--adjust-for")
    found = []
    for contrast, scans in table.groupby("contrast", sort=True):
        if len(scans) < FEWEST:
            continue
        keys = scans[list(COLUMNS[:4])].to_dict("records")
        for measure in measures:
            values = scans[measure].to_numpy(dtype=np.float64)
            if np.isfinite(values).sum() < FEWEST:
                continue
            used = [name for name in adjust if name != measure]
            left = _residuals(values, scans[used]) if used else None
            used = [] if left is None else used
            score = robust_z(values if left is None else left)
            for place in np.flatnonzero(np.abs(score) > LIMIT):
                middle = float(np.nanmedian(values))
                side = "above" if score[place] > 0 else "below"
                expected = np.nan if left is None else values[place] - left[place]
                words = f"is far {side} the other {contrast} scans (median {middle:.4g}, "
                if used:
                    words = f"is far {side} the {expected:.4g} expected of a {contrast} scan "
                    words += f"given {', '.join(used)} ("
                found.append(
                    {
                        **keys[place],
                        "measure": measure,
                        "value": values[place],
                        "median": middle,
                        "expected": expected,
                        "robust_z": score[place],
                        "reason": f"{measure} {values[place]:.4g} {words}"
                        f"robust z {score[place]:+.1f}).",
                    }
                )
    listed = pd.DataFrame(found, columns=list(COLUMNS))
    order = listed["robust_z"].astype(float).abs().sort_values(ascending=False, kind="stable").index
    return listed.loc[order].reset_index(drop=True)


def check_columns(table: pd.DataFrame, names: Sequence[str], where: str) -> None:
    """Raise `UsageError` unless all `names` are columns of `table` with values in them."""
    absent = [name for name in names if name not in table]
    if absent:
        raise UsageError(
            f"{where} names {', '.join(absent)}, but no table has such a column.",
            f"There are: {', '.join(map(str, table))}.",
        )
    empty = [name for name in names if table[name].isna().all()]
    if empty:
        raise UsageError(
            f"{where} names {', '.join(empty)}, but no scan has a value of it.",
            "Fill the column in participants.tsv or sessions.tsv, or leave it out.",
        )


def _residuals(
    values: npt.NDArray[np.float64], covariates: pd.DataFrame
) -> npt.NDArray[np.float64] | None:
    """Return what a robust linear fit leaves; NaN where a value or covariate is missing.

    None with fewer than ten complete scans beyond the number of coefficients, or nothing to fit.
    """
    import statsmodels.api as sm

    design = pd.get_dummies(covariates, drop_first=True, dummy_na=False).astype(np.float64)
    design = design.loc[:, design.max() > design.min()]
    complete = np.isfinite(values) & covariates.notna().all(axis=1).to_numpy()
    matrix = sm.add_constant(design.to_numpy()[complete], has_constant="add")
    if complete.sum() < matrix.shape[1] + 10 or np.ptp(values[complete]) == 0:
        return None
    left = np.full(len(values), np.nan)
    model = sm.RLM(values[complete], matrix, M=sm.robust.norms.HuberT())
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of convergence: the last weights are good enough here
        left[complete] = model.fit().resid
    return left
