"""One prior for the scans of a person, and what the participant level makes of it."""

import logging
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from conftest import describe, run_config, write_model, write_scan

from siam_bids.bids.names import FIGURES, ScanNames, sidecar
from siam_bids.bids.results import ScanResult, read_results
from siam_bids.bids.scan import BidsName, Scan
from siam_bids.bids.status import combined_by, to_do
from siam_bids.config import Query
from siam_bids.image.grid import Crop, Grid, Reorientation, Segmentation, Volume
from siam_bids.image.labels import siam_labels
from siam_bids.image.transforms import move
from siam_bids.inference.alignment import Alignment, Appearance
from siam_bids.inference.cascade import CascadeSegmenter
from siam_bids.inference.combining import Shared
from siam_bids.inference.differential_bias import corrected, differential_bias, same_contrast
from siam_bids.inference.person import (
    Coarse,
    PersonMean,
    align_scans,
    coarse_scores,
    consensus,
    person_prior,
)
from siam_bids.inference.prediction import NetworkScores
from siam_bids.inference.resampling import Logits
from siam_bids.pipelines.group import old_consensus
from siam_bids.pipelines.participant import run_participant
from siam_bids.pipelines.person import Kept, Person
from siam_bids.pipelines.todo import Checklist, combinations, prepare, unfinished
from siam_bids.reports.build import origin_of
from siam_bids.reports.subject import scan_facts
from siam_bids.support.atomic_files import read_json, write_json

TABLE = siam_labels()
WM, CSFV, LESION = (TABLE.by_name[name].index for name in ("WM", "CSFv", "Anomalies"))


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """One tile for a head."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny", spacing=8.0)


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    """Pictures and pages are those of all scans, and take most of the time."""
    pictures = dict.fromkeys(FIGURES, b"picture")
    monkeypatch.setattr("siam_bids.pipelines.participant.draw", lambda *_: pictures)
    monkeypatch.setattr("siam_bids.pipelines.participant._write_page", lambda *_: None)


def ball(radius=24.0, *, size=2.0, sharp=1.5, edge=40.0) -> Coarse:
    """A scan in which a ball of white matter lies in ventricles."""
    length = int(2 * edge / size) + 1
    affine = np.diag([size, size, size, 1.0])
    affine[:3, 3] = -edge
    mm = move(affine, np.indices((length,) * 3).reshape(3, -1).T)
    inside = torch.from_numpy(radius - np.linalg.norm(mm, axis=1)).float() / sharp
    logits = torch.full((len(TABLE), len(mm)), -20.0)
    logits[WM], logits[CSFV] = inside / 2, -inside / 2
    logarithms = logits.log_softmax(0).reshape(len(TABLE), length, length, length)
    brain = torch.ones(logarithms.shape[1:], dtype=torch.bool).numpy()
    box = (slice(0, length),) * 3
    tissue = logarithms[WM].exp().numpy()
    return Coarse(
        logarithms=logarithms.half(),
        affine=affine,
        box=box,
        appearance=Appearance(tissue, brain, affine),
        weight=1.0,
        image=20 + 80 * tissue,
        tissues=np.where(tissue > 0.8, WM, np.where(tissue < 0.2, CSFV, 0)).astype(np.uint8),
        contrast=np.zeros(2),
    )


def prior_of(scan: Coarse, others: list[Coarse], motions=None, least=0.0) -> torch.Tensor:
    """Probabilities (classes, I, J, K) of the prior of a scan among others."""
    every = [scan, *others]
    motions = motions or [np.eye(4)] * len(every)
    own = Logits(scan.logarithms, scan.logarithms.shape[1:])
    prior = person_prior(own, scan, PersonMean(every, motions), motions[0], least=least)
    return torch.stack([*prior.planes()], 1).exp()


def test_the_prior_of_equal_scans_is_that_of_each():
    scan = ball()
    found = prior_of(scan, [ball()])
    own = scan.logarithms.float().exp()
    inner = (slice(None), *[slice(2, -2)] * 3)
    assert (found - own)[inner].abs().max() < 0.06  # twice interpolated
    assert np.allclose(found.sum(0), 1, atol=1e-2)


def test_a_border_that_differs_a_little_is_averaged():
    found = prior_of(ball(radius=24), [ball(radius=25)])
    along = found[WM, 20, 20, 20:]
    crossing = 2 * float(torch.nonzero(along < 0.5)[0])
    assert 24 <= crossing <= 26
    same = prior_of(ball(radius=25), [ball(radius=24)])
    assert (found - same).abs().max() < 0.02  # one prior for both
    half = prior_of(ball(radius=24), [ball(radius=25)], least=0.5)
    own = ball(radius=24).logarithms.float().exp()
    between = (own * found).sqrt()
    assert torch.allclose(half, between / between.sum(0), atol=5e-3)


def shared_prior(scans: list[Coarse], sessions: list[str], place: int) -> torch.Tensor:
    """Probabilities (classes, I, J, K) that a scan of several sessions gets as its prior."""
    scans = [replace(scan, contrast=np.full(2, n)) for n, scan in enumerate(scans)]
    shape = scans[0].image.shape
    grid = Grid(shape[::-1], np.diag([2.0, 2.0, 2.0, 1.0]))
    crop = Crop(Reorientation.to_ras(grid), tuple(slice(0, n) for n in shape))
    seen = NetworkScores(Logits(scans[place].logarithms, shape), crop)
    shared = Shared(scans, [np.eye(4)] * len(scans), sessions)
    volume = Volume(scans[place].image, grid)
    _, found = shared.with_it(place, volume, seen)
    return torch.stack([*found.prior.planes()], 1).exp()


def test_contrasts_of_a_session_share_their_prior_and_sessions_keep_their_change():
    scans = [ball(radius=24), ball(radius=24), ball(radius=26), ball(radius=26)]
    scans[1] = ball(radius=24.5)
    sessions = ["1", "1", "2", "2"]
    volumes = [float(shared_prior(scans, sessions, place)[WM].sum()) for place in range(4)]
    own = [float(scan.logarithms[WM].float().exp().sum()) for scan in scans]
    assert np.isclose(volumes[0], volumes[1], rtol=0.005)  # one session, one anatomy
    assert not np.isclose(own[0], own[1], rtol=0.03)
    found, true = (each[2] / np.mean(each[:2]) - 1 for each in (volumes, own))
    assert 0.8 < found / true < 0.95
    alone = shared_prior([scans[0], scans[2]], ["1", "2"], 0)
    every = shared_prior([scans[0], scans[2]], ["", ""], 0)
    first = scans[0].logarithms.float().exp()
    between = first**0.85 * every**0.15
    assert torch.allclose(alone, between / between.sum(0), atol=5e-3)


def test_where_a_scan_is_sure_against_the_rest_it_wins():
    whole, hole = ball(), ball()
    logits = hole.logarithms.clone()  # a lesion of 20 mm that the other scans do not have
    box = (slice(15, 26),) * 3
    logits[(slice(None), *box)] = -15.0
    logits[(LESION, *box)] = 0.0
    hole = replace(hole, logarithms=logits)
    with_lesion = prior_of(hole, [whole, ball()])
    without = prior_of(whole, [hole, ball()])
    assert with_lesion[LESION, 20, 20, 20] > 0.95
    assert without[WM, 20, 20, 20] > 0.6  # two of three


def test_scans_that_look_elsewhere_leave_a_scan_its_own_probabilities():
    scan, far = ball(), ball()
    away = np.eye(4)
    away[:3, 3] = 300
    found = prior_of(scan, [far], [np.eye(4), away])
    assert torch.allclose(found, scan.logarithms.float().exp(), atol=0.06)


def test_a_prior_can_be_had_for_some_voxels():
    scan = ball()
    own = Logits(scan.logarithms, scan.logarithms.shape[1:])
    prior = person_prior(own, scan, PersonMean([scan, ball(radius=26)], [np.eye(4)] * 2), np.eye(4))
    whole = torch.stack([*prior.planes()], 1)
    few = torch.stack([*prior.subsample((2, 3, 1)).planes()], 1)
    assert torch.allclose(few.exp(), whole[:, ::2, ::3].exp(), atol=2e-3)
    assert np.allclose(prior.probability(WM), whole[WM].exp(), atol=1e-6)


@pytest.mark.parametrize("size", [1.0, 0.9999999, 1.0000001])  # as affines of real files have it
def test_the_box_around_the_brain_is_kept_with_its_place_in_the_world(size):
    shape = (40, 50, 60)
    logits = torch.full((len(TABLE), *shape[::-1]), -10.0)
    logits[0] = 0
    logits[:, 20:40, 15:35, 10:30] = -10.0
    logits[WM, 20:40, 15:35, 10:30] = 5.0
    affine = np.diag([size, size, size, 1.0])
    affine[:3, 3] = 7, -3, 11
    grid = Grid(shape, affine)
    crop = Crop(Reorientation.to_ras(grid), tuple(slice(0, n) for n in shape[::-1]))
    seen = NetworkScores(Logits(logits, shape[::-1]), crop)
    volume = Volume(np.full(shape, 7, np.float32), grid)
    found = coarse_scores(volume, seen, TABLE)
    assert found is not None
    assert found.image.shape == found.tissues.shape == found.logarithms.shape[1:]
    assert np.allclose(np.linalg.norm(found.affine[:3, :3], axis=0), 2)
    assert np.allclose(found.image, 7)
    assert {*np.unique(found.tissues)} == {0, WM}
    assert np.isnan(found.contrast).all()  # neither cortex nor ventricles
    assert np.allclose(found.appearance.centre, [19 + 7, 24 - 3, 29 + 11][::1], atol=1.01)
    assert found.box[0].start >= 8
    empty = NetworkScores(Logits(torch.zeros(len(TABLE), 9, 9, 9), (9, 9, 9)), crop)
    assert coarse_scores(volume, empty, TABLE) is None


def with_bias(scan: Coarse, log_bias, *, seed: int, gain: float = 1.0) -> Coarse:
    noise = np.random.default_rng(seed).normal(0, 3, scan.image.shape)
    return replace(scan, image=(gain * (scan.image * np.exp(log_bias) + noise)).astype(np.float32))


def test_scans_of_one_contrast_get_the_bias_field_that_they_have_on_average():
    scan = ball()
    x, y, _ = move(scan.affine, np.indices(scan.image.shape).reshape(3, -1).T).T.reshape(
        3, *scan.image.shape
    )
    inside = scan.appearance.tissue > 0.8
    bias = [0.2 * np.sin(x / 15), 0.2 * np.cos(y / 15), 0 * x]
    scans = [with_bias(scan, each, seed=n, gain=n + 1) for n, each in enumerate(bias)]
    fields = differential_bias(scans, [np.eye(4)] * 3)
    after = [field + each for field, each in zip(fields, bias, strict=True)]
    before = [np.std((each - np.mean(bias, 0))[inside]) for each in bias]
    left = [np.std((each - np.mean(after, 0))[inside]) for each in after]
    assert min(before) > 0.02
    assert (np.array(left) < 0.3 * np.array(before)).all()
    level = [field[inside].mean() for field in fields]
    assert np.abs(level).max() < 0.1  # each scan keeps its unit


def test_a_new_lesion_is_no_bias():
    scan, bright = ball(), ball()
    lesion = np.s_[18:22, 18:22, 18:22]  # 8 mm, seen by no network
    image = bright.image.copy()
    image[lesion] *= 1.5
    noisy = [with_bias(scan, 0, seed=1), with_bias(replace(bright, image=image), 0, seed=2)]
    for field in differential_bias(noisy, [np.eye(4)] * 2):
        assert np.abs(field[lesion]).max() < 0.01


@pytest.mark.parametrize("contrast", [(0.3, 0.0), (0.0, 2.0), (np.nan, 0.0)])
def test_scans_of_other_contrasts_keep_their_bias_fields(contrast):
    one, other = ball(), replace(ball(), contrast=np.array(contrast))
    assert not same_contrast(one, other)
    assert differential_bias([one, other], [np.eye(4)] * 2) == [None, None]


def test_a_field_lies_where_its_scan_lies():
    scan = ball(size=2.0, edge=20.0)
    shape = (46, 47, 48)
    grid = Grid(shape, np.eye(4))
    crop = Crop(Reorientation.to_ras(grid), tuple(slice(0, n) for n in shape[::-1]))
    scan = replace(scan, box=tuple(slice(3, 3 + 2 * (n - 1) + 1) for n in scan.image.shape))
    z = np.arange(scan.image.shape[0], dtype=np.float32)[:, None, None]
    field = np.broadcast_to(z / 100, scan.image.shape)
    volume = Volume(np.ones(shape, np.float32), grid)
    found = np.log(corrected(volume, crop, scan, field).data)[5, 6]
    expected = np.clip((np.arange(48) - 3) / 2, 0, len(z) - 1) / 100
    assert np.allclose(found, expected, atol=1e-5)


def test_scans_of_which_none_agrees_are_all_done_alone():
    found = align_scans([ball(), None])
    assert found.motions == (None, None)
    assert found.refusals == ("no other scan could be aligned with it", "no brain was found")


def test_a_scan_of_another_head_does_not_discredit_the_others(monkeypatch):
    """Of three scans the third is another head: only that one disagrees."""
    scans = [ball(), ball(), ball()]
    number = {id(scan.appearance): place for place, scan in enumerate(scans)}

    def found(one, other):
        odd = 2 in (number[id(one)], number[id(other)])
        return Alignment(np.eye(4), 0.58 if odd else 0.89, 0.1)

    monkeypatch.setattr("siam_bids.inference.person.align", found)
    together = align_scans(scans)
    assert together.likeness == (0.89, 0.89, 0.58)
    assert together.refusals[:2] == ("", "")
    assert together.refusals[2].startswith("its tissues correlate only 0.58 with")


def test_labels_of_a_session_vote_and_a_lesion_counts_twice():
    grid = Grid((4, 1, 1), np.eye(4))

    def scan(*labels):
        return Segmentation(np.array(labels, np.uint8).reshape(4, 1, 1), grid, TABLE)

    three = [scan(1, 1, 2, 2), scan(2, 1, LESION, 2), scan(2, 2, LESION, LESION)]
    found = consensus(three, [np.eye(4)] * 3, [1.0, 0.9, 0.9], 0)
    assert found.data.ravel().tolist() == [2, 1, LESION, 2]
    shifted = np.eye(4)
    shifted[0, 3] = 2.0  # the second scan begins 2 mm further: two voxels have one vote
    found = consensus(three[:2], [np.eye(4), shifted], [1.0, 3.0], 0)
    assert found.data.ravel().tolist() == [1, 1, 2, 1]


def scans(*names: str) -> list[Scan]:
    found = []
    for name in names:
        relative = "/".join([*name.split("_")[:-1], "anat", f"{name}.nii.gz"])
        found.append(Scan(path=None, relative=relative, identity=BidsName.parse(name)))
    return found


@pytest.mark.parametrize(
    ("by", "groups"),
    [
        ("none", []),
        ("contrasts", [["sub-1_ses-a_FLAIR", "sub-1_ses-a_T1w"]]),
        ("sessions", [["sub-1_ses-a_T1w", "sub-1_ses-b_T1w"]]),
        ("all", [["sub-1_ses-a_FLAIR", "sub-1_ses-a_T1w", "sub-1_ses-b_T1w"]]),
    ],
)
def test_which_scans_are_combined(by, groups):
    every = scans(
        "sub-1_ses-a_FLAIR", "sub-1_ses-a_T1w", "sub-1_ses-a_ct", "sub-1_ses-b_T1w", "sub-2_T1w"
    )
    found = [[scan.name for scan in each.scans] for each in combinations(every, by)]
    assert found == groups


@pytest.mark.parametrize(
    ("by", "query", "said"),
    [
        ("sessions", {"sessions": ("a",)}, "sub-1: its other sessions are not selected"),
        ("contrasts", {"suffixes": ("T1w",)}, "sub-1, sub-3: their other scans are not selected"),
        ("all", {"sessions": ("b",)}, "sub-1: its other scans are not selected"),
        ("contrasts", {"sessions": ("b",)}, ""),
        ("all", {"suffixes": ("T1w",), "participants": ("1",)}, ""),
        ("all", {"participants": ("2",)}, ""),
        ("none", {"sessions": ("a",)}, ""),
    ],
)
def test_a_selection_that_leaves_nothing_to_combine_is_named(
    tmp_path, tiny_model, caplog, by, query, said
):
    names = ["1_ses-a_FLAIR", "1_ses-a_T1w", "1_ses-b_T1w", "2_T1w", "2_angio", "3_T1w", "3_T2w"]
    write_names(tmp_path / "bids", *(f"sub-{name}" for name in names))
    (tmp_path / "bids/sub-2/anat/sub-2_T2w.mgz").touch()
    config = run_config(tmp_path / "bids", tmp_path / "out", tiny_model, combine=by)
    prepare(replace(config, query=Query(**query)))
    assert caplog.messages == ([f"{said}, so nothing is combined."] if said else [])


def test_the_reason_names_the_scan_that_a_combination_gained_lost_or_found_changed(tmp_path):
    names = ScanNames(tmp_path, BidsName.parse("sub-1_T1w"))
    names.anat.mkdir(parents=True)
    inputs = {"sub-1/anat/sub-1_T1w.nii.gz": "a", "sub-1/anat/sub-1_T2w.nii.gz": "b"}
    about = {"InputSHA256": "a", "Model": {}, "Options": {}, "ResultsVersion": 1}

    def why(before, now):
        known = about | ({"Combined": {"By": "all", "Inputs": before}} if before else {})
        made = about | ({"Combined": {"By": "all", "Inputs": now}} if now else {})
        return to_do(names, known, made, [])

    more = inputs | {"sub-1/anat/sub-1_FLAIR.nii.gz": "c"}
    assert why(inputs, inputs) == ""
    assert why(inputs, more) == "it is now combined with sub-1_FLAIR.nii.gz too"
    assert why(more, inputs) == "it is no longer combined with sub-1_FLAIR.nii.gz"
    other = inputs | {"sub-1/anat/sub-1_T2w.nii.gz": "x"}
    assert why(inputs, other) == "sub-1_T2w.nii.gz, combined with it, changed"
    own = {"InputSHA256": "x", "Combined": {"By": "all", "Inputs": inputs}}
    now = {"Combined": {"By": "all", "Inputs": inputs | {"sub-1/anat/sub-1_T1w.nii.gz": "a2"}}}
    assert to_do(names, about | own, about | now, []) == "the input changed"
    known, made = (
        {"Combined": {"By": "all", "Inputs": inputs} | version} for version in ({}, {"Method": 2})
    )
    assert to_do(names, about | known, about | made, []) == (
        "scans are combined in another way by this version of siam-bids"
    )
    assert why({}, inputs) == "it was not combined with other scans of the participant"
    assert why(inputs, {}) == "it was combined with other scans of the participant"


def test_the_reason_for_another_choice_of_combine_is_that_choice(tmp_path):
    names = ScanNames(tmp_path, BidsName.parse("sub-1_T1w"))
    names.anat.mkdir(parents=True)

    def why(inputs):
        known, made = ({"Combined": {"By": by, "Inputs": own}} for by, own in inputs)
        return to_do(names, known, made, [])

    two, three = dict.fromkeys("ab", "1"), dict.fromkeys("abc", "1")
    assert why([("all", three), ("contrasts", two)]) == "--combine was all"
    assert why([("sessions", two), ("all", two)]) == "--combine was sessions"
    assert why([({}, two), ("all", two)]) == "the scans it is combined with changed"


@pytest.mark.parametrize("found", [True, False], ids=["brain", "no brain"])
def test_a_scan_whose_partners_failed_is_alone_for_that_reason(tmp_path, found, caplog):
    scan, *others = scans("sub-1_FLAIR", "sub-1_T1w", "sub-1_T2w")
    kept = Kept(lambda: tmp_path, TABLE)
    kept.coarse[scan] = ball() if found else None
    why = "sub-1_T1w, sub-1_T2w failed" if found else "no brain was found"
    person = Person([scan], kept, others)
    assert person.describe(scan)["CombinedAs"]["Alone"] == why
    assert f"sub-1_FLAIR is segmented alone: {why}." in caplog.text


@pytest.mark.parametrize("failed", [True, False])
def test_a_scan_whose_partner_has_no_brain_is_alone_for_that_reason(tmp_path, failed, caplog):
    scan, empty, *others = scans("sub-1_FLAIR", "sub-1_T1w", "sub-1_T2w")
    kept = Kept(lambda: tmp_path, TABLE)
    kept.coarse = {scan: ball(), empty: None}
    person = Person([scan, empty], kept, others if failed else ())
    why = ("sub-1_T2w failed and " if failed else "") + "no brain was found in sub-1_T1w"
    assert person.describe(scan)["CombinedAs"]["Alone"] == why
    assert person.describe(empty)["CombinedAs"]["Alone"] == "no brain was found"
    assert f"sub-1_FLAIR is segmented alone: {why}." in caplog.text


@pytest.mark.parametrize(
    "entry",
    ["", 7, None, ["a"], {}, {"Without": 3}, {"Without": {"a": 1}}, {"Without": "sub-1/anat"}],
)
def test_sidecars_that_others_wrote_stop_nothing(tmp_path, entry):
    names = ScanNames(tmp_path, BidsName.parse("sub-1_T1w"))
    names.anat.mkdir(parents=True)
    write_json(sidecar(names.segmentation), {"CombinedAs": entry, "Combined": entry})
    scan = replace(scans("sub-1_T1w")[0], path=Path("sub-1_T1w.nii.gz"))
    checklist = Checklist(run_config(tmp_path, tmp_path, tmp_path), None, None, (scan,))
    assert checklist.lacked(scan, [scan]) == ""
    assert checklist.consensus_why([scan], trusting=True) == ""
    assert combined_by({"CombinedAs": entry, "Combined": entry}) == "none"
    grid = {"Shape": [1], "VoxelSize": [1], "Orientation": "RAS"}
    model = {"Title": "t", "Version": "1", "SHA256": "0"}
    about = {"Grid": grid, "Model": model, "InputSHA256": "0", "Combined": entry}
    assert ("Combined", "unknown") in [*scan_facts(about, {})]


@pytest.fixture
def aligned(monkeypatch):
    """Scans that all lie alike; set `likeness` to have them refused."""
    found = {"likeness": 0.95}
    monkeypatch.setattr(
        "siam_bids.inference.person.align",
        lambda *_: Alignment(np.eye(4), found["likeness"], 0.1),
    )
    return found


def two_people(root, head):
    for name in ("sub-1_ses-a_FLAIR", "sub-1_ses-a_T1w", "sub-1_ses-b_T1w", "sub-2_T1w"):
        write_named(root, name, head)
    describe(root)
    return root


def write_names(root, *names):
    """A dataset of empty files: only names count."""
    for name in names:
        path = root.joinpath(*name.split("_")[:-1], "anat", f"{name}.nii.gz")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    describe(root)


def write_named(root, name, head):
    *place, _ = name.split("_")
    write_scan(root.joinpath(*place, "anat", f"{name}.nii.gz"), head)


def about(out, name):
    return read_json(sidecar(ScanNames(out, BidsName.parse(name)).segmentation))


def test_scans_of_a_person_are_combined_and_a_new_visit_makes_only_that_person_anew(
    tmp_path, head, tiny_model, aligned, caplog
):
    bids, out = two_people(tmp_path / "bids", head), tmp_path / "out"
    config = run_config(bids, out, tiny_model, combine="all")
    first = run_participant(config)
    assert first.failed == {}
    assert sorted(first.done) == [
        "sub-1_ses-a_FLAIR", "sub-1_ses-a_T1w", "sub-1_ses-a_consensus", "sub-1_ses-b_T1w",
        "sub-2_T1w",
    ]  # fmt: skip
    every = [
        "sub-1/ses-a/anat/sub-1_ses-a_FLAIR.nii.gz",
        "sub-1/ses-a/anat/sub-1_ses-a_T1w.nii.gz",
        "sub-1/ses-b/anat/sub-1_ses-b_T1w.nii.gz",
    ]
    made = about(out, "sub-1_ses-b_T1w")
    assert made["Combined"]["By"] == "all"
    assert [*made["Combined"]["Inputs"]] == every
    assert 0 < made["CombinedAs"]["Weight"] < 1
    assert "Combined" not in about(out, "sub-2_T1w")
    agreed = about(out, "sub-1_ses-a_consensus")
    assert sorted(agreed["Sources"]) == [f"bids:raw:{path}" for path in every[:2]]
    transform = out / "sub-1/ses-b/anat/sub-1_ses-b_from-T1w_to-person_mode-image_xfm.txt"
    assert transform.relative_to(out).as_posix() in made["Outputs"]
    assert np.allclose(np.reshape(sitk.ReadTransform(str(transform)).GetParameters()[:9], (3, 3)),
                       np.eye(3))  # fmt: skip
    assert len(read_results(out).usable) == 5
    assert read_results(out).unusable == {}

    volumes = [
        pd.read_csv(ScanNames(out, BidsName.parse(name)).volumes, sep="\t")
        for name in ("sub-1_ses-a_consensus", "sub-1_ses-b_T1w", "sub-2_T1w")
    ]
    assert [[*table.get("combined", [])][:1] for table in volumes] == [["all"], ["all"], []]

    again = run_participant(config)
    assert again.done == []
    assert len(again.skipped) == 4
    (out / "sub-1/ses-a/anat/sub-1_ses-a_desc-T1w_volumes.tsv").unlink()
    before = transform.stat().st_mtime_ns
    assert run_participant(config).done == ["sub-1_ses-a_T1w"]
    assert transform.stat().st_mtime_ns == before

    write_named(bids, "sub-1_ses-c_T1w", head)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        last = run_participant(config)
    assert "sub-2_T1w" in last.skipped
    assert len(last.done) == 5
    why = "sub-1_ses-a_T1w: it is now combined with sub-1_ses-c_T1w.nii.gz too"
    assert why in caplog.text
    alone = run_participant(run_config(bids, out, tiny_model))
    assert len(alone.done) == 4
    assert "sub-1_ses-a_consensus is left over from a run with another --combine" in caplog.text
    assert not transform.exists()


def test_swapped_scans_are_done_alone_and_flagged(tmp_path, head, tiny_model, aligned, caplog):
    aligned["likeness"] = 0.6
    bids = two_people(tmp_path / "bids", head)
    separate, together = tmp_path / "separate", tmp_path / "together"
    run_participant(run_config(bids, separate, tiny_model))
    summary = run_participant(run_config(bids, together, tiny_model, combine="contrasts"))
    assert summary.failed == {}
    assert "sub-1_ses-a_consensus" not in summary.done
    assert "sub-1_ses-a_T1w is segmented alone: " in caplog.text
    names = ScanNames(together, BidsName.parse("sub-1_ses-a_FLAIR"))
    own = ScanNames(separate, names.identity).segmentation
    assert (image_of(names.segmentation) == image_of(own)).all()
    quality = names.quality.read_text()
    assert "disagrees with the participant's other scans (0.60)" in quality
    assert run_participant(run_config(bids, together, tiny_model, combine="contrasts")).done == []


def result_of(stem, *, combined=None, weight=None, sources=("a",)):
    about = {"Sources": [f"bids:raw:{source}" for source in sources]}
    about |= {"Combined": combined} if combined else {}
    about |= {"CombinedAs": {"Weight": weight}} if weight else {}
    names = ScanNames(Path(), BidsName.parse(stem))
    return ScanResult(names=names, about=about, volumes=(), quality={})


def test_a_consensus_that_is_older_than_its_scans_is_named():
    both = {"By": "all", "Inputs": {"a": "1", "b": "2"}}
    one = result_of("sub-1_T1w", combined=both, weight=0.9)
    two = result_of("sub-1_T2w", combined=both, weight=0.8, sources=("b",))
    whole = result_of("sub-1_consensus", combined=both, sources=("a", "b"))
    assert old_consensus([one, two, whole]) == []
    alone = result_of("sub-1_T2w", sources=("b",))
    assert old_consensus([one, alone, whole]) == [
        (
            "sub-1_consensus is older than the scans that it was made of: run the participant "
            "level with --combine again, or delete its files."
        )
    ]
    assert [each.combined for each in (one, alone, whole)] == ["all", "none", "all"]


@pytest.mark.parametrize("consensus", [True, False])
def test_the_methods_of_a_page_name_the_voting_where_there_is_a_consensus(consensus):
    found = result_of("sub-1_T1w", combined={"By": "all"}, sources="ab" if consensus else "a")
    model = {"Title": "t", "Version": "1", "SHA256": "0" * 64, "Citation": ""}
    text = origin_of([{**found.about, "Model": model, "Software": {}}])["boilerplate"]
    assert "Scans of one participant were aligned rigidly" in text
    assert ("weighted voting" in text) is consensus


def image_of(path):
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture
def networks(monkeypatch):
    """Shapes of the scans that the networks have seen, one entry for each time they ran."""
    seen = []
    network = CascadeSegmenter.network

    def counted(self, volume, **more):
        seen.append(volume.grid.shape)
        return network(self, volume, **more)

    monkeypatch.setattr(CascadeSegmenter, "network", counted)
    return seen


@pytest.mark.parametrize("content", [b"\x1f\x8bno gzip stream", b""], ids=["damaged", "empty"])
def test_a_damaged_scan_costs_those_it_is_combined_with_nothing(
    tmp_path, head, tiny_model, aligned, networks, content
):
    bids, out = two_people(tmp_path / "bids", head), tmp_path / "out"
    write_named(bids, "sub-1_ses-a_T2w", head)
    flair = bids / "sub-1/ses-a/anat/sub-1_ses-a_FLAIR.nii.gz"
    flair.write_bytes(content)
    config = run_config(bids, out, tiny_model, combine="all")
    summary = run_participant(config)
    assert [*summary.failed] == ["sub-1_ses-a_FLAIR"]
    assert sorted(summary.done) == [
        "sub-1_ses-a_T1w", "sub-1_ses-a_T2w", "sub-1_ses-a_consensus", "sub-1_ses-b_T1w",
        "sub-2_T1w",
    ]  # fmt: skip
    relative = flair.relative_to(bids).as_posix()
    assert about(out, "sub-1_ses-a_T1w")["CombinedAs"]["Without"] == [relative]
    assert about(out, "sub-1_ses-a_consensus")["CombinedAs"] == {"Without": [relative]}
    networks.clear()
    for _ in range(2):
        again = run_participant(config)
        assert (again.done, [*again.failed]) == ([], ["sub-1_ses-a_FLAIR"])
        assert len(again.skipped) == 4
    assert networks == []
    write_named(bids, "sub-1_ses-a_FLAIR", head)  # mended
    mended = run_participant(config)
    assert mended.failed == {}
    assert len(mended.done) == 5
    assert mended.skipped == ["sub-2_T1w"]
    assert "Without" not in about(out, "sub-1_ses-b_T1w")["CombinedAs"]
    assert len(networks) == 4


def test_results_made_without_a_scan_whose_networks_failed_are_made_with_it(
    tmp_path, head, tiny_model, aligned, networks, monkeypatch, caplog
):
    """Its file never changed: that it failed is known from the sidecars of the others."""
    bids, out = two_people(tmp_path / "bids", head), tmp_path / "out"
    config = run_config(bids, out, tiny_model, combine="all")
    works = Kept.add

    def add(self, scan, volume, seen):
        if scan.name == "sub-1_ses-b_T1w":
            raise MemoryError
        works(self, scan, volume, seen)

    monkeypatch.setattr(Kept, "add", add)
    assert [*run_participant(config).failed] == ["sub-1_ses-b_T1w"]
    first = len(networks)
    assert run_participant(config).done == []
    assert len(networks) - first == 1  # those of the scan that fails
    monkeypatch.setattr(Kept, "add", works)
    with caplog.at_level(logging.INFO):
        done = run_participant(config).done
    assert sorted(done) == [
        "sub-1_ses-a_FLAIR", "sub-1_ses-a_T1w", "sub-1_ses-a_consensus", "sub-1_ses-b_T1w",
    ]  # fmt: skip
    assert "sub-1_ses-a_consensus: sub-1_ses-b_T1w.nii.gz failed before" in caplog.text
    assert run_participant(config).done == []


def test_a_consensus_that_is_gone_is_made_again_and_one_that_was_edited_is_kept(
    tmp_path, head, tiny_model, aligned, networks
):
    bids, out = two_people(tmp_path / "bids", head), tmp_path / "out"
    config = run_config(bids, out, tiny_model, combine="all")
    run_participant(config)
    names = ScanNames(out, BidsName.parse("sub-1_ses-a_consensus"))
    names.segmentation.unlink()
    assert [scan.name for scan in unfinished(config)[1].scans] == [
        "sub-1_ses-a_FLAIR", "sub-1_ses-a_T1w",
    ]  # fmt: skip
    assert run_participant(config).done == ["sub-1_ses-a_consensus"]
    assert unfinished(config)[1].scans == []
    networks.clear()
    image = nib.load(names.segmentation)
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), names.segmentation)
    edited = run_participant(config)
    assert [*edited.failed] == ["sub-1_ses-a_consensus"]
    assert "was changed since its scan was segmented" in edited.failed["sub-1_ses-a_consensus"]
    assert networks == []
    assert (image_of(names.segmentation) == 0).all()
