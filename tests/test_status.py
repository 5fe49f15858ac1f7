"""Which scans are done, and why not; what a run removes and what it leaves."""

import hashlib
import os
from dataclasses import replace

import pytest

from siam_bids.bids.label_tables import LABEL_TABLE, save_label_table
from siam_bids.bids.names import ScanNames, finished_scans, sidecar
from siam_bids.bids.scan import BidsName
from siam_bids.bids.status import (
    IDENTITY,
    failed_scans,
    finish_scan,
    place_results,
    subject_state,
    sweep_root,
    sweep_subject,
    to_do,
)
from siam_bids.image.labels import siam_labels
from siam_bids.support.atomic_files import SCRATCH, read_json, write_json

NOTHING = hashlib.sha256().hexdigest()


def recorded(names, paths):
    return {path.relative_to(names.root).as_posix(): f"sha256:{NOTHING}" for path in paths}


def made(root, *stems) -> list[ScanNames]:
    """Finished scans, as far as their sidecars tell."""
    names = [ScanNames(root, BidsName.parse(f"{stem}_T1w")) for stem in stems]
    for each in names:
        write_json(sidecar(each.segmentation), {"Sources": ["bids:raw:x"]})
    return names


@pytest.mark.parametrize("kept_in", ["sidecar", "record"])
def test_maps_that_new_options_do_not_make_are_removed_if_recorded(tmp_path, kept_in):
    names = ScanNames(tmp_path, BidsName.parse("sub-01_T1w"))
    other = ScanNames(tmp_path, BidsName.parse("sub-01_T2w"))
    names.anat.mkdir(parents=True)
    ours = [names.probability("GM"), names.probability("WM"), other.probability("WM")]
    ours += [sidecar(path) for path in ours]
    for path in ours:
        path.touch()
    places = recorded(names, ours)
    if kept_in == "sidecar":
        write_json(sidecar(names.segmentation), {"Software": {"siam-bids": "0"}, "Outputs": places})
    else:  # of a run that was killed before its sidecar
        write_json(names.record, {"written": {place: [each] for place, each in places.items()}})
    names.probability("mine").touch()
    names.preview("image").parent.mkdir()
    names.preview("image").touch()
    made = replace(names, root=tmp_path / "made")
    made.anat.mkdir(parents=True)
    made.probability("GM").touch()
    sidecar(made.probability("GM")).touch()
    written = dict.fromkeys([made.probability("GM"), sidecar(made.probability("GM"))], NOTHING)
    seen = read_json(sidecar(names.segmentation))
    placed = place_results(names, made.root, written, seen)
    assert list(placed) == [names.probability("GM"), sidecar(names.probability("GM"))]
    left = {path.name for path in names.anat.glob("*.nii.gz")}
    kept = (names.probability("GM"), names.probability("mine"), other.probability("WM"))
    assert left == {path.name for path in kept}
    assert len(list(names.anat.glob("*.json"))) == 2
    assert not names.preview("image").exists()


def test_of_results_without_checksums_maps_of_known_tissues_are_removed(tmp_path):
    names = ScanNames(tmp_path, BidsName.parse("sub-01_T1w"))
    save_label_table(tmp_path / LABEL_TABLE, siam_labels())
    names.anat.mkdir(parents=True)
    for tissue in ("GM", "mine"):
        names.probability(tissue).touch()
    about = {"Software": {"siam-bids": "0.1.0"}}
    write_json(sidecar(names.segmentation), about)
    assert place_results(names, tmp_path / "made", {}, about) == {}
    assert list(names.anat.iterdir()) == [names.probability("mine")]


def test_a_scan_of_which_something_is_gone_is_not_declared_done(tmp_path):
    names = ScanNames(tmp_path, BidsName.parse("sub-01_T1w"))
    declared = sidecar(names.segmentation)
    written = [names.segmentation, names.brain_mask, names.figure("mosaic")]
    written += [sidecar(names.brain_mask)]
    checksums = dict.fromkeys(written, NOTHING)
    for gone in written:
        for path in written:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        finish_scan(names, {"InputSHA256": "a"}, checksums)
        assert declared.exists()
        declared.unlink()
        gone.unlink()
        with pytest.raises(FileNotFoundError, match=gone.name):
            finish_scan(names, {"InputSHA256": "a"}, checksums)
        assert not declared.exists()


def test_scans_say_why_they_are_to_do(tmp_path):
    names = ScanNames(tmp_path, BidsName.parse("sub-01_T1w"))
    made = {"InputSHA256": "a", "Model": {"SHA256": "m"}, "Options": {}, "ResultsVersion": 1}
    assert to_do(names, {}, made, []) == "not segmented yet"
    assert to_do(names, made, made, []) == ""
    assert "is missing" in to_do(names, made, made, [names.segmentation])
    for key, why in IDENTITY.items():
        assert to_do(names, made, {**made, key: "other"}, []) == why
    all_changed = dict.fromkeys(made, "other")
    assert (
        to_do(names, made, all_changed, []) == "the input changed, it was made with another model"
    )


def test_results_and_failures_are_told_apart_and_by_subject(tmp_path):
    one, two = made(tmp_path, "sub-01", "sub-02_run-1")
    (third,) = made(tmp_path, "sub-02_ses-b")
    write_json(one.record, {"seconds": 3})
    write_json(two.record, {"error": "damaged"})
    assert list(finished_scans(tmp_path)) == [one, two, third]
    assert list(finished_scans(tmp_path, "02")) == [two, third]
    assert list(failed_scans(tmp_path)) == [two]
    assert list(failed_scans(tmp_path, "01")) == []
    assert third.identity.visit == ("sub-02", "ses-b")
    assert third.name == "sub-02_ses-b_T1w"


def test_the_state_of_a_subject_changes_with_its_results_and_failures(tmp_path):
    seen = [subject_state(tmp_path, "01")]
    (names,) = made(tmp_path, "sub-01")
    (other,) = made(tmp_path, "sub-02")
    write_json(other.record, {"error": "damaged"})
    seen.append(subject_state(tmp_path, "01"))
    write_json(names.record, {"error": "damaged"})
    seen.append(subject_state(tmp_path, "01"))
    assert [len(state) for state in seen] == [0, 1, 2]
    assert seen[2][0] == seen[1][0]
    os.utime(names.record, (5, 5))
    assert subject_state(tmp_path, "01")[1] == (names.record.as_posix(), 5 * 10**9)


def test_half_written_files_are_swept_where_they_can_lie(tmp_path):
    dead = f"{SCRATCH}0123456789-1-abcdefg_.json"
    of_subject = ["logs/sub-01", "sub-01/anat", "sub-01/ses-a/anat", "sub-01/figures"]
    places = {name: tmp_path / name / dead for name in (".", "logs", "sub-02/anat", *of_subject)}
    for path in places.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (0, 0))
    sweep_subject(tmp_path, "01")
    assert {name for name, path in places.items() if not path.exists()} == set(of_subject)
    sweep_root(tmp_path)
    assert [name for name, path in places.items() if path.exists()] == ["sub-02/anat"]
