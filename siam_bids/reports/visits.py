"""Scans of a person on one grid: what changed between visits, where contrasts disagree."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Hashable, Sequence
from io import BytesIO
from itertools import combinations

import numpy as np
import numpy.typing as npt
from PIL import Image

from siam_bids.bids.results import ScanResult
from siam_bids.bids.status import COMBINED
from siam_bids.errors import SiamError
from siam_bids.image.labels import LabelTable
from siam_bids.image.loading import load_labels
from siam_bids.image.transforms import Affine, inverse, move, read_transform
from siam_bids.reports.content import Disagreement, Visit

logger = logging.getLogger(__name__)

_HALF = 95
"""mm from the middle of the brain to the edges of a slice."""
_UNSEEN = 255
"""Outside the field of view; no label of a model."""
_GREY = 0.25
"""Brightness of what did not change."""


class Aligned:
    """The label maps of aligned scans of a participant, each read once.

    Parameters
    ----------
    results
        Of the participant, the first visit first; those without a transform are left out.
    """

    def __init__(self, results: Sequence[ScanResult], labels: LabelTable) -> None:
        self.results = [result for result in results if result.names.transform.is_file()]
        self.brain = [label.index for label in labels.brain]
        self._maps: dict[str, tuple[npt.NDArray[np.uint8], Affine] | None] = {}

    def groups(self, key: Callable[[ScanResult], Hashable]) -> list[list[ScanResult]]:
        """Return the scans of one space that have a key in common, where these are several."""
        found: dict[Hashable, list[ScanResult]] = {}
        for result in self.results:
            space = repr(result.about.get(COMBINED))
            found.setdefault((space, key(result)), []).append(result)
        return [group for group in found.values() if len(group) > 1]

    def slices(self, group: Sequence[ScanResult]) -> dict[str, npt.NDArray[np.uint8]]:
        """Return three slices of each scan by name, through the middle of the brain of the first.

        What cannot be read is left out, with a warning.
        """
        maps = {result.names.name: each for result in group if (each := self._map(result))}
        if not maps:
            return {}
        data, to_space = next(iter(maps.values()))
        inside = np.argwhere(np.isin(data, self.brain))[::101]
        places = inside if len(inside) else np.array([data.shape]) / 2
        middle = move(to_space, places).mean(0)
        return {
            name: _slices(data, inverse(to_space), middle)
            for name, (data, to_space) in maps.items()
        }

    def _map(self, result: ScanResult) -> tuple[npt.NDArray[np.uint8], Affine] | None:
        name = result.names.name
        if name not in self._maps:
            try:
                self._maps[name] = _in_space(result)
            except (SiamError, OSError, ValueError) as error:
                logger.warning("%s is not compared with others on the page: %s", name, error)
                self._maps[name] = None
        return self._maps[name]


def visits_of(aligned: Aligned, labels: LabelTable) -> tuple[Visit, ...]:
    """Return the scans of one kind in several sessions, where they are aligned with each other.

    Each is shown by three slices through the middle of the brain of the first visit, in the space
    in the middle of the participant's scans; the later ones also by what changed.
    """
    found = []
    for group in aligned.groups(_kind):
        colors = _colors(labels)
        slices = aligned.slices(group)
        first = next(iter(slices), "")
        for name, own in slices.items() if len(slices) > 1 else ():
            changed = _difference(slices[first], own, colors) if name != first else None
            found.append(
                Visit(
                    name=name,
                    labels=_png(colors[own]),
                    changed=_png(changed) if changed is not None else "",
                )
            )
    return tuple(found)


def _kind(result: ScanResult) -> str:
    identity = result.names.identity
    alike = [f"{key}-{label}" for key, label in identity.entities if key != "ses"]
    return "_".join([*alike, identity.suffix]) if identity.session else result.names.name


def disagreements_of(aligned: Aligned, labels: LabelTable) -> tuple[Disagreement, ...]:
    """Return where the labels of each session's aligned scans differ.

    Labels outside the skull count as one: contrasts show bone and skin differently. Where it is not
    known which these are, all labels count.
    """
    inside = [label.index for label in labels.intracranial] or [*range(1, _UNSEEN)]
    found = []
    for group in aligned.groups(lambda result: result.names.identity.session):
        slices = aligned.slices(group)
        if len(slices) < 2:
            continue
        colors = _colors(labels)
        first = next(iter(slices.values()))
        share = _differing_pairs(
            [np.where(np.isin(own, [*inside, _UNSEEN]), own, 0) for own in slices.values()]
        )
        found.append(
            Disagreement(
                session=group[0].names.identity.session,
                scans=tuple((result.names.name, result.quality.get("agreement"))
                            for result in group if result.names.name in slices),
                labels=_png(colors[first]),
                map=_png(_heat(share, _grey(first, colors))),
            )
        )  # fmt: skip
    return tuple(found)


def _differing_pairs(maps: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float64]:
    """Return which share of the pairs that both see a voxel label it differently."""
    differ, seen = np.zeros(maps[0].shape), np.zeros(maps[0].shape)
    for one, other in combinations(maps, 2):
        both = (one != _UNSEEN) & (other != _UNSEEN)
        seen += both
        differ += both & (one != other)
    return np.divide(differ, seen, out=np.zeros_like(differ), where=seen > 0)


def _heat(share: npt.NDArray[np.float64], behind: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Lay a share over a picture (rows, columns, 3), from dark red to light yellow."""
    low, high = np.array([150.0, 20.0, 0.0]), np.array([255.0, 235.0, 110.0])
    color = low + share[..., None] * (high - low)
    return np.where(share[..., None] > 0, color, behind).astype(np.uint8)


def _colors(labels: LabelTable) -> npt.NDArray[np.uint8]:
    """Return the colour of each value of a label map, black where there is none."""
    colors = np.zeros((256, 3), np.uint8)
    for label in labels.foreground:
        colors[label.index] = label.rgb
    return colors


def _grey(data: npt.NDArray[np.uint8], colors: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return labels (rows, columns) as a dark picture (rows, columns, 3) without colour."""
    dark = (_GREY * colors[data].mean(-1, keepdims=True)).astype(np.uint8)
    return np.repeat(dark, 3, -1)


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
    changed = (first != later) & (first != _UNSEEN) & (later != _UNSEEN)
    return np.where(changed[..., None], colors[later], _grey(first, colors))


def _png(picture: npt.NDArray[np.uint8]) -> str:
    """Encode a picture as a data URL."""
    stream = BytesIO()
    Image.fromarray(picture).save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
