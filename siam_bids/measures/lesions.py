"""Lesions one by one: their connected parts in a label map, measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import ndimage

from siam_bids.image.grid import Box, Segmentation
from siam_bids.image.labels import LabelTable
from siam_bids.measures.hemispheres import HEMISPHERES

_CONNECTED = np.ones((3, 3, 3), np.bool_)

DICTIONARY: dict[str, dict[str, Any]] = {
    "number": {"Description": "Number of the lesion, the largest first."},
    "voxels": {"Description": "Number of voxels, connected by faces, edges or corners."},
    "volume_mm3": {
        "Description": "Voxels times the volume of one voxel (determinant of the affine).",
        "Units": "mm3",
    },
    "place": {
        "Description": "Tissue that most of the voxels around the lesion have, as in "
        "seg-siam_dseg.tsv; n/a where there is none."
    },
    "hemisphere": {
        "Description": "Hemisphere of most of the voxels around the lesion that have one; n/a "
        "where the hemispheres cannot be told.",
        "Levels": {side: f"{side} hemisphere" for side in HEMISPHERES.values()},
    },
    **{
        axis: {
            "Description": f"Centre of mass in world coordinates, to the {towards}.",
            "Units": "mm",
        }
        for axis, towards in (("x", "right"), ("y", "front"), ("z", "top"))
    },
    "confidence": {
        "Description": "Mean probability of a lesion over its voxels; n/a where it is not known."
    },
}
"""Meaning of the columns of `lesion_table`, as a BIDS data dictionary."""


def lesion_names(labels: LabelTable) -> tuple[str, ...]:
    """Return the names of the labels that stand for lesions."""
    return labels.names("lesion")


def connected_lesions(segmentation: Segmentation) -> tuple[npt.NDArray[np.int32], int]:
    """Find the lesions of a label map: parts connected by faces, edges or corners.

    Returns
    -------
    parts
        (I, J, K) numbers from 1, 0 outside of lesions.
    count
        How many there are.
    """
    mask = segmentation.mask(lesion_names(segmentation.labels))
    parts, count = ndimage.label(mask, structure=_CONNECTED)
    return parts, int(count)


def lesion_table(
    segmentation: Segmentation,
    probability: npt.NDArray[np.floating] | None = None,
    sides: npt.NDArray[np.uint8] | None = None,
) -> pd.DataFrame:
    """Measure each lesion of a label map.

    Parameters
    ----------
    probability
        (I, J, K) of a lesion, in the voxels of lesions at the least.
    sides
        (I, J, K), as `siam_bids.measures.hemispheres.find_sides` returns it.

    Returns
    -------
    The columns of `DICTIONARY`, one row per lesion, the largest first.
    """
    parts, count = connected_lesions(segmentation)
    voxels = np.bincount(parts.ravel(), minlength=count + 1)
    boxes = ndimage.find_objects(parts)
    order = sorted(range(1, count + 1), key=lambda part: (-voxels[part], part))
    rows = []
    for number, part in enumerate(order, start=1):
        box = _wider(boxes[part - 1], parts.shape)
        inside = parts[box] == part
        around = ndimage.binary_dilation(inside, _CONNECTED) & (parts[box] == 0)
        corner = [each.start for each in box]
        centre = np.argwhere(inside).mean(0) + corner
        x, y, z = (segmentation.grid.affine @ [*centre, 1.0])[:3]
        confidence = (
            None if probability is None else float(probability[box][inside].mean(dtype=float))
        )
        rows.append(
            {
                "number": number,
                "voxels": int(voxels[part]),
                "volume_mm3": float(voxels[part] * segmentation.grid.voxel_volume),
                "place": _tissue(segmentation, box, around),
                "hemisphere": None if sides is None else _side(sides[box][around]),
                "x": float(x),
                "y": float(y),
                "z": float(z),
                "confidence": confidence,
            }
        )
    table = pd.DataFrame(rows, columns=[*DICTIONARY])
    return table.astype(
        {
            "number": "Int64",
            "voxels": "Int64",
            **dict.fromkeys(("volume_mm3", "x", "y", "z", "confidence"), "Float64"),
        }
    )


def _wider(box: Box, shape: tuple[int, ...]) -> Box:
    i, j, k = (
        slice(max(0, part.start - 1), min(length, part.stop + 1))
        for part, length in zip(box, shape, strict=True)
    )
    return i, j, k


def _tissue(segmentation: Segmentation, box: Box, around: npt.NDArray[np.bool_]) -> str | None:
    """Return the commonest label around a lesion, the first of equal ones; None for none."""
    counts = np.bincount(segmentation.data[box][around], minlength=1)
    counts[0] = 0
    if not counts.any():
        return None
    return next(label.name for label in segmentation.labels if label.index == counts.argmax())


def _side(around: npt.NDArray[np.uint8]) -> str | None:
    counts = np.bincount(around, minlength=3)[1:3]
    return HEMISPHERES[1 + int(counts.argmax())] if counts.any() else None
