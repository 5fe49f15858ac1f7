"""The log of a training session."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from siam_bids.image.labels import siam_labels


class StepLog:
    """Means over the steps since the last row, as rows of a CSV file.

    Parameters
    ----------
    path
        The file; a row is added to those that are there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._losses: list[float] = []
        self._dice: list[npt.NDArray[np.float32]] = []

    def add(self, loss: float, dice: torch.Tensor) -> None:
        """Note the loss of a step and its Dice by class (NaN for classes that were absent)."""
        self._losses.append(loss)
        self._dice.append(dice.cpu().numpy())

    def write(
        self, step: int, minutes: float, rate: float, difficulty: float, validation: float | None
    ) -> str:
        """Add a row, and return it as text; `minutes` are those of this session."""
        table = np.stack(self._dice)
        seen = np.maximum((~np.isnan(table)).sum(0), 1)
        dice = np.nansum(table, 0) / seen
        names = [label.name for label in siam_labels()]
        row: dict[str, Any] = {
            "step": step,
            "minutes": round(minutes, 2),
            "rate": f"{rate:.2e}",
            "difficulty": round(difficulty, 3),
            "loss": round(float(np.mean(self._losses)), 4),
            **{
                f"dice_{name}": round(float(value), 3)
                for name, value in zip(names, dice, strict=True)
            },
        }
        if validation is not None:
            row["validation"] = round(validation, 4)
        rows = [row]
        if self._path.exists():
            with self._path.open(newline="", encoding="utf-8") as stream:
                rows = [*csv.DictReader(stream), row]
        part = self._path.with_name(self._path.name + ".part")
        with part.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(
                stream, list(dict.fromkeys(key for each in rows for key in each))
            )
            writer.writeheader()
            writer.writerows(rows)
        part.replace(self._path)
        self._losses, self._dice = [], []
        return ", ".join(f"{key} {value}" for key, value in row.items())
