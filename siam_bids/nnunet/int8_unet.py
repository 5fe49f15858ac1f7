"""Running an nnU-Net U-Net on a CPU in 8-bit integers, about twice as fast as in float32.

No image is needed to calibrate, and nothing is trained again. Every convolution but the first reads
what a normalisation and a leaky ReLU made; each of its channels becomes codes of two bytes that
span just what that channel holds in this tile. Each byte is convolved by itself, with the same
weights of 8 bits: one scale per output channel, the steps between codes worked in. Sums and
normalisation stay in float32, and so do the first and the last layer and whatever comes up from the
stage below, where labels would suffer most. What a convolution adds to a whole channel (its bias)
is left out, as the normalisation takes it away again.

Upsampling and the convolution after it are both linear and become one: a small convolution of the
coarse map for each place in the block of fine voxels that a coarse voxel becomes.

Maps are (I, J, K, C) here, channels last, as oneDNN's integer convolutions read them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from siam_bids.nnunet.lean_unet import is_unet, stem_of
from siam_bids.support.cpu import cpu_has

_BYTE = 256
_HIGHEST = _BYTE**2 - 1
_LEAST = 1e-12
_CHUNK = 1 << 18
"""Elements worked on at once, 1 MB in float32, so that they stay in the cache."""

_WIDE = 128
"""Columns of a matrix that torch sums and compares fast."""


def has_fast_int8() -> bool:
    """Tell whether this CPU multiplies 8-bit integers in hardware (VNNI) and torch makes use of it.

    Without VNNI, oneDNN adds pairs of products in 16 bits, which can overflow.
    """
    return cpu_has("avx512_vnni", "avx_vnni") and hasattr(torch.ops.onednn, "qconv_pointwise")


def bears_int8(network: Any) -> bool:
    """Tell whether a network has the parts that `Int8UNet` runs: nnU-Net's 3-D U-Nets do."""
    if not is_unet(network):
        return False
    norms = [layer for layer in network.modules() if _is_norm(layer)]
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv3d)]
    try:
        blocks = [block for stage in _stages(network) for block in stage]
        return (
            all(isinstance(norm, nn.InstanceNorm3d) and norm.affine for norm in norms)
            and all(layer.groups == 1 for layer in convolutions)
            and all(isinstance(_nonlinearity(block), nn.LeakyReLU) for block in blocks)
            and not hasattr(blocks[0], "conv2")
        )
    except (AttributeError, TypeError):
        return False


def _is_norm(layer: nn.Module) -> bool:
    return "Norm" in type(layer).__name__ and not list(layer.children())


def _nonlinearity(block: Any) -> Any:
    return block.nonlin2 if hasattr(block, "conv2") else block.nonlin


def _stages(network: Any) -> list[list[Any]]:
    """Return the blocks of all stages in their order, those of a stem in the first."""
    encoder = network.encoder
    down = [_blocks(stage) for stage in encoder.stages]
    if stem := stem_of(encoder):
        down[0] = [*_blocks(stem), *down[0]]
    return [*down, *(_blocks(stage) for stage in network.decoder.stages)]


def _blocks(stage: Any) -> list[Any]:
    parts: Any = stage if type(stage) is nn.Sequential else [stage]
    return [block for part in parts for block in getattr(part, "blocks", None) or part.convs]


@dataclass(frozen=True)
class _Codes:
    """A feature map: value = step * (256 * (high - zero) + low).

    Attributes
    ----------
    high, low
        (I, J, K, C) uint8.
    step
        (C,) float32.
    zero
        What `high` is where the value is 0, as the convolutions pad it; `low` is 0 there.
    """

    high: torch.Tensor
    low: torch.Tensor
    step: torch.Tensor
    zero: int


class _Convolution:
    """A convolution of codes without its bias, with float32 results.

    Parameters
    ----------
    weight
        (outputs, inputs, a, b, c) float32.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        *,
        stride: Sequence[int] = (1, 1, 1),
        padding: Sequence[int] = (0, 0, 0),
    ) -> None:
        self._weight = weight
        self._stride, self._padding = list(stride), list(padding)
        self._zeros = torch.zeros(len(weight), dtype=torch.int64)

    @classmethod
    def of(cls, conv: nn.Conv3d) -> _Convolution:
        """Take a layer as it is."""
        return cls(conv.weight, stride=conv.stride, padding=_padding(conv))

    def __call__(self, features: _Codes) -> torch.Tensor:
        """Return (I', J', K', outputs) float32."""
        once = [1, 1, 1]
        weight = self._weight * features.step[:, None, None, None]
        scale = weight.abs().amax((1, 2, 3, 4)).clamp_min_(_LEAST).div_(127)
        integers = weight.div_(scale[:, None, None, None, None]).round_().to(torch.int8)
        packed = torch.ops.onednn.qconv_prepack(
            integers, scale, 1.0, 0, self._stride, self._padding, once, 1, None
        )

        def convolved(codes: torch.Tensor, times: float, zero: int) -> torch.Tensor:
            result = torch.ops.onednn.qconv_pointwise(
                codes.permute(3, 0, 1, 2)[None], times, zero,
                packed, scale, self._zeros, None, self._stride, self._padding, once, 1,
                1.0, 0, torch.float32, "none", [None], "",
            )  # fmt: skip
            return result[0].permute(1, 2, 3, 0).contiguous()  # type: ignore[no-any-return]

        high = convolved(features.high, float(_BYTE), features.zero)
        return high.add_(convolved(features.low, 1.0, 0))


class _Norm:
    """Instance normalisation of (I, J, K, C) float32 maps."""

    def __init__(self, norm: nn.InstanceNorm3d) -> None:
        self._weight, self._bias, self._eps = norm.weight.double(), norm.bias.double(), norm.eps

    def line(self, found: _Moments) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what to multiply with and what to add, (C,) float64 each."""
        factor = self._weight / (found.variance + self._eps).sqrt()
        return factor, self._bias - found.mean * factor


@dataclass(frozen=True)
class _Moments:
    """Mean and variance of each channel, (C,) float64."""

    mean: torch.Tensor
    variance: torch.Tensor

    @classmethod
    def of(cls, features: torch.Tensor) -> _Moments:
        """Go once through (I, J, K, C) float32."""
        channels = features.shape[-1]
        rows = features.reshape(-1, channels)
        total, squares = torch.zeros((2, channels), dtype=torch.float64)
        for part in _chunks(rows):
            wide = _widened(rows[part])
            one = wide.new_ones((1, len(wide)))
            total += (one @ wide).view(-1, channels).sum(0)
            squares += (one @ wide.square()).view(-1, channels).sum(0)
        mean = total / len(rows)
        return cls(mean, (squares / len(rows) - mean.square()).clamp_min_(0))


def _ends(features: torch.Tensor) -> torch.Tensor:
    """Return the least and the greatest value of each channel of (I, J, K, C): (2, C) float64."""
    channels = features.shape[-1]
    rows = features.reshape(-1, channels)
    found = []
    for part in _chunks(rows):
        wide = _widened(rows[part])
        found += [wide.amin(0).view(-1, channels), wide.amax(0).view(-1, channels)]
    return torch.stack(torch.aminmax(torch.cat(found), dim=0)).double()


def _coded(
    features: torch.Tensor,
    factor: torch.Tensor,
    offset: torch.Tensor,
    slope: float,
) -> _Codes:
    """Take the leaky ReLU of `factor * features + offset`, as codes.

    Parameters
    ----------
    features
        (I, J, K, C) float32.
    factor, offset
        (C,) float64.
    slope
        Of the leaky ReLU below 0.
    """
    low, high = torch.aminmax(_ends(features) * factor + offset, dim=0)
    zero = math.ceil(_BYTE * slope) + 1
    below = _BYTE * zero
    step = torch.maximum(high / (_HIGHEST - below - 1), -low * slope / below).clamp_min(_LEAST)
    factor, offset = (factor / step).float(), (offset / step).float()
    rows = features.reshape(-1, features.shape[-1])
    bytes_high, bytes_low = (torch.empty_like(rows, dtype=torch.uint8) for _ in range(2))
    for part in _chunks(rows):
        values = torch.addcmul(offset, rows[part], factor)
        functional.leaky_relu_(values, slope).add_(below + 0.5).clamp_(0, _HIGHEST)
        bytes_high[part] = upper = values.div(_BYTE).floor_()
        bytes_low[part] = values.sub_(upper, alpha=_BYTE)
    shape = features.shape
    return _Codes(bytes_high.view(shape), bytes_low.view(shape), step.float(), zero)


class _Finish:
    """Normalisation and activation of a float32 map."""

    def __init__(self, block: Any) -> None:
        self._norm, self._slope = _Norm(block.norm), block.nonlin.negative_slope

    def coded(self, features: torch.Tensor) -> _Codes:
        """Return codes for the next convolution."""
        return _coded(features, *self._norm.line(_Moments.of(features)), self._slope)

    def plain(self, features: torch.Tensor) -> torch.Tensor:
        """Return float32, written over the input."""
        factor, offset = (each.float() for each in self._norm.line(_Moments.of(features)))
        rows = features.view(-1, features.shape[-1])
        for part in _chunks(rows):
            rows[part] = functional.leaky_relu_(
                torch.addcmul(offset, rows[part], factor), self._slope
            )
        return features


class _Block(_Finish):
    """Convolution, normalisation and activation."""

    def __init__(self, block: Any) -> None:
        super().__init__(block)
        self.convolved = _Convolution.of(block.conv)


class _ResidualBlock:
    """nnU-Net's BasicBlockD: two convolutions, and the input, or a projection of it, added."""

    def __init__(self, block: Any) -> None:
        self._first = _Block(block.conv1)
        self._second, self._norm = _Convolution.of(block.conv2.conv), _Norm(block.conv2.norm)
        self._slope = block.nonlin2.negative_slope
        self._aside: tuple[_Convolution, _Norm] | None = None
        if isinstance(block.skip, nn.Sequential) and len(block.skip):
            *pools, project = list[Any](block.skip)
            edges = [int(edge) for pool in pools for edge in pool.kernel_size] or [1, 1, 1]
            weight = project.conv.weight.expand(-1, -1, *edges) / math.prod(edges)
            self._aside = _Convolution(weight, stride=edges), _Norm(project.norm)

    def convolved(self, features: _Codes) -> torch.Tensor:
        """Return the sum of both ways."""
        result = self._second(self._first.coded(self._first.convolved(features)))
        factor, offset = self._norm.line(_Moments.of(result))
        rows = result.view(-1, result.shape[-1])
        if self._aside:
            conv, norm = self._aside
            added = conv(features)
            times, more = norm.line(_Moments.of(added))
            factor, times, offset = factor.float(), times.float(), (offset + more).float()
            others = added.view(rows.shape)
            for part in _chunks(rows):
                rows[part] = torch.addcmul(offset, rows[part], factor).addcmul_(others[part], times)
            return result
        factor, offset = factor.float(), offset.float()
        high, low = (each.view(rows.shape) for each in (features.high, features.low))
        for part in _chunks(rows):
            values = (high[part].float() - features.zero).mul_(_BYTE).add_(low[part])
            rows[part] = torch.addcmul(offset, rows[part], factor).addcmul_(values, features.step)
        return result

    def coded(self, features: torch.Tensor) -> _Codes:
        """Return codes of the activated sum."""
        one = torch.ones(features.shape[-1], dtype=torch.float64)
        return _coded(features, one, torch.zeros_like(one), self._slope)

    def plain(self, features: torch.Tensor) -> torch.Tensor:
        """Return the activated sum, written over it."""
        return functional.leaky_relu_(features, self._slope)


class _First(_Finish):
    """The first block, of a float32 image (channels, I, J, K)."""

    def __init__(self, block: Any) -> None:
        super().__init__(block)
        self._conv = block.conv

    def convolved(self, image: torch.Tensor) -> torch.Tensor:
        """Multiply matrices, plane by plane: torch is slow where few channels are convolved."""
        conv = self._conv
        image = functional.pad(image, [pad for pad in reversed(_padding(conv)) for _ in range(2)])
        weight = conv.weight.flatten(1).t()
        edges = conv.weight.shape[2:]
        shape = [n - edge + 1 for n, edge in zip(image.shape[1:], edges, strict=True)]
        result = image.new_empty((*shape, weight.shape[1]))
        for index, plane in enumerate(result):
            windows = image[:, index : index + edges[0]].unfold(2, edges[1], 1)
            windows = windows.unfold(3, edges[2], 1).permute(0, 1, 4, 5, 2, 3)
            rows = plane.view(-1, plane.shape[-1])
            torch.mm(windows.reshape(len(weight), -1).t(), weight, out=rows)
        return result


class _Join(_Finish):
    """Upsampling, joining with the skip, and the first block of a decoder stage."""

    def __init__(self, upsample: nn.ConvTranspose3d, block: Any) -> None:
        super().__init__(block)
        padding = _padding(block.conv)
        finer, direct = block.conv.weight.tensor_split([upsample.out_channels], dim=1)
        self._skip = _Convolution(direct, padding=padding)
        self._strides = [int(step) for step in upsample.stride]
        self._places = [
            (place, *_place(place, upsample, finer))
            for place in itertools.product(*(range(step) for step in self._strides))
        ]
        self._edges = None if upsample.bias is None else _edges(upsample.bias, finer, padding)

    def convolved(self, coarse: torch.Tensor, skip: _Codes) -> torch.Tensor:
        """Return (I, J, K, outputs) of the coarse float32 map and the codes of the skip."""
        features = self._skip(skip)
        lengths = coarse.shape[:3]
        channels_first = coarse.permute(3, 0, 1, 2)[None]
        for place, weight, reach in self._places:
            there = tuple(
                slice(at, None, step) for at, step in zip(place, self._strides, strict=True)
            )
            edges = [max(pair) for pair in reach]
            part = torch.mkldnn_convolution(
                channels_first, weight, None, edges, [1, 1, 1], [1, 1, 1], 1
            )[0].permute(1, 2, 3, 0)
            here = [edge - back for edge, (back, _) in zip(edges, reach, strict=True)]
            part = part[tuple(slice(at, at + n) for at, n in zip(here, lengths, strict=True))]
            features[there] += part
        if self._edges is not None:
            for place in _BORDER:
                features[tuple(_PARTS[at] for at in place)] += self._edges[place]
        return features


_PARTS = (slice(0, 1), slice(1, -1), slice(-1, None))
_BORDER = [place for place in itertools.product(range(3), repeat=3) if place != (1, 1, 1)]


def _edges(bias: torch.Tensor, finer: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
    """Return what is added along the edges as the upsampling's bias is missing beyond them.

    Returns
    -------
    (3, 3, 3, outputs) for the first, all inner and the last voxels of each axis; 0 for inner ones.
    """
    even = bias[None, :, None, None, None].expand(-1, -1, 3, 3, 3)
    sums = functional.conv3d(even, finer, padding=padding)[0].permute(1, 2, 3, 0)
    return sums - sums[1, 1, 1]


def _place(
    place: Sequence[int], upsample: nn.ConvTranspose3d, finer: torch.Tensor
) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """Join upsampling and convolution for one place in the block that a coarse voxel becomes.

    Returns
    -------
    weight
        (outputs, inputs, a, b, c) of the coarse map.
    reach
        How many coarse voxels it reaches back and ahead along each axis.
    """
    edges = finer.shape[2:]
    taps = [
        [divmod(at + tap - edge // 2, stride) for tap in range(edge)]
        for at, edge, stride in zip(place, edges, upsample.stride, strict=True)
    ]  # of each tap of the fine convolution: which coarse voxel, and the place in its block
    reach = [(-min(voxel for voxel, _ in axis), max(voxel for voxel, _ in axis)) for axis in taps]
    lengths = [back + ahead + 1 for back, ahead in reach]
    weight = finer.new_zeros((len(finer), upsample.in_channels, *lengths))
    sums, taps_first, upsample_first = (
        each.permute(2, 3, 4, 0, 1) for each in (weight, finer, upsample.weight)
    )
    for tap in itertools.product(*(range(edge) for edge in edges)):
        chosen = [axis[at] for axis, at in zip(taps, tap, strict=True)]
        to = tuple(voxel + back for (voxel, _), (back, _) in zip(chosen, reach, strict=True))
        inner = tuple(voxel for _, voxel in chosen)
        sums[to] += taps_first[tap] @ upsample_first[inner].t()
    return weight.contiguous(memory_format=torch.channels_last_3d), reach


class _Head:
    """The last layer, of a float32 map."""

    def __init__(self, conv: nn.Conv3d) -> None:
        self._weight = conv.weight.flatten(1).t().contiguous()
        self._bias = torch.zeros(len(conv.weight)) if conv.bias is None else conv.bias

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Map (I, J, K, C) to logits (classes, I, J, K)."""
        shape = features.shape[:3]
        logits = torch.empty((len(self._bias), *shape))
        for index, plane in enumerate(features):
            scores = torch.addmm(self._bias, plane.view(-1, plane.shape[-1]), self._weight)
            logits[:, index] = scores.t().view(-1, *shape[1:])
        return logits


class Int8UNet(nn.Module):
    """Runs nnU-Net's plain or residual-encoder U-Net, without deep supervision outputs.

    Parameters
    ----------
    network
        One for which `bears_int8` holds. It is left as it is; weights that are loaded into it later
        are converted at the next call.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network: Any = network
        self._stale = True
        network.register_load_state_dict_post_hook(self._note_new_weights)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map an image (1, channels, I, J, K) to float32 logits (1, classes, I, J, K)."""
        if self._stale:
            self._convert()
        features = self._first.coded(self._first.convolved(image[0]))
        skips = []
        for stage in self._upper:
            for block in stage:
                features = block.coded(block.convolved(features))
            skips.append(features)
        for block in self._bottom[:-1]:
            features = block.coded(block.convolved(features))
        last = self._bottom[-1]
        coarse = last.plain(last.convolved(features))
        for join, *blocks in self._decoder:
            last, result = join, join.convolved(coarse, skips.pop())
            for block in blocks:
                last, result = block, block.convolved(last.coded(result))
            coarse = last.plain(result)
        return self._head(coarse)[None]

    def _note_new_weights(self, *_: Any) -> None:
        self._stale = True

    def _convert(self) -> None:
        decoder = self.network.decoder
        stages = _stages(self.network)
        self._first = _First(stages[0].pop(0))
        depth = len(decoder.stages)
        self._upper: list[list[Any]]
        self._bottom: list[Any]
        *self._upper, self._bottom = (
            [_converted(block) for block in stage] for stage in stages[:-depth]
        )
        self._decoder: list[tuple[Any, ...]] = [
            (_Join(upsample, block), *(_Block(each) for each in blocks))
            for upsample, (block, *blocks) in zip(decoder.transpconvs, stages[-depth:], strict=True)
        ]
        self._head = _Head(decoder.seg_layers[-1])
        self._stale = False


def _converted(block: Any) -> _Block | _ResidualBlock:
    return _ResidualBlock(block) if hasattr(block, "conv2") else _Block(block)


def _padding(conv: nn.Conv3d) -> list[int]:
    return [int(edge) for edge in conv.padding]


def _chunks(rows: torch.Tensor) -> Iterator[slice]:
    count = max(1, _CHUNK // rows.shape[1])
    for start in range(0, len(rows), count):
        yield slice(start, start + count)


def _widened(rows: torch.Tensor) -> torch.Tensor:
    """Put several rows of few channels side by side, where that comes out even."""
    count = max(1, _WIDE // rows.shape[1])
    return rows.view(-1, count * rows.shape[1]) if len(rows) % count == 0 else rows
