"""The core against stock nnU-Net, and what it refuses."""

import json
import pickle
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import affine_of, write_model
from stock import stock_labels

from siam_bids.config import Inference
from siam_bids.errors import ModelError
from siam_bids.image.grid import Grid, Volume
from siam_bids.image.loading import load_volume
from siam_bids.inference.cascade import Cascade, CascadeSegmenter
from siam_bids.inference.device import has_openvino
from siam_bids.inference.segmenter import NnunetSegmenter
from siam_bids.models.registry import find_model
from siam_bids.nnunet.checkpoints import load_weights
from siam_bids.nnunet.model import NnunetModel
from siam_bids.support.cpu import has_fast_bfloat16
from siam_bids.support.package_data import resource

CPU = torch.device("cpu")
EXACT = Inference(precision="float32", engine="torch")
ENGINES = ["torch", *(["openvino"] if has_openvino() else [])]


def turned(volume: Volume, codes: str, sizes: tuple[float, float, float]) -> Volume:
    """The same array on an oblique grid whose axes point elsewhere."""
    return Volume(volume.data, Grid(volume.grid.shape, affine_of(codes, sizes, 0.15)))


@pytest.mark.parametrize(
    ("codes", "sizes", "folds"),
    [
        ("RAS", (4.0, 4.0, 4.0), 3),
        ("LIA", (4.0, 4.0, 4.0), 1),
        ("SAR", (3.0, 4.5, 6.0), 1),
        ("RAS", (3.0, 3.0, 14.0), 2),
    ],
)
@pytest.mark.parametrize("separate", [False, None])
def test_labels_equal_stock_nnunet(tmp_path, head, codes, sizes, folds, separate):
    folder = write_model(tmp_path / "model", folds=folds)
    plans = json.loads((folder / "plans.json").read_text())
    for kind in ("data", "probabilities"):  # None: slices thrice as thick are treated apart
        options = plans["configurations"]["3d_fullres"][f"resampling_fn_{kind}_kwargs"]
        options["force_separate_z"] = separate
    (folder / "plans.json").write_text(json.dumps(plans))
    volume = turned(head, codes, sizes)
    stock = stock_labels(folder, volume)
    assert len(np.unique(stock)) > 3  # a comparison of empty maps would prove nothing
    for engine in ENGINES:
        segmenter = NnunetSegmenter(NnunetModel.open(folder), CPU, replace(EXACT, engine=engine))
        ours = segmenter.segment(volume).segmentation
        assert ours.grid.same_as(volume.grid)
        assert (ours.data == stock).mean() >= 0.9999, engine


@pytest.fixture(scope="module")
def real_head() -> Volume:
    """The middle of Colin27, 96 x 112 x 96 voxels of 1 mm."""
    path = resource("data", "sample_bids", "sub-colin27", "anat", "sub-colin27_T1w.nii.gz")
    whole = load_volume(path)
    box = tuple(slice(n // 2 - m // 2, n // 2 + m // 2) for n, m in
                zip(whole.grid.shape, (96, 112, 96), strict=True))  # fmt: skip
    data = np.ascontiguousarray(whole.data[box])
    return Volume(data, Grid(data.shape, whole.grid.affine))


@pytest.mark.parametrize("name", ["compact-2mm", "compact-1mm"])
def test_the_shipped_models_equal_stock(real_head, name):
    folder = resource("data", "models", name)
    stock = stock_labels(folder, real_head)
    assert len(np.unique(stock)) > 12
    for engine in ENGINES:
        segmenter = NnunetSegmenter(NnunetModel.open(folder), CPU, replace(EXACT, engine=engine))
        ours = segmenter.segment(real_head).segmentation.data
        assert (ours == stock).mean() >= 0.9999, engine


EMULATED = pytest.mark.skipif(
    not has_fast_bfloat16(), reason="this CPU emulates bfloat16, for hours"
)
FAST = [
    pytest.param("compact", "bfloat16", marks=EMULATED),
    pytest.param("compact-2mm", "bfloat16", marks=EMULATED),
]


@pytest.mark.parametrize(("name", "precision"), FAST)
def test_the_shipped_models_in_less_precision_label_a_whole_scan_as_in_float32(name, precision):
    record = find_model(name)
    assert precision in record.precisions  # what this test is the ground for
    path = resource("data", "sample_bids", "sub-seg3d", "anat", "sub-seg3d_T1w.nii.gz")
    volume = load_volume(path)
    exact, fast = (
        CascadeSegmenter(Cascade.open(record), CPU, Inference(precision=each))
        .segment(volume)
        .segmentation.data
        for each in ("float32", precision)
    )
    assert len(np.unique(exact)) > 12
    assert (fast == exact).mean() >= 0.999


@pytest.mark.parametrize(
    ("known", "fast", "default"),
    [
        ((), True, "float32"),
        (("bfloat16",), False, "float32"),
        (("bfloat16",), True, "bfloat16"),
    ],
)
def test_the_default_is_what_the_model_is_known_to_bear_and_the_cpu_is_fast_in(
    tiny_model, monkeypatch, known, fast, default
):
    monkeypatch.setattr("siam_bids.inference.cost.has_fast_bfloat16", lambda: fast)
    model = NnunetModel.open(tiny_model, precisions=known)

    def precision(requested):
        return NnunetSegmenter(model, CPU, Inference(precision=requested)).load.precision

    assert precision("auto") == default
    assert (precision("float32"), precision("bfloat16")) == ("float32", "bfloat16")


def test_a_head_in_a_corner_is_cropped_and_put_back(tiny_model, head):
    shape = tuple(n + 30 for n in head.grid.shape)
    data = np.zeros(shape, np.float32)
    data[25:-5, 3:-27, 20:-10] = head.data
    segmenter = NnunetSegmenter(NnunetModel.open(tiny_model), CPU)
    whole = segmenter.segment(Volume(data, Grid(shape, head.grid.affine))).segmentation.data
    part = segmenter.segment(head).segmentation.data
    np.testing.assert_array_equal(whole[25:-5, 3:-27, 20:-10], part)
    assert not whole[:25].any()


def test_probabilities_lie_between_0_and_1_and_win_where_the_label_is(tiny_model, head):
    model = NnunetModel.open(tiny_model)
    names = [label.name for label in model.labels]
    prediction = NnunetSegmenter(model, CPU).segment(head, probabilities=names)
    stack = np.stack([prediction.probabilities[name] for name in names])
    np.testing.assert_allclose(stack.sum(0), 1, atol=1e-4)
    np.testing.assert_array_equal(stack.argmax(0), prediction.segmentation.data)
    with pytest.raises(KeyError):
        prediction.probabilities["Gold"]


def test_all_probabilities_take_the_memory_of_one(tiny_model):
    """Beside the logits, which stay at the network's resolution."""
    shape = (96, 96, 96)
    data = np.random.default_rng(0).normal(100, 30, shape).astype(np.float32)
    fine = Volume(data, Grid(shape, np.diag([1.0, 1.0, 1.0, 1.0])))
    model = NnunetModel.open(tiny_model)
    segmenter = NnunetSegmenter(model, CPU, EXACT)
    names = [label.name for label in model.labels]
    prediction = segmenter.segment(fine, probabilities=names)
    tracemalloc.start()
    for probability in prediction.probabilities.values():
        assert probability.shape == shape
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (
        peak < 5 * data.nbytes + 50_000
    )  # and Python's own objects; with copies while axes are turned; all would take 18


class Evil:
    """Runs code when unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_malicious_checkpoint_is_refused_and_runs_nothing(tmp_path):
    proof = tmp_path / "owned"
    torch.save({"network_weights": Evil(proof)}, tmp_path / "checkpoint_final.pth")
    with pytest.raises(ModelError, match=r"checkpoint_final\.pth is not a usable checkpoint"):
        load_weights(tmp_path / "checkpoint_final.pth")
    assert not proof.exists()
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil(proof), protocol=2))
    with pytest.raises(ModelError, match="not a usable checkpoint"):
        load_weights(tmp_path / "plain.pth")
    assert not proof.exists()


def test_a_stock_checkpoint_with_training_logs_loads(tmp_path):
    content = {
        "network_weights": {"module.a": torch.ones(2)},
        "logging": {"ema_fg_dice": [np.float64(0.5)], "losses": np.zeros(3, np.float32)},
        "_best_ema": np.float64(0.7),
        "init_args": {"configuration": "3d_fullres"},
    }
    torch.save(content, tmp_path / "checkpoint_final.pth")
    weights = load_weights(tmp_path / "checkpoint_final.pth")
    assert list(weights) == ["a"]


def test_incomplete_model_folders_are_named(tmp_path):
    with pytest.raises(ModelError, match=r"plans\.json cannot be read"):
        NnunetModel.open(tmp_path)
    folder = write_model(tmp_path / "model")
    (folder / "fold_0" / "checkpoint_final.pth").unlink()
    with pytest.raises(ModelError, match=r"no fold_\*/checkpoint_final"):
        NnunetModel.open(folder)


def test_weights_of_another_network_are_refused(tmp_path, head):
    folder = write_model(tmp_path / "model")
    other = write_model(tmp_path / "other", features=(4, 6))
    name = "fold_0/checkpoint_final.pth"
    (folder / name).write_bytes((other / name).read_bytes())
    with pytest.raises(ModelError, match=r"does not fit the network in plans\.json"):
        NnunetSegmenter(NnunetModel.open(folder), CPU).segment(head)


def test_labels_come_from_the_models_own_dataset_json(tmp_path):
    folder = write_model(tmp_path / "model")
    dataset = json.loads((folder / "dataset.json").read_text())
    dataset["labels"].update(GM=2, WM=1)
    (folder / "dataset.json").write_text(json.dumps(dataset))
    labels = NnunetModel.open(folder).labels.by_name
    assert (labels["GM"].index, labels["WM"].index) == (2, 1)
