"""A network averaged over mirrored tiles."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import nn


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
