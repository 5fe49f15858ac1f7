"""Which scans count, and which are compared with each other."""

from __future__ import annotations

import logging
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from siam_bids.errors import UsageError, known_names
from siam_bids.measures.outliers import check_columns
from siam_bids.support.tsv import MISSING, as_number

logger = logging.getLogger(__name__)

INCLUDED = "included"
EXCLUDED_BECAUSE = "excluded_because"
PROTOCOL = "protocol"

SHARED = ("sample", "acq", "ce", "rec", "dir", "mod", "echo", "flip", "inv", "mt", "part", "desc")
"""Entities that distinguish protocols; `run` repeats one, `chunk` is a piece of one."""

_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


_MISWRITTEN = {"=>": ">=", "=<": "<=", "<>": "!=", "><": "!="}


@dataclass(frozen=True, kw_only=True)
class Exclusion:
    """One rule of `--exclude`: a column, a comparison, a value."""

    column: str
    sign: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Exclusion:
        """Take `rating=fail`, `age<18` apart.

        Raises
        ------
        UsageError
            It is not a comparison.
        """
        found = re.fullmatch(r"\s*(.+?)\s*(<=|>=|!=|==|=|<|>)\s*(.+?)\s*", text)
        if not found:
            raise UsageError(
                f"--exclude {text!r} is not a comparison.",
                "For example rating=fail, flag!=pass, 'snr_WM<5'.",
            )
        if meant := _MISWRITTEN.get(found[2] + found[3][0]):
            raise UsageError(f"--exclude {text!r} has an unknown operator.", f"Write {meant}.")
        value = found[3].lower() if found[1] in ("rating", "flag") else found[3]
        return cls(column=found[1], sign=found[2].replace("==", "="), value=value)

    def __str__(self) -> str:
        return f"{self.column} {self.sign} {self.value}"

    def applies(self, table: pd.DataFrame) -> pd.Series[bool]:
        """Tell for each row whether the rule excludes it; a missing value only equals `n/a`."""
        values = table[self.column]
        if self._of_missing:
            return values.isna() if self.sign == "=" else values.notna()
        wanted: float | str = self.value
        if pd.api.types.is_numeric_dtype(values):
            wanted = as_number(self.value)
            if math.isnan(wanted):
                raise UsageError(f"--exclude {self}: {self.column} contains numbers.")
        elif self.sign not in ("=", "!="):
            raise UsageError(f"--exclude {self}: {self.column} contains text.", "Use = or !=.")
        applied: pd.Series[bool] = _COMPARISONS[self.sign](values, wanted).astype(bool)
        return values.notna() & applied

    def unknown_word(self, table: pd.DataFrame) -> str:
        """Return a hint with the words of the column if none is that of the rule; else nothing."""
        values = table[self.column].dropna()
        if self._of_missing or pd.api.types.is_numeric_dtype(values) or self.value in {*values}:
            return ""
        return known_names(self.value, sorted({*values}), "values") if len(values) else ""

    @property
    def _of_missing(self) -> bool:
        return self.value in MISSING and self.sign in ("=", "!=")


def exclusions(table: pd.DataFrame, rules: Sequence[str]) -> dict[str, str]:
    """Return the scans that rules exclude, and why.

    Parameters
    ----------
    table
        One row per scan with the columns that rules name.
    rules
        As `Exclusion.parse` reads them; one that applies is enough.

    Raises
    ------
    UsageError
        A rule cannot be read or names no column, or no scan is left.
    """
    parsed = [Exclusion.parse(rule) for rule in rules]
    if "rating" not in table and (rated := [r for r in parsed if r.column == "rating"]):
        raise UsageError(
            f"--exclude {rated[0]}: no ratings were found.",
            "Put the group_ratings*.tsv that the group page exports into the output folder, or "
            "name files of ratings with --ratings.",
        )
    check_columns(table, [rule.column for rule in parsed], "--exclude", empty=True)
    excluded: dict[str, str] = {}
    for rule in parsed:
        concerned = table.loc[rule.applies(table), "scan"]
        if hint := rule.unknown_word(table):
            logger.warning("--exclude %s: no scan has this value. %s", rule, hint)
        elif concerned.empty:
            logger.warning("--exclude %s matches no scan.", rule)
        for scan in concerned:
            excluded[scan] = f"{excluded[scan]}; {rule}" if scan in excluded else str(rule)
    if len(excluded) == len(table):
        raise UsageError(f"--exclude {' '.join(map(str, rules))} leaves no scan.")
    return excluded


def with_inclusion(table: pd.DataFrame, excluded: dict[str, str]) -> pd.DataFrame:
    """Say after the name of each scan whether it counts: `included` (yes, no), and why not."""
    reasons = table["scan"].map(excluded)
    place = list(table).index("scan") + 1
    marked = table.copy()
    marked.insert(place, INCLUDED, np.where(reasons.isna(), "yes", "no"))
    marked.insert(place + 1, EXCLUDED_BECAUSE, reasons.astype("str"))
    return marked


def protocols(table: pd.DataFrame, by: Sequence[str] = ()) -> pd.Series[str]:
    """Name what scans are compared with each other.

    Parameters
    ----------
    table
        One row per scan: participant_id, contrast, and `acq_id` and the like of their entities.
    by
        Columns that define groups. Without any: the contrast, and the entities of `SHARED`
        unless no two people share a label of it (as where it holds a date or a number).

    Raises
    ------
    UsageError
        No such column.
    """
    check_columns(table, by, "--group-by", empty=True)
    columns = list(by) or [*_shared(table), "contrast"]
    named = [(name, table[name].map(_text, na_action="ignore").astype("str")) for name in columns]
    plain = [
        values.fillna("") if name in ("contrast", "session_id") or name.endswith("_id")
        else name + "-" + values.fillna("n/a")
        for name, values in named
    ]  # fmt: skip
    rows = zip(*plain, strict=True)
    names = ["_".join(filter(None, row)) or "all" for row in rows]
    return pd.Series(names, index=table.index, dtype="str")


def _shared(table: pd.DataFrame) -> list[str]:
    columns = [f"{entity}_id" for entity in SHARED if f"{entity}_id" in table]
    kept = []
    for name in columns:
        people = table.groupby(["contrast", name])["participant_id"].nunique()
        everyone = table.loc[table[name].notna(), "participant_id"].nunique()
        if everyone < 2 or people.max() > 1:
            kept.append(name)
    return kept


def _text(value: object) -> str:
    return f"{value:.15g}" if isinstance(value, (int, float, np.number)) else str(value)
