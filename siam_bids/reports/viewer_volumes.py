"""Coarse copies of scans and their labels, small enough for a viewer within a page (`--viewer`)."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt

from siam_bids.bids.label_tables import read_label_table
from siam_bids.bids.names import PREVIEWS, finished_scans
from siam_bids.bids.results import read_result
from siam_bids.bids.writers import save_preview
from siam_bids.errors import SiamError
from siam_bids.image.grid import Grid, Segmentation, Volume
from siam_bids.image.loading import load_labels, load_volume
from siam_bids.reports.mosaics import to_grey, window

logger = logging.getLogger(__name__)

VOXEL_MM = 2.0
"""Voxels are averaged to about this size; larger ones are kept."""


def save_previews(root: Path, subject: str, bids_dir: Path) -> None:
    """Write the coarse copies of a subject's finished scans that have none yet.

    A scan that cannot be read any more is left without, with a warning.
    """
    for names in finished_scans(root, subject):
        if all(names.preview(kind).exists() for kind in PREVIEWS):
            continue
        try:
            table = read_label_table(root)
            result = read_result(names, table)
            index = result.about.get("Options", {}).get("volume")
            volume = load_volume(bids_dir / result.source, index=index)
            labels, grid = load_labels(names.segmentation)
        except (SiamError, OSError) as error:
            logger.warning("%s has no viewer: %s", names.name, error)
            continue
        if not volume.grid.same_as(grid):
            logger.warning(
                "%s has no viewer: the scan has changed since it was segmented.", names.name
            )
            continue
        image, coarse = shrink(volume, Segmentation(labels.astype(np.uint8), grid, table))
        save_preview(names.preview("image"), image, coarse.grid)
        save_preview(names.preview("labels"), coarse.data, coarse.grid)


def shrink(
    volume: Volume, segmentation: Segmentation
) -> tuple[npt.NDArray[np.uint8], Segmentation]:
    """Join voxels to blocks of about `VOXEL_MM`: the mean of the scan, the commonest label.

    Returns
    -------
    image
        (i, j, k) uint8, 0 black to 255 white.
    labels
        On the grid of blocks; an incomplete block at the far end of an axis is left out.
    """
    grid = volume.grid
    step = [
        min(max(round(VOXEL_MM / size), 1), edge)
        for size, edge in zip(grid.voxel_size, grid.shape, strict=True)
    ]
    grey = _blocks(to_grey(volume.data, window(volume, segmentation)), step).mean(axis=(1, 3, 5))
    labels = np.zeros(grey.shape, np.uint8)
    most = np.zeros(grey.shape, np.int64)
    for index in np.unique(segmentation.data):
        votes = _blocks(segmentation.data == index, step).sum(axis=(1, 3, 5))
        labels[votes > most] = index
        most = np.maximum(most, votes)
    to_fine = np.diag([*step, 1.0])
    to_fine[:3, 3] = (np.array(step) - 1) / 2
    i, j, k = grey.shape
    coarse = Grid((i, j, k), grid.affine @ to_fine)
    image = np.asarray(np.round(255 * grey), dtype=np.uint8)
    return image, Segmentation(labels, coarse, segmentation.labels)


def _blocks(data: npt.NDArray[np.generic], step: list[int]) -> npt.NDArray[np.generic]:
    """View (I, J, K) data as (i, a, j, b, k, c): blocks i, j, k of a x b x c voxels."""
    count = [edge // size for edge, size in zip(data.shape, step, strict=True)]
    whole = tuple(slice(n * size) for n, size in zip(count, step, strict=True))
    return data[whole].reshape([edge for pair in zip(count, step, strict=True) for edge in pair])
