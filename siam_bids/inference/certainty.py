"""How sure the labels are."""

from __future__ import annotations

import numpy as np
import torch


class Certainty:
    """Sums up, slab by slab, how sure a network is of the classes it chose.

    Parameters
    ----------
    classes
        Number of classes, background included.
    """

    def __init__(self, classes: int) -> None:
        self._chances = np.zeros(classes)
        self._voxels = np.zeros(classes, np.int64)
        self._entropy = 0.0

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Count one slab: (classes, J, K) logits and the (J, K) classes chosen from them.

        With z the logits and p their softmax, the entropy is log(sum(exp z)) - sum(p z) (Shannon,
        1948), divided by log(classes).
        """
        classes = len(self._voxels)
        chosen = labels.ravel().long()
        inside = torch.nonzero(chosen).squeeze(1)
        if not inside.numel():
            return
        scores = logits.reshape(classes, -1)[:, inside].float()
        chosen = chosen[inside]
        normaliser = scores.logsumexp(0)
        chance = (scores.gather(0, chosen[None])[0] - normaliser).exp()
        entropy = normaliser - ((scores - normaliser).exp_() * scores).sum(0)
        self._entropy += float(entropy.sum(dtype=torch.float64)) / float(np.log(classes))
        self._voxels += np.bincount(chosen.numpy(), minlength=classes)
        self._chances += np.bincount(chosen.numpy(), chance.double().numpy(), minlength=classes)

    def confidence(self) -> dict[int, float]:
        """Return the mean probability of each class over the voxels that got it."""
        return {
            int(index): float(self._chances[index] / self._voxels[index])
            for index in np.flatnonzero(self._voxels)
        }

    def entropy(self) -> float | None:
        """Return the mean normalised entropy over all labelled voxels; None without any."""
        total = int(self._voxels.sum())
        return self._entropy / total if total else None
