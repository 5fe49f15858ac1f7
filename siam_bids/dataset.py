"""Finding the scans of a BIDS dataset. The only importer of pybids."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import sqlite3
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from bids.layout import BIDSLayout, BIDSLayoutIndexer, Query as Match

from siam_bids.config import Query
from siam_bids.errors import DatasetError
from siam_bids.files import SCRATCH
from siam_bids.labels import read_rows

logger = logging.getLogger(__name__)

EXTENSIONS = (".nii.gz", ".nii")
_CT = ("ct", "CT")
FOLDERS = ("anat", *_CT)
"""Where images of heads lie: as BIDS has it, and CT as BIDS extension proposal 24 and labs do."""

_NO_ANATOMY = ("phase", "real", "imag")
_INDEX = "layout_index.sqlite"  # the name that pybids gives it


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One anatomical image of a dataset.

    Attributes
    ----------
    path
        The image file.
    relative
        Its path from the dataset's root, with forward slashes.
    subject, session
        Labels without prefix; session is empty where there is none.
    suffix
        The contrast, for example `T1w`.
    """

    path: Path
    relative: str
    subject: str
    session: str
    suffix: str

    @property
    def stem(self) -> str:
        """All entities of the name, in order: `sub-01_ses-a_run-2`."""
        return self.name.rpartition("_")[0]

    @property
    def name(self) -> str:
        """Name without extension: `sub-01_ses-a_run-2_T1w`."""
        return self.path.name.split(".", 1)[0]


def subjects(root: Path) -> list[str]:
    """List the subject labels of a dataset by its folders.

    Raises
    ------
    DatasetError
        No such folder, no subjects in it, or no dataset_description.json of a raw dataset.
    """
    if not root.is_dir():
        kind = "is not a folder" if root.exists() else "does not exist"
        raise DatasetError(f"The input folder {root} {kind}.")
    found = sorted(path.name[4:] for path in root.glob("sub-*") if path.is_dir())
    if not found:
        raise DatasetError(
            f"{root} has no sub-* folders.", "Give the root of a BIDS dataset as first argument."
        )
    _check_description(root / "dataset_description.json")
    return found


def find_scans(root: Path, query: Query) -> list[Scan]:
    """Return the scans that match a query, ordered by path.

    Only `FOLDERS` of the wanted subjects are indexed; those of CT are for the suffix `ct` only. Of
    images that come in parts (`part-`), only magnitude counts as anatomy unless a filter asks for
    another part.

    Raises
    ------
    DatasetError
        Not a dataset, an unknown participant, an unreadable filter, or an index of something else.
    """
    present = subjects(root)
    missing = sorted(set(query.participants) - set(present))
    if missing:
        raise DatasetError(
            f"No folder for participant {', '.join('sub-' + label for label in missing)} in {root}."
        )
    layout = _layout(root, query)
    found: dict[Path, Scan] = {}
    for suffix in query.suffixes:
        filters = _filters_for(suffix, query)
        for item in layout.get(**filters, invalid_filters="allow"):
            entities = item.get_entities()
            if "part" not in filters and entities.get("part") in _NO_ANATOMY:
                continue
            path = Path(item.path)
            if path.parent.name != "anat" and not {suffix, path.parent.name} <= {*_CT}:
                continue
            found[path] = Scan(
                path=path,
                relative=path.relative_to(root.absolute()).as_posix(),
                subject=str(entities["subject"]),
                session=str(entities.get("session", "")),
                suffix=suffix,
            )
    return _without_twins([found[path] for path in sorted(found)])


def _check_description(path: Path) -> None:
    example = 'for example {"Name": "My study", "BIDSVersion": "1.10.0"}.'
    if not path.exists():
        raise DatasetError(
            f"{path.parent} has no dataset_description.json, so it is no BIDS dataset.",
            f"Write one, {example}",
        )
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        kind = about.get("DatasetType", "raw")
    except (OSError, ValueError, AttributeError) as error:
        raise DatasetError(
            f"{path} cannot be read as a JSON object: {error}.",
            f"Repair it, {example}",
        ) from error
    if kind != "raw":
        raise DatasetError(
            f"{path.parent} is a dataset of type {kind}, not raw.",
            "Give the raw dataset as first argument.",
        )


def _layout(root: Path, query: Query) -> BIDSLayout:
    """Index `FOLDERS` of the wanted subjects, without metadata and validation.

    A database serves later queries too, so it holds all subjects.
    """
    everyone = query.database or not query.participants
    wanted = "[^/]+" if everyone else "|".join(map(re.escape, query.participants))
    folder = "|".join(FOLDERS)
    ignore = re.compile(rf"^/(?!(sub-({wanted})(/ses-[^/]+)?(/({folder})(/[^/]+)?)?)?$)")
    indexer = BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=[ignore])
    make = partial(BIDSLayout, root.absolute(), validate=False, indexer=indexer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not query.database:
            return make()
        _keep_index(query.database, make)
        _check_index(query.database / _INDEX, root, query.participants)
        return make(database_path=query.database)


def _keep_index(folder: Path, make: Callable[..., BIDSLayout]) -> None:
    """Make the index unless it is there; complete or absent, whoever makes it at the same time."""
    if (folder / _INDEX).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder) as scratch:
        make(database_path=scratch)
        (Path(scratch) / _INDEX).replace(folder / _INDEX)


def _check_index(path: Path, root: Path, participants: Sequence[str]) -> None:
    """Refuse an index of something else; say whom it lacks, being as old as it is."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as index:
            (indexed,) = index.execute("SELECT root FROM layout_info").fetchone()
            known = index.execute("SELECT DISTINCT _value FROM tags WHERE entity_name = 'subject'")
            lacking = sorted(set(participants or subjects(root)) - {label for (label,) in known})
    except (sqlite3.Error, TypeError) as error:
        raise DatasetError(
            f"{path} is no index of pybids: {error}.", "Delete it; the next run makes it anew."
        ) from error
    if Path(indexed) != root.absolute():
        raise DatasetError(
            f"The index {path} is of {indexed}, not of {root.absolute()}.",
            "Give another --bids-database-dir.",
        )
    if lacking:
        logger.warning(
            "The index %s lacks %d participants, sub-%s first. If they are new, delete it.",
            path, len(lacking), lacking[0],
        )  # fmt: skip


def _filters_for(suffix: str, query: Query) -> dict[str, Any]:
    """Turn a query into pybids filters for one suffix; filter-file entries refine it."""
    filters: dict[str, Any] = {
        "suffix": suffix,
        "extension": list(EXTENSIONS),
        "scope": "raw",
    }
    if query.participants:
        filters["subject"] = list(query.participants)
    if query.sessions:
        filters["session"] = list(query.sessions)
    for key, wishes in query.filters.items():
        if key.lower() in (suffix.lower(), "anat") or wishes.get("suffix") == suffix:
            own = {name: _wish(value) for name, value in wishes.items() if name != "suffix"}
            filters.update(own)
    return filters


def _wish(value: Any) -> Any:
    """Translate a JSON value: null and 'Query.NONE' mean absent, 'Query.ANY' and '*' any."""
    if isinstance(value, list):
        return [_wish(item) for item in value]
    if value is None or value == "Query.NONE":
        return Match.NONE
    if value in ("Query.ANY", "*"):
        return Match.ANY
    return value


def left_out(root: Path, query: Query, scans: Sequence[Scan]) -> list[tuple[str, str]]:
    """Return what lies in `FOLDERS` of the wanted subjects and is no scan of the query.

    Returns
    -------
    Path from the root and reason of each file; also subjects that have no image there at all.
    """
    taken = {scan.path for scan in scans}
    rest = []
    for label in sorted(query.participants) or subjects(root):
        folder = root.absolute() / f"sub-{label}"
        files = [
            path
            for pattern in ("*", "ses-*/*")
            for place in sorted(folder.glob(pattern))
            if place.name in FOLDERS and place.is_dir()
            for path in sorted(place.iterdir())
            if not path.name.endswith((".json", ".tsv")) and not path.name.startswith(".")
        ]
        if not files:
            rest.append((folder.name, "no image in anat"))
        for path in files:
            if path not in taken:
                place = path.relative_to(root.absolute()).as_posix()
                rest.append((place, _why_left_out(path, query, taken)))
    return rest


def _why_left_out(path: Path, query: Query, taken: set[Path]) -> str:
    name, _, extension = path.name.partition(".")
    if path.is_dir() or f".{extension}" not in EXTENSIONS:
        return "no .nii.gz or .nii file"
    if twin := _preferred(path, taken):
        return f"{twin.parent.name}/{twin.name} is taken instead"
    *entities, suffix = name.split("_")
    labels = dict(entity.partition("-")[::2] for entity in entities)
    if query.sessions and labels.get("ses") not in query.sessions:
        return "of another session"
    if suffix not in query.suffixes:
        return f"--suffix does not list {suffix}"
    if labels.get("part") in _NO_ANATOMY and not query.filters:
        return f"the {labels['part']} part"
    return "excluded by --bids-filter-file" if query.filters else "no BIDS name"


def _without_twins(scans: list[Scan]) -> list[Scan]:
    """Drop scans that give the same outputs as another one, see `_preferred`."""
    taken = {scan.path for scan in scans}
    kept = []
    for scan in scans:
        if twin := _preferred(scan.path, taken):
            logger.warning("%s is skipped: %s is taken instead.", scan.relative, twin.name)
        else:
            kept.append(scan)
    return kept


def _preferred(path: Path, images: set[Path]) -> Path | None:
    """Return the first of `images` that has this name and goes before: packed, or in `anat`."""
    name = path.name.partition(".")[0]
    places = dict.fromkeys((path.parents[1] / "anat", path.parent))
    ranked = [place / f"{name}{extension}" for place in places for extension in EXTENSIONS]
    return next((rival for rival in ranked[: ranked.index(path)] if rival in images), None)


def read_filter_file(path: Path) -> dict[str, dict[str, Any]]:
    """Read a `--bids-filter-file`: JSON of `{"t1w": {"session": "01", ...}, ...}`.

    Keys are suffixes in any case, or `anat` for all; others (bold, fmap...) are allowed and do
    nothing.

    Raises
    ------
    DatasetError
        Not readable, not JSON, or not of that form.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"The filter file {path} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict) or not all(isinstance(v, dict) for v in content.values()):
        raise DatasetError(
            f"The filter file {path} must hold one object per kind of image.",
            'For example {"t1w": {"acquisition": "mprage"}}.',
        )
    return content


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
