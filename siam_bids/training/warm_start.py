"""Start a network from the weights of another: alike, narrower, or one stage coarser."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from siam_bids.errors import ModelError

_LEAK = 0.01
"""Negative slope of PyTorch's LeakyReLU, which nnU-Net uses."""


def start_from(network: nn.Module, weights: Mapping[str, torch.Tensor]) -> bool:
    """Copy the weights of a plain U-Net into `network`.

    A network with more channels begins with the same answers: the channels that are new see all
    others, as with random weights, and the old ones do not use them yet.

    A network with one stage more, at half the voxel size, is set up so that it begins as the
    coarse network on the averaged image, its answer upsampled: training then only has to add
    detail (the idea of progressive growing, Karras et al., ICLR 2018). `settle` must follow.

    Parameters
    ----------
    network
        nnU-Net's PlainConvUNet on one channel, with 1, 2, 2, ... convolutions in the stages.
    weights
        State dict of the network to start from.

    Returns
    -------
    True where a finer stage was added.

    Raises
    ------
    ModelError
        The two networks are neither alike, but for wider stages, nor one stage apart.
    """
    own = dict(network.named_parameters())
    theirs = {name: value for name, value in weights.items() if not _is_alias(name)}
    grown = theirs.keys() != own.keys()
    if grown:
        theirs = _renamed(theirs)
    with torch.no_grad():
        if grown:
            _pass_through(own)
        for name, value in theirs.items():
            if name not in own:
                raise _unlike()
            if own[name].shape == value.shape:
                own[name].copy_(value)
            elif not grown and _fits(value, own[name]):
                _widen(own[name], value, name)
            elif grown and name == _OLD_ENTRANCE:
                own[name].zero_()
                own[name][:, :1], own[name][:, 1:2] = value / (1 + _LEAK), -value / (1 + _LEAK)
            else:
                raise _unlike()
    return grown


_OLD_ENTRANCE = "encoder.stages.1.0.convs.1.conv.weight"


def _unlike() -> ModelError:
    return ModelError(
        "The network to start from must be like the one to train, narrower, or coarser by "
        "one stage.",
        "Give a model folder trained by siam-bids-train.",
    )


def _fits(old: torch.Tensor, new: torch.Tensor) -> bool:
    return all(length <= room for length, room in zip(old.shape, new.shape, strict=True))


def _widen(new: torch.Tensor, old: torch.Tensor, name: str) -> None:
    """Put the weights of a layer into one with more channels, which leave the old ones alone."""
    if new.ndim == 1:
        new[: len(old)] = old
        return
    if "transpconvs" in name:  # whose first axis is the input
        new, old = new.transpose(0, 1), old.transpose(0, 1)
    joined = name.startswith("decoder.stages") and ".convs.0." in name
    parts = 2 if joined else 1  # features from below, then those skipped
    before, room = old.shape[1] // parts, new.shape[1] // parts
    new[: len(old)] = 0
    for part in range(parts):
        inputs = slice(part * room, part * room + before)
        new[: len(old), inputs] = old[:, part * before : (part + 1) * before]


def _is_alias(name: str) -> bool:
    """Whether a state dict's name repeats a parameter (the U-Net lists its parts twice)."""
    return "all_modules" in name or name.startswith("decoder.encoder.")


def _renamed(coarse: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Move the encoder down by one stage, and let the last layer answer at the new stage."""
    moved = {}
    answer = max((name for name in coarse if "seg_layers" in name), key=_number)
    for name, value in coarse.items():
        parts = name.split(".")
        if parts[0] == "encoder":
            parts[2] = str(int(parts[2]) + 1)
            if parts[2] == "1":
                parts[5] = "1"
        moved[".".join(parts)] = value
        if "seg_layers" in name and _number(name) == _number(answer):
            moved[f"decoder.seg_layers.{_number(name) + 1}.{parts[-1]}"] = value
    return moved


def _number(name: str) -> int:
    return int(name.split(".")[2])


def _pass_through(own: Mapping[str, torch.Tensor]) -> None:
    """Let the image, averaged over 2 voxels per axis, reach the second stage; and its answer back.

    The image travels as a pair of channels, itself and its negative, so that their difference
    survives the leaky rectifier.
    """
    pair = torch.tensor([1.0, -1.0])
    first = own["encoder.stages.0.0.convs.0.conv.weight"]
    first[:2] = 0
    first[:2, 0, 1, 1, 1] = pair
    halve = own["encoder.stages.1.0.convs.0.conv.weight"]
    halve[:2] = 0
    mean = torch.zeros(3, 3, 3)
    mean[1:, 1:, 1:] = 1 / 8 / (1 + _LEAK)
    for row in range(2):
        for column in range(2):
            halve[row, column] = pair[row] * pair[column] * mean
    last = max(_number(name) for name in own if "transpconvs" in name)
    up, mix = (
        own[f"decoder.transpconvs.{last}.weight"],
        f"decoder.stages.{last}.convs.0.conv.weight",
    )
    count = own[mix].shape[0]
    up.zero_()
    own[f"decoder.transpconvs.{last}.bias"].zero_()
    own[mix][:, :count] = 0
    own[mix][:, count:] *= 0.05
    for channel in range(count):
        up[channel, channel] = 1
        own[mix][channel, channel, 1, 1, 1] = 1


@torch.no_grad()
def settle(network: nn.Module, patches: Iterable[torch.Tensor]) -> None:
    """Set the last normalisation so that it undoes itself on typical patches.

    Parameters
    ----------
    patches
        Images (B, 1, I, J, K), normalised as in training.
    """
    blocks = [
        module for name, module in network.named_modules() if name.startswith("decoder.stages")
    ]
    norm = [module for module in blocks if isinstance(module, nn.InstanceNorm3d)][-1]
    means, stds = [], []

    def look(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        values = inputs[0].float()
        means.append(values.mean((0, 2, 3, 4)))
        stds.append(values.std((0, 2, 3, 4)))

    hook = norm.register_forward_pre_hook(look)
    for patch in patches:
        network(patch)
    hook.remove()
    norm.weight.copy_(torch.stack(stds).mean(0))
    norm.bias.copy_(torch.stack(means).mean(0))
