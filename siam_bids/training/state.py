"""The files of a training run: state and model folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from siam_bids.errors import ModelError
from siam_bids.image.labels import siam_labels
from siam_bids.models.folder import read_object
from siam_bids.nnunet.model import CONFIGURATION
from siam_bids.nnunet.write import checkpoint

STATE_FILE = 16 << 20
"""Most bytes of one file of a training's state, so that it passes where large files do not."""


def save_state(folder: Path, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as `NAME-1.safetensors`, `NAME-2.safetensors`, ... of at most `STATE_FILE`."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    room = limit = STATE_FILE - (1 << 16)  # some of it for the header
    for key, value in tensors.items():
        if shards[-1] and value.nbytes > room:
            shards.append({})
            room = limit
        shards[-1][key] = value.detach().contiguous()
        room -= value.nbytes
    kept = [folder / f"{name}-{number}.safetensors" for number in range(1, len(shards) + 1)]
    for path, shard in zip(kept, shards, strict=True):
        part = path.with_name(path.name + ".part")
        save_file(shard, part)
        part.replace(path)
    for path in set(_state_files(folder, name)) - set(kept):
        path.unlink()


def load_state(folder: Path, name: str, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Read what `save_state` wrote."""
    state: dict[str, torch.Tensor] = {}
    for path in _state_files(folder, name):
        state |= load_file(path, device=device)
    return state


def _state_files(folder: Path, name: str) -> list[Path]:
    """List the files of a state; versions before 0.9 wrote it as one, `NAME.safetensors`."""
    return sorted([*folder.glob(f"{name}-*.safetensors"), *folder.glob(f"{name}.safetensors")])


def write_model_folder(
    folder: Path, plans: dict[str, Any], weights: dict[str, torch.Tensor], maps: int
) -> None:
    """Write a valid nnU-Net v2 model folder."""
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    dataset = {
        "channel_names": {"0": "any"},
        "labels": {label.name: label.index for label in siam_labels()},
        "numTraining": maps,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
    }
    (folder / "plans.json").write_text(json.dumps(plans, indent=2) + "\n")
    (folder / "dataset.json").write_text(json.dumps(dataset, indent=2) + "\n")
    part = folder / "fold_0" / "checkpoint_final.pth.part"
    torch.save(checkpoint(weights, mirror_axes=(2,)), part)  # heads are drawn flipped, left-right
    part.replace(folder / "fold_0" / "checkpoint_final.pth")


def shape_of(folder: Path) -> dict[str, Any]:
    """Return features, patch and voxel of a model folder, to continue with the same network."""
    try:
        plan = read_object(folder / "plans.json")["configurations"][CONFIGURATION]
        features = tuple(map(int, plan["architecture"]["arch_kwargs"]["features_per_stage"]))
        voxel, patch = plan["spacing"][0], plan["patch_size"][0]
        if int(voxel) != voxel or voxel < 1:
            raise ValueError(f"its voxels have {voxel} mm, not a whole number of them")
    except (ModelError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ModelError(f"{folder} is not a model folder of siam-bids-train ({error}).") from error
    return {"features": features, "patch": int(patch), "voxel": int(voxel)}
