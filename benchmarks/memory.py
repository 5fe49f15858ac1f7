"""The memory estimate against what the app holds at its peak.

    python benchmarks/memory.py [--model compact] [--precision bfloat16] [--sizes crop head fine]

Each size is Colin27 cropped, whole, or with every voxel split in eight; three copies of it, as
participants of a dataset, go through `siam-bids`, so that reading the next and writing the last
count. The last results are in benchmarks/memory.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from siam_bids.config import Inference
from siam_bids.image.loading import load_volume
from siam_bids.inference.cascade import Cascade
from siam_bids.models.registry import find_model

ROOT = Path(__file__).resolve().parent.parent
SCAN = ROOT / "data/sample_bids/sub-colin27/anat/sub-colin27_T1w.nii.gz"
SIZES = ("crop", "head", "fine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--sizes", nargs="+", default=SIZES, choices=SIZES)
    arguments = parser.parse_args()
    print("| model | scan | voxels | precision | estimated GB | measured GB |")
    print("|---|---|---|---|---|---|")
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as place:
            row = measure(Path(place), size, arguments.model, arguments.precision)
        print(f"| {arguments.model} | {size} | {row}", flush=True)


def measure(place: Path, size: str, model: str, precision: str) -> str:
    source = nib.load(SCAN)
    data, affine = np.asarray(source.dataobj), source.affine
    if size == "crop":
        data = data[30:-30, 40:-40, 30:-30]
    if size == "fine":
        data = data.repeat(2, 0).repeat(2, 1).repeat(2, 2)
        affine = affine @ np.diag([0.5, 0.5, 0.5, 1])
    for label in "abc":
        scan = place / f"in/sub-{label}/anat/sub-{label}_T1w.nii.gz"
        scan.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(data, affine), scan)
    (place / "in/dataset_description.json").write_text('{"Name": "a", "BIDSVersion": "1.10.0"}')
    cascade = Cascade.open(find_model(model))
    options = Inference(precision=precision)
    need = cascade.estimate([load_volume(scan).grid], torch.device("cpu"), options, cpus=1).memory
    command = [
        sys.executable, "-m", "siam_bids", str(place / "in"), str(place / "out"), "participant",
        "--model", model, "--precision", precision, "--device", "cpu", "--n-cpus", "1",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    records = [json.loads(path.read_text()) for path in (place / "out/logs").glob("sub-*/*.json")]
    peak = max(record["peak_memory_MB"] for record in records) / 1e3
    return f"{data.size / 1e6:.1f} M | {precision} | {need / 1e9:.2f} | {peak:.2f} |"


if __name__ == "__main__":
    main()
