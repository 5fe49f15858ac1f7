"""Input files: checked before they are opened; a file without content is refused with the reason.

Nothing but a regular file is opened: reading from a named pipe or a device may never end. Pointers
of git-annex and git-lfs are named as such.
"""

from __future__ import annotations

import codecs
import json
import logging
import stat
from pathlib import Path
from typing import Any

from siam_bids.errors import SiamError

logger = logging.getLogger(__name__)

LARGEST_TEXT = 256 << 20
"""Bytes above which a file cannot be a table or JSON of a study."""

DEEPEST = 100
"""Brackets of JSON within each other; libraries that write it again fail at some hundreds."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_ANNEX = b"/annex/objects/"
_LFS = b"version https://git-lfs"


class UnreadableError(ValueError):
    """Why a file cannot be read, `is a folder, not a file`, and a remedy that is not obvious."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(f"it {reason}" + (f"; {remedy}" if remedy else ""))
        self.reason = reason
        self.remedy = remedy


def is_listed(path: Path) -> bool:
    """Tell whether a folder lists this name, be it a link whose target is absent."""
    return path.is_symlink() or path.exists()


def regular_file(path: Path, error: type[SiamError]) -> int:
    """Return the size in bytes of a readable file with content.

    Raises
    ------
    SiamError
        Of the type `error`: absent, a link to nothing, a folder, pipe, socket or device, empty,
        a pointer of git-annex or git-lfs, or not readable.
    """
    try:
        size = _readable(path)
        if size == 0:
            raise UnreadableError("is empty", "fetch or convert it again")
    except UnreadableError as cause:
        remedy = cause.remedy or "leave it out or correct the path"
        raise error(f"{path.name} {cause.reason}.", f"{remedy[0].upper()}{remedy[1:]}.") from cause
    return size


def read_text(path: Path, largest: int = LARGEST_TEXT) -> str:
    """Read a text file in UTF-8, with or without byte-order mark, or UTF-16 with one.

    Anything else is read as Latin-1, with a warning.

    Raises
    ------
    UnreadableError
        As `regular_file`, but for a file that is empty; also of more than `largest` bytes.
    """
    size = _readable(path)
    if size > largest:
        raise UnreadableError(f"has {size / 1e6:.0f} MB, more than {largest >> 20} MiB")
    try:
        content = path.read_bytes()
    except OSError as cause:
        raise UnreadableError(f"cannot be read: {cause.strerror}") from cause
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        logger.warning("%s is not in UTF-8; it is read as Latin-1.", path)
        return content.decode("latin-1")


def load_json(path: Path, largest: int = LARGEST_TEXT) -> Any:
    """Read a JSON file of any content.

    Raises
    ------
    ValueError
        As `read_text`, or not JSON.
    """
    too_deep = f"its brackets are nested more than {DEEPEST} deep"
    try:
        content = json.loads(read_text(path, largest))
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


def _readable(path: Path) -> int:
    """Return the size of a regular file that can be opened, or raise `UnreadableError`."""
    try:
        about = path.stat()
        kind = _KINDS.get(stat.S_IFMT(about.st_mode), "no regular file")
        if not stat.S_ISREG(about.st_mode):
            raise UnreadableError(f"is {kind}, not a file")
        with path.open("rb") as stream:
            start = stream.read(64)
    except FileNotFoundError:
        raise _absent(path) from None
    except OSError as cause:
        raise UnreadableError(f"cannot be opened: {cause.strerror}") from cause
    for beginning, tool, remedy in (
        (_ANNEX, "git-annex", _from_annex(path)),
        (_LFS, "git-lfs", "get it with `git lfs pull`, or leave it out"),
    ):
        if start.startswith(beginning):
            raise UnreadableError(f"is a pointer of {tool}: its content was not fetched", remedy)
    return about.st_size


def _absent(path: Path) -> UnreadableError:
    if not path.is_symlink():
        return UnreadableError("does not exist")
    if _ANNEX.decode() in path.readlink().as_posix():
        return UnreadableError(
            "is a broken link: its content is in git-annex and was not fetched", _from_annex(path)
        )
    return UnreadableError(
        "is a broken link: what it points to does not exist", "repair the link or leave it out"
    )


def _from_annex(path: Path) -> str:
    return f"get it with `datalad get` or `git annex get {path.name}`, or leave it out"
