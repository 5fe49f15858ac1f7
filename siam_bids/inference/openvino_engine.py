"""Networks computed by OpenVINO on a CPU.

OpenVINO (https://docs.openvino.ai) takes about half of torch's time for the same sums in float32,
see benchmarks/engines.md. Only this module imports it, and without its telemetry, which would send
an event to a server with every import.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from siam_bids.errors import UsageError
from siam_bids.inference.cost import Load
from siam_bids.inference.device import has_openvino
from siam_bids.inference.engines import fill_network
from siam_bids.nnunet.model import NnunetModel, empty_network

_SPATIAL = np.array([2, 3, 4], np.int64)
_BLOCK = 12
"""Longest edge, in voxels, of a block that is summed up by itself."""


class OpenVinoEngine:
    """A network computed by OpenVINO on the CPU with as many threads as torch has.

    It is described and compiled in memory; no file is written.

    Raises
    ------
    UsageError
        OpenVINO is not installed.
    RuntimeError
        The network has a part that is not known here.
    """

    def __init__(self, model: NnunetModel, load: Load) -> None:
        if not has_openvino():
            raise UsageError(
                "OpenVINO is not installed.", "pip install openvino, or give --engine torch."
            )
        self._network = empty_network(model, torch.device("cpu")).eval()
        shape, exact = (1, model.channels, *load.tile), load.precision == "float32"
        self._graph = graph_of(self._network, shape, exact=exact)
        self._properties = {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[load.precision],
            "EXECUTION_MODE_HINT": "ACCURACY",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,  # other programs may run on the same cores
        }
        self._compiled: Any = None
        self._request: Any = None

    def load(self, path: Path) -> None:
        """Take the weights of a fold; see `Engine.load`."""
        self._compiled = self._request = None
        fill_network(self._network, path)  # the graph's own weights, which share their memory
        self._compiled = _openvino().Core().compile_model(self._graph, "CPU", self._properties)

    def __call__(self, tile: torch.Tensor) -> torch.Tensor:
        """Map a tile to logits; see `Engine`."""
        self._request = self._request or self._compiled.create_infer_request()
        given = {0: tile.contiguous().numpy()}
        answers = self._request.infer(given, share_inputs=True, share_outputs=True)
        return torch.from_numpy(answers[0])

    def release(self) -> None:
        """Let go of the feature maps."""
        self._request = None
        self._compiled.release_memory()


def graph_of(network: nn.Module, shape: tuple[int, ...], *, exact: bool = True) -> Any:
    """Describe a network to OpenVINO for inputs of a shape; weights are not copied.

    Parameters
    ----------
    exact
        Sum in blocks where instances are normalised. OpenVINO's own operation adds up all voxels of
        a tile in float32, one by one: logits were off by 1e-4 of their spread, which float16 sums
        of tiles turn into other labels (1 voxel in 1000). In bfloat16 its own operation is better.

    Raises
    ------
    RuntimeError
        It does something that is not known here.
    """
    from torch import fx  # late: a tenth of a second

    library = _openvino()
    ops, layers = library.opset13, dict(network.named_modules())
    values: dict[Any, Any] = {}
    inputs: list[Any] = []
    for node in fx.symbolic_trace(network).graph.nodes:
        arguments, words = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        if node.op == "output":
            return library.Model([arguments[0]], inputs)
        if node.op == "placeholder":
            values[node] = ops.parameter(list(shape), np.float32)
            inputs.append(values[node])
        elif node.op == "call_module":
            values[node] = _described(ops, layers[node.target], *arguments, exact=exact, **words)
        elif node.target in _FUNCTIONS:
            values[node] = getattr(ops, _FUNCTIONS[node.target])(*arguments, **words)
        else:
            raise RuntimeError(f"{node.op} {node.target} is not known")
    raise RuntimeError("the network gives nothing")


_FUNCTIONS = {operator.add: "add", operator.iadd: "add", torch.add: "add", torch.cat: "concat"}
"""Functions that networks call themselves, and the operations of OpenVINO that do so."""


def _described(ops: Any, layer: nn.Module, features: Any, *, exact: bool) -> Any:
    """Describe one layer in the words of an OpenVINO operator set."""
    if exact and isinstance(layer, nn.InstanceNorm3d):
        return _exact_normalisation(ops, layer, features)
    describe: Callable[[Any, Any, Any], Any] | None = _LAYERS.get(type(layer))
    if describe is None:
        raise RuntimeError(f"{type(layer).__name__} is not known")
    return describe(ops, layer, features)


def _convolution(ops: Any, layer: nn.Conv3d, features: Any) -> Any:
    if layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise RuntimeError(f"{layer} is not known")
    padding = list(layer.padding)
    found = ops.convolution(
        features, _constant(ops, layer.weight), list(layer.stride), padding, padding,
        list(layer.dilation),
    )  # fmt: skip
    return _plus_bias(ops, layer, found)


def _transposed(ops: Any, layer: nn.ConvTranspose3d, features: Any) -> Any:
    if layer.groups != 1:
        raise RuntimeError(f"{layer} is not known")
    padding = list(layer.padding)
    found = ops.convolution_backprop_data(
        features, _constant(ops, layer.weight), list(layer.stride),
        pads_begin=padding, pads_end=padding, dilations=list(layer.dilation),
        output_padding=list(layer.output_padding),
    )  # fmt: skip
    return _plus_bias(ops, layer, found)


def _exact_normalisation(ops: Any, layer: nn.InstanceNorm3d, features: Any) -> Any:
    """Normalise by means of the means of equal blocks."""
    if layer.track_running_stats or not layer.affine:
        raise RuntimeError(f"{layer} is not known")
    lengths = list(features.get_output_partial_shape(0).to_shape())[2:]
    block = [max(edge for edge in range(1, _BLOCK + 1) if n % edge == 0) for n in lengths]

    def mean(values: Any) -> Any:
        blocks = ops.avg_pool(values, block, [0, 0, 0], [0, 0, 0], block, True, "floor")
        return ops.reduce_mean(blocks, ops.constant(_SPATIAL), True)

    centred = ops.subtract(features, mean(features))
    variance = ops.add(mean(ops.multiply(centred, centred)), ops.constant(np.float32(layer.eps)))
    scale = ops.divide(_per_channel(ops, layer.weight), ops.sqrt(variance))
    return _plus_bias(ops, layer, ops.multiply(centred, scale))


def _normalisation(ops: Any, layer: nn.InstanceNorm3d, features: Any) -> Any:
    if layer.track_running_stats:
        raise RuntimeError(f"{layer} is not known")
    axes = ops.constant(_SPATIAL)
    found = ops.mvn(features, axes, True, layer.eps, "inside_sqrt")
    if layer.affine:
        found = ops.multiply(found, _per_channel(ops, layer.weight))
    return _plus_bias(ops, layer, found)


def _average_pool(ops: Any, layer: nn.AvgPool3d, features: Any) -> Any:
    def edges(size: int | tuple[int, ...]) -> list[int]:
        return [size] * 3 if isinstance(size, int) else list(size)

    if layer.divisor_override is not None:
        raise RuntimeError(f"{layer} is not known")
    padding = edges(layer.padding)
    return ops.avg_pool(
        features, edges(layer.stride), padding, padding, edges(layer.kernel_size),
        not layer.count_include_pad, "ceil" if layer.ceil_mode else "floor",
    )  # fmt: skip


def _leaky(ops: Any, layer: nn.LeakyReLU, features: Any) -> Any:
    return ops.prelu(features, ops.constant(np.array([layer.negative_slope], np.float32)))


def _same(_ops: Any, _layer: nn.Module, features: Any) -> Any:
    return features


_LAYERS: dict[type[nn.Module], Callable[[Any, Any, Any], Any]] = {
    nn.Conv3d: _convolution,
    nn.ConvTranspose3d: _transposed,
    nn.InstanceNorm3d: _normalisation,
    nn.AvgPool3d: _average_pool,
    nn.LeakyReLU: _leaky,
    nn.ReLU: lambda ops, _, features: ops.relu(features),
    nn.Identity: _same,
    nn.Dropout: _same,
    nn.Dropout3d: _same,
}
"""What nnU-Net's networks are made of, when they do not train."""


def _plus_bias(ops: Any, layer: Any, features: Any) -> Any:
    if layer.bias is None:
        return features
    return ops.add(features, _per_channel(ops, layer.bias))


def _per_channel(ops: Any, weights: torch.Tensor) -> Any:
    return _constant(ops, weights.view(1, -1, 1, 1, 1))


def _constant(ops: Any, weights: torch.Tensor) -> Any:
    array: npt.NDArray[np.float32] = weights.detach().numpy()
    return ops.constant(array, shared_memory=True)


def _openvino() -> Any:
    """Import OpenVINO as if its telemetry was not installed."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino
    import openvino.opset13

    return openvino
