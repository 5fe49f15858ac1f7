"""Covariates from participants.tsv, sessions.tsv and scans.tsv."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from siam_bids.support.atomic_files import read_json
from siam_bids.support.input_files import is_listed
from siam_bids.support.tsv import MISSING, numbered_rows, some

logger = logging.getLogger(__name__)

_SESSION_COLUMNS = ("session_id", "session", "ses")
"""Columns of participants.tsv that may name the session of a row; the first present is used."""

Visit = tuple[str, str]
"""A participant with `sub-`, and a session with `ses-` or nothing."""

_Say = Callable[..., None]
"""Takes warnings, as `logger.warning` does."""


def _quietly(*_: object) -> None:
    """Say nothing: the group level has said it, or will."""


@dataclass
class _Values:
    """Text by visit and column; values on which rows disagree are dropped, with a warning."""

    by_visit: dict[Visit, dict[str, str]] = field(default_factory=dict)
    disagreeing: dict[str, dict[Visit, None]] = field(default_factory=dict)

    def add(self, visit: Visit, row: Mapping[str, str]) -> None:
        own = self.by_visit.setdefault(visit, {})
        for column, value in row.items():
            if value not in MISSING and own.setdefault(column, value) != value:
                self.disagreeing.setdefault(column, {})[visit] = None

    def settle(self, path: Path, say: _Say) -> None:
        """Drop values on which rows disagree, with a warning."""
        for column, visits in self.disagreeing.items():
            for visit in visits:
                del self.by_visit[visit][column]
            say(
                "%s has rows with different values of %s for %s; they are left out.",
                path, column, some([" ".join(visit).strip() for visit in visits]),
            )  # fmt: skip


def read_covariates(root: Path, visits: Sequence[Visit]) -> dict[str, tuple[str | None, ...]]:
    """Return every column of participants.tsv and sessions.tsv, as text by visit.

    A session's own value wins over the participant's. Labels may lack `sub-` and `ses-`. Where
    participants.tsv has several rows a person, its session column tells which is whose. Rows of
    one visit that disagree give no value; all that is left out is named in a warning.

    Returns
    -------
    Columns of as many values as `visits`.
    """
    path = root / "participants.tsv"
    say = logger.warning
    rows = _read(path, "participant_id", say)
    if not is_listed(path):
        say("%s was not found.", path)
    people, sessions = _by_visit(path, rows or (), visits, say), _sessions(root, visits, say)
    known = [_of_person(people, visit) | sessions.get(visit, {}) for visit in visits]
    lacking = sorted(
        {" ".join(visit).strip() for visit, row in zip(visits, known, strict=True) if not row}
    )
    if lacking and rows is not None:
        logger.warning("participants.tsv has no row for %s.", some(lacking))
    columns = dict.fromkeys(
        column for own in (*people.values(), *sessions.values()) for column in own
    )
    return {column: tuple(row.get(column) for row in known) for column in columns}


def read_times(
    root: Path, visits: Sequence[Visit], scans: Sequence[str]
) -> tuple[list[str], list[str], list[str]]:
    """Return when scans (paths from the root) of visits were: `acq_time`, `age` and its `Units`.

    As `read_covariates` and `acquisition_times` do, without their warnings. Empty if unknown.
    """
    path = root / "participants.tsv"
    people = _by_visit(path, _read(path, "participant_id", _quietly) or (), visits, _quietly)
    sessions = _sessions(root, visits, _quietly)
    times = acquisition_times(root, scans, _quietly)
    of_people, of_sessions = _units(root / "participants.json"), _units(root / "sessions.json")
    own_units = {
        person: _units(root / person / f"{person}_sessions.json") for person, _ in {*sessions}
    }
    dates, ages, units = [], [], []
    for visit, scan in zip(visits, scans, strict=True):
        session = sessions.get(visit, {})
        known = _of_person(people, visit) | session
        dates.append(times.get(scan) or known.get("acq_time", ""))
        ages.append(known.get("age", ""))
        if "age" in session:
            units.append(own_units[visit[0]] or of_sessions)
        else:
            units.append(of_people if "age" in known else "")
    return dates, ages, units


def _units(path: Path) -> str:
    return age_units(read_json(path)) if is_listed(path) else ""


def age_units(described: Mapping[str, object]) -> str:
    """Return the units of `age` in a data dictionary, empty if it names none."""
    about = described.get("age")
    return str(about.get("Units") or "") if isinstance(about, Mapping) else ""


def _of_person(people: Mapping[Visit, dict[str, str]], visit: Visit) -> dict[str, str]:
    return people.get((visit[0], ""), {}) | people.get(visit, {})


def _by_visit(
    path: Path, rows: Sequence[dict[str, str]], visits: Sequence[Visit], say: _Say
) -> dict[Visit, dict[str, str]]:
    """Return the rows of participants.tsv by visit; with an empty session, what holds for all.

    A scan without session takes what all rows of its person agree on.
    """
    labels = [_labelled(row.pop("participant_id"), "sub-") for row in rows]
    column = next((name for name in _SESSION_COLUMNS if rows and name in rows[0]), "")
    if column != "session_id" and len({*labels}) == len(labels):
        column = ""  # one row a person: a covariate like others
    without_session = {person for person, session in visits if not session}
    values = _Values()
    for label, row in zip(labels, rows, strict=True):
        session = row.pop(column, "")
        if session in MISSING or label in without_session:
            values.add((label, ""), row)
        else:
            values.add((label, _labelled(session, "ses-")), row)
    values.settle(path, say)
    return values.by_visit


def _sessions(root: Path, visits: Sequence[Visit], say: _Say) -> dict[Visit, dict[str, str]]:
    """Return the rows of the sessions.tsv files of all persons with sessions, by visit."""
    found: dict[Visit, dict[str, str]] = {}
    for person in sorted({person for person, session in visits if session}):
        path, values = root / person / f"{person}_sessions.tsv", _Values()
        for row in _read(path, "session_id", say) or ():
            values.add((person, _labelled(row.pop("session_id"), "ses-")), row)
        values.settle(path, say)
        found |= values.by_visit
    return found


def _labelled(label: str, prefix: str) -> str:
    return prefix + label.removeprefix(prefix)


def acquisition_times(
    root: Path, scans: Sequence[str], say: _Say = logger.warning
) -> dict[str, str]:
    """Return `acq_time` by scan (path from the root), where scans.tsv files give it."""
    times: dict[str, str] = {}
    for folder in sorted({Path(scan).parent.parent for scan in scans}):
        path = root / folder / f"{'_'.join(folder.parts)}_scans.tsv"
        for row in _read(path, "filename", say) or ():
            name = row["filename"].replace("\\", "/").removeprefix("./")
            if row.get("acq_time", "") not in MISSING:
                times.setdefault((folder / name).as_posix(), row["acq_time"])
    return {scan: times[scan] for scan in scans if scan in times}


def unreadable_participants(root: Path) -> str:
    """Say why participants.tsv cannot be read; nothing if it can, or is not there."""
    path = root / "participants.tsv"
    if is_listed(path):
        try:
            _rows(path, "participant_id", [])
        except ValueError as error:
            return f"{path} cannot be read as a table: {error}."
    return ""


def _read(path: Path, key: str, say: _Say) -> list[dict[str, str]] | None:
    """Read the rows of a table that have a `key`; None if there is no such table.

    What cannot be read is left out with a warning.
    """
    if not is_listed(path):
        return None
    skipped: list[int] = []
    try:
        rows = _rows(path, key, skipped)
    except ValueError as error:
        say("%s cannot be read as a table and is left out: %s.", path, error)
        return None
    unnamed = [line for line, row in rows if row[key] in MISSING]
    for lines, what in ((skipped, "more cells than columns"), (unnamed, f"no {key}")):
        if lines:
            numbers = some([str(line) for line in lines])
            say("%s has %s in line %s, left out.", path, what, numbers)
    return [row for _, row in rows if row[key] not in MISSING]


def _rows(path: Path, key: str, skipped: list[int]) -> list[tuple[int, dict[str, str]]]:
    rows = numbered_rows(path, skipped)
    if rows and key not in rows[0][1]:
        raise ValueError(f"it has no column {key}; columns must be separated by tabs")
    return rows
