"""Exporting the results of a dataset: which scans, what is done already, what failed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from siam_bids import __version__
from siam_bids.bids.description import BIDS_VERSION, raw_dataset
from siam_bids.bids.label_tables import read_label_table
from siam_bids.bids.ownership import PIPELINE, check_output_folder
from siam_bids.bids.status import OUTPUTS, declare, missing_outputs
from siam_bids.errors import DatasetError, SiamError, UsageError, out_of_memory
from siam_bids.export.fmriprep import FMRIPREP
from siam_bids.export.freesurfer import FREESURFER
from siam_bids.export.head import Head, choose_references
from siam_bids.export.lesions import LESIONS
from siam_bids.export.mne import MNE
from siam_bids.export.simnibs import SIMNIBS
from siam_bids.export.summaries import SUMMARIES
from siam_bids.export.target import Options, Target
from siam_bids.support.atomic_files import read_json, staging, sweep, write_json, write_text

logger = logging.getLogger(__name__)

TARGETS: Mapping[str, Target] = {
    "fmriprep": FMRIPREP,
    "freesurfer": FREESURFER,
    "lesions": LESIONS,
    "mne": MNE,
    "simnibs": SIMNIBS,
}
"""What can be exported to, by the word of the command line."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What an export is asked to do.

    Attributes
    ----------
    results
        Folder of finished results.
    target
        One of `TARGETS`.
    folder
        Where to write; new, empty, or of an earlier export for the same target.
    raw
        Dataset of the images; None takes that which the results name.
    participants, sessions
        Labels; empty means all.
    reference
        See `choose_references`.
    """

    results: Path
    target: str
    folder: Path
    raw: Path | None = None
    participants: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    reference: str = ""
    options: Options = field(default_factory=Options)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """How an export went: names of scans, and the reason of each failure."""

    written: tuple[str, ...]
    already: tuple[str, ...]
    failed: Mapping[str, str]


def export(config: ExportConfig) -> Exported:
    """Write finished results for another program; what is there already stays.

    Raises
    ------
    UsageError
        The folder holds something else.
    DatasetError
        There are no finished results.
    """
    target = TARGETS[config.target]
    choice = choose_references(
        config.results,
        participants=config.participants,
        sessions=config.sessions,
        wanted=config.reference,
    )
    if not choice.chosen and not choice.without:
        raise DatasetError(
            f"{config.results} holds no finished results.", "Give the output folder of siam-bids."
        )
    _begin(config)
    labels = read_label_table(config.results)
    raw = config.raw or raw_dataset(config.results)
    written: list[str] = []
    already: list[str] = []
    failed = dict(choice.without)
    for result in choice.chosen:
        name = result.names.name
        try:
            new = _export(Head(result=result, labels=labels, raw=raw), target, config)
        except (SiamError, OSError, MemoryError) as error:
            failed[name] = _reason(error)
            continue
        (written if new else already).append(name)
        if new:
            logger.info("%s: written for %s", name, config.target)
    return Exported(written=tuple(written), already=tuple(already), failed=failed)


def _reason(error: Exception) -> str:
    """Return why a scan failed; raise what is a fault of the program."""
    if isinstance(error, OSError) and error.errno is None:
        raise error
    return "out of memory" if out_of_memory(error) else str(error)


def _export(head: Head, target: Target, config: ExportConfig) -> bool:
    """Export one scan; return False if that is done already.

    Its files take their places together: what fails leaves an earlier export as it was.
    """
    path = target.declares(config.folder, head.names)
    identity = {
        "Target": config.target,
        "Software": {PIPELINE: __version__},
        "Options": {name: getattr(config.options, name) for name in target.options},
        "Result": head.names.name,
        "ResultSHA256": head.identity,
    }
    known = read_json(path)
    same = all(known.get(key) == value for key, value in identity.items())
    if same and known.get(OUTPUTS) and not missing_outputs(config.folder, known):
        return False
    with staging(config.folder) as place:
        about, made = target.write(head, place, config.options)
        if Head(result=head.result, labels=head.labels).identity != head.identity:
            raise DatasetError(
                f"{head.names.name} was segmented again in the meantime.", "Export it again."
            )
        path.unlink(missing_ok=True)
        written = {config.folder / file.relative_to(place): made[file] for file in made}
        for file, final in zip(made, written, strict=True):
            final.parent.mkdir(parents=True, exist_ok=True)
            file.replace(final)
    declare(path, config.folder, {**about, **identity}, written)
    return True


def _begin(config: ExportConfig) -> None:
    """Write what tells whose folder this is, and where it comes from."""
    root, source = config.folder, config.results
    check_output_folder(root, remedy="Give an empty or new folder.")
    path = root / "dataset_description.json"
    purpose = f"siam-bids-export {config.target}"
    if path.exists() and _purpose(read_json(path)) != purpose:
        raise UsageError(
            f"{root} holds another kind of output of {PIPELINE}: {_purpose(read_json(path))}.",
            "Give each export a folder of its own.",
        )
    raw = config.raw or raw_dataset(source)
    roots = {"siam": source, **({"raw": raw} if raw else {})}
    links = {name: folder.absolute().as_uri() for name, folder in roots.items()}
    root.mkdir(parents=True, exist_ok=True)
    sweep([root, *root.glob("*/*"), *root.glob("sub-*/*/anat")])
    write_json(
        path,
        {
            "Name": f"Head segmentations by {PIPELINE}, for {config.target}",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [
                {
                    "Name": PIPELINE,
                    "Version": __version__,
                    "Description": purpose,
                }
            ],
            "SourceDatasets": [{"URL": link} for link in links.values()],
            "DatasetLinks": links,
        },
    )
    write_text(
        root / "README",
        f"{SUMMARIES[config.target]}.\n"
        f"Made by {PIPELINE} {__version__} ({purpose}) from the results in {source.absolute()}.\n"
        "For research, not for clinical use.\n",
    )


def _purpose(about: Mapping[str, Any]) -> str:
    try:
        return str(about["GeneratedBy"][0].get("Description", "segmentations"))
    except (KeyError, IndexError, TypeError, AttributeError):
        return "unknown"
