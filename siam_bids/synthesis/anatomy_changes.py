"""Changes of a head's shape: thinner cortex, wider ventricles, lesions, stripped skulls.

All functions take codes (I, J, K) uint8 at 1 mm, in RAS+ order, with the source table that tells
what the codes mean, and return new codes. Randomness comes from a torch generator alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from siam_bids.image.labels import siam_labels
from siam_bids.synthesis.label_maps import SourceTable

NUCLEI = ("Thal", "Pal", "Put", "Caud", "Accu", "Amyg", "Hippo")
BOUNDARIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "pial surface inward": (("CSF",), ("GM",)),
    "pial surface outward": (("GM",), ("CSF",)),
    "white surface inward": (("GM",), ("WM",)),
    "white surface outward": (("WM",), ("GM",)),
    "cerebellar surface inward": (("CSF",), ("cerGM",)),
    "ventricles wider": (("CSFv",), ("WM",)),
    "ventricles narrower": (("WM",), ("CSFv",)),
    "hippocampus smaller": (("CSFv", "CSF"), ("Hippo", "Amyg")),
    "caudate smaller": (("CSFv",), ("Caud", "Accu")),
    "nuclei larger": (NUCLEI, ("WM",)),
    "nuclei smaller": (("WM",), NUCLEI),
    "scalp thicker": (("Head",), ("background",)),
    "skull thicker": (("Skull",), ("Head",)),
    "skull thinner": (("Head",), ("Skull",)),
}
"""Boundary moves: which tissues advance, and into which."""

LESIONS = ("ms", "stroke", "tumour")


def smooth_noise(
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


def patches(shape: Sequence[int], share: float, points: int, rng: torch.Generator) -> torch.Tensor:
    """Return a mask of smooth patches that cover about `share` of the volume."""
    field = smooth_noise(shape, points, rng)
    level = math.sqrt(2) * float(torch.erfinv(torch.tensor(1 - 2 * share)).clamp(-3, 3))
    return field / field.std().clamp_min(1e-6) > level


def lookup(codes: torch.Tensor, table: npt.NDArray[np.generic]) -> torch.Tensor:
    """Replace each code by its entry of `table`."""
    entries = torch.from_numpy(table).to(codes.device)
    return entries.index_select(0, codes.flatten().int()).view(codes.shape)


@dataclass(frozen=True)
class BoundaryMove:
    """One change of shape.

    Attributes
    ----------
    name
        Key of `BOUNDARIES`.
    depth
        How far the boundary moves, in mm (whole).
    share
        Share of the volume where it does, in smooth patches.
    """

    name: str
    depth: int
    share: float


def move_boundary(
    codes: torch.Tensor, table: SourceTable, move: BoundaryMove, rng: torch.Generator
) -> torch.Tensor:
    """Let a tissue take the voxels of another that it touches, 1 mm at a time.

    SIAM swaps cortex, white matter and CSF in the same way (Valabregue et al., 2026).
    """
    front, ground = (table.codes_of(*classes) for classes in BOUNDARIES[move.name])
    front[0] = False
    chosen = patches(codes.shape, move.share, 12, rng)
    for _ in range(move.depth):
        touching = _neighbour(codes * lookup(codes, front.astype(np.uint8)))
        taken = lookup(codes, ground) & (touching > 0) & chosen
        codes = torch.where(taken, touching, codes)
    return codes


def _neighbour(codes: torch.Tensor) -> torch.Tensor:
    """Return the highest code among the six neighbours of each voxel."""
    highest = torch.zeros_like(codes)
    for axis in range(3):
        length = codes.shape[axis] - 1
        low, high = highest.narrow(axis, 0, length), highest.narrow(axis, 1, length)
        torch.maximum(low, codes.narrow(axis, 1, length), out=low)
        torch.maximum(high, codes.narrow(axis, 0, length), out=high)
    return highest


def heal(codes: torch.Tensor, table: SourceTable) -> torch.Tensor:
    """Turn the lesions that a label map holds into white matter."""
    healed = np.arange(len(table.values), dtype=np.uint8)
    healed[table.codes_of("Anomalies")] = int(np.argmax(table.codes_of("WM")))
    return lookup(codes, healed)


def add_lesions(
    codes: torch.Tensor,
    table: SourceTable,
    kind: str,
    radii: Sequence[float],
    rng: torch.Generator,
) -> torch.Tensor:
    """Put lesions into the brain, one per radius.

    Parameters
    ----------
    kind
        `ms`: ovoids in white matter, two thirds of them within 8 mm of the ventricles.
        `stroke`: ragged areas of cortex, white matter and nuclei.
        `tumour`: a ball that pushes its surroundings away, with oedema in the white matter.
    radii
        Mean radius of each lesion in mm.
    """
    lesion, oedema = (int(np.flatnonzero(table.codes_of("Anomalies"))[place]) for place in (0, -1))
    wm = table.codes_of("WM")
    home = lookup(codes, wm if kind != "stroke" else wm | table.codes_of("GM", *NUCLEI))
    places = torch.nonzero(home.flatten())[:, 0]
    if not len(places):
        return codes
    codes = codes.clone()
    ventricles = torch.nonzero(lookup(codes, table.codes_of("CSFv")).flatten())[:, 0]
    for radius in radii:
        center = _draw_center(codes, home, places, ventricles if kind == "ms" else None, rng)
        reach = 2.6 if kind == "tumour" else 1.6
        window, distance = _ball(codes.shape, center, radius, reach, rng)
        part = codes[window]
        if kind == "tumour":
            part = _push(part, distance, table)
            width = float(torch.rand((), generator=rng, device=rng.device))
            ring = (distance < 1.2 + width) & lookup(part, wm)
            part = torch.where(ring, oedema, part).to(torch.uint8)
            inside = lookup(part, _brain(table))
        else:
            inside = home[window]
        codes[window] = torch.where((distance < 1) & inside, lesion, part).to(torch.uint8)
    return codes


def _brain(table: SourceTable) -> npt.NDArray[np.bool_]:
    return table.codes_of("WM", "GM", "CSFv", "Anomalies", *NUCLEI)


def _draw_center(
    codes: torch.Tensor,
    home: torch.Tensor,
    places: torch.Tensor,
    near: torch.Tensor | None,
    rng: torch.Generator,
) -> list[int]:
    shape = torch.tensor(codes.shape, device=codes.device)

    def voxel(flat: torch.Tensor) -> torch.Tensor:
        pick = int(flat[int(torch.randint(len(flat), (), generator=rng, device=rng.device))])
        return torch.tensor(np.unravel_index(pick, tuple(codes.shape)), device=codes.device)

    if near is not None and len(near):
        for _ in range(12):
            shift = torch.randint(-8, 9, (3,), generator=rng, device=rng.device)
            place = (voxel(near) + shift).clamp(min=torch.zeros_like(shape), max=shape - 1)
            if bool(home[tuple(place.tolist())]):
                return [int(index) for index in place]
    return [int(index) for index in voxel(places)]


def _ball(
    shape: Sequence[int], center: Sequence[int], radius: float, reach: float, rng: torch.Generator
) -> tuple[tuple[slice, ...], torch.Tensor]:
    """Return a window and in it the distance from the centre in units of a ragged radius."""
    half = math.ceil(radius * reach) + 1
    window = tuple(
        slice(max(0, place - half), min(length, place + half + 1))
        for place, length in zip(center, shape, strict=True)
    )
    stretch = (0.7 + 0.6 * torch.rand(3, generator=rng, device=rng.device)).tolist()
    squares = []
    for axis, (part, place, factor) in enumerate(zip(window, center, stretch, strict=True)):
        steps = torch.arange(part.start, part.stop, device=rng.device).float()
        view = [1, 1, 1]
        view[axis] = -1
        squares.append(((steps - place) / (radius * factor)).square().view(view))
    distance = (squares[0] + squares[1] + squares[2]).sqrt()
    return window, distance * (1 + 0.25 * smooth_noise(distance.shape, 4, rng))


def _push(part: torch.Tensor, distance: torch.Tensor, table: SourceTable) -> torch.Tensor:
    """Mass effect: brain and CSF move away from the middle, most of all near it."""
    center = [int(index) for index in np.unravel_index(int(distance.argmin()), distance.shape)]
    grids = torch.meshgrid(
        *(torch.arange(length, device=part.device) for length in part.shape), indexing="ij"
    )
    keep = 1 - 0.7 * torch.exp(-distance.square())
    source = [
        (middle + (grid - middle) * keep).round().long()
        for grid, middle in zip(grids, center, strict=True)
    ]
    moved = part[source[0], source[1], source[2]]
    soft = _brain(table) | table.codes_of("CSF", "cerGM")
    return torch.where(lookup(part, soft) & lookup(moved, soft), moved, part)


def strip_skull(codes: torch.Tensor, table: SourceTable, margin: float) -> torch.Tensor:
    """Keep everything inside the skull, and `margin` mm around it (in steps of 2 mm)."""
    brain = lookup(codes, _intracranial(table))
    if not bool(brain.any()):
        return codes
    half = functional.max_pool3d(brain[None, None].float(), 2, ceil_mode=True)
    for _ in range(round(margin / 2)):
        half = functional.max_pool3d(half, 3, 1, 1)
    keep = functional.interpolate(half, scale_factor=2)[0, 0]
    return codes * keep[: codes.shape[0], : codes.shape[1], : codes.shape[2]].to(codes.dtype)


def cut_face(codes: torch.Tensor, table: SourceTable, slope: float, margin: float) -> torch.Tensor:
    """Remove everything in front of and below a plane, tilted `slope` degrees, before the brain.

    The plane keeps 3 mm and `margin` mm from the brain.
    """
    brain = lookup(codes, _intracranial(table))
    if not bool(brain.any()):
        return codes
    along = torch.arange(codes.shape[1], device=codes.device).float()[None, :, None]
    upward = torch.arange(codes.shape[2], device=codes.device).float()[None, None, :]
    front = math.cos(math.radians(slope)) * along - math.sin(math.radians(slope)) * upward
    edge = torch.where(brain.any(0, keepdim=True), front, -1e9).max() + 3 + margin
    return codes * (front <= edge).to(codes.dtype)


def _intracranial(table: SourceTable) -> npt.NDArray[np.bool_]:
    inside = {label.index for label in siam_labels().intracranial}
    return np.array([bool(inside & set(target)) for target in table.target])
