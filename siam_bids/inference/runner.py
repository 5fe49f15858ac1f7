"""Running the folds of a network."""

from __future__ import annotations

import contextlib
import io

import torch

with contextlib.redirect_stdout(io.StringIO()):  # it prints advice on environment variables
    pass


def reduced_precision(device: torch.device) -> torch.dtype | None:
    """Return float16 on CUDA as stock nnU-Net does, float32 (None) elsewhere."""
    return torch.float16 if device.type == "cuda" else None
