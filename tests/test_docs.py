"""The documentation builds, says what the code says, and its commands run."""

import csv
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_dataset

from siam_bids import cli
from siam_bids.resources import resource

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def commands(page: str) -> list[str]:
    """Return the command lines of a page's code blocks, continued lines joined."""
    text = (DOCS / page).read_text(encoding="utf-8").replace("\\\n", " ")
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
    for action in cli.parser()._actions:
        for option in action.option_strings:
            assert f"`{option}" in page, option
    known = {option for action in cli.parser()._actions for option in action.option_strings}
    assert set(re.findall(r"`(--[a-z-]+)", page)) <= known


@pytest.mark.parametrize("line", commands("tutorial.md"))
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


@pytest.mark.parametrize("page", ["questions.md", "citing.md"])
def test_options_named_in_running_text_exist(page):
    known = {option for action in cli.parser()._actions for option in action.option_strings}
    text = (DOCS / page).read_text(encoding="utf-8")
    assert set(re.findall(r"`(--[a-z-]+)", text)) <= known


def test_a_citing_command_prints_a_paragraph(tmp_path, head, capsys):
    write_dataset(tmp_path / "IN", head)
    line = next(iter(re.findall(r"`siam-bids (.*?)`", (DOCS / "citing.md").read_text())))
    words = [str(tmp_path / word) if word in ("IN", "OUT") else word for word in line.split()]
    assert cli.main(words) == 0
    assert "nnU-Net" in capsys.readouterr().out
