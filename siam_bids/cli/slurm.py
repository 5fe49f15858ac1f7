"""`siam-bids-slurm`: scripts for an array of jobs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from siam_bids.cli import app
from siam_bids.cli.arguments import (
    MOST_CPUS,
    add_folders,
    add_probability_maps,
    add_query,
    at_least,
    query_of,
)
from siam_bids.cli.command_line import CommandLine
from siam_bids.cli.console import EXIT_SOME_SCANS_FAILED, guarded, quick_imports, start_logging
from siam_bids.config import DEFAULT_SUFFIXES, Query


def main(argv: Sequence[str] | None = None) -> int:
    """Run `siam-bids-slurm`; return the exit code."""
    return guarded(_run, argv)


def _run(argv: list[str]) -> int:
    if "--" in argv:
        argv, options = argv[: argv.index("--")], _absolute_paths(argv[argv.index("--") + 1 :])
    else:
        options = []
    arguments = parser().parse(argv)
    start_logging()

    with quick_imports():
        from siam_bids.pipelines.slurm import ArrayConfig, render_scripts, write_scripts

    query = query_of(arguments)
    forward = _forwarded(arguments, query)
    folder = arguments.folder or arguments.output_dir / "code" / "slurm"
    # What is still to do depends on every option, so it is asked of the run that tasks will be.
    words = [str(arguments.bids_dir), str(arguments.output_dir), "participant"]
    words += ["--model", _absolute(arguments.model)]
    words += ["--participant-label", *query.participants] if query.participants else []
    words += ["--session-label", *query.sessions] if query.sessions else []
    config = ArrayConfig(
        run=app.run_config(app.parser().parse([*words, *forward, *options]), ""),
        folder=folder,
        options=(*forward, *options),
        sessions=arguments.sessions,
        per_task=arguments.per_task,
        throttle=arguments.throttle,
        cpus=arguments.cpus,
        gpu=arguments.gpu,
        container=arguments.container,
        program=arguments.program,
        memory_mb=arguments.mem_mb,
        minutes=arguments.minutes,
        sbatch=tuple(arguments.sbatch),
        templates=arguments.templates,
    )
    if arguments.dry_run:
        scripts = render_scripts(config)
        for path, text in scripts.files.items():
            print(f"----- {path}\n{text}")
    else:
        scripts = write_scripts(config)
        for path in scripts.files:
            print(path)
        print(f"Look at them, then: {folder / 'submit.sh'}")
    for name, reason in scripts.refused.items():
        print(f"FAILED {name}: {reason}", file=sys.stderr)
    return EXIT_SOME_SCANS_FAILED if scripts.refused else 0


def _forwarded(arguments: argparse.Namespace, query: Query) -> list[str]:
    """Return the options that every task gets as well."""
    forward = ["--suffix", *query.suffixes] if query.suffixes != DEFAULT_SUFFIXES else []
    if arguments.bids_filter_file:
        forward += ["--bids-filter-file", str(arguments.bids_filter_file.absolute())]
    if query.database:
        forward += ["--bids-database-dir", str(query.database.absolute())]
    if query.derivative:
        forward += ["--derivative-input"]
    if arguments.probabilities:
        forward += ["--probabilities", *arguments.probabilities]
    if arguments.write_probseg:
        forward += ["--write-probseg"]
    if query.sessions and not arguments.sessions:
        forward += ["--session-label", *query.sessions]
    return forward


def _absolute(word: str) -> str:
    """Make a path absolute; what is none, such as the name of a model, stays as it is."""
    path = Path(word).expanduser()
    return str(path.absolute()) if path.exists() else word


def _absolute_paths(options: Sequence[str]) -> list[str]:
    """Make paths within options absolute, since jobs run in another folder."""
    paths = ("--model", "--bids-filter-file", "--bids-database-dir", "--ratings")
    words: list[str] = []
    for option in options:
        name, equals, value = option.partition("=")
        words += [name, value] if equals and name.replace("_", "-") in paths else [option]
    return [
        _absolute(word) if name.replace("_", "-") in paths else word
        for name, word in zip(("", *words), words, strict=False)
    ]


def parser() -> CommandLine:
    """Return the command line of `siam-bids-slurm`."""
    top = CommandLine(
        "siam-bids-slurm",
        "Write sbatch scripts that segment the remaining scans of a BIDS dataset.",
        usage="siam-bids-slurm BIDS_DIR OUTPUT_DIR [options] [-- options of siam-bids]",
        epilog="Options after a lone -- are passed to every siam-bids, for example -- --low-mem.",
    )
    add_folders(top)
    add_query(top)
    how = top.add_argument_group("how")
    how.add_argument("--model", default="compact", help="as for siam-bids")
    add_probability_maps(how)
    how.add_argument("--gpu", action="store_true", help="one GPU per task (adds --device cuda)")
    how.add_argument(
        "--container", type=Path, metavar="IMAGE.sif", help="run in this Apptainer image"
    )
    how.add_argument("--program", default="siam-bids", help="command to run without a container")
    shape = top.add_argument_group("the array")
    shape.add_argument("--sessions", action="store_true", help="one task per session")
    shape.add_argument(
        "--cpus", type=at_least(1, MOST_CPUS), default=2, metavar="N", help="CPUs per task"
    )
    for option, unit, text in (
        ("--per-task", "N", "participants per task (default: as many as fill 1/3 of --minutes)"),
        ("--throttle", "N", "maximum number of tasks that run at once (default: no limit)"),
        ("--mem-mb", "MB", "memory per task (default: estimated)"),
        ("--minutes", "N", "time limit per task (default: estimated)"),
    ):
        shape.add_argument(option, type=at_least(0), default=0, metavar=unit, help=text)
    shape.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="further #SBATCH option; may be repeated, for example --sbatch=--account=lab",
    )
    what = top.add_argument_group("the scripts")
    what.add_argument(
        "--folder", type=Path, help="folder of the scripts (default: OUTPUT_DIR/code/slurm)"
    )
    what.add_argument(
        "--templates",
        type=Path,
        metavar="DIR",
        help="folder with your copies of templates/slurm/*.jinja",
    )
    what.add_argument("--dry-run", action="store_true", help="print the scripts, write nothing")
    top.add_common_options()
    return top
