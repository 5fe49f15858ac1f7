"""What computes a network: the common form of `TorchEngine` and `openvino_engine`."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from siam_bids.errors import ModelError
from siam_bids.inference.cost import Load
from siam_bids.nnunet.checkpoints import load_weights
from siam_bids.nnunet.lean_unet import LeanUNet
from siam_bids.nnunet.model import NnunetModel, empty_network


class Engine(Protocol):
    """A network with one set of weights at a time."""

    def load(self, path: Path) -> None:
        """Take the weights of a fold.

        Raises
        ------
        ModelError
            They are unusable or do not fit the network.
        """
        ...

    def __call__(self, tile: torch.Tensor) -> torch.Tensor:
        """Map a tile (1, channels, I, J, K) to logits (1, classes, I, J, K), both on the CPU.

        The logits may be overwritten, by the caller or by the next call.
        """
        ...

    def release(self) -> None:
        """Give up memory that is not needed until the next tile."""
        ...


class TorchEngine:
    """A network computed by torch: as it is, or by `LeanUNet`.

    On CUDA a network as it is runs by automatic mixed precision, as in stock nnU-Net.
    """

    def __init__(self, model: NnunetModel, device: torch.device, load: Load) -> None:
        self._network = empty_network(model, device)
        self._device = next(self._network.parameters()).device
        self._precision = getattr(torch, load.precision)
        self._mixed = device.type == "cuda" and not load.lean and load.precision != "float32"
        network = self._network
        if load.lean:
            network = LeanUNet(network, self._precision)
        self._run = network.eval()

    def load(self, path: Path) -> None:
        """Take the weights of a fold; see `Engine.load`."""
        fill_network(self._network, path)

    def __call__(self, tile: torch.Tensor) -> torch.Tensor:
        """Map a tile to logits; see `Engine`."""
        mixed = self._precision if self._mixed else None
        with torch.autocast(self._device.type, mixed, enabled=self._mixed):
            logits: torch.Tensor = self._run(tile.to(self._device))
        return logits.cpu()

    def release(self) -> None:
        """Do nothing: torch keeps no feature maps."""


def fill_network(network: nn.Module, path: Path) -> None:
    """Put the weights of a fold into a network.

    Raises
    ------
    ModelError
        They are unusable or do not fit.
    """
    try:
        network.load_state_dict(load_weights(path))
    except RuntimeError as error:
        raise ModelError(f"{path} does not fit the network in plans.json.") from error
