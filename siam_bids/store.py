"""Getting archives of models onto this disk, safely: search path, download, checksum, unpacking."""

from __future__ import annotations

import http.client
import json
import logging
import os
import shutil
import stat
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from siam_bids import files
from siam_bids.errors import ModelError

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Told the bytes that are there and the bytes expected (0 if unknown)."""

CHECKPOINT = "checkpoint_final.pth"
"""A fold's weights, as nnU-Net writes them."""

CONVERTED = "model.safetensors"
"""The same, as `fetch` keeps them; used where both are there."""

_BLOCK = 1 << 20
_TIMEOUT = 60


def search_path(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Return the folders that may hold downloaded models; new ones go into the first.

    Those of `SIAM_MODEL_DIR` (several are joined as in PATH), else `nnUNet_results`; then the
    platform's data folder, then SIAM's own `~/siam_params`.
    """
    chosen = environ.get("SIAM_MODEL_DIR", "").split(os.pathsep)
    if not any(chosen):
        chosen = [environ.get("nnUNet_results", "")]
    home = Path.home()
    if sys.platform == "darwin":
        data = home / "Library" / "Application Support"
    elif sys.platform == "win32":
        data = Path(environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    else:
        data = Path(environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    fallback = (data / "siam-bids" / "models", home / "siam_params")
    return (*(Path(folder).expanduser() for folder in chosen if folder), *fallback)


def find_folder(start: Path) -> Path | None:
    """Return `start` or the one folder at most three levels below it that holds plans.json."""
    for depth in range(4):
        found = sorted(path.parent for path in start.glob("*/" * depth + "plans.json"))
        if found:
            return found[0] if len(found) == 1 else None
    return None


def fold_weights(folder: Path) -> tuple[Path, ...]:
    """List the weights of each fold of a model folder: converted where there are such."""
    found = {
        path.parent: path
        for name in (CHECKPOINT, CONVERTED)
        for path in folder.glob(f"fold_*/{name}")
    }
    return tuple(path for _, path in sorted(found.items()))


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
            f"{record} does not tell the checksum of {file} ({_reason(error)}).",
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
            reason = _reason(error)
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
            while block := answer.read(_BLOCK):
                stream.write(block)
                there += len(block)
                if progress:
                    progress(there, expected)
    return there == expected if expected else True


def check(path: Path, checksum: str) -> None:
    """Compare a file with a checksum such as `md5:<hex>` or `sha256:<hex>`.

    Raises
    ------
    ModelError
        They differ, or the checksum is of an unknown kind.
    """
    kind, _, expected = checksum.partition(":")
    if kind not in ("md5", "sha256") or not expected:
        raise ModelError(f"{checksum!r} is no checksum.", "Write md5:<hex> or sha256:<hex>.")
    found = files.checksum(path, kind)
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


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar or zip archive of plain files and folders.

    Raises
    ------
    ModelError
        It is neither, is damaged, or holds a link, a device or a path that leaves `folder`;
        then nothing of it is unpacked.
    """
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, folder)
        else:
            _unpack_tar(archive, folder)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise ModelError(f"{archive.name} cannot be unpacked: {_reason(error)}.") from error


def _unpack_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as content:
        members = content.getmembers()
        for member in members:
            _check_member(archive, member.name, plain=member.isfile() or member.isdir())
        check_space(folder, sum(member.size for member in members))
        for member in members:
            source = content.extractfile(member) if member.isfile() else None
            if source:
                with _created(folder, member.name).open("wb") as target:
                    shutil.copyfileobj(source, target, _BLOCK)


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as content:
        members = content.infolist()
        for member in members:
            kind = stat.S_IFMT(member.external_attr >> 16)
            _check_member(archive, member.filename, plain=kind in (0, stat.S_IFREG, stat.S_IFDIR))
        check_space(folder, sum(member.file_size for member in members))
        for member in members:
            if not member.is_dir():
                with (
                    content.open(member) as source,
                    _created(folder, member.filename).open("wb") as target,
                ):
                    shutil.copyfileobj(source, target, _BLOCK)


def _check_member(archive: Path, name: str, *, plain: bool) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    leaves = path.is_absolute() or ".." in path.parts or ":" in name
    if leaves or not plain:
        kind = "a path outside its folder" if leaves else "a link or device"
        raise ModelError(f"{archive.name} holds {kind}, {name!r}, and is refused.")


def _created(folder: Path, name: str) -> Path:
    path = folder.joinpath(*PurePosixPath(name.replace("\\", "/")).parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def is_writable(folder: Path) -> bool:
    """Tell whether files can be made in a folder, or the folder itself can."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return os.access(there, os.W_OK | os.X_OK)


def _reason(error: BaseException) -> str:
    return str(getattr(error, "reason", "") or error or type(error).__name__)
