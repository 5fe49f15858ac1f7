"""Training the compact model on synthetic images, in sessions that resume where the last ended."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import nn

from siam_bids.image.labels import siam_labels
from siam_bids.models.folder import first_weights
from siam_bids.nnunet.architecture import build_network
from siam_bids.nnunet.checkpoints import load_weights
from siam_bids.nnunet.model import CONFIGURATION
from siam_bids.nnunet.write import compact_plans
from siam_bids.training.config import CLASSES, TrainingConfig
from siam_bids.training.state import (
    load_state,
    save_state,
    write_model_folder,
)
from siam_bids.training.warm_start import start_from

logger = logging.getLogger(__name__)

LEAST_EDGE = 3
"""Voxels along an edge below which oneDNN's bfloat16 gradients of a convolution are wrong."""

MAX_NORM = 5.0
"""Gradients longer than this are shortened to it."""


def _in_float32(stage: nn.Module) -> None:
    """Compute a stage in float32 even where the rest is in bfloat16."""
    plain = stage.forward

    def forward(features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            answer: torch.Tensor = plain(features.float())
        return answer

    stage.forward = forward


class Trainer:
    """Network, optimiser, averaged weights and step count; saves and resumes."""

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.plans = compact_plans(
            name="Dataset001_SiamCompact",
            features=config.features,
            patch=(config.patch,) * 3,
            spacing=float(config.voxel),
        )
        architecture = self.plans["configurations"][CONFIGURATION]["architecture"]
        torch.manual_seed(config.seed)
        network = build_network(architecture, channels=1, classes=CLASSES)
        self.network = network.to(config.device)
        if config.device == "cpu":  # a GPU is faster without
            self.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
            if config.patch // 2 ** (len(config.features) - 1) < LEAST_EDGE:
                _in_float32(
                    self.network.get_submodule(f"encoder.stages.{len(config.features) - 1}")
                )
        self._start_with_common_classes()
        self.unsettled = False
        if config.start and not (config.folder / "progress.json").exists():
            weights = load_weights(first_weights(config.start))
            self.unsettled = start_from(self.network, weights)
        self.average = {
            name: value.detach().clone() for name, value in self.network.named_parameters()
        }
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, weight_decay=1e-4
        )
        self.step = 0
        self.skipped = 0
        self.pretrained = config.start is not None
        if (config.folder / "progress.json").exists():
            self._load()

    def _start_with_common_classes(self) -> None:
        """Bias the last layer to rough class shares, so that background need not win first."""
        shares = torch.full((CLASSES,), 0.003)
        for name, share in {"background": 0.35, "GM": 0.11, "WM": 0.1, "CSF": 0.05}.items():
            shares[siam_labels().by_name[name].index] = share
        for name, share in {"cerGM": 0.03, "Skull": 0.1, "Head": 0.2}.items():
            shares[siam_labels().by_name[name].index] = share
        heads = [
            module
            for module in self.network.modules()
            if isinstance(module, nn.Conv3d) and module.out_channels == CLASSES
        ]
        with torch.no_grad():
            for head in heads:
                if head.bias is not None:
                    head.bias.copy_(shares.log())

    def _load(self) -> None:
        folder = self.config.folder
        progress = json.loads((folder / "progress.json").read_text())
        self.step = progress["step"]
        self.pretrained |= progress.get("pretrained", False)
        self.network.load_state_dict(load_state(folder, "weights"), strict=False)
        self.average = load_state(folder, "average", self.config.device)
        first, second = (load_state(folder, f"moment{order}") for order in (1, 2))
        for name, parameter in self.network.named_parameters():
            if name in first:
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": first[name].to(parameter.device),
                    "exp_avg_sq": second[name].to(parameter.device),
                }

    def save(self) -> None:
        """Write state (files of at most `STATE_FILE` bytes) and the model folder so far."""
        folder = self.config.folder
        folder.mkdir(parents=True, exist_ok=True)
        states = {
            name: self.optimizer.state[parameter]
            for name, parameter in self.network.named_parameters()
            if parameter in self.optimizer.state
        }
        contents: dict[str, Mapping[str, torch.Tensor]] = {
            "weights": dict(self.network.named_parameters()),
            "average": self.average,
            "moment1": {name: state["exp_avg"] for name, state in states.items()},
            "moment2": {name: state["exp_avg_sq"] for name, state in states.items()},
        }
        for name, tensors in contents.items():
            save_state(folder, name, tensors)
        write_model_folder(
            folder / "model", self.plans, self._averaged_state(), len(self.config.maps)
        )
        config = asdict(self.config)
        options = {
            key: str(config[key]) for key in config if key not in ("maps", "validation", "lesions")
        }
        (folder / "progress.json").write_text(
            json.dumps(
                {"step": self.step, "pretrained": self.pretrained, "options": options}, indent=2
            )
        )

    def shared(self) -> list[torch.Tensor]:
        """Return all that processes average: weights, their averages and both moments."""
        tensors: list[torch.Tensor] = []
        for name, parameter in self.network.named_parameters():
            state = self.optimizer.state.get(parameter, {})
            moments = [state[moment] for moment in ("exp_avg", "exp_avg_sq") if moment in state]
            tensors += [parameter, self.average[name], *moments]
        return tensors

    def _averaged_state(self) -> dict[str, torch.Tensor]:
        """Return the averaged weights as float16 under every name that a state dict has.

        The U-Net lists its encoder twice; names of one parameter share one tensor, and so one
        place in the file.
        """
        halves = {
            parameter.data_ptr(): self.average[name].half().cpu()
            for name, parameter in self.network.named_parameters()
        }
        state = self.network.state_dict()
        return {name: halves[value.data_ptr()] for name, value in state.items()}

    def update(self, loss: torch.Tensor, rate: float) -> None:
        """Take one step of the optimiser down the gradient of a loss, and average the weights.

        A gradient that is not finite is left out; it would make all weights NaN for good.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), MAX_NORM)
        if torch.isfinite(norm):
            self.optimizer.step()
        else:
            self._tell_of_skipped()
        self.step += 1
        keep = min(self.config.ema, self.step / (self.step + 10))
        with torch.no_grad():
            for name, value in self.network.named_parameters():
                self.average[name].lerp_(value, 1 - keep)

    def _tell_of_skipped(self) -> None:
        if not self.skipped:
            logger.warning(
                "The gradient of step %d is not finite; such steps are skipped.", self.step
            )
        self.skipped += 1

    def difficulty(self) -> float:
        """Return how far contrasts, shapes and artefacts vary at this step, 0 to 1."""
        risen = 1.0 if self.pretrained else min(1.0, self.step / self.config.ramp_steps)
        return self.config.hardest * risen

    def learning_rate(self, elapsed: float) -> float:
        """Warm-up, plateau, and linear decay over a cooldown session; `elapsed` is its share."""
        warm = min(1.0, (self.step + 1) / self.config.warmup_steps)
        return self.config.learning_rate * warm * (1 - elapsed if self.config.cooldown else 1)
