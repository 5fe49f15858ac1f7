"""The pybids index of a dataset: the only importer of pybids beside the filters."""

from __future__ import annotations

import logging
import re
import sqlite3
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from bids.layout import BIDSLayout, BIDSLayoutIndexer

from siam_bids.bids.scan import FOLDERS
from siam_bids.config import Query
from siam_bids.errors import DatasetError
from siam_bids.support.atomic_files import SCRATCH
from siam_bids.support.text import is_listed, load_json

logger = logging.getLogger(__name__)
_INDEX = "layout_index.sqlite"  # the name that pybids gives it


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


def _check_description(path: Path) -> None:
    example = 'for example {"Name": "My study", "BIDSVersion": "1.10.0"}.'
    if not is_listed(path):
        raise DatasetError(
            f"{path.parent} has no dataset_description.json, so it is no BIDS dataset.",
            f"Write one, {example}",
        )
    try:
        about = load_json(path)
        kind = str(about.get("DatasetType") or "raw").lower()
    except (OSError, ValueError, AttributeError) as error:
        raise DatasetError(
            f"{path} cannot be read as a JSON object: {error}.",
            "" if "absent" in str(error) else f"Repair it, {example}",
        ) from error
    if kind != "raw":
        raise DatasetError(
            f"{path.parent} is a dataset of type {kind}, not raw.",
            "Give the raw dataset as first argument.",
        )


def open_layout(root: Path, query: Query) -> BIDSLayout:
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
