"""Unpacking archives of models safely."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

from siam_bids.errors import ModelError
from siam_bids.models.download import (
    BLOCK,
    check_space,
    reason_of,
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
        raise ModelError(f"{archive.name} cannot be unpacked: {reason_of(error)}.") from error


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
                    shutil.copyfileobj(source, target, BLOCK)


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
                    shutil.copyfileobj(source, target, BLOCK)


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
