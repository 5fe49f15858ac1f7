"""nnU-Net v2 model folders, read without their weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from siam_bids.config import Inference
from siam_bids.errors import ModelError, UsageError
from siam_bids.image.labels import LabelTable
from siam_bids.models.folder import BEST, CHECKPOINT, fold_weights, read_object
from siam_bids.models.labels import read_labels
from siam_bids.nnunet.architecture import build_network
from siam_bids.nnunet.checkpoints import Checkpoint, convert_checkpoints
from siam_bids.nnunet.checks import shown
from siam_bids.nnunet.lean_unet import is_unet, multiply_adds
from siam_bids.nnunet.plans import Plan, configurations

logger = logging.getLogger(__name__)

CONFIGURATION = "3d_fullres"
"""That of our own models, and of checkpoints that do not name theirs."""


@dataclass(frozen=True)
class NnunetModel:
    """A trained nnU-Net v2 folder.

    Attributes
    ----------
    folder
        Holds plans.json, dataset.json and fold_*/checkpoint_final.pth.
    plans, dataset
        Content of the two JSON files.
    plan
        The configuration of plans.json that the checkpoints were trained in.
    labels
        Label table read from dataset.json.
    checkpoints
        Description of each fold, including `fold_all`.
    folds
        Those whose logits are averaged.
    precisions
        Precisions that `auto` may use besides float32, see `models.model.Model`.
    mirror
        Default of test-time mirroring.
    """

    folder: Path
    plans: dict[str, Any]
    dataset: dict[str, Any]
    plan: Plan
    labels: LabelTable
    checkpoints: tuple[Checkpoint, ...]
    folds: tuple[Path, ...]
    precisions: tuple[str, ...] = ()
    mirror: bool = False

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        checkpoint: str = "",
        precisions: tuple[str, ...] = (),
        mirror: bool = False,
    ) -> NnunetModel:
        """Read and check a model folder without loading its weights.

        Parameters
        ----------
        checkpoint
            Name of the file in each fold; see `folder.fold_weights` for the default.

        Raises
        ------
        ModelError
            A file is missing or is not what nnU-Net writes, there is no fold, folds were trained
            in different configurations, theirs is none that runs, or it is not that of the
            weights.
        """
        plans, dataset = (_read_json(folder, name) for name in ("plans.json", "dataset.json"))
        found = fold_weights(folder, checkpoint)
        if not found:
            raise ModelError(f"{folder} holds no fold_*/{checkpoint or CHECKPOINT}.")
        if found[0].name == BEST != checkpoint:
            logger.warning("%s has no %s: %s is used.", folder, CHECKPOINT, BEST)
        checkpoints = tuple(Checkpoint.read(path) for path in found)
        channels = _channels(folder, dataset)
        try:
            name = _configuration(plans, checkpoints)
            plan = Plan.read(plans, name, channels=channels)
        except ValueError as error:
            raise ModelError(f"{folder}/plans.json cannot be used: {error}.") from error
        labels = read_labels(folder, dataset)
        single = tuple(path for path in found if path.parent.name != "fold_all")
        folds = single or found  # as stock nnU-Net chooses
        model = cls(folder, plans, dataset, plan, labels, checkpoints, folds, precisions, mirror)
        model._check_weights()
        return model

    @property
    def channels(self) -> int:
        """Images that the network takes at once: 1, or 2 for a model of a region (and its mask)."""
        return _channels(self.folder, self.dataset)

    @cached_property
    def sketch(self) -> nn.Module:
        """Return the network without memory for its weights, for a look at its parts."""
        return _sketched(self)

    def _check_weights(self) -> None:
        """Refuse weights that are not those of the network in plans.json."""
        state = self.sketch.state_dict()
        wanted = {name: tuple(value.shape) for name, value in state.items()}
        for each in self.checkpoints:
            if each.shapes != wanted:
                raise ModelError(f"{each.path} does not fit the network in plans.json.")

    @cached_property
    def multiply_adds(self) -> float:
        """Multiply-adds of one tile through one fold, counted without computing anything."""
        if is_unet(self.sketch):
            return multiply_adds(self.sketch, self.plan.patch_size)
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            self.sketch(torch.zeros((1, self.channels, *self.plan.patch_size), device="meta"))
        return float(counter.get_total_flops()) / 2

    def with_folds(self, names: Sequence[str]) -> NnunetModel:
        """Return the model with only these folds, for example `("0", "2")`; empty keeps all.

        Raises
        ------
        UsageError
            The model has no such fold.
        """
        known = {
            each.path.parent.name.removeprefix("fold_"): each.path for each in self.checkpoints
        }
        missing = [name for name in names if name not in known]
        if missing:
            raise UsageError(
                f"The model has no fold {', '.join(missing)}.", f"It has: {', '.join(known)}."
            )
        return replace(self, folds=tuple(known[name] for name in names) or self.folds)


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        return read_object(folder / name)
    except ModelError as error:
        raise ModelError(f"{folder} is not an nnU-Net model folder: {error.message}") from error


def _channels(folder: Path, dataset: dict[str, Any]) -> int:
    """Count the images that a network takes at once; old nnU-Net called them modalities."""
    names = dataset.get("channel_names") or dataset.get("modality") or {"0": "any"}
    if not isinstance(names, dict) or len(names) > 64:
        raise ModelError(f"{folder}/dataset.json has no plain list of channel_names.")
    return len(names)


def _configuration(plans: dict[str, Any], checkpoints: Sequence[Checkpoint]) -> str:
    """Return the configuration that all checkpoints were trained in."""
    named = {each.configuration for each in checkpoints}
    if len(named) > 1:
        names = ", ".join(sorted(map(shown, named)))
        raise ValueError(f"its folds were trained in different configurations, {names}")
    known = configurations(plans)
    (name,) = named
    return name or (CONFIGURATION if CONFIGURATION in known else next(iter(known)))


def check_and_convert(folder: Path) -> None:
    """Refuse a model folder that could not be run, else convert its checkpoints.

    Raises
    ------
    ModelError
        See `NnunetModel.open`.
    """
    NnunetModel.open(folder)
    convert_checkpoints(folder)


def axes_to_mirror(model: NnunetModel, options: Inference) -> tuple[int, ...]:
    """Return the axes (0 to 2) along which tiles are mirrored; none unless asked for."""
    if not (model.mirror if options.mirror is None else options.mirror):
        return ()
    first = model.folds[0]  # as in stock nnU-Net
    return next(each.mirror_axes for each in model.checkpoints if each.path == first)


def _sketched(model: NnunetModel) -> nn.Module:
    architecture = model.plan.configuration["architecture"]
    with torch.device("meta"):
        return build_network(
            architecture, channels=model.channels, classes=len(model.labels), initialise=False
        )


def empty_network(model: NnunetModel, device: torch.device) -> nn.Module:
    """Build a model's network on a device, with whatever memory holds as its weights.

    `Module.to_empty` does the same, but imports torch's compiler: half a second.
    """
    network = _sketched(model)
    for layer in network.modules():
        for name, value in layer.named_parameters(recurse=False):
            setattr(layer, name, nn.Parameter(_empty(value, device)))
        for name, buffer in layer.named_buffers(recurse=False):
            setattr(layer, name, _empty(buffer, device))
    return network


def _empty(like: torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=device)
