"""The labels of a model folder: dataset.json, and an optional table that defines them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from siam_bids.errors import LabelError, ModelError
from siam_bids.image.labels import ROLES, Label, LabelTable, known_labels, name_in_files
from siam_bids.support.tsv import read_rows

LABELS = "labels.tsv"
"""Optional table next to dataset.json with more about the labels than their names.

Columns: `index`, and any of `name`, `long_name`, `color` (#rrggbb), `mapping` (BIDS common labels,
0 to 11) and `role` (one of `ROLES`). Empty or `n/a` leaves what is known otherwise.
"""

IGNORED = "ignore"
"""The name of nnU-Net's label for voxels that training left out; it is never predicted."""

_NAME = re.compile(r"[A-Za-z0-9_+-]{1,64}")
_COLOR = re.compile(r"#[0-9a-fA-F]{6}")
_RESERVED = frozenset(
    {"tiv", "icv", "scan", "contrast", "participant_id", "session_id", "acq_time", "tissue",
     "index", "voxels", "volume_ml", "flag", "reasons", "rating", "rating_note"}
)  # fmt: skip


def read_labels(folder: Path, dataset: Mapping[str, Any]) -> LabelTable:
    """Return the label table of a model folder.

    Parameters
    ----------
    dataset
        Content of its dataset.json. Names of one value make one label, `Muscle_all+Muscle_fat`, as
        stock nnU-Net predicts one class for them; `ignore` is left out, as it does.

    Raises
    ------
    ModelError
        The labels are not numbered from 0 without gaps, are regions, or have names that tables and
        file names cannot represent or distinguish; or the table is invalid.
    """
    where = f"{folder}/dataset.json"
    values = _values(where, dataset.get("labels"))
    names: dict[int, list[str]] = {}
    for name, value in values.items():
        names.setdefault(value, []).append(name)
    if sorted(names) != list(range(len(names))) or len(names) > 256:
        listed = ", ".join(map(str, sorted(names)[:9])) + (", ..." if len(names) > 9 else "")
        raise ModelError(
            f"{where} has the labels {listed}.",
            "nnU-Net's labels run from 0, the background, to 255 at most, without gaps.",
        )
    joined = {"+".join(sorted(same)): value for value, same in names.items()}
    known = known_labels(joined)
    labels = [
        replace(label, role=_shared_role(names[label.index], known))
        if len(names[label.index]) > 1 and not label.role
        else label
        for label in LabelTable.from_names(joined)
    ]
    if (folder / LABELS).exists():
        labels = _described(folder / LABELS, labels)
    check_names(where, labels)
    return LabelTable(tuple(labels))


def _values(where: str, content: Any) -> dict[str, int]:
    """Return the value of each name, checked, without that of `ignore`."""
    if not isinstance(content, Mapping) or not content:
        raise ModelError(f"{where} has no labels.", 'nnU-Net lists them as {"background": 0, ...}.')
    values: dict[str, int] = {}
    for name, given in content.items():
        value = given[0] if isinstance(given, list) and len(given) == 1 else given
        if isinstance(value, list):
            raise ModelError(
                f"{where} has overlapping regions ({_shown(name)}), not one label per voxel.",
                "Models trained on regions are not supported.",
            )
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ModelError(
                f"{where} gives the label {_shown(name)} the value {_shown(value)}.",
                "It must be a whole number from 0.",
            )
        values[name] = value
    ignored = values.pop(IGNORED, None)
    if ignored is not None and ignored <= max(values.values(), default=-1):
        raise ModelError(f"{where} gives {IGNORED} the value {ignored}.", "It must be the highest.")
    return values


def _shown(value: object) -> str:
    """Return a value as an error may show it: in one short line of printable signs."""
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _shared_role(names: list[str], known: Mapping[str, Label]) -> str:
    roles = {known[name].role if name in known else "" for name in names}
    return roles.pop() if len(roles) == 1 else ""


def _described(path: Path, labels: list[Label]) -> list[Label]:
    """Apply the table of the model folder to its labels."""
    try:
        rows = read_rows(path)
        given = {int(row["index"]): row for row in rows}
    except (OSError, ValueError, KeyError, TypeError, LabelError) as error:
        raise ModelError(
            f"{path} cannot be read as a table.", "Its columns are index and, for example, role."
        ) from error
    own = {label.index for label in labels}
    if odd := [index for index in given if index not in own]:
        raise ModelError(f"{path} has a row for {odd[0]}, which is not in dataset.json.")
    if len(given) < len(rows):
        raise ModelError(f"{path} has two rows for one index.")
    return [_with_row(path, label, given.get(label.index, {})) for label in labels]


def _with_row(path: Path, label: Label, row: Mapping[str, str | None]) -> Label:
    def told(column: str, unless: str) -> str:
        text = row.get(column)
        return text.strip() if text and text.strip() not in ("", "n/a") else unless

    def checked(column: str, value: str, good: bool, wanted: str) -> str:
        if not good:
            raise ModelError(f"{path}: {column} of label {label.index} is not {wanted}.")
        return value

    mapping = told("mapping", "" if label.mapping is None else str(label.mapping))
    color, role = told("color", label.color), told("role", label.role)
    words = told("long_name", label.long_name)
    good = words.isprintable() and len(words) <= 200 and '"' not in words
    in_common = mapping in ("", *map(str, range(12)))
    checked("mapping", mapping, in_common, "a number from 0 to 11")
    return replace(
        label,
        name=told("name", label.name),
        long_name=checked("long_name", words, good, "one line of text without quotes"),
        color=checked("color", color, bool(_COLOR.fullmatch(color)), "#rrggbb"),
        mapping=int(mapping) if mapping else None,
        role=checked("role", role, role in ("", *ROLES), f"one of {', '.join(ROLES)}"),
    )


def check_names(where: str, labels: Iterable[Label]) -> None:
    """Refuse names that file names and tables cannot represent or distinguish.

    Raises
    ------
    ModelError
        Tells in which model, `where`, and which names.
    """
    taken: dict[str, str] = {}
    for label in labels:
        name = label.name
        if not _NAME.fullmatch(name):
            raise ModelError(
                f"{where} names a label {_shown(name)}.",
                "Names are up to 64 of the characters A-Z a-z 0-9 _ + -; "
                f"the columns index and name of a {LABELS} beside it may give another.",
            )
        if name.lower() in _RESERVED:
            raise ModelError(
                f"{where} names a label {name}, as a column of our tables is named.",
                f"The columns index and name of a {LABELS} beside it may give another name.",
            )
        written = name_in_files(name).lower()
        if not written or written in taken:
            other = taken.get(written, "")
            raise ModelError(
                f"{where} names a label {name}, which is written as "
                f"{name_in_files(name) or 'nothing'} in file names"
                + (f", as {other} is." if other else "."),
                f"The columns index and name of a {LABELS} beside it may give another name.",
            )
        taken[written] = name
