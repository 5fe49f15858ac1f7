"""Files that appear complete or not at all, whoever else writes into the same folder.

No locks: a file is written under a temporary name and renamed, which is atomic on local disks
and NFS.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from siam_bids.support.input_files import load_json

SCRATCH = ".tmp-"
"""How the names of files begin that are still being written."""

_OWN_SCRATCH = re.compile(
    rf"{re.escape(SCRATCH)}(?P<host>[0-9a-f]{{10}})-(?P<process>\d{{1,9}})-[0-9a-z_]{{8}}\.",
    re.ASCII,
)
_FORGOTTEN_AFTER = 3600.0  # seconds without a write
_STAGED = ".files"
_NO_LINKS = (errno.EPERM, errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path` that replaces it when the block ends without error.

    The scratch file starts with a dot and keeps the extensions, so that writers which choose the
    format by name work, and nobody mistakes it for a result. Its content is on the disk before it
    takes its name, so a node that loses power leaves no empty result.
    """
    with together() as batch:
        yield batch.scratch(path)


@contextmanager
def together() -> Iterator[Batch]:
    """Yield a batch of files that are all renamed when the block ends without error.

    All of them are on the disk before the first one takes its name: a disk that fills up leaves
    every old file as it was.
    """
    batch = Batch()
    try:
        yield batch
        batch.finish()
    finally:
        batch.drop()


class Batch:
    """Files that are written under temporary names and renamed together."""

    def __init__(self) -> None:
        self._scratch: dict[Path, Path] = {}
        self._outdated: list[Path] = []

    def scratch(self, path: Path) -> Path:
        """Return an empty scratch file that will replace `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f"{SCRATCH}{this_host()}-{os.getpid()}-",
            suffix="." + path.name.split(".", 1)[-1],
            dir=path.parent,
        )
        os.close(handle)
        self._scratch[path] = Path(name)
        return Path(name)

    def write_text(self, path: Path, text: str) -> str:
        """Write UTF-8 text; a file with the same content is left unchanged.

        What has no UTF-8 (half a pair of surrogates, as JSON allows) becomes a question mark.

        Returns
        -------
        SHA-256 of the content, in hexadecimal.
        """
        content = text.encode(errors="replace")
        same = False
        with suppress(OSError):  # absent, or replaced on another NFS client while we read
            same = path.is_file() and path.read_bytes() == content
        if not same:
            self.scratch(path).write_bytes(content)
        return hashlib.sha256(content).hexdigest()

    def write_json(self, path: Path, content: Mapping[str, Any]) -> str:
        """Write indented JSON, as `write_text` does."""
        return self.write_text(path, _as_json(content))

    def remove(self, path: Path) -> None:
        """Remove a file, if it exists, after the others were renamed."""
        self._outdated.append(path)

    def finish(self) -> None:
        """Rename all files."""
        for scratch in self._scratch.values():
            _settle(scratch)
        for path, scratch in self._scratch.items():
            scratch.replace(path)
        for path in self._outdated:
            path.unlink(missing_ok=True)

    def drop(self) -> None:
        """Remove the temporary files that were not renamed."""
        for scratch in self._scratch.values():
            scratch.unlink(missing_ok=True)


def _as_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _settle(scratch: Path) -> None:
    """Give a file the usual permissions and let it reach the disk, where the disk knows of such.

    CIFS and FUSE file systems may refuse either with EPERM, EINVAL or ENOTSUP.
    """
    with _tolerated():
        scratch.chmod(0o666 & ~_umask())
    with scratch.open("rb+") as stream, _tolerated():
        os.fsync(stream.fileno())


@contextmanager
def _tolerated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise


@cache
def this_host() -> str:
    """Name the space in which a process number means one process: machine and PID namespace."""
    try:
        namespace = Path("/proc/self/ns/pid").readlink().name
    except OSError:  # no Linux
        namespace = ""
    return hashlib.sha256(f"{platform.node()} {namespace}".encode()).hexdigest()[:10]


@contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """Yield an empty folder inside `parent` that is removed when the block ends.

    Files are made in it that will take their places together. `sweep` removes it if the process
    is killed.
    """
    parent.mkdir(parents=True, exist_ok=True)
    prefix = f"{SCRATCH}{this_host()}-{os.getpid()}-"
    place = Path(tempfile.mkdtemp(prefix=prefix, suffix=_STAGED, dir=parent))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def claim_json(path: Path, content: Mapping[str, Any]) -> bool:
    """Write indented JSON atomically unless something has that name; tell whether it was written.

    Of several processes one succeeds (where the file system knows no links, nearly always).
    """
    batch = Batch()
    try:
        scratch = batch.scratch(path)
        scratch.write_bytes(_as_json(content).encode(errors="replace"))
        _settle(scratch)
        return _link(scratch, path)
    finally:
        batch.drop()


def withdraw_json(path: Path, ours: Callable[[dict[str, Any]], bool]) -> None:
    """Remove a JSON file if its content is ours; what another process wrote stays.

    It is first taken away and then looked at, so that none is removed unseen.
    """
    batch = Batch()
    try:
        scratch = batch.scratch(path)
        with suppress(FileNotFoundError):
            path.replace(scratch)
            if not ours(read_json(scratch)):
                _link(scratch, path)
    finally:
        batch.drop()


def _link(scratch: Path, path: Path) -> bool:
    """Give a file a name that is free; tell whether it was."""
    try:
        os.link(scratch, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():
            return False
        scratch.replace(path)
    return True


def sweep(folders: Iterable[Path]) -> None:
    """Remove the scratch files that processes which were killed left in some folders.

    So are the folders of `staging`. What may belong to a living process stays: written to within
    the last hour by a process of another machine, or by one of this machine whose number is in
    use. So does what has another name. Time is that of the file system, not of this machine's
    clock.
    """
    for folder in folders:
        found = [
            (path, owner)
            for path in folder.glob(f"{SCRATCH}*")
            if (owner := _OWN_SCRATCH.match(path.name))
            and (path.is_dir() if path.name.endswith(_STAGED) else path.is_file())
            and (path.is_file() or (path.is_dir() and path.name.endswith(_STAGED)))
        ]
        if found:
            with suppress(OSError):  # a folder that others own: they will sweep it
                _remove_forgotten(found, _now_in(folder))


def _remove_forgotten(found: Sequence[tuple[Path, re.Match[str]]], now: float) -> None:
    for scratch, owner in found:
        dead = owner["host"] == this_host() and not _alive(int(owner["process"]))
        with suppress(FileNotFoundError):
            if dead or now - scratch.lstat().st_mtime > _FORGOTTEN_AFTER:
                shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink()


def _now_in(folder: Path) -> float:
    """Return the time by the clock that dates the files of a folder, in seconds."""
    with tempfile.TemporaryFile(dir=folder) as stream:
        stream.write(b"now")
        stream.flush()
        return os.fstat(stream.fileno()).st_mtime


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> str:
    """Write UTF-8 text atomically, see `Batch.write_text`; return the SHA-256 of its content."""
    with together() as batch:
        return batch.write_text(path, text)


def write_json(path: Path, content: Mapping[str, Any]) -> str:
    """Write indented JSON atomically; return the SHA-256 of its content."""
    with together() as batch:
        return batch.write_json(path, content)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    return checksum(path, "sha256")


def checksum(path: Path, kind: str) -> str:
    """Return the checksum of a file's content, in hexadecimal; `kind` as hashlib names it."""
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an absent or broken file is an empty one (an unfinished result)."""
    try:
        content = load_json(path)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
