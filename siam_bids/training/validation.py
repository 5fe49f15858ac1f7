"""Validation of a network on held-out heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from siam_bids.synthesis.label_maps import Anatomy
from siam_bids.training.config import TrainingConfig
from siam_bids.training.loss import TargetGroups, marginal_loss, mixed_precision
from siam_bids.training.patches import (
    PatchSource,
)


class Validation:
    """Fixed patches of synthetic heads that are not trained on, at full difficulty.

    Parameters
    ----------
    anatomies
        Held-out heads, each as likely as another.
    count
        Number of patches, each from an image of its own; they stay in memory.
    """

    def __init__(
        self,
        anatomies: Sequence[Anatomy],
        groups: TargetGroups,
        config: TrainingConfig,
        count: int = 8,
    ) -> None:
        maps = tuple((Path(), "") for _ in anatomies)
        source = PatchSource(anatomies, groups, replace(config, maps=maps, pool=1, fresh_every=1))
        rng = np.random.default_rng((2026, 11))
        patches = (source.patch(rng, 1.0) for _ in range(count))
        self._patches = [(image, target.half()) for image, target in patches]
        self._groups = groups

    def dice(self, network: nn.Module, weights: dict[str, torch.Tensor]) -> float:
        """Return the mean soft Dice, over patches and the classes in each, of such weights."""
        scores = []
        with torch.no_grad(), _weights_for_a_while(network, weights):
            for image, target in self._patches:
                with mixed_precision(image.device):
                    logits = network(image)
                _, dice = marginal_loss(logits, target.float(), self._groups)
                scores.append(dice[1:].nanmean())
        return float(torch.stack(scores).nanmean())


@contextmanager
def _weights_for_a_while(network: nn.Module, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Let a network have other weights, in its own tensors, and then those it had.

    torch.func.functional_call does not give them back to a network that lists its layers twice.
    """
    kept = {name: value.clone() for name, value in network.named_parameters()}
    try:
        for name, value in network.named_parameters():
            value.copy_(weights[name])
        yield
    finally:
        for name, value in network.named_parameters():
            value.copy_(kept[name])
