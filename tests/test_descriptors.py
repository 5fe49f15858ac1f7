"""What other tools read about the app, each checked by that tool where it is installed."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from siam_bids import cli
from siam_bids.derivatives import ScanNames, sidecar

FOLDER = Path(__file__).resolve().parent.parent / "data" / "descriptors"
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


def test_the_descriptor_offers_only_what_the_command_line_has():
    inputs = json.loads(DESCRIPTOR.read_text())["inputs"]
    assert [item["id"] for item in inputs] == list(INVOCATION)
    ours = {word for action in cli.parser()._actions for word in action.option_strings}
    flags = [item["command-line-flag"] for item in inputs if "command-line-flag" in item]
    assert set(flags) <= ours
    (device,) = (action for action in cli.parser()._actions if action.dest == "device")
    assert inputs[8]["value-choices"] == list(device.choices)


def test_boutiques_accepts_it_and_makes_the_command_we_mean(tmp_path):
    pytest.importorskip("boutiques", reason="needs boutiques from PyPI")
    bosh = Path(sys.executable).with_name("bosh")
    subprocess.run([str(bosh), "validate", str(DESCRIPTOR)], check=True, capture_output=True)
    invocation = tmp_path / "invocation.json"
    invocation.write_text(json.dumps(INVOCATION))
    done = subprocess.run(
        [str(bosh), "exec", "simulate", "-i", str(invocation), str(DESCRIPTOR)],
        check=True, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("siam-bids "))
    arguments = cli.parser().parse_args(shlex.split(line)[1:])
    assert arguments.participant_label == ["01", "02"]
    assert (arguments.bids_dir, arguments.output_dir) == (Path("in"), Path("out"))
    assert (arguments.threads, arguments.device, arguments.overwrite) == (2, "cpu", True)
    assert arguments.suffix == ["T1w", "FLAIR"]


def test_nipoppy_accepts_the_bundle():
    validation = pytest.importorskip(
        "nipoppy.pipeline_validation", reason="needs nipoppy from PyPI"
    )
    config = validation.check_pipeline_bundle(NIPOPPY, strict=True)
    assert (config.NAME, config.VERSION) == ("siam-bids", "0.1.0")


def test_the_tracker_finds_what_a_run_writes(tmp_path):
    names = ScanNames(tmp_path, "01", "pre", "sub-01_ses-pre_run-1", "T1w")
    names.anat.mkdir(parents=True)
    for path in (names.segmentation, sidecar(names.segmentation), names.volumes):
        path.touch()
    for pattern in json.loads((NIPOPPY / "tracker.json").read_text())["PATHS"]:
        here = pattern.replace("[[NIPOPPY_BIDS_PARTICIPANT_ID]]", "sub-01")
        here = here.replace("[[NIPOPPY_BIDS_SESSION_ID]]", "ses-pre")
        assert len(list(tmp_path.glob(here))) == 1


def test_babs_makes_a_run_script_from_the_container_config():
    babs = pytest.importorskip("babs.container", reason="needs babs from PyPI")
    from babs.generate_bidsapp_runscript import generate_bidsapp_runscript
    from babs.utils import app_output_settings_from_config

    container = babs.Container("none", "siam-bids-0-1-0", str(FOLDER / "babs.yaml"))
    zipped, output = app_output_settings_from_config(container.config)
    (name,) = container.config["input_datasets"]
    where = container.config["input_datasets"][name]["path_in_babs"]
    script = generate_bidsapp_runscript(
        [{"name": name, "is_zipped": False, "unzipped_path_containing_subject_dirs": where}],
        "session",
        container_name=container.container_name,
        relative_container_path=container.container_path_relToAnalysis,
        bids_app_output_dir=output,
        dict_zip_foldernames=zipped,
        bids_app_args=container.config["bids_app_args"],
        singularity_args=container.config["singularity_args"],
    )  # fmt: skip
    joined = re.sub(r"\\\n\s*", "", script)
    (line,) = (line for line in joined.splitlines() if line.startswith("singularity run"))
    words = shlex.split(line.split("/image")[1].lstrip('"'))
    arguments = cli.parser().parse_args(words)
    assert arguments.analysis_level == "participant"
    assert arguments.participant_label == ["${subid}"]
    assert arguments.session_label == ["$sesid"]
    assert arguments.threads == 2
