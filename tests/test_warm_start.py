import pytest
import torch
from torch.nn import functional

from siam_bids.errors import ModelError
from siam_bids.nnunet.architecture import build_network
from siam_bids.nnunet.model import CONFIGURATION
from siam_bids.nnunet.write import compact_plans
from siam_bids.training.warm_start import settle, start_from


def network(features, seed=0):
    torch.manual_seed(seed)
    plans = compact_plans(name="Dataset999_Test", features=features, patch=(32,) * 3, spacing=1.0)
    architecture = plans["configurations"][CONFIGURATION]["architecture"]
    return build_network(architecture, channels=1, classes=18).eval()


@pytest.fixture
def image() -> torch.Tensor:
    """Structure in the middle of zeros, so that zero padding is no edge."""
    coarse = torch.rand((1, 1, 8, 8, 8), generator=torch.Generator().manual_seed(3))
    smooth = functional.interpolate(coarse, scale_factor=4, mode="trilinear")
    return functional.pad(smooth - smooth.mean(), (8,) * 6)


def test_a_network_of_the_same_shape_is_copied(image):
    old, new = network((8, 8, 16)), network((8, 8, 16), seed=1)
    assert start_from(new, old.state_dict()) is False
    with torch.no_grad():
        assert torch.equal(old(image), new(image))


def test_a_finer_network_begins_as_the_coarse_one_on_the_averaged_image(image):
    old, new = network((8, 16, 16)), network((8, 8, 16, 16), seed=1)
    assert start_from(new, old.state_dict()) is True
    settle(new, [image])
    with torch.no_grad():
        coarse = old(functional.avg_pool3d(image, 2)).argmax(1, keepdim=True).float()
        expected = functional.interpolate(coarse, scale_factor=2)
        found = new(image).argmax(1, keepdim=True)
    inner = (..., slice(10, -10), slice(10, -10), slice(10, -10))
    assert float((found == expected)[inner].float().mean()) > 0.9


def test_a_wider_network_begins_with_the_same_answers(image):
    old, new = network((8, 12, 16)), network((12, 12, 20), seed=1)
    assert start_from(new, old.state_dict()) is False
    with torch.no_grad():
        assert torch.allclose(old(image), new(image), atol=1e-4)
    new(image).square().mean().backward()
    assert new.decoder.seg_layers[-1].weight.grad[:, 8:].any()  # what is new can be learnt


def test_unlike_networks_are_refused():
    with pytest.raises(ModelError, match="must be like the one to train"):
        start_from(network((8, 8, 16, 16)), network((8, 12, 20)).state_dict())
