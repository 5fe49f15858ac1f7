"""A network averaged over mirrored tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import torch


class Mirrored:
    """Averages a network's logits over all combinations of mirrored axes, as nnU-Net does.

    Parameters
    ----------
    network
        Maps a tile to logits, which it may overwrite when it is called again.
    axes
        Spatial axes, 0 to 2.
    """

    def __init__(
        self, network: Callable[[torch.Tensor], torch.Tensor], axes: Sequence[int]
    ) -> None:
        self.network = network
        spatial = [axis + 2 for axis in axes]
        self.flips = [
            flip for count in range(len(axes) + 1) for flip in combinations(spatial, count)
        ]

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Map an image (1, channels, I, J, K) to logits (1, classes, I, J, K)."""
        total = self.network(image).clone()
        for flip in self.flips[1:]:
            total += self.network(image.flip(flip)).flip(flip)
        return total.div_(len(self.flips))
