"""`siam-bids-export`: finished results in the form that other programs take."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from siam_bids.cli.arguments import add_labels, labels_of
from siam_bids.cli.command_line import CommandLine
from siam_bids.cli.console import EXIT_SOME_SCANS_FAILED, guarded, quick_imports, start_logging
from siam_bids.errors import UsageError
from siam_bids.export.summaries import SUMMARIES

OPTIONS = {
    "smallest": ("--min-size", "lesions"),
    "confidence": ("--min-confidence", "lesions"),
    "thickness": ("--min-thickness", "mne"),
    "bias_corrected": ("--bias-corrected", "fmriprep"),
}
"""Options that one target has: field of `Options`, spelling, target."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `siam-bids-export`; return the exit code."""
    return guarded(_run, argv)


def _run(argv: list[str]) -> int:
    arguments = parser().parse(argv)
    given = {name: getattr(arguments, name) for name in OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        option, target = OPTIONS[name]
        if target != arguments.target:
            raise UsageError(f"{option} is an option of {target}, not of {arguments.target}.")
    start_logging()

    with quick_imports():
        from siam_bids.export.run import ExportConfig, export
        from siam_bids.export.target import Options

    done = export(
        ExportConfig(
            results=arguments.output_dir,
            target=arguments.target,
            folder=arguments.destination,
            raw=arguments.bids_dir,
            participants=labels_of(arguments.participant_label, "sub-"),
            sessions=labels_of(arguments.session_label, "ses-"),
            reference=arguments.reference,
            options=Options(**given),
        )
    )
    for name, reason in done.failed.items():
        print(f"FAILED {name}: {reason}", file=sys.stderr)
    written, already, failed = len(done.written), len(done.already), len(done.failed)
    print(f"{written} exported, {already} already done, {failed} failed.")
    return EXIT_SOME_SCANS_FAILED if done.failed else 0


def parser() -> CommandLine:
    """Return the command line of `siam-bids-export`."""
    top = CommandLine(
        "siam-bids-export",
        "Convert finished results for other programs. Nothing is segmented again.",
        epilog="Targets: " + "; ".join(f"{name}: {text}" for name, text in SUMMARIES.items()) + ".",
    )
    top.add_argument("output_dir", type=Path, help="folder with finished results of siam-bids")
    top.add_argument("target", choices=tuple(SUMMARIES), help="program to export for")
    top.add_argument(
        "destination", type=Path, help="output folder: new, or an earlier export for this program"
    )
    which = top.add_argument_group("which scans")
    add_labels(which)
    which.add_argument(
        "--reference",
        default="",
        metavar="NAME",
        help="scan to export of each session, by its suffix or other parts of its name, for "
        "example T2w or acq-mprage_T1w (default: T1w, else UNIT1, else T2w, else another; of "
        "several, the one whose longest voxel edge is shortest)",
    )
    which.add_argument(
        "--bids-dir",
        type=Path,
        metavar="DIR",
        help="dataset that was segmented, if it has been moved (mne and --bias-corrected need "
        "the scans)",
    )
    how = top.add_argument_group("options for one program")
    how.add_argument(
        "--min-size",
        dest="smallest",
        type=_number,
        metavar="MM3",
        help="lesions: leave out lesions smaller than this (default: 0)",
    )
    how.add_argument(
        "--min-confidence",
        dest="confidence",
        type=_share,
        metavar="P",
        help="lesions: leave out lesions with a lower mean probability; needs siam-bids "
        "--probabilities Anomalies (default: 0)",
    )
    how.add_argument(
        "--min-thickness",
        dest="thickness",
        type=_number,
        metavar="MM",
        help="mne: minimum distance between surfaces (default: 3)",
    )
    how.add_argument(
        "--bias-corrected",
        action="store_true",
        default=None,
        help="fmriprep: also write the image, corrected for intensity non-uniformity by N4; "
        "sMRIPrep then does not correct it again",
    )
    top.add_common_options()
    return top


def _number(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 on")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value
