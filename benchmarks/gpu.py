"""What a GPU needs to be trusted with, in one command of under eight minutes.

    python benchmarks/gpu.py [FOLDER] [--small]

On CUDA: the compact network of 2 mm and one of SIAM's full size (random weights) over Colin27 in
float16, bfloat16 and float32, against stock nnU-Net on the same GPU: labels, wall clock and peak
memory; what happens where the GPU's memory is really too small, with PyTorch's allocator limited:
first so that pieces fit, then so that nothing does; and scans an hour of whole runs, in which scans
are read and written while others are segmented. Prints Markdown tables and leaves all records in
FOLDER (default: gpu_results).

With --small the same is done on the CPU with a tiny network and a small head, where the lack of
memory is pretended. It tests this script, and says nothing of GPUs.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SCAN = ROOT / "data/sample_bids/sub-colin27/anat/sub-colin27_T1w.nii.gz"
WAYS = ("stock", "float16", "bfloat16", "float32", "in pieces")
LIMITS = {"pieces": "in smaller pieces", "cpu": "on the CPU"}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("gpu_results"))
    parser.add_argument("--small", action="store_true", help="on the CPU, tiny")
    parser.add_argument("--scans", type=int, default=8, help="of the whole runs")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        kind, model, way, limit = options.child
        record = segment(options.folder, kind, Path(model), way, float(limit), small=options.small)
        (options.folder / f"{kind}.json").write_text(json.dumps(record, indent=2))
        return 0
    import torch

    if not options.small and not torch.cuda.is_available():
        print("There is no CUDA device here; --small tests this script on the CPU.")
        return 2
    options.folder.mkdir(parents=True, exist_ok=True)
    where = "the CPU, tiny: a test" if options.small else torch.cuda.get_device_name()
    print(f"On {where}; torch {torch.__version__}.\n")
    models = models_of(options.folder, small=options.small)
    trouble = []
    for name, model in models.items():
        trouble += agreement(options.folder, name, model, small=options.small)
        trouble += lack_of_memory(options.folder, name, model, small=options.small)
    throughput(options.folder, next(iter(models.values())), options.scans, small=options.small)
    print(*trouble, sep="\n")
    return 1 if trouble else 0


def models_of(folder: Path, *, small: bool) -> dict[str, Path]:
    """Model folders by name."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from siam_cost import write_model

    from siam_bids.models.registry import find_model

    if small:
        write_model(folder / "tiny", 1, features=(4, 8, 8, 8), patch=(32, 32, 32), spacing=4.0)
        return {"tiny": folder / "tiny"}
    write_model(folder / "siam", 1)
    return {"compact-2mm": find_model("compact-2mm").folder, "SIAM's size": folder / "siam"}


def child(folder: Path, kind: str, model: Path, way: str, limit: float, *, small: bool) -> Any:
    """Segment once in a process of its own; return the record."""
    command = [sys.executable, __file__, str(folder), *(["--small"] if small else [])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "nnUNet_compile": "f"}
    subprocess.run(
        [*command, "--child", kind, str(model), way, str(limit)], env=environment, check=True
    )
    return json.loads((folder / f"{kind}.json").read_text())


def agreement(folder: Path, name: str, model: Path, *, small: bool) -> list[str]:
    """Print labels, time and memory of every way; return what is wrong."""
    columns = (
        "computed",
        "wall s",
        "of stock",
        "peak GB of the GPU",
        "of stock",
        "voxels as stock",
    )
    print(f"## {name}\n\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    first, wrong = None, []
    for way in WAYS:
        kind = f"{model.name}_{way.replace(' ', '_')}"
        found = child(folder, kind, model, way, 0, small=small)
        first = first or found
        same = np.mean(
            np.load(folder / f"{kind}.npy") == np.load(folder / f"{model.name}_stock.npy")
        )
        print(
            f"| {way} | {found['seconds']:.1f} | {found['seconds'] / first['seconds']:.2f} | "
            f"{found['gpu_peak'] / 1e9:.2f} | "
            f"{found['gpu_peak'] / max(1, first['gpu_peak']):.2f} | "
            f"{same:.4%} |",
            flush=True,
        )
        if same < 0.99:
            wrong.append(
                f"WRONG: {name}, {way}: {same:.4%} of the voxels are labelled as by stock."
            )
    print()
    return wrong


def lack_of_memory(folder: Path, name: str, model: Path, *, small: bool) -> list[str]:
    """Let the GPU run out of memory; print what happens and return what is wrong."""
    whole, pieces = (
        json.loads((folder / f"{model.name}_{way}.json").read_text())["gpu_peak"]
        for way in ("float16", "in_pieces")
    )
    limits = {"pieces": (whole + pieces) / 2, "cpu": pieces / 2}
    print(
        "| memory allowed | what the log says | wall s | voxels as with all memory |\n"
        "|---|---|---|---|"
    )
    wrong = []
    for goal, limit in limits.items():
        kind = f"{model.name}_limit_{goal}"
        found = child(folder, kind, model, "float16", limit or 1, small=small)
        same = np.mean(
            np.load(folder / f"{kind}.npy") == np.load(folder / f"{model.name}_float16.npy")
        )
        said = " / ".join(found["log"])
        print(
            f"| {limit / 1e9:.2f} GB | {said} | {found['seconds']:.1f} | {same:.4%} |", flush=True
        )
        if LIMITS[goal] not in said or same < 0.99:
            wrong.append(f"WRONG: {name} does not go on {LIMITS[goal]}: {said or 'nothing said'}.")
    print()
    return wrong


def throughput(folder: Path, model: Path, scans: int, *, small: bool) -> None:
    """Print scans an hour of a whole run."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from throughput import measure

    options = argparse.Namespace(
        scans=2 if small else scans, model=str(model) if small else "compact",
        device="cpu" if small else "cuda", image=head(folder) if small else SCAN,
    )  # fmt: skip
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    place = folder / f"run_{time.time_ns()}"
    place.mkdir()
    rate, costs = measure(place, 1, threads, options)
    print("| whole runs | scans/h | CPU s a scan | read, segment, write s | peak MB |")
    print(f"|---|---|---|---|---|\n| {options.scans} scans | {rate:.0f} | {costs} |", flush=True)


def head(folder: Path) -> Path:
    """A small scan: the sample of 1 mm, every fourth voxel."""
    import nibabel as nib

    path = folder / "small_T1w.nii.gz"
    image = nib.load(SCAN)
    nib.save(image.slicer[::4, ::4, ::4], path)
    return path


def segment(
    folder: Path, kind: str, model: Path, way: str, limit: float, *, small: bool
) -> dict[str, Any]:
    """Segment the scan one way; write the labels; return seconds, peak memory and log lines."""
    import torch

    from siam_bids.image.loading import load_volume

    volume = load_volume(head(folder) if small else SCAN)
    device = torch.device("cpu" if small else "cuda")
    log = Lines()
    logging.getLogger("siam_bids").addHandler(log)
    if limit and not small:
        torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.mem_get_info()[1])
    with pretended(2 if kind.endswith("cpu") else 1) if limit and small else nothing():
        run = stock(model, device) if way == "stock" else ours(model, device, way)
        if not small and not limit:
            run(volume)  # the first run prepares kernels
            torch.cuda.reset_peak_memory_stats()
        begin = time.monotonic()
        labels = run(volume)
        seconds = time.monotonic() - begin
    np.save(folder / f"{kind}.npy", labels)
    peak = 0 if small else torch.cuda.max_memory_reserved()
    return {"seconds": seconds, "gpu_peak": peak, "log": log.lines}


def stock(model: Path, device: Any) -> Any:
    """nnU-Net's own predictor with SIAM's options."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        tile_step_size=0.5, use_mirroring=False, device=device, verbose=False,
        perform_everything_on_device=device.type == "cuda", allow_tqdm=False,
    )  # fmt: skip
    name = "checkpoint_final.pth"
    if not (model / "fold_0" / name).exists():
        model = with_checkpoint(model)
    predictor.initialize_from_trained_model_folder(str(model), (0,), name)

    def run(volume: Any) -> Any:
        data = volume.data.transpose(2, 1, 0)[None].copy()
        properties = {"spacing": list(volume.grid.voxel_size[::-1])}
        return predictor.predict_single_npy_array(data, properties).transpose(2, 1, 0)

    return run


def with_checkpoint(model: Path) -> Path:
    """Write a converted model as nnU-Net reads it."""
    import tempfile

    import torch

    from siam_bids.nnunet.checkpoints import load_weights
    from siam_bids.nnunet.model import NnunetModel
    from siam_bids.nnunet.write import checkpoint

    opened, folder = NnunetModel.open(model), Path(tempfile.mkdtemp())
    (folder / "fold_0").mkdir()
    torch.save(checkpoint(load_weights(opened.folds[0])), folder / "fold_0/checkpoint_final.pth")
    (folder / "plans.json").write_text(json.dumps(opened.plans))
    (folder / "dataset.json").write_text(json.dumps(opened.dataset))
    return folder


def ours(model: Path, device: Any, way: str) -> Any:
    """The same by this app; on a CPU in float32."""
    from siam_bids.config import Inference
    from siam_bids.inference.segmenter import NnunetSegmenter
    from siam_bids.nnunet.model import NnunetModel

    precision = "auto" if way in ("float16", "in pieces") or device.type == "cpu" else way
    options = Inference(precision=precision, low_memory=way == "in pieces", mirror=False)
    segmenter = NnunetSegmenter(NnunetModel.open(model), device, options)
    return lambda volume: segmenter.segment(volume).segmentation.data


@contextmanager
def pretended(failures: int) -> Iterator[None]:
    """Take the CPU for a GPU that runs out of memory so many times."""
    import torch

    from siam_bids.inference import engines, runner
    from siam_bids.nnunet.model import empty_network

    left = [failures]
    predict, build = runner.predict_tiled, empty_network

    def failing(*arguments: Any, **words: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise torch.OutOfMemoryError
        return predict(*arguments, **words)

    start = runner.Runner.__init__

    def as_gpu(self: Any, model: Any, _device: Any, options: Any) -> None:
        start(self, model, torch.device("mps"), options)

    cpu = torch.device("cpu")
    with (
        mock.patch.object(runner, "predict_tiled", failing),
        mock.patch.object(runner.Runner, "__init__", as_gpu),
        mock.patch.object(engines, "empty_network", lambda model, _device: build(model, cpu)),
    ):
        yield


@contextmanager
def nothing() -> Iterator[None]:
    yield


class Lines(logging.Handler):
    """Keeps warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


if __name__ == "__main__":
    sys.exit(main())
