"""What is gained by reading the next scan and writing the last while one is segmented.

    python benchmarks/overlap.py [--scans 6] [--threads 1]

The same scans go through the participant level as it is, and with its two helping threads replaced
by calls in line. Each run has a process of its own. Says something on a quiet machine only.
The last results are in benchmarks/overlap.md.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

from siam_bids.pipelines import participant

ROOT = Path(__file__).resolve().parent.parent
SCAN = ROOT / "data/sample_bids/sub-colin27/anat/sub-colin27_T1w.nii.gz"
KINDS = ("in line", "overlapped")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(run(arguments.one, arguments.scans, arguments.threads))
        return
    print("| scans | wall s | CPU s | peak GB |")
    print("|---|---|---|---|")
    for kind in KINDS:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": str(arguments.threads),
        }
        subprocess.run([sys.executable, *sys.argv, "--one", kind], env=environment, check=True)


class InLine(Executor):
    """Does at once what an executor would do meanwhile."""

    def __init__(self, *_: Any) -> None:
        """Take what ThreadPoolExecutor takes."""

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(work(*arguments))
        except Exception as error:  # noqa: BLE001 (as executors do)
            done.set_exception(error)
        return done


def run(kind: str, scans: int, threads: int) -> str:
    from siam_bids.config import RunConfig
    from siam_bids.pipelines.participant import run_participant
    from siam_bids.support.memory import peak_memory

    if kind == "in line":
        participant.ThreadPoolExecutor = InLine
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "in"
        for number in range(scans):
            scan = source / f"sub-{number}/anat/sub-{number}_T1w.nii.gz"
            scan.parent.mkdir(parents=True)
            scan.symlink_to(SCAN)
        (source / "dataset_description.json").write_text('{"Name": "a", "BIDSVersion": "1.10.0"}')
        config = RunConfig(
            bids_dir=source, output_dir=Path(place) / "out", level="participant", threads=threads,
            device="cpu",
        )  # fmt: skip
        begin, cpu = time.monotonic(), time.process_time()
        summary = run_participant(config)
        wall, cpu = time.monotonic() - begin, time.process_time() - cpu
    if len(summary.done) != scans:
        sys.exit(f"Not all were segmented: {summary.failed}")
    return f"| {kind} | {wall:.0f} | {cpu:.0f} | {peak_memory() / 1e9:.2f} |"


if __name__ == "__main__":
    main()
