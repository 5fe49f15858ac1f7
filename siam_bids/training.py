"""Training the compact model on synthetic images, in legs that resume where the last ended."""

from __future__ import annotations

import csv
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.multiprocessing.spawn import start_processes
from torch.nn import functional

from siam_bids.anatomy import Anatomy, SourceTable, prepare_anatomy, source_table
from siam_bids.errors import ModelError, UsageError
from siam_bids.labels import siam_labels
from siam_bids.network import has_fast_bfloat16
from siam_bids.nifti import load_labels
from siam_bids.nnunet import (
    CONFIGURATION,
    build_network,
    checkpoint,
    compact_plans,
    load_weights,
)
from siam_bids.replicas import Replicas
from siam_bids.synthesis import Recipe, draw_recipe, render
from siam_bids.transfer import settle, start_from

logger = logging.getLogger(__name__)

CLASSES = len(siam_labels())


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """All choices of a training run; everything but `minutes` and `cooldown` is kept with it.

    Attributes
    ----------
    maps
        Label maps to train on: (path, source) each; see `anatomy.source_table`.
    folder
        Where state, log and the model folder are kept.
    minutes
        Length of this leg.
    cooldown
        Let the learning rate fall to zero over this leg, which then ends the run.
    ramp_steps
        Steps over which the difficulty of the images rises from 0 to 1.
    fresh_every
        A new image replaces the oldest of the pool every so many patches.
    pool
        Images kept to draw patches from.
    voxel
        Voxel size of the network in mm: a whole number, label maps are painted at 1 mm.
    siam_share
        Share of images painted on maps of source `siam` where there are others too.
    contrasts
        Paint half of the images in these (see `CONTRASTS`), the others in any.
    lesion_share
        Share of images with lesions: of those in `contrasts`, or of all.
    start
        Model folder to begin from (see `transfer.start_from`), at full difficulty.
    dice_weight
        Weight of the Dice term. Soft Dice inflates what is uncertain (Bertels et al., Med. Image
        Anal. 2021); a last leg at 0 sets volumes and probabilities right.
    features, patch
        Channels of each stage, and edge of the training patches and tiles in voxels.
    batch
        Patches in one step: a GPU learns from several in the time of one.
    processes
        How many train side by side and share what they learn, see `replicas`.
    validation
        Label maps that are not trained on, like `maps`; their Dice is logged.
    """

    maps: tuple[tuple[Path, str], ...]
    folder: Path
    minutes: float
    cooldown: bool = False
    seed: int = 0
    features: tuple[int, ...] = (16, 32, 64, 128, 160)
    patch: int = 64
    batch: int = 1
    voxel: int = 2
    learning_rate: float = 2e-3
    warmup_steps: int = 200
    ramp_steps: int = 6000
    fresh_every: int = 8
    pool: int = 12
    siam_share: float = 0.15
    contrasts: tuple[str, ...] = ()
    lesion_share: float = 0.35
    ema: float = 0.998
    dice_weight: float = 1.0
    device: str = "cpu"
    compile: bool = False
    processes: int = 1
    start: Path | None = None
    validation: tuple[tuple[Path, str], ...] = ()


@dataclass(frozen=True)
class TargetGroups:
    """Sets of classes between which a voxel's truth does not choose; the first 18 are singletons.

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
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and soft Dice that stay silent where a map does not tell classes apart.

    Cross-entropy sums the probabilities of a group's members (marginal loss, Shi et al., Med.
    Image Anal. 2021). Dice of a class leaves out the voxels of merged groups that contain it.

    Parameters
    ----------
    logits
        (B, 18, I, J, K).
    target
        (B, groups, I, J, K), each voxel's share of each group (partial volume), summing to 1.

    Returns
    -------
    loss
        Scalar, cross-entropy + dice_weight (1 - mean Dice of the classes present).
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
    wanted = present.clone()
    wanted[0] = False
    mean = (dice * wanted).sum() / wanted.sum().clamp_min(1)
    loss = cross_entropy.mean() + dice_weight * (1 - mean)
    return loss, torch.where(present, dice, torch.nan).detach()


def z_score(image: torch.Tensor) -> torch.Tensor:
    """Normalise as nnU-Net does: crop box of the non-zero voxels, mean 0 and std 1 over it."""
    filled = image != 0
    box = image
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        where = torch.nonzero(filled.any(dim=others[1]).any(dim=others[0]))
        box = box.narrow(axis, int(where[0]), int(where[-1] - where[0]) + 1)
    return (image - box.mean()) / box.std().clamp_min(1e-8)


@dataclass(frozen=True)
class _Sample:
    """One image of the pool, its truth at 1 mm and voxels to centre patches on, per class."""

    image: torch.Tensor
    groups: torch.Tensor
    centers: dict[int, torch.Tensor]


def map_weights(config: TrainingConfig) -> npt.NDArray[np.float64]:
    """Return how often each label map is drawn, summing to 1."""
    siam = np.array([source == "siam" for _, source in config.maps])
    if siam.all() or not siam.any():
        return np.full(len(siam), 1 / len(siam))
    share = config.siam_share
    weights: npt.NDArray[np.float64] = np.where(
        siam, share / siam.sum(), (1 - share) / (~siam).sum()
    )
    return weights


class PatchSource:
    """Draws training patches from a rolling pool of synthetic images."""

    def __init__(
        self, anatomies: Sequence[Anatomy], groups: TargetGroups, config: TrainingConfig
    ) -> None:
        self._anatomies = anatomies
        self._groups = groups
        self._config = config
        self._weight = map_weights(config)
        self._pool: list[_Sample] = []
        self._drawn = 0

    def patch(
        self, rng: np.random.Generator, difficulty: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image (1, 1, P, P, P) and target (1, groups, P, P, P), both [z, y, x]."""
        if len(self._pool) < self._config.pool or self._drawn % self._config.fresh_every == 0:
            self._pool = [*self._pool, self._sample(rng, difficulty)][-self._config.pool :]
        self._drawn += 1
        sample = self._pool[rng.integers(len(self._pool))]
        size, factor = self._config.patch, self._config.voxel
        corner = self._corner(sample, rng)
        image = _cut(sample.image, corner, size)
        fine = _cut(sample.groups, [factor * start for start in corner], factor * size)
        parts = fine.reshape(size, factor, size, factor, size, factor)
        parts = parts.permute(0, 2, 4, 1, 3, 5).reshape(size**3, factor**3).long()
        count = len(self._groups.members)
        target = torch.zeros((size**3, count), device=fine.device)
        target.scatter_add_(1, parts, torch.full_like(parts, 1, dtype=torch.float32))
        target = target.div_(factor**3).view(size, size, size, count)
        return image.permute(2, 1, 0)[None, None].contiguous(), target.permute(3, 2, 1, 0)[None]

    def batch(
        self, rng: np.random.Generator, difficulty: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images (B, 1, P, P, P) and targets (B, groups, P, P, P), both [z, y, x]."""
        patches = [self.patch(rng, difficulty) for _ in range(self._config.batch)]
        images, targets = zip(*patches, strict=True)
        return torch.cat(images), torch.cat(targets)

    def recipe(self, rng: np.random.Generator, difficulty: float) -> Recipe:
        """Draw how to paint the next image, in the contrasts and with the lesions asked for."""
        wanted = self._config.contrasts
        if wanted and rng.random() >= 0.5 * difficulty:
            return draw_recipe(rng, difficulty=difficulty)
        return draw_recipe(
            rng,
            difficulty=difficulty,
            contrast=str(rng.choice(wanted)) if wanted else None,
            lesion_share=self._config.lesion_share,
        )

    def _sample(self, rng: np.random.Generator, difficulty: float) -> _Sample:
        anatomy = self._anatomies[rng.choice(len(self._anatomies), p=self._weight)]
        recipe = self.recipe(rng, difficulty)
        config = self._config
        rendering = render(anatomy, recipe, pool=config.voxel, device=config.device)
        lookup = torch.from_numpy(self._groups.of_codes(anatomy.table).astype(np.uint8))
        groups = lookup.to(rendering.codes.device)[rendering.codes.int()]
        coarse = groups[::2, ::2, ::2].cpu()
        centers = {}
        flat = coarse.flatten().numpy()
        order = np.argsort(flat, kind="stable")
        bounds = np.searchsorted(flat[order], np.arange(CLASSES + 1))
        for index in range(1, CLASSES):
            members = order[bounds[index] : bounds[index + 1]]
            if len(members):
                chosen = rng.choice(members, min(200, len(members)), replace=False)
                places = np.stack(np.unravel_index(chosen, coarse.shape), 1)
                centers[index] = torch.from_numpy(2 * places // config.voxel)
        return _Sample(z_score(rendering.image), groups, centers)

    def _corner(self, sample: _Sample, rng: np.random.Generator) -> list[int]:
        shape, size = sample.image.shape, self._config.patch
        if sample.centers and rng.random() < 0.85:
            points = sample.centers[int(rng.choice(list(sample.centers)))]
            center = points[rng.integers(len(points))].numpy()
            center = center + rng.integers(-size // 3, size // 3 + 1, 3)
        else:
            center = np.array([rng.integers(length) for length in shape])
        corner = []
        for place, length in zip(center, shape, strict=True):
            low, high = min(0, length - size), max(0, length - size)
            corner.append(int(np.clip(place - size // 2, low, high)))
        return corner


def _cut(data: torch.Tensor, corner: Sequence[int], size: int) -> torch.Tensor:
    """Cut a cube; what lies outside the data is 0."""
    for axis, start in enumerate(corner):
        stop = start + size
        inner = data.narrow(axis, max(start, 0), min(stop, data.shape[axis]) - max(start, 0))
        before, after = max(-start, 0), max(stop - data.shape[axis], 0)
        if before or after:
            pad = [0, 0, 0, 0, 0, 0]
            pad[2 * (2 - axis)], pad[2 * (2 - axis) + 1] = before, after
            inner = functional.pad(inner, pad)
        data = inner
    return data


def mixed_precision(device: torch.device) -> torch.autocast:
    """Return a context in bfloat16, but on CPUs that would only emulate it, 50 times slower."""
    wanted = device.type != "cpu" or has_fast_bfloat16()
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


class Validation:
    """Fixed patches of painted heads that are not trained on, at full difficulty.

    Parameters
    ----------
    anatomies
        Held-out heads, each as likely as another.
    count
        Number of patches, each from an image of its own; they stay in memory.
    """

    def __init__(
        self,
        anatomies: Sequence[Anatomy],
        groups: TargetGroups,
        config: TrainingConfig,
        count: int = 8,
    ) -> None:
        maps = tuple((Path(), "") for _ in anatomies)
        source = PatchSource(anatomies, groups, replace(config, maps=maps, pool=1, fresh_every=1))
        rng = np.random.default_rng((2026, 11))
        patches = (source.patch(rng, 1.0) for _ in range(count))
        self._patches = [(image, target.half()) for image, target in patches]
        self._groups = groups

    def dice(self, network: nn.Module, weights: dict[str, torch.Tensor]) -> float:
        """Return the mean soft Dice, over patches and the classes in each, of such weights."""
        scores = []
        with torch.no_grad(), _weights_for_a_while(network, weights):
            for image, target in self._patches:
                with mixed_precision(image.device):
                    logits = network(image)
                _, dice = marginal_loss(logits, target.float(), self._groups)
                scores.append(dice[1:].nanmean())
        return float(torch.stack(scores).nanmean())


@contextmanager
def _weights_for_a_while(network: nn.Module, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Let a network have other weights, in its own tensors, and then those it had.

    torch.func.functional_call does not give them back to a network that lists its layers twice.
    """
    kept = {name: value.clone() for name, value in network.named_parameters()}
    try:
        for name, value in network.named_parameters():
            value.copy_(weights[name])
        yield
    finally:
        for name, value in network.named_parameters():
            value.copy_(kept[name])


def load_anatomies(maps: Sequence[tuple[Path, str]], cache: Path) -> list[Anatomy]:
    """Prepare label maps (path, source), kept in the folder `cache` for the next leg."""
    cache.mkdir(parents=True, exist_ok=True)
    anatomies = []
    for path, source in maps:
        table = source_table(source)
        kept = cache / f"{path.name.split('.')[0]}.npz"
        if kept.exists():
            stored = np.load(kept)
            size = tuple(float(edge) for edge in stored["voxel_size"])
            anatomies.append(Anatomy(stored["codes"], (size[0], size[1], size[2]), table))
            continue
        labels, grid = load_labels(path)
        anatomy = prepare_anatomy(labels, grid, table, path.name)
        np.savez_compressed(kept, codes=anatomy.codes, voxel_size=anatomy.voxel_size)
        logger.info("prepared %s", path.name)
        anatomies.append(anatomy)
    return anatomies


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
        self._start_with_common_classes()
        self.unsettled = False
        if config.start and not (config.folder / "progress.json").exists():
            weights = load_weights(config.start / "fold_0" / "checkpoint_final.pth")
            self.unsettled = start_from(self.network, weights)
        self.average = {
            name: value.detach().clone() for name, value in self.network.named_parameters()
        }
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, weight_decay=1e-4
        )
        self.step = 0
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
        options = {key: str(config[key]) for key in config if key not in ("maps", "validation")}
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

    def learning_rate(self, elapsed: float) -> float:
        """Warm-up, plateau, and linear fall over a cooldown leg; `elapsed` is its share done."""
        warm = min(1.0, (self.step + 1) / self.config.warmup_steps)
        return self.config.learning_rate * warm * (1 - elapsed if self.config.cooldown else 1)


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
    """Return features, patch and voxel of a model folder, to go on with the same network."""
    try:
        plans = json.loads((folder / "plans.json").read_text(encoding="utf-8"))
        plan = plans["configurations"][CONFIGURATION]
        features = plan["architecture"]["arch_kwargs"]["features_per_stage"]
        voxel, patch = plan["spacing"][0], plan["patch_size"][0]
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ModelError(f"{folder} is no model folder of siam-bids-train ({error}).") from error
    return {"features": tuple(features), "patch": int(patch), "voxel": int(voxel)}


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
