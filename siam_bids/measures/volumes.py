"""Volumes of tissues, counted in voxels and in millilitres."""

from __future__ import annotations

import numpy as np
import pandas as pd

from siam_bids.image.grid import Segmentation
from siam_bids.image.labels import LabelTable

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


def dictionary(labels: LabelTable) -> dict[str, dict[str, str]]:
    """Return the data dictionary of the volumes of these labels."""
    name = DICTIONARY["name"]["Description"]
    total = f" {INTRACRANIAL} is the {describe_total(labels)}." if labels.intracranial else ""
    return {**DICTIONARY, "name": {"Description": name + total}}


def describe_total(labels: LabelTable) -> str:
    """Say in words what the total intracranial volume is with these labels: a sum of some."""
    names = ", ".join(label.name for label in labels.intracranial)
    return f"total intracranial volume, the sum of {names or 'no label'}"


def tissue_volumes(segmentation: Segmentation) -> pd.DataFrame:
    """Measure every label of the table, absent ones as 0, and their intracranial sum.

    The sum is left out where it is not known which labels are inside the skull.

    Returns
    -------
    Columns index (Int64, missing for the sum), name, voxels, volume_mL (mL, not rounded).
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
    return table
