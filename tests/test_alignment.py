"""Rigid alignment of the scans of one person."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.transform import Rotation

from siam_bids.image.transforms import inverse, move, read_transform, transform_text
from siam_bids.inference.alignment import Appearance, align, halfway, likeness, mean_motion


def rigid(degrees, shift) -> np.ndarray:
    """A motion (4, 4): Euler angles in degrees, then a shift in mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


def brain(motion=None, *, person=0, sizes=(3.0, 3.0, 3.0), noise=0.0, low=-100.0, high=100.0):
    """A brain of one person with folds, moved; `low` and `high` bound the field of view along z."""
    motion = np.eye(4) if motion is None else motion
    rng = np.random.default_rng(person)
    folds = ndimage.gaussian_filter(rng.normal(size=(50, 50, 50)), 1.6)
    folds /= folds.std()
    affine = np.diag([*sizes, 1.0])
    affine[:3, 3] = -100, -100, low
    shape = [int(200 / sizes[0]), int(200 / sizes[1]), int((high - low) / sizes[2])]
    mm = move(affine, np.indices(shape).reshape(3, -1).T)
    own = move(inverse(motion), mm)
    inside = ((own / [65.0, 80.0, 55.0]) ** 2).sum(1) < 1
    value = ndimage.map_coordinates(folds, (own / 4 + 25).T, order=1, mode="nearest")
    tissue = np.where(inside, 0.7 + 0.15 * value, 0.2)
    tissue += noise * np.random.default_rng(len(mm)).normal(size=len(mm))
    return Appearance(tissue.reshape(shape).astype(np.float32), inside.reshape(shape), affine)


def error(found: np.ndarray, true: np.ndarray, places: np.ndarray) -> tuple[float, float]:
    """Rotation in degrees and largest distance in mm between two motions."""
    apart = inverse(true) @ found
    degrees = np.degrees(Rotation.from_matrix(apart[:3, :3]).magnitude())
    return degrees, np.linalg.norm(move(apart, places) - places, axis=1).max()


@pytest.mark.parametrize(
    "scan",
    [
        {},
        {"noise": 0.05},
        {"sizes": (2.0, 2.0, 5.0)},
        {"low": -45.0, "high": 100.0},
    ],
    ids=["same", "noise", "thick slices", "partial field of view"],
)
@pytest.mark.parametrize("degrees", [(3, -5, 4), (-14, 8, 12)])
def test_a_known_motion_is_found_to_half_a_millimetre_and_half_a_degree(degrees, scan):
    true = rigid(degrees, (9, -6, 4))
    one, other = brain(true, **scan), brain()
    found = align(other, one)
    turned, away = error(found.matrix, true, other.places)
    assert turned < 0.5
    assert away < 0.5
    assert found.refusal == ""


def test_alignment_is_the_same_each_time():
    one, other = brain(rigid((3, -5, 4), (9, -6, 4)), noise=0.05), brain()
    first, second = align(one, other), align(one, other)
    assert (first.matrix == second.matrix).all()


def test_another_persons_head_is_refused():
    found = align(brain(rigid((3, 2, 1), (4, 0, 0)), person=1), brain(person=2))
    assert found.likeness < 0.5
    assert found.refusal.startswith("its tissues correlate only 0.")


def test_scans_that_share_hardly_any_brain_are_refused():
    found = align(brain(low=-100.0, high=-30.0), brain(low=30.0, high=100.0))
    assert found.refusal


def test_alignment_does_not_depend_on_the_order_of_the_scans():
    one, other = brain(rigid((4, 1, -6), (3, 3, 3)), noise=0.05), brain(noise=0.02)
    there, back = align(one, other).matrix, align(other, one).matrix
    assert np.abs(move(back @ there, one.places) - one.places).max() < 0.2


def test_the_space_in_the_middle_prefers_no_scan():
    motions = [
        rigid((0, 0, 0), (0, 0, 0)),
        rigid((6, 2, 0), (4, 0, 0)),
        rigid((0, 3, 9), (0, 8, 0)),
    ]
    centre = np.array([5.0, -10.0, 20.0])
    out = halfway(motions, centre)
    for one in range(3):  # motions between scans stay
        assert np.allclose(inverse(out[0]) @ out[one], motions[one], atol=1e-9)
    mean = mean_motion([inverse(each) for each in out], move(out[0], centre[None])[0])
    assert np.allclose(mean[:3, :3], np.eye(3), atol=1e-3)
    again = halfway(
        [inverse(motions[1]) @ each for each in motions], move(inverse(motions[1]), centre[None])[0]
    )
    for before, after in zip(out, again, strict=True):  # whichever scan comes first
        assert np.allclose(before[:3, :3] @ out[0][:3, :3].T, after[:3, :3] @ again[0][:3, :3].T)


def test_itk_brings_a_scan_into_the_space_by_the_file_that_is_written(tmp_path):
    motion = rigid((5, -8, 12), (7, -3, 2))
    path = tmp_path / "from-T1w_to-person_mode-image_xfm.txt"
    path.write_text(transform_text(motion))
    assert np.allclose(read_transform(path), motion, atol=1e-9)
    here = np.array([12.0, -31.0, 44.0])  # RAS in the scan
    there = move(motion, here[None])[0]
    transform = sitk.ReadTransform(str(path))
    lps = np.array([-1, -1, 1])
    assert np.allclose(transform.TransformPoint((there * lps).tolist()), here * lps, atol=1e-6)
    scan = np.zeros((100, 100, 100), np.float32)
    scan[tuple(np.rint(here + 50).astype(int))[::-1]] = 1
    image = sitk.GetImageFromArray(ndimage.gaussian_filter(scan, 3))
    image.SetOrigin((50.0, 50.0, -50.0))
    image.SetDirection((-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))
    moved = sitk.GetArrayFromImage(sitk.Resample(image, image, transform))
    peak = np.array(np.unravel_index(moved.argmax(), moved.shape))[::-1] - 50
    assert np.abs(peak - there).max() <= 0.75


def test_likeness_is_known_only_where_both_scans_see_the_brain():
    whole = brain()
    assert likeness(whole, whole, np.eye(4)) == pytest.approx(1.0)
    assert likeness(whole, whole, rigid((0, 0, 0), (0, 0, 300))) == -1.0
