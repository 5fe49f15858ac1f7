"""Heads that are segmented again in standard orientation.

Networks are trained on adult heads near the standard orientation and do worse on others. The pose
that a first pass shows defines how the scan is resampled for a second.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from siam_bids.image.labels import LabelTable
from siam_bids.measures.pose import MISFIT, Pose, pose_of, tissue_moments, upright_head
from siam_bids.models.settings import Upright

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Window:
    """A box in standard orientation: corners `low` and `high` (3,) in mm, axes [z, y, x]."""

    pose: Pose
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]


def centres(voxel_size: npt.ArrayLike, corner: npt.ArrayLike = 0.0) -> npt.NDArray[np.float64]:
    """Return the affine (4, 4) from voxels to mm of a grid whose outer corner is given."""
    size = np.asarray(voxel_size, np.float64)
    affine = np.diag([*size, 1.0])
    affine[:3, 3] = np.asarray(corner, np.float64) + size / 2
    return affine


def upright_window(
    upright: Upright,
    labels: npt.NDArray[np.integer],
    voxel_size: npt.ArrayLike,
    table: LabelTable,
) -> Window | None:
    """Return the box around the head in standard orientation, from the labels of a first pass.

    Parameters
    ----------
    labels
        (K, J, I), axes [z, y, x]; all but 0 are head.
    voxel_size
        In mm, in the same order.

    Returns
    -------
    None for a head that is not segmented again.
    """
    pose = pose_of(tissue_moments(labels, voxel_size, table, upright_head()))
    if pose is None or not _needed(upright, pose):
        return None
    logger.info(
        "The head is rotated by %.0f degrees and %.2f times the usual size: segmenting it again "
        "in standard orientation.",
        pose.degrees, 1 / pose.size,
    )  # fmt: skip
    matrix = pose.affine @ centres(voxel_size)
    mm = np.argwhere(labels > 0) @ matrix[:3, :3].T + matrix[:3, 3]
    return Window(pose, mm.min(0) - upright.margin, mm.max(0) + upright.margin)


def _needed(upright: Upright, pose: Pose) -> bool:
    far = pose.degrees > upright.degrees or abs(np.log(pose.size)) > np.log(upright.size)
    return far and pose.misfit < MISFIT
