"""Records of the last attempt on each scan, `logs/sub-01/sub-01_T1w.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from siam_bids.support.atomic_files import read_json
from siam_bids.support.json_kinds import misfit

WRITTEN = "written"
"""Entry of a record that lists the files of a scan with the checksums that each may have."""

_ENTRIES = {
    WRITTEN: {"*": [str]},
    "error": str,
    "source": str,
    "input": str,
    "traceback": str,
    "seconds": float,
    "stages": {"*": float},
    "peak_memory_MB": float,
    "device": str,
    "threads": int,
    "command": str,
}


def read_record(path: Path) -> dict[str, Any]:
    """Read a record; entries that are not of our names and types are left out.

    Returns
    -------
    `error`, `source`, `input` (its SHA-256, `unreadable` if there is none), `traceback` and
    `command` of a failed attempt; else `seconds` (in all),
    `stages` (seconds by name), `peak_memory_MB`, `device`, `threads` and `command`. In both
    `written`: checksums by path from the root, of the last result and of what it was replacing.
    """
    content = read_json(path)
    return {
        key: content[key]
        for key, kind in _ENTRIES.items()
        if key in content and not misfit(content[key], kind, key)
    }
