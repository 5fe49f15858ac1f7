"""Which models there are, and what exactly a run uses: name, version and checksum."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from siam_bids.errors import ModelError
from siam_bids.files import sha256
from siam_bids.resources import resource

DEFAULT = "compact"


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
    """

    name: str
    title: str
    version: str
    folder: Path
    sha256: str
    licence: str
    citation: str

    def describe(self) -> dict[str, str]:
        """Return the model as sidecars name it."""
        return {
            "Name": self.name,
            "Title": self.title,
            "Version": self.version,
            "SHA256": self.sha256,
            "License": self.licence,
            "Citation": self.citation,
        }


def find_model(name: str) -> ModelRecord:
    """Find a registered model by name, or take the path of an nnU-Net v2 model folder.

    Raises
    ------
    ModelError
        Neither a known name nor a folder, or the folder lacks a part.
    """
    registry = json.loads(resource("data", "models.json").read_text(encoding="utf-8"))
    if name in registry:
        entry = registry[name]
        folder = resource(*entry["folder"].split("/"))
        version = json.loads((folder / "version.json").read_text(encoding="utf-8"))["version"]
        return ModelRecord(
            name=name,
            title=entry["title"],
            version=version,
            folder=folder,
            sha256=_folder_checksum(folder),
            licence=entry["licence"],
            citation=entry["citation"],
        )
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ModelError(
            f"There is no model {name!r}.",
            f"Known: {', '.join(registry)}; or give the path of an nnU-Net v2 model folder.",
        )
    return ModelRecord(
        name=folder.resolve().name,
        title=folder.resolve().name,
        version="unversioned",
        folder=folder,
        sha256=_folder_checksum(folder),
        licence="",
        citation="",
    )


def _folder_checksum(folder: Path) -> str:
    parts = [folder / "plans.json", folder / "dataset.json"]
    parts += sorted(folder.glob("fold_*/checkpoint_final.pth"))
    digest = hashlib.sha256()
    for part in parts:
        if not part.exists():
            raise ModelError(f"{folder} is no nnU-Net model folder: {part.name} is missing.")
        digest.update(f"{part.relative_to(folder).as_posix()} {sha256(part)}\n".encode())
    return digest.hexdigest()
