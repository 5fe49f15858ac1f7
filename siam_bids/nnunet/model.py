"""nnU-Net v2 model folders, read without their weights."""

from __future__ import annotations

import contextlib
import io
import json
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
from siam_bids.models.folder import fold_weights
from siam_bids.models.labels import read_labels
from siam_bids.nnunet.lean_unet import is_unet, multiply_adds

with contextlib.redirect_stdout(io.StringIO()):  # it prints advice on environment variables
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from siam_bids.nnunet.architecture import build_network
from siam_bids.nnunet.checkpoints import mirror_axes

CONFIGURATION = "3d_fullres"


@dataclass(frozen=True)
class NnunetModel:
    """A trained nnU-Net v2 folder.

    Attributes
    ----------
    folder
        Holds plans.json, dataset.json and fold_*/checkpoint_final.pth.
    plans, dataset
        Content of the two JSON files.
    labels
        Label table read from dataset.json.
    folds
        Checkpoints; their logits are averaged.
    precisions
        What precision `auto` may be beside float32, see `models.ModelRecord`.
    mirror
        Whether mirrored tiles are averaged unless the options say otherwise.
    """

    folder: Path
    plans: dict[str, Any]
    dataset: dict[str, Any]
    labels: LabelTable
    folds: tuple[Path, ...]
    precisions: tuple[str, ...] = ()
    mirror: bool = False

    @classmethod
    def open(
        cls, folder: Path, *, precisions: tuple[str, ...] = (), mirror: bool = False
    ) -> NnunetModel:
        """Read a model folder without loading its weights.

        Raises
        ------
        ModelError
            A file is missing or is not what nnU-Net writes, or there is no fold.
        """
        plans, dataset = (_read_json(folder, name) for name in ("plans.json", "dataset.json"))
        folds = fold_weights(folder)
        if not folds:
            raise ModelError(f"{folder} holds no fold_*/checkpoint_final.pth.")
        labels = read_labels(folder, dataset)
        return cls(folder, plans, dataset, labels, folds, precisions, mirror)

    @property
    def channels(self) -> int:
        """Images that the network takes at once: 1, or 2 for a model of a region (and its mask)."""
        return len(self.dataset.get("channel_names") or self.dataset.get("modality") or "1")

    @cached_property
    def plan(self) -> Any:
        """nnU-Net's view of the one 3-D configuration, full resolution preferred.

        Raises
        ------
        ModelError
            There is none.
        """
        names: list[str] = list(self.plans.get("configurations", {}))
        if not names:
            raise ModelError(f"{self.folder}/plans.json has no configuration.")
        name = CONFIGURATION if CONFIGURATION in names else names[0]
        return PlansManager(self.plans).get_configuration(name)

    @cached_property
    def multiply_adds(self) -> float:
        """Multiply-adds of one tile through one fold, counted without computing anything."""
        network = sketch_network(self)
        if is_unet(network):
            return multiply_adds(network, self.plan.patch_size)
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            network(torch.zeros((1, self.channels, *self.plan.patch_size), device="meta"))
        return float(counter.get_total_flops()) / 2

    def with_folds(self, names: Sequence[str]) -> NnunetModel:
        """Return the model with only these folds, for example `("0", "2")`; empty keeps all.

        Raises
        ------
        UsageError
            The model has no such fold.
        """
        known = {path.parent.name.removeprefix("fold_"): path for path in self.folds}
        missing = [name for name in names if name not in known]
        if missing:
            raise UsageError(
                f"The model has no fold {', '.join(missing)}.", f"It has: {', '.join(known)}."
            )
        return replace(self, folds=tuple(known[name] for name in names) or self.folds)


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder} is no nnU-Net model folder: {name} cannot be read ({error})."
        ) from error
    return content


def axes_to_mirror(model: NnunetModel, options: Inference) -> tuple[int, ...]:
    """Return the axes (0 to 2) along which tiles are mirrored; none unless asked for."""
    wished = model.mirror if options.mirror is None else options.mirror
    return mirror_axes(model.folds[0]) if wished else ()


def sketch_network(model: NnunetModel) -> nn.Module:
    """Build a model's network without memory for its weights."""
    architecture = model.plan.configuration["architecture"]
    with torch.device("meta"):
        return build_network(
            architecture, channels=model.channels, classes=len(model.labels), initialise=False
        )


def empty_network(model: NnunetModel, device: torch.device) -> nn.Module:
    """Build a model's network on a device, with whatever memory holds as its weights.

    `Module.to_empty` does the same, but imports torch's compiler: half a second.
    """
    network = sketch_network(model)
    for layer in network.modules():
        for name, value in layer.named_parameters(recurse=False):
            setattr(layer, name, nn.Parameter(_empty(value, device)))
        for name, buffer in layer.named_buffers(recurse=False):
            setattr(layer, name, _empty(buffer, device))
    return network


def _empty(like: torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=device)
