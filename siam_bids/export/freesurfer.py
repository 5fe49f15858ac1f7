"""A subject's folder as FreeSurfer's table tools and freeview read it, without surfaces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from siam_bids.bids.names import ScanNames
from siam_bids.bids.writers import Written
from siam_bids.errors import DatasetError
from siam_bids.export.head import Head
from siam_bids.export.mgh import as_mgh, conformed_grid, save_image
from siam_bids.export.surfaces import resampled
from siam_bids.export.target import Options, Target, person
from siam_bids.measures.aseg import NEEDED, aseg_labels, aseg_values, can_be_aseg
from siam_bids.measures.volumes import INTRACRANIAL
from siam_bids.support.atomic_files import write_text

WHITE = 110
"""Median of the cerebral white matter in norm.mgz, as FreeSurfer's normalization sets it."""

MEASURES = {
    "lhCortex, lhCortexVol, Left hemisphere cortical gray matter volume": (3,),
    "rhCortex, rhCortexVol, Right hemisphere cortical gray matter volume": (42,),
    "Cortex, CortexVol, Total cortical gray matter volume": (3, 42),
    "lhCerebralWhiteMatter, lhCerebralWhiteMatterVol, "
    "Left hemisphere cerebral white matter volume": (2,),
    "rhCerebralWhiteMatter, rhCerebralWhiteMatterVol, "
    "Right hemisphere cerebral white matter volume": (41,),
    "CerebralWhiteMatter, CerebralWhiteMatterVol, Total cerebral white matter volume": (2, 41),
    "SubCortGray, SubCortGrayVol, Subcortical gray matter volume": (
        10, 11, 12, 13, 17, 18, 26, 49, 50, 51, 52, 53, 54, 58,
    ),
    "TotalGray, TotalGrayVol, Total gray matter volume": (
        3, 42, 8, 47, 10, 11, 12, 13, 17, 18, 26, 49, 50, 51, 52, 53, 54, 58,
    ),
}  # fmt: skip
"""Lines of the head of aseg.stats, sums of these values."""


COLUMNS = "Index SegId NVoxels Volume_mm3 StructName normMean normStdDev normMin normMax normRange"
"""Of aseg.stats."""


def write(head: Head, root: Path, _: Options) -> tuple[dict[str, Any], Written]:
    """Write `mri/{orig,norm,aseg}.mgz` and `stats/aseg.stats` of one scan.

    Raises
    ------
    DatasetError
        The labels do not make an aseg, or the image is not there.
    """
    if not can_be_aseg(head.labels):
        raise DatasetError(
            "The labels of this model do not make a segmentation of FreeSurfer's.",
            f"Needed are {', '.join(NEEDED)}.",
        )
    folder = person(root, head.names)
    segmentation = head.segmentation
    grid = conformed_grid(segmentation.grid)
    image = as_mgh(head.scan(), grid)
    native = aseg_values(segmentation)
    if not native.any():
        raise DatasetError(
            f"The hemispheres of {head.names.name} cannot be told.",
            "Choose another scan with --reference.",
        )
    values = np.asarray(resampled(native, segmentation.grid, grid, order=0), np.uint8)
    norm = _normalised(np.asarray(image.dataobj), values)
    written = save_image(folder / "mri" / "orig.mgz", image)
    written |= save_image(folder / "mri" / "norm.mgz", nib.MGHImage(norm, grid.affine))
    written |= save_image(
        folder / "mri" / "aseg.mgz", nib.MGHImage(values.astype(np.int32), grid.affine)
    )
    stats = folder / "stats" / "aseg.stats"
    intracranial = head.result.millilitres.get(INTRACRANIAL)
    text = aseg_stats(folder.name, values, norm, intracranial)
    written |= {stats: write_text(stats, text)}
    return {
        "Description": "Segmentation with FreeSurfer's values, on the grid of mri/orig.mgz.",
        "Sources": head.sources,
        "Normalization": f"norm.mgz: brain and CSF, cerebral white matter at {WHITE}; no "
        "correction of intensity non-uniformity.",
    }, written


def _normalised(
    image: npt.NDArray[np.uint8], values: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """Return brain and CSF of an image, the median of its cerebral white matter at `WHITE`."""
    white = image[np.isin(values, (2, 41))]
    middle = float(np.median(white)) if white.size else 0.0
    factor = WHITE / middle if middle else 1.0
    scaled = np.where(values > 0, image * factor, 0)
    normalised: npt.NDArray[np.uint8] = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return normalised


def aseg_stats(
    subject: str,
    values: npt.NDArray[np.uint8],
    norm: npt.NDArray[np.uint8],
    intracranial: float | None,
) -> str:
    """Return the text of aseg.stats, in the form of FreeSurfer's mri_segstats.

    Parameters
    ----------
    values, norm
        (I, J, K), voxels of 1 mm3.
    intracranial
        Total intracranial volume in mL.
    """
    counts = np.bincount(values.ravel(), minlength=256)
    lines = [
        "# Title Segmentation Statistics",
        "#",
        "# generating_program siam-bids",
        "# anatomy_type volume",
        f"# subjectname {subject}",
        *(
            f"# Measure {name}, {counts[list(own)].sum():.6f}, mm^3"
            for name, own in MEASURES.items()
        ),
    ]
    if intracranial is not None:
        lines.append(
            "# Measure EstimatedTotalIntraCranialVol, eTIV, Estimated Total Intracranial Volume, "
            f"{1000 * intracranial:.6f}, mm^3"
        )
    lines += [
        "# SegVolFile mri/aseg.mgz",
        "# PVVolFile mri/norm.mgz",
        "# ExcludeSegId 0",
        f"# NRows {len(aseg_labels().foreground)}",
        "# NTableCols 10",
        f"# ColHeaders  {COLUMNS}",
    ]
    for number, label in enumerate(aseg_labels().foreground, start=1):
        own = norm[values == label.index].astype(np.float64) if counts[label.index] else np.zeros(1)
        lines.append(
            f"{number:3d} {label.index:3d} {counts[label.index]:8d} {counts[label.index]:10.1f}  "
            f"{label.name:<30} {own.mean():10.4f} {own.std():10.4f} {own.min():10.4f} "
            f"{own.max():10.4f} {np.ptp(own):10.4f}"
        )
    return "\n".join(lines) + "\n"


def _declares(root: Path, names: ScanNames) -> Path:
    return person(root, names) / "mri" / "siam-bids.json"


FREESURFER = Target(
    declares=_declares,
    write=write,
)
