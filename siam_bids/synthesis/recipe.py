"""A recipe for one image, drawn from a random generator."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from siam_bids.synthesis.anatomy_changes import (
    BOUNDARIES,
    LESIONS,
    BoundaryMove,
)
from siam_bids.synthesis.label_maps import CONTRASTS, tissues


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
    """Share of tissues with a `second` that is rendered as that second tissue."""
    boundaries: tuple[BoundaryMove, ...] = ()
    """Changes of cortical thickness, ventricles, nuclei, skull and scalp."""
    heal_lesions: bool = False
    """Paint and label the lesions that the label map holds as white matter."""
    lesions: str = "no"
    """`no`, or one of `anatomy_changes.LESIONS` to put into the brain."""
    lesion_radii: tuple[float, ...] = ()
    strip: str = "no"
    """`no`, `brain` (skull-stripped) or `face` (defaced)."""
    strip_margin: float = 2.0
    """Kept around the brain, in mm."""
    objects: int = 0
    """Number of foreign bodies outside the head."""
    motion: float = 0.0
    """Jump of the head along `artefact_axis` during the scan."""
    motion_share: float = 0.1
    """Share of the k-space lines acquired after the jump."""
    ghost: float = 0.0
    """Strength of shifted echoes along `artefact_axis`, relative to the image."""
    ghost_copies: int = 1
    artefact_axis: int = 1
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Acquired voxel size (slice thickness) along each axis."""
    blur: float = 0.0
    """Standard deviation of the point spread of the scanner, in mm."""
    bias: float = 0.0
    """Standard deviation of the log bias field at its control points."""
    noise: float = 0.0
    """Standard deviation of the noise at the acquired voxel size."""
    rician: bool = False
    gamma: float = 1.0


def draw_recipe(
    rng: np.random.Generator,
    *,
    difficulty: float = 1.0,
    contrast: str | None = None,
    lesion_share: float = 0.35,
) -> Recipe:
    """Draw the random choices of one image.

    Parameters
    ----------
    rng
        Source of all randomness.
    difficulty
        0 (upright T1-weighted heads, 1 mm, clean) to 1 (everything); training raises it step by
        step. Ranges at 1: rotation 20 degrees (a tenth of the heads 45), scale 15 %
        (25), elastic 3.5 mm, slices to 9 mm.
    contrast
        One of `CONTRASTS`, or `random`; drawn when None.
    lesion_share
        Chance of lesions at full difficulty.
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
    zoom = 1 + (uniform(-0.1, 0.1) if chance(0.9) else uniform(-0.25, 0.15)) * d
    tilt = (20 if chance(0.9) else 45) * d
    crop = 40 if chance(0.1 * d) else 2
    lesions = str(rng.choice(LESIONS)) if chance(lesion_share * d) else "no"
    strip = "no"
    if chance(0.25 * d):
        strip = str(rng.choice(("brain", "face")))
    return Recipe(
        seed=int(rng.integers(2**31)),
        rotation=three(-tilt, tilt),
        scale=tuple(zoom * (1 + uniform(-0.07, 0.07) * d) for _ in range(3)),  # type: ignore[arg-type]
        shear=three(-0.08 * d, 0.08 * d),
        flip=chance(0.5),
        margin_low=(uniform(-crop, 25), uniform(-crop, 25), uniform(-40 - crop, 15)),
        margin_high=(uniform(-crop, 25), uniform(-crop, 25), uniform(-2 - crop, 25)),
        elastic=uniform(0, 3.5) * d,
        elastic_points=int(rng.integers(4, 10)),
        contrast=contrast,
        means=means,
        stds=stds,
        patchiness=uniform(0, 0.8),
        boundaries=_draw_boundaries(rng, d),
        heal_lesions=chance(0.5),
        lesions=lesions,
        lesion_radii=_draw_radii(rng, lesions),
        strip=strip,
        strip_margin=float(rng.choice((0, 0, 2, 4, 6))),
        objects=int(rng.integers(1, 4)) if chance(0.15 * d) else 0,
        motion=uniform(1, 4) * d if chance(0.1) else 0.0,
        motion_share=uniform(0.05, 0.3),
        ghost=uniform(0.02, 0.15) * d if chance(0.1) else 0.0,
        ghost_copies=int(rng.integers(1, 4)),
        artefact_axis=int(rng.integers(3)),
        spacing=_draw_spacing(rng, d),
        blur=uniform(0.2, 0.8),
        bias=uniform(0, 0.4) * d,
        noise=uniform(0, 0.02) + (uniform(0, 0.06) * d if chance(0.6) else 0.0),
        rician=chance(0.5),
        gamma=math.exp(float(rng.normal(0, 0.3)) * d),
    )


def _draw_intensities(
    rng: np.random.Generator, contrast: str, difficulty: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    table = tissues()
    if contrast == "random":
        means = _draw_any_means(rng)
    else:
        means = _draw_usual_means(rng, contrast, 0.03 + 0.05 * difficulty)
    means = np.clip(means, 0, 2)
    means = _with_visible_lesions(means, table.priors.get(contrast, means))
    air = np.array([name == "air" for name in table.family])
    floor = rng.uniform(0, 0.15) if rng.random() < 0.25 * difficulty else 0.0
    means = np.where(air, floor, means)
    high = 0.03 + 0.07 * difficulty
    stds = np.where(air, 0.5 * floor + 0.003, rng.uniform(0.015, high, len(means)))
    return means, stds


def _draw_any_means(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Draw means of tissues without a prior; in every other head those of a family are alike."""
    table = tissues()
    count = len(table.names)
    own = rng.uniform(0, 1, count)
    if rng.random() < 0.5:
        families = {name: rng.uniform(0, 1) for name in dict.fromkeys(table.family)}
        shared = np.array([families[name] for name in table.family])
        own = shared + rng.normal(0, 0.07, count)
    vessel = np.array([name in ("artery", "vein") for name in table.names])
    means = np.where(vessel, rng.uniform(0, 2, count), own)
    means[table.names.index("lesion")] = rng.uniform(0, 1)
    return means


def _draw_usual_means(
    rng: np.random.Generator, contrast: str, spread: float
) -> npt.NDArray[np.float64]:
    """Draw means of tissues about those of a contrast; vessels vary most."""
    table = tissues()
    means = table.priors[contrast] + rng.normal(0, spread, len(table.names))
    vessel = np.array([name == "vessel" for name in table.family])
    return means + vessel * rng.normal(0, 0.25, len(table.names))


def _with_visible_lesions(
    means: npt.NDArray[np.float64], priors: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Give lesions thrice the spread about their prior, and 0.15 or more from white matter.

    Lesions with its intensity could be recognised by position alone, which no network should learn.
    """
    table = tissues()
    lesion = np.array([name == "lesion" for name in table.family])
    wm = means[table.names.index("wm")]
    away = priors + 3 * (means - priors) - wm
    near = np.copysign(0.15, away if 0.15 <= wm <= 1.15 else np.full_like(away, 0.65 - wm))
    visible = wm + np.where(np.abs(away) < 0.15, near, away)
    return np.where(lesion, np.clip(visible, 0, 1.3), means)


def _draw_boundaries(rng: np.random.Generator, difficulty: float) -> tuple[BoundaryMove, ...]:
    """Draw up to three boundary moves, after those of old age in 4 of 10 heads."""
    moves = _draw_atrophy(rng) if rng.random() < 0.4 * difficulty else []
    for name in rng.permutation(list(BOUNDARIES))[: rng.integers(0, 4)]:
        deep = 4 if name.startswith(("ventricles wider", "scalp")) else 1
        if rng.random() < difficulty:
            share = float(rng.uniform(0.1, 0.6))
            moves.append(BoundaryMove(str(name), int(rng.integers(1, deep + 1)), share))
    return tuple(moves)


def _draw_atrophy(rng: np.random.Generator) -> list[BoundaryMove]:
    """Draw wide sulci, and each in every other head: wide ventricles, shrunken nuclei."""
    depth = 2 if rng.random() < 0.25 else 1
    moves = [BoundaryMove("pial surface inward", depth, float(rng.uniform(0.3, 1)))]
    others = {"ventricles wider": 4, "hippocampus smaller": 3, "caudate smaller": 1}
    for name, deep in others.items():
        if rng.random() < 0.5:
            share = float(rng.uniform(0.4, 1))
            moves.append(BoundaryMove(name, int(rng.integers(1, deep + 1)), share))
    return moves


def _draw_radii(rng: np.random.Generator, lesions: str) -> tuple[float, ...]:
    """Draw mean radii in mm: a few to 25 small ovoids, or one large lesion."""
    if lesions == "ms":
        return tuple(float(radius) for radius in rng.uniform(1.5, 6, rng.integers(2, 26)))
    if lesions == "no":
        return ()
    return (float(rng.uniform(5, 22)),)


def _draw_spacing(rng: np.random.Generator, difficulty: float) -> tuple[float, float, float]:
    if rng.random() < 0.4 + 0.6 * (1 - difficulty):
        return (1.0, 1.0, 1.0)
    base = rng.uniform(0.8, 2.5)
    spacing = [base, base, base]
    if rng.random() < 0.6:
        spacing = [rng.uniform(0.7, 1.5)] * 3
        spacing[rng.integers(3)] = rng.uniform(2, 2 + 7 * difficulty)
    return float(spacing[0]), float(spacing[1]), float(spacing[2])
