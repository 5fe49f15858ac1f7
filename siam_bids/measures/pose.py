"""Head orientation and size, estimated from its tissues.

The centre and covariance of each tissue are known even without sharp borders. The pose is the
rotation and scaling that best align them with those of the standard head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from siam_bids.image.labels import LabelTable
from siam_bids.support.package_data import resource
from siam_bids.support.tsv import read_rows

_LEAST_TISSUES = 6
"""Of the ten in the table; fewer do not determine the head orientation."""
LEAST_VOXELS = 20
_BLUR = 4.0
"""Variance in mm2 added to all tissues, so that thin ones do not dominate."""
MISFIT = 0.4
"""Nats; a larger misfit indicates a partial head, whose pose is unreliable.

Whole heads have 0.02 to 0.22, slabs that seem rotated or small 0.48 to 0.9.
"""
_STARTS = (np.zeros(3), *(sign * axis for axis in np.eye(3) for sign in (-0.7, 0.7)))
"""Rotation vectors in radians at which the search starts."""


@dataclass(frozen=True)
class Shape:
    """Moments of a tissue: `centre` (3,) in mm, `covariance` (3, 3) in mm2, axes [z, y, x]."""

    centre: npt.NDArray[np.float64]
    covariance: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pose:
    """Maps positions in a scan to the standard head: size * rotation @ (position - centre).

    Attributes
    ----------
    rotation
        (3, 3), axes [z, y, x].
    size
        Factor that scales the head to average size.
    centre
        (3,) of the brain in mm, the origin of positions.
    misfit
        Remaining difference to the standard head: mean divergence in nats.
    """

    rotation: npt.NDArray[np.float64]
    size: float
    centre: npt.NDArray[np.float64]
    misfit: float

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """(4, 4), from mm in the scan to mm in the standard head, axes [z, y, x]."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.size * self.rotation
        matrix[:3, 3] = -matrix[:3, :3] @ self.centre
        return matrix

    def describe(self) -> dict[str, float]:
        """Return the pose as an entry of sidecars."""
        return {
            "TurnedByDegrees": round(self.degrees, 1),
            "RelativeSize": round(1 / self.size, 3),
        }

    @property
    def degrees(self) -> float:
        """Rotation angle from the standard orientation."""
        return float(np.degrees(Rotation.from_matrix(self.rotation).magnitude()))


@lru_cache(maxsize=1)
def upright_head() -> Mapping[str, Shape]:
    """Read the tissue moments of the standard head, by label name.

    Means over the 16 SynthSeg label maps of the training and their mirror images;
    `benchmarks/upright_head.py` made the table.
    """
    shapes = {}
    for row in read_rows(resource("data", "labels", "upright.tsv")):
        z, y, zz, zy, yy, xx = (float(row[name]) for name in ("z", "y", "zz", "zy", "yy", "xx"))
        covariance = np.array([[zz, zy, 0], [zy, yy, 0], [0, 0, xx]])
        shapes[row["name"]] = Shape(np.array([z, y, 0.0]), covariance)
    return shapes


def tissue_moments(
    labels: npt.NDArray[np.integer],
    voxel_size: npt.ArrayLike,
    table: LabelTable,
    names: Iterable[str],
) -> dict[str, Shape]:
    """Return the moments of the tissues that are present, in mm from the outer corner.

    Parameters
    ----------
    labels
        (K, J, I), axes [z, y, x].
    voxel_size
        In mm, in the same order.
    """
    found = {}
    for name in names:
        if name not in table.by_name:
            continue
        places = np.argwhere(labels == table.by_name[name].index)
        if len(places) >= LEAST_VOXELS:
            mm = (places + 0.5) * np.asarray(voxel_size, np.float64)
            found[name] = Shape(mm.mean(0), np.cov(mm.T, bias=True))
    return found


def pose_of(shapes: Mapping[str, Shape]) -> Pose | None:
    """Find the pose that best aligns tissue moments with those of the standard head.

    Minimises the mean over tissues of the divergence (Kullback and Leibler, 1951) of their
    Gaussians from those of the standard head; all tissues have equal weight.

    Returns
    -------
    None if too few tissues were found.
    """
    names = [name for name in upright_head() if name in shapes]
    if len(names) < _LEAST_TISSUES:
        return None
    blur = _BLUR * np.eye(3)
    centres = np.array([shapes[name].centre for name in names])
    spreads = np.array([shapes[name].covariance + blur for name in names])
    usual = np.array([upright_head()[name].centre for name in names])
    widths = np.array([upright_head()[name].covariance + blur for name in names])
    precisions = np.linalg.inv(widths)
    constant = np.linalg.slogdet(widths)[1] - np.linalg.slogdet(spreads)[1] - 3
    middle = centres.mean(0)

    def misfit(guess: npt.NDArray[np.float64]) -> float:
        matrix = np.exp(guess[6]) * Rotation.from_rotvec(guess[:3]).as_matrix()
        away = (centres - middle) @ matrix.T + 10 * guess[3:6] - usual
        turned = matrix @ spreads @ matrix.T
        distance = np.einsum("ci,cij,cj->c", away, precisions, away)
        width = np.einsum("cij,cji->c", precisions, turned)
        return float(np.mean(distance + width + constant) / 2 - 3 * guess[6])

    best = min(
        (minimize(misfit, [*start, 0, 0, 0, 0], method="BFGS") for start in _STARTS),
        key=lambda answer: float(answer.fun),
    )
    rotation = Rotation.from_rotvec(best.x[:3]).as_matrix()
    size = float(np.exp(best.x[6]))
    centre = middle - rotation.T @ (10 * best.x[3:6]) / size
    return Pose(rotation, size, centre, float(best.fun))
