"""Visits of a person side by side: labels on one grid, and where they differ from the first."""

from __future__ import annotations

import base64
import logging
from collections.abc import Sequence
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from siam_bids.bids.results import ScanResult
from siam_bids.errors import SiamError
from siam_bids.image.labels import LabelTable
from siam_bids.image.loading import load_labels
from siam_bids.image.transforms import Affine, inverse, move, read_transform
from siam_bids.reports.content import Visit

logger = logging.getLogger(__name__)

_HALF = 95
"""mm from the middle of the brain to the edges of a slice."""
_UNSEEN = 255
"""Outside the field of view; no label of a model."""
_GREY = 0.25
"""Brightness of what did not change."""


def visits_of(results: Sequence[ScanResult], labels: LabelTable) -> tuple[Visit, ...]:
    """Return the scans of one kind in several sessions, where they are aligned with each other.

    Each is shown by three slices through the middle of the brain of the first visit, in the space
    in the middle of the participant's scans; the later ones also by what changed.
    """
    kinds: dict[str, list[ScanResult]] = {}
    for result in sorted(results, key=lambda result: result.names.identity.session):
        alike = [f"{key}-{label}" for key, label in result.names.identity.entities if key != "ses"]
        if result.names.identity.session and result.names.transform.is_file():
            kinds.setdefault("_".join([*alike, result.names.identity.suffix]), []).append(result)
    colors = np.zeros((256, 3), np.uint8)
    for label in labels.foreground:
        colors[label.index] = label.rgb
    brain = [label.index for label in labels.brain]
    found = []
    for own in kinds.values():
        if len(own) < 2:
            continue
        first: npt.NDArray[np.uint8] | None = None
        middle = np.zeros(3)
        for result in own:
            try:
                data, to_space = _in_space(result)
            except (SiamError, OSError, ValueError) as error:
                logger.warning("%s is not shown among the visits: %s", result.names.name, error)
                continue
            if first is None:
                inside = np.argwhere(np.isin(data, brain))[::101]
                middle = (
                    move(to_space, inside).mean(0)
                    if len(inside)
                    else move(to_space, np.array([data.shape]) / 2)[0]
                )
            slices = _slices(data, inverse(to_space), middle)
            changed = None if first is None else _difference(first, slices, colors)
            found.append(
                Visit(
                    name=result.names.name,
                    labels=_png(colors[slices]),
                    changed=_png(changed) if changed is not None else "",
                )
            )
            first = slices if first is None else first
    return tuple(found)


def _in_space(result: ScanResult) -> tuple[npt.NDArray[np.uint8], Affine]:
    """Return the label map of a scan, and the affine from its voxels to the common space."""
    motion = read_transform(result.names.transform)
    data, grid = load_labels(result.names.segmentation)
    return data.astype(np.uint8), np.asarray(motion @ grid.affine, np.float64)


def _slices(
    data: npt.NDArray[np.uint8], to_voxels: Affine, middle: npt.NDArray[np.float64]
) -> npt.NDArray[np.uint8]:
    """Return labels (rows, columns) of axial, coronal and sagittal slices at 1 mm, in a row.

    `_UNSEEN` outside the field of view.
    """
    steps = np.arange(-_HALF, _HALF + 1.0)
    across, down = np.meshgrid(steps, -steps)
    flat = np.zeros_like(across)
    parts = []
    for offsets in ((across, down, flat), (across, flat, down), (flat, across, down)):
        places = np.stack(offsets, -1).reshape(-1, 3) + middle
        voxels = np.rint(move(to_voxels, places)).astype(int)
        seen = ((voxels >= 0) & (voxels < data.shape)).all(1)
        part = np.full(len(voxels), _UNSEEN, np.uint8)
        part[seen] = data[tuple(voxels[seen].T)]
        parts.append(part.reshape(across.shape))
    return np.concatenate(parts, 1)


def _difference(
    first: npt.NDArray[np.uint8], later: npt.NDArray[np.uint8], colors: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """Return a picture in which the later label has its colour where it is new."""
    grey = (_GREY * colors[first].mean(-1, keepdims=True)).astype(np.uint8)
    changed = (first != later) & (first != _UNSEEN) & (later != _UNSEEN)
    return np.where(changed[..., None], colors[later], grey)


def _png(picture: npt.NDArray[np.uint8]) -> str:
    """Encode a picture as a data URL."""
    stream = BytesIO()
    Image.fromarray(picture).save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
