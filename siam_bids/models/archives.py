"""Unpacking archives of models safely."""

from __future__ import annotations

import bz2
import gzip
import io
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from siam_bids.errors import ModelError
from siam_bids.models.download import BLOCK, check_space, reason_of

ENTRIES = 10_000
"""Most files, folders and links in an archive; a model has some dozens."""

EXPANSION = 20
"""Most that an archive may grow by when it is unpacked, as a factor; weights hardly do."""

SMALL = 1 << 30
"""Bytes up to which an archive may grow by any factor."""

_HEADERS = 64 << 20  # bytes of all headers of a tar file together
_HOPS = 40  # links that a link may lead over, as on Linux
_COMPRESSION = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)


@dataclass(frozen=True)
class _Entry:
    """What an archive holds at a path: a folder, a file of so many bytes, or a link to a path.

    A symbolic link counts from the folder it lies in, a hard link from the root of the archive.
    """

    size: int = 0
    folder: bool = False
    link: PurePosixPath | None = None
    symbolic: bool = False


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar (plain, gzip, bzip2) or zip archive.

    A link to a file or folder of the same archive becomes a copy of it; no link is ever made, so
    nothing is written through one.

    Raises
    ------
    ModelError
        It is neither, is damaged, holds a device, or a path or a link that leaves `folder`, has
        more than `ENTRIES` entries, or would grow by more than `EXPANSION`; then nothing of it is
        unpacked. Or the disk has no room for it.
    """
    if not archive.is_file():
        raise ModelError(f"{archive} is not a file.")
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, folder)
        else:
            _unpack_tar(archive, folder)
    except ModelError:
        raise
    except (
        tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError,
        RuntimeError, NotImplementedError,
    ) as error:  # fmt: skip
        raise ModelError(f"{archive.name} cannot be unpacked: {reason_of(error)}.") from error


class _Contents:
    """The entries of an archive, each checked as it is listed."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        self._limit = max(SMALL, EXPANSION * archive.stat().st_size)
        self._total = 0
        self.entries: dict[PurePosixPath, _Entry] = {}

    def add(self, name: str, entry: _Entry) -> PurePosixPath:
        path = self._inside(PurePosixPath(), name)
        self._count(len(self.entries))
        if entry.size < 0:
            raise ModelError(f"{self._archive.name} holds {name!r} of {entry.size} bytes.")
        self._grow(entry.size)
        self.entries[path] = entry
        return path

    def link(self, name: str, target: str, *, symbolic: bool) -> None:
        path = self._inside(PurePosixPath(), name)
        where = path.parent if symbolic else PurePosixPath()
        self._inside(where, target, link=name)
        link = PurePosixPath(target.replace("\\", "/"))
        self.add(name, _Entry(link=link, symbolic=symbolic))

    def refuse(self, name: str) -> ModelError:
        return ModelError(f"{self._archive.name} holds a device or pipe, {name!r}, and is refused.")

    def copies(self) -> dict[PurePosixPath, PurePosixPath]:
        """Return the files to make for links, by path: the file each is a copy of."""
        below: dict[PurePosixPath, list[PurePosixPath]] = {}
        for file in self.files():
            for place in (file, *file.parents):
                below.setdefault(place, []).append(file)
        found: dict[PurePosixPath, PurePosixPath] = {}
        for path, entry in self.entries.items():
            target = None if entry.link is None else self._end_of(path)
            if target is None:
                continue
            for file in below.get(target, ()):
                place = path / file.relative_to(target)
                if place == path or place not in self.entries:
                    found[place] = file
                    self._grow(self.entries[file].size)
                    self._count(len(found))
        return found

    def files(self) -> list[PurePosixPath]:
        """Return the paths of all files."""
        return [path for path, one in self.entries.items() if not one.folder and one.link is None]

    def check_space(self, folder: Path) -> None:
        """Raise `ModelError` unless there is room for all of it."""
        check_space(folder, self._total)

    def _end_of(self, path: PurePosixPath) -> PurePosixPath | None:
        """Follow links as a file system does; None if they lead nowhere or in a circle."""
        ahead, here, hops = [*reversed(path.parts)], PurePosixPath(), 0
        while ahead:
            part = ahead.pop()
            if part == "..":
                if not here.parts:
                    return None
                here = here.parent
                continue
            entry = self.entries.get(here / part)
            if entry is None or entry.link is None:
                here /= part
            elif hops >= _HOPS:
                return None
            else:
                hops += 1
                here = here if entry.symbolic else PurePosixPath()
                ahead += reversed(entry.link.parts)
        return here

    def _count(self, there: int) -> None:
        if there >= ENTRIES:
            raise ModelError(f"{self._archive.name} has more than {ENTRIES} entries.")

    def _inside(self, start: PurePosixPath, name: str, link: str = "") -> PurePosixPath:
        """Return a path from the root of the archive; `ModelError` if it leaves that."""
        path = PurePosixPath(name.replace("\\", "/"))
        parts = list(start.parts)
        leaves = path.is_absolute() or ":" in name or not name.isprintable() or len(name) > 1000
        for part in path.parts:
            if part != "..":
                parts.append(part)
            elif parts and link:
                parts.pop()
            else:
                leaves = True
        if leaves:
            what = f"a link, {link!r}, to" if link else "a path outside its folder,"
            raise ModelError(f"{self._archive.name} holds {what} {name!r}, and is refused.")
        return PurePosixPath(*parts)

    def _grow(self, size: int) -> None:
        self._total += max(size, 0)
        if self._total > self._limit:
            raise ModelError(
                f"{self._archive.name} would grow to more than {self._limit / 1e9:.1f} GB, "
                f"{EXPANSION} times its size, and is refused."
            )


class _Bounded(io.RawIOBase):
    """A stream that tarfile reads headers from, up to `budget` bytes of them.

    A header may say that a name or an extended header has gigabytes, which tarfile would read at
    once.
    """

    def __init__(self, archive: Path, stream: IO[bytes]) -> None:
        self._archive = archive
        self._stream = stream
        self.budget: float = _HEADERS

    def read(self, size: int = -1) -> bytes:
        self.budget -= size if size >= 0 else float("inf")
        if self.budget < 0:
            raise ModelError(f"{self._archive.name} has headers of more than {_HEADERS >> 20} MiB.")
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()


def _decompressed(archive: Path) -> IO[bytes]:
    with archive.open("rb") as stream:
        magic = stream.read(3)
    if magic[:2] == b"\x1f\x8b":
        return cast("IO[bytes]", gzip.open(archive))
    if magic == b"BZh":
        return cast("IO[bytes]", bz2.open(archive))
    return archive.open("rb")


def _unpack_tar(archive: Path, folder: Path) -> None:
    contents = _Contents(archive)
    members: dict[PurePosixPath, tarfile.TarInfo] = {}
    with _decompressed(archive) as stream:
        bounded = _Bounded(archive, stream)
        with tarfile.open(fileobj=cast("IO[bytes]", bounded), mode="r:") as tar:
            for member in tar:  # each is checked before the next is looked for
                if member.issym() or member.islnk():
                    contents.link(member.name, member.linkname, symbolic=member.issym())
                elif member.isfile():
                    members[contents.add(member.name, _Entry(member.size))] = member
                elif member.isdir():
                    contents.add(member.name, _Entry(folder=True))
                else:
                    raise contents.refuse(member.name)
            bounded.budget = float("inf")

            def opened(path: PurePosixPath) -> IO[bytes]:
                return cast("IO[bytes]", tar.extractfile(members[path]))

            _write(contents, folder, opened)


def _unpack_zip(archive: Path, folder: Path) -> None:
    contents = _Contents(archive)
    members: dict[PurePosixPath, zipfile.ZipInfo] = {}
    with zipfile.ZipFile(archive) as content:
        for member in content.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if member.compress_type not in _COMPRESSION:
                raise ModelError(f"{archive.name} has an unsupported compression.")
            if kind == stat.S_IFLNK:
                if member.file_size > 4096:
                    raise ModelError(f"{archive.name} holds a link of {member.file_size} bytes.")
                target = content.read(member).decode("utf-8")
                contents.link(member.filename, target, symbolic=True)
            elif member.is_dir():
                contents.add(member.filename, _Entry(folder=True))
            elif kind in (0, stat.S_IFREG):
                members[contents.add(member.filename, _Entry(member.file_size))] = member
            else:
                raise contents.refuse(member.filename)
        _write(contents, folder, lambda path: content.open(members[path]))


def _write(contents: _Contents, folder: Path, opened: Callable[[PurePosixPath], IO[bytes]]) -> None:
    """Write all files, those that links stand for too."""
    copies: Mapping[PurePosixPath, PurePosixPath] = contents.copies()
    contents.check_space(folder)
    for path, source in [*((path, path) for path in contents.files()), *copies.items()]:
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        with opened(source) as content, place.open("wb") as target:
            shutil.copyfileobj(content, target, BLOCK)
