"""Pictures show the right voxels in the right colours, whatever the orientation of the scan."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import pairwise

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from siam_bids.image.grid import Grid, Segmentation, Volume
from siam_bids.image.labels import siam_labels
from siam_bids.reports.mosaics import (
    PLANES,
    SLICES_PER_PLANE,
    cut,
    draw,
    mosaic,
    sheet,
    thumbnail,
    window,
)


def head(*, grey: float | None = None) -> tuple[Volume, Segmentation]:
    """Return a 4 mm RAS head of nested boxes: Head, Skull, GM and, on the left only, WM."""
    labels = np.zeros((48, 60, 54), np.uint8)
    labels[4:-4, 4:-4, 4:-4] = 16
    labels[6:-6, 6:-6, 6:-6] = 15
    labels[9:-9, 9:-9, 9:-9] = 1
    labels[12:24, 14:-14, 14:-14] = 2
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = [-94, -118, -106]
    grid = Grid(labels.shape, affine)
    noise = np.random.default_rng(0).uniform(1, 9, labels.shape)
    data = noise + 20 * labels if grey is None else np.full(labels.shape, grey)
    return Volume(data.astype(np.float32), grid), Segmentation(labels, grid, siam_labels())


def views(volume: Volume, segmentation: Segmentation):
    return cut(volume, segmentation, SLICES_PER_PLANE)


def turned(volume: Volume, segmentation: Segmentation, axcodes: str):
    """Return the same anatomy with its axes stored as `axcodes`."""
    here = nib.io_orientation(volume.grid.affine)
    turn = nib.orientations.ornt_transform(here, nib.orientations.axcodes2ornt(axcodes))
    data = nib.apply_orientation(volume.data, turn)
    labels = nib.apply_orientation(segmentation.data, turn)
    affine = volume.grid.affine @ nib.orientations.inv_ornt_aff(turn, volume.grid.shape)
    grid = Grid(data.shape, affine)
    assert grid.axcodes == axcodes
    return Volume(data, grid), Segmentation(labels, grid, segmentation.labels)


def pixels(png: bytes) -> np.ndarray:
    """Return (rows, columns, 3) int from PNG bytes."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def indices(png: bytes) -> np.ndarray:
    """Return (rows, columns) label indices from PNG bytes."""
    return np.asarray(Image.open(io.BytesIO(png)))


def near(picture: np.ndarray, color: np.ndarray) -> np.ndarray:
    """Return (rows, columns) bool, True where a pixel is within 3 of `color` in each channel."""
    return (abs(picture - color) <= 3).all(axis=-1)


def blend(name: str, grey: int) -> np.ndarray:
    """Return the RGB of a tissue's overlay on `grey`."""
    color = np.array([*bytes.fromhex(siam_labels().by_name[name].color[1:])])
    return 0.45 * color + 0.55 * grey


# Slices


@pytest.mark.parametrize("axcodes", ["LIA", "LPS", "PIR", "ASL"])
def test_any_orientation_shows_the_same_slices(axcodes):
    expected = cut(*head(), 5)
    for (plane, slices), (_, twins) in zip(
        expected, cut(*turned(*head(), axcodes), 5), strict=True
    ):
        for shown, twin in zip(slices, twins, strict=True):
            np.testing.assert_array_equal(twin.labels, shown.labels, err_msg=plane.name)
            np.testing.assert_allclose(twin.grey, shown.grey, atol=1e-6)
            assert twin.size == pytest.approx(shown.size)
            assert twin.position == pytest.approx(shown.position)


def test_oblique_scan_is_shown_along_its_own_axes():
    volume, segmentation = head()
    tilt = nib.affines.from_matvec(nib.eulerangles.euler2mat(z=0.2, y=0.1, x=0.15))
    grid = Grid(volume.grid.shape, tilt @ volume.grid.affine)
    oblique = cut(Volume(volume.data, grid), replace(segmentation, grid=grid), 3)
    for (_, slices), (_, twins) in zip(cut(volume, segmentation, 3), oblique, strict=True):
        for shown, twin in zip(slices, twins, strict=True):
            np.testing.assert_array_equal(twin.labels, shown.labels)
            assert twin.size == pytest.approx(shown.size)


def test_thick_slices_keep_their_size_in_mm():
    volume, segmentation = head()
    grid = Grid((48, 60, 27), volume.grid.affine @ np.diag([1, 1, 2, 1]))
    thick = cut(
        Volume(volume.data[..., ::2], grid),
        Segmentation(segmentation.data[..., ::2], grid, segmentation.labels),
        3,
    )
    for (_, fine), (plane, coarse) in zip(cut(volume, segmentation, 3), thick, strict=True):
        assert coarse[1].size == pytest.approx(fine[1].size, abs=8)
        assert coarse[1].position == pytest.approx(fine[1].position, abs=8)
        if plane.name != "axial":
            assert coarse[1].grey.shape[0] == pytest.approx(fine[1].grey.shape[0] / 2, abs=1)


def test_patients_left_is_on_the_left_of_the_picture():
    shown = {plane.name: slices for plane, slices in cut(*head(), 1)}
    for name in ("axial", "coronal"):
        columns = np.flatnonzero((shown[name][0].labels == 2).any(axis=0))
        assert columns.max() < shown[name][0].labels.shape[1] / 2
    assert [(plane.left, plane.right) for plane in PLANES] == [
        ("L", "R"),
        ("L", "R"),
        ("P", "A"),
    ]


def test_slices_lie_inside_the_brain_at_their_scanner_coordinate():
    (_, axial), *_ = cut(*head(), 6)
    # GM spans slices 9 to 44; z = 4 k - 106.
    assert [shown.position for shown in axial] == [4 * k - 106 for k in (12, 18, 24, 30, 36, 42)]


def test_stray_voxels_and_empty_label_maps_are_shown():
    volume, segmentation = head()
    segmentation.data[0, 0, 0] = 1
    (_, (shown,)), *_ = cut(volume, segmentation, 1)
    assert shown.size == (4 * (30 + 12), 4 * (42 + 12))
    empty = replace(segmentation, data=np.zeros_like(segmentation.data))
    (_, (shown,)), *_ = cut(volume, empty, 1)
    assert shown.grey.shape == (60, 48)


# Pictures


def test_mosaic_shows_tissues_in_the_colours_of_the_label_table():
    png = mosaic(views(*head(grey=100)), siam_labels())
    picture = pixels(png)
    assert picture.shape[1] == 1600
    assert len(png) < 1_500_000
    for name in ("GM", "WM", "Skull", "Head"):
        assert near(picture, blend(name, 127)).sum() > 4000, name
        swatch = near(picture, np.array([*bytes.fromhex(siam_labels().by_name[name].color[1:])]))
        assert swatch.sum() >= 14 * 14, name
    assert near(picture, blend("Hippo", 127)).sum() == 0
    assert near(picture, np.array([127] * 3)).sum() > 100_000


def test_overlay_keeps_the_proportion_of_the_volumes():
    tissues = indices(sheet(views(*head()), siam_labels())[1])
    drawn = (tissues == 2).sum() / (tissues == 1).sum()
    cuts = [cut for _, slices in cut(*head(), 7) for cut in slices]
    expected = sum((c.labels == 2).sum() for c in cuts) / sum((c.labels == 1).sum() for c in cuts)
    assert drawn == pytest.approx(expected, rel=0.05)


def test_sheet_lays_labels_exactly_over_the_slices():
    volume, segmentation = head(grey=100)
    bright = Volume(np.where(segmentation.data == 2, 200, 100).astype(np.float32), volume.grid)
    slices, tissues, _ = sheet(views(bright, segmentation), siam_labels())
    grey, labels = pixels(slices)[..., 0], indices(tissues)
    assert grey.shape == labels.shape
    assert set(np.unique(labels)) == {0, 1, 2, 15, 16}
    inner = ndimage.binary_erosion(labels == 2, iterations=2)
    assert np.median(grey[inner]) > np.median(grey[labels == 1]) + 50


def enlarged(times: tuple[int, int, int], voxel_mm: float):
    """Return the head with each voxel as a block of voxels, the smallest edge of `voxel_mm`."""
    volume, segmentation = head()
    block = np.ones(times, np.uint8)
    labels = np.kron(segmentation.data, block)
    size = voxel_mm * max(times) / np.array(times)
    grid = Grid(labels.shape, np.diag([*size, 1.0]))
    data = np.kron(volume.data, block).astype(np.float32)
    return Volume(data, grid), Segmentation(labels, grid, siam_labels())


@pytest.mark.parametrize("voxel_mm", [1.0, 0.7])
def test_sheets_have_two_pixels_per_voxel(voxel_mm):
    shown = cut(*enlarged((3, 3, 3), voxel_mm), 3)
    widest = max(slices[0].labels.shape[1] for _, slices in shown)
    widths = {Image.open(io.BytesIO(each)).size[0] for each in sheet(shown, siam_labels())}
    assert widths == {3 * 2 * widest}


def test_sheets_of_coarse_and_of_very_fine_scans_stay_within_limits():
    def width(*arguments) -> int:
        return pixels(sheet(cut(*arguments, 2), siam_labels())[0]).shape[1]

    assert width(*head()) == 2 * 228  # 4 mm
    assert width(*enlarged((10, 10, 1), 0.4)) == 2 * 1000


@pytest.mark.parametrize("picture", ["sheet", "thumbnail", "mosaic"])
def test_every_slice_names_its_sides_and_position(picture):
    shown = views(*head(grey=50))
    widest = max(slices[0].size[0] for _, slices in shown)
    tall = [slices[0].size[1] / widest for _, slices in shown]  # heights in widths of a cell
    if picture == "sheet":
        slices, tissues, _ = sheet(shown, siam_labels())
        grey, labels, columns = pixels(slices), indices(tissues), 7
    elif picture == "thumbnail":
        grey, columns, tall = pixels(thumbnail(shown, siam_labels())[0]), 3, [1]
    else:
        grey, columns = pixels(mosaic(shown, siam_labels()))[:, :1596], 7
        tall = [height for height in tall for _ in range(2)]
    white = (grey > 190).all(axis=-1)
    width = white.shape[1] // columns
    ends = np.round(np.cumsum([0, *tall]) * width).astype(int)
    for top, bottom in pairwise(ends):
        for left in range(0, columns * width, width):
            cell = white[top:bottom, left : left + width]
            middle = slice((bottom - top) // 2 - 12, (bottom - top) // 2 + 12)
            assert cell[middle, : width // 8].any()
            assert cell[middle, -width // 8 :].any()
            assert cell[: width // 8, width // 2 :].any()
    if picture == "sheet":  # nothing is laid over the letters
        assert not labels[white].any()


def test_the_brain_sets_the_window_not_the_scalp_and_ct_gets_a_brain_window():
    volume, segmentation = head()
    t1 = np.select([segmentation.data == n for n in (1, 2, 15, 16)], [60, 100, 5, 900], 0)
    black, white = window(Volume(t1.astype(np.float32), volume.grid), segmentation)
    assert (black, white) == (20, pytest.approx(104))
    hounsfield = np.select(
        [segmentation.data == n for n in (1, 2, 15, 16)], [38, 28, 900, 60], -1000
    )
    black, white = window(Volume(hounsfield.astype(np.float32), volume.grid), segmentation)
    assert (black, white) == (18, pytest.approx(39))


def test_contours_are_a_pixel_inside_each_border():
    _, tissues, contours = sheet(views(*head()), siam_labels())
    labels, layer = indices(tissues), np.asarray(Image.open(io.BytesIO(contours)).convert("RGBA"))
    inside = (
        ndimage.minimum_filter(labels, footprint=ndimage.generate_binary_structure(2, 1)) == labels
    )
    inside &= (
        ndimage.maximum_filter(labels, footprint=ndimage.generate_binary_structure(2, 1)) == labels
    )
    assert (layer[..., 3][inside | (labels == 0)] == 0).all()
    for label in siam_labels().foreground:
        drawn = layer[(labels == label.index) & ~inside]
        assert (drawn == [*label.rgb, 255]).all(), label.name
    assert layer[..., 3].any()


def test_thumbnail_and_outline_are_small_and_of_one_size():
    small, outline = thumbnail(views(*head()), siam_labels())
    assert pixels(small).shape == (240, 720, 3)
    assert len(small) + len(outline) < 45_000
    layer = np.asarray(Image.open(io.BytesIO(outline)).convert("RGBA"))
    assert layer.shape == (240, 720, 4)
    assert set(np.unique(layer[..., 3])) == {0, 255}
    for name in ("WM", "GM", "Skull", "Head"):
        color = [*bytes.fromhex(siam_labels().by_name[name].color[1:])]
        assert (layer[..., :3][layer[..., 3] == 255] == color).all(axis=-1).sum() > 50, name


def test_same_scan_gives_the_same_bytes():
    assert draw(*head()) == draw(*head())


@pytest.mark.parametrize("grey", [0, -5, 1e6])
def test_flat_images_are_drawn(grey):
    small, _ = thumbnail(views(*head(grey=grey)), siam_labels())
    assert pixels(small).shape == (240, 720, 3)
