"""Left and right: the hemisphere of each voxel of a paired tissue, from the labels alone.

The surface between the hemispheres is found in three steps:

1. The pose of the head tells where its left is, however it lies in the scanner (`pose_of`); a head
   whose pose is not clear, for example a slab, is taken to lie along the axes of the world.
2. The plane is the one across which the mirrored labels agree best with the labels, as images do
   across the mid-sagittal plane (Ardekani et al., IEEE TMI 1997).
3. The plane bends. Every position up to `REACH` to both sides of each of its places has a cost: how
   near it is to white matter and nuclei, since falx and fissure lie midway; less in the fluid
   between the hemispheres; and the share of tissues that differ between both sides of it, which
   tells where ventricles, corpus callosum, brain stem and cerebellum have their middle. Costs are
   averaged over neighbouring places, from coarse to fine (cost-volume filtering: Hosni et al., IEEE
   TPAMI 2013), and the position of least cost is taken.

Accuracy on heads with known sides: `benchmarks/sides.md`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.optimize import minimize

from siam_bids.image.grid import Segmentation
from siam_bids.image.labels import Label, LabelTable
from siam_bids.measures.pose import LEAST_VOXELS, MISFIT, Shape, pose_of, upright_head

Floats = npt.NDArray[np.float64]

SIDE_VALUE = 1000
"""What a label's value gains on the left; twice that on the right."""

PAIRED = (
    "GM", "WM", "CSFv", "Ventricles", "cerGM", "Cereb", "Wmcereb", "Thal", "Pal", "Put", "Caud",
    "Accu", "Striatum", "Amyg", "Hippo",
)  # fmt: skip
"""Names of the labels that each hemisphere has."""

HEMISPHERES = {1: "left", 2: "right"}
"""Values of `find_sides`, and their words."""

STEP = 2.0
"""Edge length in mm of the grid on which the surface is found."""

REACH = 16
"""How far in mm the surface may bend away from the plane."""

NUCLEI = ("Thal", "Pal", "Put", "Caud", "Accu", "Striatum", "Amyg", "Hippo")
"""Those of them that are compact: a piece of them lies on one side."""

_DEEP = (*NUCLEI, "WM", "CSFv", "Ventricles", "cerGM", "Cereb", "Wmcereb", "Brainsteam")
"""What the surface passes only where nothing else is in its way."""

_OUTSIDE = ("background", "skull", "head", "vessels", "dura", "csf")
"""Roles of labels that are not compared across the plane: not all images have them."""

_DEPTH = 6.0
"""Distance in mm from `_DEEP` from which on a position costs nothing."""

_GAP = 2.0
"""Distance in mm from `_DEEP` from which on fluid, dura and vessels cost 1 less."""

_FAR = 14.0
"""Distance in mm from `_DEEP` beyond which nothing is between the hemispheres: old strokes."""

_WIDEST = 30
"""How far in mm to both sides tissues are compared."""

_BEND = 0.3
"""What it costs to bend by the width of a scale."""

_TILTS = (-0.4, 0.0, 0.4)
"""Slopes of the plane to the front and upward at which its search starts."""

_SCALES = ((12.0, 12.0), (6.0, 6.0), (3.0, 3.0))
"""Standard deviation in mm of the average over places, and width in mm."""

_LEAST_PAIRED = 500
"""Voxels of paired tissues on the coarse grid below which no surface is looked for."""

_LEAST_SYMMETRY = 0.7
"""Agreement of the mirrored labels below which the width of the brain is looked at.

Half heads have up to 0.66, whole ones 0.85 to 0.96, with a tumour or an old stroke 0.49 to 0.89.
"""

_LEAST_WIDTH = 0.64
"""Width, as `_width` tells it, below which a brain that is not symmetric has one side only.

Half heads have up to 0.56, whole ones 0.7 to 0.9.
"""

_AT_ONCE = 200_000
"""Voxels whose coordinates are in memory together."""

_ONE_SIDED = 0.85
"""Share of a nucleus' piece on one side from which on all of it belongs there."""


@dataclass(frozen=True)
class MidSurface:
    """The surface between the hemispheres: x = height(y, z) in a frame of the head.

    Attributes
    ----------
    affine
        (4, 4), RAS+ mm of the scanner to mm of the head: x to its right, y to its front, z up.
    heights
        (J, K) in mm.
    corner
        y and z in mm of the first height; the others follow every `STEP`.
    """

    affine: Floats
    heights: Floats
    corner: tuple[float, float]

    def right_of(self, points: Floats) -> Floats:
        """Return by how many mm points (N, 3), RAS+ mm, lie to the right of the surface."""
        x, y, z = (points @ self.affine[:3, :3].T + self.affine[:3, 3]).T
        places = [(y - self.corner[0]) / STEP, (z - self.corner[1]) / STEP]
        height = ndimage.map_coordinates(self.heights, places, order=1, mode="nearest")
        away: Floats = x - height
        return away


def sided_values(
    data: npt.NDArray[np.uint8], sides: npt.NDArray[np.uint8] | None
) -> npt.NDArray[np.uint16]:
    """Return labels (I, J, K) with `SIDE_VALUE` added once on the left and twice on the right.

    FreeSurfer numbers the parcels of the cortex so.
    """
    values = data.astype(np.uint16)
    return values if sides is None else values + SIDE_VALUE * sides.astype(np.uint16)


def sided_labels(labels: LabelTable) -> LabelTable:
    """Return the table of what `sided_values` returns: all labels, then left, then right ones.

    Those of the right are darker.
    """
    pairs = [
        replace(
            label,
            index=label.index + SIDE_VALUE * value,
            name=f"{label.name}_{side}",
            long_name=f"{label.long_name}, {side}",
            color="#" + bytes(round(part * shade) for part in label.rgb).hex(),
        )
        for value, side, shade in ((1, HEMISPHERES[1], 1.0), (2, HEMISPHERES[2], 0.7))
        for label in paired_labels(labels)
    ]
    return LabelTable((*labels, *pairs))


def paired_labels(labels: LabelTable) -> tuple[Label, ...]:
    """Return the labels that each hemisphere has, what refines them included."""
    indices = {*labels.indices(PAIRED)}
    return tuple(label for label in labels if label.index in indices)


def find_sides(
    segmentation: Segmentation, surface: MidSurface | None = None
) -> npt.NDArray[np.uint8] | None:
    """Give each voxel of a paired tissue its hemisphere.

    Parameters
    ----------
    surface
        Between the hemispheres, if it was found already.

    Returns
    -------
    (I, J, K): 0 no paired tissue, 1 left, 2 right. None if there are too few paired voxels, the
    image holds one side only, or no label has a name of `PAIRED`.
    """
    surface = surface or mid_surface(segmentation)
    if surface is None:
        return None
    data, grid = segmentation.data, segmentation.grid
    found = np.zeros(data.shape, np.uint8)
    for paired in voxels_of(segmentation.mask(PAIRED)):
        found[tuple(paired.T)] = 1 + (surface.right_of(world(paired, grid.affine)) > 0)
    for name in NUCLEI:
        _unite(found, segmentation.mask([name]))
    return found


def voxels_of(mask: npt.NDArray[np.bool_]) -> Iterator[npt.NDArray[np.intp]]:
    """Yield the voxels of a mask, (N, 3), some `_AT_ONCE` at a time to save memory."""
    places = np.flatnonzero(mask)
    for start in range(0, len(places), _AT_ONCE):
        yield np.stack(np.unravel_index(places[start : start + _AT_ONCE], mask.shape), axis=1)


def _unite(found: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_]) -> None:
    """Give pieces of a mask that lie on one side to that side, in place."""
    if not mask.any():
        return
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    pieces, number = ndimage.label(mask[box])
    part = found[box]
    voxels = np.bincount(pieces.ravel(), minlength=number + 1)
    right = np.bincount(pieces.ravel(), part.ravel() == 2, minlength=number + 1)
    share = right / np.maximum(voxels, 1)
    share[0] = 0.5
    part[share[pieces] >= _ONE_SIDED] = 2
    part[share[pieces] <= 1 - _ONE_SIDED] = 1


def mid_surface(segmentation: Segmentation) -> MidSurface | None:
    """Find the surface between the hemispheres; None if it cannot be told.

    That is where there are too few paired voxels, or one side only: the plane found then is that of
    no symmetric brain, and there is little of the brain to one side of it.
    """
    labels = segmentation.labels
    if not any(name in labels.by_name for name in PAIRED):
        return None
    data, affine = coarse_labels(segmentation)
    paired = labels.indices(PAIRED)
    if np.isin(data, paired).sum() < _LEAST_PAIRED:
        return None
    compared = np.zeros(256, np.uint8)
    for label in labels:
        if label.role not in _OUTSIDE or label.index in paired:
            compared[label.index] = label.index
    head = _pose(data, affine, labels)
    head, symmetry = _plane(compared[data], affine, head)
    points = world(np.argwhere(np.isin(data, paired)), head @ affine)
    if symmetry < _LEAST_SYMMETRY and _width(points) < _LEAST_WIDTH:
        return None
    return _bent(data, compared, affine, head, labels)


def coarse_labels(segmentation: Segmentation) -> tuple[npt.NDArray[np.uint8], Floats]:
    """Return every n-th voxel, about `STEP` apart, and the affine of what is left."""
    size = segmentation.grid.voxel_size
    step = [max(1, round(STEP / edge)) for edge in size]
    data = segmentation.data[:: step[0], :: step[1], :: step[2]]
    return data, segmentation.grid.affine @ np.diag([*step, 1.0])


def world(voxels: npt.NDArray[np.integer] | Floats, affine: Floats) -> Floats:
    """Return points (N, 3), transformed by an affine (4, 4)."""
    points: Floats = voxels @ affine[:3, :3].T + affine[:3, 3]
    return points


def _pose(data: npt.NDArray[np.uint8], affine: Floats, labels: LabelTable) -> Floats:
    """Return (4, 4), RAS+ mm to a frame of the head, by its pose; else by the axes of the world."""
    shapes = {}
    for name in upright_head():
        if name in labels.by_name:
            places = np.argwhere(data == labels.by_name[name].index)
            if len(places) >= LEAST_VOXELS:
                mm = world(places, affine)[:, ::-1]
                shapes[name] = Shape(mm.mean(0), np.cov(mm.T, bias=True))
    pose = pose_of(shapes)
    head = np.eye(4)
    if pose and pose.misfit < MISFIT:
        head[:3, :3] = pose.rotation[::-1, ::-1]
        head[:3, 3] = -head[:3, :3] @ pose.centre[::-1]
    else:
        places = np.argwhere(np.isin(data, labels.indices(PAIRED)))
        head[:3, 3] = -world(places, affine).mean(0)
    return head


def _width(points: Floats) -> float:
    """Return twice the extent to the narrower side of x = 0, as a share of the longest extent.

    Parameters
    ----------
    points
        (N, 3) in mm. The outermost 2 % do not count.
    """
    low, high = np.percentile(points, [2, 98], axis=0)
    return float(2 * min(-low[0], high[0]) / max(high - low))


def _plane(data: npt.NDArray[np.uint8], affine: Floats, head: Floats) -> tuple[Floats, float]:
    """Return the frame with x = 0 where the mirrored labels agree best with the labels.

    Returns
    -------
    The frame (4, 4), and the agreement: 1 for a symmetric brain.
    """
    places = np.argwhere(data)
    points = world(places, head @ affine)
    values = data[tuple(places.T)]
    low, high = points.min(0) - 4 * STEP, points.max(0) + 4 * STEP
    volume, corner = _resampled(data, np.linalg.inv(affine) @ np.linalg.inv(head), low, high, STEP)
    rng = np.random.default_rng(0)
    tissues = []
    for value in np.unique(values):
        own = points[values == value]
        if len(own) < LEAST_VOXELS:
            continue
        own = own[rng.permutation(len(own))[:2000]]
        blurred = ndimage.gaussian_filter((volume == value).astype(np.float32), 1.5)
        tissues.append((own, blurred, float(_at(blurred, own, corner).mean())))

    def asymmetry(guess: Floats) -> float:
        normal, offset = _normal(guess)
        overlap = [
            _at(blurred, own - 2 * np.outer(own @ normal - offset, normal), corner).mean() / full
            for own, blurred, full in tissues
        ]
        return -float(np.mean(overlap))

    starts = [np.array(start) for start in product((-12.0, -6.0, 0.0, 6.0, 12.0), _TILTS, _TILTS)]
    start = min(starts, key=asymmetry)
    simplex = start + np.array([[0, 0, 0], [4, 0, 0], [0, 0.08, 0], [0, 0, 0.08]])
    answer = minimize(
        asymmetry, start, method="Nelder-Mead",
        options={"initial_simplex": simplex, "xatol": 0.01, "fatol": 1e-5, "maxfev": 200},
    )  # fmt: skip
    normal, offset = _normal(answer.x)
    up = np.array([0.0, 0.0, 1.0]) - normal[2] * normal
    up /= np.linalg.norm(up)
    turn = np.eye(4)
    turn[:3, :3] = [normal, np.cross(up, normal), up]
    turn[0, 3] = -offset
    plane: Floats = turn @ head
    return plane, -float(answer.fun)


def _normal(plane: Floats) -> tuple[Floats, float]:
    """Return unit normal and offset of the plane x = a + b y + c z."""
    a, b, c = plane
    length = float(np.sqrt(1 + b * b + c * c))
    return np.array([1, -b, -c]) / length, a / length


def _resampled(
    data: npt.NDArray[np.uint8], back: Floats, low: Floats, high: Floats, step: npt.ArrayLike
) -> tuple[npt.NDArray[np.uint8], Floats]:
    """Return labels at the corners of a grid, 0 outside of them, and the first corner.

    Parameters
    ----------
    back
        (4, 4), mm of the grid to voxels of `data`.
    """
    steps = np.broadcast_to(np.asarray(step, np.float64), 3)
    shape = tuple(int(n) for n in np.ceil((high - low) / steps) + 1)
    matrix = back[:3, :3] * steps
    start = back[:3, :3] @ low + back[:3, 3]
    labels = ndimage.affine_transform(
        data, matrix, start, output_shape=shape, order=0, mode="constant"
    )
    return labels, low


def _at(volume: npt.NDArray[np.float32], points: Floats, corner: Floats) -> Floats:
    """Return values of a volume at points (N, 3) in mm."""
    at: Floats = ndimage.map_coordinates(volume, ((points - corner) / STEP).T, order=1)
    return at


def _bent(
    data: npt.NDArray[np.uint8],
    compared: npt.NDArray[np.uint8],
    affine: Floats,
    head: Floats,
    labels: LabelTable,
) -> MidSurface:
    """Bend the plane x = 0 of a frame of the head to where its sides part."""
    points = world(np.argwhere(np.isin(data, labels.indices(PAIRED))), head @ affine)
    low, high = points.min(0) - STEP, points.max(0) + STEP
    low[0], high[0] = -(REACH + _WIDEST), REACH + _WIDEST
    back = np.linalg.inv(affine) @ np.linalg.inv(head)
    volume, corner = _resampled(data, back, low, high, (1, STEP, STEP))
    deep = np.isin(volume, labels.indices(_DEEP))
    away = ndimage.distance_transform_edt(~deep, (1, STEP, STEP)) if deep.any() else deep * 1.0
    candidates = slice(_WIDEST, _WIDEST + 2 * REACH + 1)
    cost = 1 - np.minimum(away[candidates], _DEPTH) / _DEPTH
    fluid = [label.index for label in labels.of_role("csf", "dura", "vessels")]
    cost -= np.isin(volume[candidates], fluid) * np.minimum(away[candidates], _GAP) / _GAP
    cost = 1 - (1 - cost) * np.clip((_FAR - away[candidates]) / _DEPTH, 0, 1)
    mirrored = compared[volume]
    lengths = np.arange(1, _WIDEST, 2)
    for place in range(2 * REACH + 1):
        middle = place + _WIDEST
        cost[place] += np.mean(
            [mirrored[middle + far] != mirrored[middle - far] for far in lengths], axis=0
        )
    heights = np.zeros(cost.shape[1:])
    for spread, width in _SCALES:
        heights = _lowered(cost, heights, spread / STEP, width)
    return MidSurface(affine=head, heights=heights, corner=(float(corner[1]), float(corner[2])))


def _lowered(cost: Floats, heights: Floats, spread: float, width: float) -> Floats:
    """Move a surface to the least cost around it, averaged along it.

    Parameters
    ----------
    cost
        (2 `REACH` + 1, J, K), of every mm from -`REACH` to `REACH`.
    heights
        (J, K) in mm.
    spread
        Standard deviation of the average, in places.
    width
        Distance in mm that costs `_BEND`.
    """
    steps = np.arange(-REACH, REACH + 1)
    rows, columns = np.indices(heights.shape)
    shifted = np.empty_like(cost)
    for place, step in enumerate(steps):
        x = np.clip(heights + step, -REACH, REACH) + REACH
        below = np.minimum(x.astype(int), 2 * REACH - 1)
        part = x - below
        shifted[place] = (1 - part) * cost[below, rows, columns] + part * cost[
            below + 1, rows, columns
        ]
    shifted = ndimage.gaussian_filter(shifted, (0, spread, spread), mode="nearest")
    shifted += ((steps / width) ** 2)[:, None, None] * _BEND
    best = np.clip(shifted.argmin(0), 1, 2 * REACH - 1)
    before, there, after = (shifted[best + shift, rows, columns] for shift in (-1, 0, 1))
    curve = before - 2 * there + after
    finer = np.where(curve > 1e-9, (before - after) / (2 * np.maximum(curve, 1e-9)), 0)
    moved = heights + steps[best] + np.clip(finer, -0.5, 0.5)
    lowered: Floats = np.clip(
        ndimage.gaussian_filter(moved, spread / 2, mode="nearest"), -REACH, REACH
    )
    return lowered
