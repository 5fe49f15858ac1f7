"""Images in FreeSurfer's format."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from siam_bids.bids.writers import Written
from siam_bids.export.surfaces import even_grid, resampled
from siam_bids.image.grid import Grid, Volume
from siam_bids.support.atomic_files import atomic, sha256

BRIGHTEST = 99.9
"""Percentile of an image that becomes the largest byte."""

CONFORMED = 256
"""Edge of FreeSurfer's conformed images in voxels of 1 mm; larger heads get a larger cube."""


def conformed_grid(grid: Grid) -> Grid:
    """Return the cube of 1 mm voxels around the middle of an image, its axes L, I, A."""
    even = even_grid(grid)
    edge = max(CONFORMED, *even.shape)
    affine = even.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ ((np.array(even.shape) - edge) / 2)
    return Grid((edge, edge, edge), affine)


def as_mgh(scan: Volume, grid: Grid) -> nib.MGHImage:
    """Return a scan on another grid, in bytes."""
    data = np.asarray(resampled(scan.data, scan.grid, grid, order=1), np.float32)
    top = float(np.percentile(data, BRIGHTEST)) or 1.0
    return nib.MGHImage(np.clip(data / top * 255, 0, 255).astype(np.uint8), grid.affine)


def save_image(path: Path, image: nib.MGHImage) -> Written:
    """Write an image."""
    with atomic(path) as scratch:
        nib.save(image, scratch)
        return {path: sha256(scratch)}
