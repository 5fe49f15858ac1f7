"""`siam-bids-models`: fetch and manage models."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from siam_bids.cli.command_line import CommandLine
from siam_bids.cli.console import guarded, start_logging
from siam_bids.errors import ModelError
from siam_bids.models.folder import search_path


def main(argv: Sequence[str] | None = None) -> int:
    """Run `siam-bids-models`; return the exit code."""
    return guarded(_run, argv)


def _run(argv: list[str]) -> int:
    arguments = parser().parse(argv)
    start_logging()

    verbs = {
        "list": _list,
        "where": _where,
        "remove": _remove,
        "verify": _verify,
        "fetch": _fetch,
    }
    return verbs[arguments.verb](arguments, search_path(os.environ))


def _list(_arguments: argparse.Namespace, roots: Sequence[Path]) -> int:
    from siam_bids.models.registry import registry

    for row in [["name", "title", "size", "licence", "place"], *_rows(registry(), roots)]:
        print("\t".join(row))
    return 0


def _where(arguments: argparse.Namespace, roots: Sequence[Path]) -> int:
    from siam_bids.models.registry import find_model

    for model in find_model(arguments.name, roots).networks():
        print(model.folder)
    return 0


def _remove(arguments: argparse.Namespace, roots: Sequence[Path]) -> int:
    from siam_bids.models.install import remove

    print(f"removed {remove(arguments.name, roots)}")
    return 0


def _verify(arguments: argparse.Namespace, roots: Sequence[Path]) -> int:
    """Compare every file with its checksum; each network must be readable too."""
    from siam_bids.models.install import verify
    from siam_bids.models.registry import find_model

    answers = list(verify(arguments.name, roots))
    for file, good in answers:
        print(f"{'ok' if good else 'CHANGED'}\t{file}")
    from siam_bids.nnunet.model import NnunetModel

    for model in find_model(arguments.name, roots).networks():
        NnunetModel.open(model.folder)
    return 0 if all(good for _, good in answers) else ModelError.exit_code


def _rows(known: Mapping[str, Mapping[str, Any]], roots: Sequence[Path]) -> Iterator[list[str]]:
    """Yield name, title, size on disk (or of the archive), licence and place of each model."""
    from siam_bids.models.registry import locate, models_named_in

    for name, entry in known.items():
        folders = locate(name, roots)
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files) or entry.get("size", 0)
        entries = [entry, *(known[each] for each in models_named_in(entry))]
        licences = dict.fromkeys(each["licence"] for each in entries if "licence" in each)
        place = ", ".join(map(str, folders)) or "not fetched"
        shown = f"{size / 1e9:.0f} GB" if size > 1e9 else f"{size / 1e6:.0f} MB"
        yield [name, entry["title"], shown, ", ".join(licences), place]


def _fetch(arguments: argparse.Namespace, roots: Sequence[Path]) -> int:
    from tqdm import tqdm

    from siam_bids.models.install import fetch
    from siam_bids.nnunet.model import check_and_convert

    with tqdm(unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar:

        def progress(there: int, expected: int) -> None:
            bar.total = expected or None
            bar.update(there - bar.n)

        folder = fetch(
            arguments.name,
            roots,
            convert=check_and_convert,
            url=arguments.mirror,
            archive=arguments.archive,
            checksum=arguments.checksum,
            progress=progress,
        )
    print(folder)
    return 0


def parser() -> CommandLine:
    """Return the command line of `siam-bids-models`."""
    top = CommandLine(
        "siam-bids-models",
        "List, fetch and check models.",
        epilog="Models are stored in SIAM_MODEL_DIR (else nnUNet_results), the user's data "
        "folder, or "
        "~/siam_params. Proxies: https_proxy, http_proxy, no_proxy.",
    )
    top.add_common_options()
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser(
        "list",
        description="List all known models.",
        help="known models and where they are stored",
    )
    fetch = verbs.add_parser(
        "fetch",
        description="Download, check and unpack a model.",
        help="download, check and unpack a model",
    )
    fetch.add_argument(
        "--mirror",
        default=os.environ.get("SIAM_BIDS_MIRROR", ""),
        metavar="URL",
        help="URL of the archive, or of its folder with / at the end "
        "(default: environment variable SIAM_BIDS_MIRROR, else Zenodo)",
    )
    fetch.add_argument(
        "--archive", type=Path, metavar="FILE", help="use an archive that is on disk"
    )
    fetch.add_argument(
        "--checksum",
        default="",
        metavar="md5:HEX",
        help="checksum of the archive (default: as published)",
    )
    others = {
        "verify": "compare every file of a model with its checksum",
        "where": "print the folder of a model",
        "remove": "delete a fetched model",
    }
    for verb in (
        fetch,
        *(
            verbs.add_parser(name, description=f"{text.capitalize()}.", help=text)
            for name, text in others.items()
        ),
    ):
        verb.add_argument("name", help="for example siam-v0.3")
    return top
