"""The pybids index of a dataset: only this module and the filters import pybids."""

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

from siam_bids.bids.scan import EXTENSIONS, FOLDERS, LABEL, printable
from siam_bids.config import Query
from siam_bids.errors import DatasetError
from siam_bids.support.atomic_files import SCRATCH
from siam_bids.support.input_files import UnreadableError, is_listed, load_json
from siam_bids.support.tsv import number_of

logger = logging.getLogger(__name__)
_INDEX = "layout_index.sqlite"  # the name that pybids gives it
_NO_FILE = ".no/layout_config.json"  # pybids would take patterns from files of the dataset


def subject_folders(root: Path) -> list[str]:
    """List the names of the folders of subjects, `sub-01`, whatever their labels are.

    Raises
    ------
    DatasetError
        No such folder, or no subjects in it.
    """
    if not root.is_dir():
        kind = "is not a folder" if root.exists() else "does not exist"
        raise DatasetError(f"The input folder {root} {kind}.")
    found = sorted(path.name for path in root.glob("sub-*") if path.is_dir())
    if not found:
        raise DatasetError(
            f"{root} has no sub-* folders.", "Give the root of a BIDS dataset as first argument."
        )
    return found


def subjects(root: Path) -> list[str]:
    """List the subject labels of a dataset, from its folders, in printable form.

    Raises
    ------
    DatasetError
        No such folder, or no subjects in it.
    """
    return [printable(name.removeprefix("sub-")) for name in subject_folders(root)]


def check_description(root: Path, *, derivative: bool = False) -> None:
    """Refuse a dataset without description, and one that is not raw unless that is allowed.

    Raises
    ------
    DatasetError
        It is absent, unreadable, or of another type.
    """
    path = root / "dataset_description.json"
    example = 'for example {"Name": "My study", "BIDSVersion": "1.10.0"}.'
    if not is_listed(path):
        raise DatasetError(
            f"{root} has no dataset_description.json, so it is not a BIDS dataset.",
            f"Write one, {example}",
        )
    try:
        about = load_json(path)
        kind = str(about.get("DatasetType") or "raw").lower()
    except (ValueError, AttributeError) as error:
        raise DatasetError(
            f"{path} cannot be read as a JSON object: {error}.",
            "" if isinstance(error, UnreadableError) else f"Repair it, {example}",
        ) from error
    if kind != "raw" and not derivative:
        raise DatasetError(
            f"{root} is a dataset of type {kind}, not raw.",
            "Give the raw dataset as first argument; if the images of this one have raw names, add "
            "--derivative-input.",
        )


def open_layout(root: Path, query: Query, images: Sequence[Path]) -> BIDSLayout:
    """Index the images of the wanted subjects, without metadata and validation.

    Only names of BIDS are shown to pybids: its database cannot hold every name that a disk can.
    A database serves later queries too, so it holds all subjects.

    Parameters
    ----------
    root
        Absolute.
    images
        Those that should be in it.
    """
    everyone = query.database or not query.participants
    wanted = LABEL if everyone else "|".join(map(re.escape, query.participants))
    name = rf"sub-{LABEL}(_[a-z]+-{LABEL})*_[0-9a-zA-Z]+({'|'.join(map(re.escape, EXTENSIONS))})"
    ignore = re.compile(
        rf"^/(?!(sub-({wanted})(/ses-{LABEL})?(/({'|'.join(FOLDERS)})(/{name})?)?)?$)"
    )
    indexer = BIDSLayoutIndexer(
        validate=False, index_metadata=False, ignore=[ignore], config_filename=_NO_FILE
    )
    config = ["bids", "derivatives"] if query.derivative else None
    make = partial(BIDSLayout, root, validate=False, indexer=indexer, config=config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not query.database:
            return make()
        _keep_index(query.database, make)
        _check_index(query.database / _INDEX, root, images)
        return make(database_path=query.database)


def _keep_index(folder: Path, make: Callable[..., BIDSLayout]) -> None:
    """Make the index unless it is there; complete or absent, whoever makes it at the same time."""
    if (folder / _INDEX).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder) as scratch:
        make(database_path=scratch)
        (Path(scratch) / _INDEX).replace(folder / _INDEX)


def _check_index(path: Path, root: Path, images: Sequence[Path]) -> None:
    """Refuse an index of another dataset; warn of images that it does not list."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as index:
            (indexed,) = index.execute("SELECT root FROM layout_info").fetchone()
            known = {Path(image) for (image,) in index.execute("SELECT path FROM files")}
    except (sqlite3.Error, TypeError) as error:
        raise DatasetError(
            f"{path} is not a pybids index: {error}.", "Delete it; the next run rebuilds it."
        ) from error
    if Path(indexed) != root:
        raise DatasetError(
            f"The index {path} is of {indexed}, not of {root}.",
            "Give another --bids-database-dir.",
        )
    if lacking := [image for image in images if image not in known]:
        logger.warning(
            "The index %s lacks %s, %s first. Delete it to have new images indexed.",
            path, number_of(len(lacking), "image"), lacking[0].name,
        )  # fmt: skip
