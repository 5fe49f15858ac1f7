"""How often `siam_bids.measures.hemispheres` finds the right side, on label maps that tell it.

    python benchmarks/sides.py LABEL_MAPS HEADS > benchmarks/sides.md

LABEL_MAPS holds SynthSeg's training_seg_01.nii.gz to training_seg_18.nii.gz, HEADS
visualqc_id001_aparc+aseg.mgz. Their left and right labels are joined to ours, and found again: as
they are, turned, mirrored, cut, and with anatomy changed (six maps, --changed).
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial.transform import Rotation

from siam_bids.image.grid import Grid, Segmentation
from siam_bids.image.labels import siam_labels
from siam_bids.measures.hemispheres import PAIRED, find_sides
from siam_bids.support.package_data import resource
from siam_bids.support.tsv import read_rows

LABELS = siam_labels()
INDEX = {label.name: label.index for label in LABELS}
SOFT = [label.index for label in LABELS.intracranial]


class Head:
    """Our labels and the true sides (1 left, 2 right, 0 none), (I, J, K), with their affine."""

    def __init__(
        self,
        labels: npt.NDArray[np.uint8],
        truth: npt.NDArray[np.uint8],
        affine: npt.NDArray[np.float64],
    ) -> None:
        self.labels, self.truth, self.affine = labels, truth, affine

    @property
    def segmentation(self) -> Segmentation:
        shape = self.labels.shape
        return Segmentation(self.labels, Grid((shape[0], shape[1], shape[2]), self.affine), LABELS)

    @property
    def points(self) -> npt.NDArray[np.float64]:
        """World coordinates of all voxels, (3, I, J, K)."""
        grid = np.indices(self.labels.shape, dtype=np.float64)
        return (
            np.einsum("ij,jabc->iabc", self.affine[:3, :3], grid)
            + self.affine[:3, 3, None, None, None]
        )

    @property
    def middle(self) -> npt.NDArray[np.float64]:
        """Centre of the thalami in the world."""
        places = np.argwhere(self.labels == INDEX["Thal"])
        return np.asarray(places.mean(0) @ self.affine[:3, :3].T + self.affine[:3, 3])

    def sampled(self, points: npt.NDArray[np.float64]) -> "Head":
        """Take each voxel from elsewhere: world coordinates (3, I, J, K)."""
        back = np.linalg.inv(self.affine)
        voxels = np.einsum("ij,jabc->iabc", back[:3, :3], points) + back[:3, 3, None, None, None]
        labels, truth = (
            ndimage.map_coordinates(data, voxels, order=0) for data in (self.labels, self.truth)
        )
        return Head(labels, truth, self.affine)

    def where(self, mask: npt.NDArray[np.bool_], value: int = 0) -> "Head":
        """Replace labels in a mask; they lose their sides."""
        return Head(
            np.where(mask, value, self.labels).astype(np.uint8),
            np.where(mask, 0, self.truth).astype(np.uint8),
            self.affine,
        )


def synthseg(path: Path) -> Head:
    """Read a map of SynthSeg."""
    image = nib.load(path)
    data = np.asarray(image.dataobj).astype(np.int16)
    box = ndimage.find_objects((data != 0).astype(np.uint8))[0]
    affine = image.affine.copy()
    affine[:3, 3] = affine[:3] @ [*(part.start for part in box), 1]
    ours, side = np.zeros(1024, np.uint8), np.zeros(1024, np.uint8)
    unknown = []
    for row in read_rows(resource("data", "labels", "source_synthseg.tsv")):
        value, name = int(row["value"]), row["name"]
        if row["target"] == "nearest":
            unknown.append(value)
            continue
        ours[value] = INDEX[row["target"].split("|")[0]]
        if ours[value] in _PAIRED:
            side[value] = 1 if name.startswith("left") else 2 if name.startswith("right") else 0
    data = data[box]
    holes = np.isin(data, unknown)
    nearest = ndimage.distance_transform_edt(
        holes | (data == 0), return_distances=False, return_indices=True
    )
    data = np.where(holes, data[tuple(nearest)], data)
    return Head(ours[data], side[data], affine)


_PAIRED = [INDEX[name] for name in PAIRED if name in INDEX]

FREESURFER = {
    "WM": ((2, 7, 28), (41, 46, 60)), "GM": ((3,), (42,)), "CSFv": ((4, 5, 31), (43, 44, 63)),
    "cerGM": ((8,), (47,)), "Thal": ((9, 10), (48, 49)), "Caud": ((11,), (50,)),
    "Put": ((12,), (51,)), "Pal": ((13,), (52,)), "Hippo": ((17,), (53,)), "Amyg": ((18,), (54,)),
    "Accu": ((26,), (58,)),
}  # fmt: skip
"""Values of FreeSurferColorLUT of both sides."""


def freesurfer(path: Path) -> Head:
    """Read an aparc+aseg."""
    image = nib.load(path)
    data = np.asarray(image.dataobj).astype(np.int32)
    ours, side = np.zeros(data.shape, np.uint8), np.zeros(data.shape, np.uint8)
    for name, pair in FREESURFER.items():
        for value, known in enumerate(pair, 1):
            mask = np.isin(data, known)
            if name == "GM":
                mask |= data // 1000 == value
            ours[mask], side[mask] = INDEX[name], value
    ours[np.isin(data, (14, 15, 72))] = INDEX["CSFv"]
    ours[np.isin(data, (16, 77, 85, 251, 252, 253, 254, 255, 30, 62))] = INDEX["WM"]
    ours[data == 24] = INDEX["CSF"]
    return Head(ours, side, image.affine)


def as_it_is(head: Head, _: np.random.Generator) -> Head:
    return head


def turned_header(head: Head, rng: np.random.Generator) -> Head:
    """The affine says that the head lies turned by 30 degrees about any axis."""
    return Head(head.labels, head.truth, _turn(rng, 30) @ head.affine)


def turned_voxels(head: Head, rng: np.random.Generator) -> Head:
    """The voxels are turned by 25 degrees about the thalami, about any axis."""
    turn, middle = _turn(rng, 25)[:3, :3], head.middle[:, None, None, None]
    return head.sampled(np.einsum("ij,jabc->iabc", turn, head.points - middle) + middle)


def _turn(rng: np.random.Generator, degrees: float) -> npt.NDArray[np.float64]:
    axis = rng.normal(size=3)
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec(
        np.radians(degrees) * axis / np.linalg.norm(axis)
    ).as_matrix()
    return turn


def mirrored_voxels(head: Head, _: np.random.Generator) -> Head:
    """Voxels and affine are mirrored: every voxel stays where it is in the world."""
    affine = head.affine @ np.diag([-1.0, 1, 1, 1])
    affine[:3, 3] += head.affine[:3, 0] * (head.labels.shape[0] - 1)
    return Head(head.labels[::-1], head.truth[::-1], affine)


def mirrored_header(head: Head, _: np.random.Generator) -> Head:
    """The affine alone is mirrored: what was left is right in the world."""
    truth = np.array([0, 2, 1], np.uint8)[head.truth]
    return Head(head.labels, truth, np.diag([-1.0, 1, 1, 1]) @ head.affine)


def brain_only(head: Head, _: np.random.Generator) -> Head:
    """Nothing but the brain: no CSF either."""
    brain = [label.index for label in LABELS.brain]
    return head.where(~np.isin(head.labels, brain))


def slab(head: Head, _: np.random.Generator) -> Head:
    """60 mm of height around the thalami: neither vertex nor cerebellum."""
    return head.where(np.abs(head.points[2] - head.middle[2]) > 30)


def front(head: Head, _: np.random.Generator) -> Head:
    """What lies behind the thalami is cut away."""
    return head.where(head.points[1] < head.middle[1] - 15)


def turned_slab(head: Head, rng: np.random.Generator) -> Head:
    """Such a slab, whose affine says that it lies turned by 30 degrees."""
    return turned_header(slab(head, rng), rng)


def turned_front(head: Head, rng: np.random.Generator) -> Head:
    """The front half, turned so."""
    return turned_header(front(head, rng), rng)


def one_sided(head: Head, rng: np.random.Generator) -> Head:
    """The brain of one side is 15 % narrower, its ventricle is wider by 4 mm."""
    side = int(rng.integers(1, 3))
    sign, points = (1 if side == 2 else -1), head.points
    middle = head.middle[0]
    x = points[0] - middle
    there = np.where(sign * x > 0, x / 0.85, x)
    moved = head.sampled(np.stack([middle + there, points[1], points[2]]))
    soft = np.isin(head.labels, SOFT)
    keep = soft & np.isin(moved.labels, SOFT)
    labels = np.where(keep, moved.labels, np.where(soft, INDEX["CSF"], head.labels))
    truth = np.where(keep, moved.truth, 0).astype(np.uint8)
    ventricle = (labels == INDEX["CSFv"]) & (truth == side)
    wider = (
        ndimage.binary_dilation(ventricle, iterations=4)
        & np.isin(labels, [INDEX["WM"], INDEX["Caud"]])
        & (truth == side)
    )
    labels = np.where(wider, INDEX["CSFv"], labels).astype(np.uint8)
    return Head(labels, truth, head.affine)


def shifted(head: Head, rng: np.random.Generator) -> Head:
    """A tumour of 4 cm pushes the midline by about 1 cm."""
    sign = rng.choice([-1, 1])
    away = np.array([sign * 36, rng.uniform(-30, 30), rng.uniform(10, 35)])
    centre = (head.middle + away)[:, None, None, None]
    points = head.points
    distance = np.linalg.norm(points - centre, axis=0)
    keep = 1 - 0.8 * np.exp(-((distance / 35) ** 2))
    moved = head.sampled(centre + (points - centre) * keep)
    both = np.isin(head.labels, SOFT) & np.isin(moved.labels, SOFT)
    labels = np.where(both, moved.labels, head.labels).astype(np.uint8)
    truth = np.where(both, moved.truth, head.truth).astype(np.uint8)
    return Head(labels, truth, head.affine).where(both & (distance < 20), INDEX["Anomalies"])


def cavity(head: Head, rng: np.random.Generator) -> Head:
    """An old stroke: a ball of 6 cm of one hemisphere is CSF."""
    side = int(rng.integers(1, 3))
    sign = 1 if side == 2 else -1
    centre = head.middle + np.array([sign * 35, rng.uniform(-30, 30), rng.uniform(0, 30)])
    distance = np.linalg.norm(head.points - centre[:, None, None, None], axis=0)
    return head.where((distance < 30) & (head.truth == side), INDEX["CSF"])


CHANGES: tuple[tuple[str, Callable[[Head, np.random.Generator], Head]], ...] = (
    ("as they are", as_it_is),
    ("header turned by 30 degrees", turned_header),
    ("voxels turned by 25 degrees", turned_voxels),
    ("voxels and header mirrored", mirrored_voxels),
    ("header mirrored", mirrored_header),
    ("brain alone, without CSF", brain_only),
    ("slab of 60 mm", slab),
    ("front half", front),
    ("slab of 60 mm, header turned by 30 degrees", turned_slab),
    ("front half, header turned by 30 degrees", turned_front),
    ("one hemisphere 15 % narrower", one_sided),
    ("midline pushed by a tumour", shifted),
    ("6 cm of one hemisphere lost", cavity),
)


def measure(head: Head) -> dict[str, float]:
    """Return percent of paired voxels on the right side, by tissue and `all`, and errors of volume.

    `volume` and `volume TISSUE`: the larger error of both sides in percent of the true volume, of
    the paired voxels that have a true side.
    """
    found = find_sides(head.segmentation)
    if found is None:
        return {"all": 0.0, "volume": 100.0}
    known = head.truth > 0
    measured = {}
    for name in ("all", *PAIRED):
        mask = known if name == "all" else known & (head.labels == INDEX.get(name, 255))
        if mask.sum() < 50:
            continue
        told, right = found[mask], head.truth[mask]
        errors = [abs((told == side).sum() / max((right == side).sum(), 1) - 1) for side in (1, 2)]
        measured[name] = 100 * float((told == right).mean())
        measured["volume" if name == "all" else f"volume {name}"] = 100 * float(max(errors))
    return measured


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("maps", type=Path)
    parser.add_argument("heads", type=Path)
    parser.add_argument("--only", type=int, nargs="*", default=range(1, 19))
    parser.add_argument("--changed", type=int, nargs="*", default=(1, 5, 9, 13, 15, 18))
    arguments = parser.parse_args()
    heads = {n: synthseg(arguments.maps / f"training_seg_{n:02d}.nii.gz") for n in arguments.only}
    plain: dict[str, dict[str, float]] = {}
    print("# Left and right found from the labels\n\nMade by `benchmarks/sides.py`; see there.\n")
    print("| heads | least share of paired voxels on their side | mean | worst volume of a side |")
    print("|---|---|---|---|")
    took = []
    for name, change in CHANGES:
        found = []
        for number, head in heads.items():
            if change is not as_it_is and number not in arguments.changed:
                continue
            other = change(head, np.random.default_rng(number))
            start = time.process_time()
            found.append(measure(other))
            took.append(time.process_time() - start)
            print(name, number, found[-1], file=sys.stderr, flush=True)
            if change is as_it_is:
                plain[f"training_seg_{number:02d}"] = found[-1]
        every = [each["all"] for each in found]
        cells = [min(every), float(np.mean(every)), max(each["volume"] for each in found)]
        shown = " | ".join(f"{cell:.2f} %" for cell in cells)
        print(f"| {name} ({len(found)}) | {shown} |", flush=True)
    reference = arguments.heads / "visualqc_id001_aparc+aseg.mgz"
    plain["visualqc_id001"] = measure(freesurfer(reference))
    tissues = ["all", *(name for name in PAIRED if name in INDEX)]
    print("\nAs they are: percent of voxels on their side (error of a side's volume in percent).\n")
    print("| map | " + " | ".join(tissues) + " |")
    print("|---" * (len(tissues) + 1) + "|")
    for name, each in plain.items():
        cells = [
            f"{each[t]:.2f} ({each['volume' if t == 'all' else f'volume {t}']:.2f})"
            if t in each
            else "n/a"
            for t in tissues
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(f"\n{np.mean(took):.1f} s of CPU time a head, {max(took):.1f} s at most.")


if __name__ == "__main__":
    main()
