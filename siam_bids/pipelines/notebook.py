"""Segmenting in Python: `siam_bids.segment` and what it returns."""

from __future__ import annotations

import base64
import html
import math
import numbers
import os
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from siam_bids.bids.writers import nifti_image, save_segmentation
from siam_bids.config import Inference, is_checkpoint_name
from siam_bids.errors import UsageError, did_you_mean
from siam_bids.image import grid
from siam_bids.image.grid import Volume
from siam_bids.image.loading import as_volume, load_volume
from siam_bids.inference.cascade import Cascade, CascadeSegmenter
from siam_bids.inference.device import choose_device
from siam_bids.measures.hemispheres import find_sides
from siam_bids.measures.volumes import tissue_volumes
from siam_bids.models.folder import search_path
from siam_bids.models.registry import find_model
from siam_bids.reports.methods_text import model_line
from siam_bids.reports.mosaics import cut, mosaic

_DEVICES = ("auto", "cpu", "cuda", "mps")
_PRECISIONS = ("auto", "float32", "bfloat16")
_ENGINES = ("auto", "torch", "openvino")
_SLICES = 6


@dataclass(frozen=True, repr=False)
class Segmentation(grid.Segmentation):
    """The tissues of one head.

    Attributes
    ----------
    data
        (I, J, K) uint8, on the voxels of the scan.
    grid
        Where the voxels are: `shape`, `affine` (4, 4) from voxels to RAS+ mm, `voxel_size` in mm.
    labels
        The label table: index, name, long_name, color and more of each label.
    scan
        What was segmented: `data` (I, J, K) float32 on the same grid.
    model
        Name, version and checksum of the model, as sidecars give them.
    """

    scan: Volume = field(repr=False)
    model: dict[str, Any] = field(repr=False)

    def volumes(self) -> pd.DataFrame:
        """Return the volume of each tissue.

        Returns
        -------
        Columns index, name, voxels and volume_mL; of models with paired tissues also left_voxels,
        right_voxels, left_mL and right_mL. The last row is the total intracranial volume, where
        the model's labels tell it.
        """
        return tissue_volumes(self, self.sides)

    @cached_property
    def sides(self) -> npt.NDArray[np.uint8] | None:
        """(I, J, K): 1 in paired tissues of the left hemisphere, 2 on the right, else 0.

        None where the hemispheres cannot be told.
        """
        return find_sides(self)

    def to_nibabel(self) -> nib.Nifti1Image:
        """Return the label map as a NIfTI image with the placement of the scan."""
        return nifti_image(self.data, self.grid)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the label map as NIfTI (`.nii.gz` or `.nii`); return its path.

        Raises
        ------
        UsageError
            The name has another ending, or the file exists and `overwrite` is False.
        """
        path = Path(path)
        if not path.name.endswith((".nii", ".nii.gz")):
            raise UsageError(f"{path} is not a NIfTI file name.", "Give it the ending .nii.gz.")
        if path.exists() and not overwrite:
            raise UsageError(f"{path} exists.", "Give another name, or overwrite=True.")
        save_segmentation(path, self)
        return path

    def plot(self, **options: Any) -> Any:
        """Show the tissues over the scan with `nilearn.plotting.plot_roi`.

        Parameters
        ----------
        options
            Those of `plot_roi`, for example `display_mode="z"` or `output_file="labels.png"`.

        Returns
        -------
        nilearn's display, or None if it went to a file.
        """
        from matplotlib.colors import ListedColormap
        from nilearn.plotting import plot_roi

        last = self.labels.labels[-1].index
        colors = ["#000000"] * (last + 1)
        for label in self.labels:
            colors[label.index] = label.color
        given = {
            "cmap": ListedColormap(colors),
            "vmin": 0,
            "vmax": last,
            "alpha": 0.6,
            "colorbar": False,
            **options,
        }
        return plot_roi(self.to_nibabel(), nifti_image(self.scan.data, self.grid), **given)

    def __repr__(self) -> str:
        """Say in one line what was segmented, and by which model."""
        shape = "x".join(map(str, self.grid.shape))
        size = "x".join(f"{edge:.2f}" for edge in self.grid.voxel_size)
        labels = len(self.labels.foreground)
        return f"<Segmentation: {labels} tissues on {shape} voxels of {size} mm, by {self._maker}>"

    def _repr_html_(self) -> str:
        """Show a picture and the volumes in a notebook."""
        picture = base64.b64encode(mosaic(cut(self.scan, self, _SLICES), self.labels)).decode()
        table = tissue_volumes(self)[["name", "volume_mL"]]
        numbers = table.to_html(index=False, border=0, float_format="{:.1f}".format, escape=True)
        return (
            f"<p>{html.escape(repr(self)[1:-1])}</p>"
            f'<img alt="Slices of the scan and of its tissues" style="max-width: 100%" '
            f'src="data:image/png;base64,{picture}">{numbers}'
        )

    @property
    def _maker(self) -> str:
        return model_line(self.model)


def segment(
    image: str | Path | nib.spatialimages.SpatialImage | Volume,
    *,
    model: str | Path = "compact",
    device: str = "auto",
    threads: int = 0,
    **options: Any,
) -> Segmentation:
    """Segment one head scan on its own grid.

    Parameters
    ----------
    image
        Path of a NIfTI or MGH file, an image that nibabel opened, or a `Volume`.
    model
        Name of a registered model, or the path of an nnU-Net v2 model folder.
    device
        `auto`, `cpu`, `cuda` or `mps`.
    threads
        CPU threads to use; 0 leaves the choice to torch.
    options
        Those of the command line, with underscores: `voxel_size`, `scale`, `interpolate`, `folds`,
        `mirror`, `intensities`, `upright`, `precision`, `volume`, `low_memory` and others; see
        `siam_bids.config.Inference`.

    Returns
    -------
    The label map on the grid of the scan, with its volumes and pictures.

    Raises
    ------
    SiamError
        The image, the model or an option is unusable; says in one line what to do.

    Examples
    --------
    >>> import siam_bids
    >>> siam_bids.segment("scan.nii.gz", voxelsize=0.75)
    Traceback (most recent call last):
        ...
    siam_bids.errors.UsageError: segment has no option voxelsize. Did you mean voxel_size?
    """
    inference = _inference(device, options)
    if not _whole(threads):
        raise UsageError(f"threads={threads!r} is not a whole number.", "Give 1 or more, or 0.")
    if threads < 0:
        raise UsageError(f"threads={threads} is negative.", "Give 1 or more, or 0 for all.")
    if not isinstance(model, str | Path):
        raise UsageError(f"model={model!r} is neither a name nor a path.", 'For example "compact".')
    if isinstance(image, Volume):
        scan = image
    elif isinstance(image, str | Path):
        scan = load_volume(Path(image), index=inference.volume)
    elif not isinstance(image, nib.spatialimages.SpatialImage):
        raise UsageError(
            f"segment takes no {type(image).__name__}.",
            "Give a path, a nibabel image, or a siam_bids.Volume: the voxels with their grid.",
        )
    else:
        scan = as_volume(image, Path(image.get_filename() or "the image"), inference.volume)
    chosen = find_model(str(model), search_path(os.environ)).with_options(inference)
    if threads:
        torch.set_num_threads(threads)
    segmenter = CascadeSegmenter(
        Cascade.open(chosen, inference.folds), choose_device(device), inference
    )
    found = segmenter.segment(scan).segmentation
    return Segmentation(found.data, found.grid, found.labels, scan, chosen.describe())


def _inference(device: str, options: dict[str, Any]) -> Inference:
    """Check options and turn them into a configuration.

    Raises
    ------
    UsageError
        An option is unknown, or its value is none that it can have.
    """
    known = [each.name for each in fields(Inference)]
    for name in options:
        if name not in known:
            hint = did_you_mean(name, known) or f"It has: {', '.join(known)}."
            raise UsageError(f"segment has no option {name}.", hint)
    for name, value, allowed in (
        ("device", device, _DEVICES),
        ("precision", options.get("precision", "auto"), _PRECISIONS),
        ("engine", options.get("engine", "auto"), _ENGINES),
    ):
        if not isinstance(value, str) or value not in allowed:
            raise UsageError(f"{name}={value!r} is not one of {', '.join(allowed)}.")
    _check_numbers(options)
    _check_switches(options)
    folds = options.get("folds", ())
    if not isinstance(folds, list | tuple | range):
        raise UsageError(f"folds={folds!r} is not a list of folds.", f'Write folds=("{folds}",).')
    checkpoint = options.get("checkpoint", "")
    if not isinstance(checkpoint, str) or not is_checkpoint_name(checkpoint):
        raise UsageError(
            f"checkpoint={checkpoint!r} is not the name of a checkpoint.",
            "For example checkpoint_best.pth.",
        )
    return Inference(**{**options, "folds": tuple(map(str, folds))})


def _check_numbers(options: dict[str, Any]) -> None:
    for name, default, most in (
        ("voxel_size", None, 1000),
        ("scale", 1.0, 1000),
        ("memory", None, math.inf),
    ):
        value: Any = options.get(name, default)
        if value is None and default is None:
            continue
        if not _real(value) or not 0 < value < most:
            limit = f" and below {most}" if most < math.inf else ""
            raise UsageError(f"{name}={value!r} is not above 0{limit}.")
    volume = options.get("volume")
    if volume is not None and not (_whole(volume) and volume >= 0):
        raise UsageError(
            f"volume={volume!r} is not a whole number from 0.", "Volumes count from 0."
        )


def _check_switches(options: dict[str, Any]) -> None:
    for name in ("interpolate", "intensities", "upright", "low_memory", "mirror"):
        value = options.get(name, False)
        if not (isinstance(value, bool) or (name == "mirror" and value is None)):
            raise UsageError(f"{name}={value!r} is not True or False.")


def _whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _real(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
