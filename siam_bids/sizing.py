"""Time and memory that a scan will take, estimated from the model and the image headers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from siam_bids.nnunet import CONFIGURATION, NnunetModel, build_network

_CPU_RATE = 8e9  # multiply-adds a second and core, float32; 2 cores of an AMD EPYC gave 8.6e9
_GPU_RATE = 2e12
_START = 30.0  # seconds until the first scan begins, from a slow shared disk
_HANDLING = 1.5  # seconds to read, write and draw a scan of any size
_HANDLING_PER_VOXEL = 3e-7
_BASE = 0.7e9  # bytes: interpreter, libraries
_BYTES_PER_VOXEL = 40.0  # the scan as float32 and float64 while it is resampled, labels, figures
_MAPS_PER_TILE = 7.0  # feature maps of full resolution at once; 11.3 GB for SIAM v0.3's tile

Grid = tuple[Sequence[int], Sequence[float]]
"""Shape in voxels and voxel size in mm."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a job needs.

    Attributes
    ----------
    memory
        Bytes at the peak, for the largest scan.
    seconds
        Wall seconds of a scan, of the largest one.
    start
        Wall seconds until the first scan begins.
    """

    memory: float
    seconds: float
    start: float


def estimate(model: NnunetModel, grids: Sequence[Grid], *, cpus: int, gpu: bool) -> Size:
    """Estimate what the largest of some scans takes.

    Counts the multiply-adds of the network, tile by tile (half-overlapping), and the arrays held
    at once. Fit for asking a scheduler with some spare, not for promising.

    Parameters
    ----------
    grids
        Shapes and voxel sizes of the scans; without any, one of 256^3 at 1 mm stands in.
    """
    plan = _plan(model)
    tile: list[int] = plan["patch_size"]
    work = multiply_adds(plan["architecture"], tile, len(model.labels)) * len(model.folds)
    rate = _GPU_RATE if gpu else _CPU_RATE * cpus
    width = plan["architecture"]["arch_kwargs"]["features_per_stage"][0]
    activations = 0.0 if gpu else _MAPS_PER_TILE * 4 * width * math.prod(tile)
    memory = seconds = 0.0
    for shape, zooms in grids or [((256,) * 3, (1.0,) * 3)]:
        extent = sorted(n * size for n, size in zip(shape, zooms, strict=True))
        lengths = [
            max(round(mm / step), edge)
            for mm, step, edge in zip(extent, sorted(plan["spacing"]), sorted(tile), strict=True)
        ]
        tiles = math.prod(
            math.ceil((n - edge) / (edge / 2)) + 1
            for n, edge in zip(lengths, sorted(tile), strict=True)
        )
        voxels = math.prod(map(int, shape))
        scores = 4.0 * len(model.labels) * math.prod(lengths)
        need = _BASE + _BYTES_PER_VOXEL * voxels + 2 * scores + activations
        memory = max(memory, need)
        handling = _HANDLING + _HANDLING_PER_VOXEL * voxels
        seconds = max(seconds, handling + tiles * work / rate)
    return Size(memory=memory, seconds=seconds, start=_START)


def multiply_adds(architecture: dict[str, Any], tile: Sequence[int], classes: int) -> float:
    """Count the multiply-adds of one tile through the network, without computing anything."""
    with torch.device("meta"):
        network = build_network(architecture, channels=1, classes=classes)
        patch = torch.zeros((1, 1, *tile))
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(patch)
    return float(counter.get_total_flops()) / 2


def _plan(model: NnunetModel) -> dict[str, Any]:
    plans: dict[str, dict[str, Any]] = model.plans["configurations"]
    return plans.get(CONFIGURATION) or next(iter(plans.values()))
