"""Gaussians in local windows, against numpy and where their values are known."""

import math

import numpy as np
import torch

from siam_bids.inference.local_gaussians import estimate_gaussians

SHAPE = (7, 5, 6)
EDGE = 8.0
"""Voxels in mm as large as the blocks in which voxels are summed up: then there is no block."""
REACH, SPREAD = 12.0, 0.2


def example():
    """Probabilities (classes, I, J, K) of three classes and an image whose classes differ."""
    rng = np.random.default_rng(7)
    maps = rng.dirichlet([0.5, 0.5, 0.5], SHAPE).transpose(3, 0, 1, 2)
    image = np.einsum("c...,c->...", maps, [20.0, 50.0, 90.0]) + rng.normal(0, 4, SHAPE)
    return maps, image


def estimated(maps, image, voxel_size=(EDGE,) * 3, **options):
    tensor = torch.from_numpy(maps).float()
    planes = (tensor[:, place].clone() for place in range(tensor.shape[1]))
    options = {"reach": REACH, "spread": SPREAD, **options}
    return estimate_gaussians(
        planes, lambda place: torch.from_numpy(image[place]).float(), image.shape, voxel_size,
        **options,
    )  # fmt: skip


def described(gaussians, shape):
    """Means, standard deviations and log heights (classes, I, J, K) of every voxel."""
    zero = [gaussians.at(place, torch.zeros(shape[1:])) for place in range(shape[0])]
    one = [gaussians.at(place, torch.ones(shape[1:]))[0] for place in range(shape[0])]
    at_zero = torch.stack([distance for distance, _ in zero], 1).double().numpy()
    at_one = torch.stack(one, 1).double().numpy()
    deviations = 1 / (at_zero - at_one)
    heights = torch.stack([height for _, height in zero], 1).double().numpy()
    return at_zero * deviations, deviations, heights


def window(length):
    """Weights (length, length) of a Gaussian window around each block, cut off at 3 sigma."""
    sigma = REACH / EDGE
    apart = np.subtract.outer(np.arange(length), np.arange(length))
    bell = np.exp(-(apart**2) / (2 * sigma**2)) * (abs(apart) <= int(3 * sigma + 0.5))
    reach = np.arange(-int(3 * sigma + 0.5), int(3 * sigma + 0.5) + 1)
    return bell / np.exp(-(reach**2) / (2 * sigma**2)).sum() * sigma * math.sqrt(2 * math.pi)


def test_means_and_deviations_are_those_of_weighted_voxels_nearby():
    """Weights are squared probabilities; 100 mm3 of each class are taken from the whole scan."""
    maps, image = example()
    weights = maps**2 * EDGE**3
    whole = weights.sum((1, 2, 3)), (weights * image).sum((1, 2, 3))
    mean = whole[0] ** -1 * whole[1]
    variance = (weights * image**2).sum((1, 2, 3)) / whole[0] - mean**2
    every_mean = whole[1].sum() / whole[0].sum()
    every_variance = (weights * image**2).sum() / whole[0].sum() - every_mean**2
    mean, variance = (
        (whole[1] + 100 * every_mean) / (whole[0] + 100),
        (whole[0] * variance + 100 * every_variance) / (whole[0] + 100),
    )
    windows = [window(length) for length in SHAPE]
    count, total, squares = (
        np.einsum("ai,bj,ck,nijk->nabc", *windows, weights * image**power) for power in range(3)
    )
    mean, variance = (each[:, None, None, None] for each in (mean, variance))
    near = (total + 100 * mean) / (count + 100)
    scatter = (squares - total**2 / count + 100 * variance) / (count + 100)
    deviation = np.sqrt(scatter + SPREAD * scatter.mean(0))
    (gaussians,) = estimated(maps, image)
    means, deviations, heights = described(gaussians, SHAPE)
    np.testing.assert_allclose(means, near, rtol=2e-3)
    np.testing.assert_allclose(deviations, deviation, rtol=2e-3)
    np.testing.assert_allclose(heights, -np.log(deviation), atol=2e-3)


def test_between_blocks_means_follow_a_bias_field():
    """A ramp of one class: the mean in a symmetric window is the intensity at its centre."""
    shape = (72, 16, 16)
    ramp = np.linspace(100.0, 171.0, 72)[:, None, None] * np.ones(shape)
    (gaussians,) = estimated(np.ones((1, *shape)), ramp, (1.0, 1.0, 1.0), reach=8.0)
    means, deviations, _ = described(gaussians, shape)
    inner = slice(26, 46)
    np.testing.assert_allclose(means[0, inner], ramp[inner], atol=0.5)
    assert np.ptp(deviations[0, inner]) < 0.5


def test_a_class_that_is_nowhere_has_the_gaussian_of_the_whole_scan():
    maps, image = example()
    maps = np.stack([maps[0], maps[1] + maps[2], 0 * maps[0]])
    (gaussians,) = estimated(maps, image)
    means, _, _ = described(gaussians, SHAPE)
    weights = (maps**2).sum(0)
    np.testing.assert_allclose(means[2], (weights * image).sum() / weights.sum(), rtol=1e-3)


def test_two_gaussians_of_a_class_share_it_as_their_voxels_do():
    """A quarter of the class is 40, the rest 100, mixed evenly over the scan."""
    shape = (12, 12, 12)
    dark = np.indices(shape).sum(0) % 4 == 0
    image = np.where(dark, 40.0, 100.0)
    above = list(torch.from_numpy(~dark)[None].unbind(1))
    lower, upper = (
        described(each, shape)
        for each in estimated(np.ones((1, *shape)), image, above=above, reach=24.0)
    )
    inner = (0, *[slice(4, 8)] * 3)
    np.testing.assert_allclose(lower[0][inner], 40, atol=1.5)
    np.testing.assert_allclose(upper[0][inner], 100, atol=1.5)
    shares = [np.exp(height) * deviation for _, deviation, height in (lower, upper)]
    np.testing.assert_allclose(shares[0] + shares[1], 1, atol=2e-3)
    np.testing.assert_allclose(shares[0][inner], 0.25, atol=0.02)


def test_a_finer_grid_keeps_the_gaussians_where_they_are():
    maps, image = example()
    (gaussians,) = estimated(maps, image)
    finer = gaussians.on([2 * length for length in SHAPE], (2, 2, 2))
    means, _, _ = described(gaussians, SHAPE)
    fine, _, _ = described(finer, [2 * length for length in SHAPE])
    middle = fine.reshape(3, SHAPE[0], 2, SHAPE[1], 2, SHAPE[2], 2).mean((2, 4, 6))
    assert abs(middle - means)[:, 1:-1, 1:-1, 1:-1].max() < 0.06 * np.ptp(means)


def test_above_is_brighter_than_the_mean():
    maps, image = example()
    (gaussians,) = estimated(maps, image)
    means, _, _ = described(gaussians, SHAPE)
    for place in range(SHAPE[0]):
        found = gaussians.below(place, torch.from_numpy(image[place]).float()).numpy()
        np.testing.assert_array_equal(found, image[place] > means[:, place])
