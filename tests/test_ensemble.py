"""Ensembles of trained networks, and members that see only a box of the scan."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import write_model
from trained_models import CPU, SHAPE, opened, predicted, refined, scene

from siam_bids.config import Inference
from siam_bids.errors import ModelError
from siam_bids.image.grid import Grid
from siam_bids.inference.cascade import Cascade, CascadeSegmenter
from siam_bids.inference.cost import estimate
from siam_bids.inference.runner import Runner
from siam_bids.inference.segmenter import NnunetSegmenter
from siam_bids.models.registry import find_model
from siam_bids.reports.methods_text import methods_text


def test_an_ensemble_takes_the_class_of_the_highest_mean_probability(pair):
    names = ["background", "GM", "CSF"]
    alone = [
        predicted(pair.parent / member, scene(), probabilities=names)
        for member in ("half", "first")
    ]
    told = []
    both = predicted(pair, scene(), probabilities=names, progress=told.append)
    means = np.mean([[p.probabilities[name] for name in names] for p in alone], axis=0)
    np.testing.assert_allclose([both.probabilities[name] for name in names], means, atol=1e-6)
    found = both.segmentation.data
    np.testing.assert_array_equal(found, means.argmax(0))
    assert (alone[0].segmentation.data != alone[1].segmentation.data).mean() > 0.05
    assert both.confidence["GM"] == pytest.approx(means[1][found == 1].mean(), abs=1e-5)
    spread = -(means * np.log(np.maximum(means, 1e-9))).sum(0)[found > 0] / np.log(3)
    assert both.entropy == pytest.approx(spread.mean(), abs=1e-4)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)


def test_members_of_other_voxel_sizes_are_averaged_on_the_grid_of_the_scan(tmp_path):
    for name, spacing in (("fine", 4.0), ("coarse", 7.0)):
        write_model(tmp_path / name, spacing=spacing, names=("background", "GM", "CSF"))
    (tmp_path / "both.json").write_text(json.dumps({"members": ["fine", "coarse"]}))
    fine, coarse, both = (
        predicted(tmp_path / name, scene(), probabilities=["GM"]).probabilities["GM"]
        for name in ("fine", "coarse", "both.json")
    )
    assert abs(fine - coarse).mean() > 0.001
    np.testing.assert_allclose(both, (fine + coarse) / 2, atol=1e-6)


def test_an_ensemble_is_one_model_with_its_own_checksum(pair, tmp_path, monkeypatch):
    model = find_model(str(pair))
    assert (model.title, model.name) == ("Pair", "pair")
    assert [each.folder.name for each in model.networks()] == ["half", "first"]
    described = model.describe()["Members"]
    assert [each["Name"] for each in described] == ["half", "first"]
    assert model.sha256 not in {each["SHA256"] for each in described}
    cascade = Cascade.open(model)
    assert cascade.folds == 2
    mixed = replace(
        cascade, heads=(cascade.heads[0], replace(cascade.heads[1], precisions=("bfloat16",)))
    )
    monkeypatch.setattr("siam_bids.inference.cost.has_fast_bfloat16", lambda: True)

    def precisions(cascade):
        return [load.precision for load in CascadeSegmenter(cascade, CPU, Inference()).loads]

    assert precisions(mixed) == ["float32", "bfloat16"]
    path = pair.with_name("sure.json")  # what is known of an ensemble holds for all in it
    path.write_text(json.dumps({**json.loads(pair.read_text()), "precisions": ["bfloat16"]}))
    known = Cascade.open(find_model(str(path)))
    assert precisions(known) == ["bfloat16", "bfloat16"]
    sizes = [
        Cascade.open(find_model(str(pair.parent / name))).estimate([], CPU, Inference(), cpus=1)
        for name in ("half", "first")
    ]
    whole = cascade.estimate([], CPU, Inference(), cpus=1)
    assert whole.seconds == pytest.approx(sum(size.seconds for size in sizes))
    assert whole.memory > max(size.memory for size in sizes)
    write_model(tmp_path / "other", names=["background", "WM"])
    odd = tmp_path / "odd.json"
    odd.write_text(json.dumps({"members": [str(pair.parent / "first"), "other"]}))
    with pytest.raises(ModelError, match="different labels"):
        opened(odd)
    odd.write_text(json.dumps({"members": [str(pair), "other"]}))
    with pytest.raises(ModelError, match="is not a single model"):
        opened(odd)


@pytest.fixture(scope="module")
def focused(pair):
    """The pair, its second model looking only where the first found the bright half."""
    path = pair.with_name("focused.json")
    focus = {"tissues": ["GM"], "margin": 8, "step": 0.7, "extent": [50, 32, 72]}
    path.write_text(json.dumps({**json.loads(pair.read_text()), "focus": focus}))
    return path


def test_members_with_a_focus_see_a_box_of_the_scan(focused, pair, monkeypatch):
    seen = []
    scores = NnunetSegmenter.scores

    def watched(self, volume, **options):
        answer = scores(self, volume, **options)
        seen.append((answer[0].shape, answer[1].grid.shape))
        return answer

    monkeypatch.setattr(NnunetSegmenter, "scores", watched)
    names = ["background", "GM", "CSF"]
    found = predicted(focused, scene(), probabilities=names)
    (whole, _), (box, part) = seen
    assert whole == SHAPE[::-1]
    assert box == part[::-1]
    assert np.prod(box) < 0.6 * np.prod(whole)
    first = predicted(pair.parent / "half", scene(), probabilities=names)
    outside = np.abs(found.probabilities["GM"] - first.probabilities["GM"]) < 1e-6
    assert 1 - outside.mean() == pytest.approx(np.prod(box) / np.prod(whole), abs=0.02)
    everywhere = predicted(pair, scene()).segmentation.data
    assert (found.segmentation.data == everywhere).mean() > 0.97


@pytest.fixture(scope="module")
def special(focused):
    """The pair, each model once more: the third in a box of its own, its share tapered there."""
    path = focused.with_name("special.json")
    focus = json.loads(focused.read_text())["focus"]
    own = {"tissues": ["CSF"], "margin": 8, "step": 1, "extent": [9, 9, 9], "share": 0.75,
           "taper": 12, "normalise_box": True}  # fmt: skip
    content = {"members": ["half", "first", "half"], "focus": [focus, own]}
    path.write_text(json.dumps(content))
    return path


def csf_in_a_corner(self, image, *, wanted, step, progress):
    """A network that knows GM and CSF by place; where it sees less than all, GM everywhere."""
    if progress:
        progress(1.0)
    found = torch.full((3, *image.shape[1:]), -9.0)
    whole = image.shape[1:] == SHAPE[::-1]
    found[0 if whole else 1] = 0.0
    if whole:
        found[:, 10:20, 8:14, 10:26] = torch.tensor([-9.0, 0, -9])[:, None, None, None]
        found[:, 10:20, 14:20, 10:26] = torch.tensor([-9.0, -9, 0])[:, None, None, None]
    return found.half()


def test_each_member_has_a_box_and_a_share_of_its_own(special, monkeypatch):
    """In the box of the last one its share counts, and nothing of it at the ends of the box."""
    monkeypatch.setattr(Runner, "predict", csf_in_a_corner)
    found = predicted(special, scene(), probabilities=["GM"]).probabilities["GM"]
    along = found[12:24, :, 15]  # CSF from y = 14 to 19 for the first, in a box from 12 to 21
    np.testing.assert_allclose(
        along[:, 15], 0.25 * 0.5 + 0.75, atol=1e-3
    )  # in the second's box too
    np.testing.assert_allclose(along[:, 16:19], 0.75, atol=1e-3)
    rise = np.array([2.5, 1.5, 0.5]) / 3
    expected = 0.75 * rise**2 * (3 - 2 * rise)
    np.testing.assert_allclose(along[:, 19:22], np.tile(expected, (12, 1)), atol=1e-3)
    np.testing.assert_allclose(along[:, 22:], 0, atol=1e-3)


def test_a_member_is_left_out_where_the_first_finds_nothing_to_look_at(special, monkeypatch):
    told, seen = [], []

    def only_gm(self, image, *, wanted, step, progress):
        seen.append(image.shape)
        found = csf_in_a_corner(self, image, wanted=wanted, step=step, progress=progress)
        found[2] = -9
        return found

    monkeypatch.setattr(Runner, "predict", only_gm)
    found = predicted(special, scene(), progress=told.append)
    assert len(seen) == 2
    assert (found.segmentation.data == 1).any()
    assert told == sorted(told)
    assert told[-1] == 1


def test_a_member_may_see_the_intensities_of_its_box_alone(special, monkeypatch):
    seen = []

    def watched(self, image, **options):
        seen.append(image)
        return csf_in_a_corner(self, image, **options)

    monkeypatch.setattr(Runner, "predict", watched)
    predicted(special, scene())
    whole, in_scan, in_box = (image[image != 0].numpy() for image in seen)  # padded with zeros
    assert (whole.mean(), whole.std()) == pytest.approx((0, 1), abs=1e-4)
    assert in_scan.mean() > 0.3
    assert (in_box.mean(), in_box.std()) == pytest.approx((0, 1), abs=1e-3)


def test_one_focus_for_each_member_is_told_and_one_for_all_means_the_same(special, focused):
    model = find_model(str(special))
    first, own = model.describe()["Focus"]
    assert first == find_model(str(focused)).describe()["Focus"]
    assert own == {
        "Tissues": ["CSF"], "MarginInMillimetres": 8, "TileStep": 1, "Share": 0.75,
        "TaperInMillimetres": 12, "NormalisedInBox": True,
    }  # fmt: skip
    text = methods_text([{**model.describe(), "Citation": ""}])
    names = [f"{name}, SHA-256 {part.sha256[:12]}" for name, part in
             zip(("half", "first", "half"), model.members, strict=True)]  # fmt: skip
    assert f"the 3 networks of half + first + half ({'; '.join(names)})" in text
    content = json.loads(special.read_text())
    one = content["focus"][0]
    path = special.with_name("alike.json")
    answers = []
    for focus in (one, [one, one]):
        path.write_text(json.dumps({**content, "focus": focus}))
        alike = find_model(str(path))
        answers.append((alike.sha256, alike.describe()["Focus"]))
    assert answers[0] == answers[1]
    assert answers[0][1]["Tissues"] == ["GM"]
    for focus, expected in (([None, None], None), ([None, one], [None, first])):
        path.write_text(json.dumps({**content, "focus": focus}))
        assert find_model(str(path)).describe().get("Focus") == expected
    for focus in ([], [one], [one] * 3):
        path.write_text(json.dumps({**content, "focus": focus}))
        with pytest.raises(ModelError, match=rf"has {len(focus)} entries of focus for 2 members"):
            find_model(str(path))
    for focus in (
        "GM",
        [one, "GM"],
        [one, {**one, "normalise_box": 1}],
        [one, {**one, "taper": -1}],
    ):
        path.write_text(json.dumps({**content, "focus": focus}))
        with pytest.raises(ModelError, match="focus of an ensemble cannot be read"):
            find_model(str(path))
    cascade = Cascade.open(model)
    grid = Grid((60, 60, 60), np.diag([4.0, 4.0, 4.0, 1.0]))
    alone = [
        estimate(each, [grid], CPU, Inference(), cpus=1, focus=focus).seconds
        for each, focus in zip(cascade.heads, (None, *model.focus), strict=True)
    ]
    together = cascade.estimate([grid], CPU, Inference(), cpus=1).seconds
    assert together == pytest.approx(sum(alone))
    assert alone[2] <= alone[1] < alone[0]


def test_members_that_count_nothing_change_nothing(focused, pair):
    path = focused.with_name("uncounted.json")
    content = json.loads(focused.read_text())
    path.write_text(json.dumps({**content, "focus": {**content["focus"], "share": 0}}))
    found, equal = (predicted(each, scene(), probabilities=["GM"]) for each in (path, focused))
    first = predicted(pair.parent / "half", scene(), probabilities=["GM"])
    alone = np.abs(found.probabilities["GM"] - first.probabilities["GM"])
    assert alone.max() < 1e-5
    assert np.abs(found.probabilities["GM"] - equal.probabilities["GM"]).max() > 0.01


def test_a_focus_is_told_estimated_and_part_of_the_checksum(focused, pair):
    model, plain = find_model(str(focused)), find_model(str(pair))
    assert model.describe()["Focus"] == {
        "Tissues": ["GM"],
        "MarginInMillimetres": 8,
        "TileStep": 0.7,
    }
    assert "Focus" not in plain.describe()
    assert model.sha256 != plain.sha256
    grid = Grid((60, 60, 60), np.diag([4.0, 4.0, 4.0, 1.0]))
    assert model.focus[0].typical(grid).shape == (17, 12, 22)
    assert model.focus[0].typical(scene().grid).shape == (17, 12, 22)
    sizes = [
        Cascade.open(each).estimate([grid], CPU, Inference(), cpus=1) for each in (model, plain)
    ]
    assert sizes[0].seconds < sizes[1].seconds
    assert sizes[0].memory <= sizes[1].memory
    assert find_model(str(refined(focused))).focus == model.focus
    content = json.loads(focused.read_text())
    content["focus"]["tissues"] = ["WM"]
    odd = focused.with_name("odd.json")
    odd.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="no label WM in"):
        opened(odd)
    content["focus"] |= {"tissues": ["GM"], "share": 0.25}
    odd.write_text(json.dumps(content))
    assert find_model(str(odd)).describe()["Focus"]["Share"] == 0.25
    content["focus"]["share"] = 25
    odd.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"focus of an ensemble cannot be read .*share 25"):
        opened(odd)
    for step in (1e-6, 0.09, 1.5, -1, "x"):
        odd.write_text(
            json.dumps({**content, "focus": content["focus"] | {"share": 1, "step": step}})
        )
        with pytest.raises(ModelError, match="focus of an ensemble cannot be read"):
            opened(odd)
    del content["focus"]["step"]
    odd.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"focus of an ensemble cannot be read .*'step'"):
        opened(odd)
