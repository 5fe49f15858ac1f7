"""Label tables as BIDS, ITK-SNAP and FreeSurfer read them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from siam_bids.errors import DatasetError, LabelError
from siam_bids.image.labels import Label, LabelTable, known_labels
from siam_bids.support.atomic_files import write_text
from siam_bids.support.tsv import read_rows

LABEL_TABLE = "seg-siam_dseg.tsv"
ITKSNAP_TABLE = "seg-siam_itksnap.txt"
FREESURFER_TABLE = "seg-siam_freesurfer.txt"


def for_itksnap(labels: LabelTable) -> str:
    """Return the labels as ITK-SNAP loads them (Segmentation, Import Label Descriptions)."""
    rows = ["# ITK-SnAP Label Description File", "# index, red, green, blue, opacity, shown, mesh"]
    for label in labels:
        seen = int(label.index != 0)
        color = " ".join(f"{part:3d}" for part in label.rgb)
        rows.append(f'{label.index:5d}  {color}  {seen}  {seen}  {seen}  "{label.long_name}"')
    return "\n".join(rows) + "\n"


def for_freesurfer(labels: LabelTable) -> str:
    """Return the labels as a FreeSurfer colour table, for freeview's and FSLeyes' lookup tables."""
    rows = ["#No. Name R G B A"]
    rows += [f"{label.index} {label.name} {' '.join(map(str, label.rgb))} 0" for label in labels]
    return "\n".join(rows) + "\n"


def save_label_table(path: Path, labels: LabelTable) -> dict[Path, str]:
    """Write a label table in BIDS format: index, name, abbreviation, color, mapping; and role.

    A further column `parent` names what a label refines, where there are such labels.

    Returns
    -------
    The path with the SHA-256 of what was written.
    """
    columns = {
        "index": [str(label.index) for label in labels],
        "name": [label.long_name for label in labels],
        "abbreviation": [label.name for label in labels],
        "color": [label.color for label in labels],
        "mapping": ["n/a" if label.mapping is None else str(label.mapping) for label in labels],
        "role": [label.role or "n/a" for label in labels],
    }
    if any(label.parent for label in labels):
        columns["parent"] = [label.parent or "n/a" for label in labels]
    rows = [tuple(columns), *zip(*columns.values(), strict=True)]
    return {path: write_text(path, "".join("\t".join(row) + "\n" for row in rows))}


def read_label_table(root: Path) -> LabelTable:
    """Read back the label table of a derivative dataset.

    Those of versions before 0.13 have no column `role`: what SIAM names has its role.

    Raises
    ------
    DatasetError
        It is absent, cut or of another form.
    """
    path = root / LABEL_TABLE
    try:
        rows = read_rows(path)
        known = known_labels([row["abbreviation"] for row in rows])
        labels = tuple(
            Label(
                index=int(row["index"]),
                name=row["abbreviation"],
                long_name=row["name"],
                color=row["color"],
                mapping=int(row["mapping"]) if row["mapping"] != "n/a" else None,
                role=row["role"].replace("n/a", "") if "role" in row else _role_of(row, known),
                parent=row.get("parent", "").replace("n/a", ""),
            )
            for row in rows
        )
        _ = [label.rgb for label in labels]  # colours are no colours if this fails
        return LabelTable(labels)
    except KeyError as error:
        raise _unreadable(path, f"it has no column {error.args[0]}") from error
    except (ValueError, LabelError) as error:
        raise _unreadable(path, str(error).removesuffix(".")) from error


def _unreadable(path: Path, reason: str) -> DatasetError:
    return DatasetError(
        f"{path} cannot be read as a label table: {reason}.",
        "Remove it and run the participant level, which rewrites it.",
    )


def _role_of(row: Mapping[str, str], known: Mapping[str, Label]) -> str:
    """Return the role of a label by its name, or by that of the label it refines."""
    match = known.get(row["abbreviation"]) or known.get(row.get("parent", ""))
    return match.role if match else ""
