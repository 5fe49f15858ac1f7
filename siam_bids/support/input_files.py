"""Input files: checked before they are opened, with a reason if they have no content."""

from __future__ import annotations

import stat
from pathlib import Path

from siam_bids.errors import SiamError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_ANNEX = b"/annex/objects/"
_LFS = b"version https://git-lfs"


def regular_file(path: Path, error: type[SiamError]) -> int:
    """Return the size in bytes of a readable file, or raise with the reason.

    Nothing but a regular file is opened: reading from a named pipe or a device may never end.
    Pointers of git-annex and git-lfs are named as such.

    Raises
    ------
    SiamError
        Of the type `error`: absent, a link to nothing, a folder, pipe, socket or device, empty,
        a pointer of git-annex or git-lfs, or not readable.
    """
    name = path.name
    try:
        found = path.stat()
    except FileNotFoundError:
        if not path.is_symlink():
            raise error(f"{name} does not exist.", "Leave it out or correct the path.") from None
        if _ANNEX.decode() in path.readlink().as_posix():
            raise error(
                f"{name} is a broken link: its content is in git-annex and was not fetched.",
                f"Get it with `datalad get` or `git annex get {name}`, or leave it out.",
            ) from None
        raise error(
            f"{name} is a broken link: what it points to does not exist.",
            "Repair the link or leave it out.",
        ) from None
    except OSError as cause:
        raise error(f"{name} cannot be opened: {cause.strerror}.") from cause
    kind = _KINDS.get(stat.S_IFMT(found.st_mode))
    if kind or not stat.S_ISREG(found.st_mode):
        raise error(f"{name} is {kind or 'no regular file'}, not a file.", "Leave it out.")
    if found.st_size == 0:
        raise error(f"{name} is empty.", "Fetch or convert it again.")
    try:
        with path.open("rb") as stream:
            start = stream.read(64)
    except OSError as cause:
        raise error(f"{name} cannot be opened: {cause.strerror}.") from cause
    if start.startswith(_ANNEX):
        raise error(
            f"{name} is a pointer of git-annex: its content was not fetched.",
            f"Get it with `datalad get` or `git annex get {name}`, or leave it out.",
        )
    if start.startswith(_LFS):
        raise error(
            f"{name} is a pointer of git-lfs: its content was not fetched.",
            "Get it with `git lfs pull`, or leave it out.",
        )
    return found.st_size
