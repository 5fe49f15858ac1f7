"""`siam-bids-train`: train the compact model, or fine-tune a model."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from siam_bids.cli.arguments import at_least, positive, words
from siam_bids.cli.command_line import CommandLine
from siam_bids.cli.console import guarded, quick_imports, start_logging
from siam_bids.errors import UsageError
from siam_bids.support.folders import check_folder


def main(argv: Sequence[str] | None = None) -> int:
    """Run `siam-bids-train`; return the exit code."""
    return guarded(_run, argv)


def _run(argv: list[str]) -> int:
    arguments = parser().parse(argv)
    start_logging()

    with quick_imports():
        from siam_bids.training.config import TrainingConfig
        from siam_bids.training.loop import train as run
        from siam_bids.training.task import TASKS

    check_folder(arguments.folder, "training folder")
    maps = _maps(arguments)
    start = _start(arguments)
    trainer = run(
        TrainingConfig(
            maps=tuple(each for each in maps if each[0] not in arguments.hold_out),
            folder=arguments.folder,
            minutes=arguments.minutes,
            cooldown=arguments.cooldown,
            seed=arguments.seed,
            batch=arguments.batch,
            device=arguments.device,
            compile=arguments.compile,
            processes=arguments.processes,
            start=start,
            validation=tuple(each for each in maps if each[0] in arguments.hold_out),
            dice_weight=arguments.dice_weight,
            contrasts=arguments.contrasts,
            lesion_share=arguments.lesion_share,
            task=TASKS[arguments.task],
            lesions=tuple(arguments.lesions),
            hardest=arguments.difficulty,
            fresh_every=arguments.fresh_every,
            **_shape(arguments, start),
        )
    )
    print(f"step {trainer.step}: {arguments.folder / 'model'}")
    return 0


def _maps(arguments: argparse.Namespace) -> list[tuple[Path, str]]:
    """Return all label maps, those held out too, each with the name or path of its coding."""
    if bool(arguments.maps) != bool(arguments.table):
        raise UsageError("--maps and --table must be given together.", "Give both or neither.")
    maps = [(path, "synthseg") for path in arguments.synthseg]
    maps += [(path, "siam") for path in arguments.siam]
    maps += [(path, str(arguments.table)) for path in arguments.maps]
    for path in arguments.hold_out:
        if path not in [given for given, _ in maps]:
            raise UsageError(f"--hold-out {path} is not one of the maps.", "List it there as well.")
    return maps


def _start(arguments: argparse.Namespace) -> Path | None:
    """Return the folder of the model to begin from, if one is named."""
    from siam_bids.models.folder import search_path
    from siam_bids.models.registry import find_model

    if not arguments.start:
        return None
    parts = find_model(arguments.start, search_path(os.environ)).networks()
    if len(parts) > 1:
        names = ", ".join(part.name for part in parts)
        raise UsageError(f"{arguments.start} consists of {names}.", "Start from one of them.")
    return parts[0].folder


def _shape(arguments: argparse.Namespace, start: Path | None) -> dict[str, Any]:
    """Return what describes the network: as typed, else as in the run or model it goes on from."""
    from siam_bids.training.state import shape_of

    resumes = (arguments.folder / "progress.json").exists()
    network = arguments.folder / "model" if resumes else start
    chosen: dict[str, Any] = shape_of(network) if network else {}
    for name in ("features", "patch", "voxel"):
        given = getattr(arguments, name)
        if resumes and given and given != chosen[name]:
            raise UsageError(
                f"{arguments.folder} holds a run with --{name} {_text(chosen[name])}, "
                f"not {_text(given)}.",
                f"Train into another folder, --from {network}.",
            )
        if given:
            chosen[name] = given
    if arguments.learning_rate:
        chosen["learning_rate"] = arguments.learning_rate
    return chosen


def parser() -> CommandLine:
    """Return the command line of `siam-bids-train`."""
    top = CommandLine(
        "siam-bids-train",
        "Train the compact model on label maps, or resume the training in FOLDER.",
        usage="siam-bids-train FOLDER [options]",
    )
    top.add_argument("folder", type=Path, help="state, log and model folder of the run")
    for source in ("synthseg", "siam"):
        top.add_argument(
            f"--{source}",
            nargs="+",
            type=Path,
            default=[],
            metavar="MAP",
            help=f"label maps with the values of data/labels/source_{source}.tsv",
        )
    top.add_argument(
        "--maps",
        nargs="+",
        type=Path,
        default=[],
        metavar="MAP",
        help="label maps of your own, for example corrected *_dseg.nii.gz",
    )
    top.add_argument(
        "--table",
        type=Path,
        metavar="FILE",
        help="what the values of --maps mean: a BIDS label table (index, name) with SIAM's names, "
        "or a table with the columns value, name, tissue, target",
    )
    top.add_argument(
        "--hold-out",
        nargs="+",
        type=Path,
        default=[],
        metavar="MAP",
        help="of these maps, those to hold out; the log gives the Dice on them",
    )
    top.add_argument(
        "--from",
        dest="start",
        metavar="MODEL",
        help="fine-tune this model (name or folder); larger --features widen the network, one "
        "more of them and half the --voxel add a finer stage",
    )
    top.add_argument(
        "--features", type=_channels, metavar="16,32,64", help="channels of each stage"
    )
    top.add_argument(
        "--patch",
        type=at_least(1, 1000),
        metavar="N",
        help="edge length of patches and tiles in voxels",
    )
    top.add_argument(
        "--batch",
        type=at_least(1),
        default=1,
        metavar="N",
        help="patches per step; 4 or more on a GPU",
    )
    top.add_argument("--voxel", type=at_least(1, 100), metavar="MM", help="voxel size")
    top.add_argument(
        "--learning-rate", type=positive, metavar="RATE", help="maximum of the learning rate"
    )
    top.add_argument(
        "--dice-weight",
        type=_weight,
        default=1.0,
        metavar="WEIGHT",
        help="weight of the Dice term; 0 in a last session calibrates volumes and probabilities",
    )
    top.add_argument(
        "--contrasts",
        type=_contrasts,
        default=(),
        metavar="T2w,FLAIR",
        help="generate half of the images in these contrasts",
    )
    top.add_argument(
        "--lesion-share",
        type=_share,
        default=0.35,
        metavar="SHARE",
        help="fraction of images with lesions; with --contrasts, of the images in these contrasts",
    )
    top.add_argument(
        "--task",
        choices=("head", "lesions", "nuclei"),
        default="head",
        help="lesions: train a network that looks for lesions, in a box around the brain; nuclei: "
        "for hippocampi, amygdalae and deep grey matter, in a box around these",
    )
    top.add_argument(
        "--lesions",
        nargs="+",
        type=Path,
        default=[],
        metavar="MASK",
        help="masks of patients' lesions in MNI space, to paint into the images",
    )
    top.add_argument(
        "--difficulty", type=_share, default=1.0, help="how far the images vary in the end, 0 to 1"
    )
    top.add_argument(
        "--fresh-every",
        type=at_least(1),
        default=8,
        help="patches between two new images (default: 8)",
    )
    top.add_argument(
        "--minutes", type=_weight, default=30, metavar="N", help="length of this session"
    )
    top.add_argument(
        "--cooldown", action="store_true", help="last session: reduce the learning rate to zero"
    )
    top.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    top.add_argument(
        "--compile", action="store_true", help="use torch.compile; needs a C++ compiler"
    )
    top.add_argument(
        "--processes",
        type=at_least(1, 1024),
        default=1,
        metavar="N",
        help="train in this many processes, which average their weights: on a CPU, one per core "
        "trains faster than one with all cores (2 GB of memory each)",
    )
    top.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="random seed")
    top.add_common_options()
    return top


def _weight(text: str) -> float:
    weight = float(text)
    if not 0 <= weight < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is negative or no number")
    return weight


def _contrasts(text: str) -> tuple[str, ...]:
    from siam_bids.synthesis.label_maps import CONTRASTS

    wanted = words(text)
    if unknown := [word for word in wanted if word not in CONTRASTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is not one of {', '.join(CONTRASTS)}")
    return tuple(wanted)


def _share(text: str) -> float:
    share = float(text)
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return share


def _text(option: int | tuple[int, ...]) -> str:
    return str(option) if isinstance(option, int) else ",".join(str(part) for part in option)


def _channels(text: str) -> tuple[int, ...]:
    return tuple(at_least(1, 10_000)(word) for word in words(text))
