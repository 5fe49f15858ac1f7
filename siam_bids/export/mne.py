"""A subject's folder as MNE-Python reads it, for boundary element models without FreeSurfer."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.freesurfer.io import write_geometry

from siam_bids.bids.names import ScanNames
from siam_bids.bids.writers import Written
from siam_bids.export.head import Head
from siam_bids.export.mgh import as_mgh, save_image
from siam_bids.export.surfaces import (
    BRAIN,
    SURFACES,
    HeadSurfaces,
    even_grid,
    head_surfaces,
    sphere,
)
from siam_bids.export.target import Options, Target, person
from siam_bids.support.atomic_files import atomic, sha256


def write(head: Head, root: Path, options: Options) -> tuple[dict[str, Any], Written]:
    """Write `bem/*.surf` and `mri/T1.mgz` of one scan.

    The surfaces are in FreeSurfer's surface RAS: scanner RAS with its zero in the middle of T1.mgz.

    Raises
    ------
    DatasetError
        No closed surfaces can be made of the label map, or the image is not there.
    """
    folder = person(root, head.names)
    image = as_mgh(head.scan(), even_grid(head.segmentation.grid))
    surfaces = head_surfaces(head.segmentation, options.thickness)
    written = save_image(folder / "mri" / "T1.mgz", image)
    for name in (BRAIN, *SURFACES):
        written |= _save_surface(folder / "bem" / f"{name}.surf", surfaces.vertices(name), image)
    return {
        "Description": "Surfaces for boundary element models, in surface RAS of mri/T1.mgz.",
        "Sources": head.sources,
        "MeanRadius": {name: round(float(surfaces.radii[name].mean()), 1) for name in SURFACES},
        "LeastDistance": _distances(surfaces),
        "ClosedByEdgeOfImage": round(surfaces.closed_by_edge, 3),
    }, written


def _distances(surfaces: HeadSurfaces) -> dict[str, float]:
    return {
        f"{inner} to {outer}": round(surfaces.least_distance(inner, outer), 2)
        for inner, outer in pairwise(SURFACES)
    }


def _save_surface(path: Path, vertices: npt.NDArray[np.float64], image: nib.MGHImage) -> Written:
    """Write a surface, its vertices (N, 3) in scanner RAS+ mm."""
    header = image.header
    turn = header.get_vox2ras_tkr() @ np.linalg.inv(image.affine)
    x, y, z = header["Mdc"]
    place = {
        "head": [2, 0, 20],
        "valid": "1  # volume info valid",
        "filename": "../mri/T1.mgz",
        "volume": header["dims"][:3],
        "voxelsize": header["delta"],
        "xras": x,
        "yras": y,
        "zras": z,
        "cras": header["Pxyz_c"],
    }
    with atomic(path) as scratch:
        write_geometry(
            scratch,
            nib.affines.apply_affine(turn, vertices),
            sphere().faces,
            create_stamp="created by siam-bids",
            volume_info=place,
        )
        return {path: sha256(scratch)}


def _declares(root: Path, names: ScanNames) -> Path:
    return person(root, names) / "bem" / "siam-bids.json"


MNE = Target(
    declares=_declares,
    write=write,
    options=("thickness",),
)
