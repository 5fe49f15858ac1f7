"""How many voxels get the same label in bfloat16 as in float32?

    python benchmarks/bfloat16.py HEADS [--models compact compact-2mm compact-1mm]

HEADS holds the real scans below. Writes benchmarks/bfloat16.md: the share of all voxels of a scan
that get the same label, and the CPU time of both side by side (one thread). A model whose every
share is 99.9 % or more may have `"bfloat16": true` in data/models.json.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from siam_bids.chain import Chain, ChainSegmenter
from siam_bids.config import Inference
from siam_bids.models import find_model
from siam_bids.nifti import load_volume

SCANS = (
    "colin27_T1w.nii.gz",
    "seg3d_T1w.nii.gz",
    "stroke_T2.nii.gz",
    "visualqc_id001_T1w.mgz",
)


def row(name: str, heads: Path) -> str:
    """Return a model's row of the table."""
    record = find_model(name)
    chain = Chain.open(record)
    shares, seconds = [], np.zeros(2)
    for scan in SCANS:
        volume, labels = load_volume(heads / scan), []
        for place, precision in enumerate(("float32", "bfloat16")):
            segmenter = ChainSegmenter(chain, torch.device("cpu"), Inference(precision=precision))
            begin = time.process_time()
            labels.append(segmenter.segment(volume).segmentation.data)
            seconds[place] += time.process_time() - begin
        shares.append(float((labels[0] == labels[1]).mean()))
        print(name, scan, f"{100 * shares[-1]:.3f} %", flush=True)
    agreement = " | ".join(f"{100 * share:.3f}" for share in shares)
    return f"| {record.name} {record.version} | {agreement} | {seconds[1] / seconds[0]:.2f} |"


def main() -> None:
    """Measure all models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("heads", type=Path)
    parser.add_argument("--models", nargs="+", default=["compact", "compact-2mm", "compact-1mm"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = " | ".join(scan.split(".")[0] for scan in SCANS)
    lines = [
        "Voxels labelled in bfloat16 as in float32, in percent of the whole scan; CPU time of",
        "bfloat16 as a share of float32's.",
        "",
        f"| model | {names} | time |",
        f"|---|{'---|' * (len(SCANS) + 1)}",
        *(row(name, options.heads) for name in options.models),
    ]
    target = Path(__file__).with_suffix(".md")
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(target.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
