"""Whatever breaks: every file is whole, the input is as it was, and a rerun finishes the job.

Kills at random moments are in test_signals, broken downloads in test_download.
"""

import resource
import shutil
from pathlib import Path

import pytest
import torch
from checks import check_whole
from conftest import checksums, run_config, write_model, write_raw
from machine import remount, run, small_disk

from siam_bids import cli
from siam_bids.cli import console
from siam_bids.errors import ModelError
from siam_bids.image.loading import load_volume
from siam_bids.models.registry import find_model
from siam_bids.pipelines.participant import run_participant


@pytest.fixture(scope="module")
def bids(tmp_path_factory, head):
    root = tmp_path_factory.mktemp("faults") / "bids"
    return write_raw(root, head, *(f"sub-{label}_T1w" for label in ("01", "02", "03")))


@pytest.fixture(scope="module")
def straight(bids, tiny_model, tmp_path_factory):
    """What a run leaves that nothing disturbs, and what the input is."""
    out = tmp_path_factory.mktemp("straight")
    run_participant(run_config(bids, out, tiny_model))
    assert check_whole(out) > 40
    return checksums(out, timeless=True), checksums(bids)


def check_recovery(bids, out, model, straight) -> None:
    """Assert the invariant after a fault, then that a rerun leaves what a quiet run does."""
    done, untouched = straight
    check_whole(out)
    assert checksums(bids) == untouched
    summary = run_participant(run_config(bids, out, model))
    assert len(summary.done) + len(summary.skipped) == 3
    check_whole(out)
    assert checksums(out, timeless=True) == done


def words(bids, out, model) -> list[object]:
    return [bids, out, "participant", "--model", model, "--device", "cpu", "--n-cpus", 1]


@pytest.mark.parametrize("kilobytes", [150, 500])
def test_a_disk_that_fills_up(kilobytes, bids, straight, tiny_model, tmp_path):
    with small_disk(tmp_path / "disk", kilobytes) as disk:
        out = disk / "out"
        code, lines = run(words(bids, out, tiny_model), tmp_path / "log")
        assert code == console.EXIT_DISK
        assert "No space left on device" in lines[-1]
        check_whole(out)
        remount(disk, "size=40m")
        check_recovery(bids, out, tiny_model, straight)


@pytest.mark.parametrize("spare", [8_000, 60_000])
def test_a_disk_that_fills_up_under_group_keeps_all_old_tables(spare, study, tmp_path):
    raw, copy = study(tmp_path, people=4)
    with small_disk(tmp_path / "disk", 16_000) as disk:
        out = Path(shutil.copytree(copy, disk / "out"))
        group = [str(raw), str(out), "group"]
        assert cli.main(group) == 0
        before = checksums(out)
        shutil.rmtree(out / "sub-04")
        room = shutil.disk_usage(disk).free
        (disk / "filler").write_bytes(bytes(max(0, room - spare)))
        assert cli.main(group) == console.EXIT_DISK
        after = checksums(out)
        assert after == {name: value for name, value in before.items() if "sub-04/" not in name}
        (disk / "filler").unlink()
        assert cli.main(group) == 0
        assert checksums(out)["group_qc.tsv"] != before["group_qc.tsv"]


@pytest.mark.parametrize("limit", [2_000, 30_000])
def test_files_that_may_not_grow(limit, bids, straight, tiny_model, tmp_path):
    """Needs no rights, so it stands in for the full disk where none can be mounted."""
    out = tmp_path / "out"
    limits = {resource.RLIMIT_FSIZE: limit}
    code, lines = run(words(bids, out, tiny_model), tmp_path / "log", limits=limits)
    assert code == console.EXIT_DISK
    assert "File too large" in lines[-1]
    check_recovery(bids, out, tiny_model, straight)


def test_memory_that_runs_out(bids, straight, tiny_model, tmp_path):
    """With arrays of 100 MB and more, so that one of them is refused and nothing small.

    OpenVINO, whose libraries alone take most of that, is left out of it.
    """
    out = tmp_path / "out"
    large = [*words(bids, out, tiny_model), "--scale", 5, "--engine", "torch"]
    code, lines = run(large, tmp_path / "log", memory=250_000_000)
    assert code == console.EXIT_SOME_SCANS_FAILED
    said = [line for line in lines if " failed: " in line or line.startswith("siam-bids: error")]
    assert said, lines
    assert all("Out of memory." in line for line in said), lines
    assert not [line for line in lines if line.startswith("Traceback")]
    check_recovery(bids, out, tiny_model, straight)


def before_scan(monkeypatch, label, act) -> None:
    """Let something happen just before the scan of one subject is read."""
    load = load_volume

    def disturbed(path, **options):
        if label in path.name:
            act()
        return load(path, **options)

    monkeypatch.setattr("siam_bids.pipelines.participant.load_volume", disturbed)


def test_the_output_folder_is_deleted_in_the_middle(
    bids, straight, tiny_model, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    before_scan(monkeypatch, "sub-03", lambda: shutil.rmtree(out, ignore_errors=True))
    code = cli.main(list(map(str, words(bids, out, tiny_model))))
    assert code in (0, console.EXIT_SOME_SCANS_FAILED, console.EXIT_DISK)
    monkeypatch.undo()
    check_recovery(bids, out, tiny_model, straight)


@pytest.mark.parametrize("folds", [1, 2])
def test_the_model_changes_in_the_middle(folds, bids, tmp_path, monkeypatch):
    """No scan is ever segmented by other weights than its sidecar names."""
    model, out = write_model(tmp_path / "model", folds=folds), tmp_path / "out"
    weights = model / f"fold_{folds - 1}" / "checkpoint_final.pth"
    content = torch.load(weights, weights_only=True)
    first = find_model(str(model)).sha256

    def retrain():
        for value in content["network_weights"].values():
            value.mul_(1.5)
        torch.save(content, weights)

    before_scan(monkeypatch, "sub-03", retrain)
    config = run_config(bids, out, model)
    if folds == 1:  # it was read once, before
        assert len(run_participant(config).done) == 3
    else:
        with pytest.raises(ModelError, match="changed while it was in use"):
            run_participant(config)
    monkeypatch.undo()
    check_whole(out)
    for path in out.rglob("sub-*_dseg.json"):
        assert first in path.read_text()
    assert len(run_participant(config).done) == 3
    assert not [path for path in out.rglob("sub-*_dseg.json") if first in path.read_text()]
