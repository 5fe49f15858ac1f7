"""What computes a network: OpenVINO against torch, and who takes over when."""

import json
import logging
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import write_model, write_scan

from siam_bids.cli import segment as segment_command
from siam_bids.config import Inference
from siam_bids.errors import ModelError, UsageError
from siam_bids.inference.cost import load_of
from siam_bids.inference.device import has_openvino
from siam_bids.inference.openvino_engine import graph_of
from siam_bids.inference.segmenter import NnunetSegmenter
from siam_bids.models.folder import CHECKPOINT
from siam_bids.nnunet.model import NnunetModel
from siam_bids.support.cpu import has_fast_bfloat16

CPU = torch.device("cpu")
COST = "siam_bids.inference.cost"
OPENVINO = pytest.mark.skipif(not has_openvino(), reason="OpenVINO is not installed")


def segmenter(folder, device=CPU, **options):
    return NnunetSegmenter(NnunetModel.open(folder), device, Inference(**options))


def labels(folder, volume, **options):
    return segmenter(folder, **options).segment(volume).segmentation.data


@OPENVINO
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("folds", [1, 3])
def test_openvino_labels_as_torch_does(tmp_path, head, folds, mirrored):
    folder = write_model(tmp_path / "m", folds=folds)
    for path in folder.glob(f"fold_*/{CHECKPOINT}"):
        content = torch.load(path, weights_only=True)
        torch.save({**content, "inference_allowed_mirroring_axes": (0, 2)}, path)
    fast = segmenter(folder, engine="openvino", mirror=mirrored)
    assert fast.load.engine == "openvino"
    expected = labels(folder, head, engine="torch", mirror=mirrored)
    assert len(np.unique(expected)) > 3
    for _ in range(2):  # the weights of all folds are exchanged once more
        found = fast.segment(head).segmentation.data
        assert (found == expected).mean() >= 0.9999


@OPENVINO
def test_openvinos_logits_are_as_exact_as_torchs():
    """Its own normalisation adds up voxels one by one: 4e-6 here, 1e-4 in deep networks."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv3d(1, 8, 3, padding=1), torch.nn.InstanceNorm3d(8, affine=True),
        torch.nn.LeakyReLU(),
    ).eval()  # fmt: skip
    image = 5 * torch.randn((1, 1, 96, 96, 60)) + 20
    from openvino import Core

    graph = graph_of(network, tuple(image.shape))
    found = Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(image.numpy())[
        0
    ]
    with torch.inference_mode():
        single = network(image).double()
        expected = network.double()(image.double())
    error = float((torch.from_numpy(found) - expected).square().mean().sqrt())
    assert error < 1.5e-6
    assert error < 4 * float((single - expected).square().mean().sqrt())


@OPENVINO
def test_openvino_runs_networks_of_regions(tmp_path, head):
    folder = write_model(tmp_path / "m", channels=2)
    inside = head.data > np.median(head.data)
    one, two = (
        segmenter(folder, engine=engine).segment(head, inside=inside).segmentation.data
        for engine in ("torch", "openvino")
    )
    assert (one == two).mean() >= 0.9999


@OPENVINO
@pytest.mark.skipif(not has_fast_bfloat16(), reason="this CPU emulates bfloat16")
def test_openvino_in_bfloat16_labels_nearly_the_same(tiny_model, head):
    fast = segmenter(tiny_model, engine="openvino", precision="bfloat16")
    assert (fast.load.engine, fast.load.precision) == ("openvino", "bfloat16")
    found, expected = fast.segment(head).segmentation.data, labels(tiny_model, head)
    assert (found != expected).any()
    assert (found == expected).mean() > 0.98


@pytest.mark.parametrize(
    ("there", "options", "engine", "lean"),
    [
        (True, {}, "openvino", False),
        (False, {}, "torch", True),
        (True, {"low_memory": True}, "torch", True),
        (True, {"engine": "torch"}, "torch", True),
        (True, {"low_memory": True, "engine": "openvino"}, "openvino", False),
    ],
)
def test_openvino_is_taken_where_it_is_installed_unless_memory_is_to_be_saved(
    tiny_model, monkeypatch, there, options, engine, lean
):
    monkeypatch.setattr(f"{COST}.has_openvino", lambda: there)
    load = load_of(NnunetModel.open(tiny_model), CPU, Inference(**options))
    assert (load.engine, load.lean) == (engine, lean)


@pytest.mark.parametrize(
    ("asked", "precision"),
    [("auto", "float16"), ("float32", "float32"), ("bfloat16", "bfloat16")],
)
def test_cuda_computes_by_torch_in_the_precision_asked_for(tiny_model, asked, precision):
    load = load_of(NnunetModel.open(tiny_model), torch.device("cuda"), Inference(precision=asked))
    assert (load.engine, load.lean, load.precision) == ("torch", False, precision)


def test_openvino_is_not_asked_for_where_it_cannot_run(tiny_model, monkeypatch):
    model = NnunetModel.open(tiny_model)
    with pytest.raises(UsageError, match="OpenVINO runs on a CPU"):
        load_of(model, torch.device("cuda"), Inference(engine="openvino"))
    monkeypatch.setattr(f"{COST}.has_fast_bfloat16", lambda: False)
    with pytest.raises(UsageError, match="This CPU is not fast in bfloat16"):
        load_of(model, CPU, Inference(engine="openvino", precision="bfloat16"))
    assert load_of(model, CPU, Inference(precision="bfloat16")).engine == "torch"


def test_a_missing_openvino_is_one_line(tmp_path, tiny_model, head, monkeypatch, capsys):
    monkeypatch.setattr("siam_bids.inference.openvino_engine.has_openvino", lambda: False)
    scan = write_scan(tmp_path / "a.nii.gz", head)
    command = [str(scan), str(tmp_path / "b.nii.gz"), "--model", str(tiny_model)]
    assert segment_command.main([*command, "--engine", "openvino"]) == 2
    assert "OpenVINO is not installed. " in capsys.readouterr().err


@OPENVINO
def test_the_sidecar_names_the_engine_but_does_not_depend_on_it(tmp_path, tiny_model, head):
    scan = write_scan(tmp_path / "a.nii.gz", head)
    for engine in ("torch", "openvino"):
        out = tmp_path / f"{engine}.nii.gz"
        command = [str(scan), str(out), "--model", str(tiny_model), "--engine", engine]
        assert segment_command.main(command) == 0
        content = json.loads((tmp_path / f"{engine}.json").read_text())
        assert (content["Engine"], content["Options"]) == (engine, {})
        assert re.match(r"\d{4}\.", content["Software"]["openvino"])


def warned(caplog):
    (record,) = (each for each in caplog.records if each.levelno == logging.WARNING)
    return record.getMessage()


def failing(network, shape, *, exact):
    raise RuntimeError("GroupNorm is not known")


@OPENVINO
def test_torch_takes_over_where_openvino_fails(tiny_model, head, monkeypatch, caplog):
    expected = labels(tiny_model, head, engine="torch")
    monkeypatch.setattr("siam_bids.inference.openvino_engine.graph_of", failing)
    fallen = segmenter(tiny_model)
    np.testing.assert_array_equal(fallen.segment(head).segmentation.data, expected)
    assert (fallen.load.engine, fallen.load.lean) == ("torch", True)
    assert warned(caplog) == (
        "OpenVINO cannot run this network (GroupNorm is not known): continuing with torch."
    )
    with pytest.raises(ModelError, match=r"cannot run tiny: GroupNorm is not known\. Give"):
        labels(tiny_model, head, engine="openvino")


@OPENVINO
def test_a_scan_that_openvino_lacks_memory_for_is_run_in_pieces(
    tiny_model, head, monkeypatch, caplog
):
    monkeypatch.setattr(f"{COST}.SLAB", 1024)  # of a size with the tiny network
    expected = labels(tiny_model, head, engine="torch")
    whole = segmenter(tiny_model).memory_of_scan(head.grid)
    pieces = segmenter(tiny_model, engine="torch").memory_of_scan(head.grid)
    assert pieces < whole
    between = (whole + pieces) / 2
    small = segmenter(tiny_model, memory=between)
    np.testing.assert_array_equal(small.segment(head).segmentation.data, expected)
    assert (small.load.engine, small.load.lean) == ("torch", True)
    assert warned(caplog) == (
        f"The scan needs about {whole / 1e9:.1f} GB of memory; {between / 1e9:.1f} GB are given: "
        "continuing in smaller pieces."
    )


QUIET = """
import socket, sys, urllib.request
def refuse(*args, **kwargs):
    raise SystemExit("the network was asked for")
socket.socket.connect = socket.getaddrinfo = urllib.request.urlopen = refuse
import torch
from pathlib import Path
from siam_bids.config import Inference
from siam_bids.image.loading import load_volume
from siam_bids.inference.segmenter import NnunetSegmenter
from siam_bids.nnunet.model import NnunetModel
model = NnunetModel.open(Path(sys.argv[1]))
segmenter = NnunetSegmenter(model, torch.device("cpu"), Inference(engine="openvino"))
segmenter.segment(load_volume(Path(sys.argv[2])))
print([name for name, module in sys.modules.items() if "openvino_telemetry" in name and module])
"""


@OPENVINO
def test_openvino_tells_nobody(tmp_path, tiny_model, head):
    """Its telemetry would send an event with each import and keep an identity in ~/intel."""
    scan = write_scan(tmp_path / "a.nii.gz", head)
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", QUIET, str(tiny_model), str(scan)],
        env={"HOME": str(home), "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
    assert not (home / "intel").exists()
