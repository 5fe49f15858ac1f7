"""Closed surfaces of a head, one within the other, as boundary element models need them.

Every surface is a radius along each of 10,242 fixed directions from one point inside the brain: a
subdivided icosahedron, pulled out to the tissue border. So none can cut itself, two cannot cross
where one has the larger radii, and coarser icosahedra are subsets of their vertices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.spaces import vox2out_vox
from scipy import ndimage, sparse
from scipy.spatial import KDTree

from siam_bids.errors import DatasetError
from siam_bids.export.shapes import Mask, closed, dilated, largest, opened
from siam_bids.image.grid import Grid, Segmentation
from siam_bids.image.labels import INTRACRANIAL

Points = npt.NDArray[np.float64]

SURFACES = ("inner_skull", "outer_skull", "outer_skin")
"""Those of a boundary element model, the innermost first."""

BRAIN = "brain"
"""Surface around the brain, closed over its sulci: the pial envelope."""

UNDER_SKULL = 1.0
"""Least distance in mm of the brain's surface from the inner skull, along a direction."""

CANAL = 10.0
"""Radius in mm of what is no part of the brain's space: the spinal canal."""

THICKEST_BONE = 15.0
"""Distance from the brain's space in mm beyond which bone is that of the face and neck."""

NECK = 40
"""How far in mm the head goes on below the brain's space; necks differ with the field of view."""

CLOSING = 6.0
"""Radius in mm of what bone and skin are closed over: sutures, sinuses, ear canals, nostrils."""

SMOOTHINGS = 10
"""How often a radius moves half-way to the mean of its neighbours."""

STEP = 0.5
"""Distance in mm of the samples along a direction."""

MOST_CUT = 0.05
"""Share of the directions upwards that may leave the image within the head.

The cap of a sphere of radius r that holds the share s of a hemisphere is s r deep: here some 5 mm.
"""

LEAST_COVER = 0.8
"""Share of the directions upwards in which there must be bone, and scalp.

Whole heads have 1.0; skull-stripped ones have up to 0.2 of bone and no scalp.
"""

MOST_BRAIN_CUT = 0.02
"""Share of the directions above `BRAIN_STEM` that may leave the image within the brain's space."""

BRAIN_STEM = -0.5
"""Sine of the elevation below which the image may end within the brain, as within the neck."""


@dataclass(frozen=True)
class Sphere:
    """A subdivided icosahedron in the order of FreeSurfer and MNE.

    Attributes
    ----------
    directions
        (10242, 3) unit vectors.
    faces
        (20480, 3) indices of vertices, anticlockwise as seen from outside.
    """

    directions: Points
    faces: npt.NDArray[np.int32]

    def smoothed(self, radii: Points) -> Points:
        """Smooth one number for each vertex."""
        edges = np.concatenate(
            [self.faces[:, [0, 1]], self.faces[:, [1, 2]], self.faces[:, [2, 0]]]
        )
        size = len(self.directions)
        near = sparse.csr_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), (size, size))
        near = sparse.diags_array(1 / np.asarray(near.sum(axis=1)).ravel()) @ near
        for _ in range(SMOOTHINGS):
            radii = (radii + near @ radii) / 2
        return radii


@cache
def sphere() -> Sphere:
    """Return the icosahedron subdivided five times: the sphere of fsaverage5, from nilearn."""
    from nilearn.datasets import fetch_surf_fsaverage

    image = nib.GiftiImage.from_filename(fetch_surf_fsaverage("fsaverage5")["sphere_left"])
    points = image.agg_data("pointset").astype(np.float64)
    directions = points / np.linalg.norm(points, axis=1, keepdims=True)
    return Sphere(directions, image.agg_data("triangle").astype(np.int32))


@dataclass(frozen=True, kw_only=True)
class HeadSurfaces:
    """The surfaces of a head: `SURFACES` and `BRAIN`.

    Attributes
    ----------
    center
        (3,) RAS+ mm.
    radii
        (10242,) mm along the directions of `sphere`, by name.
    closed_by_edge
        Share of the directions in which the head goes on beyond the image; there the skin is the
        edge of the image.
    """

    center: Points
    radii: dict[str, Points]
    closed_by_edge: float

    def vertices(self, name: str) -> Points:
        """Return the vertices of a surface (10242, 3), RAS+ mm."""
        points: Points = self.center + self.radii[name][:, None] * sphere().directions
        return points

    def least_distance(self, inner: str, outer: str) -> float:
        """Return the minimum distance between two surfaces in mm, at vertices and faces."""
        found = KDTree(_dense(self.vertices(inner))).query(_dense(self.vertices(outer)))[0]
        return float(found.min())


def even_grid(grid: Grid) -> Grid:
    """Return the grid of 1 mm, its axes left, down and forward, that holds all of another one."""
    shape, affine = vox2out_vox((grid.shape, grid.affine), (1.0, 1.0, 1.0))
    i, j, k = (int(each) for each in shape)
    affine = affine @ np.array([[-1, 0, 0, i - 1], [0, 0, 1, 0], [0, -1, 0, k - 1], [0, 0, 0, 1.0]])
    return Grid((i, k, j), affine)


def resampled(
    data: npt.NDArray[np.generic], grid: Grid, target: Grid, *, order: int
) -> npt.NDArray[np.generic]:
    """Return data (I, J, K) on another grid; 0 beyond its own."""
    matrix = np.linalg.inv(grid.affine) @ target.affine
    found: npt.NDArray[np.generic] = ndimage.affine_transform(
        data, matrix[:3, :3], matrix[:3, 3], target.shape, order=order, mode="constant"
    )
    return found


def head_surfaces(segmentation: Segmentation, thickness: float) -> HeadSurfaces:
    """Find brain, inner skull, outer skull and skin; the last three `thickness` mm apart or more.

    Raises
    ------
    DatasetError
        The labels do not tell brain, CSF and bone, the image cuts brain or the upper head, or bone
        and scalp do not cover the brain.
    """
    labels = segmentation.labels
    if not labels.intracranial or not labels.of_role("skull"):
        raise DatasetError(f"The labels do not distinguish brain, CSF and bone. {labels.limits}")
    grid = even_grid(segmentation.grid)
    data = resampled(segmentation.data, segmentation.grid, grid, order=0)
    seen = resampled(np.ones(segmentation.grid.shape, np.uint8), segmentation.grid, grid, order=0)
    even = Segmentation(np.asarray(data, np.uint8), grid, labels)
    inner, bone, head = _masks(even, thickness)
    center = (grid.affine @ [*ndimage.center_of_mass(inner), 1])[:3]
    rays = _Rays(grid, center)
    radii = {"inner_skull": _smooth(rays.last_inside(inner))}
    height = sphere().directions[:, 2]
    if np.mean(rays.leave(seen, radii["inner_skull"])[height > BRAIN_STEM]) > MOST_BRAIN_CUT:
        raise DatasetError(
            "The field of view cuts the brain: its surfaces stay open.",
            "Choose another scan with --reference.",
        )
    edge = rays.leave(seen, rays.last_inside(head))
    if (share := float(np.mean(edge[height > 0]))) > MOST_CUT:
        raise DatasetError(
            f"The field of view cuts the upper head ({share:.0%} of it): its skin stays open.",
            "Choose another scan with --reference.",
        )
    check_cover(even)
    for below, name, mask in (
        ("inner_skull", "outer_skull", bone),
        ("outer_skull", "outer_skin", head),
    ):
        radii[name] = _apart(center, radii[below], _smooth(rays.last_inside(mask)), thickness)
    brain = closed(even.mask([label.name for label in labels.brain]), CLOSING, grid.voxel_size)
    radii[BRAIN] = np.minimum(
        _smooth(rays.last_inside(brain & inner)), radii["inner_skull"] - UNDER_SKULL
    )
    return HeadSurfaces(center=center, radii=radii, closed_by_edge=float(np.mean(edge)))


def check_cover(segmentation: Segmentation) -> None:
    """Refuse a head whose skull or scalp is not there, as after skull stripping.

    Raises
    ------
    DatasetError
        There is no brain, or bone or scalp lie in too few directions upwards: see `LEAST_COVER`.
    """
    labels, grid = segmentation.labels, segmentation.grid
    inside = segmentation.mask(labels.names(*INTRACRANIAL))
    if not inside.any():
        raise DatasetError("There is no brain in the label map.")
    center = (grid.affine @ [*ndimage.center_of_mass(inside), 1])[:3]
    upwards = sphere().directions[:, 2] > 0
    rays = _Rays(grid, center)
    bone, scalp = (
        float(rays.meet(segmentation.mask(labels.names(role)))[upwards].mean())
        for role in ("skull", "head")
    )
    if min(bone, scalp) < LEAST_COVER:
        raise DatasetError(
            f"Bone covers {bone:.0%} and scalp {scalp:.0%} of the upper brain: was the image "
            "skull-stripped or cut?",
            "Choose another scan with --reference.",
        )


def _masks(segmentation: Segmentation, thickness: float) -> tuple[Mask, Mask, Mask]:
    """Return the brain's space, that and the bone around it, and the head; each closed."""
    labels, grid = segmentation.labels, segmentation.grid
    voxel = grid.voxel_size
    inside = largest(segmentation.mask(labels.names(*INTRACRANIAL, "dura")))
    inside = largest(opened(inside, CANAL, voxel))
    if not inside.any():
        raise DatasetError("There is no brain in the label map.")
    inside = closed(inside, CLOSING, voxel)
    near = dilated(inside, THICKEST_BONE, voxel)
    bone = near & segmentation.mask(labels.names("skull"))
    bone = closed(bone | dilated(inside, thickness, voxel), CLOSING, voxel)
    head = largest(segmentation.data > 0) | bone
    lowest = int(np.flatnonzero(inside.any(axis=(0, 2))).max())  # axis j goes down, 1 mm a voxel
    head[:, lowest + NECK :] = False
    return inside, bone, closed(head, CLOSING, voxel)


@dataclass(frozen=True)
class _Rays:
    """Samples along the directions of the sphere from a point."""

    grid: Grid
    center: Points

    def _voxels(self, radii: Points) -> Points:
        """Return voxel coordinates (3, rays, samples) at radii (rays, samples) or (1, samples)."""
        back = np.linalg.inv(self.grid.affine)
        start = (back @ [*self.center, 1])[:3]
        course = sphere().directions @ back[:3, :3].T
        points: Points = start[:, None, None] + course.T[:, :, None] * radii[None]
        return points

    def last_inside(self, mask: Mask) -> Points:
        """Return the largest radius at which a mask, smoothed a little, is half there."""
        soft = ndimage.gaussian_filter(mask.astype(np.float32), 1.0, mode="constant")
        reach = np.linalg.norm(self.grid.shape)
        steps = np.arange(0, reach, STEP)
        values = ndimage.map_coordinates(
            soft, self._voxels(steps[None]), order=1, mode="constant", output=np.float32
        )
        last = values.shape[1] - 1 - np.argmax(values[:, ::-1] > 0.5, axis=1)
        rows = np.arange(len(values))
        inner, outer = values[rows, last], values[rows, np.minimum(last + 1, len(steps) - 1)]
        found: Points = steps[last] + STEP * (inner - 0.5) / np.maximum(inner - outer, 1e-6)
        return found

    def meet(self, mask: Mask) -> Mask:
        """Tell along which directions a mask lies."""
        reach = np.linalg.norm(np.multiply(self.grid.shape, self.grid.voxel_size))
        values = ndimage.map_coordinates(
            mask.astype(np.uint8),
            self._voxels(np.arange(0, reach, STEP)[None]),
            order=0,
            mode="constant",
        )
        met: Mask = values.any(axis=1)
        return met

    def leave(self, seen: npt.NDArray[np.generic], radii: Points) -> Mask:
        """Tell along which directions the image ends within 2 mm of a radius."""
        values = ndimage.map_coordinates(
            np.asarray(seen, np.float32),
            self._voxels(radii[:, None] + 2.0),
            order=0,
            mode="constant",
        )
        gone: Mask = values[:, 0] < 0.5
        return gone


def _smooth(radii: Points) -> Points:
    return sphere().smoothed(radii)


def _dense(vertices: Points) -> Points:
    """Return vertices and midpoints of faces."""
    return np.concatenate([vertices, vertices[sphere().faces].mean(axis=1)])


def _apart(center: Points, inner: Points, outer: Points, thickness: float) -> Points:
    """Push a surface out until none of it is nearer than `thickness` mm to the inner one."""
    directions = sphere().directions
    tree = KDTree(_dense(center + inner[:, None] * directions))
    outer = np.maximum(outer, inner + thickness)
    faces = sphere().faces
    for _ in range(50):
        lacking = thickness - tree.query(_dense(center + outer[:, None] * directions))[0]
        if (lacking <= 0).all():
            break
        push = np.maximum(lacking[: len(outer)], 0)
        for corner in range(3):
            np.maximum.at(push, faces[:, corner], lacking[len(outer) :])
        outer = outer + push
    return outer
