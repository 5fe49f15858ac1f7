"""Checkpoints: reading weights without running code, and their conversion."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from siam_bids.errors import ModelError
from siam_bids.models.folder import CHECKPOINT, CONVERTED
from siam_bids.support.atomic_files import atomic

with contextlib.redirect_stdout(io.StringIO()):  # it prints advice on environment variables
    pass


_HARMLESS: list[Any] = [
    np.dtype,
    np.ndarray,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    np.float64(0).__reduce__()[0],  # the functions that rebuild a number and an array
    np.zeros(0).__reduce__()[0],
]
"""What stock nnU-Net checkpoints hold beside tensors (training logs): plain numpy numbers."""


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read the network weights of a checkpoint, or of its conversion, executing no code in it.

    Raises
    ------
    ModelError
        The file is damaged, is no nnU-Net checkpoint, or holds more than tensors and numbers.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as content:
                aliases: dict[str, str] = json.loads(content.metadata()["aliases"])
                tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
            raise ModelError(f"{path} is damaged: {error}") from error
        return {**tensors, **{name: tensors[twin] for name, twin in aliases.items()}}
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
        weights: dict[str, torch.Tensor] = content["network_weights"]
    except (OSError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{path} is no usable checkpoint: {reason}") from error
    return {name.removeprefix("module."): value for name, value in weights.items()}


def convert_checkpoints(folder: Path) -> None:
    """Replace every checkpoint of a model folder by a safetensors file of its network weights.

    That leaves out the optimiser's state and anything that could hold code. Weights are written
    in float16 where that loses nothing, else in float32, so the network stays the same.

    Raises
    ------
    ModelError
        A checkpoint is unusable, see `load_weights`.
    """
    for path in sorted(folder.glob(f"fold_*/{CHECKPOINT}")):
        tensors: dict[str, torch.Tensor] = {}
        aliases: dict[str, str] = {}  # nnU-Net lists each layer under several names
        names: dict[tuple[int, torch.Size], str] = {}
        for name, value in load_weights(path).items():
            first = names.setdefault((value.data_ptr(), value.shape), name)
            if first == name:
                tensors[name] = _halved(value)
            else:
                aliases[name] = first
        with atomic(path.with_name(CONVERTED)) as scratch:
            axes = json.dumps(mirror_axes(path))
            save_file(tensors, scratch, {"aliases": json.dumps(aliases), "mirror_axes": axes})
        path.unlink()


def _halved(weights: torch.Tensor) -> torch.Tensor:
    half = weights.half()
    return (half if torch.equal(half.to(weights.dtype), weights) else weights).contiguous()


def mirror_axes(path: Path) -> tuple[int, ...]:
    """Return the axes (0 to 2) along which a fold may be mirrored, as its checkpoint says."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as content:
            axes = json.loads(content.metadata().get("mirror_axes", "[]"))
    else:
        with torch.serialization.safe_globals(_HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        axes = content.get("inference_allowed_mirroring_axes") or ()
    return tuple(int(axis) for axis in axes)
