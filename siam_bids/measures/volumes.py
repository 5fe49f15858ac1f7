"""Volumes of tissues and of their sides, counted in voxels and in millilitres."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from siam_bids.image.grid import Segmentation
from siam_bids.image.labels import LabelTable
from siam_bids.measures.hemispheres import HEMISPHERES, paired_labels

INTRACRANIAL = "TIV"
"""Name of the row with the total intracranial volume."""

DICTIONARY = {
    "index": {"Description": "Voxel value in the segmentation; n/a for sums of several labels."},
    "name": {"Description": "Tissue, as in seg-siam_dseg.tsv."},
    "voxels": {"Description": "Number of voxels."},
    "volume_mL": {
        "Description": "Voxels times the volume of one voxel (determinant of the affine).",
        "Units": "mL",
    },
}
"""Meaning of the columns of `tissue_volumes`, as a BIDS data dictionary."""

SIDE_COLUMNS = tuple(f"{side}_{unit}" for unit in ("voxels", "mL") for side in HEMISPHERES.values())
"""Further columns of models that have paired tissues."""

SIDES_DICTIONARY = {
    name: {
        "Description": f"{what} of the tissue in the {name.partition('_')[0]} hemisphere; n/a for "
        "tissues that are not paired, and where the hemispheres cannot be told."
    }
    | ({"Units": "mL"} if name.endswith("mL") else {})
    for name, what in zip(SIDE_COLUMNS, (*["Number of voxels"] * 2, *["Volume"] * 2), strict=True)
}
"""Their meaning."""


COMBINED = "combined"
"""Column of the tables of a run with `--combine`."""

NOT_COMBINED = "none"

COMBINED_DICTIONARY: dict[str, dict[str, Any]] = {
    COMBINED: {
        "Description": "Whether the labels follow a prior that several scans of the participant "
        "share (--combine). Volumes with and without are not comparable.",
        "Levels": {
            NOT_COMBINED: "segmented alone",
            "contrasts": "prior of the scans of its session",
            "sessions": "prior of like scans of all sessions",
            "all": "prior of all scans of the participant",
        },
    }
}


def dictionary(labels: LabelTable) -> dict[str, dict[str, Any]]:
    """Return the data dictionary of the volumes of these labels."""
    name = DICTIONARY["name"]["Description"]
    total = f" {INTRACRANIAL} is the {describe_total(labels)}." if labels.intracranial else ""
    sides = SIDES_DICTIONARY if paired_labels(labels) else {}
    return {**DICTIONARY, "name": {"Description": name + total}, **sides}


def describe_total(labels: LabelTable) -> str:
    """Say in words what the total intracranial volume is with these labels: a sum of some."""
    names = ", ".join(label.name for label in labels.intracranial)
    return f"total intracranial volume, the sum of {names or 'no label'}"


def tissue_volumes(
    segmentation: Segmentation, sides: npt.NDArray[np.uint8] | None = None
) -> pd.DataFrame:
    """Measure every label of the table, absent ones as 0, and their intracranial sum.

    The sum is left out where it is not known which labels are inside the skull.

    Parameters
    ----------
    sides
        (I, J, K), as `siam_bids.measures.hemispheres.find_sides` returns it.

    Returns
    -------
    Columns index (Int64, missing for the sum), name, voxels, volume_mL (mL, not rounded); and if
    the model has paired tissues `SIDE_COLUMNS`, missing for other tissues and without `sides`.
    """
    labels = segmentation.labels
    counts = np.bincount(segmentation.data.ravel(), minlength=labels.labels[-1].index + 1)
    millilitres = segmentation.grid.voxel_volume / 1000
    rows = [(label.index, label.name, int(counts[label.index])) for label in labels.foreground]
    total = sum(int(counts[label.index]) for label in labels.intracranial)
    sums = [(None, INTRACRANIAL, total)] if labels.intracranial else []
    table = pd.DataFrame([*rows, *sums], columns=["index", "name", "voxels"])
    table["index"] = table["index"].astype("Int64")
    table["volume_mL"] = table["voxels"] * millilitres
    if paired := [label.index for label in paired_labels(labels)]:
        for value, side in HEMISPHERES.items():
            own: pd.Series[Any] = pd.Series(pd.NA, index=table.index, dtype="Int64")
            if sides is not None:
                voxels = np.bincount(segmentation.data[sides == value], minlength=len(counts))
                rows_of_paired = table["index"].isin(paired)
                own[rows_of_paired] = voxels[table.loc[rows_of_paired, "index"].to_numpy(int)]
            table[f"{side}_voxels"] = own
        for side in HEMISPHERES.values():
            table[f"{side}_mL"] = table[f"{side}_voxels"].astype("Float64") * millilitres
    return table
