"""What went wrong with a scan: in one line, and on record for its subject's page."""

from __future__ import annotations

import errno
import logging
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from siam_bids.bids.names import ScanNames
from siam_bids.bids.records import WRITTEN, read_record
from siam_bids.errors import ModelError, SiamError, out_of_memory
from siam_bids.support.atomic_files import write_json

logger = logging.getLogger(__name__)

_REFUSALS = ("ENOSPC", "EDQUOT", "EROFS", "EFBIG")


def fatal(error: Exception) -> bool:
    """Tell whether what stopped one scan would stop all others: the model, or a full disk."""
    return isinstance(error, ModelError) or disk_refuses(error)


def record_failure(names: ScanNames, error: Exception, **about: str) -> str:
    """Log why a scan failed and write it to its record; return the reason in one line.

    Parameters
    ----------
    about
        `source`, `input` and `command`, see `read_record`.
    """
    reason = reason_of(error)
    past: dict[str, Any] = {"error": reason, **about}
    if written := read_record(names.record).get(WRITTEN):
        past[WRITTEN] = written
    logger.error("%s failed: %s", names.name, reason)
    if not isinstance(error, SiamError):
        past["traceback"] = "".join(traceback.format_exception(error))
        logger.debug("Traceback:", exc_info=error)
    write_json(names.record, past)
    return reason


def record_success(names: ScanNames, cost: Mapping[str, Any], written: Mapping[Path, str]) -> None:
    """Write to its record what a scan took, and the checksums of its files."""
    places = {
        path.relative_to(names.root).as_posix(): [f"sha256:{checksum}"]
        for path, checksum in written.items()
    }
    write_json(names.record, {**cost, WRITTEN: places})


def forget_failure(names: ScanNames) -> None:
    """Remove the record of a failed attempt on an input that is whole again."""
    if read_record(names.record).get("error"):
        names.record.unlink(missing_ok=True)


def write_page(name: str, write: Callable[..., None], *arguments: Any) -> dict[str, str]:
    """Write a page by calling `write`; its trouble ends no run.

    Returns
    -------
    Name and reason of the page if it could not be written, else nothing.

    Raises
    ------
    OSError
        The disk is full.
    """
    try:
        write(*arguments)
    except Exception as error:
        if disk_refuses(error):
            raise
        reason = reason_of(error)
        logger.debug("Traceback:", exc_info=error)
    else:
        return {}
    logger.error("%s cannot be written: %s", name, reason)  # what the error held is free now
    return {name: reason}


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
