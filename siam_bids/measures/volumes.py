"""Volumes of tissues, counted in voxels and in millilitres."""

from __future__ import annotations

import numpy as np
import pandas as pd

from siam_bids.image.grid import Segmentation
from siam_bids.image.labels import INTRACRANIAL_TISSUES

INTRACRANIAL = "TIV"
"""Name of the row with the total intracranial volume."""

DICTIONARY = {
    "index": {"Description": "Voxel value in the segmentation; n/a for sums of several labels."},
    "name": {
        "Description": "Tissue, as in seg-siam_dseg.tsv. "
        f"{INTRACRANIAL} is the total intracranial volume: the sum of "
        f"{', '.join(INTRACRANIAL_TISSUES)}, as far as the model has them."
    },
    "voxels": {"Description": "Number of voxels."},
    "volume_mL": {
        "Description": "Voxels times the volume of one voxel (determinant of the affine).",
        "Units": "mL",
    },
}
"""Meaning of the columns of `tissue_volumes`, as a BIDS data dictionary."""


def tissue_volumes(segmentation: Segmentation) -> pd.DataFrame:
    """Measure every label of the table, absent ones as 0, and their intracranial sum.

    Returns
    -------
    Columns index (Int64, missing for the sum), name, voxels, volume_mL (mL, not rounded).
    """
    labels = segmentation.labels
    counts = np.bincount(segmentation.data.ravel(), minlength=labels.labels[-1].index + 1)
    millilitres = segmentation.grid.voxel_volume / 1000
    rows = [(label.index, label.name, int(counts[label.index])) for label in labels.foreground]
    inside = sum(int(counts[index]) for index in labels.indices(INTRACRANIAL_TISSUES))
    table = pd.DataFrame([*rows, (None, INTRACRANIAL, inside)], columns=["index", "name", "voxels"])
    table["index"] = table["index"].astype("Int64")
    table["volume_mL"] = table["voxels"] * millilitres
    return table
