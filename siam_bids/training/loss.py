"""The loss of a network that is taught by merged classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from siam_bids.support.cpu import has_fast_bfloat16
from siam_bids.synthesis.label_maps import SourceTable
from siam_bids.training.config import CLASSES


@dataclass(frozen=True)
class TargetGroups:
    """Sets of classes that the truth of a voxel does not distinguish; the first 18 are singletons.

    Attributes
    ----------
    members
        Class indices of each group.
    """

    members: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tables: Sequence[SourceTable]) -> TargetGroups:
        """Collect the groups that source tables use."""
        merged = {target for table in tables for target in table.target if len(target) > 1}
        return cls((*((index,) for index in range(CLASSES)), *sorted(merged)))

    def of_codes(self, table: SourceTable) -> npt.NDArray[np.int64]:
        """Return the group of each code of `table`."""
        return np.array([self.members.index(target) for target in table.target], np.int64)


def marginal_loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    groups: TargetGroups,
    dice_weight: float = 1.0,
    scored: Sequence[int] = range(1, CLASSES),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and soft Dice that accept any of the classes a map does not distinguish.

    Cross-entropy sums the probabilities of a group's members (marginal loss, Shi et al., Med.
    Image Anal. 2021). Dice of a class leaves out the voxels of merged groups that contain it.

    Parameters
    ----------
    logits
        (B, 18, I, J, K).
    target
        (B, groups, I, J, K), each voxel's share of each group (partial volume), summing to 1.
    scored
        Classes whose Dice counts.

    Returns
    -------
    loss
        Scalar, cross-entropy + dice_weight (1 - mean Dice of the scored classes present).
    dice
        (18,) soft Dice per class, NaN for classes absent from the target.
    """
    log_p = functional.log_softmax(logits.float(), dim=1)
    cross_entropy = -(target[:, :CLASSES] * log_p).sum(1)
    p = log_p.exp()
    known = []
    merged_share = {index: torch.zeros((), device=p.device) for index in range(CLASSES)}
    for place in range(CLASSES, len(groups.members)):
        share = target[:, place]
        members = list(groups.members[place])
        cross_entropy = cross_entropy - share * torch.logsumexp(log_p[:, members], dim=1)
        for member in members:
            merged_share[member] = merged_share[member] + share
    dims = (0, 2, 3, 4)
    truth = target[:, :CLASSES]
    overlap = (p * truth).sum(dims)
    size = p.sum(dims) + truth.sum(dims)
    for index, share in merged_share.items():
        known.append((p[:, index] * share).sum() if share.ndim else share)
    size = size - torch.stack(known)
    present = truth.sum(dims) > 0
    dice = 2 * overlap / size.clamp_min(1e-6)
    wanted = torch.zeros_like(present)
    wanted[list(scored)] = present[list(scored)]
    mean = (dice * wanted).sum() / wanted.sum().clamp_min(1)
    loss = cross_entropy.mean() + dice_weight * (1 - mean)
    return loss, torch.where(present, dice, torch.nan).detach()


def mixed_precision(device: torch.device) -> torch.autocast:
    """Return a context in bfloat16, but on CPUs that would only emulate it, 50 times slower."""
    wanted = device.type != "cpu" or has_fast_bfloat16()
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)
