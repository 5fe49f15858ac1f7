"""What a scan costs with a network of SIAM's full size: this app against stock nnU-Net.

    python benchmarks/siam_cost.py FOLDER [--folds 5] [--runs stock float32 ...] [--threads 1]

Builds SIAM v0.3's network (141.5 million parameters, patch 256 x 256 x 192 at 0.75 mm) with seeded
random weights in FOLDER, one set for each fold, and lets each run segment Colin27 (cropped with
--extent MM MM MM) in a process of its own, one after the other. Each leaves a record and its labels
in FOLDER, so that runs can be added later; the table of all of them is printed, as in
benchmarks/siam_cost.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SCAN = ROOT / "data/sample_bids/sub-colin27/anat/sub-colin27_T1w.nii.gz"
RUNS = {
    "stock": "stock nnU-Net, float32",
    "float32": "siam-bids, float32, torch",
    "bfloat16": "siam-bids, bfloat16, torch",
    "float32-low": "siam-bids, float32, --low-mem",
    "bfloat16-low": "siam-bids, bfloat16, --low-mem",
    "float32-openvino": "siam-bids, float32, OpenVINO",
    "bfloat16-openvino": "siam-bids, bfloat16, OpenVINO",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", nargs="*", default=list(RUNS), choices=RUNS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folds", type=int, default=1, help="of a model that is not there yet")
    parser.add_argument("--extent", nargs=3, type=int, default=[144, 192, 181], metavar="MM")
    parser.add_argument("--one", choices=RUNS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        run(arguments.one, arguments.folder, arguments.extent, arguments.threads)
        return
    if not (arguments.folder / "model").exists():
        write_model(arguments.folder / "model", arguments.folds)
    for name in arguments.runs:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "nnUNet_compile": "f"}
        environment["OMP_NUM_THREADS"] = str(arguments.threads)
        subprocess.run([sys.executable, *sys.argv, "--one", name], env=environment, check=True)
    print(table(arguments.folder))


def write_model(
    folder: Path,
    folds: int,
    *,
    features: tuple[int, ...] = (32, 64, 128, 256, 320, 320, 320),
    patch: tuple[int, int, int] = (256, 256, 192),
    spacing: float = 0.75,
) -> None:
    """A model folder of SIAM v0.3's shape, or smaller; its architecture is in plans.json."""
    import torch

    from siam_bids.image.labels import siam_labels
    from siam_bids.nnunet.architecture import build_network
    from siam_bids.nnunet.model import CONFIGURATION
    from siam_bids.nnunet.write import checkpoint, compact_plans

    plans = compact_plans(name="Siam", features=features, patch=patch, spacing=spacing)
    architecture = plans["configurations"][CONFIGURATION]["architecture"]
    architecture["network_class_name"] = (
        "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    )
    shape = architecture["arch_kwargs"]
    del shape["n_conv_per_stage"]
    shape["n_blocks_per_stage"] = [1, 3, 4, 6, 6, 6, 6][: len(features)]
    shape["strides"][-1] = [2, 2, 1]
    names = {label.name: label.index for label in siam_labels()}
    folder.mkdir(parents=True)
    for fold in range(folds):
        torch.manual_seed(fold)
        network = build_network(architecture, channels=1, classes=len(names))
        (folder / f"fold_{fold}").mkdir()
        torch.save(checkpoint(network.state_dict()), folder / f"fold_{fold}/checkpoint_final.pth")
    print(f"{sum(value.numel() for value in network.parameters()):,} parameters", flush=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    about = {"channel_names": {"0": "any"}, "labels": names, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(about))


def run(name: str, folder: Path, extent: list[int], threads: int) -> None:
    """Segment once; write the record and the labels."""
    import torch

    from siam_bids.image.grid import Grid, Volume
    from siam_bids.image.loading import load_volume
    from siam_bids.support.memory import peak_memory, reset_peak_memory

    torch.set_num_threads(threads)
    whole = load_volume(SCAN)
    start = [(n - mm) // 2 for n, mm in zip(whole.grid.shape, extent, strict=True)]
    data = whole.data[tuple(slice(a, a + mm) for a, mm in zip(start, extent, strict=True))]
    volume = Volume(np.ascontiguousarray(data), Grid(data.shape, whole.grid.affine))
    reset_peak_memory()
    begin, cpu, forward = time.monotonic(), time.process_time(), Forward(folder / f"{name}.log")
    labels, about = (stock if name == "stock" else ours)(name, folder / "model", volume, forward)
    record = {
        "seconds": time.monotonic() - begin,
        "cpu_seconds": time.process_time() - cpu,
        "forward_seconds": forward.seconds,
        "tiles": forward.tiles,
        "peak_memory": peak_memory(),
        "threads": threads,
        "extent": extent,
        **about,
    }
    np.save(folder / f"{name}.npy", labels)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=2))


class Forward:
    """Times a network's own forward passes, the least that any program must do."""

    def __init__(self, log: Path) -> None:
        self.seconds, self.tiles, self.log = 0.0, 0, log

    def watch(self, owner: Any, name: str = "forward") -> None:
        """Count the calls of a method of `owner`, which is a network or a class of networks."""
        plain = getattr(owner, name)

        def timed(*arguments: Any) -> Any:
            begin = time.monotonic()
            answer = plain(*arguments)
            self.seconds += time.monotonic() - begin
            self.tiles += 1
            self.log.write_text(f"{self.tiles} tiles, {self.seconds:.1f} s\n")
            return answer

        setattr(owner, name, timed)


def stock(_name: str, model: Path, volume: Any, forward: Forward) -> tuple[Any, dict[str, float]]:
    """nnUNetPredictor with SIAM's options, all in one process."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        tile_step_size=0.5, use_mirroring=False, device=torch.device("cpu"),
        perform_everything_on_device=False, allow_tqdm=False,
    )  # fmt: skip
    folds = sorted(int(fold.name.removeprefix("fold_")) for fold in model.glob("fold_*"))
    predictor.initialize_from_trained_model_folder(str(model), folds)
    forward.watch(predictor.network)
    data = volume.data.transpose(2, 1, 0)[None].copy()
    properties = {"spacing": list(volume.grid.voxel_size[::-1])}
    return predictor.predict_single_npy_array(data, properties).transpose(2, 1, 0), {}


def ours(name: str, model: Path, volume: Any, forward: Forward) -> tuple[Any, dict[str, float]]:
    """The same by this app."""
    import torch

    from siam_bids.config import Inference
    from siam_bids.inference.openvino_engine import OpenVinoEngine
    from siam_bids.inference.segmenter import NnunetSegmenter
    from siam_bids.nnunet.lean_unet import LeanUNet
    from siam_bids.nnunet.model import NnunetModel

    precision, _, how = name.partition("-")
    engine = "openvino" if how == "openvino" else "torch"
    options = Inference(precision=precision, low_memory=how == "low", engine=engine)
    segmenter = NnunetSegmenter(NnunetModel.open(model), torch.device("cpu"), options)
    forward.watch(LeanUNet)
    forward.watch(OpenVinoEngine, "__call__")
    found = segmenter.segment(volume).segmentation.data
    return found, {"estimate": segmenter.memory_of_scan(volume.grid)}


def table(folder: Path) -> str:
    """All runs of a folder as a Markdown table; ratios and labels are compared with the first."""
    records = {
        name: json.loads((folder / f"{name}.json").read_text())
        for name in RUNS
        if (folder / f"{name}.json").exists()
    }
    reference = next(iter(records))
    columns = ("run", "wall s", "ratio", "CPU s", "ratio", "wall / forward passes", "peak GB",
               "ratio", "estimated GB", f"voxels as {reference}", "worst class Dice")  # fmt: skip
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    first = records[reference]
    truth = np.load(folder / f"{reference}.npy")
    for name, record in records.items():
        labels = np.load(folder / f"{name}.npy")
        dice = [
            2 * np.sum((labels == value) & (truth == value))
            / (np.sum(labels == value) + np.sum(truth == value))
            for value in np.unique(truth)
        ]  # fmt: skip
        ratio = {key: record[key] / first[key] for key in ("seconds", "cpu_seconds", "peak_memory")}
        guess = f"{record['estimate'] / 1e9:.1f}" if "estimate" in record else ""
        rows.append(
            f"| {RUNS[name]} | {record['seconds']:.0f} | {ratio['seconds']:.2f} | "
            f"{record['cpu_seconds']:.0f} | {ratio['cpu_seconds']:.2f} | "
            f"{record['seconds'] / record['forward_seconds']:.2f} | "
            f"{record['peak_memory'] / 1e9:.1f} | {ratio['peak_memory']:.2f} | {guess} | "
            f"{(labels == truth).mean():.4%} | {min(dice):.4f} |"
        )
    tiles, extent = first["tiles"], first["extent"]
    return "\n".join([f"{tiles} tiles, {extent} mm, {len(np.unique(truth))} classes.", "", *rows])


if __name__ == "__main__":
    main()
