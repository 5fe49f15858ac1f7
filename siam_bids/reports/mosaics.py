"""Pictures of scans and segmentations: mosaics for people, sheets and thumbnails for pages."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from siam_bids.image.grid import Reorientation, Segmentation, Volume
from siam_bids.image.labels import BRAIN, Label, LabelTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


MOSAIC_WIDTH = 1600
SLICES_PER_PLANE = 7
THUMBNAIL_EDGE = 160
MARGIN_MM = 25.0
"""How much is shown around the brain: skull and scalp, but little of face and neck."""
OVERLAY_ALPHA = 0.45
_CELL = MOSAIC_WIDTH // SLICES_PER_PLANE
_DPI = 100
_LEGEND_COLUMNS = 9
_LEGEND_ROW = 30
_INK = "#c8ccd2"


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


Views = Sequence[tuple[Plane, list[Slice]]]
"""Slices of each plane, as many of each."""


def cut(volume: Volume, segmentation: Segmentation, count: int) -> Views:
    """Cut `count` slices per plane, evenly through the brain.

    Voxels are shown along the scan's own axes, turned to the nearest RAS+ order.
    """
    turn = Reorientation.to_ras(volume.grid)
    grid = turn.target
    brain = turn.apply(_landmark(segmentation))
    inside = [_extent(brain, axis) for axis in range(3)]
    margins = [round(MARGIN_MM / size) for size in grid.voxel_size]
    first = [max(start - margin, 0) for (start, _), margin in zip(inside, margins, strict=True)]
    last = [stop + margin for (_, stop), margin in zip(inside, margins, strict=True)]
    field = tuple(slice(*ends) for ends in zip(first, last, strict=True))
    grey = to_grey(turn.apply(volume.data)[field])
    labels = turn.apply(segmentation.data)[field]
    extent = np.multiply(grey.shape, grid.voxel_size)

    def slice_at(plane: Plane, index: int) -> Slice:
        across = plane.axis
        centre = np.add(first, np.subtract(grey.shape, 1) / 2)
        centre[across] = index
        width, height = np.delete(extent, across)
        return Slice(
            grey=np.moveaxis(grey, across, 0)[index - first[across]].T,
            labels=np.moveaxis(labels, across, 0)[index - first[across]].T,
            size=(float(width), float(height)),
            position=float((grid.affine @ [*centre, 1])[across]),
        )

    steps = (np.arange(count) + 0.5) / count
    views = []
    for plane in PLANES:
        start, stop = inside[plane.axis]
        views.append((plane, [slice_at(plane, start + int(s * (stop - start))) for s in steps]))
    return views


def _landmark(segmentation: Segmentation) -> npt.NDArray[np.bool_]:
    """Return (I, J, K) bool: the brain, else all that is labelled, else all."""
    brain = [label.index for label in segmentation.labels.of_role(*BRAIN)]
    for mask in (np.isin(segmentation.data, brain), segmentation.data > 0):
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


def to_grey(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Map intensities (I, J, K) to 0..1 between the percentiles 0.5 and 99.5 of the signal."""
    signal = image[image != 0]
    low, high = np.percentile(signal, [0.5, 99.5]) if signal.size else (0.0, 0.0)
    if high <= low:
        low, high = 0.0, 2 * float(np.abs(image).max()) or 1.0
    return np.asarray(np.clip((image - low) / (high - low), 0, 1), dtype=np.float32)


def draw(volume: Volume, segmentation: Segmentation) -> dict[str, bytes]:
    """Draw all pictures of a scan: mosaic, slices and tissues, thumbnail and outline."""
    views = cut(volume, segmentation, SLICES_PER_PLANE)
    table = segmentation.labels
    slices, tissues = sheet(views)
    small, outline = thumbnail(views, table)
    return {
        "mosaic": mosaic(views, table),
        "slices": slices,
        "tissues": tissues,
        "thumbnail": small,
        "outline": outline,
    }


def mosaic(views: Views, table: LabelTable) -> bytes:
    """Draw a PNG of three planes: a row of slices, below it the same slices with tissues.

    All slices have one scale; the patient's left is on the left (neurological display).
    """
    rows = _rows(views)
    shown = np.unique(np.concatenate([labels.ravel() for _, labels in rows]))
    legend = [label for label in table.foreground if label.index in shown]
    foot = _LEGEND_ROW * (2 + math.ceil(len(legend) / _LEGEND_COLUMNS))
    colors = _lookup(table)
    picture = np.concatenate([part for row in rows for part in _both(*row, colors)])
    figure = _figure(MOSAIC_WIDTH, len(picture) + foot)
    figure.figimage(picture, 0, foot, origin="upper")
    top = figure.bbox.height
    for (plane, slices), (grey, _) in zip(views, rows, strict=True):
        height = len(grey)
        _write(figure, 5, top - 12, plane.name, weight="bold")
        for column, each in enumerate(slices):
            left, right = column * _CELL, (column + 1) * _CELL
            _write(figure, left + 5, top - height / 2, plane.left)
            _write(figure, right - 5, top - height / 2, plane.right, ha="right")
            position = f"{plane.coordinate} = {round(each.position)}"
            _write(figure, right - 5, top - 12, position, ha="right")
        top -= 2 * height
    _legend(figure, legend, top, _scale(views))
    return _png(figure)


def sheet(views: Views) -> tuple[bytes, bytes]:
    """Draw the slices of the mosaic once as a WebP in grey, once as a PNG of label indices.

    Both have the same pixels, so that a page can lay any choice of tissues over the slices.
    """
    rows = _rows(views)
    grey = np.concatenate([grey for grey, _ in rows])
    labels = np.concatenate([labels for _, labels in rows])
    return _encode(grey, "webp", quality=75), _encode(labels, "png", optimize=True)


def thumbnail(views: Views, table: LabelTable) -> tuple[bytes, bytes]:
    """Draw the middle slice of each plane as a small WebP, and the tissues' outlines as another.

    The outlines are clear elsewhere: a page lays them over the slices, or does not.
    """
    slices = [each[len(each) // 2] for _, each in views]
    scale = THUMBNAIL_EDGE / max(edge for shown in slices for edge in shown.size)
    grey, labels = _paste(slices, scale, width=THUMBNAIL_EDGE, height=THUMBNAIL_EDGE)
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:-1] |= labels[:-1] != labels[1:]
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    outlines = _lookup(table)[np.where(edge, labels, 0)]
    return (
        _encode(grey, "webp", quality=70, method=6),
        _encode(outlines, "webp", lossless=True, method=6),
    )


def _scale(views: Views) -> float:
    """Return the pixels per mm at which the widest slice fills a cell."""
    return _CELL / max(slices[0].size[0] for _, slices in views)


def _rows(views: Views) -> list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
    """Set the slices of each plane side by side, all at one scale, see `_paste`."""
    scale = _scale(views)
    return [
        _paste(slices, scale, width=_CELL, height=max(1, round(slices[0].size[1] * scale)))
        for _, slices in views
    ]


def _both(
    grey: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8], colors: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return a row (rows, columns, 3) in grey, and the same with its tissues in `colors`."""
    plain = np.repeat(grey[..., None], 3, axis=-1)
    tinted = np.round(OVERLAY_ALPHA * colors[labels][..., :3] + (1 - OVERLAY_ALPHA) * plain)
    return plain, np.where(labels[..., None] > 0, tinted, plain).astype(np.uint8)


def _paste(
    slices: Sequence[Slice], pixels_per_mm: float, *, width: int, height: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Set slices side by side in cells of `width` x `height` pixels, upright, centred.

    Returns
    -------
    grey, labels
        (height, width x slices) uint8; labels are resampled to the nearest, grey linearly.
    """
    from PIL import Image

    grey = np.zeros((height, width * len(slices)), np.uint8)
    labels = np.zeros_like(grey)
    for column, shown in enumerate(slices):
        w, h = (max(round(edge * pixels_per_mm), 1) for edge in shown.size)
        w, h = min(w, width), min(h, height)
        top, left = (height - h) // 2, column * width + (width - w) // 2
        place = (slice(top, top + h), slice(left, left + w))
        picture = Image.fromarray(np.round(255 * shown.grey[::-1]).astype(np.uint8))
        grey[place] = np.asarray(picture.resize((w, h), Image.Resampling.BILINEAR))
        indices = Image.fromarray(np.ascontiguousarray(shown.labels[::-1]))
        labels[place] = np.asarray(indices.resize((w, h), Image.Resampling.NEAREST))
    return grey, labels


def _encode(pixels: npt.NDArray[np.uint8], kind: str, **options: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind, **options)
    return buffer.getvalue()


def _figure(width: float, height: float) -> Figure:
    """Return an empty black figure of `width` x `height` pixels, tied to no global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / _DPI, round(height) / _DPI), dpi=_DPI, facecolor="black")


def _png(figure: Figure) -> bytes:
    """Return the figure as PNG bytes in 256 colours, which are a third of the full size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    picture = Image.fromarray(pixels[..., :3])
    reduced = picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    reduced.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def _lookup(labels: LabelTable) -> npt.NDArray[np.uint8]:
    """Return (256, 4) uint8 RGBA per label index; background is clear."""
    table = np.zeros((256, 4), dtype=np.uint8)
    for label in labels.foreground:
        table[label.index] = (*label.rgb, 255)
    return table


def _write(figure: Figure, x: float, y: float, text: str, **style: Any) -> None:
    """Write `text`, edged in black, at pixel (x, y) counted from the lower left."""
    from matplotlib.patheffects import withStroke

    at = (x / figure.bbox.width, y / figure.bbox.height)
    usual = {"color": _INK, "fontsize": 9.0, "va": "center", "parse_math": False}
    words = figure.text(*at, text, **{**usual, **style})
    words.set_path_effects([withStroke(linewidth=2, foreground="black")])


def _legend(figure: Figure, labels: Sequence[Label], top: float, pixels_per_mm: float) -> None:
    """Draw swatches with names, the scale and the side convention below pixel row `top`."""
    from matplotlib.patches import Rectangle

    def block(x: float, y: float, width: float, height: float, color: str) -> None:
        figure.add_artist(Rectangle((x, y), width, height, facecolor=color, transform=None))

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
