"""Linear models of every tissue's volume: ordinary least squares, mixed where people repeat."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd

from siam_bids.errors import UsageError
from siam_bids.measures.outliers import check_columns
from siam_bids.measures.volumes import INTRACRANIAL

logger = logging.getLogger(__name__)

DICTIONARY = {
    "contrast": {"Description": "BIDS suffix of the scans that were modelled together."},
    "tissue": {"Description": "Tissue whose volume in mL is explained."},
    "term": {"Description": "Term of the formula."},
    "estimate": {"Description": "Change of the volume per unit of the term.", "Units": "mL"},
    "ci_low": {"Description": "Lower end of the 95 % confidence interval.", "Units": "mL"},
    "ci_high": {"Description": "Upper end of the 95 % confidence interval.", "Units": "mL"},
    "standard_error": {"Description": "Standard error of the estimate.", "Units": "mL"},
    "p": {"Description": "Two-sided p value: t for least squares, z for mixed models."},
    "q": {
        "Description": "p corrected for the false discovery rate over the tissues, for each "
        "contrast and term (Benjamini and Hochberg, 1995)."
    },
    "estimate_percent": {
        "Description": "Estimate in percent of the tissue's mean volume.",
        "Units": "%",
    },
    "ci_low_percent": {"Description": "ci_low in percent of the mean volume.", "Units": "%"},
    "ci_high_percent": {"Description": "ci_high in percent of the mean volume.", "Units": "%"},
    "scans": {"Description": "Scans with all values."},
    "participants": {"Description": "Participants they belong to."},
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


def fit_tissues(table: pd.DataFrame, formula: str, tissues: Sequence[str]) -> pd.DataFrame:
    """Fit one model per contrast and tissue.

    Parameters
    ----------
    table
        One row per scan: participant_id, contrast, volumes in mL by tissue, covariates.
    formula
        `GM ~ age + C(sex) + TIV` in the language of R and patsy. The left side is replaced by
        each tissue in turn; ICV is read as TIV.
    tissues
        Columns to explain. TIV is left out where the formula corrects for it.

    Returns
    -------
    Columns as in `DICTIONARY`, one row per contrast, tissue and term; the intercept is left out.

    Raises
    ------
    UsageError
        The formula cannot be read, or names columns that are absent or empty, or no contrast has
        enough scans for it.
    """
    right = _right_side(formula)
    table = table.assign(ICV=table[INTRACRANIAL]) if INTRACRANIAL in table else table
    names = _variables(right)
    check_columns(table, names, "--formula")
    corrected = {"ICV", INTRACRANIAL} & set(names)
    explained = [name for name in tissues if not (name == INTRACRANIAL and corrected)]
    rows = []
    for contrast, scans in table.groupby("contrast", sort=True):
        complete = scans.dropna(subset=names)
        for tissue in explained:
            usable = complete.dropna(subset=[tissue])
            if usable[tissue].max() > usable[tissue].min():
                rows += _fit(usable, str(contrast), tissue, right)
    if not rows:
        raise UsageError(
            f"--formula {formula!r} can be fitted to no contrast: too few scans have all of "
            f"{', '.join(names) or 'its columns'}.",
        )
    found = pd.DataFrame(rows)
    found["q"] = np.nan
    for _, part in found.groupby(["contrast", "term"]):
        found.loc[part.index, "q"] = _false_discovery_rate(part["p"].to_numpy(dtype=np.float64))
    return found[list(DICTIONARY)]


def _right_side(formula: str) -> str:
    left, tilde, right = formula.partition("~")
    if not tilde or not right.strip() or not re.fullmatch(r"\s*\w*\s*", left):
        raise UsageError(
            f"--formula {formula!r} is no formula.", 'For example "GM ~ age + C(sex) + TIV".'
        )
    return right.strip()


def _variables(right: str) -> list[str]:
    """Return the columns that the right side of a formula uses."""
    from formulaic import Formula
    from formulaic.errors import FormulaicError

    try:
        return sorted(map(str, Formula(right).required_variables))
    except (FormulaicError, SyntaxError, ValueError) as error:
        raise UsageError(f"--formula cannot be read: {error}.") from error


def _fit(scans: pd.DataFrame, contrast: str, tissue: str, right: str) -> list[dict[str, object]]:
    """Return one row per term of one model; none if there are too few scans for it."""
    import statsmodels.formula.api as smf

    people = scans["participant_id"]
    repeated = bool(people.duplicated().any())
    data = scans.assign(_volume=scans[tissue].astype(float))
    method = "mixed" if repeated else "ols"
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            plain = smf.ols(f"_volume ~ {right}", data)
            if plain.df_resid < 1 or np.linalg.matrix_rank(plain.exog) < plain.exog.shape[1]:
                logger.warning(
                    "%s, %s: too few or too alike scans for the formula", contrast, tissue
                )
                return []
            if repeated:
                fit = smf.mixedlm(f"_volume ~ {right}", data, groups=people).fit(reml=True)
                method = "mixed" if fit.converged else "mixed, not converged"
            else:
                fit = plain.fit()
    except (ValueError, np.linalg.LinAlgError) as error:
        logger.warning("%s, %s: the formula cannot be fitted: %s", contrast, tissue, error)
        return []
    for warning in caught:
        logger.debug("%s, %s: %s", contrast, tissue, warning.message)
    bounds = fit.conf_int()
    mean = float(data["_volume"].mean())
    rows: list[dict[str, object]] = []
    for term in (name for name in plain.exog_names if name != "Intercept"):
        low, high = (float(bound) for bound in bounds.loc[term])
        estimate = float(fit.params[term])
        rows.append(
            {
                "contrast": contrast,
                "tissue": tissue,
                "term": term,
                "estimate": estimate,
                "ci_low": low,
                "ci_high": high,
                "standard_error": float(fit.bse[term]),
                "p": float(fit.pvalues[term]),
                "estimate_percent": 100 * estimate / mean,
                "ci_low_percent": 100 * low / mean,
                "ci_high_percent": 100 * high / mean,
                "scans": len(data),
                "participants": int(people.nunique()),
                "method": method,
            }
        )
    return rows


def _false_discovery_rate(p: np.ndarray) -> np.ndarray:
    """Return Benjamini-Hochberg q values; NaN stays NaN and does not count."""
    from scipy.stats import false_discovery_control

    q = np.full(len(p), np.nan)
    known = np.isfinite(p)
    if known.any():
        q[known] = false_discovery_control(p[known])
    return q
