"""Getting archives of models onto this disk, safely: search path, download, checksum, unpacking."""

from __future__ import annotations

import errno
import http.client
import json
import logging
import os
import re
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

DownloadProgress = Callable[[int, int], None]
"""Called with the bytes received and the bytes expected (0 if unknown)."""

BLOCK = 1 << 20
LARGEST = 64 << 30
"""Bytes that no archive of a model exceeds."""

_TIMEOUT = 60
_RECORD = 4 << 20  # bytes of a record's description
_ATTEMPTS = 5
_LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG)


def published_checksum(record: str, file: str) -> tuple[str, int]:
    """Ask a Zenodo record for the checksum (`md5:...`) and size in bytes of one of its files.

    Raises
    ------
    ModelError
        The record cannot be reached, is malformed, or does not list the file.
    """
    try:
        with urllib.request.urlopen(record, timeout=_TIMEOUT) as answer:  # noqa: S310
            text = answer.read(_RECORD + 1)
        if len(text) > _RECORD:
            raise ValueError(f"it is longer than {_RECORD >> 20} MiB")
        files: list[dict[str, Any]] = json.loads(text)["files"]
        entry = next((one for one in files if one["key"] == file), None)
        if entry is None:
            raise ValueError(f"it lists no {file}")
        checksum, size = entry["checksum"], entry["size"]
        check_checksum(checksum)
        if type(size) is not int or not 0 < size <= LARGEST:
            raise ValueError(f"it says that the file has {str(size)[:30]} bytes")
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ModelError,
        http.client.HTTPException,
    ) as error:  # fmt: skip
        raise ModelError(
            f"{record} does not give the checksum of {file} ({reason_of(error)}).",
            "Give it with --checksum md5:..., as the page of the record shows it, and the file, if "
            f"it cannot be had from there, with --mirror URL (its address, or that of its folder "
            f"with / at the end) or --archive {file} (on this disk).",
        ) from error
    return checksum, size


def download(
    url: str,
    target: Path,
    *,
    size: int = 0,
    attempts: int = _ATTEMPTS,
    progress: DownloadProgress | None = None,
) -> None:
    """Download to `target`, going on where an earlier attempt broke off.

    Proxies are taken from the environment, as urllib does.

    Parameters
    ----------
    size
        Bytes expected; 0 if unknown, then `LARGEST` at most.
    attempts
        Number of successive connections with less than a megabyte before giving up.

    Raises
    ------
    ModelError
        The server refuses, sends more than there can be, or every attempt failed; or the disk is
        full.
    """
    if not url.startswith(("http://", "https://")):
        raise ModelError(
            f"{url} is not an http(s) address.",
            "Give that of the archive, or that of its folder with / at the end.",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    while True:
        before = _size(target)
        if before > (size or LARGEST):
            target.unlink()
            before = 0
        if size and before == size:
            return
        reason = _attempt(url, target, before, size, progress)
        if not reason:
            return
        grown = _size(target) - before
        failures = 0 if grown >= BLOCK else failures + 1
        if failures >= attempts:
            raise ModelError(
                f"{url} cannot be fetched: {reason}.",
                f"Check the network or proxy; the next fetch continues from here. {_ELSEWHERE}",
            )
        logger.info("%s: %s; trying again", url, reason)
        time.sleep(min(2.0**failures, 30) * (0.05 if grown > 0 else 1))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _attempt(
    url: str, target: Path, before: int, size: int, progress: DownloadProgress | None
) -> str:
    """Receive the data of one connection; return why it is incomplete, or an empty string."""
    try:
        return "" if _receive(url, target, before, size, progress) else "the connection broke off"
    except urllib.error.HTTPError as error:
        error.close()
        reason = reason_of(error)
        if error.code == 416 and before:  # the part here is longer than the file there
            target.unlink(missing_ok=True)
        elif error.code < 500:
            raise ModelError(f"{url} cannot be fetched: {reason}.", _ELSEWHERE) from error
        return reason
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in _LOCAL:
            raise ModelError(
                f"{target} cannot be written: {reason_of(error)}.",
                "Free space, or set SIAM_MODEL_DIR to another disk.",
            ) from error
        return reason_of(error)


_ELSEWHERE = "Or get the archive elsewhere and name it with --archive FILE or --mirror URL."


def _receive(
    url: str, target: Path, start: int, size: int, progress: DownloadProgress | None
) -> bool:
    """Append the data of one connection; return whether the file is complete.

    Raises
    ------
    ModelError
        It sends more than expected. The data are removed.
    """
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})  # noqa: S310
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:  # noqa: S310
        there = _first_byte(answer, start, target)
        length = answer.length or 0  # None for a header that is absent or no number
        most = size or LARGEST
        expected = size or (there + length if length else 0)
        if max(expected, there + length) > most:
            raise _too_much(url, there + length, most)
        check_space(target.parent, expected - there)
        with target.open("ab" if there else "wb") as stream:
            while block := answer.read(BLOCK):
                there += len(block)
                if there > most:
                    break
                stream.write(block)
                if progress:
                    progress(there, expected)
    if there > most:
        target.unlink()
        raise _too_much(url, there, most)
    return there == expected if expected else True


def _first_byte(answer: http.client.HTTPResponse, asked: int, target: Path) -> int:
    """Return where in the file the data begin: at the byte that was asked for, or at 0."""
    if asked == 0 or answer.status != 206:
        return 0
    if not str(answer.headers.get("Content-Range")).startswith(f"bytes {asked}-"):
        target.unlink()
        raise ValueError("the server sent a different part of the file than requested")
    return asked


def _too_much(url: str, found: int, most: int) -> ModelError:
    return ModelError(
        f"{url} sends {found} bytes or more, not {most}, so the download was stopped.",
        "The server does not have the genuine archive.",
    )


def check_checksum(checksum: object) -> tuple[str, str]:
    """Return kind and hexadecimal value of a checksum such as `md5:<hex>` or `sha256:<hex>`.

    Raises
    ------
    ModelError
        It is none.
    """
    found = re.fullmatch(r"(md5):([0-9a-f]{32})|(sha256):([0-9a-f]{64})", str(checksum).lower())
    if not found:
        raise ModelError(
            f"{str(checksum)[:80]!r} is not a checksum.", "Write md5:<hex> or sha256:<hex>."
        )
    kind, value = (part for part in found.groups() if part)
    return kind, value


def check_archive(path: Path, checksum: str) -> None:
    """Compare a file with a checksum such as `md5:<hex>` or `sha256:<hex>`.

    Raises
    ------
    ModelError
        They differ, the checksum is of an unknown kind, or there is no such file.
    """
    kind, expected = check_checksum(checksum)
    if not path.is_file():
        raise ModelError(
            f"The archive {path} is not a file.",
            "Give --archive the archive itself, a .tar.gz or .zip.",
        )
    found = digest(path, kind)
    if found != expected:
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
            "Free some space, or set SIAM_MODEL_DIR to another disk.",
        )


def is_writable(folder: Path) -> bool:
    """Tell whether files can be made in a folder, or the folder itself can."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return os.access(there, os.W_OK | os.X_OK)


def reason_of(error: BaseException) -> str:
    """Say in one line what went wrong, for example with a connection."""
    if isinstance(error, urllib.error.HTTPError):
        text = f"HTTP {error.code} {error.reason}"
    else:
        text = str(getattr(error, "reason", "") or error)
    lines = [line for line in text.splitlines() if line.strip()]
    return (lines[0][:200] if lines else type(error).__name__).removesuffix(".")
