"""The HTML pages, made only from the files in the output folder."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from siam_bids.bids.description import raw_dataset
from siam_bids.bids.status import combined_by
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


def path_to_raw(root: Path) -> str:
    """Return the path from an output folder to its raw dataset; `BIDS_DIR` if that is not known."""
    raw = raw_dataset(root)
    if not raw:
        return "BIDS_DIR"
    try:
        return Path(os.path.relpath(raw, root.resolve())).as_posix()
    except ValueError:  # on another drive
        return raw.as_posix()


def typeset(text: str) -> str:
    """Return a text with its units as they are printed: cm² for cm2."""
    return re.sub(
        r"\b([cmµ]?m)([23])\b", lambda unit: unit[1] + {"2": "²", "3": "³"}[unit[2]], text
    )


def origin_of(
    sidecars: Sequence[Mapping[str, Any]], labels: LabelTable | None = None
) -> dict[str, Any]:
    """Say what made these scans, as their sidecars record it, not as the present run would."""
    models = distinct([about["Model"] for about in sidecars])
    return {
        "model": "; ".join(map(model_line, models)) or "no finished scan",
        "software": agreed(distinct([about["Software"] for about in sidecars])),
        "boilerplate": methods_text(
            models,
            labels,
            {combined_by(about) for about in sidecars},
            consensus=any(len(about["Sources"]) > 1 for about in sidecars),
        ),
    }
