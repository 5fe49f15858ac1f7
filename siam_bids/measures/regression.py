"""Linear models of every tissue's volume: ordinary least squares, mixed where people repeat."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from siam_bids.errors import UsageError
from siam_bids.measures.formula import Formula, is_words, parse
from siam_bids.measures.outliers import check_columns
from siam_bids.measures.volumes import INTRACRANIAL
from siam_bids.support.tsv import some

logger = logging.getLogger(__name__)

DICTIONARY: dict[str, dict[str, Any]] = {
    "protocol": {"Description": "The scans that were modelled together."},
    "tissue": {
        "Description": "Dependent variable: the volume of a tissue in mL, or the column that "
        "stands "
        "on the left side of the formula, in its unit."
    },
    "term": {"Description": "Term of the formula."},
    "estimate": {"Description": "Change of the dependent variable per unit of the term."},
    "ci_low": {"Description": "Lower end of the 95 % confidence interval."},
    "ci_high": {"Description": "Upper end of the 95 % confidence interval."},
    "standard_error": {"Description": "Standard error of the estimate."},
    "p": {"Description": "Two-sided p value: t for least squares, z for mixed models."},
    "q": {
        "Description": "p corrected for the false discovery rate over the tissues, for each "
        "protocol and term (Benjamini and Hochberg, 1995)."
    },
    "estimate_percent": {
        "Description": "Estimate in percent of the mean of the dependent variable.",
        "Units": "%",
    },
    "ci_low_percent": {"Description": "ci_low in percent of that mean.", "Units": "%"},
    "ci_high_percent": {"Description": "ci_high in percent of that mean.", "Units": "%"},
    "scans": {"Description": "Scans in the model: those with all values."},
    "participants": {"Description": "Participants they belong to."},
    "left_out": {"Description": "Scans of the protocol that are not in the model."},
    "formula": {"Description": "The model."},
    "method": {
        "Description": "How it was fitted.",
        "Levels": {
            "ols": "ordinary least squares",
            "mixed": "linear mixed model with a random intercept per participant (REML)",
            "mixed, not converged": "the same, but the fit did not converge: do not use",
        },
    },
}
"""Meaning of the columns of `fit_tissues`, as a BIDS data dictionary."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """The result of a formula.

    Attributes
    ----------
    table
        Columns as in `DICTIONARY`, one row per protocol, tissue and term.
    left_out
        Scans that no model has, and why.
    """

    table: pd.DataFrame
    formula: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def dictionary(self) -> dict[str, Any]:
        """Meaning of the columns, with the formula and the scans that were left out."""
        return {
            **DICTIONARY,
            "formula": {**DICTIONARY["formula"], "Formula": self.formula},
            "left_out": {**DICTIONARY["left_out"], "Scans": dict(self.left_out)},
        }


NO_STATISTICS = Statistics(table=pd.DataFrame(columns=list(DICTIONARY)))


def fit_tissues(
    table: pd.DataFrame,
    formula: str,
    tissues: Sequence[str],
    excluded: Mapping[str, str] | None = None,
) -> Statistics:
    """Fit one model per protocol and tissue.

    Parameters
    ----------
    table
        One row per scan: participant_id, protocol, scan, volumes in mL by tissue, covariates.
    formula
        `~ age + C(sex) + TIV` in the language of `siam_bids.measures.formula`; ICV is read as TIV.
        On the left side stand the columns to explain; none means `tissues`.
    tissues
        Columns to explain without a left side. TIV is left out where the formula corrects for it.
    excluded
        Scans that do not count, and why.

    Returns
    -------
    One row per protocol, tissue and term; the intercept is left out.

    Raises
    ------
    UsageError
        The formula cannot be read, or names columns that are absent, empty or no numbers, or no
        protocol has enough scans for it.
    """
    asked = parse(formula)
    table = table.assign(ICV=table[INTRACRANIAL]) if INTRACRANIAL in table else table
    check_columns(table, [*asked.left, *asked.columns], "--formula")
    words = [name for name in asked.left if is_words(table[name])]
    if words:
        raise UsageError(f"--formula models {words[0]}, which contains text, not numbers.")
    corrected = {"ICV", INTRACRANIAL} & {*asked.columns}
    explained = asked.left or [name for name in tissues if not (name == INTRACRANIAL and corrected)]
    rows: list[dict[str, object]] = []
    left_out: dict[str, str] = {}
    excluded = excluded or {}
    for protocol, scans in table.groupby("protocol", sort=True):
        design = asked.design(scans.loc[~scans["scan"].isin(list(excluded))])
        left_out |= _left_out(scans, design, asked)
        left_out |= {scan: excluded[scan] for scan in scans["scan"] if scan in excluded}
        rows += _fit_protocol(scans, design, str(protocol), explained)
    if not rows:
        raise UsageError(
            f"--formula {asked.text!r} cannot be fitted in any protocol: too few scans have all of "
            f"{', '.join(asked.columns) or 'its columns'}, or these do not vary enough.",
        )
    found = pd.DataFrame(rows)
    found["formula"] = found["tissue"] + f" ~ {asked.right}"
    found["q"] = np.nan
    for _, part in found.groupby(["protocol", "term"]):
        found.loc[part.index, "q"] = _false_discovery_rate(part["p"].to_numpy(dtype=np.float64))
    return Statistics(table=found[list(DICTIONARY)], formula=asked.text, left_out=left_out)


def _left_out(scans: pd.DataFrame, design: pd.DataFrame, asked: Formula) -> dict[str, str]:
    """Say why scans are in no model."""
    reasons = {}
    for place in scans.index.difference(design.index):
        lacking = [name for name in asked.columns if pd.isna(scans.loc[place, name])]
        why = f"no {', '.join(lacking)}" if lacking else "the formula has no value"
        reasons[str(scans.loc[place, "scan"])] = why
    return reasons


def _fit_protocol(
    scans: pd.DataFrame, design: pd.DataFrame, protocol: str, explained: Sequence[str]
) -> list[dict[str, object]]:
    """Fit all models of one protocol; what could not be, in one warning."""
    rows, impossible, doubtful = [], [], []
    for tissue in explained:
        volume = scans.loc[design.index, tissue].dropna().astype(float)
        if volume.empty or not volume.max() > volume.min():
            continue
        people = scans.loc[volume.index, "participant_id"]
        own, sound = _fit(volume, design.loc[volume.index], people)
        if not own:
            impossible.append(tissue)
        elif not sound:
            doubtful.append(tissue)
        about = {"protocol": protocol, "tissue": tissue, "left_out": len(scans) - len(volume)}
        rows += [about | row for row in own]
    if design.empty:
        logger.warning("%s: no scans for the formula, or a category with a single level.", protocol)
    elif impossible:
        logger.warning(
            "%s: too few scans for the formula, or its terms are collinear: %s is left out.",
            protocol, some(impossible),
        )  # fmt: skip
    if doubtful:
        logger.warning("%s: the mixed model did not converge: %s.", protocol, some(doubtful))
    return rows


def _fit(
    volume: pd.Series[float], design: pd.DataFrame, people: pd.Series[str]
) -> tuple[list[dict[str, object]], bool]:
    """Return one row per term of one model, and whether the fit converged.

    No rows if there are too few scans for it.
    """
    import statsmodels.api as sm

    exog = design.to_numpy()
    if len(exog) <= exog.shape[1] or np.linalg.matrix_rank(exog) < exog.shape[1]:
        return [], True
    method = "ols"
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if people.duplicated().any():
                fit = sm.MixedLM(volume, design, groups=people).fit(reml=True)
                method = "mixed" if fit.converged else "mixed, not converged"
            else:
                fit = sm.OLS(volume, design).fit()
            bounds = fit.conf_int()
    except (ValueError, np.linalg.LinAlgError) as error:
        logger.debug("%s: %s", volume.name, error)
        return [], True
    for warning in caught:
        logger.debug("%s: %s", volume.name, warning.message)
    mean = float(volume.mean())
    rows: list[dict[str, object]] = []
    for term in (name for name in design if name != "Intercept"):
        low, high = (float(bound) for bound in bounds.loc[term])
        estimate = float(fit.params[term])
        rows.append(
            {
                "term": term,
                "estimate": estimate,
                "ci_low": low,
                "ci_high": high,
                "standard_error": float(fit.bse[term]),
                "p": float(fit.pvalues[term]),
                "estimate_percent": 100 * estimate / mean,
                "ci_low_percent": 100 * low / mean,
                "ci_high_percent": 100 * high / mean,
                "scans": len(volume),
                "participants": int(people.nunique()),
                "method": method,
            }
        )
    return rows, method != "mixed, not converged"


def _false_discovery_rate(p: np.ndarray) -> np.ndarray:
    """Return Benjamini-Hochberg q values; NaN stays NaN and does not count."""
    from scipy.stats import false_discovery_control

    q = np.full(len(p), np.nan)
    known = np.isfinite(p)
    if known.any():
        q[known] = false_discovery_control(p[known])
    return q
