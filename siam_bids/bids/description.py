"""What makes a folder a derivative dataset: its description and the files at its root."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from siam_bids import __version__
from siam_bids.bids.label_tables import (
    FREESURFER_TABLE,
    ITKSNAP_TABLE,
    LABEL_TABLE,
    for_freesurfer,
    for_itksnap,
    read_label_table,
    save_label_table,
)
from siam_bids.bids.names import finished_scans, sidecar
from siam_bids.bids.ownership import PIPELINE
from siam_bids.errors import UsageError
from siam_bids.image.labels import LabelTable
from siam_bids.measures.aseg import aseg_labels
from siam_bids.measures.hemispheres import sided_labels
from siam_bids.support.atomic_files import read_json, write_json, write_text
from siam_bids.support.input_files import is_listed, read_text

BIDS_VERSION = "1.11.1"
DESCRIPTION = "dataset_description.json"

_IGNORED = (
    "*.html", "figures", "seg-*.txt", "group_*", "*_volumes.tsv", "*_volumes.json",
    "*_lesions.tsv", "*_lesions.json", "*_qc.tsv", "*_qc.json",
)  # fmt: skip

ABOUT_LABELS = {
    "Description": f"Labels of head tissues, named in {LABEL_TABLE}.",
    "SpatialReference": "orig",
}
"""Fields of the sidecars of all label maps, which inherit them from that of the label table."""

_COLUMNS = {
    "role": {"Description": "What the tissue counts as, for example brain; n/a where unknown."},
    "parent": {"Description": "The label that this one refines, or n/a."},
}


@dataclass(frozen=True)
class Further:
    """A label map of other values than the model's: its labels, and what its sidecars say."""

    table: Callable[[LabelTable], LabelTable]
    about: dict[str, str]


FURTHER = {
    "siamhemi": Further(
        sided_labels,
        {
            "Description": "Labels of head tissues, those of paired tissues by hemisphere: 1000 "
            "more than in seg-siam on the left, 2000 more on the right; named in "
            "seg-siamhemi_dseg.tsv.",
            "SpatialReference": "orig",
        },
    ),
    "aseg": Further(
        lambda _: aseg_labels(),
        {
            "Description": "Brain and CSF with FreeSurfer's values and names (aseg), named in "
            "seg-aseg_dseg.tsv. Brain stem, cerebellar white matter and the parts of the "
            "ventricles are told apart by geometry.",
            "SpatialReference": "orig",
        },
    ),
}
"""Label maps that can be asked for, by their label of `seg-`."""


def begin_dataset(
    root: Path, source: Path, labels: LabelTable, segmentations: Sequence[str] = ()
) -> None:
    """Write what makes the folder a derivative dataset; safe to repeat and to run at once.

    Parameters
    ----------
    source
        The raw dataset, linked as `raw`.
    segmentations
        Keys of `FURTHER` whose label tables are written too.

    Raises
    ------
    UsageError
        The folder holds results of a model with other labels: one table names all label maps.
    """
    if (
        (root / LABEL_TABLE).exists()
        and _values(read_label_table(root)) != _values(labels)
        and any(finished_scans(root))
    ):
        raise UsageError(
            f"{root} holds results of a model with other labels.", "Give another output folder."
        )
    generator = {"Name": PIPELINE, "Version": __version__}
    authors = read_json(source / DESCRIPTION).get("Authors")
    write_json(
        root / DESCRIPTION,
        {
            "Name": f"Head segmentations by {PIPELINE}",
            **({"Authors": authors} if authors else {}),
            **read_json(root / DESCRIPTION),  # what people added
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [generator],
            "SourceDatasets": [{"URL": source.absolute().as_uri()}],
            "DatasetLinks": {"raw": source.absolute().as_uri()},
        },
    )
    _add_lines(root / ".bidsignore", _IGNORED)
    readme = root / "README"
    first = f"Segmentations of whole-head MRI made by {PIPELINE} "
    if not is_listed(readme) or read_text(readme).startswith(first):
        write_text(
            readme,
            f"{first}{__version__}.\n"
            "Labels: seg-siam_dseg.tsv. Volumes: *_volumes.tsv. "
            "Lesions: *_lesions.tsv. Quality: *_qc.tsv.\n"
            "Pages: sub-*.html and group.html.\n",
        )
    tables = {"siam": (labels, ABOUT_LABELS)}
    tables |= {kind: (FURTHER[kind].table(labels), FURTHER[kind].about) for kind in segmentations}
    for kind, (table, about) in tables.items():
        path = root / LABEL_TABLE.replace("siam", kind)
        save_label_table(path, table)
        write_json(sidecar(path), {**about, **_COLUMNS})
        write_text(root / ITKSNAP_TABLE.replace("siam", kind), for_itksnap(table))
        write_text(root / FREESURFER_TABLE.replace("siam", kind), for_freesurfer(table))


def _add_lines(path: Path, lines: Sequence[str]) -> None:
    """Add lines to a text file, unless it has them."""
    known = read_text(path).splitlines() if is_listed(path) else []
    write_text(path, "\n".join(dict.fromkeys([*known, *lines])) + "\n")


def _values(labels: LabelTable) -> dict[int, str]:
    """Return what the values of label maps mean."""
    return {label.index: label.name for label in labels}


def raw_dataset(root: Path) -> Path | None:
    """Return the dataset that was segmented, as the description of its results links it."""
    links = read_json(root / DESCRIPTION).get("DatasetLinks")
    link = urlsplit(str(links.get("raw", "")) if isinstance(links, dict) else "")
    return Path(url2pathname(link.path)) if link.scheme == "file" else None
