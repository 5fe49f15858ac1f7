"""Finding the scans of a BIDS dataset."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from siam_bids.bids.filters import filters_for
from siam_bids.bids.index import check_description, open_layout, subject_folders
from siam_bids.bids.names import ScanNames
from siam_bids.bids.scan import CT, EXTENSIONS, FOLDERS, NO_ANATOMY, Scan, printable, stem_of
from siam_bids.config import Query
from siam_bids.errors import DatasetError
from siam_bids.support.tsv import some

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a query finds in a dataset, by path from its root.

    Attributes
    ----------
    scans
        The scans, ordered by path.
    refused
        Images that the query asks for and whose names do not distinguish them from others,
        with the reason as one line.
    skipped
        What else lies in `FOLDERS` of the wanted participants, with the reason; also participants
        without any image there.
    """

    scans: list[Scan] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def find_scans(root: Path, query: Query) -> Selection:
    """Return the scans that match a query, what is refused and what is left out.

    Only `FOLDERS` of the wanted subjects are looked at; those of CT are for the suffix `ct` only.
    Of images that come in parts (`part-`), only magnitude counts as anatomy unless a filter asks
    for another part. pybids sees files with names of BIDS alone, and answers the query for them.

    Raises
    ------
    DatasetError
        Not a dataset, an unknown participant, an unreadable filter, or an index of something else.
    """
    root = Path(os.path.abspath(root))  # noqa: PTH100 (as pybids does: no link is followed)
    folders = subject_folders(root)
    check_description(root, derivative=query.derivative)
    missing = sorted({f"sub-{label}" for label in query.participants} - {*folders})
    if missing:
        raise DatasetError(f"No folder for participant {some(missing)} in {root}.")
    if (root / ".bidsignore").exists():
        logger.warning(
            "%s is not read: images that it lists are segmented too. Leave them out with --suffix, "
            "--session-label or --bids-filter-file.", root / ".bidsignore",
        )  # fmt: skip
    found = Selection()
    named: dict[Path, Scan] = {}
    for name in [f"sub-{label}" for label in query.participants] or folders:
        named |= _look_into(root / name, query, found)
    _ask(root, query, named, found)
    return found


def _look_into(folder: Path, query: Query, found: Selection) -> dict[Path, Scan]:
    """Return the candidate images of one subject; all others are noted in `found`."""
    root = folder.parent
    named: dict[Path, Scan] = {}
    empty = True
    for path in _files(folder, found):
        empty = False
        place = printable(path.relative_to(root).as_posix())
        if why := _why_not_asked_for(path, query):
            found.skipped[place] = why
            continue
        try:
            named[path] = Scan.at(root, path)
        except DatasetError as error:
            found.refused[place] = f"{error} Rename or move it."
    if empty:
        found.skipped[printable(folder.name)] = "no image in anat"
    return named


def _files(folder: Path, found: Selection) -> Iterator[Path]:
    """Yield what lies in `FOLDERS` of a subject and is neither hidden nor metadata."""
    for place in [*sorted(folder.glob("*")), *sorted(folder.glob("ses-*/*"))]:
        if place.name not in FOLDERS or not place.is_dir():
            continue
        try:
            inside = sorted(place.iterdir())
        except OSError as error:
            name = printable(place.relative_to(folder.parent).as_posix())
            found.refused[name] = f"The folder cannot be read: {error.strerror}."
            continue
        yield from (path for path in inside if not re.search(r"^\.|\.(json|tsv)$", path.name))


def _why_not_asked_for(path: Path, query: Query) -> str:
    """Return why a file does not match the query, judging by its name, valid or not."""
    if path.is_dir() or not path.name.endswith(EXTENSIONS):
        return "no .nii.gz or .nii file"
    session = path.parent.parent.name
    session = session.removeprefix("ses-") if session.startswith("ses-") else ""
    if query.sessions and session not in query.sessions:
        return "of another session"
    last = stem_of(path).rpartition("_")[2]
    whole = re.match("[0-9a-zA-Z]*", last, re.ASCII)
    suffix = whole[0] if whole else ""
    if suffix not in query.suffixes:
        return f"--suffix does not list {suffix or printable(last)}"
    if path.parent.name in CT and suffix not in CT:
        return f"no CT in {path.parent.name}"
    return ""


def _ask(root: Path, query: Query, named: Mapping[Path, Scan], found: Selection) -> None:
    """Sort images with valid names into `found`, using pybids."""
    layout = open_layout(root, query, [*named])
    no_match = "excluded by --bids-filter-file" if query.filters else "not in the index"
    matching: list[Scan] = []
    for suffix in query.suffixes:
        filters = filters_for(suffix, query)
        answer = {Path(item.path) for item in layout.get(**filters, invalid_filters="allow")}
        for path, scan in named.items():
            if scan.identity.suffix != suffix:
                continue
            part = scan.identity.labels.get("part")
            if part in NO_ANATOMY and "part" not in filters:
                found.skipped[scan.relative] = f"the {part} part"
            elif path in answer:
                matching.append(scan)
            else:
                found.skipped[scan.relative] = no_match
    found.scans.extend(_with_outputs_of_their_own(_without_copies(matching, found), found))


def _without_copies(scans: Sequence[Scan], found: Selection) -> list[Scan]:
    """Return the scans by path; of several images with one name, the preferred one."""
    paths = {scan.path for scan in scans}
    kept = []
    for scan in sorted(scans, key=lambda scan: scan.path):
        if preferred := _preferred(scan.path, paths):
            found.skipped[scan.relative] = (
                f"{preferred.parent.name}/{preferred.name} is used instead"
            )
            logger.warning("%s is skipped: %s is used instead.", scan.relative, preferred.name)
        else:
            kept.append(scan)
    return kept


def _preferred(path: Path, images: set[Path]) -> Path | None:
    """Return the first of `images` that has this name and goes before: packed, or in `anat`."""
    name = stem_of(path)
    places = dict.fromkeys((path.parents[1] / "anat", path.parent))
    ranked = [place / f"{name}{extension}" for place in places for extension in EXTENSIONS]
    return next((rival for rival in ranked[: ranked.index(path)] if rival in images), None)


def _with_outputs_of_their_own(scans: list[Scan], found: Selection) -> Iterator[Scan]:
    """Yield scans whose outputs have unique names; refuse all others."""

    def output(scan: Scan) -> str:
        name = ScanNames(Path(), scan.identity).segmentation.as_posix()
        return name.casefold()  # some disks take upper and lower case for the same

    users = Counter(map(output, scans))
    for scan in scans:
        if users[output(scan)] == 1:
            yield scan
            continue
        others = [other.path.name for other in scans if output(other) == output(scan)]
        others.remove(scan.path.name)
        found.refused[scan.relative] = f"It has the same outputs as {others[0]}. Rename one."
