"""`siam-bids-segment`: files, folders and images without BIDS."""

import json

import nibabel as nib
import numpy as np
import pytest
from conftest import checksums, write_scan

import siam_bids
from siam_bids.cli import segment as segment_command
from siam_bids.config import Inference
from siam_bids.models.registry import find_model
from siam_bids.pipelines.provenance import made_from
from siam_bids.support.atomic_files import sha256


def test_a_file_a_folder_and_an_image_give_the_same(tmp_path, head, tiny_model, capsys):
    scan = write_scan(tmp_path / "in" / "a b_T1w.nii.gz", head)
    write_scan(tmp_path / "in" / "c.nii", head)
    (tmp_path / "in" / "bad.nii.gz").write_bytes(b"nothing")
    model = ["--model", str(tiny_model), "--n-cpus", "1"]
    assert segment_command.main([*model, str(scan), str(tmp_path / "one.nii.gz")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'one.nii.gz'}\n"
    pred = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-m", str(tiny_model)]
    assert segment_command.main([*pred, "-device", "cpu", "-nbthread", "1"]) == 1
    assert "FAILED bad.nii.gz: " in capsys.readouterr().err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        f"{stem}_dseg{end}"
        for stem in ("a b_T1w", "c")
        for end in (".nii.gz", ".tsv", ".json", "_volumes.tsv", "_volumes.json")
    }
    one, two = (nib.load(tmp_path / name) for name in ("one.nii.gz", "out/a b_T1w_dseg.nii.gz"))
    direct = siam_bids.segment(nib.load(scan), model=str(tiny_model), threads=1)
    np.testing.assert_array_equal(one.get_fdata(), two.get_fdata())
    np.testing.assert_array_equal(one.get_fdata(), direct.data)
    np.testing.assert_allclose(one.affine, direct.grid.affine)
    assert json.loads((tmp_path / "one.json").read_text())["Options"] == {}
    assert (tmp_path / "one.tsv").read_text().splitlines()[2].startswith("1\tCerebral cortex\tGM")


def whole(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["scan.nii.gz", "link.nii.gz", "hard.nii.gz", "d/../scan.nii.gz"])
def test_the_input_is_no_output(name, tmp_path, head, tiny_model, capsys):
    scan = write_scan(tmp_path / "in" / "scan.nii.gz", head)
    (tmp_path / "in/link.nii.gz").symlink_to("scan.nii.gz")
    (tmp_path / "in/hard.nii.gz").hardlink_to(scan)
    (tmp_path / "in/d").mkdir()
    before = checksums(tmp_path / "in")
    words = [str(scan), str(tmp_path / "in" / name), "--model", str(tiny_model)]
    assert segment_command.main(words) == 1
    assert "would replace an input" in capsys.readouterr().err
    assert checksums(tmp_path / "in") == before


@pytest.mark.parametrize("name", ["a.nii.gz", "a.json", "a.tsv", "a_volumes.tsv", "a_volumes.json"])
def test_files_of_others_are_not_replaced(name, tmp_path, head, tiny_model, capsys):
    scan = write_scan(tmp_path / "in" / "scan.nii.gz", head)
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text('{"EchoTime": 0.003}')
    assert segment_command.main([str(scan), str(out / "a.nii.gz"), "-m", str(tiny_model)]) == 1
    assert f"{name} exists and was not made by siam-bids" in capsys.readouterr().err
    assert whole(out) == {name: b'{"EchoTime": 0.003}'}


def test_an_output_that_cannot_be_written_is_refused_before_segmenting(
    tmp_path, tiny_model, head, capsys
):
    scan = write_scan(tmp_path / "scan.nii.gz", head)
    (tmp_path / "file").touch()
    (tmp_path / "null.nii.gz").symlink_to("/dev/null")
    before = checksums(tmp_path)
    for name, answer in (
        ("labels.txt", "ends in .txt, but label maps are written as NIfTI. Give it the ending"),
        ("labels.mgz", "ends in .mgz, but label maps are written as NIfTI."),
        ("labels.NII.GZ", "ends in .GZ, but label maps are written as NIfTI."),
        ("file", "is a file, not a folder."),
        ("file/out", "is a file, not a folder."),
        ("file/out.nii.gz", "is a file, not a folder."),
        ("null.nii.gz", "is not a regular file."),
        ("/dev/null", "is a file, not a folder."),
    ):
        words = [str(scan), str(tmp_path / name), "--model", str(tiny_model)]
        assert segment_command.main(words) == 2, name
        (line,) = capsys.readouterr().err.splitlines()
        assert answer in line
    assert checksums(tmp_path) == before
    for name in ("a.b", "v1.2", "study.v2"):
        assert segment_command.main([str(scan), str(tmp_path / name), "--model", "nope"]) == 6


def test_a_volume_is_recorded_only_where_there_are_several(tmp_path, head):
    """Else a 3-D scan would be segmented again when --volume is given or left out."""
    one = write_scan(tmp_path / "one.nii.gz", head)
    image = nib.load(one)
    for name, count in (("single.nii.gz", 1), ("four.nii.gz", 4)):
        data = np.repeat(np.asarray(image.dataobj)[..., None], count, axis=3)
        nib.save(nib.Nifti1Image(data, image.affine), tmp_path / name)
    record = find_model("compact")
    for name, recorded in (("one", {}), ("single", {}), ("four", {"volume": 3})):
        path = tmp_path / f"{name}.nii.gz"
        made = made_from(path, "0", record, folds=1, options=Inference(volume=3))
        assert made["Options"] == recorded
    assert made_from(tmp_path / "none", "0", record, folds=1, options=Inference())["Options"] == {}


def test_own_outputs_are_replaced_but_are_no_inputs(tmp_path, head, tiny_model, capsys):
    """Output folder = input folder, twice; hidden files of macOS are no images."""
    write_scan(tmp_path / "scan.nii.gz", head)
    (tmp_path / "._scan.nii.gz").write_bytes(b"Mac OS X")
    words = [str(tmp_path), str(tmp_path), "--model", str(tiny_model), "--n-cpus", "1"]
    for _ in range(2):
        assert segment_command.main(words) == 0
        assert capsys.readouterr().out == f"{tmp_path / 'scan_dseg.nii.gz'}\n"
    assert json.loads((tmp_path / "scan_dseg.json").read_text())["InputSHA256"] == sha256(
        tmp_path / "scan.nii.gz"
    )
    own = str(tmp_path / "scan_dseg.nii.gz")
    assert segment_command.main([own, own, "-m", str(tiny_model)]) == 1
    assert "would replace an input" in capsys.readouterr().err


def test_two_images_of_one_output_fail_and_others_go_on(tmp_path, head, tiny_model, capsys):
    for name in ("a.nii", "a.nii.gz", "b.nii.gz"):
        write_scan(tmp_path / "in" / name, head)
    words = [str(tmp_path / "in"), str(tmp_path / "out"), "--model", str(tiny_model)]
    assert segment_command.main([*words, "--n-cpus", "1"]) == 1
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'out/b_dseg.nii.gz'}\n"
    for name in ("a.nii", "a.nii.gz"):
        said = f"FAILED {name}: Other images have the same output a_dseg.nii.gz. Rename or move"
        assert said in printed.err


def test_wrong_words_are_one_line(tmp_path, capsys):
    assert segment_command.main([str(tmp_path)]) == 2
    assert "One input and one output are needed" in capsys.readouterr().err
    assert segment_command.main([str(tmp_path), "out"]) == 4
    assert "holds no image" in capsys.readouterr().err
    assert segment_command.main(["a", "b", "--no-interpolation", "--scale", "1.4"]) == 2
    assert segment_command.main(["a", "b", "-m", "0"]) == 6
    assert "siam-bids-models fetch siam-v0.3" in capsys.readouterr().err
