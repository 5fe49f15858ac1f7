"""The device to compute on, and what computes there."""

from __future__ import annotations

import importlib.util

import torch

from siam_bids.errors import UsageError


def choose_device(requested: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `mps`.

    Raises
    ------
    UsageError
        No such device is available.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if requested == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    if not available[requested]:
        raise UsageError(f"No {requested} device is available.", "Use --device auto or cpu.")
    return torch.device(requested)


def has_openvino() -> bool:
    """Tell whether OpenVINO is installed, without importing it."""
    return importlib.util.find_spec("openvino") is not None
