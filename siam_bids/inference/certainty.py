"""How sure the labels are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from siam_bids.image.labels import LabelTable

_LOG2_E = math.log2(math.e)


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

        A voxel counts if its class is not background; that of the highest logit is expected then.
        With p the softmax, the entropy is -sum(p log p) (Shannon, 1948), divided by log(classes).
        """
        classes = len(self._voxels)
        scores = logits.float().log_softmax(0)
        chance = scores.amax(0).exp_()
        entropy = torch.exp2(scores * _LOG2_E).mul_(scores).sum(0)  # torch.exp takes longer
        entropy *= labels > 0
        self._entropy -= float(entropy.sum(dtype=torch.float64)) / float(np.log(classes))
        chosen = labels.ravel().numpy()
        self._voxels += np.bincount(chosen, minlength=classes)
        self._chances += np.bincount(chosen, chance.ravel().numpy(), minlength=classes)
        self._voxels[0] = self._chances[0] = 0

    def move(
        self,
        labels: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]],
        chances: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
    ) -> None:
        """Count voxels (n,) to the class that they got later; the entropy stays.

        Parameters
        ----------
        labels
            Classes before and after.
        chances
            Probability of each.
        """
        classes = len(self._voxels)
        for sign, chosen, chance in zip((-1, 1), labels, chances, strict=True):
            inside = chosen > 0
            self._voxels += sign * np.bincount(chosen[inside], minlength=classes)
            self._chances += sign * np.bincount(chosen[inside], chance[inside], minlength=classes)

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


class LesionChances:
    """The probability of the lesion labels in the voxels that get one, plane by plane.

    Attributes
    ----------
    indices
        Of the labels that stand for lesions.
    chances
        (I, J, K) float16, 0 outside of lesions.
    """

    def __init__(self, shape: Sequence[int], table: LabelTable) -> None:
        self.indices = [label.index for label in table.of_role("lesion")]
        self.chances = np.zeros(tuple(shape) if self.indices else (0, 0, 0), np.float16)
        self._place = 0

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Take the next plane: (classes, J, K) logits and the (J, K) classes chosen from them."""
        place, self._place = self._place, self._place + 1
        for index in self.indices:
            if (chosen := labels == index).any():
                chances = logits[:, chosen].float().softmax(0)[index]
                self.chances[place][chosen.numpy()] = chances.numpy()
