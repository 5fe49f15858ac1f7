"""Provenance of label maps in their sidecars, with BIDS and without."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from siam_bids import __version__
from siam_bids.bids.status import RESULTS_VERSION
from siam_bids.config import Inference
from siam_bids.errors import SiamError
from siam_bids.image.grid import Volume
from siam_bids.image.loading import has_volumes
from siam_bids.inference.cost import Load
from siam_bids.inference.prediction import Prediction
from siam_bids.models.model import Model
from siam_bids.reports.methods_text import software_versions


def made_from(
    path: Path, checksum: str, model: Model, *, folds: int, options: Inference
) -> dict[str, Any]:
    """Say what goes into a label map: input, model, options and versions of the software.

    Parameters
    ----------
    path, checksum
        The input file and its SHA-256.
    folds
        Networks that label the whole head.
    """
    return {
        "SoftwareVersion": __version__,
        "ResultsVersion": RESULTS_VERSION,
        "Software": software_versions(),
        "Model": {**model.describe(), "Folds": folds},
        "Options": _effective(options, path).changed(),
        "InputSHA256": checksum,
    }


def _effective(options: Inference, path: Path) -> Inference:
    """Leave out the choice of a volume for an image that has only one."""
    if options.volume is None:
        return options
    with suppress(SiamError, OSError):  # reading the image tells what is wrong with it
        if not has_volumes(path):
            return replace(options, volume=None)
    return options


def found_in(volume: Volume, prediction: Prediction, loads: Sequence[Load]) -> dict[str, Any]:
    """Say what was seen of a scan, and in which precision and by what networks were computed."""
    return {
        "Grid": {
            "Shape": list(volume.grid.shape),
            "VoxelSize": [round(size, 4) for size in volume.grid.voxel_size],
            "Orientation": volume.grid.axcodes,
        },
        **({"Pose": prediction.pose.describe()} if prediction.pose else {}),
        "Precision": _each_once(load.precision for load in loads),
        "Engine": _each_once(load.engine for load in loads),
    }


def _each_once(names: Iterable[str]) -> str:
    return " + ".join(dict.fromkeys(names))
