"""The derivative dataset on disk: every name, sidecar and table of it."""

from __future__ import annotations

import errno
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd

from siam_bids import __version__
from siam_bids.errors import UsageError
from siam_bids.files import atomic, sweep, write_json, write_text
from siam_bids.labels import Label, LabelTable, read_rows
from siam_bids.measure import DICTIONARY
from siam_bids.quality import dictionary as quality_dictionary, judge
from siam_bids.volume import Grid, Segmentation

BIDS_VERSION = "1.11.1"
PIPELINE = "siam-bids"
CODE_URL = "https://pypi.org/project/siam-bids"

LABEL_TABLE = "seg-siam_dseg.tsv"
ITKSNAP_TABLE = "seg-siam_itksnap.txt"
FREESURFER_TABLE = "seg-siam_freesurfer.txt"

_IGNORED = (
    "*.html", "figures", "seg-siam_*.txt", "group_*", "*_volumes.tsv", "*_volumes.json",
    "*_qc.tsv", "*_qc.json",
)  # fmt: skip

FIGURES = {
    "mosaic": "png",
    "slices": "webp",
    "tissues": "png",
    "thumbnail": "webp",
    "outline": "webp",
}
"""Kinds of pictures of a scan and their file formats, see `siam_bids.figures`."""

PREVIEWS = ("image", "labels")
"""Coarse copies that are there with `--viewer`, see `siam_bids.preview`."""


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
        return self._image(f"seg-siam_label-{tissue.replace('_', '')}_", "probseg.nii.gz")

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


def begin_dataset(root: Path, source: Path, labels: LabelTable) -> None:
    """Write what makes the folder a derivative dataset; safe to repeat and to run at once.

    Parameters
    ----------
    source
        The raw dataset, linked as `raw`.

    Raises
    ------
    UsageError
        The folder holds results of a model with other labels: one table names all label maps.
    """
    if (root / LABEL_TABLE).exists() and read_label_table(root) != labels and any(results(root)):
        raise UsageError(
            f"{root} holds results of a model with other labels.", "Give another output folder."
        )
    generator = {"Name": PIPELINE, "Version": __version__, "CodeURL": CODE_URL}
    write_json(
        root / "dataset_description.json",
        {
            "Name": f"Head segmentations by {PIPELINE}",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [generator],
            "SourceDatasets": [{"URL": source.absolute().as_uri()}],
            "DatasetLinks": {"raw": source.absolute().as_uri()},
        },
    )
    write_text(root / ".bidsignore", "\n".join(_IGNORED) + "\n")
    write_text(
        root / "README",
        f"Segmentations of whole-head MRI made by {PIPELINE} {__version__}.\n"
        "Labels: seg-siam_dseg.tsv. Volumes: *_volumes.tsv. Quality: *_qc.tsv.\n"
        "Pages: sub-*.html and group.html.\n",
    )
    save_label_table(root / LABEL_TABLE, labels)
    write_text(root / ITKSNAP_TABLE, _for_itksnap(labels))
    write_text(root / FREESURFER_TABLE, _for_freesurfer(labels))


def _for_itksnap(labels: LabelTable) -> str:
    """Return the labels as ITK-SNAP loads them (Segmentation, Import Label Descriptions)."""
    rows = ["# ITK-SnAP Label Description File", "# index, red, green, blue, opacity, shown, mesh"]
    for label in labels:
        seen = int(label.index != 0)
        color = " ".join(f"{part:3d}" for part in label.rgb)
        rows.append(f'{label.index:5d}  {color}  {seen}  {seen}  {seen}  "{label.long_name}"')
    return "\n".join(rows) + "\n"


def _for_freesurfer(labels: LabelTable) -> str:
    """Return the labels as a FreeSurfer colour table, for freeview's and FSLeyes' lookup tables."""
    rows = ["#No. Name R G B A"]
    rows += [f"{label.index} {label.name} {' '.join(map(str, label.rgb))} 0" for label in labels]
    return "\n".join(rows) + "\n"


def save_label_table(path: Path, labels: LabelTable) -> None:
    """Write a label table as BIDS wants it: index, name, abbreviation, color, mapping.

    A further column `parent` names the label that one refines, where there are such.
    """
    columns = {
        "index": [str(label.index) for label in labels],
        "name": [label.long_name for label in labels],
        "abbreviation": [label.name for label in labels],
        "color": [label.color for label in labels],
        "mapping": [str(label.mapping) for label in labels],
    }
    if any(label.parent for label in labels):
        columns["parent"] = [label.parent or "n/a" for label in labels]
    rows = [tuple(columns), *zip(*columns.values(), strict=True)]
    write_text(path, "".join("\t".join(row) + "\n" for row in rows))


def read_label_table(root: Path) -> LabelTable:
    """Read back the label table of a derivative dataset."""
    return LabelTable(
        tuple(
            Label(
                index=int(row["index"]),
                name=row["abbreviation"],
                long_name=row["name"],
                color=row["color"],
                mapping=int(row["mapping"]),
                parent=row.get("parent", "").replace("n/a", ""),
            )
            for row in read_rows(root / LABEL_TABLE)
        )
    )


def save_segmentation(path: Path, segmentation: Segmentation) -> None:
    """Write a label map as uint8 NIfTI on exactly its grid."""
    _save(path, segmentation.data, segmentation.grid)


def save_mask(path: Path, mask: npt.NDArray[np.bool_], grid: Grid) -> None:
    """Write a mask (I, J, K) as uint8 NIfTI, 1 inside."""
    _save(path, mask.astype(np.uint8), grid)


def save_probability(path: Path, probability: npt.NDArray[np.float32], grid: Grid) -> None:
    """Write probabilities (I, J, K) in [0, 1] as float32 NIfTI."""
    _save(path, probability, grid)


def save_preview(path: Path, data: npt.NDArray[np.uint8], grid: Grid) -> None:
    """Write a coarse copy (I, J, K) as uint8 NIfTI, as small as gzip makes it."""
    image = nib.Nifti1Image(data, grid.affine)
    with atomic(path) as scratch:
        scratch.write_bytes(gzip.compress(image.to_bytes(), mtime=0))


def _save(path: Path, data: npt.NDArray[Any], grid: Grid) -> None:
    image = nib.Nifti1Image(data, grid.affine, dtype=data.dtype)
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, code=1)
    directions = grid.affine[:3, :3] / np.array(grid.voxel_size)
    if np.allclose(directions.T @ directions, np.eye(3), atol=1e-4):  # a qform holds no shear
        image.set_qform(grid.affine, code=1)
    with atomic(path) as scratch:
        nib.save(image, scratch)


def save_volumes(path: Path, table: pd.DataFrame) -> None:
    """Write a volume table as TSV with its data dictionary beside it."""
    write_text(path, _as_tsv(table))
    write_json(sidecar(path), DICTIONARY)


def _as_tsv(table: pd.DataFrame) -> str:
    text: str = table.to_csv(
        sep="\t", index=False, na_rep="n/a", float_format="%.4f", lineterminator="\n"
    )
    return text


def save_quality(path: Path, values: Mapping[str, float]) -> None:
    """Write one scan's metrics as a TSV of one row, its flag and reasons last, and a dictionary."""
    flag, reasons = judge(values)
    table = pd.DataFrame([{**values, "flag": flag, "reasons": "; ".join(reasons) or None}])
    write_text(path, _as_tsv(table))
    write_json(sidecar(path), quality_dictionary(tuple(map(str, table))))


@dataclass(frozen=True, kw_only=True)
class ScanResult:
    """What lies on disk of one finished scan.

    Attributes
    ----------
    about
        Sidecar of the segmentation.
    volumes
        Rows of the volume table: index (None for sums), name, voxels, volume_mL.
    quality
        Metrics by name, those that could be measured; empty for results of versions without them.
    """

    names: ScanNames
    about: dict[str, Any]
    volumes: tuple[dict[str, Any], ...]
    quality: dict[str, float]

    @property
    def millilitres(self) -> dict[str, float]:
        """Volumes by tissue in mL."""
        return {row["name"]: row["volume_mL"] for row in self.volumes}

    @property
    def source(self) -> str:
        """Path of the scan in its dataset."""
        return str(self.about["Sources"][0]).removeprefix("bids:raw:")


def read_result(names: ScanNames) -> ScanResult:
    """Read the tables and the sidecar of one scan, each once."""
    volumes = tuple(
        {
            "index": None if row["index"] == "n/a" else int(row["index"]),
            "name": row["name"],
            "voxels": int(row["voxels"]),
            "volume_mL": float(row["volume_mL"]),
        }
        for row in read_rows(names.volumes)
    )
    rows = read_rows(names.quality) if names.quality.exists() else [{}]
    quality = {
        name: float(value)
        for name, value in rows[0].items()
        if value != "n/a" and name not in ("flag", "reasons")
    }
    about = read_json(sidecar(names.segmentation))
    return ScanResult(names=names, about=about, volumes=volumes, quality=quality)


def save_table(root: Path, name: str, table: pd.DataFrame, described: Mapping[str, Any]) -> None:
    """Write a table of all scans as `NAME.tsv` with its dictionary `NAME.json`, and as Parquet."""
    path = root / f"{name}.tsv"
    write_text(path, _as_tsv(table))
    write_json(sidecar(path), described)
    with atomic(path.with_suffix(".parquet")) as scratch:
        table.to_parquet(scratch, index=False)


def save_phenotype(root: Path, kinds: Mapping[str, tuple[pd.DataFrame, Mapping[str, Any]]]) -> None:
    """Write the wide volumes where BIDS keeps measurements, one file per kind of scan.

    Parameters
    ----------
    kinds
        What follows the participant in the names of the scans, `ses-a_T1w`, to their table (one
        row per participant) and its dictionary.
    """
    folder = root / "phenotype"
    for path in folder.glob("siam_*"):
        if path.stem.removeprefix("siam_") not in kinds:
            path.unlink()
    for kind, (table, described) in kinds.items():
        path = folder / f"siam_{kind}.tsv"
        write_text(path, _as_tsv(table))
        tool = {"Description": f"Volumes of head tissues on {kind} images by {PIPELINE}."}
        write_json(sidecar(path), {"MeasurementToolMetadata": tool, **described})


def remove_table(root: Path, name: str) -> None:
    """Remove what `save_table` wrote earlier and what no longer holds."""
    for ending in ("tsv", "json", "parquet"):
        (root / f"{name}.{ending}").unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an absent or broken file is an empty one (an unfinished result)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


RESULTS_VERSION = 2
"""Raised when labels or tables of the same scan, model and options change, and only then.

1 was up to version 0.12.0, whose sidecars do not name it.
"""

IDENTITY = {
    "InputSHA256": "the input changed",
    "Model": "another model made it",
    "Options": "the options changed",
    "ResultsVersion": "a version of siam-bids that gives other results made it",
}
"""Sidecar entries that must be unchanged for a result to count as done, and what a change means."""


def to_do(names: ScanNames, provenance: Mapping[str, Any], outputs: Sequence[Path]) -> str:
    """Say why a scan must be segmented (anew); empty if it is done.

    Done means: all outputs exist, from the same input, model and options. The sidecar of the
    segmentation is written last of all, so its presence means a whole result.
    """
    known = read_json(sidecar(names.segmentation))
    if not known:
        return "not segmented yet"
    changes = [why for key, why in IDENTITY.items() if known.get(key) != provenance[key]]
    if not changes:
        changes = [f"{path.name} is missing" for path in outputs if not path.exists()]
    return ", ".join(changes[:2])


def begin_scan(names: ScanNames, outputs: Sequence[Path]) -> None:
    """Make the scan count as not done, and remove what its new results will not replace."""
    sidecar(names.segmentation).unlink(missing_ok=True)
    for kind in PREVIEWS:
        names.preview(kind).unlink(missing_ok=True)
    for path in names.anat.glob(
        f"{names.stem}_seg-siam_label-*_desc-{names.suffix}_probseg.nii.gz"
    ):
        if path not in outputs:
            path.unlink(missing_ok=True)
            sidecar(path).unlink(missing_ok=True)


def finish_scan(names: ScanNames, about: Mapping[str, Any], outputs: Sequence[Path]) -> None:
    """Declare a scan done, unless something of it is gone.

    Parameters
    ----------
    about
        What the sidecar of the segmentation says.

    Raises
    ------
    FileNotFoundError
        An output or its sidecar was removed while the scan was written.
    """
    declared = sidecar(names.segmentation)
    write_json(declared, about)
    pictures = {names.figure(kind) for kind in FIGURES}
    beside = [sidecar(path) for path in outputs if path not in pictures]
    for path in (*outputs, *beside):
        if not path.exists():
            declared.unlink(missing_ok=True)
            raise FileNotFoundError(errno.ENOENT, "Removed while the scan was written", str(path))


def sweep_subject(root: Path, subject: str) -> None:
    """Remove what killed runs left half-written in a subject's folders."""
    folders = [root / "logs" / f"sub-{subject}"]
    for pattern in ("figures", "anat", "ses-*/anat"):
        folders += (root / f"sub-{subject}").glob(pattern)
    sweep(folders)


def sweep_root(root: Path) -> None:
    """Remove what killed runs left half-written among the files of the whole dataset."""
    sweep([root, root / "logs"])


def state(root: Path, subject: str) -> list[tuple[str, int]]:
    """Name the finished and failed scans of a subject and when: what its page depends on."""
    good = [sidecar(names.segmentation) for names in results(root, subject)]
    bad = [names.record for names in failures(root, subject)]
    with suppress(FileNotFoundError):  # replaced meanwhile: look again
        return [(path.as_posix(), path.stat().st_mtime_ns) for path in good + bad]
    return []


def save_resources(root: Path) -> None:
    """Write `logs/resources.tsv`: what each scan took, as a table to size jobs with."""
    rows = []
    for names in results(root):
        past = read_json(names.record)
        if "peak_memory_MB" in past:
            stages = {f"{stage}_s": seconds for stage, seconds in past["stages"].items()}
            plain = {key: value for key, value in past.items() if key != "stages"}
            rows.append({"scan": names.name, **plain, **stages})
    if rows:
        text = pd.DataFrame(rows).to_csv(sep="\t", index=False, na_rep="n/a", lineterminator="\n")
        write_text(root / "logs" / "resources.tsv", text)


def results(root: Path, subject: str = "*") -> Iterator[ScanNames]:
    """Yield every scan of a derivative dataset that has a finished segmentation, by path."""
    for path in sorted(root.glob(f"sub-{subject}/**/anat/*_seg-siam_desc-*_dseg.json")):
        stem, _, rest = path.name.partition("_seg-siam_desc-")
        yield _names(root, stem, rest.removesuffix("_dseg.json"))


def failures(root: Path, subject: str = "*") -> Iterator[ScanNames]:
    """Yield every scan whose last attempt failed."""
    for path in sorted(root.glob(f"logs/sub-{subject}/*.json")):
        if read_json(path).get("error"):
            stem, _, suffix = path.stem.rpartition("_")
            yield _names(root, stem, suffix)


def _names(root: Path, stem: str, suffix: str) -> ScanNames:
    entities = dict(part.split("-", 1) for part in stem.split("_"))
    return ScanNames(root, entities["sub"], entities.get("ses", ""), stem, suffix)
