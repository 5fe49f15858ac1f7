"""Scanner metadata from the JSON files of raw images, with BIDS' inheritance principle."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from siam_bids.bids.scan import stem_of
from siam_bids.support.input_files import is_listed, load_json

logger = logging.getLogger(__name__)

SCANNER = {
    "Manufacturer": "",
    "ManufacturersModelName": "",
    "MagneticFieldStrength": "T",
    "SoftwareVersions": "",
    "InstitutionName": "",
    "StationName": "",
    "EchoTime": "s",
    "RepetitionTime": "s",
    "InversionTime": "s",
    "FlipAngle": "degree",
}
"""BIDS fields that distinguish scanners and sequences, and their units."""


def scanner_metadata(root: Path, sources: Sequence[str]) -> dict[str, tuple[str | None, ...]]:
    """Return the fields of `SCANNER` that occur, as text by image.

    Values of files further down win, and in one folder those of files with more entities (BIDS
    1.11, section Inheritance principle). Files that cannot be read are left out with a warning.

    Parameters
    ----------
    root
        The raw dataset.
    sources
        Paths of the images from the root.
    """
    read = lru_cache(maxsize=None)(_fields)
    listed = lru_cache(maxsize=None)(_json_files)
    known = []
    for source in sources:
        own: dict[str, str] = {}
        for file in _inherited(root, PurePosixPath(source), listed):
            own |= read(file)
        known.append(own)
    return {
        field: tuple(own.get(field) for own in known)
        for field in SCANNER
        if any(field in own for own in known)
    }


Listed = list[tuple[frozenset[str], Path]]
"""JSON files of a folder with the entities and the suffix of their names, those of few first."""


def _inherited(
    root: Path, image: PurePosixPath, listed: Callable[[Path], Listed]
) -> Iterator[Path]:
    """Yield the JSON files that apply to an image; of two with a field, the later one wins."""
    if ".." in image.parts or image.is_absolute():
        return
    name = frozenset(stem_of(Path(image.name)).split("_"))
    for folder in reversed(image.parents):
        yield from (file for words, file in listed(root / folder) if words <= name)


def _json_files(folder: Path) -> Listed:
    try:
        files = [path for path in folder.glob("*.json") if is_listed(path)]
    except OSError:
        return []
    found = [(frozenset(path.name.removesuffix(".json").split("_")), path) for path in files]
    return sorted(found, key=lambda item: (len(item[0]), item[1].name))


def _fields(path: Path) -> Mapping[str, str]:
    """Return the scanner's fields of one file as text."""
    try:
        content: Any = load_json(path)
    except ValueError as error:
        logger.warning("%s cannot be read as JSON and is left out: %s.", path, error)
        return {}
    about = content if isinstance(content, dict) else {}
    return {
        field: text
        for field in SCANNER
        if (text := " ".join(_text(about.get(field)).split())) and text != "n/a"
    }


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(filter(None, map(_text, value)))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:.10g}"
    return value if isinstance(value, str) else ""
