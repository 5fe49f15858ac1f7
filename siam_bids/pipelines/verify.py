"""Comparing every output with the checksum that its sidecar records: `--verify`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from siam_bids.bids.label_tables import read_label_table
from siam_bids.bids.names import (
    ScanNames,
    finished_scans,
    sidecar,
    stray_results,
    undeclared_results,
)
from siam_bids.bids.results import misplaced, read_result, undeclared
from siam_bids.bids.status import OUTPUTS, changed_outputs, missing_outputs
from siam_bids.config import Query, RunConfig
from siam_bids.errors import DatasetError
from siam_bids.image.labels import LabelTable
from siam_bids.support.atomic_files import read_json
from siam_bids.support.tsv import number_of


@dataclass
class Verification:
    """What became of the results in an output folder since they were written.

    Attributes
    ----------
    whole
        Scans whose files are all as recorded.
    unrecorded
        Scans of a version of siam-bids that recorded no checksums.
    wrong
        For each other scan what is wrong with it, one line each.
    """

    whole: list[str] = field(default_factory=list)
    unrecorded: list[str] = field(default_factory=list)
    wrong: dict[str, list[str]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return the findings in words, the count last."""
        found = [f"WRONG {name}: {what}" for name, each in self.wrong.items() for what in each]
        count = f"{number_of(len(self.whole), 'scan')} as recorded, {len(self.wrong)} not"
        if self.unrecorded:
            count += f", {len(self.unrecorded)} of an earlier version without checksums"
        return [*found, f"{count}."]


def verify(config: RunConfig) -> Verification:
    """Read every file of every finished scan of the query's participants and sessions.

    Neither the input nor the model is needed.

    Raises
    ------
    DatasetError
        The output folder holds no results, or its label table cannot be read.
    """
    root, query = config.output_dir, config.query
    scans = [names for names in finished_scans(root) if _asked(query, names.name)]
    orphans = [path for _, path in undeclared_results(root) if _asked(query, path.name)]
    if not scans and not orphans:
        raise DatasetError(
            f"{root} holds no segmentations.", "Run the participant level on it first."
        )
    labels = read_label_table(root)
    found = Verification(wrong=_without_results(root, query))
    found.wrong |= {path.name: [undeclared(path)] for path in orphans}
    for names in scans:
        if wrong := _wrong(names, labels):
            found.wrong[names.name] = wrong
        elif OUTPUTS in read_json(sidecar(names.segmentation)):
            found.whole.append(names.name)
        else:
            found.unrecorded.append(names.name)
    return found


def _asked(query: Query, name: str) -> bool:
    """Return whether a file is of the participants and sessions asked for; all if none are."""
    entities = {*name.split("_")}
    participants = {f"sub-{label}" for label in query.participants}
    sessions = {f"ses-{label}" for label in query.sessions}
    return all(not wanted or wanted & entities for wanted in (participants, sessions))


def _without_results(root: Path, query: Query) -> dict[str, list[str]]:
    """Name participants without any results, and files that look like results but are not."""
    people = {path.name.removeprefix("sub-") for path in root.glob("sub-*") if path.is_dir()}
    absent = sorted({*query.participants} - people)
    wrong = {f"sub-{label}": ["it has no results in this folder"] for label in absent}
    if not query.participants and not query.sessions:
        wrong |= {path.name: [misplaced(path)] for path in stray_results(root)}
    return wrong


def _wrong(names: ScanNames, labels: LabelTable) -> list[str]:
    known = read_json(sidecar(names.segmentation))
    wrong = [f"{place} is missing" for place in missing_outputs(names.root, known)]
    wrong += [f"{place} was changed" for place in changed_outputs(names.root, known)]
    if not wrong:
        try:
            read_result(names, labels)
        except DatasetError as error:
            wrong.append(str(error))
    return wrong
