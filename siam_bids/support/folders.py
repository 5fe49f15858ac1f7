"""Check that folders can be made, before anything is written."""

from __future__ import annotations

import os
from pathlib import Path

from siam_bids.errors import UsageError


def check_folder(path: Path, what: str) -> None:
    """Refuse the path of a folder if it, or what it should lie in, is a file.

    Parameters
    ----------
    path
        A folder, or where one is to be made.
    what
        How the message names it, for example `output`.

    Raises
    ------
    UsageError
        There is a file in its place or above it.
    """
    for place in (path, *path.absolute().parents):
        if place.is_dir():
            return
        if os.path.lexists(place):
            kind = "a file, not a folder" if place.exists() else "a broken link"
            found = "is" if place == path else f"cannot be made: {place} is"
            raise UsageError(f"The {what} {path} {found} {kind}.", "Give a folder.")
