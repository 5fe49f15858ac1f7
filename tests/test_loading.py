import gzip
import os
import struct
import tracemalloc
from itertools import product

import difficult_input
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from siam_bids.bids.writers import save_mask, save_probability, save_segmentation
from siam_bids.errors import ImageError
from siam_bids.image.forms import Forms
from siam_bids.image.grid import Segmentation
from siam_bids.image.labels import siam_labels
from siam_bids.image.loading import as_volume, load_labels, load_volume, read_grid
from siam_bids.pipelines.notebook import segment


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
    with pytest.raises(ImageError, match=r"a\.nii\.gz is damaged: it ends early"):
        load_volume(path)


KINDS = ("u1", "<i2", ">i2", "i4", "f4", ">f4", "f8")
STORED = [
    *product(("nii", "nii.gz"), KINDS, (None, (0.5, 10), (1e-3, 0))),
    *product(("mgh", "mgz"), ("u1", "i2", "i4", "f4"), (None,)),
]


@pytest.mark.parametrize(("ending", "kind", "scaling"), STORED)
def test_voxels_are_those_that_nibabel_reads(tmp_path, noise, ending, kind, scaling):
    data, path = noise.astype(kind), tmp_path / f"a.{ending}"
    if ending.startswith("mg"):
        content = nib.MGHImage(data, np.eye(4)).to_bytes()
        path.write_bytes(gzip.compress(content) if ending == "mgz" else content)
        theirs = nib.MGHImage.from_bytes(content)
    else:
        order = ">" if kind.startswith(">") else "<"
        image = nib.Nifti1Image(data, np.eye(4), nib.Nifti1Header(endianness=order))
        image.header.set_slope_inter(*(scaling or (None, None)))
        nib.save(image, path)
        theirs = nib.load(path)
    expected = np.asarray(theirs.dataobj, dtype=np.float32)
    for volume in (load_volume(path), as_volume(theirs, path)):
        assert volume.data.tobytes("K") == expected.tobytes("K")
        np.testing.assert_array_equal(volume.grid.affine, theirs.affine)
    assert read_grid(path).shape == (10, 11, 12)


def test_volumes_of_a_series_are_counted_in_the_order_of_the_file(tmp_path, noise):
    series = np.stack([noise + n for n in range(6)], -1).reshape(10, 11, 12, 1, 2, 3, order="F")
    for name in ("a.nii", "a.nii.gz"):
        path = save(tmp_path / name, series)
        for index in range(6):
            for volume in (load_volume(path, index=index), as_volume(nib.load(path), path, index)):
                np.testing.assert_array_equal(volume.data, noise + index)
            memory = nib.Nifti1Image(series, np.eye(4))
            np.testing.assert_array_equal(as_volume(memory, path, index).data, noise + index)
        with pytest.raises(ImageError, match=r"is 6-D .* Choose one of its 6 with --volume"):
            load_volume(path)
        with pytest.raises(ImageError, match="has 6 volumes, there is no volume 6"):
            read_grid(path, index=6)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_3_d_image_is_itself_whichever_volume_is_chosen_for_series(tmp_path, noise, name):
    path = save(tmp_path / name, noise)
    for image in (nib.load(path), nib.Nifti1Image(noise, np.eye(4))):
        np.testing.assert_array_equal(as_volume(image, path, 3).data, noise)
    np.testing.assert_array_equal(load_volume(path, index=3).data, noise)


def test_no_flipped_bit_of_a_gzip_stream_goes_through(tmp_path, noise):
    path = save(tmp_path / "a.nii.gz", noise)
    content, expected = path.read_bytes(), load_volume(path).data
    rng = np.random.default_rng(0)
    refused = 0
    for bit in rng.choice(8 * len(content), 200, replace=False):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(damaged)
        try:
            found = load_volume(path).data
        except ImageError:
            refused += 1
            continue
        np.testing.assert_array_equal(found, expected)
    assert refused > 180


def test_a_stream_of_several_members_or_with_something_behind_it_is_whole(tmp_path, noise):
    path = save(tmp_path / "a.nii", noise)
    content = path.read_bytes()
    members = b"".join(gzip.compress(part) for part in (content[:500], content[500:]))
    for packed in (members, members + bytes(512), members + b"no gzip"):
        (tmp_path / "b.nii.gz").write_bytes(packed)
        np.testing.assert_array_equal(load_volume(tmp_path / "b.nii.gz").data, noise)


def declared(offset, code, *values):
    """Change the header of an uncompressed file."""

    def change(path):
        content = bytearray(path.read_bytes())
        struct.pack_into("<" + code, content, offset, *values)
        path.write_bytes(content)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: os.truncate(p, 352),
            r"a.nii is damaged: 10 x 11 x 12 voxels need 2.992 kB, more than its 352 B",
        ),
        (declared(42, "hhh", 3000, 3000, 3000), "is damaged: 3000 x 3000 x 3000 voxels need 54 GB"),
        (declared(108, "f", 1e9), "is damaged: .* can hold"),
        (declared(108, "f", -1e9), "is damaged, its header is invalid"),
        (declared(70, "hh", 1, 1), "holds 1-bit voxels: it is a mask, not a scan"),
        (declared(70, "hh", 99, 8), "is damaged, its header is invalid: data code 99"),
        (declared(344, "4s", b"ni1"), "is the header of a pair of files. Convert it to one"),
        (declared(42, "hhh", -1, 5, 5), "is damaged|can hold"),
        (lambda p: p.write_bytes(bytes(128) + b"DICM" + bytes(400)), "Convert DICOM files with"),
    ],
)
def test_headers_are_told_apart_before_anything_is_allocated(tmp_path, noise, change, message):
    for packed in (False, True):
        path = save(tmp_path / "a.nii", noise)
        change(path)
        if packed:
            if " its" in message or "can hold" in message:
                continue  # as deflate might pack it
            path.write_bytes(gzip.compress(path.read_bytes()))
        tracemalloc.start()
        for read in (read_grid, load_volume, load_labels):
            with pytest.raises(ImageError, match=message) as raised:
                read(path)
            assert "\n" not in str(raised.value)
        assert tracemalloc.get_traced_memory()[1] < 3e6
        tracemalloc.stop()


def test_extensions_take_no_memory(tmp_path, head):
    path = tmp_path / "a.nii.gz"
    difficult_input.huge_extensions(path, head)
    tracemalloc.start()
    with pytest.raises(ImageError, match=r"is damaged: .* can hold"):
        read_grid(path)
    content = bytearray(nib.Nifti1Image(head.data, head.grid.affine).to_bytes())
    size = 1 << 26
    struct.pack_into("<f", content, 108, 352 + size)
    start = bytes(content[:348]) + b"\1\0\0\0" + struct.pack("<ii", size, 6)
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(start)
        for part in (*[bytes(1 << 20)] * 64, bytes(content[360:])):
            stream.write(part)
    tracemalloc.reset_peak()
    assert read_grid(path).shape == head.grid.shape
    assert tracemalloc.get_traced_memory()[1] < 2e6
    np.testing.assert_array_equal(load_volume(path).data.ravel("F")[2:], head.data.ravel("F")[2:])
    assert tracemalloc.get_traced_memory()[1] < 2e7
    tracemalloc.stop()


def test_an_extension_before_the_voxels_is_passed_over(tmp_path, noise):
    image = nib.Nifti1Image(noise, np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 100_000))
    for name in ("a.nii", "a.nii.gz"):
        nib.save(image, tmp_path / name)
        np.testing.assert_array_equal(load_volume(tmp_path / name).data, noise)


@pytest.mark.parametrize("kind", ["uncompressed", "compressed", "MGH"])
def test_content_counts_and_not_the_name(tmp_path, noise, kind, caplog):
    content = nib.Nifti1Image(noise, np.eye(4)).to_bytes()
    path = tmp_path / ("a.nii" if kind == "compressed" else "a.nii.gz")
    if kind == "MGH":
        content = nib.MGHImage(noise, np.eye(4)).to_bytes()
    path.write_bytes(gzip.compress(content) if kind == "compressed" else content)
    np.testing.assert_array_equal(load_volume(path).data, noise)
    assert "compressed, contrary to its name" in caplog.text


def test_an_intercept_that_is_no_number_counts_as_none(tmp_path, noise, caplog):
    path = save(tmp_path / "a.nii", noise)
    declared(112, "ff", 2.0, np.nan)(path)
    np.testing.assert_array_equal(load_volume(path).data, 2.0 * noise)
    assert "a.nii has no valid intercept (scl_inter): 0 is used." in caplog.text


def test_a_file_that_shrinks_while_it_is_read_is_damaged(tmp_path, noise, monkeypatch):
    path = save(tmp_path / "a.nii", noise)
    volume = nib.load(path)
    os.truncate(path, 1000)
    with pytest.raises(ImageError, match=r"a\.nii is damaged: it ends early"):
        as_volume(volume, path)


def itk_grid(path):
    image = sitk.ReadImage(str(path))
    return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


TURN = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, 0.3), (5, -7, 11))
FORMS = {
    "mirrored sform": (np.diag([-1, 1, 1, 1]), np.eye(4), (2, 1)),
    "mirrored qform": (np.eye(4), np.diag([-1, 1, 1, 1]), (1, 1)),
    "turned sform": (TURN, np.eye(4), (4, 1)),
    "sform alone": (TURN, np.eye(4), (1, 0)),
    "qform alone": (None, TURN, (0, 1)),
    "no code": (np.eye(4), np.eye(4), (0, 0)),
    "sform of zeros": (None, TURN, (1, 1)),
    "both as MNI": (TURN, TURN, (4, 4)),
    "both as scanner": (TURN, TURN, (1, 1)),
    "sheared": (np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), TURN, (1, 0)),
    "twice as large": (np.diag([2, 2, 2, 1]), np.eye(4), (1, 1)),
}


@pytest.mark.parametrize("kind", FORMS)
def test_every_reader_finds_the_label_map_on_the_scan(tmp_path, head, kind):
    scan = tmp_path / "scan.nii.gz"
    difficult_input.placed(*FORMS[kind])(scan, head)
    grid = load_volume(scan).grid
    labels = Segmentation(np.ones(grid.shape, np.uint8), grid, siam_labels())
    save_segmentation(tmp_path / "dseg.nii.gz", labels)
    save_mask(tmp_path / "mask.nii.gz", labels.data > 0, grid)
    save_probability(tmp_path / "probseg.nii.gz", labels.data.astype(np.float32), grid)
    theirs = nib.load(scan)
    for name in ("dseg", "mask", "probseg"):
        ours = nib.load(tmp_path / f"{name}.nii.gz")
        np.testing.assert_allclose(ours.affine, grid.affine, atol=1e-5)
        if kind != "sheared":  # which ITK refuses
            assert itk_grid(tmp_path / f"{name}.nii.gz") == itk_grid(scan)
        if kind != "sform of zeros":  # a form that places nothing is not handed on
            np.testing.assert_array_equal(ours.affine, theirs.affine)
            for form in ("get_sform", "get_qform"):
                (one, code), (two, code2) = (
                    getattr(image, form)(coded=True) for image in (ours, theirs)
                )
                assert code == code2
                if code:
                    np.testing.assert_array_equal(one, two)


def test_a_scan_with_two_forms_gets_labels_with_both(tmp_path, head, tiny_model):
    scan = tmp_path / "scan.nii.gz"
    difficult_input.placed(*FORMS["mirrored sform"])(scan, head)
    found = segment(scan, model=str(tiny_model), device="cpu", threads=1)
    found.save(tmp_path / "dseg.nii.gz")
    assert itk_grid(tmp_path / "dseg.nii.gz") == itk_grid(scan)
    ours, theirs = nib.load(tmp_path / "dseg.nii.gz"), nib.load(scan)
    assert (int(ours.header["sform_code"]), int(ours.header["qform_code"])) == (2, 1)
    np.testing.assert_array_equal(ours.get_sform(), theirs.get_sform())
    np.testing.assert_array_equal(ours.get_qform(), theirs.get_qform())


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("mirrored sform", "in its header, sform and qform disagree on left and right"),
        ("mirrored qform", "in its header, sform and qform disagree on left and right"),
        ("twice as large", "the sizes of its voxels (sform, pixdim, unit) differ 2-fold"),
        ("sform of zeros", "scan.nii.gz has an unusable sform; its qform is used."),
        ("turned sform", ""),
        ("both as MNI", ""),
        ("no code", ""),
        ("sform alone", ""),
    ],
)
def test_contradictions_of_a_header_are_named_by_its_header_alone(
    tmp_path, head, kind, words, caplog
):
    difficult_input.placed(*FORMS[kind])(tmp_path / "scan.nii.gz", head)
    read_grid(tmp_path / "scan.nii.gz")
    assert (words in caplog.text) if words else not caplog.text


def test_forms_of_one_space_that_lie_apart_are_named(tmp_path, head, caplog):
    difficult_input.two_codes(tmp_path / "scan.nii.gz", head)
    assert read_grid(tmp_path / "scan.nii.gz").forms.distance(head.grid.shape) == pytest.approx(
        40 * 3**0.5
    )
    assert "sform and qform lie 69 mm apart" in caplog.text


def test_metres_in_a_header_are_named(tmp_path, noise, caplog):
    path = save(tmp_path / "a.nii", noise)
    declared(123, "b", 1)(path)
    assert read_grid(path).forms.scale == 1000
    assert "differ 1e+03-fold" in caplog.text


@pytest.mark.parametrize("excess", [1e-7, 4e-7, 1e-5])
def test_a_quaternion_that_rounding_left_too_long_is_a_rotation(tmp_path, head, excess):
    path = tmp_path / "a.nii"
    difficult_input.placed(None, np.diag([-1, -1, 1, 1]), (0, 1))(path, head)
    path.write_bytes(gzip.decompress(path.read_bytes()))
    expected = nib.load(path).affine
    declared(264, "f", (1 + excess) ** 0.5)(path)
    grid = read_grid(path)
    np.testing.assert_allclose(grid.affine, expected, atol=1e-4)
    save_mask(tmp_path / "m.nii.gz", np.ones(grid.shape, bool), grid)
    np.testing.assert_allclose(nib.load(tmp_path / "m.nii.gz").affine, expected, atol=1e-4)


def test_a_quaternion_that_is_no_rotation_is_no_form(tmp_path, head):
    path = tmp_path / "a.nii"
    difficult_input.placed(None, np.eye(4), (0, 1))(path, head)
    path.write_bytes(gzip.decompress(path.read_bytes()))
    for value in (1.5, np.nan):
        declared(264, "f", value)(path)
        with pytest.raises(ImageError, match="no usable affine"):
            read_grid(path)
    image = nib.Nifti1Image(head.data, head.grid.affine)
    image.header["quatern_b"], image.header["qform_code"] = 2.0, 1
    assert Forms.of_header(image.header).qform_code == 0


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
