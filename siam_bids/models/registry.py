"""Which models there are, and what exactly a run uses: name, version and checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from siam_bids.errors import ModelError
from siam_bids.models.composition import Composition
from siam_bids.models.folder import find_folder, fold_weights, read_object
from siam_bids.models.labels import LABELS
from siam_bids.models.model import Model
from siam_bids.support.atomic_files import sha256
from siam_bids.support.package_data import resource

_DEEPEST = 10  # cascades within each other

MANIFEST = "siam-bids.json"
"""Beside plans.json of a fetched model: its name, and size and SHA-256 of every file."""


def registry() -> dict[str, dict[str, Any]]:
    """Return the content of data/models.json."""
    content: dict[str, dict[str, Any]] = json.loads(
        resource("data", "models.json").read_text(encoding="utf-8")
    )
    return content


def find_model(
    name: str,
    roots: Sequence[Path] = (),
    checkpoint: str = "",
    *,
    named_by: tuple[Path, ...] = (),
) -> Model:
    """Find a registered model by name, or take the path of a model folder, ensemble or cascade.

    An ensemble is an entry of models.json, or a JSON file like one, that names its `members`. A
    cascade names a `model` and `regions`: pairs of `inside`, a label, and the `model` that refines
    it. Paths may be relative to the file.

    Parameters
    ----------
    roots
        Folders of downloaded models, see `folder.search_path`.
    checkpoint
        Which file of each fold is run, see `folder.fold_weights`.
    named_by
        The files of ensembles and cascades that name this model, the outermost first.

    Raises
    ------
    ModelError
        Neither a known name nor a folder, not fetched yet, the folder lacks a part, or a cascade
        names itself.
    """
    known = registry()
    if name.endswith(".json"):
        path = Path(name).expanduser()
        files = (*named_by, path.resolve())
        if path.resolve() in named_by or len(files) > _DEEPEST:
            raise ModelError(
                f"{' names '.join(file.name for file in files[-3:])}: a circular reference."
            )
        find = partial(find_model, roots=roots, checkpoint=checkpoint, named_by=files)
        return Composition.read(path).joined(path.stem, find)
    if name in known and models_named_in(known[name]):
        find = partial(find_model, roots=roots, checkpoint=checkpoint, named_by=named_by)
        return Composition.of(known[name]).joined(name, find)
    if name in known:
        return _registered(name, known[name], roots, checkpoint)
    start = Path(name).expanduser()
    if not start.is_dir():
        raise ModelError(
            f"There is no model {name!r}.",
            f"Known: {', '.join(known)}; or give the path of an nnU-Net v2 model folder.",
        )
    folder = find_folder(start) or start
    return Model(
        name=start.resolve().name,
        title=start.resolve().name,
        version="unversioned",
        folder=folder,
        checkpoint=checkpoint,
        sha256=_folder_checksum(folder, checkpoint),
        licence="",
        citation="",
    )


def _registered(
    name: str, entry: Mapping[str, Any], roots: Sequence[Path], checkpoint: str
) -> Model:
    """Return a single model of models.json."""
    if not (here := locate(name, roots)):
        raise ModelError(
            f"The model {name} is not installed.", f"Get it with: siam-bids-models fetch {name}"
        )
    (folder,) = here
    settings = Composition.of(entry)
    return Model(
        name=name,
        title=entry["title"],
        version=entry.get("version") or read_object(folder / "version.json")["version"],
        folder=folder,
        checkpoint=checkpoint,
        sha256=_folder_checksum(folder, checkpoint),
        licence=entry["licence"],
        citation=entry["citation"],
        precisions=settings.precisions,
        mirror=entry.get("mirror", False),
        intensities=settings.intensities,
        upright=settings.upright,
        repair_spikes=entry.get("repair_spikes", False),
    )


def locate(name: str, roots: Sequence[Path]) -> list[Path]:
    """Return the folders of a registered model, one if it is single; none if not all are here."""
    entry = registry()[name]
    if named := models_named_in(entry):
        found = [locate(each, roots) for each in named]
        return [folder for folders in found for folder in folders] if all(found) else []
    if "archive" not in entry:
        return [resource(*entry["folder"].split("/"))]
    folders = (find_folder(root / entry["folder"]) for root in roots)
    return [folder for folder in folders if folder is not None][:1]


def models_named_in(entry: Mapping[str, Any]) -> list[str]:
    """Name the registered models of a registered ensemble or cascade; none for a single model."""
    first = [entry["model"]] if "model" in entry else []
    regions = [region["model"] for region in entry.get("regions", ())]
    return [*entry.get("members", ()), *first, *regions]


def model_files(folder: Path, checkpoint: str = "") -> list[Path]:
    """List the files of a model: two JSON files, perhaps a label table, the folds' weights."""
    tables = [folder / LABELS] if (folder / LABELS).exists() else []
    weights = fold_weights(folder, checkpoint)
    return [folder / "plans.json", folder / "dataset.json", *tables, *weights]


def listed_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what the manifest of a fetched model lists: size and SHA-256 by the file's path.

    Raises
    ------
    ModelError
        It is no such list.
    """
    files = read_object(folder / MANIFEST).get("files")
    good = isinstance(files, dict) and all(
        isinstance(about, dict)
        and isinstance(about.get("size"), int)
        and isinstance(about.get("sha256"), str)
        for about in files.values()
    )
    if not isinstance(files, dict) or not good:
        raise ModelError(f"{folder / MANIFEST} is not a list of files.", "Fetch the model again.")
    return files


def _hash(path: Path) -> str:
    """Return the SHA-256 of a file, which is read again only if its size or time changes."""
    about = path.stat()
    return _hash_of(path, about.st_size, about.st_mtime_ns)


@cache
def _hash_of(path: Path, _size: int, _time: int) -> str:
    return sha256(path)


def _folder_checksum(folder: Path, checkpoint: str) -> str:
    known = listed_files(folder) if (folder / MANIFEST).exists() else {}
    digest = hashlib.sha256()
    for path in model_files(folder, checkpoint):
        if not path.is_file():
            what = "is not a regular file" if path.exists() else "is missing"
            raise ModelError(f"{folder} is not an nnU-Net model folder: {path.name} {what}.")
        name = path.relative_to(folder).as_posix()
        listed = known.get(name, {})
        same = listed.get("size") == path.stat().st_size  # gigabytes: hashed by `verify` only
        digest.update(f"{name} {listed['sha256'] if same else _hash(path)}\n".encode())
    return digest.hexdigest()
