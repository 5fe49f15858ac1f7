"""Where the finer members of an ensemble look: a box around what the first one found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from siam_bids.errors import ModelError
from siam_bids.volume import Grid, Reorientation


@dataclass(frozen=True)
class Focus:
    """Where the members of an ensemble look, but for the first, which sees the whole scan.

    Attributes
    ----------
    tissues
        Labels; the others look at a box around what the first one found of these.
    margin
        By which the box is wider at each end, in mm.
    step
        Tiles in the box are at most so many tile edges apart.
    extent
        What such tissues measure from left to right, back to front and bottom to top in large
        heads, in mm: for estimates of time and memory.
    share
        What the others' probabilities count in the mean there, 0 to 1; None for each as much as
        the first one's.
    """

    tissues: tuple[str, ...]
    margin: float
    step: float
    extent: tuple[float, float, float]
    share: float | None = None

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Focus:
        """Read the entry `focus` of an ensemble in models.json.

        Raises
        ------
        ModelError
            Something is missing, no number, or a share that is not between 0 and 1.
        """
        try:
            x, y, z = (float(edge) for edge in entry["extent"])
            margin, step = float(entry["margin"]), float(entry["step"])
            share = float(entry["share"]) if "share" in entry else None
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"share {share}")
            return cls(tuple(map(str, entry["tissues"])), margin, step, (x, y, z), share)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"The focus of an ensemble cannot be read ({error!r}).",
                'Write {"tissues": [LABEL], "margin": MM, "step": 0.5, "extent": [MM, MM, MM], '
                '"share": 0.5}.',
            ) from error

    def describe(self) -> dict[str, Any]:
        """Return the focus as sidecars tell it."""
        return {
            "Tissues": list(self.tissues),
            "MarginInMillimetres": self.margin,
            "TileStep": self.step,
            **({"Share": self.share} if self.share is not None else {}),
        }

    def typical(self, grid: Grid) -> Grid:
        """Return a grid of the voxels of `grid`, no larger than a box is expected to be."""
        turned = Reorientation.to_ras(grid).target
        i, j, k = (
            min(length, math.ceil((edge + 2 * self.margin) / size))
            for length, edge, size in zip(turned.shape, self.extent, turned.voxel_size, strict=True)
        )
        return Grid((i, j, k), turned.affine)
