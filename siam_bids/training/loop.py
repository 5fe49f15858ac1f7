"""The training, from the first step to the last."""

from __future__ import annotations

import csv
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.multiprocessing.spawn import start_processes

from siam_bids.errors import UsageError
from siam_bids.image.labels import siam_labels
from siam_bids.synthesis.label_maps import Anatomy
from siam_bids.training.config import TrainingConfig
from siam_bids.training.local_sgd import Replicas
from siam_bids.training.loss import TargetGroups, marginal_loss, mixed_precision
from siam_bids.training.patches import (
    PatchSource,
    load_anatomies,
)
from siam_bids.training.trainer import Trainer
from siam_bids.training.validation import Validation
from siam_bids.training.warm_start import settle

logger = logging.getLogger(__name__)


def train(config: TrainingConfig) -> Trainer:
    """Run one leg of training and save its state.

    Raises
    ------
    UsageError
        No label maps, or several processes on one GPU.
    """
    if not config.maps:
        raise UsageError("No label maps to train on.", "Name a folder that holds some.")
    if config.processes > 1 and config.device != "cpu":
        raise UsageError("--processes is for CPUs.", "Omit it, or give --device cpu.")
    anatomies = load_anatomies(config.maps, config.folder / "anatomies")
    if config.processes == 1:
        return _leg(Replicas(), config, anatomies)
    threads = torch.get_num_threads()
    each = max(1, threads // config.processes)
    with tempfile.TemporaryDirectory(prefix="siam-bids-") as place:
        meeting_point = Path(place) / "meeting"
        others = start_processes(
            _other_replica, (config, meeting_point, each), config.processes - 1, join=False
        )
        torch.set_num_threads(each)
        try:
            with Replicas(0, config.processes).at(meeting_point) as replicas:
                return _leg(replicas, config, anatomies)
        finally:
            torch.set_num_threads(threads)
            while not others.join():
                pass


def _other_replica(place: int, config: TrainingConfig, meeting_point: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    with Replicas(1 + place, config.processes).at(meeting_point) as replicas:
        _leg(replicas, config, load_anatomies(config.maps, config.folder / "anatomies"))


def _leg(replicas: Replicas, config: TrainingConfig, anatomies: Sequence[Anatomy]) -> Trainer:
    trainer = Trainer(config)
    held_out = load_anatomies(config.validation, config.folder / "anatomies")
    groups = TargetGroups.of([anatomy.table for anatomy in (*anatomies, *held_out)])
    source = PatchSource(anatomies, groups, config)
    validation = Validation(held_out, groups, config) if held_out and not replicas.rank else None

    def loss_of(image: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with mixed_precision(image.device):
            logits = trainer.network(image)
        return marginal_loss(logits, target, groups, config.dice_weight)

    if trainer.unsettled:
        rng = np.random.default_rng(config.seed)
        settle(trainer.network, [source.patch(rng, 1.0)[0] for _ in range(config.pool)])
    torch.backends.cudnn.benchmark = True  # all patches have one shape
    forward = torch.compile(loss_of, dynamic=False) if config.compile else loss_of
    log = _Log(config.folder / "log.csv")
    begin = last_save = time.monotonic()
    for share in replicas.leg(60 * config.minutes, trainer.shared):
        rng = np.random.default_rng((config.seed, trainer.step, replicas.rank))
        difficulty = 1.0 if trainer.pretrained else min(1.0, trainer.step / config.ramp_steps)
        image, target = source.batch(rng, difficulty)
        rate = trainer.learning_rate(share)
        for group in trainer.optimizer.param_groups:
            group["lr"] = rate
        loss, dice = forward(image, target)
        trainer.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trainer.network.parameters(), 5.0)
        trainer.optimizer.step()
        trainer.step += 1
        keep = min(config.ema, trainer.step / (trainer.step + 10))
        with torch.no_grad():
            for name, value in trainer.network.named_parameters():
                trainer.average[name].lerp_(value, 1 - keep)
        if replicas.rank > 0:
            continue
        log.add(loss.item(), dice)
        if trainer.step % 100 == 0:
            minutes = (time.monotonic() - begin) / 60
            score = validation.dice(trainer.network, trainer.average) if validation else None
            logger.info("%s", log.write(trainer.step, minutes, rate, difficulty, score))
        if time.monotonic() - last_save > 300:
            trainer.save()
            last_save = time.monotonic()
    if replicas.rank == 0:
        trainer.save()
    return trainer


class _Log:
    """Means over the last steps, as CSV rows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._losses: list[float] = []
        self._dice: list[npt.NDArray[np.float32]] = []

    def add(self, loss: float, dice: torch.Tensor) -> None:
        self._losses.append(loss)
        self._dice.append(dice.cpu().numpy())

    def write(
        self, step: int, minutes: float, rate: float, difficulty: float, validation: float | None
    ) -> str:
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
