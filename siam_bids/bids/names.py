"""Every output name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from siam_bids.image.labels import name_in_files

FIGURES = {
    "mosaic": "png",
    "slices": "webp",
    "tissues": "png",
    "thumbnail": "webp",
    "outline": "webp",
}
"""Kinds of pictures of a scan and their file formats, see `siam_bids.reports.mosaics`."""

PREVIEWS = ("image", "labels")
"""Coarse copies that are there with `--viewer`, see `siam_bids.reports.viewer_volumes`."""


@dataclass(frozen=True)
class ScanNames:
    """Output names of one scan, from the entities and suffix of its source.

    A derivative keeps every source entity; the suffix moves to `desc-`, so that contrasts of one
    session never collide.
    """

    root: Path
    subject: str
    session: str
    stem: str
    suffix: str

    @property
    def name(self) -> str:
        """Source name without extension, as shown to people."""
        return f"{self.stem}_{self.suffix}"

    @property
    def session_id(self) -> str:
        """`ses-a`, or empty where the dataset has no sessions."""
        return f"ses-{self.session}" if self.session else ""

    @property
    def anat(self) -> Path:
        """Folder of the images."""
        return self.root / f"sub-{self.subject}" / self.session_id / "anat"

    def _image(self, entities: str, ending: str) -> Path:
        return self.anat / f"{self.stem}_{entities}desc-{self.suffix}_{ending}"

    @property
    def segmentation(self) -> Path:
        """Label map."""
        return self._image("seg-siam_", "dseg.nii.gz")

    @property
    def brain_mask(self) -> Path:
        """Brain: parenchyma, ventricles, lesions."""
        return self._image("label-brain_", "mask.nii.gz")

    def probability(self, tissue: str) -> Path:
        """Probability map of one tissue."""
        return self._image(f"seg-siam_label-{name_in_files(tissue)}_", "probseg.nii.gz")

    @property
    def volumes(self) -> Path:
        """Volume table."""
        return self._image("", "volumes.tsv")

    @property
    def quality(self) -> Path:
        """Quality metrics, one row."""
        return self._image("", "qc.tsv")

    def figure(self, kind: str) -> Path:
        """Picture for the reports, one of `FIGURES`."""
        folder = self.root / f"sub-{self.subject}" / "figures"
        return folder / f"{self.stem}_desc-{self.suffix}_{kind}.{FIGURES[kind]}"

    def preview(self, kind: str) -> Path:
        """Coarse copy for the viewer, one of `PREVIEWS`."""
        folder = self.root / f"sub-{self.subject}" / "figures"
        return folder / f"{self.stem}_desc-{self.suffix}_preview{kind}.nii.gz"

    @property
    def record(self) -> Path:
        """How the last attempt went: time, device, or the error. Outside the standard's reach."""
        return self.root / "logs" / f"sub-{self.subject}" / f"{self.name}.json"

    @property
    def report(self) -> Path:
        """The subject's page."""
        return self.root / f"sub-{self.subject}.html"


def sidecar(path: Path) -> Path:
    """Return the JSON file beside an image or table."""
    return path.with_name(path.name.split(".", 1)[0] + ".json")


def finished_scans(root: Path, subject: str = "*") -> Iterator[ScanNames]:
    """Yield every scan of a derivative dataset that has a finished segmentation, by path."""
    for path in sorted(root.glob(f"sub-{subject}/**/anat/*_seg-siam_desc-*_dseg.json")):
        stem, _, rest = path.name.partition("_seg-siam_desc-")
        yield scan_names(root, stem, rest.removesuffix("_dseg.json"))


def scan_names(root: Path, stem: str, suffix: str) -> ScanNames:
    """Return the output names of a scan from its name without suffix, and its suffix."""
    entities = dict(part.split("-", 1) for part in stem.split("_"))
    return ScanNames(root, entities["sub"], entities.get("ses", ""), stem, suffix)
