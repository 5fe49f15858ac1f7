"""Which models there are, and what exactly a run uses: name, version and checksum."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from siam_bids import store
from siam_bids.config import Inference
from siam_bids.errors import ModelError, UsageError
from siam_bids.files import sha256, write_json
from siam_bids.focus import Focus
from siam_bids.intensities import Intensities
from siam_bids.pose import Upright
from siam_bids.resources import resource

MANIFEST = "siam-bids.json"
"""Beside plans.json of a fetched model: its name, and size and SHA-256 of every file."""


@dataclass(frozen=True)
class Region:
    """A label that another model refines: its name, and that model."""

    inside: str
    model: ModelRecord


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """Identity of a model on disk.

    Attributes
    ----------
    name, title, version
        Registry name, name for people, version string (`unversioned` for a user's own folder).
    folder
        The nnU-Net v2 model folder.
    sha256
        Checksum over plans.json, dataset.json and all checkpoints.
    licence, citation
        Empty where unknown.
    precisions
        Those (`bfloat16`, `int8`) whose labels were compared with float32's and agreed on 99.9 % or
        more of the voxels of whole scans: the first that the CPU is fast in is the default.
        Measured for the embedded models only, see benchmarks/precision.py. What is known of an
        ensemble holds for its members in it, not for these alone.
    mirror
        Whether mirrored tiles are averaged by default: measured to help, and trained for. Of an
        ensemble, only its members know.
    members
        The models of an ensemble, whose probabilities are averaged; empty for a single model.
    focus
        Where members but the first look; None for everywhere.
    intensities
        How far the labels follow the intensities of the scan; None for not at all. What a member of
        an ensemble has here holds for it alone.
    upright
        Which heads are turned upright and looked at again; None for no such thing. What a member of
        an ensemble has here holds for it alone.
    regions
        What refines labels of this model, in order; see `chain`.
    """

    name: str
    title: str
    version: str
    folder: Path
    sha256: str
    licence: str
    citation: str
    precisions: tuple[str, ...] = ()
    mirror: bool = False
    members: tuple[ModelRecord, ...] = ()
    focus: Focus | None = None
    intensities: Intensities | None = None
    upright: Upright | None = None
    regions: tuple[Region, ...] = ()

    def describe(self) -> dict[str, Any]:
        """Return the model as sidecars name it."""
        members = [each.describe() for each in self.members]
        focus = self.focus and self.focus.describe()
        intensities = self.intensities and self.intensities.describe()
        upright = self.upright and self.upright.describe()
        regions = [{"Inside": each.inside, **each.model.describe()} for each in self.regions]
        return {
            "Name": self.name,
            "Title": self.title,
            "Version": self.version,
            "SHA256": self.sha256,
            "License": self.licence,
            "Citation": self.citation,
            **({"MirroredByDefault": True} if self.mirror else {}),
            **({"Members": members} if members else {}),
            **({"Focus": focus} if focus else {}),
            **({"Intensities": intensities} if intensities else {}),
            **({"Upright": upright} if upright else {}),
            **({"Regions": regions} if regions else {}),
        }

    def as_asked(self, options: Inference) -> ModelRecord:
        """Return the model without what the options leave out of it."""
        return replace(
            self,
            intensities=self.intensities if options.intensities else None,
            upright=self.upright if options.upright else None,
        )

    def parts(self) -> list[ModelRecord]:
        """Return all models, each with a folder of its own."""
        heads = [part for each in self.members for part in each.parts()] or [self]
        return [*heads, *(part for region in self.regions for part in region.model.parts())]


def registry() -> dict[str, dict[str, Any]]:
    """Return the content of data/models.json."""
    content: dict[str, dict[str, Any]] = json.loads(
        resource("data", "models.json").read_text(encoding="utf-8")
    )
    return content


def find_model(name: str, roots: Sequence[Path] = ()) -> ModelRecord:
    """Find a registered model by name, or take the path of a model folder, ensemble or chain.

    An ensemble is an entry of models.json, or a JSON file like one, that names its `members`. A
    chain names a `model` and `regions`: pairs of `inside`, a label, and the `model` that refines
    it. Paths may be relative to the file.

    Parameters
    ----------
    roots
        Where downloaded models may lie, see `store.search_path`.

    Raises
    ------
    ModelError
        Neither a known name nor a folder, not fetched yet, or the folder lacks a part.
    """
    known = registry()
    if name.endswith(".json"):
        return _joined(Path(name).stem, _joined_file(Path(name).expanduser()), roots)
    if name in known:
        entry = known[name]
        if _parts_of(entry):
            return _joined(name, entry, roots)
        if not (here := locate(name, roots)):
            raise ModelError(
                f"The model {name} is not here.", f"Get it with: siam-bids-models fetch {name}"
            )
        (folder,) = here
        version = entry.get("version") or _read(folder / "version.json")["version"]
        return ModelRecord(
            name=name,
            title=entry["title"],
            version=version,
            folder=folder,
            sha256=_folder_checksum(folder),
            licence=entry["licence"],
            citation=entry["citation"],
            precisions=tuple(entry.get("precisions", ())),
            mirror=entry.get("mirror", False),
            intensities=_intensities(entry),
            upright=_upright(entry),
        )
    start = Path(name).expanduser()
    if not start.is_dir():
        raise ModelError(
            f"There is no model {name!r}.",
            f"Known: {', '.join(known)}; or give the path of an nnU-Net v2 model folder.",
        )
    folder = store.find_folder(start) or start
    return ModelRecord(
        name=start.resolve().name,
        title=start.resolve().name,
        version="unversioned",
        folder=folder,
        sha256=_folder_checksum(folder),
        licence="",
        citation="",
    )


def _joined_file(path: Path) -> dict[str, Any]:
    """Read an ensemble or a chain; paths in it become absolute."""

    def absolute(model: str) -> str:
        there = path.parent / Path(model).expanduser()
        return str(there) if there.exists() else model

    try:
        content = _read(path)
        members = [absolute(each) for each in content.get("members", ())]
        first: dict[str, Any]
        if len(members) > 1:
            first, listed = {"members": members}, content.get("regions", ())
        else:
            first = {"model": absolute(content["model"])}
            more = "intensities" in content or "upright" in content
            listed = content.get("regions", ()) if more else content["regions"]
        regions = [
            {"inside": str(each["inside"]), "model": absolute(each["model"])} for each in listed
        ]
        return {**content, **first, "regions": regions}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path} is no chain of models ({error}).",
            'Write {"model": ..., "regions": [{"inside": LABEL, "model": ...}]} '
            'or, for an ensemble, {"members": [..., ...]}.',
        ) from error


def _joined(name: str, entry: Mapping[str, Any], roots: Sequence[Path]) -> ModelRecord:
    """Put together what an ensemble or a chain names; it has a checksum over all its parts."""
    members = tuple(find_model(each, roots) for each in entry.get("members", ()))
    first = members[0] if members else find_model(entry["model"], roots)
    regions = tuple(
        Region(each["inside"], find_model(each["model"], roots))
        for each in entry.get("regions", ())
    )
    for member in members:
        if member.members or member.regions:
            raise ModelError(f"{name}: {member.name} is no single model, so no member.")
    members = tuple(replace(member, intensities=None, upright=None) for member in members)
    if known := tuple(entry.get("precisions", ())):
        members = tuple(replace(member, precisions=known) for member in members)
    heads = members or (first,)
    models = [*heads, *(region.model for region in regions)]
    parts = "".join(f"{member.sha256}\n" for member in members[1:])
    parts += "".join(f"{region.inside} {region.model.sha256}\n" for region in regions)
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
        name=name,
        title=entry.get("title", " + ".join(model.title for model in models)),
        version=entry.get("version", " + ".join(model.version for model in models)),
        sha256=hashlib.sha256(f"{first.sha256}\n{parts}".encode()).hexdigest(),
        citation=entry.get("citation", " ".join(citations)),
        regions=(*first.regions, *regions),
    )


def _intensities(entry: Mapping[str, Any]) -> Intensities | None:
    return Intensities.of(entry["intensities"]) if "intensities" in entry else None


def _upright(entry: Mapping[str, Any]) -> Upright | None:
    return Upright.of(entry["upright"]) if "upright" in entry else None


def locate(name: str, roots: Sequence[Path]) -> list[Path]:
    """Return the folders of a registered model, one if it is single; none if not all are here."""
    entry = registry()[name]
    if parts := _parts_of(entry):
        found = [locate(part, roots) for part in parts]
        return [folder for folders in found for folder in folders] if all(found) else []
    if "archive" not in entry:
        return [resource(*entry["folder"].split("/"))]
    folders = (store.find_folder(root / entry["folder"]) for root in roots)
    return [folder for folder in folders if folder is not None][:1]


def _parts_of(entry: Mapping[str, Any]) -> list[str]:
    """Name the registered models of a registered ensemble or chain; none for a single model."""
    first = [entry["model"]] if "model" in entry else []
    regions = [region["model"] for region in entry.get("regions", ())]
    return [*entry.get("members", ()), *first, *regions]


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _parts(folder: Path) -> list[Path]:
    """List the files that make up a model: two JSON files and the weights of each fold."""
    return [folder / "plans.json", folder / "dataset.json", *store.fold_weights(folder)]


def _hash(path: Path) -> str:
    """Return the SHA-256 of a file, which is read anew only if its size or time changes."""
    about = path.stat()
    return _hash_of(path, about.st_size, about.st_mtime_ns)


@cache
def _hash_of(path: Path, _size: int, _time: int) -> str:
    return sha256(path)


def _folder_checksum(folder: Path) -> str:
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, KeyError):
        known = _read(folder / MANIFEST)["files"]
    digest = hashlib.sha256()
    for part in _parts(folder):
        if not part.exists():
            raise ModelError(f"{folder} is no nnU-Net model folder: {part.name} is missing.")
        name = part.relative_to(folder).as_posix()
        listed = known.get(name, {})
        same = listed.get("size") == part.stat().st_size  # gigabytes: hashed by `verify` only
        digest.update(f"{name} {listed['sha256'] if same else _hash(part)}\n".encode())
    return digest.hexdigest()


def fetch(
    name: str,
    roots: Sequence[Path],
    *,
    convert: Callable[[Path], None],
    url: str = "",
    archive: Path | None = None,
    checksum: str = "",
    progress: store.Progress | None = None,
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
    entry = registry().get(name)
    if entry is None:
        raise UsageError(f"There is no model {name!r}.", f"Known: {', '.join(registry())}.")
    if parts := _parts_of(entry):
        server = url if url.endswith("/") else ""
        folders = [
            fetch(part, roots, convert=convert, url=server, progress=progress) for part in parts
        ]
        return folders[0]
    if there := locate(name, roots):
        return there[0]
    root = roots[0]
    if not store.is_writable(root):
        raise ModelError(f"{root} cannot be written.", "Set SIAM_MODEL_DIR to another folder.")
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{name}.lock"):
        if there := locate(name, roots):  # another process has brought it meanwhile
            return there[0]
        source: Mapping[str, Any] = entry["archive"]
        size = int(source.get("size", 0))
        checksum = checksum or source.get("checksum", "")
        file = source["url"].rsplit("/", 1)[1]
        if not checksum:
            checksum, size = store.published_checksum(source["record"], file)
        about = {"name": name, "archive": checksum}
        target = root / entry["folder"]
        if archive:
            store.check(archive, checksum)
            return _install(archive, target, convert, about)
        store.check_space(root, 2 * size)
        address = (url + file if url.endswith("/") else url) or source["url"]
        got = root / ".download" / file
        store.download(address, got, size=size, progress=progress)
        try:
            store.check(got, checksum)
        except ModelError:
            got.unlink()
            raise
        folder = _install(got, target, convert, about)
        got.unlink()
        return folder


def _install(
    archive: Path, target: Path, convert: Callable[[Path], None], about: dict[str, Any]
) -> Path:
    """Unpack beside the target, convert, list what is there, and only then move it in place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=target.parent) as scratch:
        store.unpack(archive, Path(scratch) / "content")
        folder = store.find_folder(Path(scratch) / "content")
        if folder is None:
            raise ModelError(f"{archive.name} holds no nnU-Net model folder (plans.json).")
        convert(folder)
        files = {
            part.relative_to(folder).as_posix(): {
                "size": part.stat().st_size,
                "sha256": sha256(part),
            }
            for part in _parts(folder)
        }
        write_json(folder / MANIFEST, {**about, "files": files})
        if target.exists() and not any(target.iterdir()):
            target.rmdir()
        try:
            os.rename(folder, target)  # noqa: PTH104 - must fail where something is in the way
        except OSError as error:
            raise ModelError(f"{target} is in the way.", "Move it away.") from error
    return target


def verify(name: str, roots: Sequence[Path]) -> Iterator[tuple[str, bool]]:
    """Hash every file of a fetched model anew; yield its name and whether it is unchanged.

    Raises
    ------
    ModelError
        The model is not here, or was not fetched by this app, so that nothing is known about it.
    """
    record = find_model(name, roots)
    for model in record.parts():
        manifest = model.folder / MANIFEST
        if not manifest.exists():
            raise ModelError(
                f"{model.folder} has no {MANIFEST}: it was not fetched by siam-bids-models."
            )
        for part, listed in _read(manifest)["files"].items():
            path = model.folder / part
            yield part, path.exists() and sha256(path) == listed["sha256"]


def remove(name: str, roots: Sequence[Path]) -> Path:
    """Delete a model that `fetch` brought; return where it was.

    Raises
    ------
    ModelError
        It is not here, was not brought by `fetch` (shipped, or part of a SIAM installation), or
        consists of models that others may use too.
    """
    record = find_model(name, roots)
    if len(parts := record.parts()) > 1:
        names = ", ".join(dict.fromkeys(part.name for part in parts))
        raise ModelError(f"{name} consists of {names}.", "Remove those that you can spare.")
    folder = record.folder
    if not (folder / MANIFEST).exists():
        raise ModelError(f"{folder} was not fetched by siam-bids-models and is left alone.")
    shutil.rmtree(folder)
    return folder
