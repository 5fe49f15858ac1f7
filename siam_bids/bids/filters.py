"""Queries and filter files as pybids filters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from bids.layout import Config, Query as Match

from siam_bids.bids.scan import EXTENSIONS, printable
from siam_bids.config import Query
from siam_bids.errors import DatasetError, known_names
from siam_bids.support.input_files import load_json

_ANY = ("Query.ANY", "*")
"""What a filter file says for any value."""


def filters_for(suffix: str, query: Query) -> dict[str, Any]:
    """Turn a query into pybids filters for one suffix; filter-file entries refine it.

    Raises
    ------
    DatasetError
        An entry that is used names no entity, wants what is neither text nor number, or wants
        another suffix than the one it is for.
    """
    filters: dict[str, Any] = {"suffix": suffix, "extension": list(EXTENSIONS)}
    if query.participants:
        filters["subject"] = list(query.participants)
    if query.sessions:
        filters["session"] = list(query.sessions)
    for kind, requested in query.filters.items():
        if not _concerns(suffix, kind, requested):
            continue
        for name, value in requested.items():
            _check_entity(kind, name)
            if name != "suffix":
                filters[name] = _requested(f"{kind}: {name}", value)
    return filters


def _concerns(suffix: str, kind: str, requested: Mapping[str, Any]) -> bool:
    """Tell whether a filter is for a suffix: by the filter's name, or the suffix it asks for."""
    wanted = requested.get("suffix", suffix)
    wanted = wanted if isinstance(wanted, list) else [wanted]
    asks = any(each in (suffix, *_ANY) for each in wanted)
    named = kind.lower() in (suffix.lower(), "anat")
    if named and not asks:
        raise DatasetError(
            f"The filter {printable(kind)!r} is for {suffix} images, but asks for the suffix "
            f"{printable(json.dumps(wanted))[:60]}.",
            "Choose suffixes with --suffix, and leave suffix out of the filter.",
        )
    return named or (asks and "suffix" in requested)


def _check_entity(kind: str, name: str) -> None:
    """Refuse names that are not entities: pybids would take some for its own arguments."""
    known = _entities()
    if name not in known:
        shorter = [entity for entity in known if entity.startswith(name)]
        meant = shorter[:1] or get_close_matches(name, known, 1)
        raise DatasetError(
            f"The filter {printable(kind)!r} names {printable(name)!r}, which is not an entity of "
            "pybids.",
            f"Did you mean {meant[0]}?" if meant else known_names(name, known, "entities"),
        )


@cache
def _entities() -> tuple[str, ...]:
    """List the names of pybids for entities, in its own order: `subject`, `acquisition`."""
    configs = (Config.load(name) for name in ("bids", "derivatives"))
    return tuple(dict.fromkeys(name for config in configs for name in config.entities))


def _requested(place: str, value: Any) -> Any:
    """Translate a JSON value: null and 'Query.NONE' mean absent, 'Query.ANY' and '*' any."""
    if isinstance(value, list):
        return [_requested(place, item) for item in value]
    if value is None or value == "Query.NONE":
        return Match.NONE
    if value in _ANY:
        return Match.ANY
    if value == "Query.OPTIONAL":
        return Match.OPTIONAL
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise DatasetError(
            f"The filter {printable(place)} wants {printable(json.dumps(value))[:60]}.",
            "Give text, a number, null, or a list of these.",
        )
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
    except ValueError as error:
        raise DatasetError(f"The filter file {path} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict) or not all(isinstance(v, dict) for v in content.values()):
        raise DatasetError(
            f"The filter file {path} must hold one object per kind of image.",
            'For example {"t1w": {"acquisition": "mprage"}}.',
        )
    return content
