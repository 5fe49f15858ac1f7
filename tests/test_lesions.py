import nibabel as nib
import numpy as np
import pytest

from siam_bids.errors import LabelError
from siam_bids.synthesis.label_maps import Anatomy, source_table
from siam_bids.synthesis.lesions import (
    LesionMask,
    LesionPainter,
    add_lookalikes,
    crop_anatomy,
    from_mni,
    landmarks,
)

TABLE = source_table("siam")
GM, WM, CSFV, THAL, VESSEL, LESION = 1, 2, 4, 6, 14, 17


@pytest.fixture(scope="module")
def aligned(anatomy) -> LesionMask:
    """A ball of lesion on the right of the white matter, in a space that is the map's own."""
    axes = np.ogrid[tuple(slice(0, n) for n in anatomy.codes.shape)]
    center = np.array(anatomy.codes.shape) * (0.66, 0.5, 0.5)
    ball = sum((axis - at) ** 2 for axis, at in zip(axes, center, strict=True)) < 16
    return LesionMask(ball, np.linalg.inv(from_mni(anatomy)))


def test_landmarks_of_a_box_are_its_centre_and_the_centres_of_its_halves():
    box = np.zeros((12, 12, 12), bool)
    box[2:10, 3:7, 4:6] = True
    found = landmarks(box)
    assert found[0].tolist() == [5.5, 4.5, 4.5]
    assert found[1:3, 0].tolist() == [3.5, 7.5]
    assert found[3:5, 1].tolist() == [3.5, 5.5]
    assert found[5:, 2].tolist() == [4, 5]


def test_a_map_turned_and_scaled_is_aligned_with_the_turned_space(anatomy):
    half = np.repeat(np.repeat(np.repeat(anatomy.codes, 2, 0), 2, 1), 2, 2)
    fine = Anatomy(half, (0.5, 0.5, 0.5), TABLE)
    there = np.array([[10.0, -20.0, 30.0, 1], [0, 0, 0, 1], [-30, 15, 5, 1]]).T
    expected = 2 * (from_mni(anatomy) @ there)[:3] + 0.5
    assert np.allclose((from_mni(fine) @ there)[:3], expected, atol=0.6)


def test_lesions_are_painted_into_parenchyma_where_the_mask_has_them(anatomy, aligned):
    painter = LesionPainter([aligned], [anatomy])
    volumes = []
    for seed in range(12):
        codes = painter.paint(anatomy, np.random.default_rng(seed)).codes
        lesion = TABLE.codes_of("Anomalies")[codes]
        volumes.append(lesion.sum())
        assert set(np.unique(anatomy.codes[lesion])) <= {GM, WM, THAL}
        assert np.array_equal(codes[~lesion], anatomy.codes[~lesion])
        if lesion.any():
            across = np.argwhere(lesion)[:, 0] / codes.shape[0]
            assert abs(across - 0.5).mean() == pytest.approx(0.16, abs=0.08)  # on either side
    assert np.median(volumes) > 50


def test_the_same_seed_paints_the_same_lesions(anatomy, aligned):
    painter = LesionPainter([aligned], [anatomy])
    one, two, other = (painter.paint(anatomy, np.random.default_rng(s)).codes for s in (3, 3, 4))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_lookalikes_are_fluid_and_vessels_in_tissue_and_tissue_in_ventricles(anatomy):
    codes = add_lookalikes(anatomy, np.random.default_rng(1)).codes
    changed = codes != anatomy.codes
    pairs = set(zip(anatomy.codes[changed].tolist(), codes[changed].tolist(), strict=True))
    assert pairs
    assert pairs <= {(WM, CSFV), (THAL, CSFV), (WM, VESSEL), (THAL, VESSEL), (CSFV, GM)}
    assert not TABLE.codes_of("Anomalies")[codes].any()


def test_a_crop_keeps_the_tissue_and_a_margin_around_it(anatomy):
    box = crop_anatomy(anatomy, ("CSFv",), 3.0)
    inner = np.argwhere(anatomy.codes == CSFV)
    edges = inner.max(0) - inner.min(0) + 1
    assert box.codes.shape == tuple(edges + 2 * 3 + 2)  # background around it
    assert (box.codes == CSFV).sum() == (anatomy.codes == CSFV).sum()
    assert not box.codes[0].any()
    with pytest.raises(LabelError, match="lacks Hippo"):
        crop_anatomy(anatomy, ("Hippo",), 3.0)


def test_masks_are_read_in_ras_order_and_empty_ones_refused(tmp_path):
    data = np.zeros((10, 11, 12), np.uint8)
    data[2, 3, 4] = 1
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = (20, -5, 7)
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "mask.nii.gz")
    mask = LesionMask.load(tmp_path / "mask.nii.gz")
    (place,) = np.argwhere(mask.mask)
    assert (mask.affine @ [*place, 1])[:3].tolist() == [18, -2, 11]
    nib.save(nib.Nifti1Image(0 * data, affine), tmp_path / "empty.nii.gz")
    with pytest.raises(LabelError, match=r"empty\.nii\.gz holds no lesion"):
        LesionMask.load(tmp_path / "empty.nii.gz")
