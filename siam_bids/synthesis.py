"""Synthetic head images of random contrast, painted on label maps.

The method is that of SynthSeg (Billot et al., Med. Image Anal. 2023) and SIAM (Valabregue et al.,
arXiv 2605.02737): deform a label map, give every tissue a random Gaussian intensity, average to
the voxel size with partial volume, then add bias field, noise, low resolution and gamma. A
`Recipe` holds all that is random about one image; `render` is deterministic.

Label maps name their structures in a source table (`data/labels/source_*.tsv`): what to paint
(`tissue`) and what a network should answer (`target`). A target such as `CSF|Dura` says that the
map does not tell the two apart there; the training loss then accepts either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch.nn import functional

from siam_bids.errors import LabelError
from siam_bids.labels import INTRACRANIAL_TISSUES, read_rows, siam_labels
from siam_bids.resources import resource
from siam_bids.volume import Grid, Reorientation

CONTRASTS = ("T1w", "T2w", "FLAIR", "PDw")
"""Contrasts with prior mean intensities in `data/labels/synthesis_tissues.tsv`."""

_ENCLOSED_AIR, _AIRWAY, _DURA = 1000, 1001, 1002
_LEFT_CORTEX, _RIGHT_CORTEX, _CSF, _BONE = 3, 42, 24, (515, 516)
_CEREBELLUM = (7, 8, 46, 47)


@dataclass(frozen=True)
class Tissues:
    """What can be painted: names, families of like tissues, prior means per contrast."""

    names: tuple[str, ...]
    family: tuple[str, ...]
    priors: dict[str, npt.NDArray[np.float64]]
    second: npt.NDArray[np.uint8]
    """For each tissue the one that takes patches of it (itself where none does)."""


@lru_cache(maxsize=1)
def tissues() -> Tissues:
    """Read the table of paintable tissues."""
    rows = read_rows(resource("data", "labels", "synthesis_tissues.tsv"))
    names = tuple(row["tissue"] for row in rows)
    return Tissues(
        names=names,
        family=tuple(row["family"] for row in rows),
        priors={kind: np.array([float(row[kind]) for row in rows]) for kind in CONTRASTS},
        second=np.array([names.index(row["second"] or row["tissue"]) for row in rows], np.uint8),
    )


@dataclass(frozen=True)
class SourceTable:
    """How the values of a kind of label map are painted and learnt.

    Attributes
    ----------
    values
        The map's own values, one per code.
    tissue
        Index into `tissues()` per code.
    target
        Per code the accepted classes: indices of SIAM's labels, one or several.
    ignored
        Values without tissue of their own: their voxels take the nearest proper value.
    """

    values: tuple[int, ...]
    tissue: npt.NDArray[np.uint8]
    target: tuple[tuple[int, ...], ...]
    ignored: tuple[int, ...]

    @classmethod
    def load(cls, path: Path) -> SourceTable:
        """Read a table with the columns value, name, tissue, target."""
        by_name = siam_labels().by_name
        values, tissue, target, ignored = [], [], [], []
        for row in read_rows(path):
            if row["target"] == "nearest":
                ignored.append(int(row["value"]))
                continue
            try:
                tissue.append(tissues().names.index(row["tissue"]))
                target.append(tuple(by_name[name].index for name in row["target"].split("|")))
            except (KeyError, ValueError) as error:
                raise LabelError(
                    f"{path.name}: the row of value {row['value']} names an unknown tissue "
                    f"or target ({row['tissue']}, {row['target']})."
                ) from error
            values.append(int(row["value"]))
        return cls(tuple(values), np.array(tissue, np.uint8), tuple(target), tuple(ignored))


def source_table(name: str) -> SourceTable:
    """Load a shipped source table, `synthseg` or `siam`."""
    return SourceTable.load(resource("data", "labels", f"source_{name}.tsv"))


@dataclass(frozen=True)
class Anatomy:
    """A head to paint.

    Attributes
    ----------
    codes
        (I, J, K) uint8 in RAS+ order, rows of `table`; the outermost voxels are background.
    voxel_size
        Edge lengths in mm.
    table
        What the codes mean.
    """

    codes: npt.NDArray[np.uint8]
    voxel_size: tuple[float, float, float]
    table: SourceTable


def prepare_anatomy(
    labels: npt.NDArray[np.int32], grid: Grid, table: SourceTable, where: str = "label map"
) -> Anatomy:
    """Turn a label map to RAS+, crop it to the head and complete what geometry tells.

    Values marked `nearest` take the nearest proper label. Where the table has rows for them, air
    enclosed by the head, airway openings, and the places of dura (CSF within 1.5 mm of bone,
    and the midplanes between the hemispheres and above the cerebellum) get values of their own.

    Raises
    ------
    LabelError
        The map holds a value that the table lacks.
    """
    turn = Reorientation.to_ras(grid)
    data = turn.apply(labels)
    unknown = sorted(set(np.unique(data).tolist()) - set(table.values) - set(table.ignored))
    if unknown:
        raise LabelError(f"{where} holds values {unknown[:5]} that its source table lacks.")
    bounds = ndimage.find_objects((data != 0).astype(np.uint8))[0]
    data = np.pad(data[bounds], 1)
    data = _fill_nearest(data, table.ignored)
    size = turn.target.voxel_size
    if _ENCLOSED_AIR in table.values:
        data = _mark_air(data, size)
    if _DURA in table.values:
        data = _mark_dura(data, size)
    lookup = np.zeros(max(table.values) + 1, np.uint8)
    lookup[list(table.values)] = np.arange(len(table.values), dtype=np.uint8)
    return Anatomy(np.ascontiguousarray(lookup[data]), size, table)


def _fill_nearest(data: npt.NDArray[np.int32], values: tuple[int, ...]) -> npt.NDArray[np.int32]:
    holes = np.isin(data, values)
    if not holes.any():
        return data
    nearest = ndimage.distance_transform_edt(
        holes | (data == 0), return_distances=False, return_indices=True
    )
    filled: npt.NDArray[np.int32] = np.where(holes, data[tuple(nearest)], data)
    return filled


def _mark_air(
    data: npt.NDArray[np.int32], size: tuple[float, float, float]
) -> npt.NDArray[np.int32]:
    head = data != 0
    enclosed = ndimage.binary_fill_holes(head) & ~head
    pad = 12
    outside = ndimage.distance_transform_edt(np.pad(~head, pad, constant_values=True), size)
    closed = ndimage.distance_transform_edt(outside < 8.0, size) > 8.0
    airway = closed[pad:-pad, pad:-pad, pad:-pad] & ~head & ~enclosed
    return np.where(enclosed, _ENCLOSED_AIR, np.where(airway, _AIRWAY, data)).astype(np.int32)


def _mark_dura(
    data: npt.NDArray[np.int32], size: tuple[float, float, float]
) -> npt.NDArray[np.int32]:
    def distance(values: tuple[int, ...]) -> npt.NDArray[np.float64]:
        far: npt.NDArray[np.float64] = ndimage.distance_transform_edt(~np.isin(data, values), size)
        return far

    left, right = distance((_LEFT_CORTEX,)), distance((_RIGHT_CORTEX,))
    below = distance(_CEREBELLUM)
    cerebrum = np.minimum(left, right)

    def midway(one: npt.NDArray[np.float64], two: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        return (abs(one - two) <= 0.75) & (np.maximum(one, two) < 6.0)

    place = (distance(_BONE) <= 1.5) | midway(left, right) | midway(cerebrum, below)
    return np.where((data == _CSF) & place, _DURA, data).astype(np.int32)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything random about one image; drawn by `draw_recipe`, applied by `render`.

    Angles in degrees, lengths in mm, intensities in units where the brightest tissue is near 1.
    """

    seed: int
    rotation: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    shear: tuple[float, float, float] = (0.0, 0.0, 0.0)
    flip: bool = False
    margin_low: tuple[float, float, float] = (5.0, 5.0, 5.0)
    """Space kept around the head at the low end of each axis; negative cuts the head."""
    margin_high: tuple[float, float, float] = (5.0, 5.0, 5.0)
    elastic: float = 0.0
    """Standard deviation of the displacement at the control points."""
    elastic_points: int = 6
    """Control points per axis."""
    contrast: str = "T1w"
    means: npt.NDArray[np.float64] = field(default_factory=lambda: tissues().priors["T1w"])
    stds: npt.NDArray[np.float64] = field(
        default_factory=lambda: np.full(len(tissues().names), 0.03)
    )
    patchiness: float = 0.0
    """Share of tissues with a `second` that is painted as that second tissue."""
    heal_lesions: bool = False
    """Paint and label lesions as white matter."""
    strip: str = "no"
    """`no`, `brain` (skull-stripped) or `face` (defaced)."""
    strip_margin: float = 2.0
    """Kept around the brain, in mm."""
    objects: int = 0
    """Number of foreign bodies outside the head."""
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Acquired voxel size (slice thickness) along each axis."""
    bias: float = 0.0
    """Standard deviation of the log bias field at its control points."""
    noise: float = 0.0
    """Standard deviation of the noise at the acquired voxel size."""
    rician: bool = False
    gamma: float = 1.0


def draw_recipe(
    rng: np.random.Generator, *, difficulty: float = 1.0, contrast: str | None = None
) -> Recipe:
    """Draw the random choices of one image.

    Parameters
    ----------
    rng
        Source of all randomness.
    difficulty
        0 (upright T1-weighted heads, 1 mm, clean) to 1 (everything); training raises it step by
        step. Ranges at 1: rotation 20 degrees, scale 15 %, elastic 3.5 mm, slices to 9 mm.
    contrast
        One of `CONTRASTS`, or `random`; drawn when None.
    """
    d = difficulty

    def uniform(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    def three(low: float, high: float) -> tuple[float, float, float]:
        return uniform(low, high), uniform(low, high), uniform(low, high)

    def chance(probability: float) -> bool:
        return bool(rng.random() < probability)

    if contrast is None:
        contrast = "random" if chance(0.5 * d) else "T1w"
        if contrast == "T1w" and chance(0.6 * d):
            contrast = str(rng.choice(CONTRASTS))
    means, stds = _draw_intensities(rng, contrast, d)
    zoom = 1 + uniform(-0.1, 0.1) * d
    strip = "no"
    if chance(0.25 * d):
        strip = str(rng.choice(("brain", "face")))
    return Recipe(
        seed=int(rng.integers(2**31)),
        rotation=three(-20 * d, 20 * d),
        scale=tuple(zoom * (1 + uniform(-0.07, 0.07) * d) for _ in range(3)),  # type: ignore[arg-type]
        shear=three(-0.08 * d, 0.08 * d),
        flip=chance(0.5),
        margin_low=(uniform(-2, 25), uniform(-2, 25), uniform(-40, 15)),
        margin_high=(uniform(-2, 25), uniform(-2, 25), uniform(-4, 25)),
        elastic=uniform(0, 3.5) * d,
        elastic_points=int(rng.integers(4, 10)),
        contrast=contrast,
        means=means,
        stds=stds,
        patchiness=uniform(0, 0.8),
        heal_lesions=chance(0.5),
        strip=strip,
        strip_margin=float(rng.choice((0, 0, 2, 4, 6))),
        objects=int(rng.integers(1, 4)) if chance(0.15 * d) else 0,
        spacing=_draw_spacing(rng, d),
        bias=uniform(0, 0.4) * d,
        noise=uniform(0, 0.02) + (uniform(0, 0.06) * d if chance(0.6) else 0.0),
        rician=chance(0.5),
        gamma=math.exp(float(rng.normal(0, 0.3)) * d),
    )


def _draw_intensities(
    rng: np.random.Generator, contrast: str, difficulty: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    table = tissues()
    count = len(table.names)
    if contrast == "random":
        own = rng.uniform(0, 1, count)
        if rng.random() < 0.5:
            families = {name: rng.uniform(0, 1) for name in dict.fromkeys(table.family)}
            shared = np.array([families[name] for name in table.family])
            own = shared + rng.normal(0, 0.07, count)
        vessel = np.array([name in ("artery", "vein") for name in table.names])
        means = np.where(vessel, rng.uniform(0, 2, count), own)
        lesion = table.names.index("lesion")
        means[lesion] = rng.uniform(0, 1)
    else:
        spread = 0.03 + 0.05 * difficulty
        means = table.priors[contrast] + rng.normal(0, spread, count)
        vessel = np.array([name == "vessel" for name in table.family])
        means = means + vessel * rng.normal(0, 0.25, count)
    air = np.array([name == "air" for name in table.family])
    floor = rng.uniform(0, 0.15) if rng.random() < 0.25 * difficulty else 0.0
    means = np.clip(np.where(air, floor, means), 0, 2)
    high = 0.03 + 0.07 * difficulty
    stds = np.where(air, 0.5 * floor + 0.003, rng.uniform(0.015, high, count))
    return means, stds


def _draw_spacing(rng: np.random.Generator, difficulty: float) -> tuple[float, float, float]:
    if rng.random() < 0.4 + 0.6 * (1 - difficulty):
        return (1.0, 1.0, 1.0)
    base = rng.uniform(0.8, 2.5)
    spacing = [base, base, base]
    if rng.random() < 0.6:
        spacing = [rng.uniform(0.7, 1.5)] * 3
        spacing[rng.integers(3)] = rng.uniform(2, 2 + 7 * difficulty)
    return float(spacing[0]), float(spacing[1]), float(spacing[2])


@dataclass(frozen=True)
class Rendering:
    """A synthetic scan and its truth, in RAS+ order.

    Attributes
    ----------
    image
        (I, J, K) float32, voxels of `pool` mm.
    codes
        (pool I, pool J, pool K) uint8 at 1 mm, rows of the anatomy's source table; 0 where the
        image shows nothing (stripped, outside).
    """

    image: torch.Tensor
    codes: torch.Tensor


def render(
    anatomy: Anatomy, recipe: Recipe, *, pool: int = 1, device: str | torch.device = "cpu"
) -> Rendering:
    """Paint one image: deterministic in `recipe` (on one device).

    Parameters
    ----------
    pool
        Voxel size of the image in mm: 1 mm voxels are averaged `pool` by `pool` by `pool`.
    """
    rng = torch.Generator(device).manual_seed(recipe.seed)
    codes = _deform(anatomy, recipe, pool, rng)
    if recipe.heal_lesions:
        codes = _heal(codes, anatomy.table)
    if recipe.strip != "no":
        codes = _strip(codes, anatomy.table, recipe)
    image = _paint(codes, anatomy.table, recipe, rng)
    image = functional.avg_pool3d(image[None, None], pool)[0, 0]
    if recipe.objects:
        image = _add_objects(image, recipe.objects, rng)
    image = image * torch.exp(recipe.bias * _smooth_noise(image.shape, 4, rng))
    image = _acquire(image, recipe, float(pool), rng)
    top = image.max().clamp_min(1e-6)
    return Rendering((image / top) ** recipe.gamma, codes)


def _smooth_noise(
    shape: Sequence[int], points: int, rng: torch.Generator, channels: int = 1
) -> torch.Tensor:
    """Return Gaussian noise at `points`^3 control points, interpolated smoothly to `shape`."""
    coarse = torch.randn((1, channels, points, points, points), generator=rng, device=rng.device)
    middle = functional.interpolate(
        coarse, size=(4 * points,) * 3, mode="trilinear", align_corners=True
    )
    middle = functional.avg_pool3d(functional.pad(middle, (2,) * 6, mode="replicate"), 5, 1)
    fine = functional.interpolate(middle, size=list(shape), mode="trilinear", align_corners=True)
    return fine[0] if channels > 1 else fine[0, 0]


def _rotation_matrix(degrees: tuple[float, float, float]) -> npt.NDArray[np.float64]:
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    return matrix


def _deform(anatomy: Anatomy, recipe: Recipe, pool: int, rng: torch.Generator) -> torch.Tensor:
    source = torch.from_numpy(anatomy.codes).to(rng.device)
    size = np.array(anatomy.voxel_size)
    extent = np.array(source.shape) * size * np.array(recipe.scale)
    low, high = np.array(recipe.margin_low), np.array(recipe.margin_high)
    shape = [int(max(math.ceil(edge / pool), 16) * pool) for edge in extent + low + high]
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
        shift = _smooth_noise(shape, recipe.elastic_points, rng, 3) * recipe.elastic
    for axis in range(3):
        a, b, c = (float(value) for value in backward[axis])
        place = (a * steps[0])[:, None, None] + (b * steps[1])[None, :, None]
        place = place + (c * steps[2] + float(offset[axis]))[None, None, :]
        if shift is not None:
            place = place.add_(shift[axis], alpha=1 / float(size[axis]))
        place = place.round_().clamp_(0, source.shape[axis] - 1)
        index.mul_(source.shape[axis]).add_(place.int())
    return source.flatten()[index]


def _lookup(codes: torch.Tensor, table: npt.NDArray[np.generic]) -> torch.Tensor:
    return torch.from_numpy(table).to(codes.device)[codes.int()]


def _heal(codes: torch.Tensor, table: SourceTable) -> torch.Tensor:
    healed = np.arange(len(table.values), dtype=np.uint8)
    wm = table.target.index((siam_labels().by_name["WM"].index,))
    for code, target in enumerate(table.target):
        if target == (siam_labels().by_name["Anomalies"].index,):
            healed[code] = wm
    return _lookup(codes, healed)


def _strip(codes: torch.Tensor, table: SourceTable, recipe: Recipe) -> torch.Tensor:
    inside = set(siam_labels().indices(INTRACRANIAL_TISSUES))
    is_brain = np.array([bool(inside & set(target)) for target in table.target])
    brain = _lookup(codes, is_brain)
    if not bool(brain.any()):
        return codes
    if recipe.strip == "brain":
        half = functional.max_pool3d(brain[None, None].float(), 2, ceil_mode=True)
        for _ in range(round(recipe.strip_margin / 2)):
            half = functional.max_pool3d(half, 3, 1, 1)
        keep = functional.interpolate(half, scale_factor=2)[0, 0]
        return codes * keep[: codes.shape[0], : codes.shape[1], : codes.shape[2]].to(codes.dtype)
    slope = math.radians(25 + 35 * ((recipe.seed % 1000) / 1000))
    along = torch.arange(codes.shape[1], device=codes.device).float()[None, :, None]
    upward = torch.arange(codes.shape[2], device=codes.device).float()[None, None, :]
    front = math.cos(slope) * along - math.sin(slope) * upward
    edge = torch.where(brain.any(0, keepdim=True), front, -1e9).max() + 3 + recipe.strip_margin
    return codes * (front <= edge).to(codes.dtype)


def _paint(
    codes: torch.Tensor, table: SourceTable, recipe: Recipe, rng: torch.Generator
) -> torch.Tensor:
    tissue = _lookup(codes, table.tissue)
    if recipe.patchiness > 0:
        points = 6 + recipe.seed % 14
        threshold = math.sqrt(2) * float(
            torch.erfinv(torch.tensor(1 - 2 * recipe.patchiness)).clamp(-3, 3)
        )
        field_ = _smooth_noise(codes.shape, points, rng)
        patch = field_ / field_.std().clamp_min(1e-6) > threshold
        tissue = torch.where(patch, _lookup(tissue, tissues().second), tissue)
    means = torch.tensor(recipe.means, dtype=torch.float32, device=codes.device)
    stds = torch.tensor(recipe.stds, dtype=torch.float32, device=codes.device)
    rows = tissue.int()
    grain = torch.randn(codes.shape, generator=rng, device=rng.device)
    image = grain.mul_(stds[rows]).add_(means[rows])
    if recipe.strip != "no":
        image = image * (codes > 0)
    return image.clamp_min_(0)


def _add_objects(image: torch.Tensor, count: int, rng: torch.Generator) -> torch.Tensor:
    """Put bright ellipsoids into the dark outside of the head."""
    draws = torch.rand((count, 7), generator=rng, device=rng.device).tolist()
    axes = [torch.arange(length, device=image.device).float() for length in image.shape]
    dark = image < 0.05 * image.max()
    for draw in draws:
        inside = torch.zeros((), device=image.device)
        for axis, (steps, length) in enumerate(zip(axes, image.shape, strict=True)):
            shape = [1, 1, 1]
            shape[axis] = -1
            radius = (0.02 + 0.1 * draw[3 + axis]) * length
            inside = inside + ((steps - draw[axis] * length) / radius).square().view(shape)
        image = torch.where((inside < 1) & dark, draw[6] * image.max(), image)
    return image


def _acquire(
    image: torch.Tensor, recipe: Recipe, voxel: float, rng: torch.Generator
) -> torch.Tensor:
    """Average to the acquired voxel size, add noise there, interpolate back."""
    full = list(image.shape)
    width, depth, height = (
        max(4, round(length * voxel / max(space, voxel)))
        for length, space in zip(full, recipe.spacing, strict=True)
    )
    coarse = [width, depth, height]
    if coarse != full:
        image = functional.adaptive_avg_pool3d(image[None, None], (width, depth, height))[0, 0]
    if recipe.noise > 0:
        noise = torch.randn((2, *image.shape), generator=rng, device=rng.device) * recipe.noise
        real = image + noise[0]
        image = torch.hypot(real, noise[1]) if recipe.rician else real.clamp_min(0)
    if coarse != full:
        image = functional.interpolate(
            image[None, None], size=full, mode="trilinear", align_corners=False
        )[0, 0]
    return image
