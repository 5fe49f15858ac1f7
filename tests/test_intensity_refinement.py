"""Labels follow the scan's own intensities."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from siam_bids.errors import ModelError
from siam_bids.image.grid import Crop, Grid, Volume
from siam_bids.inference.averaging import MeanScores
from siam_bids.inference.intensity_refinement import Posterior, following
from siam_bids.inference.local_gaussians import estimate_gaussians
from siam_bids.inference.resampling import Logits, labels_of
from siam_bids.models.settings import Intensities

SHAPE = (34, 40, 37)
HOW = Intensities(weight=0.7, reach=20, spread=0.2, neighbours=4, temperature=2.3, rounds=2)


def truth():
    """A ball of 1 and a shell of 2 in 0."""
    places = np.indices(SHAPE) - np.array(SHAPE).reshape(3, 1, 1, 1) / 2
    radius = np.sqrt((places**2).sum(0))
    return np.select([radius < 8, radius < 14], [1, 2], 0).astype(np.uint8)


def unsure(labels, classes=4, blur=2.0):
    """Scores of a network that knows where tissues lie, but not where exactly they end."""
    maps = [ndimage.gaussian_filter((labels == c).astype(np.float32), blur) for c in range(classes)]
    return Logits(torch.from_numpy(np.log(np.maximum(maps, 1e-6))), SHAPE)


def scan(labels, means=(0, 120, 80, 40), noise=8.0, bias=None):
    image = np.array(means, np.float32)[labels]
    if bias is not None:
        image = image * bias
    return (image + np.random.default_rng(3).normal(0, noise, SHAPE)).astype(np.float32)


def wrong(scores):
    return (labels_of(scores) != truth()).mean()


def test_borders_move_to_where_the_intensities_change():
    scores = unsure(np.roll(truth(), 1, 0))
    followed = Posterior(scores, scan(truth()), (1, 1, 1), HOW)
    assert wrong(scores) > 0.03
    assert wrong(followed) < 0.25 * wrong(scores)


def test_a_bias_field_is_followed():
    """Gaussians measured nearby serve better than those of the whole scan."""
    bias = np.linspace(0.5, 1.5, SHAPE[1], dtype=np.float32)[None, :, None]
    image, scores = scan(truth(), noise=4, bias=bias), unsure(truth(), blur=3)
    near, everywhere = (
        wrong(Posterior(scores, image, (1, 1, 1), Intensities(0.7, reach, 0.2, 4, 2.3, 2)))
        for reach in (6, 1000)
    )
    assert near < 0.6 * everywhere
    assert everywhere < 0.1 * wrong(scores)


@pytest.mark.parametrize("more", [2, 3, 4])
def test_a_class_of_two_tissues_is_no_single_gaussian(more):
    """Class 2 is darker and brighter than class 1, whose mean is its own."""
    image, shell = scan(truth()), truth() == 2
    shift = np.where(np.arange(SHAPE[2]) // 2 % 2, -20, 100)
    image[shell] += np.broadcast_to(shift, SHAPE)[shell]
    one, two = (
        wrong(Posterior(unsure(truth()), image, (1, 1, 1), Intensities(1, 20, 0.2, 0, 1, rounds)))
        for rounds in (1, more)
    )
    assert two < 0.5 * one


def test_without_weight_the_network_decides():
    scores = unsure(truth())
    plain = labels_of(scores)
    followed = Posterior(scores, scan(truth()), (1, 1, 1), Intensities(0, 20, 0.2, 0, 2.3, 1))
    assert np.array_equal(labels_of(followed), plain)


@pytest.mark.parametrize("image", [np.zeros(SHAPE, np.float32), np.full(SHAPE, 7e4, np.float32)])
def test_an_image_without_contrast_tells_nothing(image):
    scores = unsure(truth())
    followed = labels_of(Posterior(scores, image, (1, 1, 1), HOW))
    assert (followed == labels_of(scores)).mean() > 0.99


def test_the_temperature_changes_probabilities_and_no_label():
    cold, warm = (
        Posterior(
            unsure(truth()),
            scan(truth(), noise=25),
            (1, 1, 1),
            Intensities(0.7, 20, 0.2, 4, heat, 2),
        )
        for heat in (1, 2.3)
    )
    assert np.array_equal(labels_of(cold), labels_of(warm))
    sure = [torch.stack(list(each.planes())).max(1).values.exp().mean() for each in (cold, warm)]
    assert sure[1] < sure[0] - 0.005


def test_votes_of_neighbours_hold_noise_back():
    image = scan(truth(), noise=40)
    alone, voted = (
        Posterior(unsure(truth(), blur=4), image, (1, 1, 1), Intensities(1, 20, 0.2, votes, 2.3, 2))
        for votes in (0, 6)
    )
    assert wrong(voted) < 0.8 * wrong(alone)


def test_classes_that_the_network_does_not_see_stay_away():
    """Class 3 is nowhere likely; an odd voxel does not become one."""
    image = scan(truth())
    image[truth() == 1] += np.where(
        np.random.default_rng(1).random((truth() == 1).sum()) < 0.05, 300, 0
    )
    assert labels_of(Posterior(unsure(truth()), image, (1, 1, 1), HOW)).max() < 3


def test_probabilities_are_those_that_the_labels_come_from():
    size = (1, 1.5, 5)
    followed = Posterior(unsure(truth()), scan(truth()), size, HOW)
    planes = torch.stack(list(followed.planes()), 1).exp().numpy()
    maps = np.stack([followed.probability(index) for index in range(4)])
    assert planes.sum(0) == pytest.approx(1, abs=1e-5)
    assert np.abs(maps - planes).max() < 2e-3  # the network's logits are float16


@pytest.mark.parametrize("sharp", [3, 8])
@pytest.mark.parametrize("heat", [1, 2.3])
def test_probabilities_sum_to_one_where_the_intensities_contradict_a_sure_network(sharp, heat):
    """The network's probabilities below 1e-12 count too; the sum of all was up to 1.14."""
    soft = unsure(truth())
    sure = Logits(torch.stack(list(soft.planes()), 1).float() * sharp, SHAPE)
    labels = truth()
    labels[2:6, 2:6, 2:6], labels[2:6, 30:34, 30:34] = 1, 2
    how = replace(HOW, spread=0.02, temperature=heat)
    for prior in (sure, MeanScores(sure, [sure])):
        followed = Posterior(prior, scan(labels, noise=4), (1, 1, 1), how)
        planes = torch.stack(list(followed.planes()), 1).exp().numpy()
        maps = np.stack([followed.probability(index) for index in range(4)])
        assert np.abs(maps - planes).max() < 1e-3
        assert np.abs(maps.sum(0) - 1).max() < 2e-3


def test_the_result_does_not_depend_on_the_units_of_the_scan():
    image = scan(truth())
    one, two = (
        labels_of(Posterior(unsure(truth()), units, (1, 1, 1), HOW))
        for units in (image, 3000 + 20 * image)
    )
    assert (one != two).mean() < 1e-3


@pytest.mark.parametrize("size", [(1, 1, 1), (1.2, 0.9, 1.5), (8, 5, 9)])
def test_gaussians_are_interpolated_between_the_centres_of_blocks(size):
    """Odd and even blocks, whole and cut ones, blocks of one voxel."""
    shape = (19, 22, 17)
    planes = torch.rand((19, 3, 22, 17), generator=torch.Generator().manual_seed(1))
    image = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    (found,) = estimate_gaussians(planes, image.__getitem__, shape, size, reach=9, spread=0.2)
    blocks = found.parts.shape[2:]
    assert blocks == tuple(
        -(-length // edge) for length, edge in zip(shape, found.edges, strict=True)
    )
    axes = [
        ((np.arange(length) + 0.5) / edge - 0.5).clip(0, count - 1)
        for length, edge, count in zip(shape, found.edges, blocks, strict=True)
    ]
    where = np.stack(np.meshgrid(*axes, indexing="ij"))
    shift, sharp, height = (
        np.stack([ndimage.map_coordinates(one, where, order=1) for one in part.numpy()])
        for part in found.parts
    )
    for place in range(shape[0]):
        distance, heights = found.at(place, image[place])
        expected = shift[:, place] - image[place].numpy() * sharp[:, place]
        np.testing.assert_allclose(distance, expected, atol=2e-5)
        np.testing.assert_allclose(heights, height[:, place], atol=2e-5)


def test_gaussians_are_the_moments_of_a_whole_scan_where_windows_are_wide():
    shape, rng = (16, 21, 18), torch.Generator().manual_seed(3)
    planes = torch.rand((16, 2, 21, 18), generator=rng)
    image = torch.rand(shape, generator=rng)
    (found,) = estimate_gaussians(
        planes.clone(), image.__getitem__, shape, (1, 1, 1), reach=1e4, spread=0
    )
    weights = planes.transpose(0, 1).double() ** 2
    mean = (weights * image).sum((1, 2, 3)) / weights.sum((1, 2, 3))
    shift, sharp, _ = found.parts.double().unbind()
    for index in range(2):
        deviation = np.sqrt(np.average((image - mean[index]) ** 2, weights=weights[index]))
        np.testing.assert_allclose(1 / sharp[index], deviation, rtol=1e-3)
        np.testing.assert_allclose(shift[index] / sharp[index], mean[index], rtol=1e-3)


def test_only_what_is_asked_for_follows():
    volume = Volume(scan(truth()), Grid(SHAPE, np.eye(4)))
    crop = Crop.around(volume.data != 0, volume.grid)
    scores = unsure(truth())
    assert following(scores, volume, crop, None) is scores
    assert isinstance(following(scores, volume, crop, HOW), Posterior)


def test_an_entry_that_cannot_be_read_is_said_in_one_line():
    entry = {
        "weight": 0.7,
        "reach": 20,
        "spread": 0.2,
        "neighbours": 4,
        "temperature": 2.3,
        "rounds": 2,
    }
    assert Intensities.of(entry) == HOW
    assert HOW.describe()["ReachInMillimetres"] == 20
    for odd in ({**entry, "reach": "far"}, {"weight": 1}):
        with pytest.raises(ModelError, match="intensities of a model cannot be read"):
            Intensities.of(odd)
