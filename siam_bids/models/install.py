"""Fetching, verifying and removing models."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from siam_bids.errors import ModelError, UsageError
from siam_bids.models import registry as known
from siam_bids.models.archives import unpack
from siam_bids.models.download import (
    DownloadProgress,
    check_archive,
    check_checksum,
    check_space,
    download,
    is_writable,
    published_checksum,
)
from siam_bids.models.folder import find_folder
from siam_bids.models.registry import (
    MANIFEST,
    find_model,
    listed_files,
    locate,
    model_files,
    models_named_in,
)
from siam_bids.support.atomic_files import sha256, write_json


def fetch(
    name: str,
    roots: Sequence[Path],
    *,
    convert: Callable[[Path], None],
    url: str = "",
    archive: Path | None = None,
    checksum: str = "",
    progress: DownloadProgress | None = None,
) -> Path:
    """Download, check and unpack a registered model, or the parts of one, into the first root.

    What is there already is left alone. Two processes may do this at once: the second waits.

    Parameters
    ----------
    convert
        Told the unpacked model folder, to turn checkpoints into what loads safely and fast.
    url
        Address of the archive on another server, or its folder there (ending in `/`).
    archive
        The archive itself, if it is on this disk already.
    checksum
        `md5:<hex>` or `sha256:<hex>` of the archive; default: what the registry or the record of
        publication says.

    Raises
    ------
    ModelError
        No such model, no network, wrong checksum, an unsafe archive, or too little space.
    """
    entry = known.registry().get(name)
    if entry is None:
        raise UsageError(f"There is no model {name!r}.", f"Known: {', '.join(known.registry())}.")
    if named := models_named_in(entry):
        if archive or checksum:
            raise UsageError(f"{name} consists of {', '.join(named)}.", "Fetch each by its name.")
        server = url if url.endswith("/") else ""
        folders = [
            fetch(each, roots, convert=convert, url=server, progress=progress) for each in named
        ]
        return folders[0]
    if checksum:
        check_checksum(checksum)
    if there := locate(name, roots):
        return there[0]
    root = _writable(roots[0])
    with FileLock(root / f".{name}.lock"):
        if there := locate(name, roots):  # another process has brought it meanwhile
            return there[0]
        source: Mapping[str, Any] = entry["archive"]
        file = source["url"].rsplit("/", 1)[1]
        checksum, size = _expected(source, file, checksum)
        about = {"name": name, "archive": checksum}
        target = root / entry["folder"]
        if archive:
            check_archive(archive, checksum)
            return _install(archive, target, convert, about)
        address = (url + file if url.endswith("/") else url) or source["url"]
        got = _download(address, root / ".download" / file, checksum, size, progress)
        folder = _install(got, target, convert, about)
        got.unlink()
        return folder


def _writable(root: Path) -> Path:
    """Make the folder of models if it is not there."""
    if not is_writable(root):
        raise ModelError(f"{root} cannot be written.", "Set SIAM_MODEL_DIR to another folder.")
    root.mkdir(parents=True, exist_ok=True)
    return root


def _expected(source: Mapping[str, Any], file: str, checksum: str) -> tuple[str, int]:
    """Return checksum and size of an archive: as given, as registered, or as published."""
    if checksum := checksum or source.get("checksum", ""):
        return checksum, int(source.get("size", 0))
    return published_checksum(source["record"], file)


def _download(
    address: str, target: Path, checksum: str, size: int, progress: DownloadProgress | None
) -> Path:
    """Download an archive and check it; what is not genuine is removed."""
    check_space(target.parent, 2 * size)
    download(address, target, size=size, progress=progress)
    try:
        check_archive(target, checksum)
    except ModelError:
        target.unlink()
        raise
    return target


def _install(
    archive: Path, target: Path, convert: Callable[[Path], None], about: dict[str, Any]
) -> Path:
    """Unpack next to the target, convert, list the files, and then move the folder in place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=target.parent) as scratch:
        unpack(archive, Path(scratch) / "content")
        folder = find_folder(Path(scratch) / "content")
        if folder is None:
            raise ModelError(f"{archive.name} holds no nnU-Net model folder (plans.json).")
        convert(folder)
        files = {
            part.relative_to(folder).as_posix(): {
                "size": part.stat().st_size,
                "sha256": sha256(part),
            }
            for part in model_files(folder)
        }
        write_json(folder / MANIFEST, {**about, "files": files})
        if target.exists() and not any(target.iterdir()):
            target.rmdir()
        try:
            os.rename(folder, target)  # noqa: PTH104 - must fail where something is in the way
        except OSError as error:
            raise ModelError(f"{target} already exists.", "Move it away.") from error
    return target


def verify(name: str, roots: Sequence[Path]) -> Iterator[tuple[str, bool]]:
    """Check the hash of every file of a fetched model; yield its name and whether it is unchanged.

    Raises
    ------
    ModelError
        The model is not here, or was not fetched by this app, so that nothing is known about it.
    """
    for model in find_model(name, roots).networks():
        manifest = model.folder / MANIFEST
        if not manifest.exists():
            raise ModelError(
                f"{model.folder} has no {MANIFEST}: it was not fetched by siam-bids-models."
            )
        for part, listed in listed_files(model.folder).items():
            path = model.folder / part
            yield part, path.is_file() and sha256(path) == listed["sha256"]


def remove(name: str, roots: Sequence[Path]) -> Path:
    """Delete a model that `fetch` brought; return where it was.

    Raises
    ------
    ModelError
        It is not here, was not brought by `fetch` (shipped, or part of a SIAM installation), or
        consists of models that others may use too.
    """
    model = find_model(name, roots)
    if len(networks := model.networks()) > 1:
        names = ", ".join(dict.fromkeys(each.name for each in networks))
        raise ModelError(f"{name} consists of {names}.", "Remove those that you do not need.")
    folder = model.folder
    if name not in known.registry():
        raise ModelError(
            f"{name} is not a registered model and was not removed.", "Remove it yourself."
        )
    if not (folder / MANIFEST).exists():
        raise ModelError(f"{folder} was not fetched by siam-bids-models and was not removed.")
    shutil.rmtree(folder)
    return folder
