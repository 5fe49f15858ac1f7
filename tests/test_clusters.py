"""The recipes of docs/clusters.md for other schedulers, run as they stand there."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_program, write_raw
from documentation import fenced

from siam_bids.bids.names import finished_scans

RECIPES = fenced("docs/clusters.md")


def recipe(beginning: str) -> str:
    (text,) = (code for title, code in RECIPES.items() if title.startswith(beginning))
    return text


@pytest.fixture
def place(tmp_path, small_head) -> Path:
    """A folder where BIDS_DIR holds two participants."""
    write_raw(tmp_path / "BIDS_DIR", small_head, "sub-a_T1w", "sub-b_T1w")
    return tmp_path


@pytest.fixture
def run(place, program):
    def run(*command, **more) -> str:
        path = f"{program.parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **more}
        return run_program(command, place, environment)

    return run


def done(place: Path) -> list[str]:
    return sorted(names.identity.subject for names in finished_scans(place / "OUT"))


def test_plain_bash(run, place):
    run("bash", "-euo", "pipefail", "-c", recipe("Plain bash"))
    assert done(place) == ["a", "b"]


def test_an_array_by_hand(run, place):
    run("bash", "-euo", "pipefail", "-c", recipe("A SLURM array"), SLURM_ARRAY_TASK_ID="2")
    assert done(place) == ["b"]


def test_submitit(run, place):
    """On this machine instead of a cluster."""
    text = recipe("[submitit]").replace('"submitit_logs"', '"submitit_logs", cluster="local"')
    (place / "spread.py").write_text(f"{text}\nassert exit_codes == [0, 0]\n")
    run(sys.executable, "spread.py")
    assert done(place) == ["a", "b"]


def test_snakemake(run, place, tools):
    (place / "Snakefile").write_text(recipe("[Snakemake]"))
    run(tools / "snakemake", "--cores", "2", HOME=str(place))
    assert done(place) == ["a", "b"]
    assert (place / "OUT" / "group_desc-wide_volumes.tsv").read_text().count("\n") == 3


PARSE = """
import json, sys
from reftrace import Module
print(Module.from_file(sys.argv[1]).to_json())
"""


def test_nextflow(run, place, tools):
    """Nextflow is not on PyPI: a parser of its language, and the commands of the two processes."""
    script = recipe("[Nextflow]")
    (place / "main.nf").write_text(script)
    module = json.loads(run(tools / "python", "-c", PARSE, place / "main.nf"))
    assert [process["name"] for process in module["processes"]] == ["participant", "group"]
    values = {"params.bids": "BIDS_DIR", "params.out": "OUT", "label": "sub-b", "task.cpus": "1"}
    for command in re.findall(r'"""\n *(.*?)\n *"""', script):
        run("sh", "-euc", re.sub(r"\$\{([\w.]+)\}", lambda name: values[name[1]], command))
    assert done(place) == ["b"]
    assert (place / "OUT" / "group_desc-wide_volumes.tsv").read_text().count("\n") == 2
