"""`siam_bids.segment` and what it returns, as a notebook meets them."""

import doctest
import subprocess
import sys

import matplotlib as mpl
import nibabel as nib
import numpy as np
import pytest

import siam_bids
from siam_bids.pipelines import notebook


@pytest.fixture(scope="module")
def found(tmp_path_factory, head, tiny_model):
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    nib.save(nib.Nifti1Image(head.data, head.grid.affine), path)
    return siam_bids.segment(path, model=tiny_model, device="cpu", threads=1)


def test_all_that_is_promised_is_there():
    for name in siam_bids.__all__:
        assert getattr(siam_bids, name).__module__ if name != "__version__" else True
    assert set(siam_bids.__all__) <= set(dir(siam_bids))
    with pytest.raises(AttributeError, match="no attribute 'Segmenter'"):
        siam_bids.Segmenter  # noqa: B018


def test_importing_the_package_is_quick():
    code = "import siam_bids, sys; print({'torch', 'numpy', 'pandas', 'nibabel'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_type_checkers_know_the_front_door(tmp_path):
    use = tmp_path / "use.py"
    use.write_text(
        "import siam_bids\n"
        "found = siam_bids.segment('scan.nii.gz', model='compact')\n"
        "reveal_type(found)\n"
        "reveal_type(found.volumes())\n"
        "reveal_type(siam_bids.ModelError('no').exit_code)\n"
    )
    words = [sys.executable, "-m", "mypy", "--no-incremental", "--follow-imports=silent", str(use)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    told = done.stdout.splitlines()
    assert '"siam_bids.pipelines.notebook.Segmentation"' in told[0], done.stdout + done.stderr
    assert "DataFrame" in told[1]
    assert '"builtins.int"' in told[2] or '"int"' in told[2]


def test_volumes_are_those_of_the_labels(found):
    table = found.volumes().set_index("name")
    for label in found.labels.foreground:
        voxels = int(np.sum(found.data == label.index))
        assert table.loc[label.name, "voxels"] == voxels
        expected = voxels * found.grid.voxel_volume / 1000
        assert table.loc[label.name, "volume_mL"] == pytest.approx(expected)


def test_the_image_lies_where_the_scan_lies(found, head, tmp_path):
    image = found.to_nibabel()
    np.testing.assert_array_equal(np.asarray(image.dataobj), found.data)
    np.testing.assert_allclose(image.affine, head.grid.affine)
    assert image.get_data_dtype() == np.uint8
    path = found.save(tmp_path / "labels.nii.gz")
    np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), found.data)
    with pytest.raises(siam_bids.UsageError, match=r"labels.nii.gz exists. Give another name"):
        found.save(path)
    assert found.save(path, overwrite=True) == path
    with pytest.raises(siam_bids.UsageError, match="is not a NIfTI file name"):
        found.save(tmp_path / "labels.mgz")


def test_a_notebook_shows_a_picture_and_numbers(found, tiny_model):
    line = repr(found)
    shape = "x".join(map(str, found.data.shape))
    assert line.startswith(f"<Segmentation: {len(found.labels.foreground)} tissues on {shape} ")
    assert tiny_model.name in line
    assert "\n" not in line
    page = found._repr_html_()
    assert 'src="data:image/png;base64,iVBOR' in page
    for name, volume in found.volumes()[["name", "volume_mL"]].itertuples(index=False):
        assert f"<td>{name}</td>" in page
        if not np.isnan(volume):
            assert f"<td>{volume:.1f}</td>" in page


def test_nilearn_plots_the_tissues_over_the_scan(found, tmp_path):
    mpl.use("agg")
    found.plot(display_mode="z", cut_coords=2, output_file=str(tmp_path / "labels.png"))
    assert (tmp_path / "labels.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"voxelsize": 1}, "segment has no option voxelsize. Did you mean voxel_size?"),
        ({"nonsense": 1}, "segment has no option nonsense. It has: voxel_size, scale, "),
        ({"voxel_size": -1}, "voxel_size=-1 is not above 0 and below 1000."),
        ({"precision": "half"}, "precision='half' is not one of auto, float32, bfloat16."),
        ({"device": "gpu"}, "device='gpu' is not one of auto, cpu, cuda, mps."),
        ({"threads": -2}, "threads=-2 is negative. Give 1 or more, or 0 for all."),
        ({"folds": "02"}, "folds='02' is not a list of folds."),
        ({"folds": 2}, "folds=2 is not a list of folds."),
        ({"volume": -1}, "volume=-1 is not a whole number from 0."),
        ({"volume": 1.5}, "volume=1.5 is not a whole number from 0."),
        ({"scale": "x"}, "scale='x' is not above 0 and below 1000."),
        ({"scale": None}, "scale=None is not above 0 and below 1000."),
        ({"memory": float("nan")}, "memory=nan is not above 0."),
        ({"engine": "onnx"}, "engine='onnx' is not one of auto, torch, openvino."),
        ({"device": None}, "device=None is not one of auto, cpu, cuda, mps."),
        ({"mirror": "yes"}, "mirror='yes' is not True or False."),
        ({"upright": None}, "upright=None is not True or False."),
        ({"checkpoint": "../x.pth"}, "checkpoint='../x.pth' is not the name of a checkpoint."),
        ({"threads": "2"}, "threads='2' is not a whole number."),
        ({"model": None}, "model=None is neither a name nor a path."),
    ],
)
def test_wrong_options_are_answered_in_our_own_words(options, answer, head):
    with pytest.raises(siam_bids.UsageError) as error:
        siam_bids.segment(head, **options)
    assert str(error.value).startswith(answer)


@pytest.mark.parametrize("image", [None, np.zeros((3, 3, 3)), b"scan.nii.gz", 3, ["a.nii"]])
def test_what_is_no_image_is_answered_in_our_own_words(image):
    with pytest.raises(siam_bids.UsageError) as error:
        siam_bids.segment(image)
    start = f"segment takes no {type(image).__name__}. Give a path, a nibabel image, or "
    assert str(error.value).startswith(start)


def test_the_examples_in_docstrings_are_true():
    assert doctest.testmod(notebook, optionflags=doctest.IGNORE_EXCEPTION_DETAIL) == (0, 2)
