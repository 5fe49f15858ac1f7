"""Files that sMRIPrep reads with `--derivatives`: brain mask, three classes, their maps.

Names and query: smriprep 0.19, `smriprep/data/io_spec.json`. All images have their voxels in RAS+
order, as sMRIPrep turns the scan itself (niworkflows' `Conform`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK

from siam_bids.bids.names import ScanNames
from siam_bids.bids.writers import (
    Written,
    save_image,
    save_mask,
    save_probability,
    save_segmentation,
    save_sidecar,
    save_values,
)
from siam_bids.errors import DatasetError
from siam_bids.export.head import Head
from siam_bids.export.shapes import closed
from siam_bids.export.target import Options, Target, anat
from siam_bids.image.grid import Reorientation, Segmentation, Volume
from siam_bids.image.labels import INTRACRANIAL, Label, LabelTable
from siam_bids.measures.aseg import aseg_values, can_be_aseg

CLASSES = {"GM": "gray matter", "WM": "white matter", "CSF": "cerebrospinal fluid"}
"""Abbreviation and meaning of the values 1, 2 and 3, in the order that sMRIPrep wants."""

CLASS_OF_ROLE = {
    "cortex": "GM",
    "subcortical": "GM",
    "cerebellum": "GM",
    "lesion": "GM",
    "white_matter": "WM",
    "brain": "WM",
    "ventricles": "CSF",
    "csf": "CSF",
}
"""FAST's three classes (Zhang et al., IEEE TMI 2001) of what our labels tell apart.

The brain stem is white matter. Lesions are grey matter, as dark ones are to FAST in a T1w image:
so white matter and CSF, from which fMRIPrep takes nuisance signals, hold none.
"""

WHITE = ("Wmcereb",)
"""Labels of role cerebellum that are white matter."""

CORRECTED = ("T1w", "T2w")
"""Suffixes whose bias-corrected image sMRIPrep takes."""

COARSE = 4.0
"""Voxel edge in mm on which the bias field is estimated, as ANTs does by default."""

SULCI = 6.0
"""Radius in mm of what closes the brain over its sulci."""


def class_of(label: Label) -> str:
    """Return the class of a label; empty outside the brain and its fluid."""
    return "WM" if label.name in WHITE else CLASS_OF_ROLE.get(label.role, "")


def write(head: Head, root: Path, options: Options) -> tuple[dict[str, Any], Written]:
    """Write mask, classes, maps and aseg of one scan; if asked for, the bias-corrected image.

    NiBabies takes the aseg (`anat_aseg` in its io_spec_anat.json); sMRIPrep takes none.

    Raises
    ------
    DatasetError
        The labels do not tell brain and CSF, or the image to correct is missing or no T1w or T2w.
    """
    labels, names = head.labels, head.names
    if not labels.brain or not labels.intracranial:
        raise DatasetError(f"{names.name} cannot be exported for fMRIPrep. {labels.limits}")
    if options.bias_corrected and head.suffix not in CORRECTED:
        raise DatasetError(
            f"{names.name} is not a {' or '.join(CORRECTED)}: sMRIPrep accepts no other image.",
            "Leave --bias-corrected out.",
        )
    segmentation = head.segmentation
    grid = segmentation.grid
    mask = _brain(segmentation)
    members = {kind: [each.name for each in labels if class_of(each) == kind] for kind in CLASSES}
    data = np.zeros(grid.shape, np.uint8)
    for value, kind in enumerate(CLASSES, start=1):
        data[mask & segmentation.mask(members[kind])] = value
    about = {"Sources": head.sources, "SpatialReference": "orig"}
    path = anat(root, names, "desc-brain_mask.nii.gz")
    made = f"Brain, closed over sulci of up to {2 * SULCI:g} mm, without what is no brain or CSF."
    written = save_mask(path, mask, grid)
    written |= save_sidecar(path, {"Type": "Brain", "Description": made, **about})
    own = head.has_probabilities(list(chain(*members.values())))
    how = "the networks' probabilities" if own else "the label map, 0 or 1"
    for value, kind in enumerate(CLASSES, start=1):
        here = (data == value).astype(np.float32)
        inside = head.probability(members[kind]) * mask if own else here
        path = anat(root, names, f"label-{kind}_probseg.nii.gz")
        written |= save_probability(path, inside, grid)
        description = f"Probability of {CLASSES[kind]} within the brain mask, from {how}."
        written |= save_sidecar(path, {"Description": description, "From": members[kind], **about})
    written |= save_segmentation(
        anat(root, names, "dseg.nii.gz"), Segmentation(data, grid, _CLASS_TABLE)
    )
    if can_be_aseg(labels) and (values := aseg_values(segmentation)).any():
        path = anat(root, names, "desc-aseg_dseg.nii.gz")
        written |= save_values(path, values, grid)
        made = "Brain and CSF with FreeSurfer's values (aseg)."
        written |= save_sidecar(path, {"Description": made, **about})
    if options.bias_corrected:
        path = anat(root, names, f"desc-preproc_{head.suffix}.nii.gz")
        written |= save_image(path, bias_corrected(head.scan(), mask), grid)
        made = "Corrected for intensity non-uniformity by N4 (SimpleITK) within the brain mask."
        written |= save_sidecar(path, {"Description": made, "SkullStripped": False, **about})
    return {
        "Description": "Three classes within the brain mask: 1 GM, 2 WM, 3 CSF.",
        "LabelMap": {kind: value for value, kind in enumerate(CLASSES, start=1)},
        "From": members,
        "Probabilities": "networks" if own else "labels",
        **about,
    }, written


def _brain(segmentation: Segmentation) -> npt.NDArray[np.bool_]:
    """Return the brain with the CSF of its sulci (I, J, K), as other tools' masks have it."""
    labels, grid = segmentation.labels, segmentation.grid
    brain = segmentation.mask([label.name for label in labels.brain])
    if not brain.any():
        raise DatasetError("There is no brain in the label map.")
    inside = segmentation.mask(labels.names(*INTRACRANIAL))
    closing: npt.NDArray[np.bool_] = closed(brain, SULCI, grid.voxel_size) & inside
    return brain | closing


def bias_corrected(scan: Volume, brain: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Divide a scan by its bias field, found by N4 (Tustison et al., IEEE TMI 2010).

    The field is a B-spline of four levels, estimated within the brain and continued beyond it. Its
    mean logarithm in the brain is 0, so the scan keeps its scale.

    Parameters
    ----------
    scan
        In any orientation.
    brain
        (I, J, K) on the scan's voxels in RAS+ order.

    Returns
    -------
    (I, J, K) float32, in RAS+ order.
    """
    turn = Reorientation.to_ras(scan.grid)
    data = turn.apply(np.asarray(scan.data, np.float32))
    voxel = turn.target.voxel_size
    image, mask = (_itk(each, voxel) for each in (data, brain.astype(np.uint8)))
    factors = [max(1, round(COARSE / size)) for size in voxel]
    n4 = SimpleITK.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([50] * 4)
    n4.Execute(*(SimpleITK.Shrink(each, factors) for each in (image, mask)))
    field = SimpleITK.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).T
    field -= field[brain].mean()
    corrected: npt.NDArray[np.float32] = data * np.exp(-field, dtype=np.float32)
    return corrected


def _itk(data: npt.NDArray[Any], voxel_size: Sequence[float]) -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(data.T))
    image.SetSpacing(list(map(float, voxel_size)))
    return image


_CLASS_TABLE = LabelTable.from_names({"background": 0, "GM": 1, "WM": 2, "CSF": 3})


def _declares(root: Path, names: ScanNames) -> Path:
    return anat(root, names, "dseg.json")


FMRIPREP = Target(
    declares=_declares,
    write=write,
    options=("bias_corrected",),
)
