"""Fixtures: small heads, small models, small datasets. Nothing here needs files from outside."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from server import Server, serving

from siam_bids.config import RunConfig
from siam_bids.image.grid import Grid, Volume
from siam_bids.image.labels import siam_labels
from siam_bids.nnunet.architecture import build_network
from siam_bids.nnunet.model import CONFIGURATION
from siam_bids.nnunet.write import checkpoint, compact_plans
from siam_bids.support.atomic_files import sha256
from siam_bids.synthesis.label_maps import Anatomy, source_table
from siam_bids.synthesis.recipe import Recipe
from siam_bids.synthesis.render import render

ROOT = Path(__file__).resolve().parent.parent
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


@pytest.fixture(scope="session")
def small_head(head) -> Volume:
    """The head as if its voxels were of 1 mm: the embedded model needs a tile or two for it."""
    return Volume(head.data, Grid(head.grid.shape, np.diag([1.0, 1.0, 1.0, 1.0])))


def write_model(
    folder: Path, *, patch=32, spacing=4.0, folds=1, features=(4, 8), names=(), channels=1
) -> Path:
    """A valid model folder with seeded random weights; its labels are SIAM's unless named.

    The first channel is the image, further ones masks.
    """
    names = names or [label.name for label in siam_labels()]
    plans = compact_plans(
        name="Dataset999_Test", features=features, patch=(patch,) * 3, spacing=spacing
    )
    plan = plans["configurations"][CONFIGURATION]
    schemes = ("ZScoreNormalization", *["NoNormalization"] * (channels - 1))
    plan["normalization_schemes"] = list(schemes)
    plan["use_mask_for_norm"] = [False] * channels
    for channel in range(1, channels):
        plans["foreground_intensity_properties_per_channel"][str(channel)] = {}
    dataset = {
        "channel_names": {str(channel): "any" for channel in range(channels)},
        "labels": {name: index for index, name in enumerate(names)},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    for fold in range(folds):
        torch.manual_seed(fold)
        network = build_network(plan["architecture"], channels=channels, classes=len(names))
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


def describe(root: Path, **more: object) -> None:
    """Write a dataset's description."""
    about = {"Name": "Test", "BIDSVersion": "1.10.0", **more}
    (root / "dataset_description.json").write_text(json.dumps(about))


def write_raw(root: Path, volume: Volume, *stems: str) -> Path:
    """A dataset of scans with these names (`sub-01_ses-a_T1w`), all of the same content."""
    for stem in stems:
        subject, *others = stem.split("_")
        session = [word for word in others if word.startswith("ses-")]
        write_scan(root.joinpath(subject, *session, "anat", f"{stem}.nii.gz"), volume)
    describe(root)
    return root


def run_program(words: Sequence[object], place: Path, environment: Mapping[str, str]) -> str:
    """Run a program to success; return all that it prints."""
    done = subprocess.run(
        list(map(str, words)), cwd=place, check=False, text=True, env=dict(environment),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


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
    describe(root)
    (root / "participants.tsv").write_text(
        "participant_id\tage\tsex\nsub-01\t31\tF\nsub-02\tn/a\tM\n"
    )
    return root


@pytest.fixture(scope="session")
def cascade_file(tmp_path_factory) -> Path:
    """A cascade of two trained models; see `trained_models.write_cascade`."""
    from trained_models import write_cascade

    return write_cascade(tmp_path_factory.mktemp("cascade"))


@pytest.fixture(scope="session")
def pair(cascade_file) -> Path:
    """An ensemble of two trained models that disagree; see `trained_models.write_ensemble`."""
    from trained_models import write_ensemble

    return write_ensemble(cascade_file)


@pytest.fixture
def bids(tmp_path, head) -> Path:
    return write_dataset(tmp_path / "bids", head)


def run_config(bids: Path, out: Path, model: Path, **more) -> RunConfig:
    """A run of the participant level on one thread."""
    return RunConfig(
        bids_dir=bids, output_dir=out, level="participant", model=str(model), device="cpu",
        threads=1, command="siam-bids in out participant", **more,
    )  # fmt: skip


def checksums(root: Path, *, timeless=False) -> dict[str, str]:
    """Every file of a folder with its checksum; `timeless` omits those that tell the time taken."""
    return {
        path.relative_to(root).as_posix(): sha256(path)
        for path in sorted(root.rglob("*"))
        if path.is_file() and not (timeless and (path.suffix == ".html" or "logs" in path.parts))
    }


@pytest.fixture
def program(tmp_path) -> Path:
    """`siam-bids` of this checkout, as a command in a folder of its own."""
    path = tmp_path / "bin" / "siam-bids"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m siam_bids "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    """Where models are published, on this machine."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as server:
        yield server


@pytest.fixture(scope="session")
def genuine() -> Path:
    """Folder with models that stock nnU-Net's own trainer wrote, and a scan for them."""
    folder = ROOT / "tests" / "genuine"
    if not folder.exists():
        pytest.skip("needs tests/genuine, models that stock nnU-Net trained")
    return folder


@pytest.fixture(scope="session")
def tools() -> Path:
    """Folder with the programs of others that `make tools` installs."""
    folder = ROOT / ".venv-tools" / "bin"
    if not (folder / "nipoppy").exists():
        pytest.skip("needs `make tools`")
    return folder


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """Make a study as `write_study` does; one with the same arguments is written once."""
    made = {}

    def copy(place: Path, **arguments) -> tuple[Path, Path]:
        key = tuple(arguments.items())
        if key not in made:
            made[key] = write_study(tmp_path_factory.mktemp("study"), **arguments)
        raw, out = made[key]
        shutil.copytree(raw, place / "raw")
        shutil.copytree(out, place / "out")
        return place / "raw", place / "out"

    return copy


TISSUES = {"GM": 600.0, "WM": 500.0, "CSF": 250.0, "CSFv": 25.0, "Hippo": 8.0, "Head": 1700.0}


def write_study(place: Path, people=12, *, odd="sub-07", sessions=("",), name="Study") -> tuple:
    """A raw dataset and its results as the participant level leaves them, with known volumes.

    Person n is 20 + 3 n years old in the first session, one year older in each next; GM is 700 mL
    - 2 mL per year + 10 mL for women, and 100 mL more in the `odd` person, who is flagged too.
    """
    from siam_bids.bids.description import begin_dataset
    from siam_bids.bids.names import ScanNames, sidecar
    from siam_bids.bids.scan import BidsName
    from siam_bids.bids.writers import save_quality, save_volumes
    from siam_bids.image.grid import Segmentation
    from siam_bids.measures.volumes import tissue_volumes
    from siam_bids.reports.mosaics import draw

    raw, out = place / "raw", place / "out"
    rng = np.random.default_rng(0)
    data = head_labels().astype(np.uint8)
    grid = Grid(data.shape, np.diag([4.0, 4.0, 4.0, 1.0]))
    segmentation = Segmentation(data, grid, siam_labels())
    pictures = draw(Volume(data * 10.0 + 1, grid), segmentation)
    raw.mkdir(parents=True)
    begin_dataset(out, raw, siam_labels())
    lines = ["participant_id\tage\tsex"]
    for number in range(1, people + 1):
        subject, sex = f"{number:02d}", "FM"[number % 2]
        lines.append(f"sub-{subject}\t{20 + 3 * number}\t{sex}")
        (raw / f"sub-{subject}").mkdir()
        visits = ["session_id\tage"]
        for visit, session in enumerate(sessions):
            age = 20 + 3 * number + visit
            visits.append(f"ses-{session}\t{age}")
            stem = f"sub-{subject}" + (f"_ses-{session}" if session else "")
            names = ScanNames(out, BidsName.parse(f"{stem}_T1w"))
            strange = f"sub-{subject}" == odd
            table = tissue_volumes(segmentation).set_index("name")
            for tissue, size in TISSUES.items():
                table.loc[tissue, "volume_mL"] = size + rng.normal(0, 1)
            gray = 700 - 2 * age + 10 * (sex == "F") + 100 * strange + rng.normal(0, 0.5)
            table.loc["GM", "volume_mL"] = gray
            inside = table.loc[[n for n in TISSUES if n != "Head"], "volume_mL"].sum()
            table.loc["TIV", "volume_mL"] = inside
            names.anat.mkdir(parents=True, exist_ok=True)
            save_volumes(
                names.volumes,
                table.reset_index()[["index", "name", "voxels", "volume_mL"]],
                siam_labels(),
            )
            save_quality(
                names.quality,
                {
                    "TIV": inside,
                    "snr_WM": 8 + rng.normal(0, 0.1),
                    "brain_cut_top": 20.0 if strange else 0.0,
                },
            )
            for kind, content in pictures.items():
                names.figure(kind).parent.mkdir(parents=True, exist_ok=True)
                names.figure(kind).write_bytes(content)
            about = {
                "Sources": [f"bids:raw:{names.anat.relative_to(out)}/{names.name}.nii.gz"],
                "Model": {"Title": "tiny", "Version": "1", "SHA256": "0" * 64, "Citation": ""},
                "Software": {"siam-bids": "0"},
                "InputSHA256": hashlib.sha256(names.name.encode()).hexdigest(),
                "Grid": {"Shape": [40, 48, 44], "VoxelSize": [4, 4, 4], "Orientation": "RAS"},
            }  # fmt: skip
            sidecar(names.segmentation).write_text(json.dumps(about))
        if sessions != ("",):
            path = raw / f"sub-{subject}" / f"sub-{subject}_sessions.tsv"
            path.write_text("\n".join(visits) + "\n")
    (raw / "participants.tsv").write_text("\n".join(lines) + "\n")
    describe(raw, Name=name)
    return raw, out
