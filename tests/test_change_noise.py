"""Measurement noise of change, and what tables and pages make of it."""

import json
import logging
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import run_config

from siam_bids.bids.names import ScanNames, sidecar
from siam_bids.bids.results import read_results
from siam_bids.bids.scan import BidsName
from siam_bids.config import Inference
from siam_bids.measures import change_noise
from siam_bids.measures.change_noise import ALONE, COMBINED, noise_kind, noise_of_median
from siam_bids.pipelines.group import run_group

NOISE = {ALONE: {"GM": 0.8, "Thal": 3.0}, COMBINED: {"GM": 0.1, "Thal": 0.2}}


@pytest.fixture
def noise(monkeypatch):
    monkeypatch.setattr(change_noise, "change_noise", lambda: NOISE)


MM = (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("model", "options", "contrast", "voxel", "combined", "kind"),
    [
        ("compact", {}, "T1w", MM, "none", "alone"),
        ("compact", {}, "T1w", (0.8, 0.8, 1.2), "none", "alone"),
        ("compact", {"probabilities": [], "volume": 1}, "T1w", MM, "none", "alone"),
        ("compact", {}, "T1w", MM, "sessions", "combined"),
        ("compact", {}, "T1w", MM, "all", ""),
        ("compact", {}, "T1w", MM, "contrasts", ""),
        ("compact", {}, "T1w", (1.0, 1.0, 3.0), "none", ""),
        ("compact", {}, "FLAIR", MM, "none", ""),
        ("compact", {}, "consensus", MM, "all", ""),
        ("siam", {}, "T1w", MM, "none", ""),
        ("compact", Inference(intensities=False).changed(), "T1w", MM, "none", ""),
    ],
)
def test_noise_holds_for_what_was_measured_alone(model, options, contrast, voxel, combined, kind):
    assert noise_kind(model, options, contrast, voxel, combined) == kind


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 40])
def test_the_noise_of_a_median_is_that_of_drawn_values_and_never_less(count):
    drawn = np.random.default_rng(0).normal(0, 0.7, (40000, count))
    found = float(np.median(drawn, axis=1).std())
    said = noise_of_median([0.49] * count)
    assert 0.99 * found <= said
    assert said <= (1.3 if count == 2 else 1.1) * found


def test_the_table_has_positive_numbers_for_the_tissues_of_the_model():
    from siam_bids.image.labels import siam_labels

    found = change_noise.change_noise()
    known = {*siam_labels().by_name, "TIV"}
    for kind in (ALONE, COMBINED):
        assert {"GM", "WM", "Hippo", "CSFv"} <= {*found[kind]} <= known
        assert all(0 < value < 20 for value in found[kind].values())


def edit(out, name, *, combined="", alone="", voxel=1.0, partners=("T1w.nii.gz",)):
    path = sidecar(ScanNames(out, BidsName.parse(name)).segmentation)
    about = json.loads(path.read_text())
    about["Model"]["Name"] = "compact"
    about["Grid"]["VoxelSize"] = [voxel] * 3
    if combined:
        about["Combined"] = {"By": combined, "Inputs": dict.fromkeys(partners, "sha")}
        about["CombinedAs"] = {"Alone": alone} if alone else {"Weight": 0.9}
    path.write_text(json.dumps(about))


@pytest.fixture
def visits(study, tmp_path, noise):
    """Ten people twice: one combined, one combined once, one of thick slices, the others alone."""
    raw, out = study(tmp_path, people=10, sessions=("a", "b"))
    for number in range(1, 11):
        for session in "ab":
            name = f"sub-{number:02d}_ses-{session}_T1w"
            combined = "sessions" if number == 1 or (number == 2 and session == "b") else ""
            edit(out, name, combined=combined, voxel=3.0 if number == 3 else 1.0)
    return replace(run_config(raw, out, "compact"), level="group")


def test_each_change_has_the_noise_of_such_scans(visits):
    run_group(visits)
    path = visits.output_dir / "group_changes.tsv"
    table = pd.read_csv(path, sep="\t").set_index(["participant_id", "tissue"])
    gm = table.xs("GM", level="tissue")
    assert gm["noise_percent"].iloc[:4].tolist()[::3] == [0.1, 0.8]
    assert gm.loc[["sub-02", "sub-03"], "noise_percent"].isna().all()
    assert gm.loc[["sub-02", "sub-03"], "within_noise"].isna().all()
    assert gm["combined"].tolist() == ["sessions", "mixed", *["none"] * 8]
    described = json.loads(path.with_suffix(".json").read_text())
    assert {*gm["combined"]} <= {*described["combined"]["Levels"]}
    assert "pair" in described["included"]["Description"]
    assert {*described} == {*pd.read_csv(path, sep="\t")}
    known = gm.dropna(subset="noise_percent")
    within = known["change_percent"].abs() <= 1.96 * known["noise_percent"]
    assert (known["within_noise"] == within.map({True: "yes", False: "no"})).all()
    assert known["within_noise"].unique().tolist() == ["no", "yes"]  # -2 mL of 700 a year
    assert (known["noise_percent_per_year"] == known["noise_percent"] / known["years"]).all()
    assert table.xs("WM", level="tissue")["noise_percent"].isna().all()
    described = json.loads(path.with_suffix(".json").read_text())
    assert "lower bound" in described["noise_percent"]["Description"]
    assert {*described} == {*table.reset_index()}


def row_of(page, protocol, tissue):
    cells = rf"<tr><td>{protocol}</td><th scope=\"row\">{tissue}</th>(.*?)</tr>"
    found = re.search(cells, page, re.DOTALL)[1]
    return " ".join(re.sub(r"<[^>]+>", " ", found).split())


def test_pages_give_the_noise_of_medians_and_grey_what_is_within(visits, caplog):
    with caplog.at_level(logging.WARNING):
        run_group(replace(visits, group_by=("contrast", "combined")))
    assert "different --combine" not in caplog.text
    run_group(visits)
    said = "T1w has scans with different --combine: 17 none, 3 sessions. Their volumes"
    assert said in caplog.text
    page = (visits.output_dir / "group.html").read_text()
    assert said in page
    assert "Measurement noise was not measured for these scans." in page  # not for all pairs
    assert "not measured</td>" not in page
    (visits.output_dir / "sub-03").rename(visits.output_dir.parent / "away")
    caplog.clear()
    run_group(replace(visits, exclude=("combined=sessions",)))
    assert "different --combine" not in caplog.text
    page = (visits.output_dir / "group.html").read_text()
    band = 1.96 * 0.8 * np.sqrt(np.pi / 2 / 7)
    assert f"± {band:.2f}" in row_of(page, "T1w", "GM")
    assert row_of(page, "T1w", "GM").endswith("within")
    assert row_of(page, "T1w", "WM").endswith("not measured")
    wide = pd.read_csv(visits.output_dir / "group_desc-wide_volumes.tsv", sep="\t")
    assert wide["combined"].value_counts().to_dict() == {"none": 15, "sessions": 3}
    subject = (visits.output_dir / "sub-04.html").read_text()
    assert "± 1.6 %" in subject
    assert "≈ marks differences within it" in subject
    first = (visits.output_dir / "sub-01.html").read_text()
    assert "± 0.2 %" in first
    assert "<dt>Combined</dt><dd>with the same scans of other sessions</dd>" in first
    combined = "Scans of one kind from different sessions of a participant were aligned rigidly"
    assert [combined in each for each in (first, page, subject)] == [True, True, False]
    assert "weighted voting" not in page


def test_without_combinations_no_table_has_the_column(study, tmp_path):
    raw, out = study(tmp_path, people=3, sessions=("a", "b"))
    run_group(replace(run_config(raw, out, "compact"), level="group"))
    for path in out.glob("group_*.tsv"):
        assert "combined" not in path.read_text().partition("\n")[0].split("\t")


def test_a_scan_that_was_done_alone_counts_as_not_combined(study, tmp_path):
    _, out = study(tmp_path, people=2, sessions=("a", "b"))
    edit(
        out, "sub-01_ses-a_T1w", combined="sessions", alone="no other scan could be aligned with it"
    )
    edit(out, "sub-01_ses-b_T1w", combined="sessions")
    found = {result.names.name: result for result in read_results(out).usable}
    assert found["sub-01_ses-a_T1w"].combined == "none"
    assert found["sub-01_ses-a_T1w"].noise == "alone"
    assert found["sub-01_ses-b_T1w"].noise == "combined"


def test_visits_that_separate_runs_combined_are_mixed_and_have_no_noise(study, tmp_path, noise):
    raw, out = study(tmp_path, people=1, sessions=("a", "b", "c"))
    for session in "abc":
        partners = ("a", "b") if session in "ab" else ("c",)
        edit(out, f"sub-01_ses-{session}_T1w", combined="sessions", partners=partners)
    run_group(replace(run_config(raw, out, "compact"), level="group"))
    table = pd.read_csv(out / "group_changes.tsv", sep="\t").query("tissue == 'GM'")
    assert table["session_to"].tolist() == ["ses-b", "ses-c"]
    assert table["combined"].tolist() == ["sessions", "mixed"]
    assert table["noise_percent"].tolist()[:1] == [0.1]
    assert table["noise_percent"].isna().tolist() == [False, True]


def test_visits_combined_within_their_sessions_are_not_mixed(study, tmp_path, noise):
    raw, out = study(tmp_path, people=1, sessions=("a", "b"))
    for session in "ab":
        name = f"sub-01_ses-{session}_T1w"
        edit(out, name, combined="contrasts", partners=(session,))
    run_group(replace(run_config(raw, out, "compact"), level="group"))
    table = pd.read_csv(out / "group_changes.tsv", sep="\t")
    assert set(table["combined"]) == {"contrasts"}
    assert table["noise_percent"].isna().all()


def test_a_visit_whose_partner_failed_or_was_replaced_since_is_mixed(study, tmp_path, noise):
    raw, out = study(tmp_path, people=1, sessions=("a", "b", "c"))
    for session in "abc":
        name = f"sub-01_ses-{session}_T1w"
        edit(out, name, combined="sessions", partners=("a", "b", "c"))
        path = sidecar(ScanNames(out, BidsName.parse(name)).segmentation)
        about = json.loads(path.read_text())
        if session == "b":
            about["CombinedAs"]["Without"] = ["c"]
        if session == "c":
            about["Combined"]["Inputs"]["a"] = "another"
        path.write_text(json.dumps(about))
    run_group(replace(run_config(raw, out, "compact"), level="group"))
    table = pd.read_csv(out / "group_changes.tsv", sep="\t").query("tissue == 'GM'")
    assert table["combined"].tolist() == ["mixed", "mixed"]
    assert table["noise_percent"].isna().all()


def test_sessions_of_which_one_has_another_contrast_are_mixed(study, tmp_path, noise):
    raw, out = study(tmp_path, people=1, sessions=("a", "b", "c"))
    for session, suffixes in (("a", ("T1w", "T2w")), ("b", ("T1w", "T2w")), ("c", ("T1w",))):
        name = f"sub-01_ses-{session}"
        partners = [f"sub-01/ses-{session}/anat/{name}_{suffix}.nii.gz" for suffix in suffixes]
        edit(out, f"{name}_T1w", combined="contrasts", partners=partners)
    run_group(replace(run_config(raw, out, "compact"), level="group"))
    table = pd.read_csv(out / "group_changes.tsv", sep="\t").query("tissue == 'GM'")
    assert table["combined"].tolist() == ["contrasts", "mixed"]


def test_follow_ups_of_one_person_make_the_median_no_surer(study, tmp_path, noise):
    bands = []
    for sessions in (("a", "b"), ("a", "b", "c", "d")):
        raw, out = study(tmp_path / "".join(sessions), people=4, sessions=sessions)
        for result in read_results(out).usable:
            edit(out, result.names.name)
        run_group(replace(run_config(raw, out, "compact"), level="group"))
        row = row_of((out / "group.html").read_text(), "T1w", "GM")
        bands.append(re.search(r"± ([\d.]+)", row)[1])
    assert bands[0] == bands[1] == f"{1.96 * 0.8 * np.sqrt(np.pi / 2 / 4):.2f}"
