"""Lesions with the shapes and places of real patients, and what looks like a lesion but is none.

Masks of patients' lesions in MNI space are brought into a label map by the affine transform that
aligns the landmarks of its tissues. Codes are those of `Anatomy`; randomness comes from a NumPy
generator alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial.transform import Rotation

from siam_bids.errors import LabelError
from siam_bids.image.grid import Reorientation
from siam_bids.image.loading import load_labels
from siam_bids.support.package_data import resource
from siam_bids.support.tsv import read_rows
from siam_bids.synthesis.anatomy_changes import NUCLEI
from siam_bids.synthesis.label_maps import Anatomy, SourceTable

LANDMARKS = ("GM", "CSFv", "cerGM", "Thal", "Pal", "Put", "Caud", "Hippo")
"""Tissues whose centre and halves are landmarks."""

_LARGE = 15_000
"""Voxels of lesions that are not grown further."""


@dataclass(frozen=True)
class LesionMask:
    """Lesions of one patient.

    Attributes
    ----------
    mask
        (I, J, K) bool in RAS+ order.
    affine
        (4, 4) float64, voxel (i, j, k) to MNI millimetres.
    """

    mask: npt.NDArray[np.bool_]
    affine: npt.NDArray[np.float64]

    @classmethod
    def load(cls, path: Path) -> LesionMask:
        """Read a mask in MNI space; what is not 0 is lesion.

        Raises
        ------
        LabelError
            It is empty.
        """
        labels, grid = load_labels(path)
        turn = Reorientation.to_ras(grid)
        mask = turn.apply(labels) > 0
        if not mask.any():
            raise LabelError(f"{path} holds no lesion.", "Leave it out.")
        return cls(mask, np.asarray(turn.target.affine, np.float64))


def landmarks(tissue: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Return the centre of a mask, and of its two halves along each axis, (7, 3) in voxels.

    A half is what lies below, or above, the centre. Unlike the labels' own sides they exist in
    every map.
    """
    places = np.argwhere(tissue).astype(np.float64)
    centre = places.mean(0)
    halves = [
        places[side].mean(0)
        for axis in range(3)
        for side in (places[:, axis] < centre[axis], places[:, axis] >= centre[axis])
    ]
    return np.stack([centre, *halves])


@lru_cache(maxsize=1)
def _mni_landmarks() -> dict[str, npt.NDArray[np.float64]]:
    """Read the landmarks (7, 3) of each tissue in MNI millimetres.

    Those of Colin27, segmented by compact 0.12.0.
    """
    points: dict[str, list[list[float]]] = {}
    for row in read_rows(resource("data", "labels", "mni_landmarks.tsv")):
        points.setdefault(row["tissue"], []).append([float(row[axis]) for axis in "xyz"])
    return {name: np.array(found) for name, found in points.items()}


def from_mni(anatomy: Anatomy) -> npt.NDArray[np.float64]:
    """Return the affine (4, 4) from MNI millimetres to the voxels of a label map.

    Least squares over the landmarks of all tissues that the map has.
    """
    known = _mni_landmarks()
    masks = {name: anatomy.table.codes_of(name)[anatomy.codes] for name in LANDMARKS}
    found = {name: landmarks(mask) for name, mask in masks.items() if mask.any()}
    if not found:
        raise LabelError("A label map without brain cannot be aligned with MNI space.")
    there = np.concatenate([known[name] for name in found])
    here = np.concatenate(list(found.values()))
    answer, *_ = np.linalg.lstsq(np.column_stack([there, np.ones(len(there))]), here)
    affine = np.eye(4)
    affine[:3] = answer.T
    return affine


class LesionPainter:
    """Paints lesions into label maps.

    Parameters
    ----------
    masks
        Patients to take shapes and places from.
    anatomies
        All heads that are painted.
    """

    def __init__(self, masks: Sequence[LesionMask], anatomies: Iterable[Anatomy]) -> None:
        self._masks = masks
        self._affines = {id(anatomy.codes): from_mni(anatomy) for anatomy in anatomies}

    def paint(self, anatomy: Anatomy, rng: np.random.Generator) -> Anatomy:
        """Return the head with the lesions of one patient, or of two, in its parenchyma.

        Their masks are mirrored, turned, shifted, grown or shrunk, and some lesions are left out.
        Lesions have a rim, or patches, of the second tissue for lesions, or none.
        """
        affine = self._affines[id(anatomy.codes)]
        likeness = np.zeros(anatomy.codes.shape, np.float32)
        for _ in range(1 if rng.random() < 0.7 else 2):
            mask = self._masks[int(rng.integers(len(self._masks)))]
            np.maximum(likeness, _placed(mask, affine, anatomy.codes.shape, rng), out=likeness)
        table = anatomy.table
        anatomy = _healed(anatomy) if rng.random() < 0.5 else anatomy
        home = _home(anatomy, rng)
        lesion = (likeness > rng.uniform(0.3, 0.65)) & home
        if rng.random() < 0.5:
            lesion = _some(lesion, rng)
        if (grown := int(rng.integers(3))) and lesion.sum() < _LARGE:
            lesion = ndimage.binary_dilation(lesion, iterations=grown, mask=home)
        inner, outer = (int(np.flatnonzero(table.codes_of("Anomalies"))[end]) for end in (0, -1))
        codes = np.where(lesion, inner, anatomy.codes).astype(np.uint8)
        look = rng.random()
        if look < 0.3:
            codes[lesion & ~ndimage.binary_erosion(lesion)] = outer
        elif look < 0.55:
            codes[lesion & (noise(lesion.shape, rng) > 0)] = outer
        return replace(anatomy, codes=codes)


def _healed(anatomy: Anatomy) -> Anatomy:
    """Return the head without lesions of its own."""
    table = anatomy.table
    lesion = table.codes_of("Anomalies")[anatomy.codes]
    codes = np.where(lesion, _first(table, "WM"), anatomy.codes).astype(np.uint8)
    return replace(anatomy, codes=codes)


def _some(lesion: npt.NDArray[np.bool_], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Return a random share of the lesions, each whole or not at all."""
    components, count = ndimage.label(lesion, np.ones((3, 3, 3)))
    kept = rng.random(count + 1) < rng.uniform(0.1, 0.9)
    kept[0] = False
    chosen: npt.NDArray[np.bool_] = kept[components]
    return chosen


def noise(shape: Sequence[int], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return smooth noise of variance 1, about 8 voxels wide."""
    few = rng.standard_normal([length // 8 + 3 for length in shape], np.float32)
    zoom = np.diag([1 / 8] * 3)
    offset = rng.uniform(0, 1, 3)
    fine: npt.NDArray[np.float32] = ndimage.affine_transform(
        few, zoom, offset, tuple(shape), order=1
    )
    scaled: npt.NDArray[np.float32] = fine / fine.std()
    return scaled


def _placed(
    mask: LesionMask,
    affine: npt.NDArray[np.float64],
    shape: tuple[int, ...],
    rng: np.random.Generator,
) -> npt.NDArray[np.float32]:
    """Return how much of each voxel a patient's lesions fill, 0 to 1."""
    jitter = np.eye(4)
    size = rng.uniform(0.9, 1.1, 3) * [rng.choice((-1, 1)), 1, 1]
    jitter[:3, :3] = Rotation.from_rotvec(rng.normal(0, 0.05, 3)).as_matrix() * size
    jitter[:3, 3] = rng.normal(0, 2, 3)
    back = np.linalg.inv(affine @ jitter @ mask.affine)
    soft = ndimage.gaussian_filter(mask.mask.astype(np.float32), 0.6)
    placed: npt.NDArray[np.float32] = ndimage.affine_transform(
        soft, back[:3, :3], back[:3, 3], shape, order=1
    )
    return placed


def _home(anatomy: Anatomy, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Return where lesions may be: parenchyma and, in every third head, the nearest cortex."""
    table = anatomy.table
    home: npt.NDArray[np.bool_] = table.codes_of("WM", "Anomalies", *NUCLEI)[anatomy.codes]
    if rng.random() < 1 / 3:
        home |= ndimage.binary_dilation(home) & table.codes_of("GM")[anatomy.codes]
    return home


def add_lookalikes(anatomy: Anatomy, rng: np.random.Generator) -> Anatomy:
    """Return the head with what is easily taken for a lesion.

    Perivascular (Virchow-Robin) spaces and vessels, thin and long, in white matter and nuclei; and
    choroid plexus, small and ragged, in the ventricles.
    """
    table = anatomy.table
    codes = anatomy.codes.copy()
    parenchyma, ventricles = table.codes_of("WM", *NUCLEI), table.codes_of("CSFv")
    fluid, vessel, tissue = (_first(table, name) for name in ("CSFv", "vascular", "GM"))
    for code, home, most, length in (
        (fluid, parenchyma, 60, (2, 6)),
        (vessel, parenchyma, 12, (3, 12)),
        (tissue, ventricles, 6, (2, 8)),
    ):
        thickness = (0.5, 1.1) if home is parenchyma else (1.5, 3.5)
        places = np.flatnonzero(home[anatomy.codes])
        for place in rng.choice(places, rng.integers(most + 1)) if len(places) else ():
            center = np.array(np.unravel_index(place, codes.shape))
            window, inside = _tube(
                codes.shape, center, rng.uniform(*length), rng.uniform(*thickness), rng
            )
            codes[window][inside & home[anatomy.codes[window]]] = code
    return replace(anatomy, codes=codes)


def _first(table: SourceTable, name: str) -> int:
    return int(np.argmax(table.codes_of(name)))


def _tube(
    shape: Sequence[int],
    center: npt.NDArray[np.int64],
    length: float,
    radius: float,
    rng: np.random.Generator,
) -> tuple[tuple[slice, ...], npt.NDArray[np.bool_]]:
    """Return a window, and in it an ellipsoid of any direction; half axes in voxels."""
    half = int(max(length, radius)) + 1
    low = np.maximum(center - half, 0)
    high = np.minimum(center + half + 1, shape)
    window = tuple(slice(int(start), int(stop)) for start, stop in zip(low, high, strict=True))
    direction = rng.standard_normal(3)
    direction /= np.linalg.norm(direction)
    away = np.stack(np.meshgrid(*map(np.arange, low, high), indexing="ij"), -1) - center
    along = away @ direction
    across = (away**2).sum(-1) - along**2
    return window, (along / length) ** 2 + across / radius**2 < 1


def crop_anatomy(anatomy: Anatomy, tissues: Sequence[str], margin: float) -> Anatomy:
    """Return the box around some tissues, `margin` mm wider; outside is background."""
    mask = anatomy.table.codes_of(*tissues)[anatomy.codes]
    if not mask.any():
        raise LabelError(f"A label map lacks {', '.join(tissues)}.", "Leave it out.")
    (bounds,) = ndimage.find_objects(mask.astype(np.uint8))
    box = tuple(
        slice(max(0, part.start - round(margin / size)), part.stop + round(margin / size))
        for part, size in zip(bounds, anatomy.voxel_size, strict=True)
    )
    return replace(anatomy, codes=np.pad(anatomy.codes[box], 1))
