"""The HTML pages, made only from the files in the output folder."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from siam_bids.image.labels import LabelTable
from siam_bids.reports.methods_text import agreed, distinct, methods_text, model_line

REFERENCE = "group_reference.json"
"""Distribution of every tissue by contrast, for the subjects' pages."""


def if_there(path: Path, root: Path) -> str:
    """Return a path from the root, empty if there is no such file."""
    return path.relative_to(root).as_posix() if path.is_file() else ""


def data_url(path: Path) -> str:
    """Return a picture as a data URL, so that scripts can read its pixels without another file."""
    if not path.is_file():
        return ""
    return f"data:image/{path.suffix.removeprefix('.')};base64,{as_base64(path)}"


def as_base64(path: Path) -> str:
    """Return the content of a file in base64, empty if there is none."""
    return base64.b64encode(path.read_bytes()).decode() if path.is_file() else ""


def origin_of(
    sidecars: Sequence[Mapping[str, Any]], labels: LabelTable | None = None
) -> dict[str, Any]:
    """Say what made these scans, as their sidecars record it, not as the present run would."""
    models = distinct([about["Model"] for about in sidecars])
    return {
        "model": "; ".join(map(model_line, models)) or "no finished scan",
        "software": agreed(distinct([about["Software"] for about in sidecars])),
        "boilerplate": methods_text(models, labels),
    }
