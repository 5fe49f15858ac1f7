"""Which outputs a scan has, whether they are done, and why not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from siam_bids.bids.names import ScanNames
from siam_bids.bids.scan import Scan
from siam_bids.config import RunConfig
from siam_bids.errors import DatasetError, UsageError
from siam_bids.image.grid import Grid
from siam_bids.image.labels import LabelTable


def nothing_matches(config: RunConfig) -> DatasetError:
    """Return the error for a query without scans."""
    return DatasetError(
        f"No anatomical image in {config.bids_dir} matches the query "
        f"(suffixes {', '.join(config.query.suffixes)}).",
        "Look at --suffix, --participant-label, --session-label and --bids-filter-file.",
    )


@dataclass(frozen=True, kw_only=True)
class Prospect:
    """What a run would do with a scan.

    Attributes
    ----------
    why
        Why it would be segmented; empty if it is done, or if it would fail.
    error
        Why it would fail, as far as its header tells.
    grid
        Where its voxels are; None if it is done or would fail.
    """

    scan: Scan
    why: str = ""
    error: str = ""
    grid: Grid | None = None


def output_names(root: Path, scan: Scan) -> ScanNames:
    """Return where the results of a scan go."""
    return ScanNames(root, scan.subject, scan.session, scan.stem, scan.suffix)


def check_folders(config: RunConfig) -> None:
    """Refuse an output folder that is the input, holds it, or is a file."""
    source, target = config.bids_dir.resolve(), config.output_dir.resolve()
    if source == target:
        raise UsageError("Input and output folder are the same.", "Give another output folder.")
    if target.exists() and not target.is_dir():
        raise UsageError(f"The output {config.output_dir} is a file.", "Give a folder.")
    if target in source.parents:
        raise UsageError(
            f"The input folder lies inside the output folder {config.output_dir}.",
            "Give an output folder of its own.",
        )


def with_tissues(config: RunConfig, labels: LabelTable) -> RunConfig:
    """Name all tissues whose probability maps are wanted; `UsageError` for unknown ones."""
    unknown = [name for name in config.probabilities if name not in labels.by_name]
    if unknown:
        raise UsageError(
            f"The model has no tissue {', '.join(unknown)}.",
            f"It has: {', '.join(labels.by_name)}.",
        )
    every = [label.name for label in labels.foreground] if config.write_probseg else []
    return replace(config, probabilities=tuple(dict.fromkeys([*config.probabilities, *every])))
