"""`siam-bids-segment`: files and folders without BIDS."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from siam_bids.cli.arguments import MOST_CPUS, add_inference_options, at_least, inference_of
from siam_bids.cli.command_line import CommandLine
from siam_bids.cli.console import (
    EXIT_SOME_SCANS_FAILED,
    guarded,
    quick_imports,
    start_logging,
)
from siam_bids.errors import UsageError
from siam_bids.models.folder import search_path

_SIAM_PRED_MODELS = {"0": "siam-v0.3", "1": "siam-v0.1", "2": "siam-v0.2"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `siam-bids-segment`; return the exit code."""
    return guarded(_run, argv)


def _run(argv: list[str]) -> int:
    arguments = parser().parse(argv)
    start_logging()
    named = [arguments.other_input, arguments.other_output]
    free = [path for path in (arguments.input, arguments.output) if path]
    source, target = (each or (free.pop(0) if free else None) for each in named)
    if source is None or target is None or free:
        raise UsageError("One input and one output are needed.", "See siam-bids-segment --help.")

    with quick_imports():
        from siam_bids.pipelines.files import segment_files

    written, failed = segment_files(
        source,
        target,
        model=_SIAM_PRED_MODELS.get(arguments.model, arguments.model),
        model_dirs=search_path(os.environ),
        device=arguments.device,
        threads=arguments.threads,
        inference=inference_of(arguments),
        overwrite=arguments.overwrite,
    )
    for path in written:
        print(path)
    for name, reason in failed.items():
        print(f"FAILED {name}: {reason}", file=sys.stderr)
    return EXIT_SOME_SCANS_FAILED if failed else 0


def parser() -> CommandLine:
    """Return the command line of `siam-bids-segment`."""
    top = CommandLine(
        "siam-bids-segment",
        "Segment head MRI files without BIDS: one image, or all images of a folder. "
        "siam-pred's option names also work.",
        usage="siam-bids-segment [options] INPUT OUTPUT",
    )
    top.add_argument("input", nargs="?", type=Path, help="NIfTI or MGH file, or a folder of them")
    top.add_argument("output", nargs="?", type=Path, help="NIfTI file to write, or a folder")
    top.add_argument("-i", dest="other_input", type=Path, help=argparse.SUPPRESS)
    top.add_argument("-o", dest="other_output", type=Path, help=argparse.SUPPRESS)
    top.add_argument(
        "--model",
        "-m",
        default="compact",
        help="model name or path of an nnU-Net v2 model folder; siam-pred's numbers 0, 1 and "
        "2 are siam-v0.3, siam-v0.1 and siam-v0.2",
    )
    top.add_argument(
        "--device",
        "-device",
        choices=("auto", "cpu", "cuda", "mps"),
        default="auto",
        help="where to compute",
    )
    top.add_argument(
        "--n-cpus", "-nbthread", dest="threads", type=at_least(0, MOST_CPUS), default=0,
        metavar="N", help="CPU threads (default: all)",
    )  # fmt: skip
    top.add_argument(
        "--overwrite",
        action="store_true",
        help="replace earlier results even if they were changed since they were written",
    )
    add_inference_options(top)
    top.add_common_options()
    return top
