"""Drawn visits of one head: poses, bias fields and noise of their own, atrophy of known size.

The label map is sampled at 0.5 mm in the pose of each visit and painted there; voxels of 1 mm
are averages of eight, so that borders have partial volume as in real scans. Structures shrink or
grow by a smooth displacement of their surface, of a fraction of a voxel; the true volumes are
counted at 0.5 mm.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch.nn import functional

from siam_bids.image.grid import Grid, Volume
from siam_bids.image.labels import siam_labels
from siam_bids.image.transforms import Affine
from siam_bids.synthesis.label_maps import Anatomy
from siam_bids.synthesis.recipe import draw_recipe
from siam_bids.synthesis.render import render

FINE = 2
"""Samples per mm at which heads are painted."""
UNKNOWN = 255
_FADE = 2.5
"""Distance in mm from a surface over which its displacement fades."""
_TRIAL = 0.2
"""Displacement in mm by which the area of a surface is measured."""
_GENERIC = Rotation.from_euler("xyz", (3, -4, 2), degrees=True).as_matrix()
"""A pose in which voxels of the map and samples do not coincide."""

SURFACES = {
    "cortex": (("GM", "WM", "CSFv", "Thal", "Pal", "Put", "Caud", "Accu", "Amyg", "Hippo",
                "Anomalies"), "GM", -1.0),
    "hippocampus": (("Hippo",), "Hippo", -1.0),
    "ventricles": (("CSFv",), "CSFv", 1.0),
    "caudate": (("Caud",), "Caud", -1.0),
}  # fmt: skip
"""What each surface encloses, the tissue whose volume is counted, and the sign of its change."""


@dataclass(frozen=True)
class Visit:
    """One drawn scan.

    Attributes
    ----------
    volume
        At 1 mm, with an affine of identity.
    truth
        (I, J, K) uint8, the label of each voxel's centre; `UNKNOWN` where it is not drawn.
    millilitres
        True volume of each label by name, counted at 0.5 mm.
    to_head
        (4, 4) from mm of the scan to mm of the head.
    """

    volume: Volume
    truth: np.ndarray
    millilitres: dict[str, float]
    to_head: Affine


class Head:
    """A label map that visits are drawn of."""

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        table = anatomy.table
        self.target = np.array([t[0] if len(t) == 1 else UNKNOWN for t in table.target], np.uint8)
        self._steps: dict[str, tuple[np.ndarray, float]] = {}
        inside = table.codes_of(*siam_labels().names("cortex", "white_matter"))[anatomy.codes]
        self._brain = ndimage.find_objects(inside.astype(np.uint8))[0]

    def displacement(self, changes: Mapping[str, float]) -> np.ndarray:
        """Return the displacement (3, I, J, K) in mm that changes volumes by percentages.

        What is seen at a place lies at the place plus this.
        """
        total = np.zeros((3, *self.anatomy.codes.shape), np.float32)
        for name, percent in changes.items():
            inward, per_mm = self._surface(name)
            total += np.float32(SURFACES[name][2] * percent / per_mm) * inward
        return total

    def _surface(self, name: str) -> tuple[np.ndarray, float]:
        """Return the unit displacement that enlarges a structure, and what a mm of it makes (%)."""
        if name not in self._steps:
            structure, counted, _ = SURFACES[name]
            inside = self.anatomy.table.codes_of(*structure)[self.anatomy.codes]
            box = tuple(slice(max(0, part.start - 8), part.stop + 8)
                        for part in ndimage.find_objects(inside.astype(np.uint8))[0])  # fmt: skip
            near = inside[box]
            out, away = (ndimage.distance_transform_edt(each) for each in (near, ~near))
            distance = ndimage.gaussian_filter((out - away).astype(np.float32), 0.7)
            normal = np.stack(np.gradient(distance))
            normal /= np.maximum(np.linalg.norm(normal, axis=0), 0.3)
            normal *= np.exp(-((distance / _FADE) ** 2))
            whole = np.zeros((3, *inside.shape), np.float32)
            whole[(slice(None), *box)] = normal
            tissue = self.anatomy.table.codes_of(counted)
            low, high = (
                np.array([getattr(part, end) for part in box]) for end in ("start", "stop")
            )
            before, after = (
                tissue[self._sampled(_GENERIC, shift, low, high)].sum()
                for shift in (None, _TRIAL * whole)
            )
            self._steps[name] = whole, 100 * abs(after / before - 1) / _TRIAL
        return self._steps[name]

    def _sampled(
        self,
        turn: np.ndarray,
        shift: np.ndarray | None,
        low: np.ndarray,
        high: np.ndarray,
        fine: int = FINE,
    ) -> np.ndarray:
        """Return codes in a box of a scan turned about the middle of the map, `fine` per mm.

        Parameters
        ----------
        low, high
            (3,) first voxel of the box, and that after its last, in mm from the map's first voxel.
        """
        shape = np.array(self.anatomy.codes.shape)
        middle, back = (shape - 1) / 2, turn.T
        codes = torch.from_numpy(self.anatomy.codes)
        moved = None if shift is None else torch.from_numpy(shift)[None]
        scale, last = torch.tensor(2 / (shape - 1)).float(), torch.tensor(shape - 1)
        axes = [torch.arange(a, b, 1 / fine, dtype=torch.float32) + (0.5 / fine - 0.5)
                for a, b in zip(low, high, strict=True)]  # fmt: skip
        across = torch.stack(torch.meshgrid(*axes[1:], indexing="ij"))
        found = torch.empty([len(axis) for axis in axes], dtype=torch.uint8)
        for row, first in enumerate(axes[0]):
            parts = [first - middle[0], across[0] - middle[1], across[1] - middle[2]]
            place = torch.stack(
                [sum(float(back[axis, n]) * parts[n] for n in range(3)) + float(middle[axis])
                 for axis in range(3)], -1)  # fmt: skip
            if moved is not None:
                where = (place * scale - 1).flip(-1)[None, None]
                step = functional.grid_sample(
                    moved, where, align_corners=True, padding_mode="border"
                )
                place = place + step[0, :, 0].permute(1, 2, 0)
            voxel = place.round_().long()
            inside = ((voxel >= 0) & (voxel <= last)).all(-1)
            voxel = torch.minimum(voxel.clamp_(min=0), last)
            found[row] = codes[voxel[..., 0], voxel[..., 1], voxel[..., 2]] * inside
        return found.numpy()

    def visit(self, contrast: str, changes: Mapping[str, float], seed: int) -> Visit:
        """Draw a scan of one protocol, cut below the brain, in a pose of up to 5 degrees.

        Parameters
        ----------
        changes
            Atrophy in percent by surface, see `SURFACES`.
        """
        rng = np.random.default_rng((seed, 5))
        protocol = draw_recipe(np.random.default_rng((3, 99)), difficulty=0.3, contrast=contrast)
        turn = Rotation.from_euler("xyz", rng.uniform(-5, 5, 3), degrees=True).as_matrix()
        low, high = self._field_of_view(rng.uniform(0, 3, 3))
        moved = self.displacement(changes) if changes else None
        fine = self._sampled(turn, moved, low, high)
        nothing = (0.0, 0.0, 0.0)
        recipe = replace(
            protocol, seed=seed, rotation=nothing, scale=(1.0, 1.0, 1.0), shear=nothing,
            flip=False, margin_low=nothing, margin_high=nothing, elastic=0.0, boundaries=(),
            lesions="no", strip="no", motion=0.0, ghost=0.0, objects=0, patchiness=0.0,
            spacing=(float(FINE),) * 3, bias=0.2, noise=0.03, heal_lesions=False, blur=0.4 * FINE,
        )  # fmt: skip
        painted = replace(self.anatomy, codes=fine, voxel_size=(1.0, 1.0, 1.0))
        image = 1000 * render(painted, recipe, voxel=FINE).image.numpy()
        counts = np.bincount(self.target[fine].ravel(), minlength=256) / (1000 * FINE**3)
        middle = (np.array(self.anatomy.codes.shape) - 1) / 2
        to_head = np.eye(4)
        to_head[:3, :3] = turn.T
        to_head[:3, 3] = turn.T @ (low - middle) + middle
        return Visit(
            Volume(image.astype(np.float32), Grid(image.shape, np.eye(4))),
            self.target[self._sampled(turn, moved, low, high, 1)],
            {label.name: float(counts[label.index]) for label in siam_labels()},
            to_head,
        )

    def _field_of_view(self, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the low and high corner (3,) of a scan of the head, in voxels of the map."""
        seen = ndimage.find_objects((self.anatomy.codes > 0).astype(np.uint8))[0]
        low = np.array([part.start - 6 for part in seen])
        low[2] = max(low[2], self._brain[2].start - 25)
        high = np.array([part.stop + 6 for part in seen])
        return low + shift, low + shift + (high - low)
