"""Ratings of scans by people: read, and brought together where several people rated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from siam_bids.errors import UsageError
from siam_bids.measures.quality import FLAGS
from siam_bids.support.input_files import is_listed
from siam_bids.support.tsv import MISSING, numbered_rows, some

COLUMNS = ("rater", "scan", "rating", "note", "tags", "time")
"""Of every rating; `scan` and `rating` are needed in a file, the others may be absent."""

PREFIX = "group_ratings"
"""What the page exports: `group_ratings.tsv`, or `group_ratings_anna.tsv` with a rater's name."""

_HOW = "Export them from the group page."


def rating_files(root: Path) -> list[Path]:
    """Return the ratings in an output folder, those of one person each, by name."""
    return sorted(path for path in root.glob(f"{PREFIX}*.tsv") if is_listed(path))


def read_ratings(
    paths: Sequence[Path], unusable: list[str] | None = None, *, strict: bool = True
) -> pd.DataFrame:
    """Read ratings that the group page exported, in small or capital letters.

    Parameters
    ----------
    unusable
        Takes a sentence on each file with something that is not a rating, which is left out.
    strict
        Refuse files that hold no ratings at all, instead of leaving them out.

    Returns
    -------
    `COLUMNS` as text, empty where unknown; one row per rater and scan: of several, the latest by
    `time`, of those without one the last. A rater without a name in the table has that of the file.

    Raises
    ------
    UsageError
        A file is absent, cannot be read or lacks a column, and `strict`.
    """
    rows: list[dict[str, str]] = []
    said = unusable if unusable is not None else []
    for path in paths:
        try:
            own = _Ratings.read(path)
        except UsageError as error:
            if strict:
                raise
            said.append(str(error))
            continue
        rows += own.rows
        if own.odd:
            odd = some(own.odd, 5)
            said.append(f"{path.name} holds what is not a rating: {odd}. Correct or remove it.")
    table = pd.DataFrame(rows, columns=list(COLUMNS), dtype="str")
    table = table.sort_values("time", kind="stable")
    return table.drop_duplicates(["rater", "scan"], keep="last").sort_index(ignore_index=True)


@dataclass(frozen=True)
class _Ratings:
    """The ratings of a file, and what is not one."""

    rows: list[dict[str, str]]
    odd: list[str]

    @classmethod
    def read(cls, path: Path) -> _Ratings:
        of_file = path.stem.removeprefix(PREFIX).strip("_") if path.stem.startswith(PREFIX) else ""
        skipped: list[int] = []
        found = []
        odd = []
        for line, row in _rows(path, skipped):
            cells = {name: row.get(name, "") for name in COLUMNS}
            cells = {name: "" if cell in MISSING else cell for name, cell in cells.items()}
            rating = cells["rating"].lower()
            if not cells["scan"]:
                odd.append(f"line {line} without the name of a scan")
            elif rating and rating not in FLAGS:
                odd.append(f"{cells['rating']!r} of {cells['scan']} in line {line}")
            else:
                found.append({**cells, "rating": rating, "rater": cells["rater"] or of_file})
        odd += [f"line {line} with more cells than columns" for line in skipped]
        return cls(found, odd)


def _rows(path: Path, skipped: list[int]) -> list[tuple[int, dict[str, str]]]:
    if not is_listed(path):
        raise UsageError(f"The ratings {path} do not exist.", _HOW)
    try:
        rows = numbered_rows(path, skipped)
    except ValueError as error:
        raise UsageError(f"The ratings {path} cannot be read as a table: {error}.") from error
    if rows and not {"scan", "rating"} <= {*rows[0][1]}:
        raise UsageError(f"The ratings {path} lack the columns scan and rating.", _HOW)
    return rows


def combined(ratings: pd.DataFrame) -> pd.DataFrame:
    """Bring the ratings of each scan together.

    Returns
    -------
    One row per scan: `rating`, the middle one of all raters in the order pass, warn, fail, of two
    middle ones the worse; `rating_note`; `rating_tags`, those of any rater; `raters`, how many gave
    a rating. Missing where there is none.
    """
    rows = [
        {
            "scan": scan,
            "rating": _middle([rating for rating in part["rating"] if rating]),
            "rating_note": "; ".join(
                f"{rater}: {note}" if rater and len(part) > 1 else note
                for rater, note in zip(part["rater"], part["note"], strict=True)
                if note
            )
            or None,
            "rating_tags": ", ".join(dict.fromkeys(_tags(part["tags"]))) or None,
            "raters": int((part["rating"] != "").sum()),
        }
        for scan, part in ratings.groupby("scan", sort=False)
    ]
    names = ["scan", "rating", "rating_note", "rating_tags", "raters"]
    table = pd.DataFrame(rows, columns=names)
    return table.astype({**dict.fromkeys(names[:-1], "str"), "raters": "Int64"})


def _middle(ratings: Sequence[str]) -> str | None:
    ordered = sorted(ratings, key=FLAGS.index)
    return ordered[len(ordered) // 2] if ordered else None


def _tags(cells: pd.Series[str]) -> Iterator[str]:
    for cell in cells:
        yield from filter(None, map(str.strip, cell.split(",")))
