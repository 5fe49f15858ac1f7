"""Building the network that plans.json names.

Stock nnU-Net imports every dotted name that it finds there and calls it with keywords of the same
file. Here the names are looked up in tables, and nothing else is called.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from siam_bids.errors import ModelError
from siam_bids.nnunet.checks import (
    Check,
    flag,
    keywords,
    number,
    one_of,
    optional,
    repeated,
    shown,
    table,
    whole,
)

with contextlib.redirect_stdout(io.StringIO()):  # it prints advice on environment variables
    from dynamic_network_architectures.architectures import unet
    from dynamic_network_architectures.building_blocks import residual

_MOST_STAGES = 12
_FRACTION = number(0, 1)
_NORM = {
    "eps": _FRACTION,
    "momentum": optional(_FRACTION),
    "affine": flag,
    "track_running_stats": flag,
}
_IN_PLACE = {"inplace": flag}


@dataclass(frozen=True)
class _Layers:
    """Layers of one kind: where torch or nnU-Net keeps them, and the keywords that each takes."""

    home: str
    known: Mapping[str, tuple[type[nn.Module], Mapping[str, Check]]]


_CONVOLUTIONS = _Layers("torch.nn.", {"Conv3d": (nn.Conv3d, {})})
_LAYERS: dict[str, _Layers] = {
    "norm_op": _Layers(
        "torch.nn.",
        {"InstanceNorm3d": (nn.InstanceNorm3d, _NORM), "BatchNorm3d": (nn.BatchNorm3d, _NORM)},
    ),
    "dropout_op": _Layers(
        "torch.nn.",
        {
            "Dropout": (nn.Dropout, {"p": _FRACTION, **_IN_PLACE}),
            "Dropout3d": (nn.Dropout3d, {"p": _FRACTION, **_IN_PLACE}),
        },
    ),
    "nonlin": _Layers(
        "torch.nn.",
        {
            "LeakyReLU": (nn.LeakyReLU, {"negative_slope": _FRACTION, **_IN_PLACE}),
            "ReLU": (nn.ReLU, _IN_PLACE),
            "ELU": (nn.ELU, {"alpha": number(0, 100), **_IN_PLACE}),
            "GELU": (nn.GELU, {"approximate": one_of("none", "tanh")}),
            "Mish": (nn.Mish, _IN_PLACE),
            "PReLU": (nn.PReLU, {"init": _FRACTION}),
            "SiLU": (nn.SiLU, _IN_PLACE),
        },
    ),
}
_BLOCKS = _Layers(
    "dynamic_network_architectures.building_blocks.residual.",
    {"BasicBlockD": (residual.BasicBlockD, {}), "BottleneckD": (residual.BottleneckD, {})},
)
_CHANNELS, _REPEATS = whole(1, 4096), whole(1, 64)


def _residual(stages: int) -> dict[str, Check]:
    return {
        "n_blocks_per_stage": repeated(_REPEATS, stages),
        "block": lambda name, what: _found(_BLOCKS, name, what)[0],
        "bottleneck_channels": optional(repeated(optional(_CHANNELS), stages)),
        "stem_channels": optional(_CHANNELS),
    }


def _plain(stages: int) -> dict[str, Check]:
    return {"n_conv_per_stage": repeated(_REPEATS, stages), "nonlin_first": flag}


_HOME = "dynamic_network_architectures.architectures."
"""The package in which stock nnU-Net looks for networks, whatever the module in it."""

_NETWORKS = {
    "PlainConvUNet": (unet.PlainConvUNet, _plain, "n_conv_per_stage"),
    "ResidualEncoderUNet": (unet.ResidualEncoderUNet, _residual, "n_blocks_per_stage"),
    "ResidualUNet": (unet.ResidualUNet, _residual, "n_blocks_per_stage"),
}


def build_network(
    architecture: Mapping[str, Any], *, channels: int, classes: int, initialise: bool = True
) -> nn.Module:
    """Build the network that a plans.json names, without deep supervision outputs.

    Parameters
    ----------
    architecture
        The `architecture` entry of a configuration in plans.json.
    initialise
        Draw the first weights at random as nnU-Net does: needed for training only.

    Raises
    ------
    ModelError
        It is none of nnU-Net's 3-D U-Nets, see `read_architecture`.
    """
    try:
        kind, options = read_architecture(architecture)
        network: nn.Module = kind(
            input_channels=channels, num_classes=classes, deep_supervision=False, **options
        )
    except (ValueError, TypeError, AssertionError, ArithmeticError, RuntimeError) as error:
        raise ModelError(f"The network in plans.json cannot be built: {error}.") from error
    if initialise:
        network.apply(network.initialize)  # type: ignore[arg-type]
    return network


def read_architecture(architecture: Any) -> tuple[type[nn.Module], dict[str, Any]]:
    """Return the class of a network and its keywords, layers as classes.

    Raises
    ------
    ValueError
        A name is not in the tables, or a keyword is missing, unknown, or of the wrong kind or size.
    """
    architecture = table(architecture, "architecture")
    name = architecture.get("network_class_name")
    short = _last(name, _HOME)
    if short not in _NETWORKS:
        names = ", ".join(_NETWORKS)
        raise ValueError(
            f"network_class_name is {shown(name)}, not one of nnU-Net's U-Nets ({names})"
        )
    kind, own, blocks = _NETWORKS[short]
    given = table(architecture.get("arch_kwargs"), "arch_kwargs")
    stages = whole(2, _MOST_STAGES)(given.get("n_stages"), "n_stages")
    layers = {op: _layer(each, given.get(f"{op}_kwargs")) for op, each in _LAYERS.items()}
    plain = {f"{op}_kwargs": optional(table) for op in _LAYERS}
    known: dict[str, Check] = {
        "n_stages": whole(2, _MOST_STAGES),
        "features_per_stage": repeated(_CHANNELS, stages),
        "conv_op": _convolution,
        "kernel_sizes": repeated(_edges(range(1, 16, 2)), stages),
        "strides": repeated(_edges(range(1, 9)), stages),
        "n_conv_per_stage_decoder": repeated(_REPEATS, stages - 1),
        "conv_bias": flag,
        "deep_supervision": flag,
        **layers,
        **plain,
        **own(stages),
    }
    needed = {"features_per_stage", "conv_op", "kernel_sizes", "strides", blocks}
    check = keywords(known, frozenset({*needed, "n_conv_per_stage_decoder"}))
    options: dict[str, Any] = check(given, "arch_kwargs")
    options.pop("deep_supervision", None)
    _check_strides(options["strides"])
    return kind, options


def strides_of(options: Mapping[str, Any]) -> list[int]:
    """Return by how much the deepest stage is coarser than the image, for each axis."""
    triples = [_triple(each) for each in options["strides"]]
    return [math.prod(steps) for steps in zip(*triples, strict=True)]


def _check_strides(strides: Sequence[Any]) -> None:
    if set(_triple(strides[0])) != {1}:
        raise ValueError(f"strides begin with {strides[0]}: labels would be coarser than the image")


def _triple(edges: int | list[int]) -> list[int]:
    return [edges] * 3 if isinstance(edges, int) else edges


def _edges(allowed: range) -> Check:
    """Allow an edge in voxels, or one for each of three axes."""

    def edge(value: Any, what: str) -> int:
        if type(value) is not int or value not in allowed:
            odd = "an odd number" if allowed.step == 2 else "a whole number"
            raise ValueError(f"{what} is {shown(value)}, not {odd} from 1 to {allowed[-1]}")
        return value

    def check(value: Any, what: str) -> int | list[int]:
        if type(value) is int:
            return edge(value, what)
        if not isinstance(value, list) or len(value) != 3:
            raise ValueError(
                f"{what} is {shown(value)}, not three numbers: only 3-D networks are supported"
            )
        return [edge(each, what) for each in value]

    return check


def _last(name: Any, home: str) -> str:
    """Return the last part of a dotted name that lies in a package, else nothing."""
    return name.rpartition(".")[2] if isinstance(name, str) and name.startswith(home) else ""


def _found(layers: _Layers, name: Any, what: str) -> tuple[type[nn.Module], Mapping[str, Check]]:
    short = _last(name, layers.home)
    if short not in layers.known:
        known = ", ".join(layers.known)
        raise ValueError(f"{what} is {shown(name)}, not one of {layers.home[:-1]}'s {known}")
    return layers.known[short]


def _convolution(name: Any, what: str) -> type[nn.Module]:
    return _found(_CONVOLUTIONS, name, what)[0]


def _layer(layers: _Layers, options: Any) -> Check:
    """Allow null or a layer of the table with keywords that it has."""

    def check(name: Any, what: str) -> type[nn.Module] | None:
        if name is None:
            return None
        kind, known = _found(layers, name, what)
        keywords(known)(options, f"the keywords of {what}")
        return kind

    return check
