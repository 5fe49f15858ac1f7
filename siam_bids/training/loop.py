"""The training, from the first step to the last."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.multiprocessing.spawn import start_processes

from siam_bids.errors import UsageError
from siam_bids.image.labels import siam_labels
from siam_bids.synthesis.label_maps import Anatomy
from siam_bids.training.config import CLASSES, TrainingConfig
from siam_bids.training.local_sgd import Replicas
from siam_bids.training.loss import TargetGroups, marginal_loss, mixed_precision
from siam_bids.training.patches import (
    PatchSource,
    load_anatomies,
)
from siam_bids.training.step_log import StepLog
from siam_bids.training.trainer import Trainer
from siam_bids.training.validation import Validation
from siam_bids.training.warm_start import settle

logger = logging.getLogger(__name__)

LOG_EVERY = 100
"""Steps between two rows of log.csv."""
SAVE_EVERY = 300
"""Seconds between two savings of the state."""

_Loss = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Maps images and their targets to the loss, and to what `marginal_loss` says of Dice."""


def train(config: TrainingConfig) -> Trainer:
    """Run one session of training and save its state.

    Raises
    ------
    UsageError
        No label maps, or several processes on one GPU.
    """
    if not config.maps:
        raise UsageError("No label maps to train on.", "Name a folder that holds some.")
    if config.processes > 1 and config.device != "cpu":
        raise UsageError("--processes works on CPUs only.", "Omit it, or give --device cpu.")
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


def _loss_of(network: torch.nn.Module, groups: TargetGroups, config: TrainingConfig) -> _Loss:
    """Return the loss of a network, compiled if that is wanted."""
    scored = siam_labels().indices(config.task.scored) or range(1, CLASSES)

    def loss_of(image: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with mixed_precision(image.device):
            logits = network(image)
        return marginal_loss(logits, target, groups, config.dice_weight, scored)

    torch.backends.cudnn.benchmark = True  # all patches have one shape
    return torch.compile(loss_of, dynamic=False) if config.compile else loss_of


def _leg(replicas: Replicas, config: TrainingConfig, anatomies: Sequence[Anatomy]) -> Trainer:
    """Train for `config.minutes`, alone or with other replicas."""
    trainer = Trainer(config)
    held_out = load_anatomies(config.validation, config.folder / "anatomies")
    groups = TargetGroups.of([anatomy.table for anatomy in (*anatomies, *held_out)])
    source = PatchSource(anatomies, groups, config)
    validation = Validation(held_out, groups, config) if held_out else None
    if trainer.unsettled:
        rng = np.random.default_rng(config.seed)
        settle(trainer.network, [source.patch(rng, 1.0)[0] for _ in range(config.pool)])
    forward = _loss_of(trainer.network, groups, config)
    log = StepLog(config.folder / "log.csv")
    begin = last_save = time.monotonic()
    for elapsed in replicas.leg(60 * config.minutes, trainer.shared):
        rng = np.random.default_rng((config.seed, trainer.step, replicas.rank))
        difficulty, rate = trainer.difficulty(), trainer.learning_rate(elapsed)
        image, target = source.batch(rng, difficulty)
        loss, dice = forward(image, target)
        trainer.update(loss, rate)
        if replicas.rank > 0:  # one replica writes for all
            continue
        log.add(loss.item(), dice)
        if trainer.step % LOG_EVERY == 0:
            minutes = (time.monotonic() - begin) / 60
            score = validation.dice(trainer.network, trainer.average) if validation else None
            logger.info("%s", log.write(trainer.step, minutes, rate, difficulty, score))
        if time.monotonic() - last_save > SAVE_EVERY:
            trainer.save()
            last_save = time.monotonic()
    if replicas.rank == 0:
        trainer.save()
    return trainer
