import numpy as np
import pytest
import torch

from siam_bids.synthesis.artefacts import acquire, add_ghost, blur, move_head


@pytest.fixture
def ball() -> torch.Tensor:
    place = torch.from_numpy(np.indices((32, 32, 32)) - 15.5).float()
    return (place.square().sum(0).sqrt() < 8).float()


def test_a_blur_keeps_the_sum_and_has_the_width_it_says():
    point = torch.zeros((9, 9, 9))
    point[4, 4, 4] = 1
    soft = blur(point, 0.7)
    assert float(soft.sum()) == pytest.approx(1, abs=1e-5)
    place = torch.arange(9) - 4.0
    variance = float((soft.sum((1, 2)) * place.square()).sum())
    assert variance == pytest.approx(0.7**2, rel=0.05)


def test_a_head_that_moves_before_the_scan_is_only_shifted(ball):
    moved = move_head(ball, 3.0, 1.1, axis=1)
    assert torch.allclose(moved, torch.roll(ball, 3, 1), atol=1e-5)


def test_a_head_that_does_not_move_stays(ball):
    assert torch.allclose(move_head(ball, 0.0, 0.3, axis=0), ball, atol=1e-5)


def test_motion_puts_signal_outside_along_its_axis_only(ball):
    moved = move_head(ball, 3.0, 0.3, axis=2)
    outside = moved * (ball == 0)
    empty = ball.amax(2) == 0  # lines along the axis that miss the ball
    assert float(outside.sum()) > 0.01 * float(ball.sum())
    assert float(moved[empty].abs().max()) < 1e-5


def test_a_ghost_adds_its_strength(ball):
    ghosted = add_ghost(ball, 0.1, 2, axis=0)
    assert float(ghosted.sum()) == pytest.approx(1.1 * float(ball.sum()), rel=1e-5)


@pytest.mark.parametrize(("rician", "mean"), [(True, 0.1 * np.sqrt(np.pi / 2)), (False, 0.0399)])
def test_noise_in_air_has_the_mean_of_its_distribution(rician, mean):
    air = torch.zeros((40, 40, 40))
    rng = torch.Generator().manual_seed(1)
    noisy = acquire(air, (1.0, 1.0, 1.0), 1.0, rng, noise=0.1, rician=rician)
    # Rayleigh sigma sqrt(pi/2); half of a Gaussian cut at 0: sigma / sqrt(2 pi)
    assert float(noisy.mean()) == pytest.approx(mean, rel=0.02)


def test_thick_slices_keep_the_mean(ball):
    rng = torch.Generator().manual_seed(1)
    thick = acquire(ball, (1.0, 1.0, 4.0), 1.0, rng, noise=0.0, rician=False)
    assert float(thick.mean()) == pytest.approx(float(ball.mean()), rel=0.02)
