"""Arguments that several commands have, and what they mean."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from siam_bids.config import (
    COMBINATIONS,
    DEFAULT_SUFFIXES,
    Inference,
    Query,
    is_checkpoint_name,
)
from siam_bids.errors import UsageError


def add_folders(top: argparse.ArgumentParser) -> None:
    """Add the input and the output folder."""
    top.add_argument("bids_dir", type=Path, help="root of the BIDS dataset")
    top.add_argument("output_dir", type=Path, help="folder of the derivative dataset")


def add_labels(which: argparse._ArgumentGroup) -> None:
    """Add what chooses participants and sessions."""
    which.add_argument(
        "--participant-label",
        nargs="+",
        default=[],
        metavar="LABEL",
        help="participants, with or without sub-",
    )
    which.add_argument(
        "--session-label",
        "--session-id",
        nargs="+",
        default=[],
        metavar="LABEL",
        help="sessions, with or without ses-",
    )


def add_probability_maps(how: argparse._ArgumentGroup) -> None:
    """Add what chooses probability maps."""
    how.add_argument(
        "--probabilities",
        nargs="+",
        default=[],
        metavar="TISSUE",
        help="also write probability maps of these tissues, for example GM WM CSF",
    )
    how.add_argument("--write-probseg", action="store_true", help="also write those of all tissues")


def add_query(top: argparse.ArgumentParser) -> None:
    """Add what chooses scans."""
    which = top.add_argument_group("which scans")
    add_labels(which)
    which.add_argument(
        "--suffix",
        nargs="+",
        default=list(DEFAULT_SUFFIXES),
        help=f"BIDS suffixes of the images (default: {' '.join(DEFAULT_SUFFIXES)})",
    )
    which.add_argument(
        "--bids-filter-file",
        type=Path,
        metavar="FILE",
        help='JSON with pybids filters per suffix, for example {"t1w": {"acquisition": "mprage"}}',
    )
    which.add_argument(
        "--bids-database-dir",
        type=Path,
        metavar="DIR",
        help="folder for a pybids index, created if absent and reused",
    )
    which.add_argument(
        "--derivative-input",
        action="store_true",
        help="accept a derivative dataset whose images are named like raw ones",
    )


def query_of(arguments: argparse.Namespace) -> Query:
    """Return the choice of scans."""
    filters = {}
    if arguments.bids_filter_file:
        from siam_bids.bids.filters import read_filter_file

        filters = read_filter_file(arguments.bids_filter_file)
    return Query(
        participants=labels_of(arguments.participant_label, "sub-"),
        sessions=labels_of(arguments.session_label, "ses-"),
        suffixes=tuple(arguments.suffix),
        filters=filters,
        database=arguments.bids_database_dir,
        derivative=arguments.derivative_input,
    )


def add_segmentations(group: argparse._ActionsContainer) -> None:
    """Add what asks for further label maps."""
    group.add_argument(
        "--hemispheres",
        dest="segmentations",
        action="append_const",
        const="siamhemi",
        default=[],
        help="also write a label map in which paired tissues have a left and a right label",
    )
    group.add_argument(
        "--aseg",
        dest="segmentations",
        action="append_const",
        const="aseg",
        help="also write a label map with FreeSurfer's values, and its volumes",
    )


def add_combine(group: argparse._ActionsContainer) -> None:
    """Add the choice of scans that are segmented together."""
    group.add_argument(
        "--combine",
        choices=COMBINATIONS,
        default="none",
        help="segment scans of a participant with one prior: those of a session (contrasts), like "
        "scans of all sessions (sessions), or all (default: none)",
    )


def add_inference_options(group: argparse._ActionsContainer) -> None:
    """Add what changes how a network is run."""
    group.add_argument(
        "--voxel-size",
        "-voxelsize",
        type=positive,
        metavar="MM",
        help="treat the voxels as isotropic with this size",
    )
    group.add_argument(
        "--scale",
        type=positive,
        default=1.0,
        metavar="FACTOR",
        help="treat the voxels as larger by this factor; 1.4 for newborns",
    )
    group.add_argument(
        "--no-interpolation",
        action="store_true",
        help="do not resample to the model's voxel size",
    )
    group.add_argument(
        "--folds", nargs="+", default=[], metavar="N", help="use only these folds of the model"
    )
    group.add_argument(
        "--checkpoint",
        default="",
        metavar="NAME",
        help="file of each fold to run, for example checkpoint_best.pth "
        "(default: checkpoint_final.pth, else checkpoint_best.pth)",
    )
    group.add_argument(
        "--mirror",
        action=argparse.BooleanOptionalAction,
        help="test-time mirroring, for models trained with mirroring (default: as the model "
        "specifies)",
    )
    group.add_argument(
        "--no-intensities",
        dest="intensities",
        action="store_false",
        help="turn off intensity refinement: keep the network's own labels",
    )
    group.add_argument(
        "--no-upright",
        dest="upright",
        action="store_false",
        help="do not segment rotated heads again in standard orientation",
    )
    group.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="numerical precision of the network (default: on a CPU bfloat16 if the CPU supports "
        "it and the model is known to tolerate it, else float32; on CUDA float16)",
    )
    group.add_argument(
        "--engine",
        choices=("auto", "torch", "openvino"),
        default="auto",
        help="inference engine (default: OpenVINO on a CPU if it is installed and"
        " memory suffices, else torch)",
    )
    group.add_argument(
        "--volume", type=at_least(0), metavar="N", help="take volume N (from 0) of 4-D images"
    )
    group.add_argument(
        "--mem-gb",
        type=_gigabytes,
        metavar="GB",
        help="refuse scans that need more memory than this (default: the free memory)",
    )
    group.add_argument("--mem-mb", type=_megabytes, dest="mem_gb", help=argparse.SUPPRESS)
    group.add_argument(
        "--low-mem", action="store_true", help="keep the class scores on disk, not in memory"
    )


def inference_of(arguments: argparse.Namespace) -> Inference:
    """Return how to run a network.

    Raises
    ------
    UsageError
        Options contradict each other.
    """
    if arguments.no_interpolation and (arguments.voxel_size or arguments.scale != 1):
        raise UsageError(
            "--no-interpolation contradicts --voxel-size and --scale.", "Give one of them."
        )
    if not is_checkpoint_name(arguments.checkpoint):
        raise UsageError(
            f"--checkpoint {arguments.checkpoint!r} names no .pth or .safetensors file.",
            "Give the name alone, for example checkpoint_best.pth.",
        )
    return Inference(
        voxel_size=arguments.voxel_size,
        scale=arguments.scale,
        interpolate=not arguments.no_interpolation,
        folds=labels_of(arguments.folds, "fold-"),
        checkpoint=arguments.checkpoint,
        mirror=arguments.mirror,
        intensities=arguments.intensities,
        upright=arguments.upright,
        precision=arguments.precision,
        engine=arguments.engine,
        volume=arguments.volume,
        memory=1e9 * arguments.mem_gb if arguments.mem_gb else None,
        low_memory=arguments.low_mem,
    )


def at_least(least: int, most: int = 1_000_000_000) -> Callable[[str], int]:
    """Return the type of an option that takes whole numbers from `least` to `most`."""

    def whole_number(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"invalid int value: {text!r}") from None
        if number < least:
            below = "is negative" if least == 0 else f"is below {least}"
            raise argparse.ArgumentTypeError(f"{text} {below}")
        if number > most:
            raise argparse.ArgumentTypeError(f"{text} is above {most}")
        return number

    return whole_number


MOST_CPUS = 1024
"""CPUs that one process may be told to use; the largest machines have some hundreds."""


def positive(text: str) -> float:
    """Read a number above 0 and below 1000."""
    value = float(text)
    if not 0 < value < 1000:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and below 1000")
    return value


def _gigabytes(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _megabytes(text: str) -> float:
    return _gigabytes(text) / 1000


def labels_of(labels: Sequence[str], prefix: str) -> tuple[str, ...]:
    """Strip an optional prefix and split what was given as one comma or space separated word."""
    found = [word for label in labels for word in words(label)]
    return tuple(dict.fromkeys(word.removeprefix(prefix) for word in found))


def words(text: str) -> list[str]:
    """Split what commas or spaces separate."""
    return text.replace(",", " ").split()
