"""Running an nnU-Net U-Net on a CPU in less memory: the same sums, piece by piece.

Instance normalisation works in place, a few channels at a time; large convolutions run in slabs,
so that oneDNN's reordered copies stay small; the decoder never joins skip and upsampled features
at full size, and frees a skip once it is used. In bfloat16 the convolutions take half the memory
and time, while the first and the last layer and all sums stay in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import nn
from torch.nn import functional

_SLAB = 1 << 26
"""Elements of one input slab of a convolution: 128 MB in bfloat16. Smaller maps run whole."""

_GROUP = 1 << 22
"""Elements normalised, pooled or scored at once in float32: 16 MB."""


def has_fast_bfloat16() -> bool:
    """Tell whether this CPU multiplies bfloat16 in hardware (avx512_bf16 or AMX)."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def is_unet(network: Any) -> bool:
    """Tell whether a network has the parts that `LeanUNet` runs: nnU-Net's 3-D U-Nets do."""
    try:
        encoder, decoder = network.encoder, network.decoder
        first = [stage.convs[0].all_modules[0] for stage in decoder.stages]
        parts = [*encoder.stages, *decoder.transpconvs, decoder.seg_layers[-1]]
        whole = set(encoder.strides[0]) == {1}
    except (AttributeError, TypeError):
        return False
    return bool(parts) and whole and all(isinstance(conv, nn.Conv3d) for conv in first)


class LeanUNet(nn.Module):
    """Runs nnU-Net's plain or residual-encoder U-Net, without deep supervision outputs.

    Parameters
    ----------
    network
        One for which `is_unet` holds. It is taken over: its layers are changed in place, its
        parameters keep their names, so that checkpoints load into `network` as before.
    dtype
        Of the convolutions: float32 or bfloat16.
    """

    def __init__(self, network: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        self.network: Any = network
        self._head: nn.Conv3d = network.decoder.seg_layers[-1]
        _replace_layers(network, keep=self._head)
        layers = [layer for layer in network.modules() if isinstance(layer, _CONVOLUTIONS)]
        first = next(layer for layer in layers if isinstance(layer, _Convolution))
        first.result = dtype
        for layer in layers:
            if layer not in (first, self._head):
                layer.to(dtype)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map an image (1, channels, I, J, K) to float32 logits (1, classes, I, J, K)."""
        encoder, decoder = self.network.encoder, self.network.decoder
        features = image
        if getattr(encoder, "stem", None) is not None:
            features = encoder.stem(features)
        skips = []
        for stage in encoder.stages:
            features = stage(features)
            skips.append(features)
        skips.pop()
        for upsample, stage in zip(decoder.transpconvs, decoder.stages, strict=True):
            first = stage.convs[0].all_modules
            features = upsample(features)
            features = first[0]([features, skips.pop()])
            features = stage.convs[1:](first[1:](features))
        return self._logits(features)

    def _logits(self, features: torch.Tensor) -> torch.Tensor:
        logits = features.new_empty(
            (1, self._head.out_channels, *features.shape[2:]), dtype=torch.float32
        )
        for part in _slabs(features, _GROUP):
            logits[:, :, part] = self._head(features[:, :, part].float())
        return logits


class Mirrored(nn.Module):
    """Averages a network's logits over all combinations of mirrored axes, as nnU-Net does.

    Parameters
    ----------
    axes
        Spatial axes, 0 to 2.
    """

    def __init__(self, network: nn.Module, axes: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        spatial = [axis + 2 for axis in axes]
        self.flips = [
            flip for count in range(len(axes) + 1) for flip in combinations(spatial, count)
        ]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map an image (1, channels, I, J, K) to logits (1, classes, I, J, K)."""
        total = self.network(image)
        for flip in self.flips[1:]:
            total += self.network(image.flip(flip)).flip(flip)
        return total.div_(len(self.flips))  # type: ignore[no-any-return]


def _slabs(features: torch.Tensor, size: int) -> Iterator[slice]:
    """Cut (1, C, I, J, K) along i into slabs of at most about `size` elements."""
    depth = features.shape[2]
    step = max(8, depth * size // features.numel())
    for start in range(0, depth, step):
        yield slice(start, min(start + step, depth))


class _Convolution(nn.Module):
    """A convolution of stride 1 that keeps the shape; takes several maps as if joined."""

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.padding = tuple(int(edge) for edge in conv.padding)
        self.result: torch.dtype | None = None

    def forward(self, maps: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
        maps = [maps] if isinstance(maps, torch.Tensor) else maps
        dtype = self.result or maps[0].dtype
        slabs = list(_slabs(maps[0], _SLAB))
        if len(slabs) == 1:
            whole = torch.cat(maps, dim=1) if len(maps) > 1 else maps[0]
            return functional.conv3d(whole, self.weight, self.bias, padding=self.padding).to(dtype)
        reach, *rest = self.padding
        depth = maps[0].shape[2]
        result = maps[0].new_empty((1, len(self.weight), *maps[0].shape[2:]), dtype=dtype)
        for slab in slabs:
            low, high = slab.start - reach, slab.stop + reach
            part = torch.cat([each[:, :, max(low, 0) : high] for each in maps], dim=1)
            if low < 0 or high > depth:
                part = functional.pad(part, (0, 0, 0, 0, max(-low, 0), max(high - depth, 0)))
            result[:, :, slab] = functional.conv3d(part, self.weight, self.bias, padding=(0, *rest))
        return result


class _InstanceNorm(nn.Module):
    """Instance normalisation with float32 sums, written over its input."""

    def __init__(self, norm: nn.InstanceNorm3d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        for part in _groups(features):
            features[:, part] = functional.instance_norm(
                features[:, part],
                weight=None if self.weight is None else self.weight[part],
                bias=None if self.bias is None else self.bias[part],
                eps=self.eps,
            )
        return features


class _AveragePool(nn.Module):
    """Average pooling in float32, whatever the precision around it (torch has none in bfloat16)."""

    def __init__(self, pool: nn.AvgPool3d) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        parts = [self.pool(features[:, part].float()) for part in _groups(features)]
        return torch.cat([part.to(features.dtype) for part in parts], dim=1)


def _groups(features: torch.Tensor) -> Iterator[slice]:
    """Cut the channels of (1, C, I, J, K) into groups of at most about `_GROUP` elements."""
    channels = features.shape[1]
    step = max(1, _GROUP * channels // features.numel())
    for start in range(0, channels, step):
        yield slice(start, min(start + step, channels))


_CONVOLUTIONS = (nn.Conv3d, nn.ConvTranspose3d, _Convolution)


def _replace_layers(network: nn.Module, *, keep: nn.Module) -> None:
    made: dict[nn.Module, nn.Module] = {keep: keep}  # nnU-Net holds layers under several names
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if layer not in made:
                made[layer] = _replacement(layer)
            setattr(parent, name, made[layer])


def _replacement(layer: nn.Module) -> nn.Module:
    if isinstance(layer, nn.InstanceNorm3d):
        return _InstanceNorm(layer)
    if isinstance(layer, nn.AvgPool3d):
        return _AveragePool(layer)
    if isinstance(layer, nn.Conv3d) and set(layer.stride) == {1}:
        return _Convolution(layer)
    return layer
