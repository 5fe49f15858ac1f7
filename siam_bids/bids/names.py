"""Every output name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from siam_bids.bids.scan import ENTITIES, BidsName
from siam_bids.errors import DatasetError
from siam_bids.image.labels import name_in_files
from siam_bids.support.tsv import natural

FIGURES = {
    "mosaic": "png",
    "slices": "webp",
    "tissues": "png",
    "contours": "png",
    "thumbnail": "webp",
    "outline": "webp",
}
"""Kinds of pictures of a scan and their file formats, see `siam_bids.reports.mosaics`."""

PREVIEWS = ("image", "labels")
"""Coarse copies that are there with `--viewer`, see `siam_bids.reports.viewer_volumes`."""


KEPT = ("sub", "ses", "task", "acq", "ce", "rec", "run", "echo", "part", "chunk")
"""Entities that BIDS allows in names of label maps, masks and probability maps of anatomy."""

_FOLDED = tuple(key for key in ENTITIES if key not in KEPT)


@dataclass(frozen=True)
class ScanNames:
    """Output names of one scan, from its identity.

    A derivative keeps the entities of its source that BIDS allows there. Its suffix moves to
    `desc-`, and the other entities after it, each with a plus: `inv-2_MP2RAGE` becomes
    `desc-MP2RAGE+inv2`. So the outputs of no two images of a session collide.
    """

    root: Path
    identity: BidsName

    @property
    def name(self) -> str:
        """Source name without extension, as shown to people."""
        return str(self.identity)

    @property
    def anat(self) -> Path:
        """Folder of the images."""
        return self.root.joinpath(*self.identity.visit, "anat")

    @property
    def stem(self) -> str:
        """Entities that the outputs keep: `sub-01_ses-a_run-2`."""
        return "_".join(
            f"{key}-{self.identity.labels[key]}" for key in KEPT if key in self.identity.labels
        )

    @property
    def description(self) -> str:
        """Label of `desc-`: the suffix, and entities that distinguish the source."""
        folded = [key + label for key, label in self.identity.entities if key in _FOLDED]
        return "+".join([self.identity.suffix, *folded])

    def _image(self, entities: str, ending: str) -> Path:
        return self.anat / f"{self.stem}_{entities}desc-{self.description}_{ending}"

    @property
    def segmentation(self) -> Path:
        """Label map."""
        return self._image("seg-siam_", "dseg.nii.gz")

    def further_segmentation(self, kind: str) -> Path:
        """Label map of other values, by its label of `seg-`."""
        return self._image(f"seg-{kind}_", "dseg.nii.gz")

    def further_volumes(self, kind: str) -> Path:
        """Volume table of such a label map."""
        return self._image(f"seg-{kind}_", "volumes.tsv")

    @property
    def transform(self) -> Path:
        """Rigid motion to the space in the middle of the person's scans, for ITK."""
        return self.anat / f"{self.stem}_from-{self.description}_to-person_mode-image_xfm.txt"

    @property
    def brain_mask(self) -> Path:
        """Brain: parenchyma, ventricles, lesions."""
        return self._image("label-brain_", "mask.nii.gz")

    def probability(self, tissue: str) -> Path:
        """Probability map of one tissue.

        The name has `space-orig`, because sMRIPrep takes maps of GM, WM and CSF without `space-`
        for those of FAST.
        """
        label = name_in_files(tissue)
        name = f"{self.stem}_space-orig_seg-siam_label-{label}_desc-{self.description}_probseg"
        return self.anat / f"{BidsName.parse(name)}.nii.gz"

    @property
    def volumes(self) -> Path:
        """Volume table."""
        return self._image("", "volumes.tsv")

    @property
    def lesions(self) -> Path:
        """Table of the lesions, one row each; only of models that have a lesion label."""
        return self._image("", "lesions.tsv")

    @property
    def quality(self) -> Path:
        """Quality metrics, one row."""
        return self._image("", "qc.tsv")

    def figure(self, kind: str) -> Path:
        """Picture for the reports, one of `FIGURES`."""
        return self._figure(f"{kind}.{FIGURES[kind]}")

    def preview(self, kind: str) -> Path:
        """Coarse copy for the viewer, one of `PREVIEWS`."""
        return self._figure(f"preview{kind}.nii.gz")

    def _figure(self, ending: str) -> Path:
        folder = self.root / f"sub-{self.identity.subject}" / "figures"
        return folder / f"{self.stem}_desc-{self.description}_{ending}"

    @property
    def record(self) -> Path:
        """How the last attempt went: time, device, or the error. Not part of BIDS."""
        return self.root / "logs" / f"sub-{self.identity.subject}" / f"{self.name}.json"

    @property
    def report(self) -> Path:
        """The subject's page."""
        return self.root / f"sub-{self.identity.subject}.html"


def sidecar(path: Path) -> Path:
    """Return the JSON file beside an image or table."""
    return path.with_name(path.name.split(".", 1)[0] + ".json")


def finished_scans(root: Path, subject: str = "*") -> Iterator[ScanNames]:
    """Yield every scan of a derivative dataset that has a finished segmentation, by path.

    Files that this app would not name so, or not put there, are no results of it, see
    `stray_results`.
    """
    yield from (names for _, names in _declared(root, subject) if names)


def stray_results(root: Path) -> Iterator[Path]:
    """Yield files that look like results but are not: copied folders, renamed files."""
    for path, names in _declared(root, "*"):
        if names is None and not path.name.startswith("."):
            yield path


_OUTPUT = re.compile(
    r"(?P<stem>sub-.+?)_((seg-(siam|siamhemi|aseg)|label-brain|seg-siam_label-[^_]+)_)?desc-(?P<desc>[^_]+)_"
    r"(dseg\.nii\.gz|mask\.nii\.gz|probseg\.nii\.gz|volumes\.tsv|lesions\.tsv|qc\.tsv)"
)


def undeclared_results(root: Path, subject: str = "*") -> Iterator[tuple[str, Path]]:
    """Yield name and first file of each scan that has files but no sidecar which declares it."""
    seen = set()
    for path in sorted(root.glob(f"sub-{subject}/**/anat/sub-*_desc-*")):
        if found := _OUTPUT.fullmatch(path.name):
            stem = found["stem"].replace("_space-orig", "")
            declared = path.with_name(f"{stem}_seg-siam_desc-{found['desc']}_dseg.json")
            if declared not in seen and not declared.exists():
                names = _names_of(root, declared)
                yield (names.name if names else path.relative_to(root).as_posix()), path
            seen.add(declared)


def _declared(root: Path, subject: str) -> Iterator[tuple[Path, ScanNames | None]]:
    found = root.glob(f"sub-{subject}/**/anat/*_seg-siam_desc-*_dseg.json")
    for path in sorted(found, key=lambda path: [*map(natural, path.parts)]):
        names = _names_of(root, path)
        yield path, names if names and sidecar(names.segmentation) == path else None


def _names_of(root: Path, path: Path) -> ScanNames | None:
    try:
        return ScanNames(root, source_of(BidsName.parse(path.name.removesuffix(".json"))))
    except DatasetError:
        return None


def source_of(output: BidsName) -> BidsName:
    """Return the identity of a scan from the name of its label map, see `ScanNames`."""
    suffix, *folded = output.labels.get("desc", "").split("+")
    entities = [f"{key}-{label}" for key, label in output.entities if key in KEPT]
    for piece in folded:
        key = next((key for key in _FOLDED if piece.startswith(key)), "")
        if key:
            entities.append(f"{key}-{piece.removeprefix(key)}")
        else:  # a label with a plus
            entities[-1] += f"+{piece}"
    return BidsName.parse("_".join([*entities, suffix]))
