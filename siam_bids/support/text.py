"""Reading text files that others wrote: tables, JSON."""

from __future__ import annotations

import codecs
import json
import logging
import stat
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

LARGEST = 256_000_000
"""Bytes above which a file cannot be a table or JSON of a study."""

DEEPEST = 100
"""Brackets of JSON within each other; libraries that write it again fail at some hundreds."""

_POINTERS = {b"/annex/objects/": "git-annex", b"version https://git-lfs": "git-lfs"}
"""First bytes of pointers to content that was not fetched."""


def is_listed(path: Path) -> bool:
    """Tell whether a folder lists this name, be it a link whose target is absent."""
    return path.is_symlink() or path.exists()


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, with or without byte-order mark, or UTF-16 with one.

    Anything else is read as Latin-1, with a warning.

    Raises
    ------
    OSError
        It cannot be read.
    ValueError
        It is not a regular file, too large, or its content was not fetched (git-annex, git-lfs).
    """
    if path.is_symlink() and not path.exists():
        raise ValueError(
            f"it is a link whose content is absent; with DataLad: datalad get {path.name}"
        )
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("it is not a regular file")
    if about.st_size > LARGEST:
        raise ValueError(f"it has {about.st_size / 1e6:.0f} MB, more than {LARGEST / 1e6:.0f}")
    content = path.read_bytes()
    for beginning, tool in _POINTERS.items():
        if content.startswith(beginning):
            get = "git lfs pull" if tool == "git-lfs" else f"datalad get {path.name}"
            raise ValueError(f"it is a pointer of {tool} whose content is absent; get it: {get}")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        logger.warning("%s is not in UTF-8; it is read as Latin-1.", path)
        return content.decode("latin-1")


def load_json(path: Path) -> Any:
    """Read a JSON file of any content.

    Raises
    ------
    OSError, ValueError
        As `read_text`, or not JSON.
    """
    too_deep = f"its brackets are nested more than {DEEPEST} deep"
    try:
        content = json.loads(read_text(path))
    except RecursionError as error:
        raise ValueError(too_deep) from error
    within, depth = [content], 0
    while within:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(too_deep)
        within = [
            part
            for each in within
            if isinstance(each, (dict, list))
            for part in (each.values() if isinstance(each, dict) else each)
        ]
    return content
