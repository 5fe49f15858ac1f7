"""What participants.tsv, sessions.tsv and scans.tsv say of people, sessions and scans."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from siam_bids.support.tsv import read_rows

logger = logging.getLogger(__name__)


def read_participants(root: Path) -> pd.DataFrame:
    """Read participants.tsv, one row each; without a usable one, an empty table with its key."""
    return _read_table(root / "participants.tsv", ["participant_id"])


def read_sessions(root: Path, labels: Sequence[str]) -> pd.DataFrame:
    """Read the sessions.tsv of these subjects as one table by participant_id and session_id."""
    rows = []
    for label in labels:
        path = root / f"sub-{label}" / f"sub-{label}_sessions.tsv"
        if path.exists():
            rows += [{**row, "participant_id": f"sub-{label}"} for row in _sessions(path)]
    keys = ["participant_id", "session_id"]
    if not rows:
        return pd.DataFrame({key: pd.Series(dtype=str) for key in keys})
    text = io.StringIO(pd.DataFrame(rows).to_csv(sep="\t", index=False))  # one guess of types
    return _as_table(text, keys)


def _sessions(path: Path) -> list[dict[str, str]]:
    """Return the rows of one sessions.tsv; unusable, none with a warning."""
    try:
        rows = read_rows(path)
    except (OSError, ValueError, csv.Error) as error:
        logger.warning("%s cannot be read as a table and is left out: %s", path, error)
        return []
    if rows and not all(row.get("session_id") for row in rows):
        logger.warning("%s lacks a session_id and is left out.", path)
        return []
    return [{name: value for name, value in row.items() if name} for row in rows]


def acquisition_times(root: Path, scans: Sequence[str]) -> dict[str, str]:
    """Return `acq_time` by scan (path from the root), as far as scans.tsv files tell it."""
    times: dict[str, str] = {}
    folders = {Path(scan).parent.parent for scan in scans}
    for folder in sorted(folders):
        path = root / folder / f"{'_'.join(folder.parts)}_scans.tsv"
        if path.exists():
            table = _read_table(path, ["filename"])
            if "acq_time" in table:
                known = table.dropna(subset=["acq_time"])
                names = (folder / name for name in known["filename"])
                times |= {
                    name.as_posix(): str(time)
                    for name, time in zip(names, known["acq_time"], strict=True)
                }
    return {scan: times[scan] for scan in scans if scan in times}


def _read_table(path: Path, keys: list[str]) -> pd.DataFrame:
    """Read a TSV whose rows `keys` name; without them or unreadable, empty with a warning."""
    empty = pd.DataFrame({key: pd.Series(dtype=str) for key in keys})
    if not path.exists():
        return empty
    try:
        table = _as_table(path, keys)
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read as a table and is left out: %s", path, error)
        return empty
    if not set(keys) <= {*table}:
        logger.warning("%s has no %s column and is left out.", path, ", ".join(keys))
        return empty
    return table


def _as_table(source: Path | io.StringIO, keys: list[str]) -> pd.DataFrame:
    """Read a TSV, one row for each combination of the text columns `keys` if they are there."""
    types = dict.fromkeys([*keys, "acq_time"], str)
    table = pd.read_csv(source, sep="\t", na_values="n/a", dtype=types)
    return table.drop_duplicates(keys) if {*keys} <= {*table} else table
