"""Running the folds of a model, on the requested device or where memory suffices."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from siam_bids.config import Inference
from siam_bids.errors import ModelError, UsageError
from siam_bids.inference.cost import load_of
from siam_bids.inference.engines import Engine, TorchEngine
from siam_bids.inference.openvino_engine import OpenVinoEngine
from siam_bids.inference.prediction import Progress
from siam_bids.inference.sliding_window import TILE_STEP, Tiling, predict_tiled
from siam_bids.nnunet.model import NnunetModel, axes_to_mirror
from siam_bids.nnunet.test_time_mirroring import Mirrored

logger = logging.getLogger(__name__)


def check_options(model: NnunetModel, device: torch.device, options: Inference) -> None:
    """Refuse options that a model cannot fulfil on a device, computing nothing.

    Raises
    ------
    UsageError
        The model was not trained for mirroring, or OpenVINO is asked for and cannot run it here.
    """
    if options.mirror and not axes_to_mirror(model, options):
        raise UsageError(f"{model.folder.name} was not trained for mirroring.", "Omit --mirror.")
    load_of(model, device, options)


class Runner:
    """Holds one network and runs a model's folds with it, one after the other.

    A GPU with too little memory works in smaller pieces, and if that fails too, the CPU takes
    over, for all scans that follow.

    Parameters
    ----------
    model
        Those of its folds are run that it lists.
    device
        `cpu`, `cuda` or `mps`.
    options
        Precision `auto` is bfloat16 where the model allows it and the CPU is fast in it, float16
        on CUDA as in stock nnU-Net, else float32. Engine `auto` is OpenVINO where it is
        installed, on a CPU, and has the memory; else torch.

    Attributes
    ----------
    device
        Where the network runs now.
    load
        What it asks of the machine there.

    Raises
    ------
    UsageError
        The model was not trained for mirroring, or OpenVINO is requested and cannot run it.
    """

    def __init__(self, model: NnunetModel, device: torch.device, options: Inference) -> None:
        self._model, self._options = model, options
        self._written = {path: path.stat().st_mtime_ns for path in model.folds}
        check_options(model, device, options)
        self._axes_mirrored = axes_to_mirror(model, options)
        self._build(device)

    def _build(self, device: torch.device, *, lean: bool = False) -> None:
        self.device = device
        self.load = load_of(self._model, device, self._options, lean=lean)
        self._loaded: Path | None = None
        self._engine: Engine
        if self.load.engine == "torch":
            self._engine = TorchEngine(self._model, device, self.load)
            return
        try:
            self._engine = OpenVinoEngine(self._model, self.load)
        except RuntimeError as error:
            if self._options.engine != "auto":
                raise ModelError(
                    f"OpenVINO cannot run {self._model.folder.name}: {error}.",
                    "Give --engine torch.",
                ) from error
            logger.warning("OpenVINO cannot run this network (%s): continuing with torch.", error)
            self._build(device, lean=True)

    def predict(
        self,
        image: torch.Tensor,
        *,
        wanted: Sequence[slice] | None = None,
        step: float = TILE_STEP,
        progress: Progress | None = None,
    ) -> torch.Tensor:
        """Run all folds over an image (channels, I, J, K) of at least a tile.

        Parameters
        ----------
        wanted
            Box outside which tiles are left out. Default: none is.
        step
            Tile edges between two tiles, at most.

        Returns
        -------
        (classes, I, J, K) float16 logits on the CPU, averaged over the folds.

        Raises
        ------
        ModelError
            A checkpoint is unusable or changed since this was made.
        """
        tiling = Tiling(self._model.plan.patch_size, step, wanted)
        count = len(self._model.folds)
        while True:
            if trouble := self._lack_of_gpu_memory():
                self.make_smaller(trouble)
                continue
            try:
                return predict_tiled(
                    self.folds(),
                    image,
                    tiling,
                    classes=len(self._model.labels),
                    on_disk=self._options.low_memory,
                    progress=(lambda done: progress(done / count)) if progress else None,
                )
            except torch.OutOfMemoryError:
                if self.device.type == "cpu":
                    raise
                trouble = f"Out of memory on {self.device}"
            self.make_smaller(trouble)

    def folds(self) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
        """Yield each fold ready to run, in place of the one before; see `predict_tiled`."""
        for path in self._model.folds:
            if self._loaded != path:
                if not path.exists() or path.stat().st_mtime_ns != self._written[path]:
                    raise ModelError(f"{path} changed while it was in use.", "Run again.")
                self._loaded = None
                self._engine.load(path)
                self._loaded = path
            engine = self._engine
            yield Mirrored(engine, self._axes_mirrored) if self._axes_mirrored else engine
        self._engine.release()

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

    @property
    def may_save_memory(self) -> bool:
        """Whether the network can run in smaller pieces than it does, where it does."""
        forced = self.load.engine == "openvino" == self._options.engine
        return self.load.unet and not self.load.lean and not forced

    def make_smaller(self, trouble: str) -> None:
        """Work in smaller pieces on the same device, or else on the CPU, from now on."""
        pieces = self.may_save_memory
        way = "in smaller pieces" if pieces else "on the CPU"
        logger.warning("%s: continuing %s.", trouble, way)
        del self._engine
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        self._build(self.device if pieces else torch.device("cpu"), lean=pieces)
