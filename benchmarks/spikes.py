"""Measure what hot voxels do to labels, with and without their being replaced.

    python benchmarks/spikes.py SCAN > benchmarks/spikes.md

SCAN is brought to voxels twice as long; voxels drawn by chance then get odd intensities. Dice and
volumes are against the labels of the scan without them, by compact-2mm.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from siam_bids.config import Inference
from siam_bids.image.grid import Grid, Segmentation, Volume
from siam_bids.image.loading import load_volume
from siam_bids.inference.cascade import Cascade, CascadeSegmenter
from siam_bids.models.registry import find_model

TISSUES = ("GM", "WM", "CSF")
CASES = {
    "1 of 25,000": (1, 25_000),
    "1 of 1,000,000": (1, 1e6),
    "30 of 5,000": (30, 5_000),
    "300 of 100,000 or -100,000": (300, (-1e5, 1e5)),
    "1,000 of -30,000": (1_000, -3e4),
    "300 of 800": (300, 800),
    "300 from 300 to 1,000,000 or minus that": (300, None),
}


def halved(volume: Volume) -> Volume:
    """Join voxels to blocks of 2 x 2 x 2."""
    i, j, k = (length // 2 for length in volume.grid.shape)
    blocks = volume.data[: 2 * i, : 2 * j, : 2 * k].reshape(i, 2, j, 2, k, 2)
    affine = volume.grid.affine @ np.diag([2, 2, 2, 1])
    return Volume(blocks.mean(axis=(1, 3, 5)), Grid((i, j, k), affine))


def spoilt(volume: Volume, count: int, value: object, rng: np.random.Generator) -> Volume:
    data = volume.data.copy()
    places = rng.choice(data.size, count, replace=False)
    if value is None:
        sizes = np.exp(rng.uniform(np.log(300), np.log(1e6), count))
        data.reshape(-1)[places] = sizes * rng.choice([-1, 1], count)
    else:
        data.reshape(-1)[places] = rng.choice(np.atleast_1d(value), count)
    return replace(volume, data=data)


def agreement(one: Segmentation, two: Segmentation) -> str:
    cells = []
    for name in TISSUES:
        here, there = one.data == one.labels.by_name[name].index, two.mask((name,))
        dice = 2 * (here & there).sum() / (here.sum() + there.sum())
        cells.append(f"{dice:.3f} ({100 * (there.sum() / here.sum() - 1):+.1f} %)")
    return " | ".join(cells)


def main() -> None:
    scan = halved(load_volume(Path(sys.argv[1])))
    record = replace(find_model("compact-2mm"), upright=None)
    before, after = (
        CascadeSegmenter(
            Cascade.open(replace(record, repair_spikes=repair)),
            torch.device("cpu"),
            Inference(mirror=False),
        )
        for repair in (False, True)
    )
    expected = before.segment(scan).segmentation
    print(
        "| hot voxels | replaced | " + " | ".join(f"{name}: Dice" for name in TISSUES), end=" |\n"
    )
    print("|---|---|" + "---|" * len(TISSUES))
    rng = np.random.default_rng(0)
    for name, (count, value) in CASES.items():
        hot = spoilt(scan, count, value, rng)
        for word, segmenter in (("no", before), ("yes", after)):
            found = segmenter.segment(hot).segmentation
            print(f"| {name} | {word} | {agreement(expected, found)} |", flush=True)


if __name__ == "__main__":
    main()
