"""The lean U-Net against the plain one that nnU-Net builds."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from siam_bids.nnunet.architecture import build_network
from siam_bids.nnunet.lean_unet import LeanUNet, is_unet, multiply_adds
from siam_bids.nnunet.model import CONFIGURATION
from siam_bids.nnunet.write import compact_plans

PLAIN = compact_plans(name="T", features=(4, 8, 12), patch=(16, 16, 16), spacing=1.0)[
    "configurations"
][CONFIGURATION]["architecture"]

RESIDUAL = {  # SIAM's architecture, small: strides differ by axis at the bottom
    "network_class_name": (
        "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    ),
    "arch_kwargs": {
        **{k: v for k, v in PLAIN["arch_kwargs"].items() if k != "n_conv_per_stage"},
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 1]],
        "n_blocks_per_stage": [1, 2, 2],
        "n_conv_per_stage_decoder": [1, 1],
    },
    "_kw_requires_import": PLAIN["_kw_requires_import"],
}  # fmt: skip


def built(architecture):
    torch.manual_seed(3)
    return build_network(architecture, channels=1, classes=5).eval()


@pytest.fixture(params=[PLAIN, RESIDUAL], ids=["plain", "residual"])
def architecture(request):
    return request.param


@pytest.fixture
def image():
    return torch.randn((1, 1, 40, 16, 24), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
@pytest.mark.parametrize("slab", [1 << 26, 20_000])
def test_float32_logits_are_the_plain_networks_in_slabs_too(architecture, image, slab, monkeypatch):
    monkeypatch.setattr("siam_bids.nnunet.lean_unet.SLAB", slab)
    monkeypatch.setattr("siam_bids.nnunet.lean_unet._ELEMENTS_AT_ONCE", slab)
    expected = built(architecture)(image)
    found = LeanUNet(built(architecture))(image)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_multiply_adds_are_those_that_torch_counts(architecture):
    network = built(architecture)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 1, 40, 16, 24))
    assert multiply_adds(network, (40, 16, 24)) == counter.get_total_flops() / 2


@torch.inference_mode()
def test_bfloat16_stays_close(architecture, image):
    expected = built(architecture)(image)
    found = LeanUNet(built(architecture), torch.bfloat16)(image)
    error = (found - expected).square().mean().sqrt() / expected.std()
    assert 0 < error < 0.02


def test_checkpoints_fit_before_and_after(architecture):
    plain = built(architecture)
    names = set(plain.state_dict())
    assert is_unet(plain)
    lean = LeanUNet(plain, torch.bfloat16)
    assert set(lean.network.state_dict()) == names
    assert not is_unet(torch.nn.Conv3d(1, 1, 1))
