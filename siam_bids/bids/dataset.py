"""Finding the scans of a BIDS dataset. The only importer of pybids."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from siam_bids.bids.filters import filters_for
from siam_bids.bids.index import (
    open_layout,
    subjects,
)
from siam_bids.bids.scan import CT, EXTENSIONS, FOLDERS, NO_ANATOMY, Scan
from siam_bids.config import Query
from siam_bids.errors import DatasetError

logger = logging.getLogger(__name__)


def find_scans(root: Path, query: Query) -> list[Scan]:
    """Return the scans that match a query, ordered by path.

    Only `FOLDERS` of the wanted subjects are indexed; those of CT are for the suffix `ct` only. Of
    images that come in parts (`part-`), only magnitude counts as anatomy unless a filter asks for
    another part.

    Raises
    ------
    DatasetError
        Not a dataset, an unknown participant, an unreadable filter, or an index of something else.
    """
    present = subjects(root)
    missing = sorted(set(query.participants) - set(present))
    if missing:
        raise DatasetError(
            f"No folder for participant {', '.join('sub-' + label for label in missing)} in {root}."
        )
    layout = open_layout(root, query)
    found: dict[Path, Scan] = {}
    for suffix in query.suffixes:
        filters = filters_for(suffix, query)
        for item in layout.get(**filters, invalid_filters="allow"):
            entities = item.get_entities()
            if "part" not in filters and entities.get("part") in NO_ANATOMY:
                continue
            path = Path(item.path)
            if path.parent.name != "anat" and not {suffix, path.parent.name} <= {*CT}:
                continue
            found[path] = Scan(
                path=path,
                relative=path.relative_to(root.absolute()).as_posix(),
                subject=str(entities["subject"]),
                session=str(entities.get("session", "")),
                suffix=suffix,
            )
    return _without_twins([found[path] for path in sorted(found)])


def left_out(root: Path, query: Query, scans: Sequence[Scan]) -> list[tuple[str, str]]:
    """Return what lies in `FOLDERS` of the wanted subjects and is no scan of the query.

    Returns
    -------
    Path from the root and reason of each file; also subjects that have no image there at all.
    """
    taken = {scan.path for scan in scans}
    rest = []
    for label in sorted(query.participants) or subjects(root):
        folder = root.absolute() / f"sub-{label}"
        files = [
            path
            for pattern in ("*", "ses-*/*")
            for place in sorted(folder.glob(pattern))
            if place.name in FOLDERS and place.is_dir()
            for path in sorted(place.iterdir())
            if not path.name.endswith((".json", ".tsv")) and not path.name.startswith(".")
        ]
        if not files:
            rest.append((folder.name, "no image in anat"))
        for path in files:
            if path not in taken:
                place = path.relative_to(root.absolute()).as_posix()
                rest.append((place, _why_left_out(path, query, taken)))
    return rest


def _why_left_out(path: Path, query: Query, taken: set[Path]) -> str:
    name, _, extension = path.name.partition(".")
    if path.is_dir() or f".{extension}" not in EXTENSIONS:
        return "no .nii.gz or .nii file"
    if twin := _preferred(path, taken):
        return f"{twin.parent.name}/{twin.name} is taken instead"
    *entities, suffix = name.split("_")
    labels = dict(entity.partition("-")[::2] for entity in entities)
    if query.sessions and labels.get("ses") not in query.sessions:
        return "of another session"
    if suffix not in query.suffixes:
        return f"--suffix does not list {suffix}"
    if labels.get("part") in NO_ANATOMY and not query.filters:
        return f"the {labels['part']} part"
    return "excluded by --bids-filter-file" if query.filters else "no BIDS name"


def _without_twins(scans: list[Scan]) -> list[Scan]:
    """Drop scans that give the same outputs as another one, see `_preferred`."""
    taken = {scan.path for scan in scans}
    kept = []
    for scan in scans:
        if twin := _preferred(scan.path, taken):
            logger.warning("%s is skipped: %s is taken instead.", scan.relative, twin.name)
        else:
            kept.append(scan)
    return kept


def _preferred(path: Path, images: set[Path]) -> Path | None:
    """Return the first of `images` that has this name and goes before: packed, or in `anat`."""
    name = path.name.partition(".")[0]
    places = dict.fromkeys((path.parents[1] / "anat", path.parent))
    ranked = [place / f"{name}{extension}" for place in places for extension in EXTENSIONS]
    return next((rival for rival in ranked[: ranked.index(path)] if rival in images), None)
