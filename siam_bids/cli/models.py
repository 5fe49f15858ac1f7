"""`siam-bids-models`: fetch and manage models."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from siam_bids.cli.console import guarded, start_logging
from siam_bids.errors import ModelError
from siam_bids.models.folder import search_path


def main(argv: Sequence[str] | None = None) -> int:
    """Run `siam-bids-models`; return the exit code."""
    return guarded(_run, argv)


def _run(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    start_logging()

    from siam_bids.models.install import remove, verify
    from siam_bids.models.registry import find_model, locate, registry

    roots = search_path(os.environ)
    if arguments.verb == "list":
        for name in registry():
            where = locate(name, roots)
            print(f"{name}\t{', '.join(map(str, where)) or 'not fetched'}")
    elif arguments.verb == "where":
        for model in find_model(arguments.name, roots).parts():
            print(model.folder)
    elif arguments.verb == "remove":
        print(f"removed {remove(arguments.name, roots)}")
    elif arguments.verb == "verify":
        answers = list(verify(arguments.name, roots))
        for part, good in answers:
            print(f"{'ok' if good else 'CHANGED'}\t{part}")
        return 0 if all(good for _, good in answers) else ModelError.exit_code
    else:
        _fetch(arguments, roots)
    return 0


def _fetch(arguments: argparse.Namespace, roots: Sequence[Path]) -> None:
    from tqdm import tqdm

    from siam_bids.models.install import fetch
    from siam_bids.nnunet.checkpoints import convert_checkpoints

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


def parser() -> argparse.ArgumentParser:
    """Return the command line of `siam-bids-models`."""
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
