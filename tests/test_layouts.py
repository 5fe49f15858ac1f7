"""`--dry-run` says of every file of every layout what a run would do, and changes nothing."""

from dataclasses import replace
from pathlib import Path

import layouts
import numpy as np
import pytest
from conftest import checksums, run_config, write_raw, write_scan
from layouts import LAYOUTS, UNSEEN

from siam_bids import cli
from siam_bids.config import Query
from siam_bids.image.grid import Volume
from siam_bids.inference.alignment import Alignment
from siam_bids.inference.cost import Cost
from siam_bids.pipelines.dry_run import HEADER, Step, plan, summary
from siam_bids.pipelines.participant import run_participant


def table(printed: str) -> list[list[str]]:
    header, *rows = printed.splitlines()
    assert header == HEADER
    return [row.split("\t") for row in rows]


def everything(root: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of all that lies in a folder, links as such."""
    stats = {path.relative_to(root).as_posix(): path.lstat() for path in root.rglob("*")}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.kind)
def test_a_layout(layout, tmp_path, tiny_model, capsys):
    layouts.write(layout, tmp_path / "bids")
    words = [str(tmp_path / "bids"), str(tmp_path / "out"), "participant", "--dry-run"]
    filters = tmp_path / "filters.json"
    filters.write_text(layout.options[-1] if layout.options else "")
    words += [str(filters) if word.startswith("{") else word for word in layout.options]
    before = everything(tmp_path)
    code = cli.main([*words, "--model", str(tiny_model)])
    rows = table(capsys.readouterr().out)
    assert code == (1 if "fail" in [row[0] for row in rows] else 0)
    said = {path: action if why in ("n/a", "not segmented yet") else f"{action}: {why}"
            for action, path, _, _, why in rows}  # fmt: skip
    assert said == {name: what for name, what in layout.files.items() if what != UNSEEN}
    assert [row[1] for row in rows] == sorted(said)
    assert everything(tmp_path) == before


def test_a_plan_is_what_a_run_then_does(bids, tmp_path, tiny_model, head, capsys):
    """New, done, changed and damaged scans; a second plan of an unchanged dataset is all done."""
    config = run_config(bids, tmp_path / "out", tiny_model)
    first = replace(config, query=Query(participants=("01", "02"), suffixes=("T1w",)))
    run_participant(first)
    write_scan(bids / "sub-01/anat/sub-01_T1w.nii.gz", Volume(head.data[::-1], head.grid))
    before = checksums(tmp_path)
    words = [str(bids), str(tmp_path / "out"), "participant", "--model", str(tiny_model)]
    assert cli.main([*words, "--device", "cpu", "--n-cpus", "1", "--dry-run"]) == 1
    printed = capsys.readouterr()
    assert checksums(tmp_path) == before
    planned = {}
    for action, path, seconds, memory, why in table(printed.out):
        planned.setdefault(action, []).append(Path(path).name.split(".")[0])
        assert (seconds != "n/a") == (memory != "n/a") == (action == "segment")
        if action == "segment":
            assert 1 <= float(seconds) < 60
            assert 0.5 < float(memory) < 2
        assert why == {"sub-01_T1w.nii.gz": "the input changed"}.get(Path(path).name, why)
    summary = run_participant(config)
    assert planned["segment"] == summary.done
    assert planned["done"] == summary.skipped == ["sub-02_ses-a_T1w"]
    assert planned["fail"] == list(summary.failed)
    assert printed.err.splitlines()[-1].startswith(
        "3 to segment, 1 already done, 1 cannot be read, 0 skipped. About "
    )
    assert {step.action for step in plan(config)} == {"done", "fail"}
    assert all(step.action != "done" for step in plan(replace(config, overwrite=True)))


def test_a_plan_has_the_consensus_of_each_session_and_what_it_needs(
    tmp_path, tiny_model, head, monkeypatch
):
    """Before a run, after it, and without the labels of the consensus; one scan is damaged."""
    monkeypatch.setattr(
        "siam_bids.inference.person.align", lambda *_: Alignment(np.eye(4), 0.95, 0.1)
    )
    names = ("sub-1_ses-a_FLAIR", "sub-1_ses-a_T1w", "sub-1_ses-b_T1w", "sub-1_ses-b_T2w")
    bids, out = write_raw(tmp_path / "bids", head, *names), tmp_path / "out"
    (bids / "sub-1/ses-b/anat/sub-1_ses-b_T2w.nii.gz").write_bytes(b"\x1f\x8bno gzip stream")
    config = run_config(bids, out, tiny_model, combine="all")

    def planned():
        steps = {Path(step.path).name.split(".")[0]: step for step in plan(config)}
        return steps, {name: (step.action, step.why) for name, step in steps.items()}

    steps, said = planned()
    assert [*said] == [*names[:2], "sub-1_ses-a_consensus", *names[2:]]
    assert said["sub-1_ses-a_consensus"] == ("combine", "not segmented yet")
    assert summary([*steps.values()]).startswith(
        "3 to segment, 1 consensus to make, 0 already done, 1 cannot be read, 0 skipped."
    )
    done = run_participant(config).done
    assert sorted(done) == [name for name, (action, _) in said.items()
                            if action in ("segment", "combine")]  # fmt: skip
    _, said = planned()
    assert {name for name, (action, why) in said.items() if (action, why) == ("done", "")} == {
        *names[:3], "sub-1_ses-a_consensus",
    }  # fmt: skip
    gone = "sub-1_ses-a_seg-siam_desc-consensus_dseg.nii.gz"
    (out / "sub-1/ses-a/anat" / gone).unlink()
    steps, said = planned()
    assert said["sub-1_ses-a_consensus"] == ("combine", f"{gone} is missing")
    assert said["sub-1_ses-b_T1w"] == (
        "done",
        "its networks run again for the scans combined with it",
    )
    assert steps["sub-1_ses-b_T1w"].cost.seconds > 0


def test_a_plan_tries_a_scan_that_failed_again_and_names_edited_results(tmp_path, tiny_model, head):
    """Its header is whole, its voxels are not: only the record tells that it failed."""
    bids = write_raw(tmp_path / "bids", head, "sub-1_FLAIR", "sub-1_T1w")
    damaged = bids / "sub-1/anat/sub-1_T1w.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    config = run_config(bids, tmp_path / "out", tiny_model, combine="contrasts")
    assert [*run_participant(config).failed] == ["sub-1_T1w"]
    steps = plan(config)
    assert [(step.action, step.why) for step in steps] == [
        ("done", ""), ("segment", "it failed before"),
    ]  # fmt: skip
    assert summary(steps).startswith("1 to segment, 1 already done, 0 cannot be read, 0 skipped.")
    again = run_participant(config)
    assert (again.done, again.skipped, [*again.failed]) == ([], ["sub-1_FLAIR"], ["sub-1_T1w"])
    labels = tmp_path / "out/sub-1/anat/sub-1_seg-siam_desc-FLAIR_dseg.nii.gz"
    labels.write_bytes(labels.read_bytes() + b"edited")
    assert summary(plan(config)).startswith(
        "1 to segment, 0 already done, 1 kept because edited or not made by siam-bids, "
        "0 cannot be read, 0 skipped."
    )
    write_raw(bids, head, "sub-1_T1w")  # mended
    mended = {Path(step.path).name: step.why for step in plan(config)}
    assert mended["sub-1_T1w.nii.gz"] == "not segmented yet"


def test_a_plan_without_scans_tells_what_is_there_and_fails_as_the_run_does(
    tmp_path, tiny_model, capsys
):
    layouts.write(LAYOUTS[0], tmp_path / "bids")
    words = [str(tmp_path / "bids"), str(tmp_path / "out"), "participant", "--suffix", "FLAIR"]
    assert cli.main([*words, "--dry-run", "--model", str(tiny_model)]) == 3
    printed = capsys.readouterr()
    assert [row[4] for row in table(printed.out)] == ["--suffix does not list T1w"] * 2
    assert "No anatomical image in" in printed.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.4, "8 s"), (119, "119 s"), (600, "10.0 min"), (9000, "2.5 h")]
)
def test_durations(seconds, text):
    cost = Cost(seconds=seconds - 3, memory=2e9, start=3)
    said = summary([Step(path="a", action="segment", cost=cost), Step(path="b", action="done")])
    assert said == (
        "1 to segment, 1 already done, 0 cannot be read, 0 skipped. "
        f"About {text} and 2.0 GB of memory."
    )
