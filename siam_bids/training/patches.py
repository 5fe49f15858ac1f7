"""Patches of synthetic heads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from siam_bids.image.labels import siam_labels
from siam_bids.image.loading import load_labels
from siam_bids.synthesis.anatomy_changes import lookup
from siam_bids.synthesis.atrophy import shrink_temporal
from siam_bids.synthesis.label_maps import Anatomy, prepare_anatomy, source_table
from siam_bids.synthesis.lesions import (
    LesionMask,
    LesionPainter,
    add_lookalikes,
    crop_anatomy,
)
from siam_bids.synthesis.recipe import Recipe, draw_recipe
from siam_bids.synthesis.render import Rendering, render
from siam_bids.training.config import CLASSES, TrainingConfig
from siam_bids.training.loss import TargetGroups

logger = logging.getLogger(__name__)


PATIENTS = 0.8
"""Share of heads with the lesions of patients among those without lesions by their recipe."""

ROOM = 25.0
"""Kept around the box of a task while the head is deformed, in mm: no cut may show in the box."""


def z_score(image: torch.Tensor) -> torch.Tensor:
    """Normalise as nnU-Net does: crop box of the non-zero voxels, mean 0 and std 1 over it."""
    filled = image != 0
    box = image
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        where = torch.nonzero(filled.any(dim=others[1]).any(dim=others[0]))
        box = box.narrow(axis, int(where[0]), int(where[-1] - where[0]) + 1)
    return (image - box.mean()) / box.std().clamp_min(1e-8)


@dataclass(frozen=True)
class _Sample:
    """One image of the pool, its truth at 1 mm and voxels to centre patches on, per class."""

    image: torch.Tensor
    groups: torch.Tensor
    centers: dict[int, torch.Tensor]


def map_weights(config: TrainingConfig) -> npt.NDArray[np.float64]:
    """Return how often each label map is drawn, summing to 1."""
    siam = np.array([source == "siam" for _, source in config.maps])
    if siam.all() or not siam.any():
        return np.full(len(siam), 1 / len(siam))
    share = config.siam_share
    weights: npt.NDArray[np.float64] = np.where(
        siam, share / siam.sum(), (1 - share) / (~siam).sum()
    )
    return weights


class PatchSource:
    """Draws training patches from a rolling pool of synthetic images."""

    def __init__(
        self, anatomies: Sequence[Anatomy], groups: TargetGroups, config: TrainingConfig
    ) -> None:
        task = config.task
        self._anatomies = [
            crop_anatomy(anatomy, task.box, task.margin + ROOM) if task.box else anatomy
            for anatomy in anatomies
        ]
        self._groups = groups
        self._config = config
        self._weight = map_weights(config)
        self._painter = None
        if config.lesions:
            masks = [LesionMask.load(path) for path in config.lesions]
            self._painter = LesionPainter(masks, self._anatomies)
        self._pool: list[_Sample] = []
        self._drawn = 0

    def patch(
        self, rng: np.random.Generator, difficulty: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image (1, 1, P, P, P) and target (1, groups, P, P, P), both [z, y, x]."""
        if len(self._pool) < self._config.pool or self._drawn % self._config.fresh_every == 0:
            self._pool = [*self._pool, self._sample(rng, difficulty)][-self._config.pool :]
        self._drawn += 1
        sample = self._pool[rng.integers(len(self._pool))]
        size, factor = self._config.patch, self._config.voxel
        corner = self._corner(sample, rng)
        image = _cut(sample.image, corner, size)
        fine = _cut(sample.groups, [factor * start for start in corner], factor * size)
        parts = fine.reshape(size, factor, size, factor, size, factor)
        parts = parts.permute(0, 2, 4, 1, 3, 5).reshape(size**3, factor**3).long()
        count = len(self._groups.members)
        target = torch.zeros((size**3, count), device=fine.device)
        target.scatter_add_(1, parts, torch.full_like(parts, 1, dtype=torch.float32))
        target = target.div_(factor**3).view(size, size, size, count)
        return image.permute(2, 1, 0)[None, None].contiguous(), target.permute(3, 2, 1, 0)[None]

    def batch(
        self, rng: np.random.Generator, difficulty: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images (B, 1, P, P, P) and targets (B, groups, P, P, P), both [z, y, x]."""
        patches = [self.patch(rng, difficulty) for _ in range(self._config.batch)]
        images, targets = zip(*patches, strict=True)
        return torch.cat(images), torch.cat(targets)

    def recipe(self, rng: np.random.Generator, difficulty: float) -> Recipe:
        """Draw the recipe of the next image, with the configured contrasts and lesions."""
        wanted = self._config.contrasts
        if wanted and rng.random() >= 0.5 * difficulty:
            return draw_recipe(rng, difficulty=difficulty)
        return draw_recipe(
            rng,
            difficulty=difficulty,
            contrast=str(rng.choice(wanted)) if wanted else None,
            lesion_share=self._config.lesion_share,
        )

    def _in_box(self, recipe: Recipe, rng: np.random.Generator) -> Recipe:
        """Adapt the recipe of a head to a box in it."""
        task = self._config.task
        if not task.box:
            return recipe
        strip = "brain" if rng.random() < task.stripped else recipe.strip
        return replace(
            recipe, margin_low=(2.0,) * 3, margin_high=(2.0,) * 3, strip=strip, objects=0
        )

    def _boxed(self, rendering: Rendering, anatomy: Anatomy) -> Rendering:
        """Crop an image to the box of the task; the whole image if that shows nothing of it."""
        task, voxel = self._config.task, self._config.voxel
        mask = lookup(rendering.codes, anatomy.table.codes_of(*task.box))
        if not mask.any():
            return rendering
        image, codes = rendering.image, rendering.codes
        for axis in range(3):
            places = torch.nonzero(mask.amax([other for other in range(3) if other != axis]))
            start = max(0, int(places[0] - task.margin)) // voxel
            stop = min(image.shape[axis], -(-int(places[-1] + 1 + task.margin) // voxel))
            image = image.narrow(axis, start, stop - start)
            codes = codes.narrow(axis, voxel * start, voxel * (stop - start))
        return Rendering(image.contiguous(), codes.contiguous())

    def _sample(self, rng: np.random.Generator, difficulty: float) -> _Sample:
        anatomy = self._anatomies[rng.choice(len(self._anatomies), p=self._weight)]
        recipe = self._in_box(self.recipe(rng, difficulty), rng)
        config = self._config
        if self._painter:
            if recipe.lesions == "no" and rng.random() < PATIENTS:
                anatomy = self._painter.paint(anatomy, rng)
                recipe = replace(recipe, heal_lesions=False)
            anatomy = add_lookalikes(anatomy, rng)
        if rng.random() < config.task.shrunken:
            anatomy = shrink_temporal(anatomy, rng)
        rendering = render(anatomy, recipe, voxel=config.voxel, device=config.device)
        if config.task.box:
            rendering = self._boxed(rendering, anatomy)
        groups = lookup(rendering.codes, self._groups.of_codes(anatomy.table).astype(np.uint8))
        coarse = groups[::2, ::2, ::2].cpu()
        centers = {}
        flat = coarse.flatten().numpy()
        order = np.argsort(flat, kind="stable")
        bounds = np.searchsorted(flat[order], np.arange(CLASSES + 1))
        for index in siam_labels().indices(config.task.centres) or range(1, CLASSES):
            members = order[bounds[index] : bounds[index + 1]]
            if len(members):
                chosen = rng.choice(members, min(200, len(members)), replace=False)
                places = np.stack(np.unravel_index(chosen, coarse.shape), 1)
                centers[index] = torch.from_numpy(2 * places // config.voxel)
        return _Sample(z_score(rendering.image), groups, centers)

    def _corner(self, sample: _Sample, rng: np.random.Generator) -> list[int]:
        shape, size = sample.image.shape, self._config.patch
        if sample.centers and rng.random() < 0.85:
            points = sample.centers[int(rng.choice(list(sample.centers)))]
            center = points[rng.integers(len(points))].numpy()
            center = center + rng.integers(-size // 3, size // 3 + 1, 3)
        else:
            center = np.array([rng.integers(length) for length in shape])
        corner = []
        for place, length in zip(center, shape, strict=True):
            low, high = min(0, length - size), max(0, length - size)
            corner.append(int(np.clip(place - size // 2, low, high)))
        return corner


def _cut(data: torch.Tensor, corner: Sequence[int], size: int) -> torch.Tensor:
    """Cut a cube; outside the data it is 0."""
    for axis, start in enumerate(corner):
        stop = start + size
        inner = data.narrow(axis, max(start, 0), min(stop, data.shape[axis]) - max(start, 0))
        before, after = max(-start, 0), max(stop - data.shape[axis], 0)
        if before or after:
            pad = [0, 0, 0, 0, 0, 0]
            pad[2 * (2 - axis)], pad[2 * (2 - axis) + 1] = before, after
            inner = functional.pad(inner, pad)
        data = inner
    return data


def load_anatomies(maps: Sequence[tuple[Path, str]], cache: Path) -> list[Anatomy]:
    """Prepare label maps (path, source), cached in the folder `cache` for the next session."""
    cache.mkdir(parents=True, exist_ok=True)
    anatomies = []
    for path, source in maps:
        table = source_table(source)
        kept = cache / f"{path.name.split('.')[0]}.npz"
        if kept.exists():
            stored = np.load(kept)
            size = tuple(float(edge) for edge in stored["voxel_size"])
            anatomies.append(Anatomy(stored["codes"], (size[0], size[1], size[2]), table))
            continue
        labels, grid = load_labels(path)
        anatomy = prepare_anatomy(labels, grid, table, path.name)
        np.savez_compressed(kept, codes=anatomy.codes, voxel_size=anatomy.voxel_size)
        logger.info("prepared %s", path.name)
        anatomies.append(anatomy)
    return anatomies
