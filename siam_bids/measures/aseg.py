"""A segmentation with FreeSurfer's values (aseg), from SIAM's labels and the hemispheres.

SIAM's white matter holds that of the cerebellum and the brain stem, and its ventricles are one
label. What a voxel belongs to is told by multinomial logistic regression on where it lies relative
to cerebellum and hemispheres, in a frame of the head scaled by the spread of the cerebellar cortex,
and on its distances from cerebellar cortex, cerebral grey matter and fluid. `benchmarks/aseg.py`
fitted the weights to SynthSeg's label maps and tells how well regions of heads left out are found.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import ndimage

from siam_bids.image.grid import Grid, Segmentation
from siam_bids.image.labels import Label, LabelTable
from siam_bids.measures.hemispheres import (
    PAIRED,
    MidSurface,
    coarse_labels,
    find_sides,
    mid_surface,
    voxels_of,
    world,
)
from siam_bids.support.package_data import resource
from siam_bids.support.tsv import read_rows

Floats = npt.NDArray[np.float64]

NEEDED = ("GM", "WM", "CSFv", "cerGM", "Thal", "Pal", "Put", "Caud", "Amyg", "Hippo")
"""Labels without which there is no aseg."""

PAIRS = {
    "WM": (2, 41), "GM": (3, 42), "CSFv": (4, 43), "inferior ventricle": (5, 44),
    "cerebellar": (7, 46), "Wmcereb": (7, 46), "cerGM": (8, 47), "Thal": (10, 49),
    "Caud": (11, 50), "Put": (12, 51), "Pal": (13, 52), "Hippo": (17, 53), "Amyg": (18, 54),
    "Accu": (26, 58), "Anomalies": (25, 57),
}  # fmt: skip
"""Values on the left and on the right, by label or region."""

SINGLE = {"third ventricle": 14, "fourth ventricle": 15, "stem": 16, "Brainsteam": 16, "CSF": 24}
"""Values of what lies in the middle, and of the CSF outside the ventricles."""

REGIONS = {
    "WM": ("WM", "cerebellar", "stem"),
    "CSFv": ("CSFv", "inferior ventricle", "third ventricle", "fourth ventricle"),
}
"""Regions of a label that weights tell apart; the first has none."""

_CEREBRUM = ("GM", "Hippo", "Amyg", "Put", "Pal", "Caud", "Accu")
_FLUID = ("CSF",)
_FAR = (20.0, 20.0, 10.0)
"""Distances in mm beyond which nothing changes: from cerebellum, cerebrum and fluid."""

_LEAST_CEREBELLUM = 50
"""Voxels of cerebellar cortex on the coarse grid that tell where cerebellum and stem are."""


def aseg_values(
    segmentation: Segmentation, surface: MidSurface | None = None
) -> npt.NDArray[np.uint8]:
    """Return FreeSurfer's values (I, J, K), 0 outside brain and CSF.

    Lesions are 25 and 57. Without cerebellar cortex all white matter is cerebral, and all
    ventricles are lateral ones. Where the hemispheres cannot be told all is 0.

    Parameters
    ----------
    surface
        Between the hemispheres, if it was found already.

    Raises
    ------
    KeyError
        A label of `NEEDED` is absent from the table.
    """
    labels = segmentation.labels
    surface = surface or mid_surface(segmentation)
    found = np.zeros(segmentation.data.shape, np.uint8)
    if surface is None or (sides := find_sides(segmentation, surface)) is None:
        return found
    for label in labels:
        if label.name in SINGLE:
            found[segmentation.data == label.index] = SINGLE[label.name]
        elif label.name in PAIRS:
            _tell_sides(found, segmentation, label, sides if label.name in PAIRED else surface)
    if place := Place.of(segmentation, surface):
        apart = {*SINGLE, "Wmcereb"} & labels.by_name.keys() - {"CSF"}
        for name in REGIONS if not apart else ("CSFv",):
            _tell_regions(
                found, segmentation.data == labels.by_name[name].index, name, place, sides
            )
    return found


def _tell_sides(
    found: npt.NDArray[np.uint8],
    segmentation: Segmentation,
    label: Label,
    sides: npt.NDArray[np.uint8] | MidSurface,
) -> None:
    """Give the voxels of a label the values of its sides, in place."""
    left, right = PAIRS[label.name]
    for voxels in voxels_of(segmentation.data == label.index):
        places = tuple(voxels.T)
        if isinstance(sides, MidSurface):
            on_right = sides.right_of(world(voxels, segmentation.grid.affine)) > 0
        else:
            on_right = sides[places] == 2
        found[places] = np.where(on_right, right, left)


def _tell_regions(
    found: npt.NDArray[np.uint8],
    mask: npt.NDArray[np.bool_],
    name: str,
    place: Place,
    sides: npt.NDArray[np.uint8],
) -> None:
    """Give the voxels of a label the values of its regions, in place."""
    regions = [PAIRS.get(each) or (SINGLE[each],) * 2 for each in REGIONS[name]]
    for voxels in voxels_of(mask):
        scores = place.features(voxels) @ weights(name)
        region = np.c_[np.zeros(len(scores)), scores].argmax(1)
        right = (sides[tuple(voxels.T)] == 2).astype(int)
        found[tuple(voxels.T)] = np.array(regions)[region, right]


@dataclass(frozen=True)
class Place:
    """Where voxels lie relative to the parts of a brain.

    Attributes
    ----------
    affine, coarse
        (4, 4), voxels of the scan to RAS+ mm, and RAS+ mm to voxels of the coarse grid.
    surface
        Between the hemispheres; its frame is that of the head.
    centre
        (3,) of the cerebellar cortex in that frame, in mm.
    spread
        Root mean square distance of the cerebellar cortex from it along one axis, in mm.
    distances
        Three arrays on the coarse grid, in mm: from cerebellar cortex, cerebral grey matter, fluid.
    """

    affine: Floats
    coarse: Floats
    surface: MidSurface
    centre: Floats
    spread: float
    distances: tuple[Floats, ...]

    @classmethod
    def of(cls, segmentation: Segmentation, surface: MidSurface) -> Place | None:
        """Measure a brain; None without a cerebellum."""
        labels = segmentation.labels
        data, affine = coarse_labels(segmentation)
        cerebellum = np.argwhere(np.isin(data, labels.indices(["cerGM"])))
        if len(cerebellum) < _LEAST_CEREBELLUM:
            return None
        points = world(cerebellum, surface.affine @ affine)
        size = np.linalg.norm(affine[:3, :3], axis=0)
        distances = tuple(
            ndimage.distance_transform_edt(~np.isin(data, labels.indices(names)), size)
            for names in (("cerGM",), _CEREBRUM, _FLUID)
        )
        return cls(
            affine=segmentation.grid.affine,
            coarse=np.asarray(np.linalg.inv(affine), np.float64),
            surface=surface,
            centre=points.mean(0),
            spread=float(np.sqrt(points.var(0).mean())),
            distances=distances,
        )

    def features(self, voxels: npt.NDArray[np.integer]) -> Floats:
        """Return what weights are for: (N, 17) of voxels (N, 3); see `FEATURES`."""
        points = world(voxels, self.affine)
        x, y, z = ((world(points, self.surface.affine) - self.centre) / self.spread).T
        x = np.abs(x)
        places = world(points, self.coarse).T
        near = [
            np.minimum(ndimage.map_coordinates(away, places, order=1, mode="nearest"), far) / far
            for away, far in zip(self.distances, _FAR, strict=True)
        ]
        a, b, c = near
        return np.stack(
            [np.ones_like(x), x, y, z, x * x, y * y, z * z, x * y, x * z, y * z, a, b, c,
             a * a, b * b, a * y, b * x], 1,
        )  # fmt: skip


FEATURES = (
    "1", "x", "y", "z", "xx", "yy", "zz", "xy", "xz", "yz", "cerebellum", "cerebrum", "fluid",
    "cerebellum squared", "cerebrum squared", "cerebellum y", "cerebrum x",
)  # fmt: skip
"""x away from the middle, y to the front, z up, in spreads of the cerebellum; distances from
cerebellar cortex, cerebral grey matter and fluid in their largest."""


@lru_cache(maxsize=2)
def weights(name: str) -> Floats:
    """Read the weights (17, n) of the regions of a label but the first."""
    table = read_rows(resource("data", "labels", "aseg_regions.tsv"))
    rows = {row["feature"]: row for row in table}
    regions = REGIONS[name][1:]
    return np.array([[float(rows[feature][each]) for each in regions] for feature in FEATURES])


DICTIONARY = {
    "index": {"Description": "Value in the segmentation, of FreeSurferColorLUT.txt."},
    "name": {"Description": "FreeSurfer's name of the structure."},
    "voxels": {"Description": "Number of voxels."},
    "volume_mm3": {"Description": "Voxels times the volume of one voxel.", "Units": "mm3"},
}
"""Meaning of the columns of `aseg_volumes`, as a BIDS data dictionary."""


def aseg_volumes(values: npt.NDArray[np.uint8], grid: Grid) -> pd.DataFrame:
    """Count every structure of an aseg, absent ones as 0: index, name, voxels, volume_mm3."""
    labels = aseg_labels().foreground
    counts = np.bincount(values.ravel(), minlength=256)
    voxels = [int(counts[label.index]) for label in labels]
    return pd.DataFrame(
        {
            "index": [label.index for label in labels],
            "name": [label.name for label in labels],
            "voxels": voxels,
            "volume_mm3": np.array(voxels) * grid.voxel_volume,
        }
    )


def can_be_aseg(labels: LabelTable) -> bool:
    """Tell whether labels are those that an aseg is made of."""
    return {*NEEDED} <= labels.by_name.keys()


@lru_cache(maxsize=1)
def aseg_labels() -> LabelTable:
    """Return FreeSurfer's names and colours of the values (FreeSurferColorLUT.txt)."""
    rows = read_rows(resource("data", "labels", "aseg.tsv"))
    return LabelTable(
        tuple(
            Label(
                index=int(row["index"]),
                name=row["name"],
                long_name=row["name"].replace("-", " "),
                color=row["color"],
                mapping=int(row["mapping"]) if row["mapping"] != "n/a" else None,
                role=row["role"],
            )
            for row in rows
        )
    )
