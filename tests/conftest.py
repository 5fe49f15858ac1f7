"""Fixtures: small heads, small models, small datasets. Nothing here needs files from outside."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from siam_bids.anatomy import Anatomy, source_table
from siam_bids.labels import siam_labels
from siam_bids.nnunet import CONFIGURATION, build_network, checkpoint, compact_plans
from siam_bids.synthesis import Recipe, render
from siam_bids.volume import Grid, Volume

SHAPE = (40, 48, 44)


def affine_of(codes: str, sizes=(1.0, 1.0, 1.0), tilt=0.2) -> np.ndarray:
    """Affine whose axes point towards `codes`, tilted about the left-right axis (radians)."""
    affine = np.eye(4)
    for axis, code in enumerate(codes):
        affine[:3, axis] = 0
        affine["LRPAIS".index(code) // 2, axis] = 1 if code in "RAS" else -1
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    affine = turn @ affine @ np.diag([*sizes, 1.0])
    affine[:3, 3] = (3.5, -20.0, 11.0)
    return affine


def head_labels(shape=SHAPE) -> np.ndarray:
    """Nested ellipsoids in SIAM's labels: head, skull, CSF, GM, WM, ventricles, two nuclei."""
    axes = np.ogrid[tuple(slice(-1, 1, complex(0, n)) for n in shape)]
    radius = np.sqrt(
        sum((axis / edge) ** 2 for axis, edge in zip(axes, (0.9, 0.95, 0.9), strict=True))
    )
    labels = np.zeros(shape, np.int32)
    for limit, value in ((1.0, 16), (0.86, 15), (0.76, 3), (0.7, 1), (0.55, 2), (0.2, 4)):
        labels[radius < limit] = value
    for sign in (-1, 1):
        near = sum(
            (axis - at) ** 2 for axis, at in zip(axes, (0.28 * sign, 0.05, 0.0), strict=True)
        )
        labels[near < 0.012] = 6
    return labels


@pytest.fixture(scope="session")
def labels() -> np.ndarray:
    return head_labels()


@pytest.fixture(scope="session")
def anatomy(labels) -> Anatomy:
    return Anatomy(np.pad(labels, 1).astype(np.uint8), (1.0, 1.0, 1.0), source_table("siam"))


@pytest.fixture(scope="session")
def head(anatomy) -> Volume:
    """A clean T1-weighted head of about 50^3 voxels, 4 mm each, so that it is head-sized."""
    image = render(anatomy, Recipe(seed=1)).image.numpy()
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -4 * np.array(image.shape) / 2
    return Volume(image * 200, Grid(image.shape, affine))


def write_model(folder: Path, *, patch=32, spacing=4.0, folds=1, features=(4, 8)) -> Path:
    """A valid model folder with seeded random weights."""
    plans = compact_plans(
        name="Dataset999_Test", features=features, patch=(patch,) * 3, spacing=spacing
    )
    dataset = {
        "channel_names": {"0": "any"},
        "labels": {label.name: label.index for label in siam_labels()},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    architecture = plans["configurations"][CONFIGURATION]["architecture"]
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    for fold in range(folds):
        torch.manual_seed(fold)
        network = build_network(architecture, channels=1, classes=len(siam_labels()))
        (folder / f"fold_{fold}").mkdir()
        torch.save(
            checkpoint(network.state_dict()), folder / f"fold_{fold}" / "checkpoint_final.pth"
        )
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


def write_scan(path: Path, volume: Volume) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume.data.astype(np.int16), volume.grid.affine), path)
    return path


def write_dataset(root: Path, head: Volume) -> Path:
    """Three subjects: one plain, one with two sessions and contrasts, one with a damaged scan."""
    for name in (
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz",
        "sub-02/ses-b/anat/sub-02_ses-b_run-1_FLAIR.nii.gz",
        "sub-03/anat/sub-03_T2w.nii.gz",
    ):
        write_scan(root / name, head)
    (root / "sub-03/anat/sub-03_T1w.nii.gz").write_bytes(b"\x1f\x8bthis is no gzip stream")
    (root / "dataset_description.json").write_text('{"Name": "Test", "BIDSVersion": "1.10.0"}')
    (root / "participants.tsv").write_text(
        "participant_id\tage\tsex\nsub-01\t31\tF\nsub-02\tn/a\tM\n"
    )
    return root


@pytest.fixture
def bids(tmp_path, head) -> Path:
    return write_dataset(tmp_path / "bids", head)
