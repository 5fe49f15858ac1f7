"""Whose files are these: what this app did not make, it neither replaces nor deletes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from siam_bids.errors import UsageError
from siam_bids.support.folders import check_folder
from siam_bids.support.input_files import is_listed, load_json

PIPELINE = "siam-bids"

_NO_RESULTS = (
    "code",
    "logs",
    "work",
    "lost+found",
    "group_ratings*.tsv",
    "*.log",
    "*.out",
    "*.err",
)
"""What schedulers, BABS and users put into an output folder before the first run."""

_REMEDY = "Give an empty or new folder; --force-output writes there anyway."


def check_output_folder(root: Path, *, forced: bool = False, remedy: str = _REMEDY) -> None:
    """Refuse an output folder with files of other programs, before anything is written.

    It may be absent or empty, but for hidden files (`.git`, `.datalad`), logs, code and the work
    folder of this run; or a dataset whose GeneratedBy names this app.

    Raises
    ------
    UsageError
        It is none of these, and not `forced`.
    """
    check_folder(root, "output folder")
    if forced or not root.is_dir():
        return
    foreign = sorted(path.name for path in root.iterdir() if not _is_no_result(path))
    if not foreign:  # looked at first: another process of this app may begin the dataset now
        return
    path = root / "dataset_description.json"
    try:
        about = load_json(path) if is_listed(path) else {}
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} cannot be read, so it is unclear what made this folder: {error}.",
            "Repair it, or give another output folder.",
        ) from error
    if not generated_by_us(about):
        listed = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise UsageError(
            f"The output folder {root} was not made by {PIPELINE} and is not empty ({listed}).",
            remedy,
        )


def generated_by_us(about: Any) -> bool:
    """Tell whether a dataset_description.json names this app."""
    generators = about.get("GeneratedBy") if isinstance(about, dict) else None
    return isinstance(generators, list) and any(
        isinstance(each, dict) and each.get("Name") == PIPELINE for each in generators
    )


def made_by_us(about: Mapping[str, Any]) -> bool:
    """Tell whether the content of a sidecar names this app among its software."""
    software = about.get("Software")
    return isinstance(software, dict) and PIPELINE in software


def _is_no_result(path: Path) -> bool:
    work = Path(tempfile.gettempdir()).resolve()
    return (
        path.name.startswith(".")
        or any(fnmatch(path.name, pattern) for pattern in _NO_RESULTS)
        or Path(os.path.realpath(path)) in (work, *work.parents)
    )
