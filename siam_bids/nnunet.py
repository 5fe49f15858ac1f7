"""nnU-Net v2 model folders: reading plans, building the network, writing our own.

The only importer of nnunetv2. Axes: nnU-Net reads files with SimpleITK, so its arrays run
[z, y, x], the reverse of nibabel's (i, j, k); plans (spacing, patch size) follow that order.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy import ndimage
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from siam_bids.config import Inference
from siam_bids.errors import ImageError, ModelError, UsageError
from siam_bids.files import atomic
from siam_bids.focus import Focus
from siam_bids.int8 import Int8UNet, bears_int8, has_fast_int8
from siam_bids.intensities import Intensities
from siam_bids.labels import LabelTable
from siam_bids.network import LeanUNet, Mirrored, has_fast_bfloat16, is_unet, multiply_adds
from siam_bids.pose import Window, centres
from siam_bids.posterior import following
from siam_bids.scores import Logits
from siam_bids.segmenter import (
    TILE_STEP,
    Prediction,
    Progress,
    predict_tiled,
    prediction_of,
)
from siam_bids.sizing import Load, Size
from siam_bids.store import CHECKPOINT, CONVERTED, fold_weights
from siam_bids.turned import TurnedLogits
from siam_bids.usage import free_memory
from siam_bids.volume import Crop, Grid, Reorientation, Volume, box_of

with contextlib.redirect_stdout(io.StringIO()):  # it prints advice on environment variables
    from nnunetv2.preprocessing.normalization import default_normalization_schemes
    from nnunetv2.preprocessing.resampling.default_resampling import (
        compute_new_shape,
        determine_do_sep_z_and_axis,
    )
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

logger = logging.getLogger(__name__)

CONFIGURATION = "3d_fullres"
_NEVER = -6e4
"""A logit, within float16, of what must not be chosen."""

_HARMLESS: list[Any] = [
    np.dtype,
    np.ndarray,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    np.float64(0).__reduce__()[0],  # the functions that rebuild a number and an array
    np.zeros(0).__reduce__()[0],
]
"""What stock nnU-Net checkpoints hold beside tensors (training logs): plain numpy numbers."""


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
        try:
            labels = LabelTable.from_names(
                {name: int(index) for name, index in dataset["labels"].items()}
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{folder}/dataset.json has no plain label list.") from error
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
        network = _sketch(self)
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


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read the network weights of a checkpoint, or of its conversion, executing no code in it.

    Raises
    ------
    ModelError
        The file is damaged, is no nnU-Net checkpoint, or holds more than tensors and numbers.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as content:
                aliases: dict[str, str] = json.loads(content.metadata()["aliases"])
                tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
            raise ModelError(f"{path} is damaged: {error}") from error
        return {**tensors, **{name: tensors[twin] for name, twin in aliases.items()}}
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
        weights: dict[str, torch.Tensor] = content["network_weights"]
    except (OSError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{path} is no usable checkpoint: {reason}") from error
    return {name.removeprefix("module."): value for name, value in weights.items()}


def convert_checkpoints(folder: Path) -> None:
    """Replace every checkpoint of a model folder by a safetensors file of its network weights.

    That leaves out the optimiser's state and anything that could hold code. Weights are written
    in float16 where that loses nothing, else in float32, so the network stays the same.

    Raises
    ------
    ModelError
        A checkpoint is unusable, see `load_weights`.
    """
    for path in sorted(folder.glob(f"fold_*/{CHECKPOINT}")):
        tensors: dict[str, torch.Tensor] = {}
        aliases: dict[str, str] = {}  # nnU-Net lists each layer under several names
        names: dict[tuple[int, torch.Size], str] = {}
        for name, value in load_weights(path).items():
            first = names.setdefault((value.data_ptr(), value.shape), name)
            if first == name:
                tensors[name] = _halved(value)
            else:
                aliases[name] = first
        with atomic(path.with_name(CONVERTED)) as scratch:
            axes = json.dumps(mirror_axes(path))
            save_file(tensors, scratch, {"aliases": json.dumps(aliases), "mirror_axes": axes})
        path.unlink()


def _halved(weights: torch.Tensor) -> torch.Tensor:
    half = weights.half()
    return (half if torch.equal(half.to(weights.dtype), weights) else weights).contiguous()


def mirror_axes(path: Path) -> tuple[int, ...]:
    """Return the axes (0 to 2) along which a fold may be mirrored, as its checkpoint says."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as content:
            axes = json.loads(content.metadata().get("mirror_axes", "[]"))
    else:
        with torch.serialization.safe_globals(_HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        axes = content.get("inference_allowed_mirroring_axes") or ()
    return tuple(int(axis) for axis in axes)


class NnunetSegmenter:
    """Runs a model folder on scans, the network built once.

    The steps and their order are stock nnU-Net's (and siam-pred's): RAS+ order, crop to non-zero,
    normalise, resample, overlapping tiles, mean over folds, resample logits back, argmax.

    Parameters
    ----------
    model
        What to run.
    device
        `cpu`, `cuda` or `mps`.
    options
        How to run it. Precision `auto` is bfloat16 or int8 where the model allows it and the CPU
        is fast in it, float16 on CUDA as in stock nnU-Net, else float32.
    intensities
        How far the labels follow the intensities of the scan. Default: not at all, as in nnU-Net.

    Raises
    ------
    UsageError
        The model lacks a fold of the options, was not trained for mirroring, or int8 is asked for
        and this CPU lacks it.
    """

    def __init__(
        self,
        model: NnunetModel,
        device: torch.device,
        options: Inference | None = None,
        intensities: Intensities | None = None,
    ) -> None:
        self._following = intensities
        self.options = options or Inference()
        self.model = model.with_folds(self.options.folds)
        model = self.model
        self._written = {path: path.stat().st_mtime_ns for path in model.folds}
        self._axes_mirrored = _axes_to_mirror(model, self.options)
        if self.options.mirror and not self._axes_mirrored:
            raise UsageError(
                f"{model.folder.name} was not trained for mirroring.", "Omit --mirror."
            )
        plans = PlansManager(model.plans)
        self._axes = tuple(plans.transpose_forward)
        self._back = [int(axis) for axis in np.argsort(self._axes)]
        self._plan = model.plan
        self._intensities = plans.foreground_intensity_properties_per_channel
        self._build(device)

    def _build(self, device: torch.device, *, lean: bool = False) -> None:
        self.device = device
        self.load = load_of(self.model, device, self.options, lean=lean)
        self._network = _unfilled(self.model, device)
        self._runner = self._network
        self._loaded: Path | None = None
        if self.load.precision == "int8":
            if not has_fast_int8():
                raise UsageError(
                    "This CPU, or this torch, does not multiply 8-bit integers (VNNI).",
                    "Omit --precision int8.",
                )
            self._runner = Int8UNet(self._network)
        elif self.load.lean:
            self._runner = LeanUNet(self._network, getattr(torch, self.load.precision))
        if self._axes_mirrored:
            self._runner = Mirrored(self._runner, self._axes_mirrored)

    @property
    def precisions(self) -> tuple[str, ...]:
        """That of the feature maps: `float32`, `float16`, `bfloat16` or `int8`."""
        return (self.load.precision,)

    def segment(
        self,
        volume: Volume,
        *,
        inside: npt.NDArray[np.bool_] | None = None,
        probabilities: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Prediction:
        """Segment one scan on its own grid; see `Segmenter.segment`.

        Parameters
        ----------
        inside
            (I, J, K) region to label, for a model of two channels: within it no voxel becomes
            background, outside all do.

        Raises
        ------
        ImageError
            It needs more memory than there is, see `memory_of_scan`.
        """
        keep = bool(probabilities)
        logits, crop = self.scores(volume, inside=inside, keep=keep, progress=progress)
        scores = following(logits, volume, crop, self._following, keep=keep)
        mask = None if inside is None else crop.cut(inside)
        return prediction_of(scores, crop, self.model.labels, probabilities, inside=mask)

    def scores(
        self,
        volume: Volume,
        *,
        inside: npt.NDArray[np.bool_] | None = None,
        part: Sequence[slice] | None = None,
        step: float = TILE_STEP,
        keep: bool = False,
        progress: Progress | None = None,
    ) -> tuple[Logits, Crop]:
        """Run the network over a scan; other arguments and errors as for `segment`.

        Parameters
        ----------
        part
            Of the crop around everything that is not zero, [z, y, x]: all that the network sees
            of the scan, normalised as the whole is.
        step
            Tile edges between two tiles, at most.

        Returns
        -------
        scores
            On the voxels of the scan that the crop keeps; with `keep`, probabilities too.
        crop
            Around everything that is not zero, or that part of it.
        """
        whole = [volume.data] if inside is None else [volume.data, inside.astype(np.float32)]
        crop = Crop.around(_anything(whole), volume.grid)
        part = part or tuple(slice(0, length) for length in crop.shape)
        self._check_memory(volume.grid, crop.within(part).grid)
        cropped = [crop.cut(channel).transpose(self._axes) for channel in whole]
        image = np.stack([self._normalised(cropped, index) for index in range(len(cropped))])
        seen = tuple(part[axis] for axis in self._axes)
        crop, image = crop.within(part), image[(slice(None), *seen)]
        spacing = _spacing(self.model, [crop.voxel_size[axis] for axis in self._axes], self.options)
        image = self._resample(image, spacing)
        logits = self._padded(
            image,
            inside=None if inside is None else cropped[1][seen] > 0,
            step=step,
            progress=progress,
        )
        shape = [crop.shape[axis] for axis in self._axes]
        logits, nearest_axis = self._resampled(logits, shape, spacing)
        if inside is not None:
            with torch.inference_mode():
                logits[0] = _NEVER
        return Logits(
            logits.permute(0, *(1 + axis for axis in self._back)),
            crop.shape,
            nearest_axis=None if nearest_axis is None else self._axes[nearest_axis],
            keep=keep,
        ), crop

    def turned_scores(
        self,
        volume: Volume,
        window: Window,
        *,
        step: float = TILE_STEP,
        elsewhere: bool = False,
        keep: bool = False,
        progress: Progress | None = None,
    ) -> TurnedLogits:
        """Run a network of one channel over a scan with the head turned upright.

        Beyond the scan its outermost voxels go on.

        Parameters
        ----------
        window
            What the network sees.
        elsewhere
            Whether what lies outside is background; else nothing is said of it.
        step, keep, progress
            As for `scores`.

        Returns
        -------
        On the voxels of the scan in the crop around everything that is not zero.
        """
        crop = Crop.around(volume.data != 0, volume.grid)
        z, y, x = (int(n) for n in np.ceil((window.high - window.low) / crop.voxel_size))
        self._check_memory(volume.grid, Grid((x, y, z), crop.grid.affine))
        image = self._normalised([crop.cut(volume.data).transpose(self._axes)], 0)[None]
        spacing = _spacing(self.model, [crop.voxel_size[axis] for axis in self._axes], self.options)
        image = self._resample(image, spacing)[0].transpose(self._back)
        edges = np.array(crop.shape) * crop.voxel_size / image.shape
        upright = centres(edges, window.low)
        image = ndimage.affine_transform(
            image,
            np.linalg.inv(window.pose.affine @ centres(edges)) @ upright,
            output_shape=[max(1, round(n)) for n in (window.high - window.low) / edges],
            order=3,
            mode="nearest",
        )
        image = np.ascontiguousarray(image.transpose(self._axes))[None]
        logits = self._padded(image, step=step, progress=progress)
        unseen = torch.full((len(logits),), _NEVER if elsewhere else torch.nan)
        if elsewhere:
            unseen[0] = 0
        return TurnedLogits(
            logits.permute(0, *(1 + axis for axis in self._back)),
            upright,
            window.pose.affine @ centres(crop.voxel_size),
            crop.shape,
            unseen,
            keep=keep,
        )

    def _padded(
        self,
        image: npt.NDArray[np.float32],
        *,
        inside: npt.NDArray[np.bool_] | None = None,
        step: float,
        progress: Progress | None,
    ) -> torch.Tensor:
        """Return the logits of an image (channels, I, J, K), which may be smaller than a tile."""
        padded, inner = pad_nd_image(
            torch.from_numpy(image), self._plan.patch_size, "constant", {"value": 0}, True
        )
        wanted = None if inside is None else _seen_box(inside, inner[1:])
        return self._predict(padded, wanted, step, progress)[(slice(None), *inner[1:])]

    def _check_memory(self, grid: Grid, part: Grid) -> None:
        need, given = self.memory_of_scan(grid, part), self.options.memory
        there = given or free_memory() + psutil.Process().memory_info().rss
        what = f"about {need / 1e9:.1f} GB of memory"
        limit = f"{there / 1e9:.1f} GB are {'given' if given else 'free'}"
        logger.info("Needs %s; %s.", what, limit)
        if need > there:
            leaner = []
            if self.load.on_cpu and self.load.lean and self.load.precision == "float32":
                leaner.append("--precision bfloat16")
            if len(self.model.folds) > 1:
                leaner.append("a single one of --folds")
            if not self.options.low_memory:
                leaner.append("--low-mem")
            helps = f"{', '.join(leaner)} or more memory" if leaner else "More memory"
            raise ImageError(
                f"The scan needs {what}; {limit}.",
                f"{helps[0].upper()}{helps[1:]} (--mem-gb) helps.",
            )

    def _predict(
        self,
        image: torch.Tensor,
        wanted: Sequence[slice] | None,
        step: float,
        progress: Progress | None,
    ) -> torch.Tensor:
        """Run all folds over an image (channels, I, J, K); see `_make_smaller` for small GPUs.

        Tiles outside the box `wanted` are left out.
        """
        while True:
            trouble = self._lack_of_gpu_memory()
            if not trouble:
                try:
                    return self._predict_here(image, wanted, step, progress)
                except torch.OutOfMemoryError:
                    if self.device.type == "cpu":
                        raise
                    trouble = f"Out of memory on {self.device}"
            self._make_smaller(trouble)

    def _lack_of_gpu_memory(self) -> str:
        """Say what the GPU lacks, or nothing."""
        if self.device.type != "cuda":
            return ""
        need = self.load.network_memory()
        free, _ = torch.cuda.mem_get_info(self.device)
        free += torch.cuda.memory_reserved(self.device)  # by this network and its last scan
        if need <= free:
            return ""
        return f"The GPU has {free / 1e9:.1f} GB free, about {need / 1e9:.1f} GB are needed"

    def _make_smaller(self, trouble: str) -> None:
        """Work in smaller pieces on the same device, or else on the CPU, from now on."""
        pieces = not self.load.lean and is_unet(self._network)
        way = "in smaller pieces" if pieces else "on the CPU"
        logger.warning("%s: going on %s.", trouble, way)
        del self._network, self._runner
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        self._build(self.device if pieces else torch.device("cpu"), lean=True)

    def _predict_here(
        self,
        image: torch.Tensor,
        wanted: Sequence[slice] | None,
        step: float,
        progress: Progress | None,
    ) -> torch.Tensor:
        return predict_tiled(
            self._folds(),
            image,
            tile=self._plan.patch_size,
            classes=len(self.model.labels),
            fold_count=len(self.model.folds),
            autocast=None if self.load.lean else _reduced_precision(self.device),
            wanted=wanted,
            step=step,
            on_disk=self.options.low_memory,
            progress=progress,
        )

    def memory_of_scan(self, grid: Grid, part: Grid | None = None) -> float:
        """Estimate in bytes the most main memory that a scan needs, see `sizing.Load.memory`.

        `part` is what the network sees of it; default: all.
        """
        seen = seen_shape(self.model, part or grid, self.options)
        return self.load.memory(math.prod(grid.shape), seen)

    def _resample(
        self, image: npt.NDArray[np.float32], spacing: Sequence[float]
    ) -> npt.NDArray[np.float32]:
        """Resample an image (channels, I, J, K) to the network's voxels."""
        shape = compute_new_shape(image.shape[1:], spacing, self._plan.spacing)
        resampled = self._plan.resampling_fn_data(image, shape, spacing, self._plan.spacing)
        return np.ascontiguousarray(resampled, dtype=np.float32)

    def _normalised(
        self, channels: Sequence[npt.NDArray[np.float32]], index: int
    ) -> npt.NDArray[np.float32]:
        name = self._plan.normalization_schemes[index]
        scheme = getattr(default_normalization_schemes, name, None)
        if scheme is None:
            raise ModelError(f"{self.model.folder} asks for the unknown normalisation {name}.")
        masked = self._plan.use_mask_for_norm[index]
        outside = None
        if masked:
            outside = -(~ndimage.binary_fill_holes(_anything(channels))).astype(np.int8)
        properties = self._intensities[str(index)]
        normalise = scheme(use_mask_for_norm=masked, intensityproperties=properties)
        normal: npt.NDArray[np.float32] = normalise.run(channels[index].copy(), outside)
        return normal

    def _resampled(
        self, logits: torch.Tensor, shape: Sequence[int], spacing: Sequence[float]
    ) -> tuple[torch.Tensor, int | None]:
        """Resample logits as the plans say, or tell the axis of thick slices if that is linear.

        Linear interpolation, nnU-Net's default, is left to `scores.Logits`.
        """
        configuration = self._plan.configuration
        options = configuration["resampling_fn_probabilities_kwargs"]
        if (
            configuration["resampling_fn_probabilities"] == "resample_data_or_seg_to_shape"
            and (options["order"], options["order_z"]) == (1, 0)
        ):  # fmt: skip
            _, axis = determine_do_sep_z_and_axis(
                options["force_separate_z"], self._plan.spacing, spacing
            )
            return logits, axis
        resample = self._plan.resampling_fn_probabilities
        return torch.as_tensor(resample(logits, shape, self._plan.spacing, spacing)), None

    def _folds(self) -> Iterator[nn.Module]:
        for path in self.model.folds:
            if self._loaded != path:
                if not path.exists() or path.stat().st_mtime_ns != self._written[path]:
                    raise ModelError(f"{path} changed while it was in use.", "Run again.")
                try:
                    self._network.load_state_dict(load_weights(path))
                except RuntimeError as error:
                    raise ModelError(f"{path} does not fit the network in plans.json.") from error
                self._loaded = path
            yield self._runner


def _axes_to_mirror(model: NnunetModel, options: Inference) -> tuple[int, ...]:
    wished = model.mirror if options.mirror is None else options.mirror
    return mirror_axes(model.folds[0]) if wished else ()


def _sketch(model: NnunetModel) -> nn.Module:
    """Build a model's network without memory for its weights."""
    architecture = model.plan.configuration["architecture"]
    with torch.device("meta"):
        return build_network(
            architecture, channels=model.channels, classes=len(model.labels), initialise=False
        )


def _unfilled(model: NnunetModel, device: torch.device) -> nn.Module:
    """Build a model's network on a device, with whatever memory holds as its weights.

    `Module.to_empty` does the same, but imports torch's compiler: half a second.
    """
    network = _sketch(model)
    for layer in network.modules():
        for name, value in layer.named_parameters(recurse=False):
            setattr(layer, name, nn.Parameter(_empty(value, device)))
        for name, buffer in layer.named_buffers(recurse=False):
            setattr(layer, name, _empty(buffer, device))
    return network


def _empty(like: torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=device)


def load_of(
    model: NnunetModel, device: torch.device, options: Inference, *, lean: bool = False
) -> Load:
    """Say what a model's network asks of a machine, without loading or computing anything.

    U-Nets run in pieces (`lean`) on a CPU, with `--low-mem`, and where a GPU is too small.
    """
    network = _sketch(model)
    first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv3d))
    lean = (lean or device.type == "cpu" or options.low_memory) and is_unet(network)
    precision = "float16" if device.type == "cuda" else "float32"
    if lean and device.type == "cpu":
        able = {"int8": has_fast_int8, "bfloat16": has_fast_bfloat16}
        known = [name for name in model.precisions if able[name]()]
        wish = options.precision
        precision = next(iter(known), "float32") if wish == "auto" else wish
        if precision == "int8" and not bears_int8(network):
            precision = "float32"
    return Load(
        tile=tuple(model.plan.patch_size),
        classes=len(model.labels),
        folds=len(options.folds or model.folds),
        parameters=sum(value.numel() for value in network.parameters()),
        width=first.out_channels,
        residual=any(hasattr(block, "conv2") for block in network.modules()),
        precision=precision,
        lean=lean,
        on_cpu=device.type == "cpu",
        low_memory=options.low_memory,
        flips=2 ** len(_axes_to_mirror(model, options)),
    )


def seen_shape(model: NnunetModel, grid: Grid, options: Inference) -> tuple[int, ...]:
    """Return the voxels (I, J, K) of a whole scan as the network sees it, at least a tile."""
    target = Reorientation.to_ras(grid).target
    order = [2 - axis for axis in model.plans["transpose_forward"]]
    spacing = _spacing(model, [target.voxel_size[axis] for axis in order], options)
    shape = compute_new_shape([target.shape[axis] for axis in order], spacing, model.plan.spacing)
    return tuple(int(n) for n in np.maximum(shape, model.plan.patch_size))


def estimate(
    model: NnunetModel,
    grids: Sequence[Grid],
    device: torch.device,
    options: Inference,
    *,
    cpus: int,
    focus: Focus | None = None,
    load: Load | None = None,
) -> Size:
    """Estimate what the largest of some scans takes; without any, one of 256^3 at 1 mm stands in.

    Fit for asking a scheduler with some spare, not for promising. `focus` tells what the network
    will see of a scan, all of it by default; `load` is `load_of` the model, if that is known.
    """
    load = load or load_of(model, device, options)
    scans = [
        (math.prod(grid.shape), seen_shape(model, focus.typical(grid) if focus else grid, options))
        for grid in grids or [Grid((256, 256, 256), np.eye(4))]
    ]
    work, step = model.multiply_adds, focus.step if focus else TILE_STEP
    return Size(
        memory=max(load.memory(*scan) for scan in scans),
        answer=max(load.answer(*scan) for scan in scans),
        seconds=max(
            load.seconds(*scan, multiply_adds=work, cpus=cpus, step=step) for scan in scans
        ),
    )


def _spacing(model: NnunetModel, true: list[float], options: Inference) -> list[float]:
    """Return the voxel size that a scan is taken to have, in the plans' axis order."""
    if not options.interpolate:
        return list(model.plan.spacing)
    if options.voxel_size:
        true = [options.voxel_size] * 3
    return [size * options.scale for size in true]


def _reduced_precision(device: torch.device) -> torch.dtype | None:
    """Return float16 on CUDA as stock nnU-Net does, float32 (None) elsewhere."""
    return torch.float16 if device.type == "cuda" else None


def _anything(channels: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.bool_]:
    """Return (I, J, K) bool, True where any channel is not zero."""
    return reduce(np.logical_or, [channel != 0 for channel in channels])


def _seen_box(mask: npt.NDArray[np.bool_], inner: Sequence[slice]) -> list[slice]:
    """Return a box around all voxels of the network that interpolation to a mask may ask for.

    Parameters
    ----------
    mask
        (I, J, K) on the cropped scan's grid.
    inner
        Where that lies in the network's padded grid.
    """
    return [
        slice(
            max(int(part.start * scale) - 2, 0) + whole.start,
            math.ceil(part.stop * scale) + 2 + whole.start,
        )
        for part, whole, scale in zip(
            box_of(mask),
            inner,
            [(s.stop - s.start) / n for s, n in zip(inner, mask.shape, strict=True)],
            strict=True,
        )
    ]


def build_network(
    architecture: Mapping[str, Any], *, channels: int, classes: int, initialise: bool = True
) -> nn.Module:
    """Build the network that a plans.json names, without deep supervision outputs.

    Parameters
    ----------
    architecture
        The `architecture` entry of a configuration in plans.json.
    initialise
        Draw the first weights at random as nnU-Net does: needed for training only.
    """
    network: nn.Module = get_network_from_plans(
        architecture["network_class_name"],
        dict(architecture["arch_kwargs"]),
        list(architecture["_kw_requires_import"]),
        channels,
        classes,
        allow_init=initialise,
        deep_supervision=False,
    )
    return network


def compact_plans(
    *, name: str, features: tuple[int, ...], patch: tuple[int, int, int], spacing: float
) -> dict[str, Any]:
    """Return plans.json of a plain U-Net on isotropic voxels.

    Parameters
    ----------
    features
        Channels of each stage; every stage but the first halves the resolution.
    patch
        Tile in voxels.
    spacing
        Voxel size in mm.
    """
    stages = len(features)
    resampling = {
        f"resampling_fn_{kind}": "resample_data_or_seg_to_shape"
        for kind in ("data", "seg", "probabilities")
    }
    resampling_options = {
        f"resampling_fn_{kind}_kwargs": {
            "is_seg": kind == "seg",
            "order": 3 if kind == "data" else 1,
            "order_z": 0,
            "force_separate_z": False,
        }
        for kind in ("data", "seg", "probabilities")
    }
    return {
        "dataset_name": name,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [192, 224, 192],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            CONFIGURATION: {
                "data_identifier": f"nnUNetPlans_{CONFIGURATION}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 1,
                "patch_size": list(patch),
                "median_image_size_in_voxels": [96, 112, 96],
                "spacing": [spacing] * 3,
                "normalization_schemes": ["ZScoreNormalization"],
                "use_mask_for_norm": [False],
                **resampling,
                **resampling_options,
                "architecture": {
                    "network_class_name": (
                        "dynamic_network_architectures.architectures.unet.PlainConvUNet"
                    ),
                    "arch_kwargs": {
                        "n_stages": stages,
                        "features_per_stage": list(features),
                        "conv_op": "torch.nn.modules.conv.Conv3d",
                        "kernel_sizes": [[3, 3, 3]] * stages,
                        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
                        "n_conv_per_stage": [1] + [2] * (stages - 1),
                        "n_conv_per_stage_decoder": [1] * (stages - 1),
                        "conv_bias": True,
                        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                        "dropout_op": None,
                        "dropout_op_kwargs": None,
                        "nonlin": "torch.nn.LeakyReLU",
                        "nonlin_kwargs": {"inplace": True},
                    },
                    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
                },
                "batch_dice": False,
            }
        },
        "experiment_planner_used": "siam-bids-train",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": dict.fromkeys(
                ("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 0.0
            )
        },
    }


def checkpoint(
    weights: Mapping[str, torch.Tensor], mirror_axes: tuple[int, ...] | None = None
) -> dict[str, Any]:
    """Return the content of a checkpoint_final.pth that stock nnU-Net loads too.

    `mirror_axes` are those of [z, y, x] that inference may mirror.
    """
    return {
        "network_weights": dict(weights),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": CONFIGURATION},
        "inference_allowed_mirroring_axes": mirror_axes,
    }
