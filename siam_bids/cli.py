"""The console commands: argv to configuration, and exit codes.

Nothing heavy is imported before the arguments are known, so `--help` answers at once.
"""

from __future__ import annotations

import argparse
import atexit
import logging
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from siam_bids import __version__
from siam_bids.config import DEFAULT_SUFFIXES, Inference, Query, RunConfig
from siam_bids.errors import ModelError, SiamError, UsageError, out_of_memory
from siam_bids.stopping import EXIT_INTERRUPTED, Stopped, stoppable
from siam_bids.store import search_path

logger = logging.getLogger(__name__)

EXIT_SOME_SCANS_FAILED = 1
EXIT_DISK = 7

_CACHES = {
    "MPLCONFIGDIR": "matplotlib",
    "XDG_CACHE_HOME": "cache",  # fontconfig and others
    "TORCH_HOME": "torch",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "NUMBA_CACHE_DIR": "numba",
}
"""Where libraries keep caches: environment variable and folder within the work folder."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `siam-bids`; return the exit code.

    0: all asked for exists. 1: some scans failed, the others are complete. 2 and more: nothing
    could be done, see `siam_bids.errors`; 7 is a disk or a permission that fails. 75 and 130:
    stopped by a scheduler or Ctrl-C, see `siam_bids.stopping`.
    """
    with stoppable():
        return _guarded(_run, sys.argv[1:] if argv is None else list(argv))


def slurm(argv: Sequence[str] | None = None) -> int:
    """Run `siam-bids-slurm`; return the exit code."""
    return _guarded(_slurm, sys.argv[1:] if argv is None else list(argv))


def segment(argv: Sequence[str] | None = None) -> int:
    """Run `siam-bids-segment`; return the exit code."""
    return _guarded(_segment, sys.argv[1:] if argv is None else list(argv))


def models(argv: Sequence[str] | None = None) -> int:
    """Run `siam-bids-models`; return the exit code."""
    return _guarded(_models, sys.argv[1:] if argv is None else list(argv))


def train(argv: Sequence[str] | None = None) -> int:
    """Run `siam-bids-train`; return the exit code."""
    return _guarded(_train, sys.argv[1:] if argv is None else list(argv))


def _guarded(command: Callable[[list[str]], int], argv: list[str]) -> int:
    try:
        return command(_with_hyphens(argv))
    except SiamError as error:
        print(f"siam-bids: error: {error}", file=sys.stderr)
        return error.exit_code
    except (OSError, MemoryError, RuntimeError) as error:
        if out_of_memory(error):
            print("siam-bids: error: Out of memory. Give the job more memory.", file=sys.stderr)
            return EXIT_SOME_SCANS_FAILED
        if not isinstance(error, OSError):
            raise
        print(f"siam-bids: error: {error}. Check the disk and permissions.", file=sys.stderr)
        return EXIT_DISK
    except Stopped as stop:
        print(f"siam-bids: {stop}; finished scans are kept, run again to go on.", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("siam-bids: interrupted; finished scans are kept.", file=sys.stderr)
        return EXIT_INTERRUPTED


def _with_hyphens(argv: Sequence[str]) -> list[str]:
    """Let `--participant_label` mean `--participant-label`, for every option."""
    spelled = []
    for word in argv:
        name, equals, value = word.partition("=")
        spelled.append(name.replace("_", "-") + equals + value if word.startswith("--") else word)
    return spelled


def _run(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    _start_logging(arguments.verbose)
    _place_caches(arguments.work_dir)
    config = _run_config(arguments, shlex.join(["siam-bids", *argv]))

    if config.level == "group" and not (arguments.boilerplate_only or config.dry_run):
        from siam_bids.group import run_group  # heavy, but without torch

        wide = run_group(config)
        print(f"{len(wide)} scans: {config.output_dir / 'group.html'}")
        return 0

    from siam_bids import workflow  # heavy: torch, nnunetv2, pybids

    if arguments.boilerplate_only:
        print(workflow.boilerplate(config))
        return 0
    if config.dry_run:
        return _dry_run(config)
    if config.reports_only:
        for label in workflow.rebuild_reports(config):
            print(config.output_dir / f"sub-{label}.html")
        return 0
    summary = workflow.run_participant(config)
    for line in summary.lines():
        print(line)
    return EXIT_SOME_SCANS_FAILED if summary.failed else 0


def _dry_run(config: RunConfig) -> int:
    from siam_bids import planning, workflow

    steps = planning.plan(config)
    print(planning.HEADER)
    for step in steps:
        print(step.line())
    if all(step.action == "skip" for step in steps):
        raise workflow.nothing_matches(config)
    print(planning.summary(steps), file=sys.stderr)
    return 0


def _place_caches(work: Path | None) -> None:
    """Send the caches of all libraries to the work folder; to a passing one if HOME is no use.

    A cluster's container has a read-only system, any user number and often no HOME.
    """
    home = Path(os.environ.get("HOME") or "/nonexistent")
    usable = home.is_dir() and os.access(home, os.W_OK)
    if usable and work is None:
        return
    try:
        if work is None:
            work = Path(tempfile.mkdtemp(prefix="siam-bids-"))
            atexit.register(shutil.rmtree, work, ignore_errors=True)
        work = work.absolute()
        work.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=work).close()
    except OSError as error:
        raise UsageError(
            f"No scratch file can be written: {error}.", "Give a folder with --work-dir."
        ) from error
    for name, folder in _CACHES.items():
        os.environ[name] = str(work / folder)
    tempfile.tempdir = os.environ["TMPDIR"] = str(work)
    if not usable:
        os.environ["HOME"] = str(work)
    os.environ.setdefault("LOGNAME", "siam-bids")  # users without a name have no passwd entry


def _start_logging(verbosity: int) -> None:
    level = {0: logging.INFO, 1: logging.INFO}.get(verbosity, logging.DEBUG)
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("siam_bids").setLevel(level)


def parser() -> argparse.ArgumentParser:
    """Return the command line of `siam-bids`, spelled as BIDS Apps are."""
    top = argparse.ArgumentParser(
        prog="siam-bids",
        description="Segment the head MRI scans of a BIDS dataset, any contrast, any resolution.",
        epilog="Every option may be spelled with hyphens or underscores.",
        allow_abbrev=False,
    )
    _add_folders(top)
    top.add_argument(
        "analysis_level",
        choices=("participant", "group"),
        help="participant: segment scans; group: tables and page over all that is segmented",
    )
    top.add_argument("--version", action="version", version=f"siam-bids {__version__}")

    _add_query(top)
    how = top.add_argument_group("how")
    how.add_argument(
        "--model", default="compact", help="name of a model or path of an nnU-Net v2 model folder"
    )
    how.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    how.add_argument(
        "--n-cpus",
        "--nprocs",
        "--nthreads",
        "--omp-nthreads",
        dest="threads",
        type=int,
        default=0,
        metavar="N",
        help="CPU threads (default: all)",
    )
    how.add_argument(
        "--probabilities",
        nargs="+",
        default=[],
        metavar="TISSUE",
        help="also write probability maps of these tissues, for example GM WM CSF",
    )
    how.add_argument("--write-probseg", action="store_true", help="also write those of all tissues")
    _add_inference_options(how)
    again = how.add_mutually_exclusive_group()
    again.add_argument(
        "--resume",
        action="store_true",
        help="do only what is missing or was made from another input, model or options (default)",
    )
    again.add_argument("--overwrite", action="store_true", help="segment all of them anew")
    how.add_argument(
        "-w", "--work-dir", type=Path, metavar="DIR", help="scratch files and caches of libraries"
    )
    how.add_argument(
        "--viewer", action="store_true", help="put a viewer of scan and labels into the pages"
    )
    how.add_argument("--stop-on-first-crash", action="store_true", help="stop at a failing scan")

    group = top.add_argument_group("group level")
    group.add_argument(
        "--formula",
        default="",
        metavar="FORMULA",
        help='model every tissue, for example "GM ~ age + C(sex) + ICV"',
    )
    group.add_argument(
        "--adjust-for",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="regress these out before looking for outliers, for example age sex TIV",
    )
    group.add_argument(
        "--ratings",
        type=Path,
        metavar="FILE",
        help="ratings exported from the group page (default: OUTPUT_DIR/group_ratings.tsv)",
    )

    what = top.add_argument_group("instead of segmenting")
    what.add_argument(
        "--dry-run",
        action="store_true",
        help="list what would be done, why, and what it takes; write nothing",
    )
    what.add_argument("--reports-only", action="store_true", help="write the pages anew")
    what.add_argument("--boilerplate-only", action="store_true", help="print the methods text")

    top.add_argument("-v", "--verbose", action="count", default=0, help="twice: tracebacks too")
    accepted = top.add_argument_group("accepted for compatibility, without effect")
    for name in ("--skip-bids-validation", "--skip-bids-validator", "--notrack"):
        accepted.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    accepted.description = "--skip-bids-validation, --notrack"
    return top


def _add_folders(top: argparse.ArgumentParser) -> None:
    top.add_argument("bids_dir", type=Path, help="root of the BIDS dataset")
    top.add_argument("output_dir", type=Path, help="folder of the derivative dataset")


def _add_query(top: argparse.ArgumentParser) -> None:
    which = top.add_argument_group("which scans")
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
        "--bids-database-dir", type=Path, metavar="DIR", help="pybids index to make and reuse"
    )


def _run_config(arguments: argparse.Namespace, command: str) -> RunConfig:
    return RunConfig(
        bids_dir=arguments.bids_dir,
        output_dir=arguments.output_dir,
        level=arguments.analysis_level,
        query=_query(arguments),
        model=arguments.model,
        model_dirs=search_path(os.environ),
        inference=_inference(arguments),
        device=arguments.device,
        threads=_threads(arguments),
        probabilities=tuple(arguments.probabilities),
        write_probseg=arguments.write_probseg,
        overwrite=arguments.overwrite,
        dry_run=arguments.dry_run,
        reports_only=arguments.reports_only,
        stop_on_first_crash=arguments.stop_on_first_crash,
        viewer=arguments.viewer,
        formula=arguments.formula,
        adjust=tuple(arguments.adjust_for),
        ratings=arguments.ratings,
        progress=sys.stderr.isatty(),
        command=command,
    )


def _threads(arguments: argparse.Namespace) -> int:
    if arguments.threads < 0:
        raise UsageError(f"--n-cpus {arguments.threads} is negative.", "Give 1 or more.")
    return int(arguments.threads)


def _query(arguments: argparse.Namespace) -> Query:
    filters = {}
    if arguments.bids_filter_file:
        from siam_bids.dataset import read_filter_file

        filters = read_filter_file(arguments.bids_filter_file)
    return Query(
        participants=tuple(_bare(arguments.participant_label, "sub-")),
        sessions=tuple(_bare(arguments.session_label, "ses-")),
        suffixes=tuple(arguments.suffix),
        filters=filters,
        database=arguments.bids_database_dir,
    )


def _add_inference_options(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--voxel-size",
        "-voxelsize",
        type=_positive,
        metavar="MM",
        help="pretend that voxels have this isotropic size",
    )
    group.add_argument(
        "--scale",
        type=_positive,
        default=1.0,
        metavar="FACTOR",
        help="pretend that voxels are larger by this factor; 1.4 for newborns",
    )
    group.add_argument(
        "--no-interpolation",
        action="store_true",
        help="take the voxels as they are, whatever the model's voxel size",
    )
    group.add_argument(
        "--folds", nargs="+", default=[], metavar="N", help="average these folds only"
    )
    group.add_argument(
        "--mirror", action="store_true", help="average over mirrored tiles too, if trained for it"
    )
    group.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="on a CPU (default: bfloat16 where the CPU has it and the model is known to bear it)",
    )
    group.add_argument(
        "--volume", type=int, metavar="N", help="take volume N (from 0) of 4-D images"
    )
    group.add_argument(
        "--mem-gb",
        type=_gigabytes,
        metavar="GB",
        help="refuse scans that need more memory than this (default: than is free)",
    )
    group.add_argument("--mem-mb", type=_megabytes, dest="mem_gb", help=argparse.SUPPRESS)
    group.add_argument(
        "--low-mem", action="store_true", help="keep the sums of all classes on disk (--work-dir)"
    )


def _positive(text: str) -> float:
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


def _inference(arguments: argparse.Namespace) -> Inference:
    if arguments.volume is not None and arguments.volume < 0:
        raise UsageError(f"--volume {arguments.volume} is negative.", "Volumes count from 0.")
    if arguments.no_interpolation and (arguments.voxel_size or arguments.scale != 1):
        raise UsageError(
            "--no-interpolation contradicts --voxel-size and --scale.", "Give one of them."
        )
    return Inference(
        voxel_size=arguments.voxel_size,
        scale=arguments.scale,
        interpolate=not arguments.no_interpolation,
        folds=tuple(_bare(arguments.folds, "fold-")),
        mirror=arguments.mirror,
        precision=arguments.precision,
        volume=arguments.volume,
        memory=1e9 * arguments.mem_gb if arguments.mem_gb else None,
        low_memory=arguments.low_mem,
    )


def _bare(labels: Sequence[str], prefix: str) -> list[str]:
    """Strip an optional prefix and split what was given as one comma or space separated word."""
    words = [word for label in labels for word in _words(label)]
    return list(dict.fromkeys(word.removeprefix(prefix) for word in words))


def _channels(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in _words(text))


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _slurm(argv: list[str]) -> int:
    if "--" in argv:
        argv, options = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    else:
        options = []
    arguments = slurm_parser().parse_args(argv)
    _start_logging(1)

    from siam_bids.slurm import ArrayConfig, render_scripts, write_scripts  # heavy

    query = _query(arguments)
    forward = ["--suffix", *query.suffixes] if query.suffixes != DEFAULT_SUFFIXES else []
    if arguments.bids_filter_file:
        forward += ["--bids-filter-file", str(arguments.bids_filter_file.absolute())]
    if arguments.probabilities:
        forward += ["--probabilities", *arguments.probabilities]
    if arguments.write_probseg:
        forward += ["--write-probseg"]
    if query.sessions and not arguments.sessions:
        forward += ["--session-label", *query.sessions]
    folder = arguments.folder or arguments.output_dir / "code" / "slurm"
    # What is still to do depends on every option, so it is asked of the run that tasks will be.
    words = [str(arguments.bids_dir), str(arguments.output_dir), "participant"]
    words += ["--model", _absolute_folder(arguments.model)]
    words += ["--participant-label", *query.participants] if query.participants else []
    words += ["--session-label", *query.sessions] if query.sessions else []
    config = ArrayConfig(
        run=_run_config(parser().parse_args([*words, *forward, *options]), ""),
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
        for path, text in render_scripts(config).items():
            print(f"----- {path}\n{text}")
        return 0
    for path in write_scripts(config):
        print(path)
    print(f"Look at them, then: {folder / 'submit.sh'}")
    return 0


def _absolute_folder(model: str) -> str:
    path = Path(model).expanduser()
    return str(path.absolute()) if path.is_dir() else model


def slurm_parser() -> argparse.ArgumentParser:
    """Return the command line of `siam-bids-slurm`."""
    top = argparse.ArgumentParser(
        prog="siam-bids-slurm",
        description="Write sbatch scripts that segment what is still to do of a BIDS dataset.",
        epilog="What follows a lone -- is handed to every siam-bids, for example -- --low-mem.",
        allow_abbrev=False,
    )
    _add_folders(top)
    _add_query(top)
    how = top.add_argument_group("how")
    how.add_argument("--model", default="compact", help="as for siam-bids")
    how.add_argument("--probabilities", nargs="+", default=[], metavar="TISSUE")
    how.add_argument("--write-probseg", action="store_true")
    how.add_argument("--gpu", action="store_true", help="one GPU a task, --device cuda")
    how.add_argument("--container", type=Path, metavar="IMAGE.sif", help="run it by Apptainer")
    how.add_argument(
        "--program", default="siam-bids", help="the command without container (default: siam-bids)"
    )
    shape = top.add_argument_group("the array")
    shape.add_argument("--sessions", action="store_true", help="a task per session")
    shape.add_argument(
        "--per-task",
        type=int,
        default=0,
        metavar="N",
        help="participants of one task (default: what fills a third of the time limit)",
    )
    shape.add_argument("--throttle", type=int, default=0, metavar="N", help="tasks at once")
    shape.add_argument("--cpus", type=int, default=2, metavar="N", help="CPUs of a task")
    shape.add_argument(
        "--mem-mb", type=int, default=0, metavar="MB", help="memory (default: estimated)"
    )
    shape.add_argument(
        "--minutes", type=int, default=0, metavar="N", help="time limit (default: estimated)"
    )
    shape.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="further #SBATCH option, may be repeated: --sbatch=--account=lab",
    )
    what = top.add_argument_group("the scripts")
    what.add_argument("--folder", type=Path, help="where they go (default: OUTPUT_DIR/code/slurm)")
    what.add_argument(
        "--templates", type=Path, metavar="DIR", help="your copies of templates/slurm/*.jinja"
    )
    what.add_argument("--dry-run", action="store_true", help="print them, write nothing")
    return top


def _train_parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="siam-bids-train",
        description="Train the compact model on label maps; resumes what lies in FOLDER.",
        allow_abbrev=False,
    )
    top.add_argument("folder", type=Path, help="state, log and model folder of the run")
    for source in ("synthseg", "siam"):
        top.add_argument(
            f"--{source}",
            nargs="+",
            type=Path,
            default=[],
            metavar="MAP",
            help=f"label maps in the coding of data/labels/source_{source}.tsv",
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
        help="what the values of --maps mean: a BIDS label table (index, name) with SIAM's names, "
        "or a table with the columns value, name, tissue, target",
    )
    top.add_argument(
        "--from",
        dest="start",
        metavar="MODEL",
        help="begin with the weights of this model (name or folder): fine-tuning; with one more "
        "--features and half the --voxel, the network grows by a finer stage",
    )
    top.add_argument("--features", type=_channels, help="channels of each stage: 16,32,64")
    top.add_argument("--patch", type=int, help="edge of patches and tiles, in voxels")
    top.add_argument("--voxel", type=int, help="voxel size in mm")
    top.add_argument("--learning-rate", type=float, help="peak of the learning rate")
    top.add_argument(
        "--dice-weight",
        type=float,
        default=1.0,
        help="weight of the Dice term; 0 in a last leg sets volumes and probabilities right",
    )
    top.add_argument("--minutes", type=float, default=30, help="length of this leg")
    top.add_argument(
        "--cooldown", action="store_true", help="last leg: the learning rate falls to zero"
    )
    top.add_argument("--device", default="cpu")
    top.add_argument("--compile", action="store_true", help="torch.compile, needs a C++ compiler")
    top.add_argument("--seed", type=int, default=0)
    return top


def _train(argv: list[str]) -> int:
    arguments = _train_parser().parse_args(argv)
    _start_logging(1)

    from siam_bids.models import find_model
    from siam_bids.training import TrainingConfig, shape_of, train as run

    if bool(arguments.maps) != bool(arguments.table):
        raise UsageError("--maps and --table belong together.", "Give both or neither.")
    maps = [(path, "synthseg") for path in arguments.synthseg]
    maps += [(path, "siam") for path in arguments.siam]
    maps += [(path, str(arguments.table)) for path in arguments.maps]
    start = find_model(arguments.start).folder if arguments.start else None
    chosen = shape_of(start) if start else {}
    for name in ("features", "patch", "voxel", "learning_rate"):
        if getattr(arguments, name):
            chosen[name] = getattr(arguments, name)
    trainer = run(
        TrainingConfig(
            maps=tuple(maps),
            folder=arguments.folder,
            minutes=arguments.minutes,
            cooldown=arguments.cooldown,
            seed=arguments.seed,
            device=arguments.device,
            compile=arguments.compile,
            start=start,
            dice_weight=arguments.dice_weight,
            **chosen,
        )
    )
    print(f"step {trainer.step}: {arguments.folder / 'model'}")
    return 0


def _segment_parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="siam-bids-segment",
        description="Segment head MRI files without BIDS: one image, or all images of a folder. "
        "siam-pred's spellings are understood too.",
        usage="siam-bids-segment [options] INPUT OUTPUT",
        allow_abbrev=False,
    )
    top.add_argument("input", nargs="?", type=Path, help="NIfTI or MGH file, or a folder of them")
    top.add_argument("output", nargs="?", type=Path, help="NIfTI file to write, or a folder")
    top.add_argument("-i", dest="other_input", type=Path, help=argparse.SUPPRESS)
    top.add_argument("-o", dest="other_output", type=Path, help=argparse.SUPPRESS)
    top.add_argument(
        "--model",
        "-m",
        default="compact",
        help="name of a model or path of an nnU-Net v2 model folder; siam-pred's numbers 0, 1 and "
        "2 are siam-v0.3, siam-v0.1 and siam-v0.2",
    )
    top.add_argument("--device", "-device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    top.add_argument(
        "--n-cpus", "-nbthread", dest="threads", type=int, default=0, metavar="N",
        help="CPU threads (default: all)",
    )  # fmt: skip
    _add_inference_options(top)
    top.add_argument("--version", action="version", version=f"siam-bids {__version__}")
    return top


_SIAM_PRED_MODELS = {"0": "siam-v0.3", "1": "siam-v0.1", "2": "siam-v0.2"}


def _segment(argv: list[str]) -> int:
    arguments = _segment_parser().parse_args(argv)
    _start_logging(1)
    named = [arguments.other_input, arguments.other_output]
    free = [path for path in (arguments.input, arguments.output) if path]
    source, target = (each or (free.pop(0) if free else None) for each in named)
    if source is None or target is None or free:
        raise UsageError("One input and one output are needed.", "See siam-bids-segment --help.")

    from siam_bids.plain import segment_files  # heavy: torch, nnunetv2

    written, failed = segment_files(
        source,
        target,
        model=_SIAM_PRED_MODELS.get(arguments.model, arguments.model),
        model_dirs=search_path(os.environ),
        device=arguments.device,
        threads=_threads(arguments),
        inference=_inference(arguments),
    )
    for path in written:
        print(path)
    for name, reason in failed.items():
        print(f"FAILED {name}: {reason}", file=sys.stderr)
    return EXIT_SOME_SCANS_FAILED if failed else 0


def _models_parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="siam-bids-models",
        description="Manage downloaded models.",
        epilog="They lie in SIAM_MODEL_DIR (else nnUNet_results), the user's data folder, or "
        "~/siam_params. Proxies: https_proxy, http_proxy, no_proxy.",
        allow_abbrev=False,
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("list", help="which models there are, and where")
    fetch = verbs.add_parser("fetch", help="download, check and unpack a model", allow_abbrev=False)
    fetch.add_argument(
        "--mirror",
        default=os.environ.get("SIAM_BIDS_MIRROR", ""),
        metavar="URL",
        help="fetch the archive from here: its address, or its folder with / at the end "
        "(default: environment variable SIAM_BIDS_MIRROR, else Zenodo)",
    )
    fetch.add_argument("--archive", type=Path, metavar="FILE", help="the archive, if on disk")
    fetch.add_argument(
        "--checksum", default="", metavar="md5:HEX", help="of the archive (default: as published)"
    )
    others = {
        "verify": "compare every file of a model with its checksum",
        "where": "print the folder of a model",
        "remove": "delete a fetched model",
    }
    for verb in (fetch, *(verbs.add_parser(name, help=text) for name, text in others.items())):
        verb.add_argument("name", help="for example siam-v0.3")
    return top


def _models(argv: list[str]) -> int:
    arguments = _models_parser().parse_args(argv)
    _start_logging(1)

    from siam_bids import models as registry

    roots = search_path(os.environ)
    if arguments.verb == "list":
        for name in registry.registry():
            print(f"{name}\t{registry.locate(name, roots) or 'not fetched'}")
    elif arguments.verb == "where":
        print(registry.find_model(arguments.name, roots).folder)
    elif arguments.verb == "remove":
        print(f"removed {registry.remove(arguments.name, roots)}")
    elif arguments.verb == "verify":
        answers = list(registry.verify(arguments.name, roots))
        for part, good in answers:
            print(f"{'ok' if good else 'CHANGED'}\t{part}")
        return 0 if all(good for _, good in answers) else ModelError.exit_code
    else:
        _fetch(arguments, roots)
    return 0


def _fetch(arguments: argparse.Namespace, roots: Sequence[Path]) -> None:
    from tqdm import tqdm

    from siam_bids.models import fetch
    from siam_bids.nnunet import convert_checkpoints

    with tqdm(unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar:

        def progress(there: int, expected: int) -> None:
            bar.total = expected or None
            bar.update(there - bar.n)

        folder = fetch(
            arguments.name,
            roots,
            convert=convert_checkpoints,
            url=arguments.mirror,
            archive=arguments.archive,
            checksum=arguments.checksum,
            progress=progress,
        )
    print(folder)
