"""Model folders that stock nnU-Net's own trainer wrote: several releases, under numpy 1 and 2.

benchmarks/genuine.py made them, and stored beside each what the same release's predictor labels.
"""

import hashlib
import json
import os
import pickletools
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT
from stock import stock_labels

from siam_bids import cli
from siam_bids.cli import models as models_command, segment
from siam_bids.config import Inference
from siam_bids.errors import ModelError
from siam_bids.image.loading import load_volume
from siam_bids.inference.segmenter import NnunetSegmenter
from siam_bids.models.folder import CHECKPOINT, CONVERTED
from siam_bids.nnunet.checkpoints import convert_checkpoints, load_weights
from siam_bids.nnunet.model import NnunetModel

PLACE = ROOT / "tests" / "genuine"
SCAN = PLACE / "seg3d_4mm.nii.gz"
FOLDERS = {path.name.removeprefix("nnunet-"): path for path in sorted(PLACE.glob("nnunet-*"))}
HEADS = {
    name: path
    for name, path in FOLDERS.items()
    if name.endswith(("plain", "resenc", "lowres", "thick", "ignore"))
}
NUMPY_1, NUMPY_2 = "2.5.1_numpy-1.26.4_resenc", "2.8.1_numpy-2.4.6_plain"
EXACT = Inference(precision="float32")
pytestmark = pytest.mark.skipif(not FOLDERS, reason="only the repository holds them")
SHARED = ROOT.parent / "shared" / "checkpoints" / "stock_2.5.1_numpy_1.26.4"


@pytest.fixture(scope="module")
def scan():
    return load_volume(SCAN)


def labels_of(folder: Path, volume, options: Inference = EXACT) -> np.ndarray:
    model = NnunetModel.open(folder)
    segmenter = NnunetSegmenter(model, torch.device("cpu"), options)
    return segmenter.segment(volume).segmentation.data


def alike(ours: np.ndarray, stock: np.ndarray) -> float:
    assert len(np.unique(stock)) > 2  # a comparison of empty maps would prove nothing
    return float((ours == stock).mean())


def test_every_release_is_there_with_both_numpys_and_both_networks():
    made = {tuple(name.split("_numpy-")) for name in FOLDERS}
    for release in ("2.2.1", "2.4.2", "2.5.1", "2.6.2", "2.8.1"):
        for rest in ("1.26.4_plain", "2.4.6_plain", "2.4.6_resenc"):
            assert (release, rest) in made
    for release in ("2.2.1", "2.5.1"):  # elsewhere left out for size
        assert (release, "1.26.4_resenc") in made
    size = sum(path.stat().st_size for path in PLACE.rglob("*") if path.is_file())
    assert size < 3_000_000


@pytest.mark.parametrize("name", FOLDERS)
def test_what_their_pickles_name_is_what_is_allowed(name):
    with zipfile.ZipFile(FOLDERS[name] / "fold_0" / CHECKPOINT) as archive:
        inner = next(part for part in archive.namelist() if part.endswith("/data.pkl"))
        named = {
            argument.replace(" ", ".")
            for code, argument, _ in pickletools.genops(archive.read(inner))
            if code.name == "GLOBAL"
        }
    core = "numpy.core" if "numpy-1" in name else "numpy._core"
    assert f"{core}.multiarray.scalar" in named
    assert named <= {
        "_codecs.encode", "collections.OrderedDict", "numpy.dtype", f"{core}.multiarray.scalar",
        f"{core}.multiarray._reconstruct", "numpy.ndarray", "torch.FloatStorage", "torch.device",
        "torch._utils._rebuild_tensor_v2",
    }  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_the_weights_and_what_is_said_of_them_are_read(name):
    model = NnunetModel.open(HEADS[name])
    (checkpoint,) = model.checkpoints
    assert checkpoint.mirror_axes == (0, 1, 2)
    assert model.plan.name == ("3d_lowres" if "lowres" in name else "3d_fullres")
    weights = load_weights(checkpoint.path)
    assert {key: tuple(value.shape) for key, value in weights.items()} == checkpoint.shapes
    assert sum(float(value.abs().sum()) for value in weights.values()) > 1
    content = model.plans["configurations"]["3d_fullres"]
    assert ("architecture" in content) == (not name.startswith("2.2.1"))
    assert model.plan.configuration["architecture"]["network_class_name"].endswith(
        "ResidualEncoderUNet" if "resenc" in name else "PlainConvUNet"
    )


@pytest.mark.parametrize("name", HEADS)
def test_labels_are_those_of_the_release_that_trained_it_before_and_after_conversion(
    tmp_path, scan, name
):
    ours = labels_of(HEADS[name], scan)
    stock = np.asarray(nib.load(HEADS[name] / "stock_labels.nii.gz").dataobj)
    assert alike(ours, stock) >= 0.9999
    folder = shutil.copytree(HEADS[name], tmp_path / "model")
    convert_checkpoints(folder)
    assert [path.name for path in (folder / "fold_0").iterdir()] == [CONVERTED]
    assert NnunetModel.open(folder).plan.name == NnunetModel.open(HEADS[name]).plan.name
    np.testing.assert_array_equal(labels_of(folder, scan), ours)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("name", [NUMPY_1, "2.2.1_numpy-1.26.4_plain", NUMPY_2])
def test_labels_are_those_of_the_installed_release_mirrored_too(scan, name, mirror, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # of stock nnU-Net alone
    stock = stock_labels(HEADS[name], scan, mirror=mirror)
    options = Inference(precision="float32", mirror=mirror)
    assert alike(labels_of(HEADS[name], scan, options), stock) >= 0.9999


@pytest.mark.parametrize("name", [NUMPY_1, NUMPY_2])
def test_it_is_fetched_verified_and_run(tmp_path, server, monkeypatch, capsys, name):
    about = {
        "title": "T", "version": "1", "licence": "", "citation": "", "folder": "v/genuine",
        "archive": {"url": "https://localhost/genuine.tar.gz"},
    }  # fmt: skip
    monkeypatch.setattr("siam_bids.models.registry.registry", lambda: {"genuine": about})
    monkeypatch.setenv("SIAM_MODEL_DIR", str(tmp_path / "models"))
    archive = tmp_path / "genuine.tar.gz"
    with tarfile.open(archive, "w:gz") as content:
        content.add(HEADS[name], "some/DS107")
    checksum = ["--checksum", f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}"]
    fetch = ["fetch", "genuine", *checksum]
    assert models_command.main([*fetch, "--archive", str(archive)]) == 0
    folder = tmp_path / "models" / "v" / "genuine"
    assert (folder / "fold_0" / CONVERTED).exists()
    assert not (folder / "fold_0" / CHECKPOINT).exists()
    assert models_command.main(["verify", "genuine"]) == 0
    assert models_command.main(["remove", "genuine"]) == 0
    server.files["genuine.tar.gz"] = archive.read_bytes()
    assert models_command.main([*fetch, "--mirror", server.url]) == 0
    assert models_command.main(["verify", "genuine"]) == 0
    capsys.readouterr()
    words = [str(SCAN), str(tmp_path / "o.nii.gz"), "--model", "genuine", "--device", "cpu"]
    assert segment.main(words) == 0
    ours = np.asarray(nib.load(tmp_path / "o.nii.gz").dataobj)
    stock = np.asarray(nib.load(HEADS[name] / "stock_labels.nii.gz").dataobj)
    assert alike(ours, stock) >= 0.9999


def test_a_whole_run_of_a_dataset(tmp_path):
    raw = tmp_path / "raw"
    (raw / "sub-01" / "anat").mkdir(parents=True)
    shutil.copy(SCAN, raw / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    (raw / "dataset_description.json").write_text('{"Name": "T", "BIDSVersion": "1.10.0"}')
    words = [str(raw), str(tmp_path / "out"), "participant", "--model", str(HEADS[NUMPY_1])]
    assert cli.main([*words, "--device", "cpu", "--n-cpus", "1"]) == 0
    (made,) = (tmp_path / "out").rglob("*_dseg.nii.gz")
    stock = np.asarray(nib.load(HEADS[NUMPY_1] / "stock_labels.nii.gz").dataobj)
    assert alike(np.asarray(nib.load(made).dataobj), stock) >= 0.9999


def test_a_2d_configuration_is_refused_in_one_line():
    two = next(path for name, path in FOLDERS.items() if name.endswith("2d"))
    with pytest.raises(ModelError, match="it is a 2-D configuration; only 3-D ones are supported"):
        NnunetModel.open(two)


def test_a_torchvision_that_does_not_fit_torch_does_not_matter(tmp_path):
    for name in ("torchvision", "timm"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('does not fit')\n")
    residual = {name: str(path) for name, path in HEADS.items() if "resenc" in name}
    code = (
        "from pathlib import Path\n"
        "from siam_bids.nnunet.model import NnunetModel\n"
        f"for folder in {list(residual.values())}:\n"
        "    print(type(NnunetModel.open(Path(folder)).sketch).__name__)\n"
        "import sys; sys.exit('timm' in sys.modules or 'torchvision' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ResidualEncoderUNet"] * len(residual)


@pytest.mark.skipif(not SHARED.exists(), reason="no checkpoint beside the checkout")
def test_a_checkpoint_of_18_labels_opens(tmp_path):
    model = NnunetModel.open(SHARED)
    assert len(model.labels) == 18
    about = json.loads((SHARED / "dataset.json").read_text())
    assert [label.name for label in model.labels] == list(about["labels"])
