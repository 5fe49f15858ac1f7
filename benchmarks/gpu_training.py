"""Train both compact networks further on one GPU: fifteen minutes in one command.

    python benchmarks/gpu_training.py FOLDER MAP ... [--minutes 12] [--small]

The networks are trained side by side, so that one computes while the other paints: in bfloat16,
compiled, many patches a step, painted on the GPU, and many patches from each painted head. In the
last 40 % of the time the learning rate falls to zero. MAPs are SynthSeg's label maps; 17 and 18
are held out; preparing them takes the first minute or two. Prints what a network saw a minute,
compilation included; the model folders are FOLDER/compact-2mm/model and FOLDER/compact-1mm/model.
A second call with the same FOLDER goes on.

With --small both are tiny, and trained on the CPU on nested spheres: a test of this script.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
TRAIN = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from siam_bids.cli.train import main"
NETWORKS = ("compact-2mm", "compact-1mm")
COOLDOWN = 0.4
LARGE = {
    "--batch": 16, "--fresh-every": 64, "--patch": 96, "--learning-rate": 2e-3,
    "--lesion-share": 0.6, "--device": "cuda",
}  # fmt: skip
SMALL = {"--batch": 2, "--fresh-every": 8, "--patch": 16, "--features": "4,8", "--voxel": 4}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("maps", nargs="*", type=Path)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--small", action="store_true", help="on the CPU, tiny")
    options = parser.parse_args()
    if options.small:
        options.folder.mkdir(parents=True, exist_ok=True)
        options.maps = [nested_spheres(options.folder / "spheres.nii.gz")]
    elif not options.maps:
        parser.error("label maps are needed")
    print("| network | session | steps | patches/min | heads/min |\n|---|---|---|---|---|")
    for name, share in (("plateau", 1 - COOLDOWN), ("cooldown", COOLDOWN)):
        minutes = share * options.minutes
        before = {network: steps(options.folder / network) for network in NETWORKS}
        running = {
            network: subprocess.Popen(command(network, options, minutes, last=name == "cooldown"))
            for network in NETWORKS
        }
        if failed := [network for network, run in running.items() if run.wait()]:
            print(f"WRONG: {' and '.join(failed)} stopped.")
            return 1
        for network in NETWORKS:
            done = steps(options.folder / network) - before[network]
            setting = SMALL if options.small else LARGE
            patches = done * int(setting["--batch"]) / minutes
            heads = patches / int(setting["--fresh-every"])
            print(f"| {network} | {name} | {done} | {patches:.0f} | {heads:.0f} |", flush=True)
    return 0


def command(network: str, options: argparse.Namespace, minutes: float, *, last: bool) -> list[str]:
    """The command of a session: a training of the network, or how it goes on."""
    setting = SMALL if options.small else LARGE
    words = [str(options.folder / network), f"--minutes={minutes}"]
    words += [f"{name}={value}" for name, value in setting.items()]
    words += ["--siam" if options.small else "--synthseg", *map(str, options.maps)]
    words += [] if options.small else ["--compile", f"--from={network}"]
    held_out = [str(path) for path in options.maps if path.name.split(".")[0][-2:] in ("17", "18")]
    words += ["--hold-out", *held_out] if held_out else []
    words += ["--cooldown"] if last else []
    return [sys.executable, "-c", f"{TRAIN}; sys.exit(main({words!r}))"]


def steps(folder: Path) -> int:
    """Steps that a training has taken so far."""
    progress = folder / "progress.json"
    return int(json.loads(progress.read_text())["step"]) if progress.exists() else 0


def nested_spheres(path: Path) -> Path:
    """Write a label map of 128^3 voxels of 1 mm: head, skull, CSF, GM, WM and a ventricle."""
    axes = np.ogrid[-64:64, -64:64, -64:64]
    radius = np.sqrt(sum(axis**2 for axis in axes))
    labels = np.zeros(radius.shape, np.int16)
    for limit, value in ((60, 16), (54, 15), (48, 3), (44, 1), (36, 2), (12, 4)):
        labels[radius < limit] = value
    nib.save(nib.Nifti1Image(labels, np.eye(4)), path)
    return path


if __name__ == "__main__":
    sys.exit(main())
