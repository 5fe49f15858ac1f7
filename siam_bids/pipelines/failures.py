"""What went wrong with a scan, in one line."""

from __future__ import annotations

import errno
from pathlib import Path

from siam_bids.errors import SiamError, out_of_memory

_REFUSALS = ("ENOSPC", "EDQUOT", "EROFS", "EFBIG")


def disk_refuses(error: Exception) -> bool:
    """Tell whether nothing more can be written: disk full, quota used up, read-only."""
    refusals = {getattr(errno, name, None) for name in _REFUSALS}
    return isinstance(error, OSError) and error.errno in refusals


def reason_of(error: Exception) -> str:
    """Say in one line what went wrong."""
    if isinstance(error, SiamError):
        return str(error)
    if out_of_memory(error):
        return "Out of memory. Give the job more memory or fewer scans at once."
    if isinstance(error, OSError) and error.strerror:
        place = f" ({Path(error.filename).name})" if error.filename else ""
        return f"{error.strerror}{place}. Check the disk, permissions and names."
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first} (see the traceback with -v -v)"
