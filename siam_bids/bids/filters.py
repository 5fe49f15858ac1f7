"""Queries and filter files as pybids filters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bids.layout import Query as Match

from siam_bids.bids.scan import EXTENSIONS
from siam_bids.config import Query
from siam_bids.errors import DatasetError
from siam_bids.support.text import load_json


def filters_for(suffix: str, query: Query) -> dict[str, Any]:
    """Turn a query into pybids filters for one suffix; filter-file entries refine it."""
    filters: dict[str, Any] = {
        "suffix": suffix,
        "extension": list(EXTENSIONS),
        "scope": "raw",
    }
    if query.participants:
        filters["subject"] = list(query.participants)
    if query.sessions:
        filters["session"] = list(query.sessions)
    for key, wishes in query.filters.items():
        if key.lower() in (suffix.lower(), "anat") or wishes.get("suffix") == suffix:
            own = {name: _wish(value) for name, value in wishes.items() if name != "suffix"}
            filters.update(own)
    return filters


def _wish(value: Any) -> Any:
    """Translate a JSON value: null and 'Query.NONE' mean absent, 'Query.ANY' and '*' any."""
    if isinstance(value, list):
        return [_wish(item) for item in value]
    if value is None or value == "Query.NONE":
        return Match.NONE
    if value in ("Query.ANY", "*"):
        return Match.ANY
    return value


def read_filter_file(path: Path) -> dict[str, dict[str, Any]]:
    """Read a `--bids-filter-file`: JSON of `{"t1w": {"session": "01", ...}, ...}`.

    Keys are suffixes in any case, or `anat` for all; others (bold, fmap...) are allowed and do
    nothing.

    Raises
    ------
    DatasetError
        Not readable, not JSON, or not of that form.
    """
    try:
        content = load_json(path)
    except (OSError, ValueError) as error:
        raise DatasetError(f"The filter file {path} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict) or not all(isinstance(v, dict) for v in content.values()):
        raise DatasetError(
            f"The filter file {path} must hold one object per kind of image.",
            'For example {"t1w": {"acquisition": "mprage"}}.',
        )
    return content
