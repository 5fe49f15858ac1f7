import gzip

import nibabel as nib
import numpy as np
import pytest

from siam_bids.errors import ImageError
from siam_bids.image.nifti import load_labels, load_volume


def save(path, data, affine=None):
    nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), path)
    return path


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(0, 90, (10, 11, 12)).astype(np.int16)


def test_scaling_is_applied_and_a_last_axis_of_one_dropped(tmp_path, noise):
    image = nib.Nifti1Image(noise[..., None], np.diag([2, 2, 2, 1]))
    image.header.set_slope_inter(0.5, 10)
    nib.save(image, tmp_path / "a.nii.gz")
    volume = load_volume(tmp_path / "a.nii.gz")
    assert volume.data.dtype == np.float32
    assert volume.grid.shape == (10, 11, 12)
    raw = nib.load(tmp_path / "a.nii.gz").dataobj.get_unscaled()[..., 0]
    np.testing.assert_allclose(volume.data, raw * 0.5 + 10)


def test_non_finite_voxels_become_zero(tmp_path, noise):
    data = noise.astype(np.float32) + 1
    data[0, 0, :3] = (np.nan, np.inf, -np.inf)
    volume = load_volume(save(tmp_path / "a.nii", data))
    assert volume.data[0, 0, :3].tolist() == [0, 0, 0]
    assert np.isfinite(volume.data).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: np.stack([d, d], -1), r"a\.nii\.gz is 4-D \(10, 11, 12, 2\), one 3-D volume"),
        (lambda d: d[:, :, 0], r"is 2-D \(10, 11\)"),
        (lambda d: d[:, :, :3], r"\(10, 11, 3\) voxels, too thin"),
        (lambda d: d * 0 + 7, r"is constant \(7 everywhere\)"),
        (lambda d: d.astype(np.complex64), "holds complex64 voxels"),
    ],
)
def test_unusable_images_say_what_is_wrong(tmp_path, noise, change, message):
    with pytest.raises(ImageError, match=message):
        load_volume(save(tmp_path / "a.nii.gz", change(noise)))


def test_a_truncated_file_is_reported_with_its_name(tmp_path, noise):
    path = save(tmp_path / "a.nii.gz", noise)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ImageError, match=r"a\.nii\.gz is damaged"):
        load_volume(path)


def test_a_file_that_is_no_image(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(b"hello"))
    with pytest.raises(ImageError, match=r"a\.nii\.gz cannot be read: it is damaged, or neither"):
        load_volume(path)


def test_a_broken_link_and_a_missing_file(tmp_path):
    (tmp_path / "a.nii.gz").symlink_to(tmp_path / "annex")
    with pytest.raises(ImageError, match="broken link"):
        load_volume(tmp_path / "a.nii.gz")
    with pytest.raises(ImageError, match="does not exist"):
        load_volume(tmp_path / "b.nii.gz")


def test_a_degenerate_affine_is_refused(tmp_path, noise):
    image = nib.Nifti1Image(noise, np.eye(4))
    image.header.set_sform(np.diag([1, 1, 0, 1]), code=1)
    image.header.set_qform(np.eye(4), code=0)
    nib.save(nib.Nifti1Image(noise, None, image.header), tmp_path / "a.nii")
    with pytest.raises(ImageError, match="no usable affine"):
        load_volume(tmp_path / "a.nii")


def test_label_maps_hold_whole_numbers(tmp_path):
    data = np.zeros((10, 10, 10), np.float32)
    data[5] = 515
    labels, grid = load_labels(save(tmp_path / "a.nii.gz", data))
    assert labels.dtype == np.int32
    assert np.unique(labels).tolist() == [0, 515]
    assert grid.shape == (10, 10, 10)
    data[4] = 0.5
    with pytest.raises(ImageError, match="not whole numbers"):
        load_labels(save(tmp_path / "b.nii.gz", data))
