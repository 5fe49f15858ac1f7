"""Atrophy: smaller structures in an otherwise unchanged head.

Codes are those of `Anatomy`; randomness comes from a NumPy generator alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from siam_bids.synthesis.label_maps import Anatomy
from siam_bids.synthesis.lesions import noise

TEMPORAL = ("Hippo", "Amyg")
SMALLEST = 0.5
"""Least share of its volume that a structure keeps."""
_ROUGHNESS = 0.6
"""Standard deviation of the depth to which a structure shrinks, in voxels."""
_ROOM = 4
"""Voxels around the structures in which their neighbours are looked for."""


def shrink_temporal(anatomy: Anatomy, rng: np.random.Generator) -> Anatomy:
    """Shrink the hippocampus and amygdala of the left, the right or (half of the time) both sides.

    Each side keeps between `SMALLEST` and nearly all of its volume; see `shrink`.
    """
    sides = ((0,), (1,), (0, 1), (0, 1))[int(rng.integers(4))]
    fluid = float(rng.choice((0.0, 2.0, 4.0)))
    for side in sides:
        share = float(rng.uniform(SMALLEST, 0.98))
        anatomy = shrink(anatomy, TEMPORAL, share, rng, side=side, fluid=fluid)
    return anatomy


def shrink(
    anatomy: Anatomy,
    tissues: Sequence[str],
    share: float,
    rng: np.random.Generator,
    *,
    side: int | None = None,
    fluid: float = 0.0,
) -> Anatomy:
    """Return the head with smaller structures: their outermost voxels go to the nearest neighbour.

    Parameters
    ----------
    tissues
        Structures that shrink as one.
    share
        What they keep of their voxels, 0 to 1.
    rng
        For the unevenness of the new surface.
    side
        0 for the half of them on the left, 1 for that on the right. Default: both.
    fluid
        Voxels by which CSF and ventricles count as nearer than other neighbours.

    Returns
    -------
    The head; the same one if it lacks the structures.
    """
    table = anatomy.table
    mask = table.codes_of(*tissues)[anatomy.codes]
    if not mask.any():
        return anatomy
    (bounds,) = ndimage.find_objects(mask.astype(np.uint8))
    box = tuple(
        slice(max(0, part.start - _ROOM), min(length, part.stop + _ROOM))
        for part, length in zip(bounds, mask.shape, strict=True)
    )
    codes, mask = anatomy.codes[box], mask[box]
    chosen = mask.copy()
    if side is not None:
        middle = (bounds[0].start + bounds[0].stop) // 2 - box[0].start
        chosen[slice(middle, None) if side == 0 else slice(middle)] = False
    depth = ndimage.distance_transform_edt(mask)[chosen]
    depth += _ROUGHNESS * noise(mask.shape, rng)[chosen]
    lost = np.zeros_like(mask)
    lost[chosen] = np.argsort(np.argsort(depth)) < round((1 - share) * len(depth))
    filled = codes.copy()
    filled[lost] = _nearest(codes, ~mask, table.codes_of("CSF", "CSFv")[codes], fluid)[lost]
    shrunk = anatomy.codes.copy()
    shrunk[box] = filled
    return replace(anatomy, codes=shrunk)


def _nearest(
    codes: npt.NDArray[np.uint8],
    known: npt.NDArray[np.bool_],
    fluid: npt.NDArray[np.bool_],
    bonus: float,
) -> npt.NDArray[np.uint8]:
    """Return the code (I, J, K) of the nearest known voxel; fluid is `bonus` voxels nearer."""

    def reach(mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint8]]:
        away, places = ndimage.distance_transform_edt(~mask, return_indices=True)
        return away, codes[tuple(places)]

    away, nearest = reach(known)
    if bonus and (known & fluid).any():
        fluid_away, nearest_fluid = reach(known & fluid)
        nearest = np.where(fluid_away - bonus < away, nearest_fluid, nearest)
    return nearest
