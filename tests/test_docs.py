"""The documentation builds, says what the code says, and its commands run."""

import csv
import hashlib
import json
import re
import runpy
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import documentation
import generate
import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT, head_labels, write_model, write_raw, write_scan
from containers import Containers
from documentation import PAGES, blocks, commands, fenced
from server import archived

from siam_bids import cli
from siam_bids.bids.label_tables import save_label_table
from siam_bids.cli import app, models as models_command, segment, slurm, train
from siam_bids.image.labels import siam_labels
from siam_bids.models.registry import registry
from siam_bids.support.package_data import resource

DOCS = ROOT / "docs"


def test_the_site_builds_without_warnings(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "sphinx", "--fail-on-warning", "--quiet", "-d", str(tmp_path / "ca"),
         str(DOCS), str(tmp_path / "site")],
        cwd=ROOT, check=True,
    )  # fmt: skip
    pages = {path.stem for path in (tmp_path / "site").glob("*.html")}
    assert {path.stem for path in DOCS.glob("*.md")} <= pages


@pytest.mark.parametrize("page", sorted(set(generate.PAGES) - {"licences.md"}))
def test_generated_pages_are_current(page):
    """The page of licences depends on the platform; test_safety.py reads it."""
    assert (DOCS / page).read_text(encoding="utf-8") == generate.PAGES[page]()


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


@pytest.mark.parametrize("page", ["questions.md", "citing.md"])
def test_options_named_in_running_text_exist(page):
    known = {option for action in app.parser()._actions for option in action.option_strings}
    text = (DOCS / page).read_text(encoding="utf-8")
    assert set(re.findall(r"`(--[a-z-]+)", text)) <= known


ELSEWHERE = {
    "siam-bids-export OUT fmriprep FOR_FMRIPREP": "test_export.py: def test_smriprep_takes_mask",
    "siam-bids-export OUT freesurfer SUBJECTS": "test_export.py: "
    "def test_aseg_stats_has_the_lines_and_columns",
    "siam-bids-export OUT lesions FOR_REGISTRATION --min-size 10": "test_export.py: "
    "def test_lesions_above_a_size",
    "siam-bids-export OUT mne SUBJECTS_DIR": "test_export.py: def test_mne_makes_a_model",
    "siam-bids-export OUT simnibs FOR_SIMNIBS": "test_export.py: def test_simnibs_gets_a_qform",
    "make docs": "test_docs.py: test_the_site_builds_without_warnings",
    "python docs/generate.py": "test_docs.py: test_generated_pages_are_current",
    "HYPOTHESIS_PROFILE=long pytest tests/test_fuzz.py": "test_fuzz.py: test_a_damaged_image",
    "nextflow run main.nf --bids /path/of/BIDS_DIR --out /path/of/OUT": "test_clusters.py: "
    "def test_nextflow(",
    "nipoppy pipeline install data/descriptors/nipoppy": "test_descriptors.py: test_nipoppy",
    "pip install -c constraints.txt .": "test_sample.py: def sample(",
    "pip wheel -c constraints.txt -w wheels .": "test_sample.py: def sample(",
}
"""Commands that other tests run, and where: pip's upon a wheel and without dependencies."""

NOT_RUN = {
    "pip install --no-index --find-links wheels siam-bids": "half a gigabyte of wheels",
    "make dist": "for releases; test_sample.py builds the wheel",
}
"""Commands that no test runs, and why."""

RECORDER = """#!/bin/sh
echo "${0##*/} $*" >> "$RECORD"
if [ "$1 $2" = "-m venv" ]; then
    mkdir -p "$3/bin"
    for program in python siam-bids ruff mypy lint-imports pytest pip-audit; do
        cp "$0" "$3/bin/$program"
    done
fi
"""
"""In place of python3 and of what would be installed: tells how it was called."""


SELECTING = {"--participant-label", "--suffix", "--dry-run"}


class Shell:
    """Runs lines as a reader would type them, after bash has read them.

    What differs: a model of 4 mm stands in for the embedded one, the sample data are coarse,
    training takes a second, and of all participants one is segmented.
    """

    def __init__(self, place: Path, model: Path) -> None:
        self.place, self.model = place, model
        containers = Containers(self.app)
        self.programs: dict[str, Callable[[list[str]], int]] = {
            "siam-bids": self.app,
            "siam-bids-segment": lambda words: segment.main(self.small(words)),
            "siam-bids-models": models_command.main,
            "siam-bids-slurm": lambda words: slurm.main(self.small(words)),
            "siam-bids-train": self.train,
            "docker": containers.docker,
            "buildah": containers.buildah,
            "apptainer": containers.apptainer,
            "python": self.benchmark,
        }

    def type(self, line: str) -> None:
        line = re.sub(r"(?<= )(?=(?:DATA|OUT|WORK):/)", f"{self.place}/", line)
        line = re.sub(r"\(same maps[^)]*\)", "", line)
        said = self.bash(f"printf '%s\\0' {line}").stdout
        program, *words = said.rstrip("\0").split("\0")
        if program in self.programs:
            assert self.programs[program](words) == 0, line
        else:
            self.bash(line)

    def bash(self, text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euc", text], cwd=self.place, check=True, stdout=subprocess.PIPE, text=True
        )

    def small(self, words: list[str]) -> list[str]:
        return words if "--model" in words else [*words, "--model", str(self.model)]

    def app(self, words: list[str]) -> int:
        if words[2] == "participant" and not SELECTING & {*words}:
            words = [*words, "--participant-label", "seg3d" if "sample" in words[0] else "01"]
        return cli.main(self.small(words))

    def train(self, words: list[str]) -> int:
        arguments = train.parser().parse_args(words)
        if not arguments.maps:  # the shipped model's training, for hours
            return 0
        return train.main([*words, "--from", str(self.model), "--minutes", "0.001"])

    def benchmark(self, words: list[str]) -> int:
        """Let a script read its arguments, and stop there: it would take long."""
        parse = ArgumentParser.parse_args

        def parse_only(parser: ArgumentParser) -> None:
            parse(parser)
            raise SystemExit(0)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", words)
            patch.syspath_prepend(str((ROOT / words[0]).parent))  # as python does for a script
            patch.setattr(ArgumentParser, "parse_args", parse_only)
            try:
                runpy.run_path(str(ROOT / words[0]), run_name="__main__")
            except SystemExit as end:
                return int(end.code)
        return 1


@pytest.fixture(scope="module")
def small_sample(tmp_path_factory) -> Path:
    """The sample data, of three voxels one in each direction."""
    root = tmp_path_factory.mktemp("sample") / "sample_bids"
    shutil.copytree(resource("data", "sample_bids"), root)
    for path in root.rglob("*.nii.gz"):
        image = nib.load(path)
        nib.save(image.slicer[::3, ::3, ::3], path)
    return root


@pytest.fixture
def shell(tmp_path, monkeypatch, head, small_sample, tiny_model, server) -> Shell:
    """A folder where all that the pages name lies, SIAM's model published on this machine."""
    monkeypatch.chdir(tmp_path)
    for root in ("BIDS_DIR", "IN", "DATA"):
        write_raw(tmp_path / root, head, "sub-01_T1w", "sub-02_T1w")
    for scan in ("SCAN.nii.gz", "scan.nii.gz", "FOLDER/a.nii.gz"):
        write_scan(tmp_path / scan, head)
    for folder in ("OUT", "WORK"):
        (tmp_path / folder).mkdir()
    shutil.copytree(small_sample, tmp_path / "data/sample_bids")
    for name in ("Dockerfile", "pyproject.toml", "constraints.txt", "Makefile", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    _corrected_segmentation(tmp_path)
    _published_model(server, tiny_model, monkeypatch, tmp_path)
    shutil.copytree(tiny_model, tmp_path / "NAME")
    write_model(tmp_path / "path/of/layers", names=("background", "one", "two"), channels=2)
    write_model(tmp_path / "path/of/nuclei", names=("background", "core", "shell"), channels=2)
    write_model(tmp_path / "path/of/another")
    chain, pair, *_ = (block for block in blocks("docs/siam.md") if block.startswith("{"))
    (tmp_path / "chain.json").write_text(chain)
    (tmp_path / "pair.json").write_text(pair)
    _stand_ins(tmp_path / "bin", monkeypatch)
    return Shell(tmp_path, tiny_model)


def test_what_is_told_of_ensembles_is_that_of_the_default_model():
    *_, focus, intensities, upright = (
        block for block in blocks("docs/siam.md") if block.startswith("{")
    )
    default = registry()["compact"]
    assert json.loads(focus).items() <= default.items()
    assert json.loads(intensities)["intensities"] == default["intensities"]
    assert json.loads(upright)["upright"] == default["upright"]


def _corrected_segmentation(place: Path) -> None:
    (place / "fixed").mkdir()
    (place / "out").mkdir()
    image = nib.Nifti1Image(head_labels().astype(np.uint8), np.diag([4.0, 4.0, 4.0, 1.0]))
    nib.save(image, place / "fixed/sub-01_dseg.nii.gz")
    save_label_table(place / "out/seg-siam_dseg.tsv", siam_labels())


def _published_model(server, model, monkeypatch, place: Path) -> None:
    known = json.loads(json.dumps(registry()).replace("https://zenodo.org/", server.url))
    source = known["siam-v0.3"]["archive"]
    archive = archived(model, "pred_DS108_LcsfP_Ano")
    file = {"key": source["url"].rpartition("/")[2], "size": len(archive)}
    file["checksum"] = f"md5:{hashlib.md5(archive).hexdigest()}"
    server.files[source["url"].removeprefix(server.url)] = archive
    server.files[source["record"].removeprefix(server.url)] = json.dumps({"files": [file]}).encode()
    monkeypatch.setattr("siam_bids.models.registry.registry", lambda: known)
    monkeypatch.setenv("SIAM_MODEL_DIR", str(place / "siam_params"))


def _stand_ins(folder: Path, monkeypatch) -> None:
    """Put python3 and sbatch on the PATH that only tell how they are called."""
    folder.mkdir()
    for name in ("python3", "sbatch"):
        (folder / name).write_text(RECORDER)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("RECORD", str(folder.parent / "record"))


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_commands_of_a_page_run_one_after_the_other_and_its_python(page, shell):
    for line in commands(page):
        if without_comment(line) not in {**ELSEWHERE, **NOT_RUN}:
            shell.type(line)
    names: dict[str, Any] = {}
    for block in blocks(page):
        if block.startswith("import "):
            exec(block, names)
    if "wide" in names:
        assert names["wide"]["scan"].tolist() == ["sub-colin27_T1w", "sub-seg3d_T1w"]
    if "labels" in names:
        assert names["labels"].data.shape == nib.load("scan.nii.gz").shape


def without_comment(line: str) -> str:
    return line.partition("  #")[0].strip()


def test_what_other_tests_run_is_in_the_pages_and_in_these_tests():
    printed = {without_comment(line) for page in PAGES for line in commands(page)}
    assert {*ELSEWHERE, *NOT_RUN} <= printed
    for there in ELSEWHERE.values():
        file, _, test = there.partition(": ")
        assert test in (ROOT / "tests" / file).read_text(encoding="utf-8"), there
    recipes = (ROOT / "tests" / "test_clusters.py").read_text(encoding="utf-8")
    tested = (*re.findall(r'recipe\("([^"]+)"\)', recipes), "In R:")  # test_group_tables.py
    assert [title for page in PAGES for title in fenced(page) if not title.startswith(tested)] == []


def test_every_block_of_code_is_of_a_kind_that_is_tested():
    kinds = ("import ", "{", "OUTPUT_DIR/\n")  # Python, a chain of models, a tree of outputs
    for page in PAGES:
        for block in blocks(page):
            assert documentation.is_command(block) or block.startswith(kinds), block


def test_make_sets_up_runs_the_sample_and_checks(shell):
    shell.type("make demo")
    shell.type("make test")
    record = (shell.place / "record").read_text().splitlines()
    pip = "python -m pip install --quiet --constraint constraints.txt --editable "
    assert record[:4] == [
        "python3 -m venv .venv",
        f"{pip}.[dev]",
        "siam-bids data/sample_bids out/sample participant",
        "siam-bids data/sample_bids out/sample group",
    ]
    assert [line.split()[0] for line in record[4:]] == [
        "ruff", "ruff", "mypy", "lint-imports", "pytest",
    ]  # fmt: skip
