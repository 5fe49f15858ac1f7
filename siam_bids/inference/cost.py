"""Estimated time and memory of a scan, from its size and that of the network.

Used to decide whether a scan fits into memory, and to size jobs of a scheduler.
benchmarks/memory.md compares it with what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from siam_bids.config import Inference
from siam_bids.errors import UsageError
from siam_bids.image.grid import Grid
from siam_bids.image.loading import BYTES_PER_VOXEL
from siam_bids.inference.device import has_openvino
from siam_bids.inference.sliding_window import TILE_STEP, tile_starts
from siam_bids.models.settings import Focus
from siam_bids.nnunet.lean_unet import SLAB, is_unet
from siam_bids.nnunet.model import NnunetModel, axes_to_mirror
from siam_bids.nnunet.preprocessing import seen_shape
from siam_bids.support.cpu import has_fast_bfloat16


def load_of(
    model: NnunetModel, device: torch.device, options: Inference, *, lean: bool = False
) -> Load:
    """Say what a model's network asks of a machine, without loading or computing anything.

    On a CPU, U-Nets are run by OpenVINO where it is installed, else by torch in pieces (`lean`);
    so they are where that is asked for to save memory, with `--low-mem`, and on a small GPU.

    Raises
    ------
    UsageError
        The options ask for OpenVINO elsewhere than on a CPU, or in a precision that it lacks here.
    """
    network = model.sketch
    first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv3d))
    unet, on_cpu = is_unet(network), device.type == "cpu"
    saving = lean or options.low_memory
    precision = _precision(model, device, options.precision, unet=unet)
    engine = _engine(device, options.engine, precision, wanted=unet and not saving)
    return Load(
        tile=tuple(model.plan.patch_size),
        classes=len(model.labels),
        folds=len(options.folds or model.folds),
        parameters=sum(value.numel() for value in network.parameters()),
        width=first.out_channels,
        residual=any(hasattr(block, "conv2") for block in network.modules()),
        precision=precision,
        engine=engine,
        unet=unet,
        lean=(saving or on_cpu) and unet and engine == "torch",
        on_cpu=on_cpu,
        low_memory=options.low_memory,
        flips=2 ** len(axes_to_mirror(model, options)),
    )


def _precision(model: NnunetModel, device: torch.device, requested: str, *, unet: bool) -> str:
    """Return the precision of a network on a device; `auto` is resolved."""
    if device.type == "cuda":
        return "float16" if requested == "auto" else requested
    if device.type != "cpu" or not unet:
        return "float32"
    if requested != "auto":
        return requested
    return "bfloat16" if "bfloat16" in model.precisions and has_fast_bfloat16() else "float32"


def _engine(device: torch.device, requested: str, precision: str, *, wanted: bool) -> str:
    """Return what runs a network; `auto` is OpenVINO where that can, is there and is `wanted`."""
    on_cpu, able = device.type == "cpu", precision == "float32" or has_fast_bfloat16()
    if requested == "auto":
        return "openvino" if on_cpu and able and wanted and has_openvino() else "torch"
    if requested == "openvino" and not on_cpu:
        raise UsageError(f"OpenVINO runs on a CPU, not on {device.type}.", "Give --device cpu.")
    if requested == "openvino" and not able:
        raise UsageError(
            f"This CPU is not fast in {precision}; OpenVINO would use float32.",
            "Omit --precision, or give --engine torch.",
        )
    return requested


def estimate(
    model: NnunetModel,
    grids: Sequence[Grid],
    device: torch.device,
    options: Inference,
    *,
    cpus: int,
    focus: Focus | None = None,
    load: Load | None = None,
) -> Cost:
    """Estimate time and memory of the largest of some scans; without any, of 256^3 at 1 mm.

    Suitable for job sizes with some reserve, not as a guarantee. `focus` tells what the network
    will see of a scan, all of it by default; `load` is `load_of` the model, if that is known.
    """
    load = load or load_of(model, device, options)
    scans = [
        (math.prod(grid.shape), seen_shape(model, focus.typical(grid) if focus else grid, options))
        for grid in grids or [Grid((256, 256, 256), np.eye(4))]
    ]
    work, step = model.multiply_adds, focus.step if focus else TILE_STEP
    return Cost(
        memory=max(load.memory(*scan) for scan in scans),
        answer=max(load.answer(*scan) for scan in scans),
        seconds=max(
            load.seconds(*scan, multiply_adds=work, cpus=cpus, step=step) for scan in scans
        ),
    )


_PROGRAM = 0.75e9  # bytes: interpreter, libraries
_NEIGHBOURS = 24.0  # bytes per voxel of the next scan being read and the last being written
_RESAMPLING = 24.0  # bytes per voxel of the network's grid: cubic splines in float64
_CPU_RATES = {"float32": 20e9, "bfloat16": 40e9}
"""Multiply-adds a second and core.

Measured: 20e9 to 29e9 on AMD EPYC cores with AVX2 alone; 64e9 to 108e9 in float32 and 140e9 to
230e9 in bfloat16 on such cores with AVX-512 (benchmarks/engines.md).
"""
_GPU_RATE = 2e12
_START = 30.0  # seconds until the first scan begins, from a slow shared disk
_HANDLING = 3.0  # seconds to read, refine, write and draw a scan of any size
_HANDLING_PER_VOXEL = 1.2e-6


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a network asks of the machine that runs it.

    Attributes
    ----------
    tile
        Edges in voxels.
    classes, folds, flips
        How many there are; `flips` are the ways a tile is mirrored, itself included.
    parameters
        Of one fold.
    width
        Feature maps of full resolution.
    residual
        Whether the encoder has residual blocks, which hold one map more.
    precision
        Of the feature maps: `float32`, `float16` or `bfloat16`.
    lean
        Whether it is computed in pieces (`LeanUNet`), or by OpenVINO.
    on_cpu
        Else a GPU holds weights and feature maps.
    low_memory
        Whether the summed logits are kept on disk.
    """

    tile: tuple[int, ...]
    classes: int
    folds: int
    parameters: int
    width: int
    residual: bool
    precision: str
    lean: bool
    on_cpu: bool
    engine: str = "torch"
    unet: bool = True
    low_memory: bool = False
    flips: int = 1

    def network_memory(self) -> float:
        """Estimate the bytes of a forward pass where it runs: weights, feature maps, logits.

        The lean network holds the skip of the first stage and either one more map of that size
        (in a residual block), or half a map in the stages below, or the tile's logits; and copies
        of a few slabs. The plain one holds five maps (skip, upsampled, both joined, convolved);
        so does OpenVINO, or somewhat less, and the weights twice: torch's and its own order.
        """
        size = 4 if self.precision == "float32" else 2
        tile = math.prod(self.tile)
        one_map = size * self.width * tile
        logits = 4 * self.classes * tile
        if not self.lean:
            own = size * self.parameters if self.engine == "openvino" else 0
            return float(4 * self.parameters + own + 5 * one_map + logits)
        more = max(one_map if self.residual else one_map / 2, logits)
        slabs = 6 * size * min(SLAB, self.width * tile)
        return float(size * self.parameters + one_map + more + slabs)

    def memory(self, voxels: int, shape: Sequence[int]) -> float:
        """Estimate the most bytes of main memory at once, program and neighbouring scans included.

        Parameters
        ----------
        voxels
            Of the scan.
        shape
            (I, J, K) of the scan as the network sees it, at least a tile.
        """
        seen = math.prod(shape)
        sums = 0 if self.low_memory else 2 * self.classes * seen * min(2, self.folds)
        loading = 3 * 4 * self.parameters  # the network, and a checkpoint with optimiser state
        following = 4 * self.parameters if self.folds > 1 else 0  # weights of the fold after
        running = 8 * seen + sums + following + (self.network_memory() if self.on_cpu else 0)
        scans = (BYTES_PER_VOXEL + _NEIGHBOURS) * voxels
        return _PROGRAM + scans + max(_RESAMPLING * seen, loading, running)

    def answer(self, voxels: int, shape: Sequence[int]) -> float:
        """Return the bytes that an ensemble keeps of a scan for its probabilities, see `memory`."""
        sums = 0 if self.low_memory else 2 * self.classes * math.prod(shape)
        return float(sums + 4 * voxels)

    def seconds(
        self,
        voxels: int,
        shape: Sequence[int],
        *,
        multiply_adds: float,
        cpus: int,
        step: float = TILE_STEP,
    ) -> float:
        """Estimate the wall seconds of a scan.

        Parameters
        ----------
        voxels, shape
            As for `memory`.
        multiply_adds
            Of one tile through one fold.
        step
            Tile edges between two tiles, at most.
        """
        tiles = math.prod(
            len(tile_starts(length, edge, step))
            for length, edge in zip(shape, self.tile, strict=True)
        )
        rate = _CPU_RATES[self.precision] * cpus if self.on_cpu else _GPU_RATE
        handling = _HANDLING + _HANDLING_PER_VOXEL * voxels
        return handling + tiles * self.folds * self.flips * multiply_adds / rate


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a job needs.

    Attributes
    ----------
    memory
        Bytes at the peak, for the largest scan.
    seconds
        Wall seconds of a scan, of the largest one.
    answer
        Bytes that stay while other models of an ensemble run, see `Load.answer`.
    start
        Wall seconds until the first scan begins.
    """

    memory: float
    seconds: float
    answer: float = 0.0
    start: float = _START
