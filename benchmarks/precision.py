"""Do the labels stay the same in bfloat16?

    python benchmarks/precision.py bfloat16 HEADS LABEL_MAPS [--models NAME ...] [--count 4]

HEADS holds the real scans below, LABEL_MAPS the maps that no model of ours is trained on, see
quality.py. Writes benchmarks/precision_bfloat16.md, where every scan is labelled in
float32 and in this precision side by side, on one thread: the share of all voxels of a scan that
get the same label, the mean Dice of the brain's tissues with the truth where a scan is painted, and
the CPU time. A model whose every share is 99.9 % or more on the real scans may name the precision
in data/models.json.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from quality import BRAIN_CLASSES, HELD_OUT, INDEX, Bench, dice, held_out_recipe

from siam_bids.config import Inference
from siam_bids.image.grid import Grid, Volume
from siam_bids.image.loading import load_volume
from siam_bids.inference.cascade import Cascade, CascadeSegmenter
from siam_bids.models.registry import find_model

SCANS = (
    "colin27_T1w.nii.gz",
    "seg3d_T1w.nii.gz",
    "stroke_T2.nii.gz",
    "visualqc_id001_T1w.mgz",
)
PAINTED = (("random", 1.0), ("T1w", 1.0), ("random", 5.0))
"""Contrast, and slice thickness in mm."""


def scans(options: argparse.Namespace) -> Iterator[tuple[str, Volume, np.ndarray | None]]:
    """Yield names, images and, of painted ones, the true labels."""
    for name in SCANS:
        yield name.split(".")[0], load_volume(options.heads / name), None
    bench = Bench(None, options.label_maps, options.heads, options.count)
    for contrast, thick in PAINTED:
        for name in HELD_OUT:
            for seed in range(options.count):
                rendering, truth = bench.painted(name, held_out_recipe(seed, contrast, thick))
                image = rendering.image.numpy().astype(np.float32)
                title = f"{name.split('_')[-1]}/{seed}, {contrast}, {thick:.0f} mm"
                yield title, Volume(image, Grid(image.shape, np.eye(4))), truth


def brain_dice(found: np.ndarray, truth: np.ndarray) -> float:
    """Mean over the brain's tissues."""
    pairs = [(found == INDEX[name], truth == INDEX[name]) for name in BRAIN_CLASSES]
    return float(np.nanmean([dice(*pair) for pair in pairs]))


def table(name: str, options: argparse.Namespace) -> Iterator[str]:
    """Yield a model's table, line by line."""
    record = find_model(name)
    cascade = Cascade.open(record)
    precisions = ("float32", options.precision)
    yield f"{record.title} {record.version}"
    yield ""
    yield "| scan | same label, % | Dice float32 | Dice | time |"
    yield "|---|---|---|---|---|"
    changes = []
    for scan, volume, truth in scans(options):
        labels, seconds = [], []
        for precision in precisions:
            segmenter = CascadeSegmenter(
                cascade, torch.device("cpu"), Inference(precision=precision)
            )
            begin = time.process_time()
            labels.append(segmenter.segment(volume).segmentation.data)
            seconds.append(time.process_time() - begin)
        exact, fast = labels
        told = "| |"
        if truth is not None:
            scores = [brain_dice(found, truth) for found in labels]
            changes.append(scores[1] - scores[0])
            told = f"| {scores[0]:.4f} | {scores[1]:.4f}"
        yield (
            f"| {scan} | {100 * (exact == fast).mean():.3f} {told} "
            f"| {seconds[1] / seconds[0]:.2f} |"
        )
    yield ""
    if changes:
        yield (
            f"Of the Dice, on average {np.mean(changes):+.4f}, at worst {min(changes):+.4f}, "
            f"at best {max(changes):+.4f}."
        )
        yield ""


def main() -> None:
    """Measure all models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("precision", choices=("bfloat16",))
    parser.add_argument("heads", type=Path)
    parser.add_argument("label_maps", type=Path)
    parser.add_argument("--models", nargs="+", default=["compact", "compact-2mm"])
    parser.add_argument("--count", type=int, default=4, help="painted images of each kind and map")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        f"Labels in {options.precision} against those in float32: the share of voxels of the whole",
        "scan with the same label, the mean Dice of the brain's tissues with the truth of painted",
        "heads, and the CPU time as a share of float32's.",
        "",
    ]
    for name in options.models:
        for line in table(name, options):
            print(line, flush=True)
            lines.append(line)
    target = Path(__file__).with_name(f"precision_{options.precision}.md")
    target.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
