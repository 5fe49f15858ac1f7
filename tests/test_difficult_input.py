"""Difficult input ends as `difficult_input` says, alone, and with one line."""

import json
import re
import shutil
from contextlib import nullcontext

import pytest
from checks import check_whole
from conftest import checksums, describe, write_raw
from difficult_input import MACHINES, RUNS, SCANS, write_scans
from machine import run, small_disk

from siam_bids import cli
from siam_bids.cli import console


@pytest.fixture(scope="module")
def outcome(tmp_path_factory, head, tiny_model):
    """One run over all odd scans: exit code, the error of each scan, and where it all lies."""
    folder = tmp_path_factory.mktemp("difficult")
    names = write_scans(folder / "bids", head)
    argv = [str(folder / "bids"), str(folder / "out"), "participant", "--model", str(tiny_model)]
    code = cli.main(argv)
    records = {
        path.name: json.loads(path.read_text(encoding="utf-8"))
        for path in (folder / "out" / "logs").rglob("*.json")
    }
    errors = {
        kind: next((r.get("error", "") for n, r in records.items() if n.startswith(name)), None)
        for kind, name in names.items()
    }
    return code, errors, names, folder


def test_there_are_many_cases():
    kinds = [odd.kind for odd in (*SCANS, *RUNS, *MACHINES)]
    assert len(set(kinds)) == len(kinds) >= 100


def test_a_run_over_everything_ends_with_some_scans_failed(outcome):
    assert outcome[0] == console.EXIT_SOME_SCANS_FAILED


@pytest.mark.parametrize("odd", SCANS, ids=lambda odd: odd.kind)
def test_a_difficult_scan(odd, outcome):
    _, errors, names, folder = outcome
    error, name = errors[odd.kind], names[odd.kind]
    segmentations = list(
        (folder / "out").glob(f"sub-*/anat/{name.rpartition('_')[0]}_*dseg.nii.gz")
    )
    if odd.message:
        assert error is not None
        assert re.search(odd.message, error), error
        assert "\n" not in error
        assert "Traceback" not in error
        assert not segmentations
    else:
        assert not error
        assert len(segmentations) == 1


@pytest.mark.parametrize("odd", RUNS, ids=lambda odd: odd.kind)
def test_a_difficult_run(odd, tmp_path, head, tiny_model, capsys):
    write_raw(tmp_path / "bids", head, "sub-01_T1w")
    shutil.copytree(tiny_model, tmp_path / "model")
    words = odd.make(tmp_path)
    if not words or words[0].startswith("--"):
        words = [str(tmp_path / "bids"), str(tmp_path / "out"), "participant", *words]
    elif len(words) == 2:
        words.append("participant")
    if "--model" not in words:
        words += ["--model", str(tmp_path / "model")]
    code = cli.main(words)
    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    if code == 1:
        lines = [line for line in printed.out.splitlines() if line.startswith("FAILED")]
    assert code == odd.exit_code, lines
    if odd.message:
        assert re.search(odd.message, lines[-1]), lines
    if code not in (0, 1, 2):
        assert len([line for line in lines if line.startswith("siam-bids: error")]) == 1
    if odd.group:
        assert cli.main([*words[:2], "group"]) == 0


@pytest.mark.parametrize("odd", MACHINES, ids=lambda odd: odd.kind)
def test_a_machine_in_trouble(odd, tmp_path, head, tiny_model):
    root = tmp_path
    write_raw(root / "bids", head, "sub-01_T1w")
    before = checksums(root / "bids")
    with small_disk(root / "disk", odd.disk) if odd.disk else nullcontext():
        (root / odd.out).mkdir()
        limits = odd.make(root)
        words = [root / "bids", root / odd.out, "participant", "--model", tiny_model]
        code, lines = run([*words, "--n-cpus", 1], root / "log", **limits)
        assert code == odd.exit_code, lines
        check_whole(root / odd.out)
    assert re.search(odd.message, lines[-1]), lines
    assert not [line for line in lines if line.startswith("Traceback")]
    assert checksums(root / "bids") == before


def test_a_dry_run_tells_what_headers_alone_tell(tmp_path, head, tiny_model, capsys, caplog):
    """Nothing hangs, nothing large is allocated, contradictions are named."""
    kinds = {
        "named pipe": "a named pipe, not a file",
        "link to an endless device": "a device, not a file",
        "only a header": "can hold",
        "extensions of 6 GB declared": "can hold",
        "pointer of git-annex": "git-annex: its content was not fetched",
        "sform and qform disagree on left and right": "disagree on left and right",
        "sform and qform disagree on the size": "differ 2-fold",
        "sform of zeros beside a qform": "its qform is used",
    }
    odd = {each.kind: each for each in SCANS}
    for number, kind in enumerate(kinds):
        path = tmp_path / f"bids/sub-{number}/anat/sub-{number}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        odd[kind].make(path, head)
    describe(tmp_path / "bids")
    words = [str(tmp_path / "bids"), str(tmp_path / "out"), "participant", "--dry-run"]
    assert cli.main([*words, "--model", str(tiny_model)]) == console.EXIT_SOME_SCANS_FAILED
    lines = [*capsys.readouterr().out.splitlines(), *caplog.messages]
    for number, (kind, message) in enumerate(kinds.items()):
        assert [line for line in lines if f"sub-{number}_T1w" in line and message in line], kind
