"""The labels that SimNIBS 4 meshes, `m2m_SUB/label_prep/tissue_labeling_upsampled.nii.gz`.

Tissue numbers and the place of the file: SimNIBS 4, `simnibs/utils/mesh_element_properties.py` and
`simnibs/segmentation/charm_main.py`; `simnibs/cli/meshmesh.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from siam_bids.bids.names import ScanNames
from siam_bids.bids.writers import Written, save_segmentation
from siam_bids.errors import DatasetError
from siam_bids.export.head import Head
from siam_bids.export.shapes import Mask, largest
from siam_bids.export.surfaces import check_cover
from siam_bids.export.target import Options, Target, person
from siam_bids.image.grid import Grid, Segmentation
from siam_bids.image.labels import Label, LabelTable

Tissues = npt.NDArray[np.uint8]

WM, GM, CSF, BONE, SCALP, EYES, COMPACT, SPONGY, BLOOD, MUSCLE = range(1, 11)
AIR = 0

NAMES = {
    "WM": WM, "GM": GM, "CSF": CSF, "Bone": BONE, "Scalp": SCALP, "Eye_balls": EYES,
    "Compact_bone": COMPACT, "Spongy_bone": SPONGY, "Blood": BLOOD, "Muscle": MUSCLE,
}  # fmt: skip

OF_ROLE = {
    "cortex": GM, "subcortical": GM, "cerebellum": GM, "white_matter": WM, "brain": WM,
    "lesion": WM, "ventricles": CSF, "csf": CSF, "dura": CSF, "vessels": BLOOD, "skull": BONE,
    "head": SCALP,
}  # fmt: skip
"""Tissue of a label by its role. SimNIBS has no dura: it is CSF, as in its own segmentations."""

OF_NAME = {
    "Wmcereb": WM, "Eye_ball": EYES, "Muscles_Superior": MUSCLE, "Eye_muscle": MUSCLE,
    "Skull_diploe": SPONGY, "maxilar_inf": BONE, "maxilar_inf_diploe": SPONGY, "nose_Skull": BONE,
    "Vertebra": BONE, "Vertebra_diploe": SPONGY, "nose_Air": AIR, "ears_air": AIR,
}  # fmt: skip
"""Labels of finer models of SIAM whose role does not say the tissue."""

RULES = (
    ((WM, GM), (AIR, BONE, SCALP, EYES, COMPACT, SPONGY, MUSCLE), CSF),
    ((CSF,), (AIR, SCALP, EYES, MUSCLE), BONE),
    ((BONE, COMPACT, SPONGY), (AIR,), SCALP),
)
"""What a tissue must not touch by a face, and what such neighbours become, in this order.

The conductivities of neighbours decide the current: brain without CSF, CSF without bone and bone
without scalp would be short circuits. Neighbours are replaced, never the tissue itself.
"""


def tissue_of(label: Label) -> int:
    """Return SimNIBS's number of a label."""
    return OF_NAME.get(label.name, OF_ROLE.get(label.role, AIR))


def write(head: Head, root: Path, _: Options) -> tuple[dict[str, Any], Written]:
    """Write the tissue labels of one scan.

    Raises
    ------
    DatasetError
        The labels do not tell brain, CSF, bone and the rest of the head, or bone and scalp do not
        cover the brain.
    """
    labels = head.labels
    present = {tissue_of(label) for label in labels.foreground}
    if labels.without_role or not {WM, GM, CSF, BONE, SCALP} <= present:
        missing = [name for name, value in NAMES.items() if value <= SCALP and value not in present]
        what = ", ".join(missing or labels.without_role)
        raise DatasetError(
            f"{head.names.name} cannot be exported for SimNIBS: no label is known to be {what}."
        )
    segmentation = head.segmentation
    grid = Grid(segmentation.grid.shape, segmentation.grid.affine)  # meshmesh reads the qform alone
    directions = grid.affine[:3, :3] / np.array(grid.voxel_size)
    if not np.allclose(directions.T @ directions, np.eye(3), atol=1e-4):
        raise DatasetError(
            f"{head.names.name} has sheared voxels, which a qform cannot represent.",
            "Choose another scan with --reference.",
        )
    check_cover(segmentation)
    lookup = np.zeros(256, np.uint8)
    for label in labels.foreground:
        lookup[label.index] = tissue_of(label)
    tissues, changed = repair(lookup[segmentation.data])
    written = save_segmentation(
        person(root, head.names, "m2m_") / "label_prep" / "tissue_labeling_upsampled.nii.gz",
        Segmentation(tissues, grid, _TABLE),
    )
    return {
        "Description": "Tissues numbered as SimNIBS 4 does.",
        "LabelMap": {name: value for name, value in NAMES.items() if value in present},
        "Absent": [name for name, value in NAMES.items() if value not in present],
        "VoxelsChanged": changed,
        "Sources": head.sources,
    }, written


def repair(tissues: Tissues) -> tuple[Tissues, dict[str, int]]:
    """Make tissue labels (I, J, K) fit for meshing.

    Parts that hang on nothing go, holes are filled with the nearest tissue, and `RULES` hold.

    Returns
    -------
    The labels, and how many voxels each step changed.
    """
    found = np.where(largest(tissues > 0), tissues, 0).astype(np.uint8)
    counts = {"Islands": int((found != tissues).sum())}
    holes = ndimage.binary_fill_holes(found > 0) & (found == AIR)
    if holes.any():
        nearest = ndimage.distance_transform_edt(
            found == AIR, return_distances=False, return_indices=True
        )
        found[holes] = found[tuple(axis[holes] for axis in nearest)]
    counts["Holes"] = int(holes.sum())
    for inner, forbidden, between in RULES:
        name = next(name for name, value in NAMES.items() if value == between)
        touched = _touching(np.isin(found, inner)) & np.isin(found, forbidden)
        found[touched] = between
        counts[f"{name}Added"] = int(touched.sum())
    return found, counts


def violations(tissues: Tissues) -> dict[str, int]:
    """Count violations of `RULES`, by the tissue that ought to lie between; and holes."""
    counts = {"Holes": int((ndimage.binary_fill_holes(tissues > 0) & (tissues == AIR)).sum())}
    for inner, forbidden, between in RULES:
        name = next(name for name, value in NAMES.items() if value == between)
        touched = _touching(np.isin(tissues, inner)) & np.isin(tissues, forbidden)
        counts[name] = int(touched.sum())
    return counts


def _touching(mask: Mask) -> Mask:
    """Return what shares a face with a mask and lies outside it."""
    grown: Mask = ndimage.binary_dilation(mask) & ~mask
    return grown


_TABLE = LabelTable.from_names({"background": 0, **NAMES})


def _declares(root: Path, names: ScanNames) -> Path:
    return person(root, names, "m2m_") / "siam-bids.json"


SIMNIBS = Target(
    declares=_declares,
    write=write,
)
