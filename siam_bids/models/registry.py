"""Which models there are, and what exactly a run uses: name, version and checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from siam_bids.errors import ModelError
from siam_bids.models.folder import find_folder, fold_weights, read_object
from siam_bids.models.labels import LABELS
from siam_bids.models.model import Model, Region
from siam_bids.models.settings import Focus, Intensities, Upright
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
        return _joined(path.stem, _joined_file(path), roots, checkpoint, files)
    if name in known:
        entry = known[name]
        if models_named_in(entry):
            return _joined(name, entry, roots, checkpoint, named_by)
        if not (here := locate(name, roots)):
            raise ModelError(
                f"The model {name} is not installed.", f"Get it with: siam-bids-models fetch {name}"
            )
        (folder,) = here
        version = entry.get("version") or read_object(folder / "version.json")["version"]
        return Model(
            name=name,
            title=entry["title"],
            version=version,
            folder=folder,
            checkpoint=checkpoint,
            sha256=_folder_checksum(folder, checkpoint),
            licence=entry["licence"],
            citation=entry["citation"],
            precisions=tuple(entry.get("precisions", ())),
            mirror=entry.get("mirror", False),
            intensities=_intensities(entry),
            upright=_upright(entry),
            repair_spikes=entry.get("repair_spikes", False),
        )
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


def _joined_file(path: Path) -> dict[str, Any]:
    """Read an ensemble or a cascade; paths in it become absolute."""

    def absolute(model: str) -> str:
        there = path.parent / Path(model).expanduser()
        return str(there) if there.exists() else model

    try:
        content = read_object(path)
        members = [absolute(each) for each in content.get("members", ())]
        first: dict[str, Any]
        if len(members) > 1:
            first, listed = {"members": members}, content.get("regions", ())
        else:
            first = {"model": absolute(content["model"])}
            more = "intensities" in content or "upright" in content
            listed = content.get("regions", ()) if more else content["regions"]
        regions = [
            {"inside": _inside(each["inside"]), "model": absolute(each["model"])} for each in listed
        ]
        for key in ("title", "version", "citation"):
            content[key] = str(content[key]) if key in content else ""
        content["precisions"] = [str(each) for each in content.get("precisions", ())]
        said = {key: value for key, value in content.items() if value != ""}
        return {**said, **first, "regions": regions}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ModelError) as error:
        raise ModelError(
            f"{path} is not a cascade of models ({str(error).rstrip('.')}).",
            'Write {"model": ..., "regions": [{"inside": LABEL or [LABEL, ...], "model": ...}]} '
            'or, for an ensemble, {"members": [..., ...]}.',
        ) from error


def _joined(
    name: str,
    entry: Mapping[str, Any],
    roots: Sequence[Path],
    checkpoint: str,
    named_by: tuple[Path, ...],
) -> Model:
    """Assemble an ensemble or a cascade; its checksum covers all its models."""

    def found(model: str) -> Model:
        return find_model(model, roots, checkpoint, named_by=named_by)

    members = tuple(found(each) for each in entry.get("members", ()))
    first = members[0] if members else found(entry["model"])
    regions = tuple(
        Region(_inside(each["inside"]), found(each["model"])) for each in entry.get("regions", ())
    )
    for member in members:
        if member.members or member.regions:
            raise ModelError(
                f"{name}: {member.name} is not a single model, so it cannot be a member."
            )
    members = tuple(replace(member, intensities=None, upright=None) for member in members)
    if known := tuple(entry.get("precisions", ())):
        members = tuple(replace(member, precisions=known) for member in members)
    heads = members or (first,)
    models = [*heads, *(region.model for region in regions)]
    parts = "".join(f"{member.sha256}\n" for member in members[1:])
    parts += "".join(f"{', '.join(each.inside)} {each.model.sha256}\n" for each in regions)
    focus = Focus.of(entry["focus"]) if "focus" in entry else first.focus
    intensities = _intensities(entry) or (None if members else first.intensities)
    upright = _upright(entry) or (None if members else first.upright)
    settings = [each and each.describe() for each in (focus, intensities, upright)]
    parts += json.dumps(settings, sort_keys=True)
    citations = dict.fromkeys(model.citation for model in models if model.citation)
    return replace(
        first,
        precisions=tuple(
            name for name in heads[0].precisions if all(name in head.precisions for head in heads)
        ),
        mirror=first.mirror and not members,
        members=members or first.members,
        focus=focus,
        intensities=intensities,
        upright=upright,
        repair_spikes=all(model.repair_spikes for model in models),
        name=name,
        title=entry.get("title", " + ".join(model.title for model in models)),
        version=entry.get("version", " + ".join(model.version for model in models)),
        sha256=hashlib.sha256(f"{first.sha256}\n{parts}".encode()).hexdigest(),
        citation=entry.get("citation", " ".join(citations)),
        regions=(*first.regions, *regions),
    )


def _inside(given: Any) -> tuple[str, ...]:
    """Return the labels of a region, which may be given as one name or as a list."""
    names = (given,) if isinstance(given, str) else tuple(given)
    if not names or not all(isinstance(name, str) for name in names) or len({*names}) < len(names):
        raise TypeError("inside is neither a label nor a list of labels")
    return names


def _intensities(entry: Mapping[str, Any]) -> Intensities | None:
    return Intensities.of(entry["intensities"]) if "intensities" in entry else None


def _upright(entry: Mapping[str, Any]) -> Upright | None:
    return Upright.of(entry["upright"]) if "upright" in entry else None


def locate(name: str, roots: Sequence[Path]) -> list[Path]:
    """Return the folders of a registered model, one if it is single; none if not all are here."""
    entry = registry()[name]
    if parts := models_named_in(entry):
        found = [locate(part, roots) for part in parts]
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
    for part in model_files(folder, checkpoint):
        if not part.is_file():
            what = "is not a regular file" if part.exists() else "is missing"
            raise ModelError(f"{folder} is not an nnU-Net model folder: {part.name} {what}.")
        name = part.relative_to(folder).as_posix()
        listed = known.get(name, {})
        same = listed.get("size") == part.stat().st_size  # gigabytes: hashed by `verify` only
        digest.update(f"{name} {listed['sha256'] if same else _hash(part)}\n".encode())
    return digest.hexdigest()
