"""Files, folders and images without BIDS; and the options of inference."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import write_model, write_scan

import siam_bids
from siam_bids import cli, nnunet
from siam_bids.config import Inference
from siam_bids.errors import ImageError, UsageError
from siam_bids.nnunet import NnunetModel, NnunetSegmenter
from siam_bids.store import CHECKPOINT, CONVERTED
from siam_bids.volume import Grid, Volume

CPU = torch.device("cpu")


def labels_of(folder, volume, **options):
    segmenter = NnunetSegmenter(NnunetModel.open(folder), CPU, Inference(**options))
    return segmenter.segment(volume).segmentation.data


def test_a_file_a_folder_and_an_image_give_the_same(tmp_path, head, tiny_model, capsys):
    scan = write_scan(tmp_path / "in" / "a b_T1w.nii.gz", head)
    write_scan(tmp_path / "in" / "c.nii", head)
    (tmp_path / "in" / "bad.nii.gz").write_bytes(b"nothing")
    model = ["--model", str(tiny_model), "--n-cpus", "1"]
    assert cli.segment([*model, str(scan), str(tmp_path / "one.nii.gz")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'one.nii.gz'}\n"
    pred = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-m", str(tiny_model)]
    assert cli.segment([*pred, "-device", "cpu", "-nbthread", "1"]) == 1
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


def test_wrong_words_are_one_line(tmp_path, capsys):
    assert cli.segment([str(tmp_path)]) == 2
    assert "One input and one output are needed" in capsys.readouterr().err
    assert cli.segment([str(tmp_path), "out"]) == 4
    assert "holds no image" in capsys.readouterr().err
    assert cli.segment(["a", "b", "--no-interpolation", "--scale", "1.4"]) == 2
    assert cli.segment(["a", "b", "-m", "0"]) == 6
    assert "siam-bids-models fetch siam-v0.3" in capsys.readouterr().err


def test_a_pretended_voxel_size_is_what_the_network_sees(tiny_model, head):
    small = Volume(head.data, Grid(head.grid.shape, head.grid.affine @ np.diag([0.5, 0.5, 0.5, 1])))
    true = labels_of(tiny_model, head)
    np.testing.assert_array_equal(labels_of(tiny_model, small, voxel_size=4.0), true)
    np.testing.assert_array_equal(labels_of(tiny_model, small, scale=2.0), true)
    np.testing.assert_array_equal(labels_of(tiny_model, small, interpolate=False), true)
    assert (labels_of(tiny_model, small) != true).any()


def test_folds_are_chosen_by_name(tmp_path, head):
    folder = write_model(tmp_path / "m", folds=2)
    single = labels_of(folder, head, folds=("1",))
    (folder / "fold_0" / CHECKPOINT).unlink()
    np.testing.assert_array_equal(labels_of(folder, head), single)
    with pytest.raises(UsageError, match=r"The model has no fold 0\. It has: 1\."):
        labels_of(folder, head, folds=("0",))


def test_mirroring_follows_the_checkpoint(tmp_path, head):
    folder = write_model(tmp_path / "m")
    with pytest.raises(UsageError, match="was not trained for mirroring"):
        labels_of(folder, head, mirror=True)
    path = folder / "fold_0" / CHECKPOINT
    content = torch.load(path, weights_only=True)
    torch.save({**content, "inference_allowed_mirroring_axes": (0, 2)}, path)
    segmenter = NnunetSegmenter(NnunetModel.open(folder), CPU, Inference(mirror=True))
    network = next(iter(segmenter._folds())).eval()
    image = torch.randn((1, 1, 16, 16, 16), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for flip in [(2,), (4,), (2, 4)]:
            torch.testing.assert_close(network(image.flip(flip)).flip(flip), network(image))
    nnunet.convert_checkpoints(folder)
    assert nnunet.mirror_axes(folder / "fold_0" / CONVERTED) == (0, 2)


def test_4d_images_are_refused_unless_a_volume_is_chosen(tmp_path, head, tiny_model):
    both = np.stack([np.zeros_like(head.data), head.data], -1)
    nib.save(nib.Nifti1Image(both, head.grid.affine), tmp_path / "a.nii.gz")
    with pytest.raises(ImageError, match=r"4-D .* Choose one with --volume"):
        siam_bids.segment(tmp_path / "a.nii.gz", model=str(tiny_model))
    with pytest.raises(ImageError, match="has 2 volumes, there is no volume 2"):
        siam_bids.segment(tmp_path / "a.nii.gz", model=str(tiny_model), volume=2)
    found = siam_bids.segment(tmp_path / "a.nii.gz", model=str(tiny_model), volume=1)
    np.testing.assert_array_equal(found.data, labels_of(tiny_model, head))


def test_out_of_memory_on_a_device_goes_on_on_the_cpu(tiny_model, head, monkeypatch, caplog):
    expected = labels_of(tiny_model, head)
    segmenter = NnunetSegmenter(NnunetModel.open(tiny_model), CPU)
    segmenter.device = torch.device("mps")  # said to be one; the first try finds no memory
    real, calls = nnunet.predict_tiled, []

    def predict(*args, **kwargs):
        calls.append(segmenter.device.type)
        if len(calls) == 1:
            raise torch.OutOfMemoryError
        return real(*args, **kwargs)

    monkeypatch.setattr(nnunet, "predict_tiled", predict)
    np.testing.assert_array_equal(segmenter.segment(head).segmentation.data, expected)
    assert calls == ["mps", "cpu"]
    assert "Out of memory on mps: going on on the CPU." in caplog.text


@pytest.mark.parametrize("share", [0.9, 1.1])
def test_a_gpus_free_memory_is_looked_at_before(share, tiny_model, head, monkeypatch, caplog):
    """With a stand-in for a GPU: enough of its memory lets the network begin there."""
    expected = labels_of(tiny_model, head)
    segmenter = NnunetSegmenter(NnunetModel.open(tiny_model), CPU)
    segmenter.device = torch.device("cuda")
    segmenter.load = replace(segmenter.load, precision="float16", lean=False, on_cpu=False)
    free = int(share * segmenter.load.network_memory())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 * 10**9))
    real, begun = nnunet.predict_tiled, []

    def predict(*args, **kwargs):
        begun.append((segmenter.device.type, kwargs["autocast"]))
        if begun == [("cuda", torch.float16)]:
            raise torch.OutOfMemoryError  # another program was quicker
        return real(*args, **kwargs)

    monkeypatch.setattr(nnunet, "predict_tiled", predict)
    np.testing.assert_array_equal(segmenter.segment(head).segmentation.data, expected)
    assert segmenter.load.on_cpu
    if share < 1:
        assert begun == [("cpu", None)]
        assert caplog.text.count("GB free, about") == 1
    else:
        assert begun == [("cuda", torch.float16), ("cpu", None)]
        assert "Out of memory on cuda: going on on the CPU." in caplog.text


def test_the_memory_estimate_grows_with_voxels_and_folds(tmp_path, head):
    folder = write_model(tmp_path / "m", folds=3)
    one, three = (
        NnunetSegmenter(NnunetModel.open(folder), CPU, Inference(folds=folds, scale=20))
        for folds in (("0",), ())
    )
    voxels = np.prod([20 * n for n in head.grid.shape])
    assert three.memory_of_scan(head.grid) - one.memory_of_scan(head.grid) == pytest.approx(
        2 * 18 * voxels, rel=0.01
    )


@pytest.mark.parametrize(
    ("precision", "folds", "helps"),
    [
        (
            "float32",
            (),
            "--precision bfloat16, a single one of --folds, --low-mem or more memory (--mem-gb)",
        ),
        ("bfloat16", ("0",), "--low-mem or more memory (--mem-gb)"),
    ],
)
def test_a_scan_that_needs_more_memory_than_given_is_refused(
    tmp_path, head, precision, folds, helps
):
    model = NnunetModel.open(write_model(tmp_path / "m", folds=2))

    def segmenter(memory):
        return NnunetSegmenter(
            model, CPU, Inference(precision=precision, folds=folds, memory=memory)
        )

    need = segmenter(None).memory_of_scan(head.grid)
    assert segmenter(1.01 * need).segment(head).segmentation.data.any()
    with pytest.raises(ImageError) as refused:
        segmenter(0.9 * need).segment(head)
    assert str(refused.value) == (
        f"The scan needs about {need / 1e9:.1f} GB of memory; {0.9 * need / 1e9:.1f} GB are given. "
        f"{helps} helps."
    )


def test_a_scan_that_needs_more_memory_than_is_free_is_refused(tiny_model, head, monkeypatch):
    monkeypatch.setattr(nnunet, "free_memory", lambda: 0.0)
    segmenter = NnunetSegmenter(NnunetModel.open(tiny_model), CPU, Inference(scale=50))
    with pytest.raises(ImageError, match=r"needs about \d+\.\d GB of memory; .* GB are free\."):
        segmenter.segment(head)
