"""`siam-bids`: the BIDS App."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from siam_bids.cli.arguments import (
    MOST_CPUS,
    add_combine,
    add_folders,
    add_inference_options,
    add_probability_maps,
    add_query,
    add_segmentations,
    at_least,
    inference_of,
    query_of,
)
from siam_bids.cli.command_line import CommandLine, Elsewhere
from siam_bids.cli.console import (
    EXIT_SOME_SCANS_FAILED,
    caches_in,
    guarded,
    quick_imports,
    start_logging,
)
from siam_bids.config import DEFAULT_SUFFIXES, Query, RunConfig
from siam_bids.models.folder import search_path
from siam_bids.support.signals import stoppable
from siam_bids.support.tsv import number_of

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `siam-bids`; return the exit code.

    0: all asked for exists. 1: some scans failed, the others are complete. 2 and more: nothing
    could be done, see `siam_bids.errors`; 7 is a disk or a permission that fails. 75 and 130:
    stopped by a scheduler or Ctrl-C, see `siam_bids.support.signals`.
    """
    with stoppable():
        return guarded(_run, argv)


def _run(argv: list[str]) -> int:
    arguments = parser().parse(argv)
    start_logging(arguments.verbose)
    with caches_in(arguments.work_dir):
        return _answer(run_config(arguments, shlex.join(["siam-bids", *argv])), arguments)


def _answer(config: RunConfig, arguments: argparse.Namespace) -> int:
    """Do what was asked for; return the exit code."""
    if arguments.verify:
        return _verify(config)
    if arguments.boilerplate_only or config.dry_run:
        return _participant(config, arguments)
    if "group" in arguments.analysis_level:
        with quick_imports():
            from siam_bids.pipelines.group import check_options

        check_options(config)  # before hours of segmentation
    codes = [
        _group(config) if level == "group" else _participant(config, arguments)
        for level in dict.fromkeys(arguments.analysis_level)
    ]
    return max(codes)


def _group(config: RunConfig) -> int:
    with quick_imports():
        from siam_bids.pipelines.group import run_group

    chosen = _changed_query_options(config.query)
    if chosen:
        logger.warning(
            "The group level takes all scans of %s; without effect there: %s. "
            "--exclude leaves scans out.",
            config.output_dir,
            ", ".join(chosen),
        )
    group = run_group(replace(config, level="group"))
    scans = number_of(len(group.wide), "scan")
    print(f"{scans}. Open {config.output_dir / 'group.html'} in a browser.")
    for line in group.lines():
        print(line)
    return 0 if group.complete else EXIT_SOME_SCANS_FAILED


def _changed_query_options(query: Query) -> list[str]:
    """Return the options with which scans were chosen."""
    given = {
        "--participant-label": query.participants,
        "--session-label": query.sessions,
        "--suffix": query.suffixes != DEFAULT_SUFFIXES,
        "--bids-filter-file": query.filters,
    }
    return [option for option, value in given.items() if value]


def _participant(config: RunConfig, arguments: argparse.Namespace) -> int:
    with quick_imports():
        from siam_bids.pipelines.participant import boilerplate, rebuild_reports, run_participant

    if arguments.boilerplate_only:
        print(boilerplate(config))
        return 0
    if config.dry_run:
        return _dry_run(config)
    if config.reports_only:
        written, unwritten = rebuild_reports(config)
        for label in written:
            print(config.output_dir / f"sub-{label}.html")
        for name, reason in unwritten.items():
            print(f"FAILED {name}: {reason}")
        return EXIT_SOME_SCANS_FAILED if unwritten else 0
    summary = run_participant(config)
    for line in summary.lines():
        print(line)
    if "group" not in arguments.analysis_level:
        folders = shlex.join([str(config.bids_dir), str(config.output_dir)])
        print(f"Pages: {config.output_dir}/sub-*.html. Next: siam-bids {folders} group")
    return 0 if summary.complete else EXIT_SOME_SCANS_FAILED


def _dry_run(config: RunConfig) -> int:
    from siam_bids.pipelines.dry_run import HEADER, plan, summary
    from siam_bids.pipelines.todo import nothing_matches

    steps = plan(config)
    print(HEADER)
    for step in steps:
        print(step.line())
    if all(step.action == "skip" for step in steps):
        raise nothing_matches(config)
    print(summary(steps), file=sys.stderr)
    fails = any(step.action == "fail" for step in steps)
    return EXIT_SOME_SCANS_FAILED if fails else 0


def _verify(config: RunConfig) -> int:
    from siam_bids.pipelines.verify import verify

    found = verify(config)
    for line in found.lines():
        print(line)
    return EXIT_SOME_SCANS_FAILED if found.wrong else 0


def parser() -> CommandLine:
    """Return the command line of `siam-bids`, spelled as BIDS Apps are."""
    top = CommandLine(
        "siam-bids",
        "Segment the head MRI scans of a BIDS dataset, any contrast, any resolution.",
        usage="siam-bids BIDS_DIR OUTPUT_DIR {participant,group} [options]",
        epilog="Options may be spelled with hyphens or underscores.",
    )
    add_folders(top)
    top.add_argument(
        "analysis_level",
        nargs="+",
        choices=("participant", "group"),
        help="participant: segment scans; group: tables and a page of all segmented scans; "
        "or both, in this order",
    )

    add_query(top)
    how = top.add_argument_group("how")
    how.add_argument(
        "--model", default="compact", help="model name or path of an nnU-Net v2 model folder"
    )
    how.add_argument(
        "--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute"
    )
    how.add_argument(
        "--n-cpus",
        "--nproc",
        "--n-procs",
        "--nprocs",
        "--nthreads",
        "--omp-nthreads",
        dest="threads",
        type=at_least(0, MOST_CPUS),
        default=0,
        metavar="N",
        help="CPU threads (default: all)",
    )
    add_probability_maps(how)
    add_segmentations(how)
    add_combine(how)
    add_inference_options(how)
    again = how.add_mutually_exclusive_group()
    again.add_argument(
        "--resume",
        action="store_true",
        help="segment only scans without results, or whose input, model or options changed "
        "(default)",
    )
    again.add_argument(
        "--overwrite",
        action="store_true",
        help="segment finished scans again, and replace files that were changed by hand",
    )
    how.add_argument(
        "-w",
        "--work-dir",
        type=Path,
        metavar="DIR",
        help="folder for scratch files and library caches",
    )
    how.add_argument(
        "--viewer",
        action="store_true",
        help="add an interactive viewer of scan and labels to the pages",
    )
    how.add_argument(
        "--force-output",
        action="store_true",
        help="write into a folder that is not empty and was not made by siam-bids",
    )
    how.add_argument(
        "--stop-on-first-crash", action="store_true", help="stop at the first failing scan"
    )

    group = top.add_argument_group("group level")
    group.add_argument(
        "--formula",
        default="",
        metavar="FORMULA",
        help='model every tissue: "~ age + C(sex) + TIV", or one: "GM ~ age"',
    )
    group.add_argument(
        "--adjust-for",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="covariates to regress out before looking for outliers, for example age sex TIV",
    )
    group.add_argument(
        "--exclude",
        nargs="+",
        default=[],
        metavar="RULE",
        help="exclude these scans from all statistics, for example rating=fail flag=fail 'age<18'",
    )
    group.add_argument(
        "--group-by",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="compare scans with the same values in these columns (default: contrast and shared "
        "entities)",
    )
    group.add_argument(
        "--site-column",
        default="",
        metavar="COLUMN",
        help="column of the sites or scanners, for colours and --harmonize (default: site)",
    )
    group.add_argument(
        "--harmonize",
        nargs="?",
        const="",
        metavar="COLUMN",
        help="also adjust volumes for sites or scanners by ComBat, preserving age, sex and TIV "
        "(default: that of --site-column)",
    )
    group.add_argument(
        "--ratings",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="ratings exported from the group page; again for each rater (default: "
        "OUTPUT_DIR/group_ratings*.tsv)",
    )

    what = top.add_argument_group("instead of segmenting")
    what.add_argument(
        "--dry-run",
        action="store_true",
        help="list what would be done, why, and its cost; write nothing",
    )
    what.add_argument(
        "--verify",
        action="store_true",
        help="compare every output with its recorded checksum; exit code 1 if any was changed",
    )
    what.add_argument("--reports-only", action="store_true", help="rewrite the pages")
    what.add_argument("--boilerplate-only", action="store_true", help="print the methods text")

    top.add_common_options()
    top.add_argument(
        "-v", "--verbose", action="count", default=0, help="more messages; twice: also tracebacks"
    )
    accepted = top.add_argument_group("accepted for compatibility, without effect")
    for name in ("--skip-bids-validation", "--skip-bids-validator", "--notrack"):
        accepted.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    accepted.description = "--skip-bids-validation, --notrack"
    for names, instead in _OF_OTHERS.items():
        top.add_argument(*names, action=Elsewhere, instead=instead)
    return top


_OF_OTHERS = {
    ("--mem",): "--mem-gb or --mem-mb",
    ("-m", "--modalities", "--modality"): "--suffix",
    ("--clean-workdir",): "rm: --work-dir holds only caches",
    ("--output-layout", "--output-spaces"): "nothing: outputs are a BIDS derivative dataset",
    ("-d", "--derivatives"): "nothing: only the raw dataset is read",
}
"""Options of other BIDS Apps, and what does the same here."""


def run_config(arguments: argparse.Namespace, command: str) -> RunConfig:
    """Return all choices of a run; `command` is what was typed."""
    return RunConfig(
        bids_dir=arguments.bids_dir,
        output_dir=arguments.output_dir,
        level=arguments.analysis_level[0],
        query=query_of(arguments),
        model=arguments.model,
        model_dirs=search_path(os.environ),
        inference=inference_of(arguments),
        device=arguments.device,
        threads=arguments.threads,
        probabilities=tuple(arguments.probabilities),
        write_probseg=arguments.write_probseg,
        segmentations=tuple(sorted({*arguments.segmentations})),
        combine=arguments.combine,
        overwrite=arguments.overwrite,
        dry_run=arguments.dry_run,
        reports_only=arguments.reports_only,
        force_output=arguments.force_output,
        stop_on_first_crash=arguments.stop_on_first_crash,
        viewer=arguments.viewer,
        formula=arguments.formula,
        adjust=tuple(arguments.adjust_for),
        exclude=tuple(arguments.exclude),
        group_by=tuple(arguments.group_by),
        site_column=arguments.site_column,
        harmonize=arguments.harmonize,
        ratings=tuple(arguments.ratings),
        progress=sys.stderr.isatty(),
        command=command,
    )
