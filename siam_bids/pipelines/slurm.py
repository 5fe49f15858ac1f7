"""Ready SLURM scripts for a dataset: an array over what is still to do, then the group level."""

from __future__ import annotations

import logging
import math
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pandas as pd
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from siam_bids.bids.names import finished_scans
from siam_bids.bids.records import read_record
from siam_bids.bids.scan import Scan
from siam_bids.config import RunConfig
from siam_bids.errors import DatasetError, SiamError, UsageError
from siam_bids.image.loading import read_grid
from siam_bids.inference.cascade import Cascade
from siam_bids.inference.cost import Cost
from siam_bids.pipelines.todo import unfinished
from siam_bids.support.atomic_files import atomic
from siam_bids.support.folders import check_folder
from siam_bids.support.input_files import is_listed, read_text
from siam_bids.support.package_data import resource

logger = logging.getLogger(__name__)

SCRIPTS = ("participant.sbatch", "group.sbatch", "submit.sh")
JOBS = "jobs.txt"
MARK = "# Written by siam-bids-slurm."
"""Second line of each script, by which a later run knows it."""

_WHO = "--participant-label "  # so begins each line of JOBS
_MOST_TASKS = 1000  # SLURM's default MaxArraySize is 1001
_SEPARATORS = re.compile(r"""[:,"\\]""")  # in what Apptainer is told to bind
_RESTARTS = 3
_SPARE = 1.3  # memory asked for over memory expected
_PATIENCE = 3.0  # time asked for over time expected: shared file systems have bad days
_SAMPLE = 50  # images whose headers are looked at


@dataclass(frozen=True, kw_only=True)
class ArrayConfig:
    """How a dataset is spread over a cluster.

    Attributes
    ----------
    run
        What each task does: folders, query, model, options.
    options
        Further options of `siam-bids` for both levels, as typed.
    sessions
        One line of work per session instead of per participant.
    per_task
        Participants (sessions) of one task; 0 fills about `minutes`.
    throttle
        Tasks that run at once; 0 for no limit.
    container
        Apptainer image; None runs `program`.
    program
        The command where there is no container, for example the path in a virtual environment.
    memory_mb, minutes
        Wishes that replace the estimate; 0 to estimate.
    sbatch
        Further `#SBATCH` options, for example `--account=lab`.
    templates
        Folder with the user's own templates; None for ours.
    """

    run: RunConfig
    folder: Path
    options: tuple[str, ...] = ()
    sessions: bool = False
    per_task: int = 0
    throttle: int = 0
    cpus: int = 2
    gpu: bool = False
    container: Path | None = None
    program: str = "siam-bids"
    memory_mb: int = 0
    minutes: int = 0
    sbatch: tuple[str, ...] = ()
    templates: Path | None = None


@dataclass(frozen=True)
class Scripts:
    """The content of the scripts and of the list of jobs, by path.

    `refused` are images of no task: their names cannot be used, with the reason.
    """

    files: dict[Path, str]
    refused: dict[str, str]


def write_scripts(config: ArrayConfig) -> Scripts:
    """Write the scripts and the list of jobs.

    Raises
    ------
    SiamError
        The dataset or the model is unusable, or everything is done.
    """
    scripts = render_scripts(config)
    for path in scripts.files:
        _check_replaceable(path)
    for path, text in scripts.files.items():
        with atomic(path) as scratch:
            scratch.write_text(text, encoding="utf-8", newline="\n")
        if path.suffix == ".sh":
            path.chmod(path.stat().st_mode | 0o111)
    return scripts


def render_scripts(config: ArrayConfig) -> Scripts:
    """Return what `write_scripts` writes."""
    _check_place(config)
    if config.sessions and config.run.combine in ("sessions", "all"):
        raise UsageError(
            f"--combine {config.run.combine} needs all sessions of a participant in one task.",
            "Leave --sessions out.",
        )
    cascade, found = unfinished(config.run)
    scans = found.scans
    if not scans and found.refused:
        name, reason = next(iter(found.refused.items()))
        raise DatasetError(f"No image with a usable name is left to segment. {name}: {reason}")
    if not scans:
        raise UsageError("Everything is already done.", "Run the group level, or --overwrite.")
    for text in (str(config.run.output_dir.absolute()), *config.sbatch):
        if not text.isprintable():
            raise UsageError(
                f"{text!r} contains a line break or another character that #SBATCH lines cannot "
                "contain.",
                "Give another output folder or option.",
            )
    size = _size(config, cascade, scans)
    lines, tasks = _work(config, scans, size)
    folder = config.folder.absolute()
    most = max(map(len, tasks))
    everything = len(scans) + sum(1 for _ in finished_scans(config.run.output_dir))
    values = {
        "scans": len(scans),
        "subjects": len({scan.identity.subject for scan in scans}),
        "tasks": len(tasks),
        "throttle": config.throttle,
        "cpus": config.cpus,
        "gpu": config.gpu,
        "memory_mb": config.memory_mb or _round_up(size.memory / 1e6 * _SPARE, 500),
        "minutes": config.minutes
        or _round_up((size.start + most * size.seconds) * _PATIENCE / 60 + 5, 5),
        "group_memory_mb": 2000 + everything // 50,
        "group_minutes": 15 + everything // 200,
        "restarts": _RESTARTS,
        "sbatch": config.sbatch,
        "logs": config.run.output_dir.absolute() / "logs" / "slurm",
        "jobs": folder / JOBS,
        "command": _command(config, [model.folder for model in cascade.models]),
        "work": "/work" if config.container else '"$work"',
        "options": shlex.join(_options(config)),
    }
    environment = Environment(  # noqa: S701 (shell scripts, not HTML; `quote` guards words)
        loader=FileSystemLoader(config.templates or resource("templates", "slurm")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    environment.filters["directive"] = _directive
    rendered = {
        folder / name: _marked(environment.get_template(f"{name}.jinja").render(values))
        for name in SCRIPTS
    }
    jobs = {folder / JOBS: "".join(f"{line}\n" for line in lines)}
    return Scripts({**rendered, **jobs}, found.refused)


def _check_place(config: ArrayConfig) -> None:
    """Refuse a folder for the scripts that lies within the raw dataset.

    The output folder may lie there, and they in it.
    """
    check_folder(config.folder, "folder of the scripts")
    place = config.folder.resolve()
    inside = place.is_relative_to(config.run.bids_dir.resolve())
    if inside and not place.is_relative_to(config.run.output_dir.resolve()):
        raise UsageError(
            f"--folder {config.folder} lies inside the dataset {config.run.bids_dir}.",
            "Give a folder elsewhere.",
        )


def _check_replaceable(path: Path) -> None:
    """Refuse to replace a file that this command did not write."""
    if not is_listed(path):
        return
    try:
        lines = read_text(path).splitlines()
    except ValueError:
        lines = [""]
    jobs = path.name == JOBS
    ours = all(line.startswith(_WHO) for line in lines) if jobs else MARK in lines
    if not ours:
        raise UsageError(
            f"{path} exists and was not written by siam-bids-slurm.",
            "Remove it, or give another --folder.",
        )


def _marked(script: str) -> str:
    """Return a script with the line that says what wrote it, after its first line."""
    first, _, rest = script.partition("\n")
    return f"{first}\n{MARK}\n{rest}"


def _directive(value: object) -> str:
    """Quote a path for an `#SBATCH` line: not the shell reads it, and `%` stands for a number."""
    text = str(value).replace("%", "%%")
    if not re.search(r"""[\s"'#\\]""", text):
        return text
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def _work(
    config: ArrayConfig, scans: Sequence[Scan], size: Cost
) -> tuple[list[str], list[list[Scan]]]:
    """Return the options that choose the scans of each task, and those scans."""
    units = _units(scans, by_session=config.sessions)
    fitting = int((config.minutes or 30) * 60 / _PATIENCE / (size.seconds * len(units[0][1])))
    per_task = config.per_task or max(1, fitting, math.ceil(len(units) / _MOST_TASKS))
    if config.sessions:
        per_task = 1
    if math.ceil(len(units) / per_task) > _MOST_TASKS:
        logger.warning("More than %d tasks: see MaxArraySize of your cluster.", _MOST_TASKS)
    chunks = [units[start : start + per_task] for start in range(0, len(units), per_task)]
    lines = []
    for chunk in chunks:
        line = _WHO + " ".join(subject for (subject, _), _ in chunk)
        (_, session), _ = chunk[0]
        lines.append(f"{line} --session-label {session}" if session else line)
    return lines, [[scan for _, own in chunk for scan in own] for chunk in chunks]


def _units(scans: Sequence[Scan], *, by_session: bool) -> list[tuple[tuple[str, str], list[Scan]]]:
    """Group scans by participant or also by session: labels of both, and the scans."""

    def labels(scan: Scan) -> tuple[str, str]:
        return scan.identity.subject, scan.identity.session if by_session else ""

    return [(own, list(group)) for own, group in groupby(scans, key=labels)]


def _size(config: ArrayConfig, cascade: Cascade, scans: Sequence[Scan]) -> Cost:
    """Return what a scan costs: as measured in the output folder, else estimated."""
    step = math.ceil(len(scans) / _SAMPLE)
    grids = []
    for scan in scans[::step]:
        with suppress(SiamError, OSError):  # its own job will tell
            grids.append(read_grid(scan.path, index=config.run.inference.volume))
    device = torch.device("cuda" if config.gpu else "cpu")
    size = cascade.estimate(grids, device, config.run.inference, cpus=config.cpus)
    needed = {"peak_memory_MB", "seconds", "threads", "device"}
    records = [read_record(n.record) for n in finished_scans(config.run.output_dir)]
    past = pd.DataFrame([record for record in records if needed <= {*record}])
    if len(past):
        past = past[(past["threads"] == config.cpus) & (past["device"].eq("cuda") == config.gpu)]
    if len(past) >= 3:
        logger.info("Sized by %d scans that are finished.", len(past))
        memory, seconds = past["peak_memory_MB"].max() * 1e6, past["seconds"].quantile(0.9)
        return Cost(memory=float(memory), seconds=float(seconds), start=size.start)
    return size


def _options(config: ArrayConfig) -> list[str]:
    options = [] if config.run.model == "compact" else ["--model", str(config.run.model)]
    return [*options, "--device", "cuda" if config.gpu else "cpu", *config.options]


def _command(config: ArrayConfig, models: Sequence[Path]) -> str:
    source, target = config.run.bids_dir.absolute(), config.run.output_dir.absolute()
    folders = [str(source), str(target)]
    if not config.container:
        return shlex.join([*shlex.split(config.program), *folders])
    words = ["apptainer", "run", "--cleanenv", "--containall"]
    words += ["--nv"] if config.gpu else []
    # Folders keep their names: outputs link to the dataset, and an index of pybids holds its path.
    binds = [f"{source}:{source}:ro", f"{target}:{target}"]
    seen = _mentioned(config)
    roots = [
        root for root in config.run.model_dirs if any(root in model.parents for model in models)
    ]
    if roots:
        words += ["--env", "SIAM_MODEL_DIR=" + ":".join(map(str, roots))]
        seen += roots
    inside = [*seen, resource("data", "models")]  # the image has the shipped ones
    seen += [each for each in dict.fromkeys(models) if not any(map(each.is_relative_to, inside))]
    binds += [f"{path}:{path}:ro" for path in seen]
    for path in (source, target, *seen):
        if odd := _SEPARATORS.search(str(path)):
            raise UsageError(
                f"Apptainer cannot bind {path}: its name contains {odd[0]}.",
                "Rename it, or run without --container.",
            )
    for bind in binds:
        words += ["--bind", bind]
    image = str(config.container.absolute())
    return shlex.join(words) + ' --bind "$work":/work ' + shlex.join([image, *folders])


def _mentioned(config: ArrayConfig) -> list[Path]:
    """List the files and folders that options name, which the container must see."""
    words = [*config.options, config.run.model]
    return [Path(word) for word in words if word.startswith("/") and Path(word).exists()]


def _round_up(value: float, step: int) -> int:
    return math.ceil(value / step) * step
