"""Turned heads: finding the pose, and logits brought back to a grid turned against theirs."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import write_model, write_scan
from scipy.spatial.transform import Rotation
from trained_models import predicted, scene

from siam_bids.config import Inference
from siam_bids.errors import ModelError
from siam_bids.image.labels import siam_labels
from siam_bids.inference.averaging import MeanScores
from siam_bids.inference.head_pose import centres, upright_window
from siam_bids.inference.resampling import Logits, labels_of
from siam_bids.inference.rotated_resampling import RotatedLogits
from siam_bids.inference.runner import Runner
from siam_bids.measures.pose import Pose, Shape, pose_of, tissue_moments, upright_head
from siam_bids.models.registry import find_model, registry
from siam_bids.models.settings import Upright
from siam_bids.pipelines.files import segment_files
from siam_bids.reports.methods_text import methods_text
from siam_bids.reports.subject import scan_facts

INTENSITIES = registry()["compact"]["intensities"]
UPRIGHT = registry()["compact"]["upright"]


def turned_head(degrees, axis, size=1.0, place=(90.0, 110.0, 95.0)):
    """The shapes of an upright head that is turned, scaled and put somewhere."""
    turn = Rotation.from_rotvec(np.radians(degrees) * np.array(axis) / np.linalg.norm(axis))
    matrix = size * turn.as_matrix()
    return turn.as_matrix(), {
        name: Shape(matrix @ shape.centre + place, matrix @ shape.covariance @ matrix.T)
        for name, shape in upright_head().items()
    }


@pytest.mark.parametrize(
    ("degrees", "axis", "size"),
    [(0, (1, 0, 0), 1.0), (30, (0, 0, 1), 1.0), (65, (1, 2, -1), 0.75), (75, (-1, 1, 1), 1.2)],
)
def test_turn_and_size_of_a_head_are_found(degrees, axis, size):
    turn, shapes = turned_head(degrees, axis, size)
    pose = pose_of(shapes)
    assert Rotation.from_matrix(pose.rotation @ turn).magnitude() < np.radians(1)
    assert pose.degrees == pytest.approx(degrees, abs=1)
    assert pose.size == pytest.approx(1 / size, rel=0.02)
    back = pose.affine @ [*shapes["Thal"].centre, 1]
    assert back[:3] == pytest.approx(upright_head()["Thal"].centre, abs=1)
    fewer = {name: shapes[name] for name in ("GM", "WM", "CSFv", "cerGM", "Put", "Hippo")}
    assert pose_of(fewer).degrees == pytest.approx(degrees, abs=1)
    del fewer["Put"]
    assert pose_of(fewer) is None


def test_shapes_are_measured_in_millimetres():
    labels = np.zeros((20, 20, 20), np.uint8)
    gm = siam_labels().by_name["GM"].index
    labels[2:12, 4:8, 5:7] = gm
    labels[0, 0, 0] = siam_labels().by_name["WM"].index
    found = tissue_moments(labels, (2.0, 1.0, 3.0), siam_labels(), upright_head())
    assert set(found) == {"GM"}  # a single voxel is no tissue
    assert found["GM"].centre == pytest.approx([14, 6, 18])
    assert np.diag(found["GM"].covariance) == pytest.approx([4 * 99 / 12, 15 / 12, 9 * 3 / 12])
    assert centres((2.0, 1.0, 3.0)) @ [0, 0, 0, 1] == pytest.approx([1, 0.5, 1.5, 1])


def blobs(degrees, size=1.0, length=80, edge=3.0):
    """An upright head drawn as ellipsoids of its tissues, turned about the left-right axis."""
    _, shapes = turned_head(degrees, (0, 0, 1), size, [length * edge / 2] * 3)
    grid = (np.moveaxis(np.indices((length,) * 3), 0, -1) + 0.5) * edge
    labels = np.zeros((length,) * 3, np.uint8)
    for name, shape in shapes.items():
        away = grid - shape.centre
        far = np.einsum("...i,ij,...j", away, np.linalg.inv(shape.covariance), away)
        labels[far < 5 * (0.6 if name in ("GM", "WM") else 1)] = siam_labels().by_name[name].index
    return labels, (edge,) * 3


def test_only_turned_and_small_heads_are_looked_at_again(caplog):
    upright = Upright.of(UPRIGHT)
    caplog.set_level("INFO")
    assert upright_window(upright, *blobs(5), siam_labels()) is None
    assert not caplog.records
    labels, edges = blobs(45)
    window = upright_window(upright, labels, edges, siam_labels())
    (degrees,) = re.findall(r"rotated by (\d+) degrees", caplog.text)
    assert abs(int(degrees) - 45) < 8
    matrix = window.pose.affine @ centres(edges)
    places = np.argwhere(labels) @ matrix[:3, :3].T + matrix[:3, 3]
    assert (places.min(0) - window.low).min() == pytest.approx(UPRIGHT["margin"])
    assert (window.high - places.max(0)).min() == pytest.approx(UPRIGHT["margin"])
    small = upright_window(upright, *blobs(0, 0.75), siam_labels())
    assert small.pose.size == pytest.approx(1 / 0.75, rel=0.1)
    assert upright_window(upright, np.zeros((9, 9, 9), np.uint8), edges, siam_labels()) is None


def test_the_upper_half_of_a_head_is_no_small_head():
    """Its tissues are cut, so that they seem small; the misfit tells."""
    labels, edges = blobs(0)
    upper = labels[44:]
    pose = pose_of(tissue_moments(upper, edges, siam_labels(), upright_head()))
    assert pose.size > UPRIGHT["size"] or pose.degrees > UPRIGHT["degrees"]
    assert upright_window(Upright.of(UPRIGHT), upper, edges, siam_labels()) is None


@pytest.mark.parametrize("wrong", [{"degrees": "far"}, {"size": 0.5}, {"margin": None}])
def test_a_wrong_entry_is_refused(wrong):
    with pytest.raises(ModelError, match="The upright setting of a model cannot be read"):
        Upright.of({**UPRIGHT, **wrong})


def logits_of(shape=(6, 7, 8), classes=4):
    return torch.from_numpy(np.random.default_rng(5).normal(size=(classes, *shape))).half()


NOTHING = torch.full((4,), torch.nan)


def stacked(scores):
    return torch.stack(list(scores.planes()), 1)


def test_unturned_logits_are_those_of_linear_interpolation():
    logits, shape = logits_of(), (12, 14, 8)
    own, wanted = centres((2.0, 2.0, 3.0)), centres((1.0, 1.0, 3.0))
    turned = RotatedLogits(logits, own, wanted, shape, NOTHING)
    plain = Logits(logits, shape)
    torch.testing.assert_close(stacked(turned), stacked(plain), atol=2e-3, rtol=0)
    np.testing.assert_array_equal(labels_of(turned), labels_of(plain))
    np.testing.assert_allclose(turned.probability(2), plain.probability(2), atol=1e-3)


def quarter_turn(shape):
    """Logits seen after a quarter turn about the first axis, and where nothing was seen."""
    logits = logits_of((6, 7, 8))
    turn = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 7], [0, 0, 0, 1]])
    wanted = turn @ np.eye(4)  # voxel (i, j, k) lies at (i, k, 7 - j)
    expected = torch.full((4, *shape), torch.nan)
    source = logits.flip(3).transpose(2, 3).float()
    part = tuple(slice(0, min(n, m)) for n, m in zip(shape, source.shape[1:], strict=True))
    expected[(slice(None), *part)] = source[(slice(None), *part)]
    return RotatedLogits(logits, np.eye(4), wanted, shape, NOTHING), expected


def test_a_quarter_turn_is_exact_and_says_nothing_beyond_what_was_seen():
    turned, expected = quarter_turn((7, 8, 9))
    found = stacked(turned).float()
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0, equal_nan=True)
    assert found.isnan().any()
    assert turned.seen() == (slice(0, 7), slice(0, 8), slice(0, 8))
    part = (slice(1, 5), slice(2, 8), slice(3, 9))
    inner = stacked(turned.within(part)).float()
    torch.testing.assert_close(inner, found[(slice(None), *part)], equal_nan=True)
    every = stacked(turned.subsample((2, 1, 3), (1, 0, 2))).float()
    torch.testing.assert_close(every, found[:, 1::2, :, 2::3], equal_nan=True)
    softmax = found.softmax(0)[3].numpy()
    np.testing.assert_allclose(turned.probability(3), softmax, atol=1e-3)


def test_where_others_say_nothing_the_first_stands_alone():
    shape = (7, 8, 9)
    first = Logits(logits_of(shape), shape)
    turned, known = quarter_turn(shape)
    alone = stacked(first).float().softmax(0)
    unknown = known.isnan()
    expected = torch.where(unknown, alone, 0.6 * alone + 0.4 * known.softmax(0))
    mean = MeanScores(first, [turned], share=0.4)
    torch.testing.assert_close(stacked(mean).exp(), expected, atol=2e-3, rtol=0)
    np.testing.assert_allclose(mean.probability(1), expected[1], atol=2e-3)
    few = stacked(mean.subsample((2, 2, 2))).exp()
    torch.testing.assert_close(few, expected[:, ::2, ::2, ::2], atol=2e-3, rtol=0)


def a_pose(*_):
    """A scene of 160 by 128 by 128 mm turned by 12 degrees, and a little too small."""
    turn = Rotation.from_rotvec(np.radians([0.0, 9.0, 8.0])).as_matrix()
    return Pose(turn, 1.1, np.array([80.0, 64.0, 64.0]), 0.0)


def overlap(one, two):
    """Dice's coefficient."""
    return 2 * (one & two).sum() / (one.sum() + two.sum())


def threshold(self, image, *, wanted, step, progress):
    """A network that goes by the intensity alone: GM is what is brighter than 1 in the scene."""
    if progress:
        progress(1.0)
    data = scene().data
    over = image[0] - (1.0 - data.mean()) / data.std()
    return torch.stack([-over, over, torch.full_like(over, -9.0)]).half()


@pytest.mark.parametrize("members", [("one",), ("one", "two"), ("one", "two", "three")])
def test_a_second_look_finds_the_same_where_it_was(members, tmp_path, monkeypatch):
    """Tissues told by intensity alone: turning must neither move nor lose them."""
    monkeypatch.setattr("siam_bids.inference.head_pose.pose_of", a_pose)
    monkeypatch.setattr(Runner, "predict", threshold)
    names = ["background", "GM", "Rare"]
    for name, spacing in zip(members, (4.0, 5.0, 4.0), strict=False):
        write_model(tmp_path / name, names=names, spacing=spacing)
    focus = {"tissues": ["GM"], "margin": 8, "step": 0.7, "extent": [50, 32, 72], "share": 0.9}
    own = {**focus, "margin": 4, "step": 1, "taper": 10}
    plain = (
        {"members": members, "focus": [focus, own][: len(members) - 1]}
        if len(members) > 1
        else {"model": "one", "regions": []}
    )
    upright = {**plain, "upright": {**UPRIGHT, "degrees": 5}}
    path = tmp_path / "upright.json"
    path.write_text(json.dumps(upright))
    model = find_model(str(path))
    assert model.describe()["Upright"]["TurnedByMoreDegreesThan"] == 5
    assert model.with_options(Inference(upright=False)).upright is None
    done = []
    found = predicted(path, scene(), probabilities=names, progress=done.append)
    maps = np.stack([found.probabilities[each] for each in names])
    assert maps.sum(0) == pytest.approx(1, abs=5e-3)
    assert (maps.argmax(0) == found.segmentation.data).mean() > 0.999
    assert found.pose.describe() == {"TurnedByDegrees": 12.0, "RelativeSize": 0.909}
    scan = write_scan(tmp_path / "scan.nii.gz", replace(scene(), data=100 * scene().data))
    segment_files(
        scan, tmp_path / "out.nii.gz", model=str(path), model_dirs=(), device="cpu", threads=0,
        inference=Inference(),
    )  # fmt: skip
    about = json.loads((tmp_path / "out.json").read_text())
    assert about["Pose"] == found.pose.describe()
    grid = {"Shape": [1, 1, 1], "VoxelSize": [1, 1, 1], "Orientation": "RAS"}
    facts = dict(scan_facts({**about, "Grid": grid}, {}))
    assert facts["Pose"] == "rotated by 12 degrees, 0.909 times the average size"
    methods = methods_text([about["Model"]])
    assert "rotated by more than 5 degrees, or larger or smaller" in methods
    assert done == sorted(done)
    assert done[-1] == pytest.approx(1)
    del upright["upright"]
    path.write_text(json.dumps(upright))
    assert find_model(str(path)).sha256 != model.sha256
    once = predicted(path, scene())
    assert once.pose is None
    assert once.entropy != found.entropy
    bright = scene().data > 1
    overlaps = [overlap(each.segmentation.data == 1, bright) for each in (found, once)]
    assert min(overlaps) > 0.97, overlaps
