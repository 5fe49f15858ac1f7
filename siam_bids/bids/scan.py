"""One anatomical image of a dataset, its identity, and the folders of such images."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from siam_bids.errors import DatasetError

EXTENSIONS = (".nii.gz", ".nii")
CT = ("ct", "CT")
FOLDERS = ("anat", *CT)
"""Folders of head images: those of BIDS, and for CT those of BIDS extension proposal 24."""

CONSENSUS = "consensus"
"""What takes the place of the contrast in the names of the results of a whole session."""

NO_ANATOMY = ("phase", "real", "imag")

ENTITIES = (
    "sub", "tpl", "ses", "cohort", "sample", "task", "tracksys", "acq", "nuc", "voi", "ce", "trc",
    "stain", "rec", "dir", "run", "mod", "echo", "flip", "inv", "mt", "part", "proc", "hemi",
    "space", "split", "recording", "chunk", "atlas", "seg", "scale", "res", "den", "label", "desc",
)  # fmt: skip
"""Keys of all entities, in the order that BIDS 1.11 requires."""

_NUMBERED = ("run", "echo", "flip", "inv", "split", "chunk")
LABEL = r"[0-9a-zA-Z+]+"


@dataclass(frozen=True)
class BidsName:
    """A name of BIDS, without folder and extension: the identity of a scan.

    Attributes
    ----------
    entities
        Keys with labels, `("sub", "01")` first, in the order of BIDS whatever order was given.
    suffix
        The contrast, for example `T1w`.
    """

    entities: tuple[tuple[str, str], ...]
    suffix: str

    @classmethod
    def parse(cls, name: str) -> BidsName:
        """Take a name apart, `sub-01_ses-a_run-2_T1w`.

        Raises
        ------
        DatasetError
            BIDS does not allow the name; says in one line what is wrong with it.
        """
        *parts, suffix = name.split("_")
        labels: dict[str, str] = {}
        for part in parts:
            key, label = _entity(part)
            if key in labels:
                raise DatasetError(f"The name has {key}- twice.")
            labels[key] = label
        if not re.fullmatch("[0-9a-zA-Z]+", suffix, re.ASCII):
            raise DatasetError(
                f"The suffix '{printable(suffix)}' may contain only letters and digits."
            )
        if "sub" not in labels:
            raise DatasetError("The name has no sub- entity.")
        return cls(tuple((key, labels[key]) for key in ENTITIES if key in labels), suffix)

    @cached_property
    def labels(self) -> dict[str, str]:
        """Labels by key."""
        return dict(self.entities)

    @property
    def subject(self) -> str:
        """Label without `sub-`."""
        return self.labels["sub"]

    @property
    def session(self) -> str:
        """Label without `ses-`; empty where there is none."""
        return self.labels.get("ses", "")

    @property
    def visit(self) -> tuple[str, str]:
        """`sub-01` and `ses-a`, the latter empty where there is none."""
        return f"sub-{self.subject}", f"ses-{self.session}" if self.session else ""

    @property
    def stem(self) -> str:
        """All entities of the name, in order: `sub-01_ses-a_run-2`."""
        return "_".join(f"{key}-{label}" for key, label in self.entities)

    def __str__(self) -> str:
        return f"{self.stem}_{self.suffix}"


def _entity(part: str) -> tuple[str, str]:
    """Take `key-label` apart; `DatasetError` says what is wrong with it."""
    key, dash, label = part.partition("-")
    if not dash:
        raise DatasetError(
            f"'{printable(part)}' in the name is not an entity (key-label); labels cannot "
            "contain underscores."
        )
    if key not in ENTITIES:
        meant = f" Did you mean {key.lower()}-?" if key.lower() in ENTITIES else ""
        raise DatasetError(f"'{printable(key)}-' in the name is not a BIDS entity.{meant}")
    if not re.fullmatch(LABEL, label, re.ASCII):
        raise DatasetError(
            f"The label of '{printable(part)}' may contain only letters, digits and +."
        )
    if key in _NUMBERED and not label.isdigit():
        raise DatasetError(
            f"'{part}' in the name must be a number, because BIDS requires one for {key}-."
        )
    return key, label


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One anatomical image of a dataset.

    Attributes
    ----------
    path
        The image file.
    relative
        Its path from the dataset's root, with forward slashes.
    identity
        What its name says; all outputs are named from it.
    """

    path: Path
    relative: str
    identity: BidsName

    @classmethod
    def at(cls, root: Path, path: Path) -> Scan:
        """Return the scan of an image file.

        Raises
        ------
        DatasetError
            BIDS does not allow its name, or not in this folder.
        """
        identity = BidsName.parse(stem_of(path))
        *above, _, _ = path.relative_to(root).parts
        places = dict(zip(("sub", "ses"), above, strict=False))
        for key, kind in (("sub", "participant"), ("ses", "session")):
            named = f"{key}-{identity.labels[key]}" if key in identity.labels else f"no {kind}"
            place = printable(places.get(key, f"no {kind} folder"))
            if named != place and (key in places or key in identity.labels):
                raise DatasetError(f"The name says {named}, but the file is in {place}.")
        return cls(path=path, relative=path.relative_to(root).as_posix(), identity=identity)

    @property
    def name(self) -> str:
        """Name without extension: `sub-01_ses-a_run-2_T1w`."""
        return str(self.identity)


def stem_of(path: Path) -> str:
    """Return an image's name without its extension."""
    ending = next((ending for ending in EXTENSIONS if path.name.endswith(ending)), "")
    return path.name.removesuffix(ending)


def printable(text: str) -> str:
    """Return text that fits on one line of any stream; other characters become `?`."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
