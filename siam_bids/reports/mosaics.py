"""Pictures of scans and segmentations: mosaics for people, sheets and thumbnails for pages."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from siam_bids.image.grid import Reorientation, Segmentation, Volume
from siam_bids.image.labels import BRAIN, INTRACRANIAL, Label, LabelTable

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageFont import FreeTypeFont


MOSAIC_WIDTH = 1600
SLICES_PER_PLANE = 7
THUMBNAIL_EDGE = 240
MARGIN_MM = 25.0
"""How much is shown around the brain: skull and scalp, but little of face and neck."""
THUMBNAIL_MARGIN_MM = 12.0
PIXELS_PER_VOXEL = 2
"""Pixels of a sheet per voxel, along the finest axis shown."""
WIDEST_CELL = 1000
"""Pixels of a slice on a sheet, whatever the voxel size."""
OVERLAY_ALPHA = 0.45
_CELL = MOSAIC_WIDTH // SLICES_PER_PLANE
_LETTERS = 0.065
"""Size of letters on a slice, in widths of a slice."""
_LEGEND_COLUMNS = 9
_LEGEND_ROW = 30
_INK = 210


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


def cut(
    volume: Volume, segmentation: Segmentation, count: int, *, margin_mm: float = MARGIN_MM
) -> Views:
    """Cut `count` slices per plane, evenly through the brain, with a margin around it.

    Voxels are shown along the scan's own axes, turned to the nearest RAS+ order.
    """
    turn = Reorientation.to_ras(volume.grid)
    grid = turn.target
    brain = turn.apply(_landmark(segmentation))
    inside = [_extent(brain, axis) for axis in range(3)]
    margins = [round(margin_mm / size) for size in grid.voxel_size]
    first = [max(start - margin, 0) for (start, _), margin in zip(inside, margins, strict=True)]
    last = [stop + margin for (_, stop), margin in zip(inside, margins, strict=True)]
    field = tuple(slice(*ends) for ends in zip(first, last, strict=True))
    grey = to_grey(turn.apply(volume.data)[field], window(volume, segmentation))
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


def window(volume: Volume, segmentation: Segmentation) -> tuple[float, float]:
    """Return the intensities that are shown black and white: the scale is that of the brain.

    White is a tenth above the range of what lies inside the skull (percentiles 1 to 99.5), black a
    whole range below it, but not below percentile 0.5 of all non-zero voxels: air is black in MRI,
    and CT gets a brain window.
    """
    signal = volume.data[volume.data != 0]
    inside = [label.index for label in segmentation.labels.of_role(*INTRACRANIAL)]
    brain = volume.data[np.isin(segmentation.data, inside)]
    if not signal.size:
        return 0.0, 2.0
    darkest = float(np.percentile(signal, 0.5))
    least, most = np.percentile(brain if brain.size else signal, [1, 99.5])
    low, high = max(darkest, float(2 * least - most)), float(most + (most - least) / 10)
    return (low, high) if high > low else (0.0, 2 * float(np.abs(volume.data).max()))


def to_grey(image: npt.NDArray[np.float32], ends: tuple[float, float]) -> npt.NDArray[np.float32]:
    """Map intensities (I, J, K) to 0 (black) to 1 (white); `ends` as `window` returns them."""
    low, high = ends
    return np.asarray(np.clip((image - low) / (high - low), 0, 1), dtype=np.float32)


def draw(volume: Volume, segmentation: Segmentation) -> dict[str, bytes]:
    """Draw all pictures of a scan, see `mosaic`, `sheet` and `thumbnail`."""
    table = segmentation.labels
    views = cut(volume, segmentation, SLICES_PER_PLANE)
    slices, tissues, contours = sheet(views, table)
    middle = cut(volume, segmentation, 1, margin_mm=THUMBNAIL_MARGIN_MM)
    small, outline = thumbnail(middle, table)
    return {
        "mosaic": mosaic(views, table),
        "slices": slices,
        "tissues": tissues,
        "contours": contours,
        "thumbnail": small,
        "outline": outline,
    }


def mosaic(views: Views, table: LabelTable) -> bytes:
    """Draw a PNG of three planes: a row of slices, below it the same slices with tissues.

    All slices have one scale; the patient's left is on the left (neurological display). Below them
    stand the names and colours of the tissues.
    """
    scale = _CELL / _widest(views)
    rows = _rows(views, scale)
    shown = np.unique(np.concatenate([labels.ravel() for _, labels in rows]))
    legend = [label for label in table.foreground if label.index in shown]
    colors = _lookup(table)
    pictures = np.concatenate([part for row in rows for part in _both(*row, colors)])
    pictures = np.pad(pictures, ((0, 0), (0, MOSAIC_WIDTH - pictures.shape[1]), (0, 0)))
    return _reduced(np.concatenate([pictures, _legend(legend, MOSAIC_WIDTH, scale)]))


def sheet(views: Views, table: LabelTable) -> tuple[bytes, bytes, bytes]:
    """Draw the slices of the mosaic in full detail, `PIXELS_PER_VOXEL` or as wide as a mosaic's.

    Returns
    -------
    slices, tissues, contours
        A WebP in grey, a PNG of label indices, and a PNG of the tissues' outlines in their colours,
        clear elsewhere. All have the same pixels, so that a page can lay one over the other.
    """
    finest = min(
        edge / count
        for _, slices in views
        for edge, count in zip(slices[0].size, slices[0].labels.shape[::-1], strict=True)
    )
    widest = _widest(views)
    scale = min(max(PIXELS_PER_VOXEL / finest, _CELL / widest), WIDEST_CELL / widest)
    rows = _rows(views, scale)
    grey = np.concatenate([grey for grey, _ in rows])
    labels = np.concatenate([labels for _, labels in rows])
    return (
        _encode(grey, "webp", quality=75, method=2),
        _encode(labels, "png"),
        _outlined(labels, table, "png"),
    )


def thumbnail(views: Views, table: LabelTable) -> tuple[bytes, bytes]:
    """Draw the middle slice of each plane as a small WebP, and the tissues' outlines as another.

    The outlines are clear elsewhere: a page lays them over the slices, or does not.
    """
    slices = [(plane, each[len(each) // 2]) for plane, each in views]
    scale = THUMBNAIL_EDGE / max(edge for _, shown in slices for edge in shown.size)
    cells = [
        _paste(plane, [shown], scale, width=THUMBNAIL_EDGE, height=THUMBNAIL_EDGE)
        for plane, shown in slices
    ]
    grey, labels = (np.concatenate(parts, axis=1) for parts in zip(*cells, strict=True))
    return (
        _encode(grey, "webp", quality=70, method=6),
        _outlined(labels, table, "webp", lossless=True, method=6),
    )


def _widest(views: Views) -> float:
    """Return the width of the widest slice in mm."""
    return max(slices[0].size[0] for _, slices in views)


def _rows(views: Views, scale: float) -> list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
    """Set the slices of each plane side by side, `scale` in pixels per mm, see `_paste`."""
    width = round(_widest(views) * scale)
    return [
        _paste(plane, slices, scale, width=width, height=max(1, round(slices[0].size[1] * scale)))
        for plane, slices in views
    ]


def _both(
    grey: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8], colors: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return a row (rows, columns, 3) in grey, and the same with its tissues in `colors`."""
    plain = np.repeat(grey[..., None], 3, axis=-1)
    tinted = np.round(OVERLAY_ALPHA * colors[labels][..., :3] + (1 - OVERLAY_ALPHA) * plain)
    return plain, np.where(labels[..., None] > 0, tinted, plain).astype(np.uint8)


def _paste(
    plane: Plane, slices: Sequence[Slice], pixels_per_mm: float, *, width: int, height: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Set slices side by side in cells of `width` x `height` pixels, upright, centred.

    Each has the names of its sides and its position; there is no label under these.

    Returns
    -------
    grey, labels
        (height, width x slices) uint8; labels are resampled to the nearest, grey cubically.
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
        grey[place] = np.asarray(picture.resize((w, h), Image.Resampling.BICUBIC))
        indices = Image.fromarray(np.ascontiguousarray(shown.labels[::-1]))
        labels[place] = np.asarray(indices.resize((w, h), Image.Resampling.NEAREST))
        cell = slice(column * width, (column + 1) * width)
        ink, edge = _letters(plane, shown, width, height)
        grey[:, cell] = np.where(edge > 0, ink, grey[:, cell])
        labels[:, cell][edge > 0] = 0
    return grey, labels


def _letters(
    plane: Plane, shown: Slice, width: int, height: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Write the sides and the position of a slice on black.

    Returns
    -------
    ink, edge
        (height, width) uint8: the letters, and where they and their black edge lie.
    """
    from PIL import Image, ImageDraw

    font = _font(max(round(_LETTERS * width), 9))
    gap = max(width // 50, 3)
    layers = [Image.new("L", (width, height)) for _ in range(2)]
    for layer, stroke in zip(layers, (0, max(width // 150, 1)), strict=True):
        pen = ImageDraw.Draw(layer)
        for where, anchor, text in (
            ((gap, height // 2), "lm", plane.left),
            ((width - gap, height // 2), "rm", plane.right),
            ((width - gap, gap), "rt", f"{plane.coordinate} = {round(shown.position)}"),
        ):
            pen.text(where, text, fill=_INK, font=font, anchor=anchor, stroke_width=stroke)
    ink, edge = (np.asarray(layer) for layer in layers)
    return ink, edge


@cache
def _font(size: int) -> FreeTypeFont:
    """Return matplotlib's own font: it is the same on every machine."""
    from PIL import ImageFont

    found = find_spec("matplotlib")  # its import would take a quarter of a second
    if not found or not found.origin:
        raise ModuleNotFoundError("matplotlib is not installed", name="matplotlib")
    font = Path(found.origin).with_name("mpl-data") / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(font), size)


def _outlined(labels: npt.NDArray[np.uint8], table: LabelTable, kind: str, **options: Any) -> bytes:
    """Encode the outlines of labels (rows, columns): a pixel inside each border."""
    padded = np.pad(labels, 1, mode="edge")
    rows, columns = labels.shape
    edge = np.zeros(labels.shape, dtype=bool)
    for down, right in ((0, 1), (2, 1), (1, 0), (1, 2)):
        edge |= padded[down : down + rows, right : right + columns] != labels
    outlines = np.where(edge, labels, 0).astype(np.uint8)
    if kind != "png":
        return _encode(_lookup(table)[outlines], kind, **options)
    from PIL import Image

    picture = Image.fromarray(outlines).convert("P")
    picture.putpalette(_lookup(table)[:, :3].tobytes())
    return _saved(picture, kind, transparency=0, **options)


def _encode(pixels: npt.NDArray[np.uint8], kind: str, **options: Any) -> bytes:
    from PIL import Image

    return _saved(Image.fromarray(pixels), kind, **options)


def _saved(picture: Picture, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def _reduced(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return (rows, columns, 3) as PNG bytes in 256 colours, which are a third of the full size."""
    from PIL import Image

    reduced = Image.fromarray(pixels).quantize(
        256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
    )
    return _saved(reduced, "png")


def _lookup(labels: LabelTable) -> npt.NDArray[np.uint8]:
    """Return (256, 4) uint8 RGBA per label index; background is clear."""
    table = np.zeros((256, 4), dtype=np.uint8)
    for label in labels.foreground:
        table[label.index] = (*label.rgb, 255)
    return table


def _legend(labels: Sequence[Label], width: int, pixels_per_mm: float) -> npt.NDArray[np.uint8]:
    """Draw swatches with names, the scale and the convention of sides: (rows, `width`, 3) uint8."""
    from PIL import Image, ImageDraw

    rows = math.ceil(len(labels) / _LEGEND_COLUMNS) + 2
    picture = Image.new("RGB", (width, rows * _LEGEND_ROW))
    pen = ImageDraw.Draw(picture)
    ink = (_INK, _INK, _INK)
    step = width / _LEGEND_COLUMNS
    for number, label in enumerate(labels):
        row, column = divmod(number, _LEGEND_COLUMNS)
        x, y = round(12 + column * step), round((row + 0.8) * _LEGEND_ROW)
        pen.rectangle((x, y - 8, x + 15, y + 7), fill=label.color)
        pen.text((x + 24, y), label.name, fill=ink, font=_font(15), anchor="lm")
    foot = round((rows - 0.5) * _LEGEND_ROW)
    end = round(12 + 50 * pixels_per_mm)
    pen.rectangle((12, foot - 1, end, foot), fill=ink)
    pen.text((end + 8, foot), "50 mm", fill=ink, font=_font(13), anchor="lm")
    side = "Neurological display: the left of the picture is the left of the head."
    words = f"{side} Positions in scanner RAS mm."
    pen.text((width - 12, foot), words, fill=ink, font=_font(13), anchor="rm")
    return np.asarray(picture)
