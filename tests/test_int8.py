"""The U-Net in 8-bit integers against the one that nnU-Net builds."""

import pytest
import torch
from test_network import PLAIN, RESIDUAL, built

from siam_bids.nnunet.int8_unet import Int8UNet, bears_int8, has_fast_int8

pytestmark = pytest.mark.skipif(not has_fast_int8(), reason="this CPU has no VNNI")

DEEP = {  # strides that differ by axis, and two convolutions in a stage of the decoder
    **PLAIN,
    "arch_kwargs": {
        **PLAIN["arch_kwargs"],
        "strides": [[1, 1, 1], [2, 2, 1], [2, 2, 2]],
        "n_conv_per_stage_decoder": [2, 2],
    },
}


@pytest.fixture(params=[PLAIN, RESIDUAL, DEEP], ids=["plain", "residual", "deep"])
def architecture(request):
    return request.param


@pytest.fixture
def image():
    noise = torch.randn((1, 1, 40, 16, 24), generator=torch.Generator().manual_seed(0))
    return 3 * torch.nn.functional.avg_pool3d(noise, 3, 1, 1)


def error(found, expected):
    return float((found - expected).square().mean().sqrt() / expected.std())


@torch.inference_mode()
def test_logits_stay_close_everywhere(architecture, image):
    expected = built(architecture)(image)
    network = built(architecture)
    assert bears_int8(network)
    found = Int8UNet(network)(image)
    assert found.dtype == torch.float32
    assert 0 < error(found, expected) < 0.02
    for axis in (2, 3, 4):  # beyond an edge, upsampled features are zero, not their bias
        for place in (0, -1):
            assert error(found.select(axis, place), expected.select(axis, place)) < 0.02


@torch.inference_mode()
def test_weights_loaded_later_count(image):
    network = built(PLAIN)
    quick = Int8UNet(network)
    quick(image)
    torch.manual_seed(9)
    other = {name: torch.randn_like(value) / 4 for name, value in network.state_dict().items()}
    network.load_state_dict(other)
    again = built(PLAIN)
    again.load_state_dict(other)
    assert error(quick(image), again(image)) < 0.05


@torch.inference_mode()
def test_channels_of_very_different_size_keep_their_precision(image):
    network = built(PLAIN)
    for layer in network.modules():
        if isinstance(layer, torch.nn.InstanceNorm3d):
            layer.weight.copy_(torch.logspace(-2, 2, len(layer.weight)))
    expected = network(image)
    assert error(Int8UNet(network)(image), expected) < 0.03


@torch.inference_mode()
def test_a_constant_image_gives_finite_logits(architecture):
    found = Int8UNet(built(architecture))(torch.zeros((1, 1, 40, 16, 24)))
    assert found.isfinite().all()


def test_other_networks_are_left_to_float32(architecture):
    assert not bears_int8(torch.nn.Conv3d(1, 1, 1))
    options = {**architecture["arch_kwargs"], "nonlin": "torch.nn.ELU", "nonlin_kwargs": {}}
    assert not bears_int8(built({**architecture, "arch_kwargs": options}))
    options = {**PLAIN["arch_kwargs"], "norm_op_kwargs": {"affine": False}}
    assert not bears_int8(built({**PLAIN, "arch_kwargs": options}))
