"""Images and segmentations on a grid in the scanner's space, and exact reorientation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from siam_bids.image.forms import Forms
from siam_bids.image.labels import LabelTable

Array = TypeVar("Array", bound=np.ndarray)

Box = tuple[slice, slice, slice]
"""A part of an image, by its three axes."""


@dataclass(frozen=True)
class Grid:
    """Where the voxels are.

    Attributes
    ----------
    shape
        (I, J, K) voxels.
    affine
        (4, 4) float64, voxel (i, j, k) to RAS+ millimetres.
    forms
        The placements of the NIfTI header that it was read from, if any: an image written on this
        grid gets the same ones.
    """

    shape: tuple[int, int, int]
    affine: npt.NDArray[np.float64]
    forms: Forms | None = field(default=None, compare=False, repr=False)

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """Edge lengths along i, j, k in mm."""
        sizes = nib.affines.voxel_sizes(self.affine)
        return float(sizes[0]), float(sizes[1]), float(sizes[2])

    @property
    def voxel_volume(self) -> float:
        """Volume of one voxel in mm3: the determinant of the affine, right for shears too."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def axcodes(self) -> str:
        """Nearest anatomical direction of each axis, for example `RAS`."""
        return "".join(nib.aff2axcodes(self.affine))

    def same_as(self, other: Grid) -> bool:
        """Tell whether both grids place every voxel at the same spot (to 1e-4 mm)."""
        return self.shape == other.shape and np.allclose(self.affine, other.affine, atol=1e-4)


@dataclass(frozen=True)
class _OnGrid(Generic[Array]):
    data: Array
    grid: Grid

    def __post_init__(self) -> None:
        if self.data.shape != self.grid.shape:
            raise ValueError(f"data {self.data.shape} and grid {self.grid.shape} differ")


@dataclass(frozen=True)
class Volume(_OnGrid[npt.NDArray[np.float32]]):
    """A scan: `data` (I, J, K) float32 intensities in the image's own unit."""

    def cut(self, box: Box) -> Volume:
        """Return the part of the scan in a box (I, J, K), in the same place of the world."""
        affine = self.grid.affine.copy()
        affine[:3, 3] = affine[:3] @ [*(part.start for part in box), 1]
        data = self.data[box]
        i, j, k = data.shape
        return Volume(data, Grid((i, j, k), affine))


@dataclass(frozen=True)
class Segmentation(_OnGrid[npt.NDArray[np.uint8]]):
    """A label map: `data` (I, J, K) uint8, values named by `labels`."""

    labels: LabelTable

    def mask(self, names: Iterable[str]) -> npt.NDArray[np.bool_]:
        """Return (I, J, K) bool, True where the label is one of `names`."""
        return np.isin(self.data, self.labels.indices(names))


@dataclass(frozen=True)
class Reorientation:
    """Flips and swaps of axes that turn one grid to RAS+ and back, without interpolation."""

    source: Grid
    forward: npt.NDArray[np.float64]
    """nibabel orientation array (3, 2): source axes to RAS."""

    @classmethod
    def to_ras(cls, grid: Grid) -> Reorientation:
        """Plan the turn of `grid` to the nearest RAS+ axis order."""
        return cls(grid, nib.io_orientation(grid.affine))

    @property
    def target(self) -> Grid:
        """The reoriented grid: the same voxels in RAS+ order."""
        back = nib.orientations.inv_ornt_aff(self.forward, self.source.shape)
        order = np.argsort(self.forward[:, 0])
        i, j, k = (self.source.shape[axis] for axis in order)
        return Grid((i, j, k), self.source.affine @ back)

    def apply(self, data: Array) -> Array:
        """Turn (I, J, K) data on the source grid to the RAS+ order."""
        turned: Array = nib.apply_orientation(data, self.forward)
        return turned

    def undo(self, data: Array) -> Array:
        """Turn (I', J', K') data in RAS+ order back to the source grid, exactly."""
        identity = np.array([[0, 1], [1, 1], [2, 1]])
        inverse = nib.orientations.ornt_transform(identity, self.forward)
        turned: Array = nib.apply_orientation(data, inverse)
        return turned


@dataclass(frozen=True)
class Crop:
    """A box of a scan, its axes in nnU-Net's order [z, y, x] of the reoriented scan.

    Attributes
    ----------
    turn
        Turns the scan to RAS+.
    box
        Of the reoriented scan, [z, y, x].
    """

    turn: Reorientation
    box: tuple[slice, slice, slice]

    @classmethod
    def around(cls, mask: npt.NDArray[np.bool_], grid: Grid) -> Crop:
        """Find the smallest box around a mask (I, J, K) that is not empty."""
        turn = Reorientation.to_ras(grid)
        return cls(turn, box_of(turn.apply(mask).T))

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels of the box along z, y, x."""
        return tuple(part.stop - part.start for part in self.box)

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """Edge lengths along z, y, x in mm."""
        x, y, z = self.turn.target.voxel_size
        return z, y, x

    @property
    def grid(self) -> Grid:
        """That of the box, in RAS+ order; where it begins is left out."""
        x, y, z = self.shape[::-1]
        return Grid((x, y, z), self.turn.target.affine)

    def within(self, part: Sequence[slice]) -> Crop:
        """Return the crop to a part of this one, [z, y, x]."""
        z, y, x = (
            slice(whole.start + inner.start, whole.start + inner.stop)
            for whole, inner in zip(self.box, part, strict=True)
        )
        return Crop(self.turn, (z, y, x))

    def cut(self, data: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a view of scan data (I, J, K) within the box, [z, y, x]."""
        return self.turn.apply(data).T[self.box]

    def undo(self, part: npt.NDArray[Any], outside: int = 0) -> npt.NDArray[Any]:
        """Put data of the box [z, y, x] back into a scan (I, J, K) of the value `outside`."""
        whole = np.full(self.turn.target.shape[::-1], outside, part.dtype)
        whole[self.box] = part
        return np.ascontiguousarray(self.turn.undo(whole.T))


def box_of(mask: npt.NDArray[np.bool_]) -> Box:
    """Return the smallest box (I, J, K) around a mask that is not empty."""
    i, j, k = ndimage.find_objects(mask.astype(np.uint8))[0]
    return i, j, k
