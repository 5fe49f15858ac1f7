import numpy as np
import pytest
import torch
from skimage.transform import resize

from siam_bids.inference.averaging import MeanScores, tapered
from siam_bids.inference.certainty import Certainty
from siam_bids.inference.head_pose import centres
from siam_bids.inference.intensity_refinement import Posterior
from siam_bids.inference.person import PersonPrior
from siam_bids.inference.resampling import Logits, labels_of, softmax
from siam_bids.inference.rotated_resampling import RotatedLogits
from siam_bids.models.settings import Intensities


@pytest.mark.parametrize("shape", [(20, 22, 14), (7, 9, 31), (10, 11, 12), (5, 5, 5)])
def test_labels_are_those_of_linearly_resized_logits(shape):
    logits = np.random.default_rng(1).normal(size=(4, 10, 11, 12)).astype(np.float32)
    scores = Logits(torch.from_numpy(logits), shape)
    labels, chance = labels_of(scores), scores.probability(2)
    sized = [resize(one, shape, order=1, mode="edge", anti_aliasing=False) for one in logits]
    sized = np.float16(sized).astype(np.float64)
    expected = np.argmax(sized, axis=0)
    assert labels.dtype == np.uint8
    assert (labels == expected).mean() > 0.999
    softmax = np.exp(sized[2]) / np.exp(sized).sum(0)
    np.testing.assert_allclose(chance, softmax, atol=1e-3)


def test_certainty_is_the_mean_softmax_of_the_chosen_class_and_the_normalised_entropy():
    logits = torch.from_numpy(np.random.default_rng(2).normal(size=(4, 6, 7, 8))).half()
    certainty = Certainty(4)
    labels = labels_of(Logits(logits, (6, 7, 8)), observers=(certainty,))
    softmax = logits.double().softmax(0).numpy()
    for index, confidence in certainty.confidence().items():
        assert confidence == pytest.approx(softmax[index][labels == index].mean(), abs=1e-6)
    assert set(certainty.confidence()) == {1, 2, 3}
    entropy = -(softmax * np.log(softmax)).sum(0)[labels > 0].mean() / np.log(4)
    assert certainty.entropy() == pytest.approx(entropy, abs=1e-6)


def test_softmax_and_the_first_of_the_highest_are_those_of_torch():
    scores = 400 * torch.randn((5, 30, 40), generator=torch.Generator().manual_seed(7))
    scores[1:3, :9] = 1e4  # equal ones
    scores[:, 10] = torch.nan
    assert torch.allclose(softmax(scores), scores.softmax(0), atol=1e-6, equal_nan=True)
    assert torch.equal(softmax(scores).isnan(), scores.isnan())
    known = torch.arange(30) != 10
    labels = labels_of(Logits(scores[:, None], (1, 30, 40)))[0]
    half = scores.half()[:, known]
    assert np.array_equal(labels[known.numpy()], half.float().max(0).indices.numpy())
    assert not labels[10].any()  # unknown is background


def test_certainty_of_uniform_sharp_and_empty_answers():
    for scale, sure in ((0.0, 0.25), (100.0, 1.0)):
        logits = torch.zeros((4, 3, 3))
        logits[2] = scale
        certainty = Certainty(4)
        certainty.add(logits, torch.full((3, 3), 2, dtype=torch.uint8))
        assert certainty.confidence() == {2: pytest.approx(sure)}
        assert certainty.entropy() == pytest.approx(1.0 if scale == 0 else 0.0, abs=1e-5)
    empty = Certainty(4)
    empty.add(torch.zeros((4, 3, 3)), torch.zeros((3, 3), dtype=torch.uint8))
    assert (empty.confidence(), empty.entropy()) == ({}, None)


def test_the_first_of_equal_classes_wins():
    logits = torch.zeros((4, 3, 3, 3)).half()
    assert not labels_of(Logits(logits, (3, 3, 3))).any()
    logits[2:] = 1.0
    assert (labels_of(Logits(logits, (3, 3, 3))) == 2).all()


def test_the_mean_is_that_of_the_softmaxes_on_the_common_grid():
    rng = np.random.default_rng(3)
    shape, sizes = (8, 10, 12), ((8, 10, 12), (4, 5, 6))
    parts = [
        Logits(torch.from_numpy(rng.normal(size=(4, *size)) * 3).half(), shape) for size in sizes
    ]
    scores, certainty = MeanScores(parts[0], parts[1:]), Certainty(4)
    labels = labels_of(scores, observers=(certainty,))
    softmax = [torch.stack(list(part.planes()), 1).float().softmax(0).numpy() for part in parts]
    mean = np.mean(softmax, axis=0)
    assert (labels == mean.argmax(0)).mean() > 0.999
    np.testing.assert_allclose(scores.probability(3), mean[3], atol=1e-3)
    expected = {index: mean[index][labels == index].mean() for index in (1, 2, 3)}
    assert certainty.confidence() == pytest.approx(expected, abs=1e-3)
    entropy = -(mean * np.log(mean)).sum(0)[labels > 0].mean() / np.log(4)
    assert certainty.entropy() == pytest.approx(entropy, abs=1e-3)


@pytest.mark.parametrize(("share", "counts"), [(None, (1, 1, 1)), (0.4, (3, 1, 1))])
def test_outside_the_box_the_first_stands_alone(share, counts):
    rng = np.random.default_rng(4)
    box = (slice(2, 6), slice(0, 5), slice(3, 7))
    first, second, third = (
        Logits(torch.from_numpy(rng.normal(size=(3, *shape))).half(), shape)
        for shape in ((8, 9, 7), (4, 5, 4), (4, 5, 4))
    )
    mean = MeanScores(first, [second, third], box, share)
    found = torch.stack(list(mean.planes()), 1).exp().numpy()
    chances = [np.stack([p.probability(c) for c in range(3)]) for p in (first, second, third)]
    expected = chances[0].copy()
    where = (slice(None), *box)
    inside = (chances[0][where], *chances[1:])
    expected[where] = np.average(inside, axis=0, weights=counts)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    labels_of(mean)
    np.testing.assert_allclose(mean.probability(2), expected[2], atol=2e-3)
    assert not np.allclose(expected[where], chances[0][where], atol=0.05)


def test_a_mean_in_a_box_within_another_is_that_of_the_means():
    """The last network counts its share everywhere in its own box, whatever is mixed before."""
    rng = np.random.default_rng(4)
    outer, inner = (slice(1, 8),) * 3, (slice(0, 4), slice(3, 9), slice(2, 7))

    def part(shape):
        return Logits(torch.from_numpy(rng.normal(size=(3, *shape))).half(), shape)

    first, second, third = part((9, 9, 9)), part((7, 7, 7)), part((4, 6, 5))
    share = torch.from_numpy(rng.random((4, 6, 5)).astype(np.float32))
    before = MeanScores(first, [second], outer, 0.3)
    mean = MeanScores(before, [third], inner, share)
    expected = np.stack([first.probability(index) for index in range(3)])
    for box, weight, other in ((outer, 0.3, second), (inner, share.numpy(), third)):
        where = (slice(None), *box)
        new = np.stack([other.probability(index) for index in range(3)])
        expected[where] = (1 - weight) * expected[where] + weight * new
    for scores, some in ((mean, slice(None)), (mean.subsample((2, 2, 2)), slice(None, None, 2))):
        wanted = expected[:, some, some, some]
        planes = torch.stack(list(scores.planes()), 1).exp().numpy()
        np.testing.assert_allclose(planes, wanted, atol=2e-3)
        found = np.stack([scores.probability(index) for index in range(3)])
        np.testing.assert_allclose(found, wanted, atol=2e-3)
        assert [each.shape for each in scores.tensors()] == [
            (3, 9, 9, 9), (3, 7, 7, 7), (3, 4, 6, 5)
        ]  # fmt: skip


def test_a_weight_falls_to_nothing_at_the_ends_of_a_box_however_it_is_turned():
    ends = (np.array([0.0, -np.inf, 2.0]), np.array([20.0, 10.0, np.inf]))
    weight = tapered((20, 10, 12), centres((1, 1, 1)), *ends, 4.0).numpy()
    assert weight.shape == (20, 10, 12)
    assert weight[10, 0, 11] == 1  # 10 mm from one end, infinitely far from the others
    assert weight[0, 0, 11] == pytest.approx(0.125**2 * (3 - 0.25))
    assert weight[2, 0, 11] == pytest.approx(0.625**2 * (3 - 1.25))
    assert weight[10, 9, 11] == weight[0, 0, 11]
    assert (weight[:, :, :2] == 0).all()
    turn = np.eye(4)[[1, 0, 2, 3]]
    other = tapered((10, 20, 12), centres((1, 1, 1)) @ turn, *ends, 4.0)
    np.testing.assert_allclose(other.numpy(), weight.transpose(1, 0, 2), atol=1e-6)


def test_a_box_holds_what_was_found_but_islands():
    logits = torch.zeros((4, 10, 10, 10))
    logits[0] = 1
    logits[2, 3:7, 2:8, 4:6] = 2
    logits[3, 7:9, 2:8, 4:6] = 2
    logits[2, 0, 0, 0] = 2  # an island
    fine = Logits(logits, (20, 10, 30))
    assert fine.box_of([2], (0, 0, 0)) == (slice(6, 14), slice(2, 8), slice(12, 18))
    assert fine.box_of([2, 3], (3, 1, 20)) == (slice(3, 20), slice(1, 9), slice(0, 30))
    assert fine.box_of([1], (0, 0, 0)) is None


def test_impossible_classes_do_not_upset_the_mean():
    logits = torch.zeros((3, 2, 2, 2)).half()
    logits[0], logits[1] = -6e4, 100.0
    part = Logits(logits, (2, 2, 2))
    scores, certainty = MeanScores(part, [part]), Certainty(3)
    assert (labels_of(scores, observers=(certainty,)) == 1).all()
    assert certainty.confidence() == {1: pytest.approx(1.0)}
    assert certainty.entropy() == pytest.approx(0.0, abs=1e-6)


def all_kinds_of_scores(height=3):
    """Scores of every kind, not yet asked for anything, on a grid of (9, 8, 10) voxels or a box.

    The networks' logits have a standard deviation of `height`.
    """
    rng = np.random.default_rng(6)
    shape, box = (9, 8, 10), (slice(2, 9), slice(0, 5), slice(1, 8))

    def logits(size=(5, 4, 6)):
        return torch.from_numpy(height * rng.normal(size=(4, *size))).half()

    sure = torch.tensor([0.0, -6e4, -6e4, -6e4])
    how = Intensities(weight=0.7, reach=20, spread=0.2, neighbours=4, temperature=2.3, rounds=2)
    image = rng.normal(size=shape).astype(np.float32)
    turned = RotatedLogits(logits(), np.diag([2, 2, 2, 1.0]), np.eye(4), shape, sure)
    first = Logits(logits(), shape)
    mean = MeanScores(Logits(logits(), shape), [Logits(logits(), (7, 5, 7))], box, 0.4)
    unknown = torch.full((4,), torch.nan)
    partly = RotatedLogits(logits(), np.diag([1, 1, 1, 1.0]), np.eye(4), shape, unknown)
    three = MeanScores(first, [partly, Logits(logits((9, 8, 10)), shape)])
    inner = (slice(3, 9), slice(1, 6), slice(0, 6))
    weight = tapered((6, 5, 6), centres((1, 1, 1)), np.zeros(3), np.array([np.inf, 5, 6]), 2.0)
    nested = MeanScores(mean, [Logits(logits(), (6, 5, 6)), partly.within(inner)], inner, weight)
    factors = Logits(0.3 * logits(), (7, 5, 7), ends_meet=True)
    person = PersonPrior(first, factors, box)

    def refined(scores):
        some = image[tuple(slice(length) for length in scores.shape)]
        return Posterior(scores, some, (1, 1.5, 3), how)

    return {
        "logits": first,
        "thick slices": Logits(logits(), shape, nearest_axis=1),
        "turned": turned,
        "part of turned": turned.within(box),
        "mean": mean,
        "every other": first.subsample((2, 1, 2)),
        "every other of the mean": mean.subsample((2, 1, 2)),
        "every other of turned": turned.subsample((1, 2, 3)),
        "mean of three": three,
        "mean in a box within another": nested,
        "every other of a mean in a box within another": nested.subsample((2, 1, 2)),
        "of a person": person,
        "every other of a person": person.subsample((2, 2, 1)),
        "refined": refined(first),
        "refined turned": refined(turned),
        "refined mean": refined(mean),
        "refined mean of three": refined(three),
        "refined mean in a box within another": refined(nested),
        "refined of a person": refined(person),
    }


@pytest.mark.parametrize("kind", all_kinds_of_scores())
def test_scores_are_the_same_with_logits_put_aside_and_brought_back(kind):
    scores = all_kinds_of_scores()[kind]
    if not hasattr(scores, "tensors"):
        pytest.skip("refined scores are not put aside")
    wanted = [plane.clone() for plane in scores.planes()]
    tensors = scores.tensors()
    without = scores.with_tensors(torch.empty(0) for _ in tensors)
    assert all(each.numel() == 0 for each in without.tensors())
    found = without.with_tensors(iter(tensors))
    for one, other in zip(wanted, found.planes(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", all_kinds_of_scores())
@pytest.mark.parametrize("order", ["asked first", "after one plane", "after all planes"])
@pytest.mark.parametrize("height", [3, 15, 60])
def test_probabilities_can_be_asked_for_at_any_time(kind, order, height):
    """They are the softmax of `planes`, however sure the networks are.

    It once answered from uninitialised memory before `planes`: sums of 1.65 to 2.78. And once
    refinement took the network's probabilities for at least 1e-12 here, but not in `planes`.
    """
    scores = all_kinds_of_scores(height)[kind]
    if order == "after one plane":
        next(iter(scores.planes()))
    elif order == "after all planes":
        labels_of(scores)
    maps = np.stack([scores.probability(index) for index in range(4)])
    assert maps.shape == (4, *scores.shape)
    np.testing.assert_allclose(maps.sum(0), 1, atol=1e-4)
    planes = torch.stack(list(scores.planes()), 1).float().softmax(0).numpy()
    np.testing.assert_allclose(maps, planes, atol=1e-4)


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 1, 3), (2, 2, 2)])
@pytest.mark.parametrize("start", [0, 3, 4])
def test_every_few_voxels_have_the_scores_of_the_whole(stride, start):
    rng = np.random.default_rng(5)
    box = (slice(start, 11), slice(start, 9), slice(start, 10))
    shapes = [part.stop - part.start for part in box]
    first = Logits(torch.from_numpy(rng.normal(size=(3, 6, 7, 8))).half(), (12, 11, 16))
    other = Logits(torch.from_numpy(rng.normal(size=(3, *shapes))).half(), shapes)
    coarser = Logits(torch.from_numpy(rng.normal(size=(3, 4, 2, 3))).half(), shapes)
    i, j, k = (slice(None, None, step) for step in stride)
    for scores in (first, MeanScores(first, [other, coarser], box)):
        some = scores.subsample(stride)
        planes = torch.stack(list(some.planes()), 1)
        expected = torch.stack(list(scores.planes()), 1)[:, i, j, k]
        assert some.shape == tuple(planes.shape[1:]) == tuple(expected.shape[1:])
        torch.testing.assert_close(planes.float(), expected.float(), atol=2e-3, rtol=0)  # float16
