import numpy as np
import pytest
from conftest import affine_of

from siam_bids.image.grid import Crop, Grid, Reorientation, Segmentation, Volume
from siam_bids.image.labels import siam_labels


def oblique(codes: str) -> np.ndarray:
    return affine_of(codes, (1.0, 1.2, 3.0))


@pytest.mark.parametrize("codes", ["RAS", "LIA", "LPS", "SAR", "ASL", "PIR"])
def test_reorienting_there_and_back_is_exact(codes):
    data = np.random.default_rng(0).integers(0, 200, (6, 7, 8)).astype(np.uint8)
    grid = Grid((6, 7, 8), oblique(codes))
    turn = Reorientation.to_ras(grid)
    assert turn.target.axcodes == "RAS"
    turned = turn.apply(data)
    assert turned.shape == turn.target.shape
    np.testing.assert_array_equal(turn.undo(turned), data)


@pytest.mark.parametrize("codes", ["RAS", "LIA", "SAR"])
def test_reorienting_leaves_every_voxel_where_it_is_in_the_scanner(codes):
    grid = Grid((6, 7, 8), oblique(codes))
    turn = Reorientation.to_ras(grid)
    data = np.zeros(grid.shape, np.uint8)
    data[1, 5, 2] = 1
    there = grid.affine @ [1, 5, 2, 1]
    (place,) = np.argwhere(turn.apply(data))
    np.testing.assert_allclose(turn.target.affine @ [*place, 1], there, atol=1e-9)


def test_voxel_sizes_and_volume_of_an_oblique_grid():
    grid = Grid((6, 7, 8), oblique("LIA"))
    np.testing.assert_allclose(grid.voxel_size, (1.0, 1.2, 3.0))
    assert grid.voxel_volume == pytest.approx(3.6)
    assert grid.axcodes == "LIA"


def test_volume_of_a_sheared_voxel_is_its_determinant():
    affine = np.eye(4)
    affine[0, 1] = 0.5
    assert Grid((2, 2, 2), affine).voxel_volume == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("shape", "shift", "same"),
    [
        ((6, 7, 8), 0, True),
        ((6, 7, 8), 5e-5, True),
        ((6, 7, 8), 5e-3, False),
        ((6, 7, 9), 0, False),
    ],
)
def test_grids_are_the_same_where_every_voxel_is(shape, shift, same):
    affine = oblique("LIA")
    moved = affine.copy()
    moved[0, 3] += shift
    assert Grid((6, 7, 8), affine).same_as(Grid(shape, moved)) == same


def test_data_must_fit_the_grid():
    with pytest.raises(ValueError, match=r"\(2, 2, 2\) and grid \(2, 2, 3\)"):
        Volume(np.zeros((2, 2, 2), np.float32), Grid((2, 2, 3), np.eye(4)))


def test_mask_of_names():
    data = np.array([0, 1, 2, 4, 16], np.uint8).reshape(5, 1, 1)
    segmentation = Segmentation(data, Grid((5, 1, 1), np.eye(4)), siam_labels())
    assert segmentation.mask(("GM", "CSFv")).ravel().tolist() == [False, True, False, True, False]


def test_a_crop_within_a_crop():
    data = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    grid = Grid((4, 5, 6), oblique("LIA"))
    crop = Crop.around(data > 20, grid)
    part = crop.within((slice(1, 3), slice(0, 2), slice(1, 2)))
    np.testing.assert_array_equal(part.cut(data), crop.cut(data)[1:3, 0:2, 1:2])
    assert part.grid.shape == part.shape[::-1] == (1, 2, 2)
    assert part.grid.voxel_size == pytest.approx(part.voxel_size[::-1])
