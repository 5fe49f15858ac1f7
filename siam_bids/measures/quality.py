"""Quality of one scan and its segmentation: metrics, and one flag with its reasons in words.

What is measured, by which formula, in which unit and with which bounds stands in
`data/quality.tsv`. Bounds are meant to hold at any age; they call for a look, they do not judge.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from siam_bids.image.grid import Grid, Reorientation, Segmentation, Volume
from siam_bids.image.labels import BRAIN, HEALTHY, Label
from siam_bids.measures.image_metrics import (
    clipped_share,
    entropy_focus,
    header_metrics,
    hot_voxels,
    looks_like_ct,
    nonuniformity,
    smoothness,
)
from siam_bids.support.package_data import resource
from siam_bids.support.tsv import read_rows

FLAGS = ("pass", "warn", "fail")
"""From good to bad."""

PAIRED = "subcortical"
SOLID = ("cortex", "white_matter", "ventricles", "cerebellum", PAIRED)
"""Roles of labels that come in one piece, or in two if `PAIRED`."""

BODY_ML = 50.0
_THIN_END = 1 / 20
"""Slices with less than this share of the largest section do not count as an end of the brain."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One row of data/quality.tsv; bounds are None where a side is open."""

    name: str
    units: str
    description: str
    formula: str
    source: str
    warn: tuple[float | None, float | None]
    fail: tuple[float | None, float | None]
    reason: str

    def flag(self, value: float) -> str:
        """Return `pass`, `warn` or `fail`; a value that could not be measured passes."""
        return next(
            (
                flag
                for flag, (low, high) in (("fail", self.fail), ("warn", self.warn))
                if (low is not None and value < low) or (high is not None and value > high)
            ),
            "pass",
        )


@lru_cache(maxsize=1)
def metrics() -> tuple[Metric, ...]:
    """Return all metrics in the order of the table; a name ending in `*` is one per tissue."""

    def bounds(row: Mapping[str, str], kind: str) -> tuple[float | None, float | None]:
        low, high = (row[f"{kind}_{side}"] for side in ("below", "above"))
        return float(low) if low else None, float(high) if high else None

    return tuple(
        Metric(
            name=row["metric"],
            units=row["units"],
            description=row["description"],
            formula=row["formula"],
            source=row["source"],
            warn=bounds(row, "warn"),
            fail=bounds(row, "fail"),
            reason=row["reason"],
        )
        for row in read_rows(resource("data", "quality.tsv"))
    )


def judge(values: Mapping[str, float]) -> tuple[str, tuple[str, ...]]:
    """Return the worst flag over all metrics, and the reason for each that does not pass."""
    found = [
        (metric.flag(values[metric.name]), metric.reason.format(value=values[metric.name]))
        for metric in metrics()
        if metric.name in values
    ]
    found = [(flag, reason) for flag, reason in found if flag != "pass"]
    found.sort(key=lambda item: -FLAGS.index(item[0]))
    return (found[0][0] if found else "pass"), tuple(reason for _, reason in found)


def dictionary(columns: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Describe these metric columns as a BIDS data dictionary, with formula and source."""
    known = {metric.name: metric for metric in metrics()}
    described: dict[str, dict[str, Any]] = {
        "flag": {
            "Description": "Worst of all metrics against their bounds; a request to look at the "
            "scan.",
            "Levels": {
                "pass": "within all bounds",
                "warn": "beyond the warning bound",
                "fail": "beyond the failure bound",
            },
        },
        "reasons": {"Description": "Why the flag is not pass, worst first."},
    }
    for column in columns:
        tissue = column.partition("_")[2]
        metric = known.get(column) or known.get(f"{column.partition('_')[0]}_*")
        if metric:
            described[column] = {
                "Description": metric.description.replace("{tissue}", tissue),
                "Units": metric.units,
                "Formula": metric.formula,
                "Source": metric.source,
            }
    return {column: described[column] for column in columns if column in described}


def scan_quality(
    volume: Volume,
    segmentation: Segmentation,
    *,
    confidence: Mapping[str, float] | None = None,
    entropy: float | None = None,
    ct: bool = False,
) -> dict[str, float]:
    """Measure every metric of `data/quality.tsv`, in its order; NaN where it has no meaning.

    Parameters
    ----------
    volume
        The scan.
    segmentation
        Its labels on the same grid.
    confidence, entropy
        As `siam_bids.inference.prediction.Prediction` has them.
    ct
        Whether its name says that it is a CT; its intensities may say so too.
    """
    turn = Reorientation.to_ras(volume.grid)
    field = _field_of_view(turn.apply(volume.data))
    image = turn.apply(volume.data)[field]
    labels = turn.apply(segmentation.data)[field]
    view = _View(image, labels, turn.target, segmentation)
    found = {
        **_grid_metrics(volume.grid),
        **header_metrics(volume.grid),
        **_volume_metrics(view),
        **_coverage_metrics(view),
        **_pose_metrics(view),
        **_piece_metrics(view),
        **_intensity_metrics(view),
        **_artefact_metrics(view),
        "ct": float(ct or looks_like_ct(view.image)),
        **_certainty_metrics(view, confidence or {}, entropy),
    }
    order = {metric.name: place for place, metric in enumerate(metrics())}

    def place(name: str) -> int:
        return order.get(name, order.get(f"{name.partition('_')[0]}_*", len(order)))

    return {name: found[name] for name in sorted(found, key=place)}


class _View:
    """Image and labels (I, J, K) in RAS+ order, cut to the field of view, with shorthands."""

    def __init__(
        self,
        image: npt.NDArray[np.float32],
        labels: npt.NDArray[np.uint8],
        grid: Grid,
        segmentation: Segmentation,
    ) -> None:
        self.image = image
        self.labels = labels
        self.affine = grid.affine
        self.size = grid.voxel_size
        self.voxel_ml = grid.voxel_volume / 1000
        self.table = segmentation.labels
        self.counts = np.bincount(labels.ravel(), minlength=256)

    def mask(self, *roles: str) -> npt.NDArray[np.bool_]:
        return self.of(self.table.of_role(*roles))

    def of(self, labels: Iterable[Label]) -> npt.NDArray[np.bool_]:
        chosen = np.zeros(256, dtype=bool)
        chosen[[label.index for label in labels]] = True
        return chosen[self.labels]

    def millilitres(self, *roles: str) -> float:
        """Return the volume of the labels with one of these roles; NaN if there are none."""
        return self.volume(self.table.of_role(*roles))

    def volume(self, labels: Sequence[Label]) -> float:
        indices = [label.index for label in labels]
        return float(self.counts[indices].sum()) * self.voxel_ml if indices else math.nan

    def whole(self, *roles: str) -> list[Label]:
        """Return the labels with one of these roles that are not part of another one."""
        return [label for label in self.table.of_role(*roles) if not label.parent]


def _field_of_view(image: npt.NDArray[np.float32]) -> tuple[slice, slice, slice]:
    """Return the box of non-zero voxels: padding with zeros shows nothing."""
    ends = []
    for axis in range(3):
        seen = np.flatnonzero((image != 0).any(axis=tuple({0, 1, 2} - {axis})))
        ends.append(slice(int(seen[0]), int(seen[-1]) + 1) if seen.size else slice(None))
    return ends[0], ends[1], ends[2]


def _ratio(above: float, below: float, factor: float = 1.0) -> float:
    return factor * above / below if below else math.nan


def _grid_metrics(grid: Grid) -> dict[str, float]:
    sizes = grid.voxel_size
    return {
        "voxel_volume": grid.voxel_volume,
        "voxel_largest": max(sizes),
        "anisotropy": max(sizes) / min(sizes),
    }


def _volume_metrics(view: _View) -> dict[str, float]:
    total = view.volume(view.table.intracranial)
    tissue = view.millilitres(*(role for role in BRAIN if role != "ventricles"))
    absent = [label for label in view.whole(*HEALTHY) if not view.counts[label.index]]
    return {
        "TIV": total,
        "brain_share": _ratio(tissue, total, 100),
        "GM_WM_ratio": _ratio(view.millilitres("cortex"), view.millilitres("white_matter")),
        "ventricle_share": _ratio(view.millilitres("ventricles"), total, 100),
        "missing_tissues": float(len(absent)),
        "anomalies_share": _ratio(view.millilitres("lesion"), total, 100),
    }


def _coverage_metrics(view: _View) -> dict[str, float]:
    brain = view.of(view.table.brain)
    known = 1.0 if view.table.brain else math.nan
    x, y, z = view.size
    axial, coronal, sagittal = x * y / 100, x * z / 100, y * z / 100
    sides = int(brain[0].sum() + brain[-1].sum()) * sagittal
    sides += int(brain[:, 0].sum() + brain[:, -1].sum()) * coronal
    below, _ = _gaps(view.mask("cortex", "cerebellum"))
    _, above = _gaps(brain)
    return {
        "brain_cut_top": int(brain[..., -1].sum()) * axial * known,
        "brain_cut_bottom": int(brain[..., 0].sum()) * axial * known,
        "brain_cut_sides": sides * known,
        "head_cut_top": int((view.labels[..., -1] > 0).sum()) * axial,
        "above_brain": above * z,
        "below_brain": below * z,
    }


def _gaps(mask: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Return the slices below and above `mask` (I, J, K) along K; NaN if it is empty."""
    sections = mask.sum(axis=(0, 1))
    seen = np.flatnonzero(sections > sections.max() * _THIN_END)
    if not seen.size:
        return math.nan, math.nan
    return float(seen[0]), float(len(sections) - 1 - seen[-1])


def _pose_metrics(view: _View) -> dict[str, float]:
    return {"orientation": _orientation(view), "left_right_dice": _left_right_dice(view)}


def _orientation(view: _View) -> float:
    centres = []
    for role in ("cortex", "cerebellum"):
        voxels = np.argwhere(view.mask(role)[::2, ::2, ::2])
        if not len(voxels):
            return math.nan
        centres.append(view.affine[:3, :3] @ (2 * voxels.mean(axis=0)))
    direction = centres[0] - centres[1]
    length = float(np.linalg.norm(direction))
    if not length:
        return math.nan
    cosine = float(direction @ [0, 1, 1]) / (length * math.sqrt(2))
    return math.degrees(math.acos(min(max(cosine, -1.0), 1.0)))


def _left_right_dice(view: _View) -> float:
    brain = view.of(view.table.brain)
    step = [max(round(2 / size), 1) for size in view.size]
    brain = brain[:: step[0], :: step[1], :: step[2]]
    sections = brain.sum(axis=(1, 2))
    if not sections.any():
        return math.nan
    middle = round(2 * float(sections @ np.arange(len(sections))) / float(sections.sum()))
    partner = middle - np.arange(len(sections))
    paired = (partner >= 0) & (partner < len(sections))
    both = int((brain[paired] & brain[partner[paired]]).sum())
    return both / int(brain.sum())


def _piece_metrics(view: _View) -> dict[str, float]:
    """Count bodies and the pieces of each class."""
    step = [max(round(2 / size), 1) for size in view.size]
    body = (view.labels > 0)[:: step[0], :: step[1], :: step[2]]
    bodies = int((_pieces(body) * view.voxel_ml * math.prod(step) >= BODY_ML).sum())
    boxes = ndimage.find_objects(view.labels, max_label=255)
    stray = total = 0
    islands = {}
    for label in view.whole(*SOLID):
        box = boxes[label.index - 1]
        own = _pieces(view.labels[box] == label.index) if box else np.zeros(0, np.int64)
        islands[f"islands_{label.name}"] = float(len(own))
        stray += int(own[2 if label.role == PAIRED else 1 :].sum())
        total += int(own.sum())
    return {"bodies": float(bodies), "stray_share": _ratio(stray, total, 100), **islands}


def _pieces(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return the voxels of each connected piece (26 neighbours) of `mask`, the largest first."""
    components, _ = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    return np.sort(np.bincount(components.ravel())[1:])[::-1]


def _intensity_metrics(view: _View) -> dict[str, float]:
    tissues = {"GM": "cortex", "WM": "white_matter", "CSF": "ventricles"}
    signal = {name: _mean_and_std(view.image[view.mask(role)]) for name, role in tissues.items()}
    _, air = _mean_and_std(view.image[view.labels == 0])
    noise = 0.0 if math.isnan(air) else air

    def snr(name: str) -> float:
        return _ratio(*signal[name])

    def cnr(one: str, other: str) -> float:
        (mean, std), (mean2, std2) = signal[one], signal[other]
        return _ratio(abs(mean - mean2), math.sqrt(noise**2 + std**2 + std2**2))

    (gm, gm_std), (wm, wm_std) = signal["GM"], signal["WM"]
    return {
        "snr_GM": snr("GM"),
        "snr_WM": snr("WM"),
        "snr_CSF": snr("CSF"),
        "cnr_GM_WM": cnr("GM", "WM"),
        "cnr_WM_CSF": cnr("WM", "CSF"),
        "cjv": _ratio(gm_std + wm_std, abs(gm - wm)),
        "fber": _ratio(_energy(view.image[view.labels > 0]), _energy(view.image[view.labels == 0])),
    }


def _artefact_metrics(view: _View) -> dict[str, float]:
    brain = view.of(view.table.brain)
    x, y, z = smoothness(view.image, brain)
    return {
        "efc": entropy_focus(view.image),
        "fwhm_avg": (x + y + z) / 3,
        "fwhm_x": x,
        "fwhm_y": y,
        "fwhm_z": z,
        "inu_WM": nonuniformity(view.image, view.mask("white_matter"), view.size),
        "clipped": clipped_share(view.image, brain),
        "spikes": hot_voxels(view.image),
    }


def _energy(values: npt.NDArray[np.float32]) -> float:
    """Return the mean square; NaN for no values."""
    return float(np.square(values, dtype=np.float64).mean()) if values.size else math.nan


def _mean_and_std(values: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Return mean and sample standard deviation (n - 1); NaN for fewer than two values."""
    if values.size < 2:
        return math.nan, math.nan
    return float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64, ddof=1))


def _certainty_metrics(
    view: _View, confidence: Mapping[str, float], entropy: float | None
) -> dict[str, float]:
    inside = [label for label in view.table.intracranial if label.name in confidence]
    weights = [int(view.counts[label.index]) for label in inside]
    weighted = sum(
        confidence[label.name] * weight for label, weight in zip(inside, weights, strict=True)
    )
    each = {
        f"confidence_{label.name}": confidence.get(label.name, math.nan)
        for label in view.table.foreground
        if confidence
    }
    return {
        "confidence": _ratio(weighted, sum(weights)),
        "entropy": math.nan if entropy is None else entropy,
        **each,
    }
