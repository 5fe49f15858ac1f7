"""Pictures of segmentations, and the HTML pages that show them and the volumes measured.

Every page is one file: the stylesheet is inside it, pictures are named by relative paths, and
nothing is fetched from a network.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
import numpy.typing as npt

from siam_bids.labels import BRAIN_TISSUES, INTRACRANIAL_TISSUES, Label, LabelTable
from siam_bids.resources import resource
from siam_bids.volume import Grid, Reorientation, Segmentation, Volume

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure

Pairs = tuple[tuple[str, str], ...]
"""Ordered names and values, printed as they are."""

MOSAIC_WIDTH = 1600
SLICES_PER_PLANE = 7
THUMBNAIL_EDGE = 160
MARGIN_MM = 25.0
"""How much is shown around the brain: skull and scalp, but little of face and neck."""
OVERLAY_ALPHA = 0.45
_DPI = 100
_LEGEND_COLUMNS = 9
_LEGEND_ROW = 30
_INK = "#c8ccd2"
_FEWEST_FOR_QUARTILES = 5
_CONTRAST_COLORS = 6
"""Number of `.contrast-N` classes in templates/style.css."""


@dataclass(frozen=True, kw_only=True)
class TissueVolume:
    """One tissue of one scan; `volume_ml` in millilitres, `color` as `#rrggbb`."""

    index: int
    name: str
    long_name: str
    color: str
    voxels: int
    volume_ml: float


@dataclass(frozen=True, kw_only=True)
class ScanReport:
    """One scan on its subject's page.

    Attributes
    ----------
    name
        BIDS name without extension, for example `sub-01_ses-a_T1w`.
    suffix
        Contrast: T1w, FLAIR.
    session
        `ses-a`, empty where there is none.
    source
        Path of the scan within its BIDS dataset.
    figure, thumbnail
        Paths of the pictures relative to the page's folder, empty where there are none.
    volumes
        Tissues in the order of the label table.
    intracranial_ml
        Total intracranial volume in mL.
    facts
        Grid, model, run time and the like.
    error
        Why the scan failed, in one line. It then has neither pictures nor volumes.
    """

    name: str
    suffix: str
    session: str
    source: str
    figure: str
    thumbnail: str
    volumes: tuple[TissueVolume, ...]
    intracranial_ml: float | None
    facts: Pairs
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class SubjectReport:
    """One subject's page; `model`, `command` and `boilerplate` are plain text."""

    subject: str
    scans: tuple[ScanReport, ...]
    model: str
    software: Pairs
    command: str
    boilerplate: str


@dataclass(frozen=True, kw_only=True)
class GroupScan:
    """One scan on the group page.

    Attributes
    ----------
    subject, session, suffix, name
        As in `ScanReport`.
    report, thumbnail
        Paths of the subject's page and the picture relative to the group page, or empty.
    volumes
        Tissue name to mL.
    intracranial_ml
        Total intracranial volume in mL.
    """

    subject: str
    session: str
    suffix: str
    name: str
    report: str
    thumbnail: str
    volumes: Mapping[str, float]
    intracranial_ml: float


@dataclass(frozen=True, kw_only=True)
class GroupReport:
    """All scans of a dataset on one page; `missing` names subjects without results."""

    title: str
    scans: tuple[GroupScan, ...]
    labels: LabelTable
    model: str
    software: Pairs
    command: str
    boilerplate: str
    missing: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Plane:
    """A way to cut a head in RAS+ order; `left` and `right` name the sides of the picture."""

    name: str
    axis: int
    coordinate: str
    left: str
    right: str


PLANES = (
    Plane(name="axial", axis=2, coordinate="z", left="L", right="R"),
    Plane(name="coronal", axis=1, coordinate="y", left="L", right="R"),
    Plane(name="sagittal", axis=0, coordinate="x", left="P", right="A"),
)


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One cut as displayed: row 0 lowest, column 0 at the plane's `left` side.

    Attributes
    ----------
    grey
        (rows, columns) float32, 0 black to 1 white.
    labels
        (rows, columns) uint8 label indices.
    size
        Width and height in mm.
    position
        RAS+ coordinate of the cut's centre across the plane, in mm.
    """

    grey: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    size: tuple[float, float]
    position: float


def cut(
    volume: Volume, segmentation: Segmentation, count: int
) -> list[tuple[Plane, tuple[Slice, ...]]]:
    """Cut `count` slices per plane, evenly through the brain.

    Voxels are shown along the scan's own axes, turned to the nearest RAS+ order.
    """
    turn = Reorientation.to_ras(volume.grid)
    image, labels = turn.apply(volume.data), turn.apply(segmentation.data)
    grid = turn.target
    inside = [_extent(turn.apply(_landmark(segmentation)), axis) for axis in range(3)]
    margins = [round(MARGIN_MM / size) for size in grid.voxel_size]
    field = tuple(
        slice(max(start - margin, 0), stop + margin)
        for (start, stop), margin in zip(inside, margins, strict=True)
    )
    low, high = _window(image[field])
    grey = np.clip((image[field] - low) / (high - low), 0, 1, dtype=np.float32)
    shown = labels[field]
    views = []
    for plane in PLANES:
        start, stop = inside[plane.axis]
        steps = start + ((np.arange(count) + 0.5) * (stop - start) / count).astype(int)
        views.append((plane, tuple(_slice(grey, shown, field, grid, plane, k) for k in steps)))
    return views


def _landmark(segmentation: Segmentation) -> npt.NDArray[np.bool_]:
    """Return (I, J, K) bool: the brain, else all that is labelled, else all."""
    for mask in (segmentation.mask(BRAIN_TISSUES), segmentation.data > 0):
        if mask.any():
            return mask
    return np.ones_like(segmentation.data, dtype=bool)


def _extent(mask: npt.NDArray[np.bool_], axis: int) -> tuple[int, int]:
    """Return first and last + 1 index of `mask` along `axis`; thin ends do not count.

    A twentieth of the largest cross-section leaves out stray voxels and the spinal cord.
    """
    counts = mask.sum(axis=tuple({0, 1, 2} - {axis}))
    covered = np.flatnonzero(counts > counts.max() / 20)
    return int(covered[0]), int(covered[-1]) + 1


def _window(image: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Return the intensities shown as black and as white."""
    signal = image[image != 0]
    if not signal.size:
        return 0.0, 1.0
    low, high = np.percentile(signal, [0.5, 99.5])
    return (float(low), float(high)) if high > low else (min(0.0, float(low)), float(high) + 1.0)


def _slice(
    grey: npt.NDArray[np.float32],
    labels: npt.NDArray[np.uint8],
    field: tuple[slice, ...],
    grid: Grid,
    plane: Plane,
    index: int,
) -> Slice:
    """Take slice `index` of `grid` from `grey` and `labels`, both (I, J, K) within `field`."""
    within = index - field[plane.axis].start
    width, height = (axis for axis in range(3) if axis != plane.axis)
    centre = [(part.start + part.stop - 1) / 2 for part in field]
    centre[plane.axis] = index
    return Slice(
        grey=grey.take(within, axis=plane.axis).T,
        labels=labels.take(within, axis=plane.axis).T,
        size=(
            grey.shape[width] * grid.voxel_size[width],
            grey.shape[height] * grid.voxel_size[height],
        ),
        position=float(nib.affines.apply_affine(grid.affine, centre)[plane.axis]),
    )


def mosaic(volume: Volume, segmentation: Segmentation) -> bytes:
    """Draw a PNG of three planes: a row of slices, below it the same slices with tissues.

    All slices have one scale; the patient's left is on the left (neurological display).
    """
    views = cut(volume, segmentation, SLICES_PER_PLANE)
    cell = MOSAIC_WIDTH / SLICES_PER_PLANE
    pixels_per_mm = cell / max(slices[0].size[0] for _, slices in views)
    present = np.unique(segmentation.data)
    legend = [label for label in segmentation.labels.foreground if label.index in present]
    legend_height = _LEGEND_ROW * (2 - -len(legend) // _LEGEND_COLUMNS)
    heights = [slices[0].size[1] * pixels_per_mm for _, slices in views]
    figure = _figure(MOSAIC_WIDTH, 2 * sum(heights) + legend_height)
    top = figure.bbox.height
    for (plane, slices), height in zip(views, heights, strict=True):
        for column, shown in enumerate(slices):
            corner = (column + 0.5) * cell - shown.size[0] * pixels_per_mm / 2
            _show(figure, shown, None, (corner, top - height), pixels_per_mm)
            _show(figure, shown, segmentation.labels, (corner, top - 2 * height), pixels_per_mm)
            _annotate(figure, plane, shown, column * cell, top, height)
        top -= 2 * height
    _legend(figure, legend, top, pixels_per_mm)
    return _png(figure)


def thumbnail(volume: Volume, segmentation: Segmentation) -> bytes:
    """Draw a small PNG: the middle slice of each plane side by side, with tissues."""
    views = cut(volume, segmentation, 1)
    scale = THUMBNAIL_EDGE / max(edge for _, (shown,) in views for edge in shown.size)
    figure = _figure(3 * THUMBNAIL_EDGE, THUMBNAIL_EDGE)
    for column, (_, (shown,)) in enumerate(views):
        left = (column + 0.5) * THUMBNAIL_EDGE - shown.size[0] * scale / 2
        bottom = (THUMBNAIL_EDGE - shown.size[1] * scale) / 2
        _show(figure, shown, segmentation.labels, (left, bottom), scale)
    return _png(figure)


def _figure(width: float, height: float) -> Figure:
    """Return an empty black figure of `width` x `height` pixels, tied to no global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / _DPI, round(height) / _DPI), dpi=_DPI, facecolor="black")


def _png(figure: Figure) -> bytes:
    """Return the figure as PNG bytes in 256 colours, which are a third of the full size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    reduced = picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    reduced.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def _show(
    figure: Figure,
    shown: Slice,
    labels: LabelTable | None,
    corner: tuple[float, float],
    pixels_per_mm: float,
) -> None:
    """Draw a slice with its lower left at `corner` in pixels, under tissues if `labels`."""
    width, height = figure.bbox.width, figure.bbox.height
    size = [edge * pixels_per_mm for edge in shown.size]
    box = (corner[0] / width, corner[1] / height, size[0] / width, size[1] / height)
    axes = figure.add_axes(box)
    axes.set_axis_off()
    axes.imshow(shown.grey, cmap="gray", vmin=0, vmax=1, origin="lower", aspect="auto")
    if labels:
        tissues = _lookup(labels)[shown.labels]
        axes.imshow(tissues, origin="lower", aspect="auto", interpolation="nearest")


def _lookup(labels: LabelTable) -> npt.NDArray[np.uint8]:
    """Return (256, 4) uint8 RGBA per label index; background is clear."""
    table = np.zeros((256, 4), dtype=np.uint8)
    for label in labels.foreground:
        table[label.index] = (*bytes.fromhex(label.color[1:]), round(OVERLAY_ALPHA * 255))
    return table


def _write(figure: Figure, x: float, y: float, text: str, **style: str | float) -> None:
    """Write `text` at pixel (x, y) counted from the lower left."""
    at = (x / figure.bbox.width, y / figure.bbox.height)
    figure.text(*at, text, **{"color": _INK, "fontsize": 9.0, "va": "center", **style})


def _annotate(
    figure: Figure, plane: Plane, shown: Slice, left: float, top: float, height: float
) -> None:
    """Write sides and position on the slice whose cell begins at pixel (left, top)."""
    right = left + MOSAIC_WIDTH / SLICES_PER_PLANE
    _write(figure, left + 5, top - height / 2, plane.left)
    _write(figure, right - 5, top - height / 2, plane.right, ha="right")
    position = f"{plane.coordinate} = {round(shown.position)}"
    _write(figure, right - 5, top - 12, position, ha="right", fontsize=8.0)
    if left == 0:
        _write(figure, 5, top - 12, plane.name, weight="bold")


def _legend(figure: Figure, labels: Sequence[Label], top: float, pixels_per_mm: float) -> None:
    """Draw swatches with names, the scale and the side convention below pixel row `top`."""
    from matplotlib.patches import Rectangle

    def block(x: float, y: float, width: float, height: float, color: str) -> None:
        patch = Rectangle((x, y), width, height, facecolor=color, transform=None)
        figure.add_artist(patch)

    step = MOSAIC_WIDTH / _LEGEND_COLUMNS
    for number, label in enumerate(labels):
        row, column = divmod(number, _LEGEND_COLUMNS)
        x, y = 12 + column * step, top - (row + 0.8) * _LEGEND_ROW
        block(x, y - 8, 16, 16, label.color)
        _write(figure, x + 24, y, label.name, fontsize=11.0)
    foot = _LEGEND_ROW / 2
    block(12, foot - 1, 50 * pixels_per_mm, 2, _INK)
    _write(figure, 20 + 50 * pixels_per_mm, foot, "50 mm")
    side = "Neurological display: the left of the picture is the left of the head."
    _write(figure, MOSAIC_WIDTH - 12, foot, f"{side} Positions in scanner RAS mm.", ha="right")


@dataclass(frozen=True, kw_only=True)
class _Box:
    """Quartiles and whiskers (Tukey's 1.5 interquartile ranges) of one contrast."""

    low: float
    quartile1: float
    median: float
    quartile3: float
    high: float


@dataclass(frozen=True, kw_only=True)
class _Point:
    scan: GroupScan
    value: float
    contrast: int
    rank: int
    outlier: bool


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """The distribution of one tissue: ticks in mL, a box and points per contrast."""

    name: str
    long_name: str
    ticks: tuple[float, ...]
    boxes: tuple[_Box | None, ...]
    points: tuple[_Point, ...]


def _box(values: npt.NDArray[np.float64]) -> _Box | None:
    """Summarise `values` (scans,) in mL; None for too few to have quartiles."""
    if values.size < _FEWEST_FOR_QUARTILES:
        return None
    quartile1, median, quartile3 = (float(q) for q in np.percentile(values, [25, 50, 75]))
    reach = 1.5 * (quartile3 - quartile1)
    usual = values[(values >= quartile1 - reach) & (values <= quartile3 + reach)]
    low, high = float(usual.min()), float(usual.max())
    return _Box(low=low, quartile1=quartile1, median=median, quartile3=quartile3, high=high)


def _panel(
    name: str, long_name: str, values: Sequence[tuple[GroupScan, float]], contrasts: Sequence[str]
) -> _Panel:
    """Arrange one tissue's volumes (mL, one per scan that has it) by contrast."""
    from matplotlib.ticker import MaxNLocator

    boxes, points = [], []
    for contrast, suffix in enumerate(contrasts):
        own = [(scan, value) for scan, value in values if scan.suffix == suffix]
        box = _box(np.array([value for _, value in own]))
        boxes.append(box)
        points += [
            _Point(
                scan=scan,
                value=value,
                contrast=contrast,
                rank=rank,
                outlier=box is not None and not box.low <= value <= box.high,
            )
            for rank, (scan, value) in enumerate(own)
        ]
    numbers = [value for _, value in values]
    ticks = tuple(MaxNLocator(nbins=4).tick_values(min(numbers), max(numbers)).tolist())
    return _Panel(
        name=name, long_name=long_name, ticks=ticks, boxes=tuple(boxes), points=tuple(points)
    )


def _panels(report: GroupReport, contrasts: Sequence[str]) -> list[_Panel]:
    """Return the panel of the intracranial volume and one for each tissue measured."""
    total = [(scan, scan.intracranial_ml) for scan in report.scans]
    panels = [_panel("TIV", "Total intracranial volume", total, contrasts)] if total else []
    for label in report.labels.foreground:
        values = [(s, s.volumes[label.name]) for s in report.scans if label.name in s.volumes]
        if values:
            panels.append(_panel(label.name, label.long_name, values, contrasts))
    return panels


def _anchor(name: str) -> str:
    """Return `name` as an HTML id."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", name)


@lru_cache(maxsize=1)
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(resource("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["ml"] = "{:,.2f}".format
    environment.filters["anchor"] = _anchor
    environment.globals["intracranial"] = INTRACRANIAL_TISSUES
    return environment


def render_subject(report: SubjectReport) -> str:
    """Return the HTML page of one subject."""
    return _templates().get_template("subject.html.jinja").render(report=report)


def render_group(report: GroupReport) -> str:
    """Return the HTML page of all scans."""
    contrasts = sorted({scan.suffix for scan in report.scans})
    panels = _panels(report, contrasts)
    return (
        _templates()
        .get_template("group.html.jinja")
        .render(
            report=report,
            contrasts=contrasts,
            panels=panels,
            colors=_CONTRAST_COLORS,
            outliers=[(panel, point) for panel in panels for point in panel.points if point.outlier],
        )
    )
