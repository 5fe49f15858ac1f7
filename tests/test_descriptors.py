"""What other tools read about the app, each checked by that tool, from `make tools`."""

import csv
import json
import os
import shlex
import shutil
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, run_program, write_raw

from siam_bids.bids.names import finished_scans
from siam_bids.cli import app

FOLDER = ROOT / "data" / "descriptors"
NIPOPPY = FOLDER / "nipoppy"
DESCRIPTOR = NIPOPPY / "descriptor.json"
INVOCATION = {
    "bids_dir": "in",
    "output_dir": "out",
    "analysis_level": "participant",
    "participant_label": ["01", "02"],
    "session_label": ["pre"],
    "suffix": ["T1w", "FLAIR"],
    "bids_filter_file": "filter.json",
    "model": "compact",
    "device": "cpu",
    "n_cpus": 2,
    "probabilities": ["GM"],
    "work_dir": "work",
    "overwrite": True,
}

SHIM = """#!/bin/sh
# In place of apptainer: no container, but the siam-bids of this checkout.
case "$1" in
    exec) while [ $# -gt 1 ]; do shift; done; exec sh "$1" ;;
    run) while [ "${1##*/}" != image ]; do shift; done; shift; exec siam-bids "$@" ;;
esac
"""


@pytest.fixture
def tool(tools, program, tmp_path):
    """Run a command that finds the tools, this checkout's siam-bids and no containers."""
    for name in ("apptainer", "singularity"):
        (program.parent / name).write_text(SHIM)
        (program.parent / name).chmod(0o755)
    git = {"user.name": "Test", "user.email": "test@example.org", "init.defaultBranch": "main"}
    environment = {
        **os.environ,
        "PATH": f"{program.parent}:{tools}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "GIT_CONFIG_COUNT": str(len(git)),
    }
    for number, (key, value) in enumerate(git.items()):
        environment |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}

    def run(command, *words, **more) -> str:
        return run_program([*shlex.split(command), *words], tmp_path, environment | more)

    return run


@pytest.fixture
def raw(tmp_path, small_head) -> Path:
    """One participant with two sessions."""
    return write_raw(tmp_path / "raw", small_head, "sub-a_ses-1_T1w", "sub-a_ses-2_T1w")


def done(out: Path) -> list[str]:
    return sorted(names.stem for names in finished_scans(out))


def test_the_descriptor_offers_only_what_the_command_line_has():
    inputs = json.loads(DESCRIPTOR.read_text())["inputs"]
    assert [item["id"] for item in inputs] == list(INVOCATION)
    ours = {word for action in app.parser()._actions for word in action.option_strings}
    flags = [item["command-line-flag"] for item in inputs if "command-line-flag" in item]
    assert set(flags) <= ours
    (device,) = (action for action in app.parser()._actions if action.dest == "device")
    assert inputs[8]["value-choices"] == list(device.choices)


def test_boutiques_accepts_it_makes_the_command_we_mean_and_runs_it(
    tool, raw, tmp_path, tiny_model
):
    tool("bosh validate", DESCRIPTOR)
    invocation = tmp_path / "invocation.json"
    invocation.write_text(json.dumps(INVOCATION))
    said = tool("bosh exec simulate -i", invocation, DESCRIPTOR)
    (line,) = (line for line in said.splitlines() if line.startswith("siam-bids "))
    arguments = app.parser().parse_args(shlex.split(line)[1:])
    assert arguments.participant_label == ["01", "02"]
    assert (arguments.bids_dir, arguments.output_dir) == (Path("in"), Path("out"))
    assert (arguments.threads, arguments.device, arguments.overwrite) == (2, "cpu", True)
    assert arguments.suffix == ["T1w", "FLAIR"]
    real = {"bids_dir": "raw", "output_dir": "out", "analysis_level": "participant"}
    invocation.write_text(json.dumps({**real, "model": str(tiny_model), "session_label": ["2"]}))
    tool("bosh exec launch --no-container --skip-data-collection", DESCRIPTOR, invocation)
    assert done(tmp_path / "out") == ["sub-a_ses-2"]


def test_nipoppy_accepts_the_bundle_runs_it_and_tracks_what_it_wrote(tool, raw, tmp_path):
    tool("nipoppy pipeline validate", NIPOPPY)
    tool("nipoppy init --study study --mode copy --bids-source", raw)
    tool("nipoppy pipeline install --assume-yes --study study", NIPOPPY)
    (tmp_path / "study/containers/siam-bids_0.1.0.sif").touch()
    tool("nipoppy process --study study --pipeline siam-bids --session-id 2")
    tool("nipoppy track-processing --study study --pipeline siam-bids")
    assert done(tmp_path / "study/derivatives/siam-bids/0.1.0/output") == ["sub-a_ses-2"]
    table = (tmp_path / "study/derivatives/processing_status.tsv").read_text().splitlines()
    status = {row["session_id"]: row["status"] for row in csv.DictReader(table, delimiter="\t")}
    assert status == {"1": "FAIL", "2": "SUCCESS"}


@pytest.mark.skipif(not shutil.which("7z"), reason="BABS needs 7z (Debian: p7zip-full)")
def test_babs_makes_a_project_of_the_container_config_and_its_job_delivers(
    tool, raw, tmp_path, tiny_model
):
    """`babs init`, then the job script that it wrote, as SLURM would start it."""
    tool("datalad create --force --dataset", raw)
    tool("datalad save --message all --dataset", raw)
    tool("datalad create containers")
    (tmp_path / "image.sif").write_text("a container in name only\n")
    tool(
        "datalad containers-add --dataset containers siam-bids-0-1-0 --url", tmp_path / "image.sif"
    )
    config = (FOLDER / "babs.yaml").read_text()
    config = config.replace("/path/to/the/BIDS/datalad/dataset", str(raw))
    config = config.replace("module load apptainer", "true")
    config = config.replace('--device: "cpu"', f'--device: "cpu"\n    --model: "{tiny_model}"')
    (tmp_path / "babs.yaml").write_text(config)
    tool(
        "babs init --container_name siam-bids-0-1-0 --processing_level session --queue slurm",
        "--container_ds", tmp_path / "containers", "--container_config", tmp_path / "babs.yaml",
        tmp_path / "project",
    )  # fmt: skip
    code = tmp_path / "project/analysis/code"
    (line,) = (
        line
        for line in (code / "submit_job_template.yaml").read_text().splitlines()
        if line.startswith("cmd_template")
    )
    (source,) = (word for word in line.split() if word.startswith("ria+"))
    (target,) = (word for word in line.split() if "/output_ria/" in word)
    table = code / "processing_inclusion.csv"
    assert table.read_text().split() == ["sub_id,ses_id", "sub-a,ses-1", "sub-a,ses-2"]
    task = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    more = {"TMPDIR": str(tmp_path), "DSLOCKFILE": str(tmp_path / "lock")}
    said = tool("bash", code / "participant_job.sh", source, target, table, **task, **more)
    assert said.endswith("SUCCESS\n")
    objects = (tmp_path / "project/output_ria").rglob("*.zip")
    (delivered,) = (path for path in objects if path.is_file())
    with zipfile.ZipFile(delivered) as content:
        content.extractall(tmp_path / "unpacked")
    assert done(tmp_path / "unpacked/siam-bids") == ["sub-a_ses-2"]
