"""Write the pages of the documentation that are generated: `python docs/generate.py`.

The cases of the pages on difficult input and layouts are those of the tests, options are those of
the parsers, licences those of the installed packages. `tests/test_docs.py` checks that the pages
are current.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

from siam_bids.cli import export, models, segment, slurm, train

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))

from difficult_input import MACHINES, RUNS, SCANS  # noqa: E402
from layouts import LAYOUTS  # noqa: E402


def difficult_input() -> str:
    """Return the page on input that fails, or might."""
    lines = [
        "# Difficult input",
        "",
        "Each case is made by `tests/difficult_input.py` and run by",
        "`tests/test_difficult_input.py`. A scan that cannot be segmented fails on its own, with a",
        "message in the summary, on its page and in `logs/`; the others continue, and the exit",
        "code is 1. An image whose name BIDS refuses has neither page nor log: the summary and",
        "`--dry-run` name it.",
        "",
        "## Scans",
        "",
        "| kind | outcome |",
        "|---|---|",
    ]
    for scan in SCANS:
        message = _readable(scan.message)
        outcome = f"fails: `{message}`" if message else "segmented"
        lines.append(f"| {scan.kind} | {outcome} |")
    for title, cases in (("Datasets, models and options", RUNS), ("Machines", MACHINES)):
        lines += ["", f"## {title}", "", "| kind | exit code | outcome |", "|---|---|---|"]
        for case in cases:
            message = _readable(case.message)
            outcome = f"`{message}`" if message else "continues"
            lines.append(f"| {case.kind} | {case.exit_code} | {outcome} |")
    return "\n".join(lines) + "\n"


def _readable(pattern: str) -> str:
    """Return the first alternative of a regular expression, with dots for what it skips."""
    return pattern.partition("|")[0].replace(".*", " ... ")


def layouts() -> str:
    """Return the page on what `--dry-run` prints for datasets of several layouts."""
    lines = [
        "# Layouts of datasets",
        "",
        "`--dry-run` prints a table: for each image in `anat`, and each CT, whether it would be",
        "segmented, is done, cannot be read, or is skipped, and why, with the time and memory it",
        "would take. It reads only headers, so it cannot predict every failure.",
        "The trees below are those of `tests/layouts.py`; `tests/test_layouts.py` checks that",
        "`--dry-run` prints exactly this.",
    ]
    for layout in LAYOUTS:
        lines += ["", f"## {layout.kind}", ""]
        if layout.options:
            in_a_file = " (the filter in a file)" if "{" in layout.options[-1] else ""
            lines += [f"With `{' '.join(layout.options)}`{in_a_file}:", ""]
        lines += ["| file | outcome |", "|---|---|"]
        for name, outcome in layout.files.items():
            target = f" → `{layout.links[name]}`" if name in layout.links else ""
            lines.append(f"| `{name}`{target} | {outcome or 'not listed'} |")
    return "\n".join(lines) + "\n"


COMMANDS = {
    segment: "Examples: [SIAM's models](siam.md).",
    export: "Examples, and what each program does with the files: [Other programs](export.md).",
    slurm: "Examples: [Clusters](clusters.md).",
    models: "Examples: [SIAM's models](siam.md).",
    train: "Examples: [Labels of your own](own_labels.md).",
}
"""The commands beside `siam-bids`, and where to read more."""


def commands() -> str:
    """Return the page of the options of all commands but `siam-bids`."""
    lines = [
        "# Other commands",
        "",
        "The options of `siam-bids` itself are in [Options](options.md). As there, every command",
        "has `--help`, `--version`, `--config-file` and `--print-completion`.",
    ]
    for module, more in COMMANDS.items():
        parser = module.parser()
        lines += ["", f"## {parser.prog}", "", f"{_coded(parser.description)} {more}", ""]
        lines += ["| argument | meaning |", "|---|---|", *_rows(parser)]
        if parser.epilog:
            lines += ["", _coded(parser.epilog)]
    return "\n".join(lines) + "\n"


_COMMON = {"help", "version", "config_file", "print_completion"}


def _rows(parser: argparse.ArgumentParser, before: str = "") -> Iterator[str]:
    """Yield a row of a table for each argument and option."""
    formatter = parser._get_formatter()
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or action.dest in _COMMON:
            continue
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help for choice in action._choices_actions}
            for name, verb in action.choices.items():
                words = [name, *(each.dest.upper() for each in verb._get_positional_actions())]
                yield f"| `{' '.join(words)}` | {_coded(helps[name])} |"
                yield from _rows(verb, f"{name} ")
        elif action.option_strings:
            value = formatter._format_args(action, action.dest.upper()) if action.nargs != 0 else ""
            first, *others = action.option_strings
            names = ", ".join(f"`{name}`" for name in (f"{before}{first} {value}".strip(), *others))
            yield f"| {names} | {_coded(formatter._get_help_string(action))} |"
        elif not before:
            name = "`, `".join(action.choices) if action.choices else action.dest.upper()
            yield f"| `{name}` | {_coded(action.help)} |"


_CODE = re.compile(r"(?<![\w'-])(?:-- --[a-z-]+|--[\w=-]*|[\w~./*-]*[_*][\w./*-]*\w|\{.*\})")


def _coded(text: str) -> str:
    """Return a text with its options and file names as code."""
    return _CODE.sub(r"`\g<0>`", text)


UNKNOWN = "not stated"


def licences_of_packages() -> dict[str, str]:
    """Return the licence of each distribution that the app needs at run time, by name."""
    found: dict[str, str] = {}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    waiting = [(Requirement(line).name, "") for line in project["dependencies"]]
    while waiting:
        name, extra = waiting.pop()
        try:
            package = distribution(name)
        except PackageNotFoundError:  # of another platform
            continue
        key = re.sub(r"[-_.]+", "-", package.metadata["Name"]).lower()
        if key in found and not extra:
            continue
        found[key] = _licence(package)
        for line in package.requires or []:
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                waiting += [(need.name, "")] + [(need.name, more) for more in need.extras]
    return dict(sorted(found.items()))


def _licence(package: Distribution) -> str:
    """Return what a distribution says of its licence, in a few words."""
    about = package.metadata
    if about.get("License-Expression"):
        return about["License-Expression"]
    classes = [
        line.rpartition(" :: ")[2]
        for line in about.get_all("Classifier") or []
        if line.startswith("License :: ")
    ]
    stated = (about.get("License") or "").strip()
    short = stated.splitlines()[0] if stated else ""
    specific = [name for name in classes if name != "OSI Approved"]
    return "; ".join(specific) or short[:60] or UNKNOWN


def licences() -> str:
    """Return the page on the licences of all that is installed with the app."""
    lines = [
        "# Licences",
        "",
        "siam-bids is under Apache-2.0; third-party data and models are listed in NOTICE. It needs",
        "the packages below, under the licences that they state. GPU builds of PyTorch contain",
        "NVIDIA's libraries, which have their own terms.",
        "",
        "| package | licence |",
        "|---|---|",
        *(f"| {name} | {terms} |" for name, terms in licences_of_packages().items()),
    ]
    return "\n".join(lines) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "commands.md": commands,
    "difficult_input.md": difficult_input,
    "layouts.md": layouts,
    "licences.md": licences,
}


if __name__ == "__main__":
    for name, page in PAGES.items():
        (ROOT / "docs" / name).write_text(page(), encoding="utf-8")
