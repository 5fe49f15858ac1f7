"""How a network is run: options, folds, GPUs and memory that is short."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import write_model

import siam_bids
from siam_bids.config import Inference
from siam_bids.errors import ImageError, UsageError
from siam_bids.image.grid import Grid, Volume
from siam_bids.inference.cost import load_of
from siam_bids.inference.segmenter import NnunetSegmenter
from siam_bids.inference.sliding_window import predict_tiled
from siam_bids.models.folder import CHECKPOINT, CONVERTED
from siam_bids.nnunet.checkpoints import convert_checkpoints, mirror_axes
from siam_bids.nnunet.model import NnunetModel, empty_network

CPU = torch.device("cpu")

RUNNER = "siam_bids.inference.runner"


def labels_of(folder, volume, **options):
    segmenter = NnunetSegmenter(NnunetModel.open(folder), CPU, Inference(**options))
    return segmenter.segment(volume).segmentation.data


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
    network = next(segmenter.runner.folds())
    image = torch.randn((1, 1, 32, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for flip in [(2,), (4,), (2, 4)]:
            torch.testing.assert_close(network(image.flip(flip)).flip(flip), network(image))
    convert_checkpoints(folder)
    assert mirror_axes(folder / "fold_0" / CONVERTED) == (0, 2)


def test_4d_images_are_refused_unless_a_volume_is_chosen(tmp_path, head, tiny_model):
    both = np.stack([np.zeros_like(head.data), head.data], -1)
    nib.save(nib.Nifti1Image(both, head.grid.affine), tmp_path / "a.nii.gz")
    with pytest.raises(ImageError, match=r"4-D .* Choose one of its 2 with --volume"):
        siam_bids.segment(tmp_path / "a.nii.gz", model=str(tiny_model))
    with pytest.raises(ImageError, match="has 2 volumes, there is no volume 2"):
        siam_bids.segment(tmp_path / "a.nii.gz", model=str(tiny_model), volume=2)
    found = siam_bids.segment(tmp_path / "a.nii.gz", model=str(tiny_model), volume=1)
    np.testing.assert_array_equal(found.data, labels_of(tiny_model, head))


@pytest.fixture
def gpu(tiny_model, monkeypatch):
    """A segmenter that takes the CPU for a GPU (`free` bytes), and the ways it tried to predict.

    The first `failures` of them find no memory.
    """
    real_build, real_predict = empty_network, predict_tiled
    monkeypatch.setattr("siam_bids.inference.cost.has_openvino", lambda: False)

    def make(kind: str, free: float = 1e12, failures: int = 0):
        monkeypatch.setattr(
            "siam_bids.inference.engines.empty_network",
            lambda model, device: real_build(model, torch.device("cpu")),
        )
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), 80 * 10**9))
        segmenter, tried = NnunetSegmenter(NnunetModel.open(tiny_model), torch.device(kind)), []

        def watched(fold):
            def run(patch):
                answer = fold(patch)
                automatic = tried[-1] == ("cuda", False, "float16")
                assert answer.dtype == (torch.float16 if automatic else torch.float32)
                return answer

            return run

        def predict(folds, *args, **kwargs):
            load = segmenter.load
            tried.append((segmenter.runner.device.type, load.lean, load.precision))
            if len(tried) <= failures:
                raise torch.OutOfMemoryError
            return real_predict(map(watched, folds), *args, **kwargs)

        monkeypatch.setattr(f"{RUNNER}.predict_tiled", predict)
        return segmenter, tried

    return make


@pytest.mark.parametrize(("kind", "precision"), [("cuda", "float16"), ("mps", "float32")])
def test_out_of_memory_on_a_gpu_goes_on_in_pieces_then_on_the_cpu(
    gpu, kind, precision, tiny_model, head, caplog
):
    expected = labels_of(tiny_model, head)
    segmenter, tried = gpu(kind, failures=2)
    np.testing.assert_array_equal(segmenter.segment(head).segmentation.data, expected)
    assert tried == [(kind, False, precision), (kind, True, precision), ("cpu", True, "float32")]
    assert caplog.messages[-2:] == [
        f"Out of memory on {kind}: continuing in smaller pieces.",
        f"Out of memory on {kind}: continuing on the CPU.",
    ]
    segmenter.segment(head)
    assert tried[3:] == [("cpu", True, "float32")], "it stays where it fits"


def test_a_gpu_in_pieces_gives_nearly_the_same_labels(gpu, tiny_model, head):
    segmenter, tried = gpu("cuda", failures=1)
    found = segmenter.segment(head).segmentation.data
    assert tried[-1] == ("cuda", True, "float16")
    assert (found == labels_of(tiny_model, head)).mean() > 0.99


def test_a_gpus_free_memory_is_looked_at_before(gpu, head, caplog, monkeypatch):
    """Between what the network needs as it is and in pieces, it begins in pieces; below, not."""
    monkeypatch.setattr("siam_bids.inference.cost.SLAB", 1024)  # of a size with the tiny network
    segmenter, _ = gpu("cuda")
    whole = segmenter.load.network_memory()
    pieces = replace(segmenter.load, lean=True).network_memory()
    assert pieces < 0.8 * whole
    for free, way in (
        (whole, ("cuda", False, "float16")),
        ((whole + pieces) / 2, ("cuda", True, "float16")),
        (0.9 * pieces, ("cpu", True, "float32")),
    ):
        segmenter, tried = gpu("cuda", free)
        segmenter.segment(head)
        assert tried == [way]
    assert caplog.text.count("GB free, about") == 3
    assert caplog.messages[-1].endswith("are needed: continuing on the CPU.")


def test_low_memory_works_in_pieces_on_a_gpu_too(tiny_model):
    options, cuda = Inference(low_memory=True), torch.device("cuda")
    load = load_of(NnunetModel.open(tiny_model), cuda, options)
    assert (load.lean, load.precision, load.on_cpu) == (True, "float16", False)


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
        f"{helps} may help."
    )


def test_a_scan_that_needs_more_memory_than_is_free_is_refused(tiny_model, head, monkeypatch):
    monkeypatch.setattr("siam_bids.inference.segmenter.free_memory", lambda: 0.0)
    segmenter = NnunetSegmenter(NnunetModel.open(tiny_model), CPU, Inference(scale=50))
    with pytest.raises(ImageError, match=r"needs about \d+\.\d GB of memory; .* GB are free\."):
        segmenter.segment(head)
