"""Getting archives of models onto this disk, safely: search path, download, checksum, unpacking."""

from __future__ import annotations

import http.client
import json
import logging
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from siam_bids.errors import ModelError
from siam_bids.support.atomic_files import checksum as digest

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Told the bytes that are there and the bytes expected (0 if unknown)."""

BLOCK = 1 << 20
_TIMEOUT = 60


def published_checksum(record: str, file: str) -> tuple[str, int]:
    """Ask a Zenodo record for the checksum (`md5:...`) and size in bytes of one of its files.

    Raises
    ------
    ModelError
        The record cannot be reached, or lists no such file.
    """
    try:
        with urllib.request.urlopen(record, timeout=_TIMEOUT) as answer:  # noqa: S310
            files: list[dict[str, Any]] = json.load(answer)["files"]
        entry = next(one for one in files if one["key"] == file)
        return str(entry["checksum"]), int(entry["size"])
    except (OSError, ValueError, KeyError, StopIteration, http.client.HTTPException) as error:
        raise ModelError(
            f"{record} does not tell the checksum of {file} ({reason_of(error)}).",
            "Give it with --checksum md5:..., as the record's page shows it.",
        ) from error


def download(
    url: str, target: Path, *, size: int = 0, attempts: int = 5, progress: Progress | None = None
) -> None:
    """Download to `target`, going on where an earlier attempt broke off.

    Proxies are taken from the environment, as urllib does.

    Parameters
    ----------
    size
        Bytes expected; 0 if unknown.
    attempts
        How often in a row a connection may bring nothing new before giving up.

    Raises
    ------
    ModelError
        The server refuses, or every attempt failed.
    """
    if not url.startswith(("http://", "https://")):
        raise ModelError(f"{url} is no http(s) address.")
    target.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    while True:
        before = target.stat().st_size if target.exists() else 0
        if size and before == size:
            return
        try:
            if _receive(url, target, before, size, progress):
                return
            reason = "the connection broke off"
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part here is longer than the file there
                target.unlink()
            elif error.code < 500:
                raise ModelError(f"{url} cannot be fetched: {error}.") from error
            reason = str(error)
        except (OSError, http.client.HTTPException) as error:
            reason = reason_of(error)
        grown = target.exists() and target.stat().st_size > before
        failures = 0 if grown else failures + 1
        if failures >= attempts:
            raise ModelError(
                f"{url} cannot be fetched: {reason}.",
                "Check the network or proxy; the next fetch goes on from here.",
            )
        logger.info("%s: %s; trying again", url, reason)
        time.sleep(min(2.0**failures, 30) * (0.05 if grown else 1))


def _receive(url: str, target: Path, start: int, size: int, progress: Progress | None) -> bool:
    """Append what one connection brings; tell whether the file is whole."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})  # noqa: S310
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:  # noqa: S310
        resumed = start > 0 and answer.status == 206
        length = int(answer.headers.get("Content-Length") or 0)
        there = start if resumed else 0
        expected = size or (there + length if length else 0)
        with target.open("ab" if resumed else "wb") as stream:
            while block := answer.read(BLOCK):
                stream.write(block)
                there += len(block)
                if progress:
                    progress(there, expected)
    return there == expected if expected else True


def check_archive(path: Path, checksum: str) -> None:
    """Compare a file with a checksum such as `md5:<hex>` or `sha256:<hex>`.

    Raises
    ------
    ModelError
        They differ, or the checksum is of an unknown kind.
    """
    kind, _, expected = checksum.partition(":")
    if kind not in ("md5", "sha256") or not expected:
        raise ModelError(f"{checksum!r} is no checksum.", "Write md5:<hex> or sha256:<hex>.")
    found = digest(path, kind)
    if found != expected.lower():
        raise ModelError(
            f"{path.name} has {kind} {found}, not {expected}: damaged or not genuine.",
            "Fetch it again.",
        )


def check_space(folder: Path, wanted: int) -> None:
    """Raise `ModelError` unless the disk of `folder` (or its nearest parent) has `wanted` bytes."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < wanted:
        raise ModelError(
            f"{folder} has {free / 1e9:.1f} GB free, {wanted / 1e9:.1f} GB are needed.",
            "Free some, or set SIAM_MODEL_DIR to another disk.",
        )


def is_writable(folder: Path) -> bool:
    """Tell whether files can be made in a folder, or the folder itself can."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return os.access(there, os.W_OK | os.X_OK)


def reason_of(error: BaseException) -> str:
    """Say in a few words what went wrong with a connection."""
    return str(getattr(error, "reason", "") or error or type(error).__name__)
