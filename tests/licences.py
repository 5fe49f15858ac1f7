"""The licences of everything that is installed with the app, as a page of the documentation."""

import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest

ROOT = Path(__file__).parents[1]

UNKNOWN = "not stated"


def report() -> dict[str, str]:
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
        found[key] = licence(package)
        for line in package.requires or []:
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                waiting += [(need.name, "")] + [(need.name, more) for more in need.extras]
    return dict(sorted(found.items()))


def licence(package: Distribution) -> str:
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


def as_markdown() -> str:
    lines = [
        "# Licences",
        "",
        "siam-bids is under Apache-2.0; third-party data and models are listed in NOTICE. It needs",
        "the packages below, under the licences that they state. `python tests/licences.py` writes",
        "this page from the installed packages; GPU builds of PyTorch contain NVIDIA's libraries,",
        "which have their own terms.",
        "",
        "| package | licence |",
        "|---|---|",
        *(f"| {name} | {terms} |" for name, terms in report().items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    page = ROOT / "docs" / "licences.md"
    page.write_text(as_markdown(), encoding="utf-8")
