"""The documentation builds, says what the code says, and its commands run."""

import csv
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from typing import Any

import nibabel as nib
import pytest
from conftest import ROOT, write_dataset, write_model, write_raw, write_scan

from siam_bids import cli
from siam_bids.cli import (
    app,
    models as models_command,
    segment as segment_command,
    train as train_command,
)
from siam_bids.resources import resource

DOCS = ROOT / "docs"


def commands(page: str) -> list[str]:
    """Return the command lines of a page's code blocks, continued lines joined."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.strip() for line in re.findall(r"^    (siam-bids[\w-]* .*)$", text, re.MULTILINE)]


def test_the_site_builds_without_warnings(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)],
        cwd=ROOT, check=True,
    )  # fmt: skip
    pages = {path.parent.name for path in tmp_path.glob("*/index.html")}
    assert {path.stem for path in DOCS.glob("*.md")} - {"index"} <= pages


def test_the_label_list_is_that_of_the_code():
    with resource("data", "labels", "siam.tsv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    page = (DOCS / "outputs.md").read_text(encoding="utf-8")
    for row in rows:
        assert f"| {row['index']} | {row['name']} | {row['long_name']} |" in page


def test_every_option_is_described():
    page = (DOCS / "options.md").read_text(encoding="utf-8")
    for action in app.parser()._actions:
        for option in action.option_strings:
            assert f"`{option}" in page, option
    known = {option for action in app.parser()._actions for option in action.option_strings}
    assert set(re.findall(r"`(--[a-z-]+)", page)) <= known


@pytest.mark.parametrize("line", commands("docs/tutorial.md"))
def test_commands_of_the_tutorial_run(line, tmp_path, monkeypatch, tiny_model):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sample_bids").symlink_to(resource("data", "sample_bids"))
    words = shlex.split(line)[1:]
    if words[2] == "group":
        first = [*words[:2], "participant", "--participant-label", "seg3d"]
        assert cli.main([*first, "--model", str(tiny_model)]) == 0
    elif "--participant-label" not in words and "--dry-run" not in words:
        words += ["--participant-label", "synth01"]  # the others run in test_sample
    if words[2] == "participant":
        words += ["--model", str(tiny_model)]
    assert cli.main(words) == 0
    assert (tmp_path / "out").exists() != ("--dry-run" in words)


@pytest.fixture
def bench(tmp_path, monkeypatch, head, tiny_model):
    """A folder where what the pages name lies: a dataset, scans, SIAM's model (a small one)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIAM_MODEL_DIR", str(tmp_path / "siam_params"))
    shutil.copytree(tiny_model, tmp_path / "siam_params" / "v0.3" / "pred_DS108_LcsfP_Ano")
    shutil.copytree(tiny_model, tmp_path / "RUN" / "model")
    text = (DOCS / "siam.md").read_text(encoding="utf-8")
    chain = re.search(r"^    {.*?^     .*?}$", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "chain.json").write_text(chain[0])
    write_model(tmp_path / "path/of/layers", names=("background", "one", "two"), channels=2)
    for root in ("BIDS_DIR", "IN"):
        write_raw(tmp_path / root, head, "sub-01_T1w")
    for scan in ("SCAN.nii.gz", "scan.nii.gz", "FOLDER/a.nii.gz"):
        write_scan(tmp_path / scan, head)
    return tmp_path


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{name}.md" for name in ("options", "siam", "own_labels"))]
)
def test_commands_of_a_page_run_one_after_the_other(page, bench, tiny_model):
    run = {
        "siam-bids": cli.main,
        "siam-bids-segment": segment_command.main,
        "siam-bids-models": models_command.main,
    }
    lines = commands(page)
    assert lines
    for line in lines:
        program, *words = shlex.split(line, comments=True)
        if program == "siam-bids-train":  # see test_training
            assert train_command.parser().parse_args(words)
        elif words[0] != "fetch":  # see test_store
            few = words if "--model" in words or program == "siam-bids-models" else [
                *words, "--model", str(tiny_model)]  # fmt: skip
            assert run[program](few) == 0, line


def test_python_of_the_pages_runs(bench):
    text = (DOCS / "siam.md").read_text(encoding="utf-8")
    code = re.search(r"((?:^    .*\n)*^    labels = .*\n(?:^    .*\n)*)", text, re.MULTILINE)[1]
    names: dict[str, Any] = {}
    exec(textwrap.dedent(code), names)
    assert names["labels"].data.shape == nib.load("scan.nii.gz").shape


@pytest.mark.parametrize("page", ["questions.md", "citing.md"])
def test_options_named_in_running_text_exist(page):
    known = {option for action in app.parser()._actions for option in action.option_strings}
    text = (DOCS / page).read_text(encoding="utf-8")
    assert set(re.findall(r"`(--[a-z-]+)", text)) <= known


def test_a_citing_command_prints_a_paragraph(tmp_path, head, capsys):
    write_dataset(tmp_path / "IN", head)
    line = next(iter(re.findall(r"`siam-bids (.*?)`", (DOCS / "citing.md").read_text())))
    words = [str(tmp_path / word) if word in ("IN", "OUT") else word for word in line.split()]
    assert cli.main(words) == 0
    assert "nnU-Net" in capsys.readouterr().out
