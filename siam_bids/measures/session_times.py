"""When the sessions of participants were, and their order."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from siam_bids.support.tsv import as_number, natural, some

logger = logging.getLogger(__name__)

_PER_YEAR = {"year": 1.0, "yr": 1.0, "y": 1.0, "month": 12.0, "week": 365.25 / 7, "day": 365.25}
"""Units of age."""

_TOP = 89
"""BIDS writes ages above it as 89+."""


def session_times(
    visits: Sequence[tuple[str, str]],
    dates: Sequence[str | None],
    ages: Sequence[str | None],
    units: Sequence[str],
) -> pd.DataFrame:
    """Return when the session of each scan was, by `acq_time`, else by `age`.

    A participant's sessions are all known by the same of both, or unknown, with a warning where
    some have a time.

    Parameters
    ----------
    visits
        Participant and session of each scan; a session that is empty has no time.
    dates, ages
        Text of each scan; a session's first date counts for all its scans.
    units
        Of each age; years if empty.

    Returns
    -------
    One row per scan: `years`, from no particular zero and NaN if unknown; `exact`, which ages such
    as 89+ are not.
    """
    since = as_times(pd.Series([date or "" for date in dates], dtype="str")) - pd.Timestamp(
        "1900-01-01", tz="UTC"
    )
    scans = pd.DataFrame(
        {
            "person": [person for person, _ in visits],
            "session": [session for _, session in visits],
            # Differences only: BIDS shifts dates to before 1925 for privacy.
            "date": since.dt.total_seconds() / 31557600.0,
            "age": [
                as_number(age or "") / _per_year(unit)
                for age, unit in zip(ages, units, strict=True)
            ],
            "exact": [not (age or "").endswith("+") for age in ages],
            "units": [*units],
        }
    )
    odd_units = (
        (scans["session"] != "") & scans["date"].isna() & scans["units"].map(_per_year).isna()
    )
    unknown = scans.loc[odd_units, "units"]
    if len(unknown):
        logger.warning(
            "age has unknown Units (%s) and does not order sessions: use year, month, week or day.",
            some(list(dict.fromkeys(unknown))),
        )
    keys = ["person", "session"]
    sessions = scans.loc[scans["session"] != ""].groupby(keys, sort=False).min()
    known = sessions[["date", "age"]].notna().groupby("person")
    every, some_known = known.transform("all"), known.transform("any")
    age = sessions["age"].where(every["age"])
    sessions["years"] = sessions["date"].where(every["date"], age)
    sessions["exact"] |= every["date"]
    people = sessions["years"].groupby("person")
    by_label = (people.transform("nunique") < 2) & (people.transform("size") > 1)
    odd = sessions.index[by_label & (some_known & ~every).any(axis=1)]
    if len(odd):
        logger.warning(
            "Sessions are ordered by label, since acq_time or age is known for some of them only: "
            "%s. Complete scans.tsv or sessions.tsv.",
            some(list(dict.fromkeys(str(person) for person, _ in odd))),
        )
    told = ["years", "exact"]
    return scans[keys].join(sessions[told], on=keys)[told]


def _per_year(units: str) -> float:
    return _PER_YEAR.get(units.strip().lower().removesuffix("s") or "year", math.nan)


def top_coded(age: float, units: str) -> str:
    """Write the age of an earlier run's table, in which 89 may have been 89+."""
    top = age >= _TOP and age % 1 == 0 and _per_year(units) == 1
    return "" if math.isnan(age) else f"{age:.10g}" + "+" * top


def session_order(years: float, label: str) -> tuple[Any, ...]:
    """Return by what the sessions of a participant are ordered: time, else label."""
    return math.inf if math.isnan(years) else years, natural(label)


def as_times(cells: pd.Series[str]) -> pd.Series[pd.Timestamp]:
    """Return the time that each cell means, missing for none."""
    return pd.to_datetime(cells, errors="coerce", format="ISO8601", utc=True)
