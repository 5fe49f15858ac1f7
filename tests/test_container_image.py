"""The image, built by buildah and run with a read-only system, a user without name, no HOME, no
network, 1 MB of /tmp and of /dev/shm; then as a SLURM task in Apptainer, where that is installed.
Takes minutes and 10 GB of disk: SIAM_BIDS_IMAGE=1 asks.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_program

from siam_bids.bids.names import finished_scans
from siam_bids.cli import slurm

MISSING = [name for name in ("buildah", "bwrap", "debootstrap") if not shutil.which(name)]
pytestmark = [
    pytest.mark.skipif("SIAM_BIDS_IMAGE" not in os.environ, reason="SIAM_BIDS_IMAGE is not set"),
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to unpack images"),
]
SCRIPT = ROOT / "benchmarks" / "image.sh"
BUILDAH = {"STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot"}


def pip_of_this_machine(place: Path) -> list[str]:
    """Options that let pip inside the build find packages as pip here does."""
    pip = [sys.executable, "-m", "pip", "config", "list"]
    said = subprocess.run(pip, check=True, capture_output=True, text=True).stdout.replace(
        r"\n", " "
    )
    settings = dict(re.findall(r"^[\w:-]+\.([\w-]+)='(.*)'$", said, re.MULTILINE))
    lines = [f"{name} = {value}" for name, value in settings.items()]
    (place / "pip.conf").write_text("\n".join(["[global]", *lines, ""]))
    mounts = {"/etc/pip.conf": place / "pip.conf"}
    for path in re.findall(r"(?:file://)?(/[^\s'\\]+)", " ".join(settings.values())):
        folder = path.removesuffix("/simple")  # an index, whose files lie beside it
        if Path(folder).exists():
            mounts[folder] = Path(folder)
    volumes = [f"--volume={source}:{target}:ro" for target, source in mounts.items()]
    return [*volumes, *(["--build-arg=PIP_OPTIONS="] if settings else [])]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[str, Path]:
    """What the script said, and the folder it worked in."""
    place = tmp_path_factory.mktemp("image")
    done = subprocess.run(
        [str(SCRIPT), str(place / "work"), *pip_of_this_machine(place)],
        env={**os.environ, **BUILDAH, "BASE": "debian"},
        check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    (place / "figures").write_text(done.stdout)  # for benchmarks/image.md
    return done.stdout, place / "work"


def figure(said: str, name: str) -> float:
    (value,) = re.findall(rf"^{re.escape(name)}: ([\d.]+)", said, re.MULTILINE)
    return float(value)


def test_size_and_start(run):
    said, _ = run
    assert figure(said, "size") < 2500
    assert figure(said, "siam-bids --version, again") < 1
    assert figure(said, "siam-bids --help, again") < 1


def test_the_sample_job_is_done_under_all_restrictions(run):
    _, work = run
    scans = {path.name for path in (ROOT / "data/sample_bids").rglob("*.nii.gz")}
    assert {f"{names.name}.nii.gz" for names in finished_scans(work / "out")} == scans
    table = (work / "out" / "group_desc-wide_volumes.tsv").read_text().splitlines()
    assert len(table) == 1 + len(scans)


def test_the_image_says_what_it_is(run):
    done = subprocess.run(
        ["buildah", "inspect", "--type", "image", "siam-bids"],
        env={**os.environ, **BUILDAH}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    config = json.loads(done.stdout)["Docker"]["config"]
    assert config["Entrypoint"] == ["siam-bids"]
    assert config["User"] == "1000"
    assert config["Healthcheck"]["Test"] == ["CMD", "siam-bids", "--version"]
    assert config["Labels"]["org.opencontainers.image.title"] == "siam-bids"


@pytest.mark.skipif(not shutil.which("apptainer"), reason="needs apptainer")
def test_slurm_scripts_run_the_image_in_apptainer(run, tmp_path):
    """Archive, SIF, `siam-bids-slurm`, a task and the group: as `docs/clusters.md` says."""
    environment = {
        **os.environ, **BUILDAH, "APPTAINER_USERNS": "1", "APPTAINER_CACHEDIR": str(tmp_path),
        "APPTAINER_TMPDIR": str(tmp_path), "SLURM_ARRAY_TASK_ID": "1",
    }  # fmt: skip

    def call(*command):
        run_program(command, tmp_path, environment)

    call("buildah", "push", "--quiet", "siam-bids", "docker-archive:siam-bids.tar")
    call("apptainer", "build", "siam-bids.sif", "docker-archive://siam-bids.tar")
    (tmp_path / "siam-bids.tar").unlink()
    study = tmp_path / "study"
    shutil.copytree(ROOT / "data" / "sample_bids", study)
    out = study / "derivatives" / "siam-bids"
    words = ["--container", tmp_path / "siam-bids.sif", "--bids-database-dir", tmp_path / "index"]
    words += ["--participant-label", "colin27", "--", "--probabilities", "GM"]
    assert slurm.main([str(study), str(out), *map(str, words)]) == 0
    call("bash", out / "code/slurm/participant.sbatch")
    call("bash", out / "code/slurm/group.sbatch")
    (names,) = finished_scans(out)
    assert names.name == "sub-colin27_T1w"
    assert names.probability("GM").exists()
    about = json.loads((out / "dataset_description.json").read_text())
    assert about["DatasetLinks"]["raw"] == study.as_uri()
    assert len((out / "group_desc-wide_volumes.tsv").read_text().splitlines()) == 2
