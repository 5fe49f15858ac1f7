"""The embedded models beside SAMSEG and deepbet, on one head that FreeSurfer has segmented.

    python -m venv PEERS && PEERS/bin/pip install torch==2.13.0 samseg deepbet
    python benchmarks/peers.py HEADS PEERS/bin [--threads 1] [--out benchmarks/peers.md]

HEADS holds visualqc_id001_T1w.mgz and visualqc_id001_aparc+aseg.mgz. Every tool segments the same
scan in a process of its own, one after the other, with the same number of threads. CPU seconds tell
more than the wall's on a busy machine; memory is the peak of the largest process. A tool that is
not installed is left out. Of the report only the table is written anew.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from quality import BRAIN_TISSUES, FREESURFER, INDEX, dice, filled, freesurfer_masks, markdown
from tables import replace_table

from siam_bids.image.loading import load_labels
from siam_bids.models.registry import find_model

MODELS = ("compact", "compact-2mm")
SCAN, REFERENCE = "visualqc_id001_T1w.mgz", "visualqc_id001_aparc+aseg.mgz"
OURS = (sys.executable, "-c", "from siam_bids.cli.segment import main; raise SystemExit(main())")
Masks = Mapping[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("heads", type=Path)
    parser.add_argument("peers", type=Path, help="bin folder with run_samseg and deepbet-cli")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/peers.md"))
    options = parser.parse_args()
    reference, _ = load_labels(options.heads / REFERENCE)
    truth = with_outline(freesurfer_masks(reference))
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        scan = work / "scan.nii.gz"
        nib.save(nib.Nifti1Image.from_image(nib.load(options.heads / SCAN)), scan)
        threads = str(options.threads)
        samseg, deepbet = options.peers / "run_samseg", options.peers / "deepbet-cli"
        own = [*OURS, "--n-cpus", threads]
        commands = {
            **{model: [*own, "--model", model, scan, work / f"{model}.nii.gz"] for model in MODELS},
            "SAMSEG": [samseg, "-i", scan, "-o", work / "samseg", "--threads", threads],
            "deepbet": [
                *(deepbet, "--no_gpu", "-i", scan),
                *("-o", work / "brain.nii.gz", "-m", work / "mask.nii.gz"),
            ],
        }
        for name, command in commands.items():
            if not Path(command[0]).exists():
                print(f"{name} is not installed")
                continue
            cost = measure([str(word) for word in command], options.threads)
            masks = with_outline(found(name, work))
            scores = {part: dice(mask, truth[part]) for part, mask in masks.items()}
            title = f"{name} {find_model(name).version}" if name in MODELS else name
            rows.append({"": title, **scores, **cost})
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows).set_index("")
    mean = table[[part for part in FREESURFER if part in table]].mean(axis=1)
    table.insert(0, "mean of the classes", mean)
    table.index.name = f"{options.threads} thread{'s' if options.threads > 1 else ''}"
    replace_table(options.out, markdown(table.T))


def measure(command: Sequence[str], threads: int) -> dict[str, float]:
    """Run a command; return its seconds and its peak of resident memory."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    begin = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[0]} failed with status {status}")
    return {
        "seconds": time.monotonic() - begin,
        "CPU seconds": usage.ru_utime + usage.ru_stime,
        "peak GB": usage.ru_maxrss / 1e6,
    }


def found(name: str, work: Path) -> Masks:
    """Read what a tool wrote."""
    if name == "SAMSEG":  # FreeSurfer's coding, on the grid of the scan
        return freesurfer_masks(load_labels(work / "samseg" / "seg.mgz")[0])
    if name == "deepbet":
        return {"brain": load_labels(work / "mask.nii.gz")[0] > 0}
    labels, _ = load_labels(work / f"{name}.nii.gz")
    masks = {part: labels == INDEX[part] for part in FREESURFER}
    brain = [INDEX[tissue] for tissue in BRAIN_TISSUES if tissue in INDEX]
    return {**masks, "brain": np.isin(labels, brain)}


def with_outline(masks: Masks) -> Masks:
    """Add the brain with its sulci, in which tools for the brain alone agree with the others."""
    return {**masks, "brain, sulci filled": filled(masks["brain"])}


if __name__ == "__main__":
    main()
