"""Which scans are done, which failed, and what killed runs left behind."""

from __future__ import annotations

import errno
import glob
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from siam_bids.bids.names import FIGURES, PREVIEWS, ScanNames, finished_scans, sidecar
from siam_bids.bids.scan import BidsName
from siam_bids.errors import DatasetError
from siam_bids.support.atomic_files import read_json, sweep, write_json

RESULTS_VERSION = 2
"""Raised when labels or tables of the same scan, model and options change, and only then.

1 was up to version 0.1.0, whose sidecars do not name it.
"""

IDENTITY = {
    "InputSHA256": "the input changed",
    "Model": "another model made it",
    "Options": "the options changed",
    "ResultsVersion": "a version of siam-bids that gives other results made it",
}
"""Sidecar entries that must be unchanged for a result to count as done, and what a change means."""


def to_do(names: ScanNames, provenance: Mapping[str, Any], outputs: Sequence[Path]) -> str:
    """Say why a scan must be segmented (anew); empty if it is done.

    Done means: all outputs exist, from the same input, model and options. The sidecar of the
    segmentation is written last of all, so its presence means a whole result.
    """
    known = read_json(sidecar(names.segmentation))
    if not known:
        return "not segmented yet"
    changes = [why for key, why in IDENTITY.items() if known.get(key) != provenance[key]]
    if not changes:
        changes = [f"{path.name} is missing" for path in outputs if not path.exists()]
    return ", ".join(changes[:2])


def begin_scan(names: ScanNames, outputs: Sequence[Path]) -> None:
    """Make the scan count as not done, and remove what its new results will not replace."""
    sidecar(names.segmentation).unlink(missing_ok=True)
    if names.brain_mask not in outputs:  # of a model that told what the brain is
        names.brain_mask.unlink(missing_ok=True)
        sidecar(names.brain_mask).unlink(missing_ok=True)
    for kind in PREVIEWS:
        names.preview(kind).unlink(missing_ok=True)
    for path in names.anat.glob(f"{glob.escape(names.stem)}_seg-siam_label-*_probseg.nii.gz"):
        if not path.name.endswith(f"_desc-{names.description}_probseg.nii.gz"):
            continue
        if path not in outputs:
            path.unlink(missing_ok=True)
            sidecar(path).unlink(missing_ok=True)


def finish_scan(names: ScanNames, about: Mapping[str, Any], outputs: Sequence[Path]) -> None:
    """Declare a scan done, unless something of it is gone.

    Parameters
    ----------
    about
        What the sidecar of the segmentation says.

    Raises
    ------
    FileNotFoundError
        An output or its sidecar was removed while the scan was written.
    """
    declared = sidecar(names.segmentation)
    write_json(declared, about)
    pictures = {names.figure(kind) for kind in FIGURES}
    beside = [sidecar(path) for path in outputs if path not in pictures]
    for path in (*outputs, *beside):
        if not path.exists():
            declared.unlink(missing_ok=True)
            raise FileNotFoundError(errno.ENOENT, "Removed while the scan was written", str(path))


def sweep_subject(root: Path, subject: str) -> None:
    """Remove what killed runs left half-written in a subject's folders."""
    folders = [root / "logs" / f"sub-{subject}"]
    for pattern in ("figures", "anat", "ses-*/anat"):
        folders += (root / f"sub-{subject}").glob(pattern)
    sweep(folders)


def sweep_root(root: Path) -> None:
    """Remove what killed runs left half-written among the files of the whole dataset."""
    sweep([root, root / "logs"])


def subject_state(root: Path, subject: str) -> list[tuple[str, int]]:
    """Name the finished and failed scans of a subject and when: what its page depends on."""
    good = [sidecar(names.segmentation) for names in finished_scans(root, subject)]
    bad = [names.record for names in failed_scans(root, subject)]
    with suppress(FileNotFoundError):  # replaced meanwhile: look again
        return [(path.as_posix(), path.stat().st_mtime_ns) for path in good + bad]
    return []


def failed_scans(root: Path, subject: str = "*") -> Iterator[ScanNames]:
    """Yield every scan whose last attempt failed."""
    for path in sorted(root.glob(f"logs/sub-{subject}/*.json")):
        if read_json(path).get("error"):
            with suppress(DatasetError):  # no log of ours
                names = ScanNames(root, BidsName.parse(path.stem))
                if names.record == path:
                    yield names
