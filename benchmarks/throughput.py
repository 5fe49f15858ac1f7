"""Subjects an hour on this machine, by processes and threads.

    python benchmarks/throughput.py [--scans 8] [--rounds 2] [--model compact] [--image SCAN.nii.gz]

Copies of one scan, as participants of a dataset, are segmented by one process, or shared by two.
Start-up is included. The plans take turns, so that a load from elsewhere falls on all of them, and
the last column compares each with the first of its own round. The last results are in
benchmarks/throughput.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCAN = ROOT / "data/sample_bids/sub-colin27/anat/sub-colin27_T1w.nii.gz"
HEADER = """\
| processes x threads | subjects/hour | CPU s a scan | s read, segment, write | peak MB | to 1 x 1 |
|---|---|---|---|---|---|"""
PLANS = ((1, 1), (1, 2), (2, 1))  # processes, threads each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--image", type=Path, default=SCAN)
    arguments = parser.parse_args()
    print(HEADER)
    for _ in range(arguments.rounds):
        first = 0.0
        for processes, threads in PLANS:
            with tempfile.TemporaryDirectory() as place:
                rate, costs = measure(Path(place), processes, threads, arguments)
            first = first or rate
            print(
                f"| {processes} x {threads} | {rate:.0f} | {costs} | {rate / first:.2f} |",
                flush=True,
            )


def measure(
    place: Path, processes: int, threads: int, arguments: argparse.Namespace
) -> tuple[float, str]:
    """Return subjects an hour, and what a scan costs as cells of a table."""
    labels = [f"{number:03d}" for number in range(arguments.scans)]
    for label in labels:
        scan = place / f"in/sub-{label}/anat/sub-{label}_T1w.nii.gz"
        scan.parent.mkdir(parents=True)
        scan.symlink_to(arguments.image.resolve())
    (place / "in/dataset_description.json").write_text(
        '{"Name": "Copies", "BIDSVersion": "1.10.0"}'
    )
    begin, used = time.monotonic(), os.times()
    children = [
        subprocess.Popen(
            [
                sys.executable, "-m", "siam_bids", str(place / "in"), str(place / "out"),
                "participant", "--model", arguments.model, "--device", arguments.device,
                "--n-cpus", str(threads), "--participant-label", *labels[part::processes],
            ],
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for part in range(processes)
    ]  # fmt: skip
    if any(child.wait() for child in children):
        sys.exit("A run failed.")
    wall, now = time.monotonic() - begin, os.times()
    cpu = now.children_user + now.children_system - used.children_user - used.children_system
    records = [json.loads(path.read_text()) for path in (place / "out/logs").glob("sub-*/*.json")]
    stages = ", ".join(
        f"{sum(record['stages'][name] for record in records) / len(records):.1f}"
        for name in ("read", "segment", "write")
    )
    peak = max(record["peak_memory_MB"] for record in records)
    return arguments.scans / wall * 3600, f"{cpu / arguments.scans:.1f} | {stages} | {peak}"


if __name__ == "__main__":
    main()
