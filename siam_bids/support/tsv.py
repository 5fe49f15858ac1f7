"""Tab-separated tables: reading those of others, and telling numbers from text."""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siam_bids.support.input_files import LARGEST_TEXT, read_text

MISSING = ("", "n/a")
"""Cells without a value; BIDS knows only the second."""

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?")
_OR_MORE = re.compile(r"(\d+)\+")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,(\d{1,2}|\d{4,})")
_NO_VALUE = {"na", "nan", "n.a.", "n/a", "none", "null", "missing", "unknown", "-", "--", ".", "?"}
_LARGEST_INTEGER = 2**53
"""Larger integers are identifiers, not numbers: a float64 would change their digits."""


def read_rows(
    path: Path, skipped: list[int] | None = None, largest: int = LARGEST_TEXT
) -> list[dict[str, str]]:
    """Read a tab-separated table with a header line as one dict per row, see `numbered_rows`."""
    return [row for _, row in numbered_rows(path, skipped, largest)]


def numbered_rows(
    path: Path, skipped: list[int] | None = None, largest: int = LARGEST_TEXT
) -> list[tuple[int, dict[str, str]]]:
    """Read a tab-separated table with a header line as the line and one dict of each row.

    Spaces around cells go. A row that ends early has empty cells there; what follows the last
    column (a tab at the end of each row) is ignored if it is empty.

    Parameters
    ----------
    skipped
        Takes the numbers of the lines with more cells than columns, which are then left out.

    Raises
    ------
    ValueError
        It cannot be read as text or has more than `largest` bytes, two columns have one name, or
        (without `skipped`) a row has more cells than columns.
    """
    lines = _cells(read_text(path, largest)) or [(1, [])]
    header = lines[0][1]
    repeated = [name for name, count in Counter(filter(None, header)).items() if count > 1]
    if repeated:
        raise ValueError(f"it has two columns {repeated[0]}")
    rows = []
    for number, line in lines[1:]:
        if any(line[len(header) :]):
            if skipped is None:
                raise ValueError(f"its line {number} has more cells than there are columns")
            skipped.append(number)
        elif any(line):
            full = [*line, *[""] * (len(header) - len(line))]
            row = {name: cell for name, cell in zip(header, full, strict=False) if name}
            rows.append((number, row))
    return rows


def _cells(text: str) -> list[tuple[int, list[str]]]:
    """Split text to numbered lines of cells. Quotes count only if closed within their line."""
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE):
        reader = csv.reader(
            io.StringIO(text, newline=None), delimiter="\t", strict=True, quoting=quoting
        )
        try:
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
        except csv.Error as error:
            if quoting == csv.QUOTE_NONE:
                raise ValueError(f"it is not a table: {error}") from error
            continue
        if not any("\n" in cell or "\t" in cell for _, row in rows for cell in row):
            break
    return [(number, row) for number, row in rows if row]


@dataclass(frozen=True, kw_only=True)
class Column:
    """The values of a column, all numbers or all words; None where there is none.

    Attributes
    ----------
    remarks
        What was read otherwise than it is written, or left out, in words.
    """

    values: tuple[float | str | None, ...]
    words: bool
    remarks: tuple[str, ...] = ()


def as_numbers_or_words(cells: Sequence[str | None], rows: Sequence[str]) -> Column:
    """Read a column as numbers if nearly all of its cells are, else as words.

    `89+` is 89, as BIDS writes the ages of people above it; decimal commas are read as points.
    Words that stand for no value (NA, NaN, None, ...) are levels among words, and missing among
    numbers. Integers of more than 15 digits are identifiers: words.

    Parameters
    ----------
    cells
        Text of the cells; `MISSING` and None are missing.
    rows
        Name of each row, for the remarks.
    """
    texts = {place: cell for place, cell in enumerate(cells) if cell and cell not in MISSING}
    meant = {place: as_number(cell) for place, cell in texts.items()}
    numbers = {place: number for place, number in meant.items() if math.isfinite(number)}
    odd = {place: cell for place, cell in texts.items() if place not in numbers}
    wrong = sum(cell.lower() not in _NO_VALUE for cell in odd.values())
    identifiers = _are_identifiers({texts[place]: number for place, number in numbers.items()})
    places = range(len(cells))
    if numbers and not identifiers and 4 * wrong <= len(numbers):
        values = tuple(map(numbers.get, places))
        return Column(values=values, words=False, remarks=tuple(_remarks(texts, odd, rows)))
    mixed = numbers and wrong and not identifiers
    remark = f"is read as text: not all values are numbers ({_some(odd, rows)})"
    words = tuple(map(texts.get, places))
    return Column(values=words, words=True, remarks=(remark,) if mixed else ())


def _are_identifiers(numbers: dict[str, float]) -> bool:
    """Tell whether numbers, by their text, are integers, some too long to count anything."""
    long = any(abs(number) > _LARGEST_INTEGER for number in numbers.values())
    return long and all(re.fullmatch(r"[+-]?\d+", text) for text in numbers)


def _remarks(texts: dict[int, str], odd: dict[int, str], rows: Sequence[str]) -> Iterator[str]:
    """Say which cells of a column of numbers are read otherwise than they are written."""
    read = {place: cell for place, cell in texts.items() if place not in odd}
    for pattern, meaning in (
        (_OR_MORE, "values with a plus sign are read as the number before it"),
        (_DECIMAL_COMMA, "values with a decimal comma are read with a point, which BIDS requires"),
    ):
        if found := {place: cell for place, cell in read.items() if pattern.fullmatch(cell)}:
            yield f"{meaning} ({_some(found, rows)})"
    if odd:
        yield f"values that are not numbers are left out ({_some(odd, rows)})"


def as_number(text: str) -> float:
    """Return the number that a cell means, NaN for none; 89+ is 89, 34,5 is 34.5."""
    if _NUMBER.fullmatch(text):
        return float(text)
    if found := _OR_MORE.fullmatch(text):
        return float(found[1])
    return float(text.replace(",", ".")) if _DECIMAL_COMMA.fullmatch(text) else math.nan


def _some(cells: dict[int, str], rows: Sequence[str], most: int = 5) -> str:
    """List the first few cells and their rows."""
    return some([f"{cell} of {rows[place]}" for place, cell in cells.items()], most)


def natural(text: str) -> tuple[Any, ...]:
    """Return by what to order text, digits as numbers: `ses-2` comes before `ses-10`."""
    parts = re.split(r"(\d+)", text)
    return tuple(int(part) if place % 2 else part for place, part in enumerate(parts)), text


def number_of(number: int, what: str) -> str:
    """Return a number of things in words, `1 scan` or `2 scans`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def some(names: Sequence[str], most: int = 10) -> str:
    """List the first few names."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
