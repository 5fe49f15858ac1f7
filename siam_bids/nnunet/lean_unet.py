"""Running an nnU-Net U-Net on a CPU in less memory: the same sums, piece by piece.

Instance normalisation works in place, a few channels at a time; large convolutions run in slabs,
so that oneDNN's reordered copies stay small, and are written over their input where nothing else
needs it; the decoder upsamples slab by slab and writes over the skip. What is left at the peak are
two feature maps of full resolution in a residual encoder, one in a plain one. In bfloat16 the
convolutions take half the memory and time, while the first and the last layer and all sums stay in
float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

SLAB = 1 << 24
"""Elements of one input slab of a convolution: 64 MB in float32. Smaller maps run whole."""

_ELEMENTS_AT_ONCE = 1 << 22
"""Elements normalised, pooled or scored at once in float32: 16 MB."""


def is_unet(network: Any) -> bool:
    """Tell whether a network has the parts that `LeanUNet` runs: nnU-Net's 3-D U-Nets do."""
    try:
        encoder, decoder = network.encoder, network.decoder
        first = [stage.convs[0].all_modules[0] for stage in decoder.stages]
        parts = [*encoder.stages, *decoder.transpconvs, decoder.seg_layers[-1]]
        whole = set(encoder.strides[0]) == {1}
        apart = all(layer.kernel_size == layer.stride for layer in decoder.transpconvs)
        layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv3d)]
        near = all(max(layer.kernel_size) <= 3 and set(layer.dilation) == {1} for layer in layers)
    except (AttributeError, TypeError):
        return False
    plain = whole and apart and near
    return bool(parts) and plain and all(isinstance(conv, nn.Conv3d) for conv in first)


def stem_of(encoder: Any) -> Any:
    """Return what an encoder does before its stages: residual ones have a stem, plain ones None."""
    return getattr(encoder, "stem", None)


def multiply_adds(network: Any, tile: Sequence[int]) -> int:
    """Count the multiply-adds of the convolutions, for a tile through a network that `is_unet`.

    Each weight is used once for every voxel of the result, or, in a transposed convolution whose
    kernel is its stride, of the input. torch's own counter gives the same, but needs its compiler.
    """
    encoder, decoder = network.encoder, network.decoder
    shape, voxels = tuple(tile), list[int]()
    for stride in encoder.strides:
        shape = tuple(-(-edge // step) for edge, step in zip(shape, stride, strict=True))
        voxels.append(math.prod(shape))
    parts = [
        *zip(encoder.stages, voxels, strict=True),
        *zip(decoder.transpconvs, voxels[:0:-1], strict=True),
        *zip(decoder.stages, voxels[-2::-1], strict=True),
        (decoder.seg_layers[-1], voxels[0]),
    ]
    if stem := stem_of(encoder):
        parts.append((stem, voxels[0]))
    return sum(
        layer.weight.numel() * count
        for part, count in parts
        for layer in part.modules()
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d)
    )


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
        for block in network.modules():
            for follower in _followers(block):
                follower.conv.overwrites = True
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
        if stem := stem_of(encoder):
            features = stem(features)
        skips = []
        for stage in encoder.stages:
            features = stage(features)
            skips.append(features)
        skips.pop()
        for upsample, stage in zip(decoder.transpconvs, decoder.stages, strict=True):
            first = stage.convs[0].all_modules
            features = first[0].join(features, upsample, skips.pop())
            features = stage.convs[1:](first[1:](features))
        return self._logits(features)

    def _logits(self, features: torch.Tensor) -> torch.Tensor:
        logits = features.new_empty(
            (1, self._head.out_channels, *features.shape[2:]), dtype=torch.float32
        )
        for part in _slabs(features.shape[2], features.numel(), _ELEMENTS_AT_ONCE):
            logits[:, :, part] = self._head(features[:, :, part].float())
        return logits


def _slabs(depth: int, elements: int, size: int) -> Iterator[slice]:
    """Cut `depth` planes of `elements` values in all into slabs of at most about `size` values."""
    step = max(8, depth * size // elements)
    for start in range(0, depth, step):
        yield slice(start, min(start + step, depth))


class _Convolution(nn.Module):
    """A convolution in slabs along the first spatial axis.

    Attributes
    ----------
    result
        Type of the result; None for that of the input.
    overwrites
        Whether nothing else needs the input, so that a result of the same shape may replace it.
    """

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.stride = tuple(conv.stride)
        self.padding = tuple(int(edge) for edge in conv.padding)
        self.result: torch.dtype | None = None
        self.overwrites = False

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self._run(
            lambda low, high: features[:, :, low:high], features, overwrite=self.overwrites
        )

    def join(self, coarse: torch.Tensor, upsample: Any, skip: torch.Tensor) -> torch.Tensor:
        """Convolve upsampled and skipped features as if joined; may overwrite the skip.

        Parameters
        ----------
        coarse
            (1, C, I, J, K) features of the stage below.
        upsample
            Transposed convolution, its kernel equal to its stride.
        skip
            (1, C', I', J', K').
        """
        step = upsample.stride[0]

        def planes(low: int, high: int) -> torch.Tensor:
            first, last = low // step, -(-high // step)
            finer = upsample(coarse[:, :, first:last])
            finer = finer[:, :, low - first * step : high - first * step]
            return torch.cat([finer, skip[:, :, low:high]], dim=1)

        return self._run(planes, skip, overwrite=True)

    def _run(
        self, planes: Callable[[int, int], torch.Tensor], source: torch.Tensor, *, overwrite: bool
    ) -> torch.Tensor:
        """Convolve what `planes(low, high)` gives; its grid is the source's."""
        dtype = self.result or source.dtype
        depth = source.shape[2]
        edges = zip(source.shape[2:], self.padding, self.weight.shape[2:], self.stride, strict=True)
        lengths = [(n + 2 * pad - edge) // step + 1 for n, pad, edge, step in edges]
        shape = (1, len(self.weight), *lengths)
        elements = max(source.numel(), math.prod(shape))
        if elements <= SLAB:
            return self._convolve(planes(0, depth), self.padding).to(dtype)
        same = overwrite and shape == source.shape and dtype == source.dtype
        target = source if same else source.new_empty(shape, dtype=dtype)
        edge, step, (reach, *rest) = self.weight.shape[2], self.stride[0], self.padding
        before = planes(0, 1)[:, :, :0]  # planes read already, which a slab may have overwritten
        for slab in _slabs(lengths[0], elements, SLAB):
            low, high = slab.start * step - reach, (slab.stop - 1) * step - reach + edge
            begin, end = max(low, 0) + before.shape[2], min(high, depth)
            part = torch.cat([before, planes(begin, end)], dim=2) if begin < end else before
            missing = (max(-low, 0), max(high - depth, 0))
            part = functional.pad(part, (0, 0, 0, 0, *missing)) if any(missing) else part
            before = part[:, :, part.shape[2] - max(edge - step, 0) :].clone()
            target[:, :, slab] = self._convolve(part, (0, *rest))
        return target

    def _convolve(self, features: torch.Tensor, padding: tuple[int, ...]) -> torch.Tensor:
        return functional.conv3d(features, self.weight, self.bias, self.stride, padding)


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
    """Cut the channels of (1, C, I, J, K) into groups of about `_ELEMENTS_AT_ONCE` elements."""
    channels = features.shape[1]
    step = max(1, _ELEMENTS_AT_ONCE * channels // features.numel())
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
    return _Convolution(layer) if isinstance(layer, nn.Conv3d) else layer


def _followers(block: Any) -> Sequence[Any]:
    """Return the blocks within a block whose input is what the block before them made."""
    if hasattr(block, "convs"):
        return block.convs[1:]  # type: ignore[no-any-return]
    return [block.conv2] if hasattr(block, "conv2") else []
