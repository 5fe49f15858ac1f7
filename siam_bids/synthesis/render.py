"""Synthetic head images of random contrast, generated from label maps.

The method is that of SynthSeg (Billot et al., Med. Image Anal. 2023) and SIAM (Valabregue et al.,
arXiv 2605.02737): deform a label map, give every tissue a random Gaussian intensity, average to
the voxel size with partial volume, then add bias field, noise, low resolution and gamma. A
`Recipe` holds all that is random about one image; `render` is deterministic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from siam_bids.synthesis.anatomy_changes import (
    add_lesions,
    cut_face,
    heal,
    lookup,
    move_boundary,
    patches,
    smooth_noise,
    strip_skull,
)
from siam_bids.synthesis.artefacts import acquire, add_ghost, add_objects, blur, move_head
from siam_bids.synthesis.label_maps import Anatomy, SourceTable, tissues
from siam_bids.synthesis.recipe import (
    Recipe,
)


@dataclass(frozen=True)
class Rendering:
    """A synthetic scan and its truth, in RAS+ order.

    Attributes
    ----------
    image
        (I, J, K) float32, at the voxel size that was asked for.
    codes
        uint8 of the same field of view at 1 mm, rows of the anatomy's source table; 0 where the
        image shows nothing (stripped, outside).
    """

    image: torch.Tensor
    codes: torch.Tensor


def render(
    anatomy: Anatomy, recipe: Recipe, *, voxel: int = 1, device: str | torch.device = "cpu"
) -> Rendering:
    """Paint one image: deterministic in `recipe` (on one device).

    Parameters
    ----------
    voxel
        Voxel size of the image in mm: cubes of so many 1 mm voxels are averaged.
    """
    rng = torch.Generator(device).manual_seed(recipe.seed)
    codes = _deform(anatomy, recipe, voxel, rng)
    if recipe.heal_lesions:
        codes = heal(codes, anatomy.table)
    for move in recipe.boundaries:
        codes = move_boundary(codes, anatomy.table, move, rng)
    if recipe.lesions != "no":
        codes = add_lesions(codes, anatomy.table, recipe.lesions, recipe.lesion_radii, rng)
    if recipe.strip == "brain":
        codes = strip_skull(codes, anatomy.table, recipe.strip_margin)
    elif recipe.strip == "face":
        slope = 25 + 35 * ((recipe.seed % 1000) / 1000)
        codes = cut_face(codes, anatomy.table, slope, recipe.strip_margin)
    image = _paint(codes, anatomy.table, recipe, rng)
    image = functional.avg_pool3d(image[None, None], voxel)[0, 0]
    if recipe.objects:
        image = add_objects(image, recipe.objects, rng)
    image = image * torch.exp(recipe.bias * smooth_noise(image.shape, 4, rng))
    if recipe.motion > 0:
        shift = recipe.motion / voxel
        image = move_head(image, shift, recipe.motion_share, recipe.artefact_axis)
    if recipe.ghost > 0:
        image = add_ghost(image, recipe.ghost, recipe.ghost_copies, recipe.artefact_axis)
    image = blur(image, recipe.blur / voxel)
    image = acquire(
        image, recipe.spacing, float(voxel), rng, noise=recipe.noise, rician=recipe.rician
    )
    top = image.max().clamp_min(1e-6)
    return Rendering((image / top) ** recipe.gamma, codes)


def _rotation_matrix(degrees: tuple[float, float, float]) -> npt.NDArray[np.float64]:
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    return matrix


def _deform(anatomy: Anatomy, recipe: Recipe, voxel: int, rng: torch.Generator) -> torch.Tensor:
    source = torch.from_numpy(anatomy.codes).to(rng.device)
    size = np.array(anatomy.voxel_size)
    extent = np.array(source.shape) * size * np.array(recipe.scale)
    low, high = np.array(recipe.margin_low), np.array(recipe.margin_high)
    shape = [int(max(math.ceil(edge / voxel), 16) * voxel) for edge in extent + low + high]
    shear = np.eye(3)
    shear[0, 1], shear[0, 2], shear[1, 2] = recipe.shear
    mirror = np.diag([-1.0 if recipe.flip else 1.0, 1.0, 1.0])
    forward = _rotation_matrix(recipe.rotation) @ shear @ np.diag(recipe.scale) @ mirror
    backward = np.diag(1 / size) @ np.linalg.inv(forward)
    center = extent / 2 + low
    offset = (np.array(source.shape) - 1) / 2 - backward @ (center - 0.5)

    index = torch.zeros(shape, dtype=torch.int32, device=rng.device)
    steps = [torch.arange(length, device=rng.device, dtype=torch.float32) for length in shape]
    shift = None
    if recipe.elastic > 0:
        shift = smooth_noise(shape, recipe.elastic_points, rng, 3) * recipe.elastic
    for axis in range(3):
        a, b, c = (float(value) for value in backward[axis])
        place = (a * steps[0])[:, None, None] + (b * steps[1])[None, :, None]
        place = place + (c * steps[2] + float(offset[axis]))[None, None, :]
        if shift is not None:
            place = place.add_(shift[axis], alpha=1 / float(size[axis]))
        place = place.round_().clamp_(0, source.shape[axis] - 1)
        index.mul_(source.shape[axis]).add_(place.int())
    return source.flatten().index_select(0, index.flatten()).view(shape)


def _paint(
    codes: torch.Tensor, table: SourceTable, recipe: Recipe, rng: torch.Generator
) -> torch.Tensor:
    tissue = lookup(codes, table.tissue)
    if recipe.patchiness > 0:
        patch = patches(codes.shape, recipe.patchiness, 6 + recipe.seed % 14, rng)
        tissue = torch.where(patch, lookup(tissue, tissues().second), tissue)
    means, stds = (values.astype(np.float32) for values in (recipe.means, recipe.stds))
    grain = torch.randn(codes.shape, generator=rng, device=rng.device)
    image = grain.mul_(lookup(tissue, stds)).add_(lookup(tissue, means))
    if recipe.strip != "no":
        image = image * (codes > 0)
    return image.clamp_min_(0)
