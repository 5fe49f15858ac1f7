"""Lesion masks that fMRIPrep and QSIPrep exclude from registration: `label-lesion_roi`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from siam_bids.bids.names import ScanNames
from siam_bids.bids.writers import Written, save_mask
from siam_bids.errors import DatasetError
from siam_bids.export.head import Head
from siam_bids.export.target import Options, Target, anat
from siam_bids.measures.lesions import connected_lesions, lesion_names


def write(head: Head, root: Path, options: Options) -> tuple[dict[str, Any], Written]:
    """Write the lesions of one scan that are large and certain enough.

    A lesion is what shares faces, edges or corners. Its certainty is the mean probability of the
    lesion labels over its voxels.

    Raises
    ------
    DatasetError
        No label is a lesion, or there is no probability map though certainty is asked for.
    """
    names = lesion_names(head.labels)
    if not names:
        raise DatasetError(
            "No label of this model is a lesion.", "Segment with a model that has one: compact."
        )
    segmentation = head.segmentation
    grid = segmentation.grid
    parts, number = connected_lesions(segmentation)
    every = np.arange(1, number + 1)
    voxels = np.bincount(parts.ravel(), minlength=number + 1)[1:]
    sizes = (voxels * grid.voxel_volume).round(6)
    kept = sizes >= options.smallest
    if options.confidence:
        if head.is_consensus:
            raise DatasetError(
                f"{head.names.name} is a consensus of several scans: it has no probability maps.",
                "Choose a scan with --reference, or leave --min-confidence out.",
            )
        if not head.has_probabilities(names):
            raise DatasetError(
                f"There is no probability map of {', '.join(names)} for the confidence.",
                f"Run siam-bids --overwrite --probabilities {' '.join(names)}.",
            )
        certainty = ndimage.mean(head.probability(names), parts, every)
        kept &= np.asarray(certainty) >= options.confidence
    written = save_mask(
        anat(root, head.names, "label-lesion_roi.nii.gz"), np.isin(parts, every[kept]), grid
    )
    return {
        "Type": "Lesion",
        "Description": "Lesions, 1 inside.",
        "From": [*names],
        "LesionCount": int(kept.sum()),
        "LesionVolume": round(float(sizes[kept].sum()), 1),
        "LesionsLeftOut": int(number - kept.sum()),
        "Sources": head.sources,
        "SpatialReference": "orig",
    }, written


def _declares(root: Path, names: ScanNames) -> Path:
    return anat(root, names, "label-lesion_roi.json")


LESIONS = Target(
    declares=_declares,
    write=write,
    options=("smallest", "confidence"),
)
