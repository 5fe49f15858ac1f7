"""Which scans are done, which failed, and what killed runs left behind."""

from __future__ import annotations

import errno
import glob
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from siam_bids.bids.names import PREVIEWS, ScanNames, finished_scans, sidecar
from siam_bids.bids.records import read_record
from siam_bids.bids.scan import BidsName
from siam_bids.errors import DatasetError
from siam_bids.models.record import WORDS
from siam_bids.support.atomic_files import read_json, sha256, sweep, write_json

RESULTS_VERSION = 2
"""Raised when labels or tables of the same scan, model and options change, and only then.

1 was up to version 0.1.0, whose sidecars do not name it.
"""

IDENTITY = {
    "InputSHA256": "the input changed",
    "Model": "it was made with another model",
    "Options": "the options changed",
    "ResultsVersion": "it was made by a version of siam-bids whose results differ",
}
"""Sidecar entries that must be unchanged for a result to count as done, and what a change means.

Of the model only what labels depend on, see `siam_bids.models.record.WORDS`.
"""

OUTPUTS = "Outputs"
"""Sidecar entry that holds the checksum of every file of a result, by its path from the root."""


def to_do(names: ScanNames, provenance: Mapping[str, Any], outputs: Sequence[Path]) -> str:
    """Return why a scan must be segmented (again); empty if it is done.

    Done means: all outputs exist, from the same input, model and options. The sidecar of the
    segmentation is written last of all, so its presence means a whole result. What the outputs
    hold is not looked at, see `changed_outputs`.
    """
    known = read_json(sidecar(names.segmentation))
    if not known:
        return "not segmented yet"
    changes = [
        why
        for key, why in IDENTITY.items()
        if _without_words(known.get(key)) != _without_words(provenance[key])
    ]
    if not changes:
        gone = [path.name for path in outputs if not path.is_file()]
        gone += [Path(place).name for place in missing_outputs(names.root, known)]
        changes = [f"{name} is missing" for name in dict.fromkeys(gone)]
    return ", ".join(changes[:2])


def _without_words(entry: Any) -> Any:
    """Remove from a model's description, and those of its members, what labels do not depend on."""
    if isinstance(entry, Mapping):
        return {key: _without_words(value) for key, value in entry.items() if key not in WORDS}
    return [_without_words(part) for part in entry] if isinstance(entry, list) else entry


def changed_outputs(root: Path, known: Mapping[str, Any]) -> list[str]:
    """Return the files of a result that are there but not as its sidecar records them.

    Parameters
    ----------
    known
        The sidecar. One without checksums is of an earlier version: changes cannot be detected.

    Returns
    -------
    Paths from the root.
    """
    recorded = known.get(OUTPUTS, {})
    if not isinstance(recorded, Mapping):
        return []
    return [
        place
        for place, checksum in recorded.items()
        if (path := _within(root, place)) and path.is_file() and checksum != _checksum(path)
    ]


def missing_outputs(root: Path, known: Mapping[str, Any]) -> list[str]:
    """Return the files of a result that its sidecar records and that are gone."""
    recorded = known.get(OUTPUTS, {})
    places = recorded if isinstance(recorded, Mapping) else {}
    return [place for place in places if not (path := _within(root, place)) or not path.is_file()]


def _within(root: Path, place: str) -> Path | None:
    """Return where a recorded file lies; None if that is no place below the root."""
    parts = PurePosixPath(place)
    return None if parts.is_absolute() or ".." in parts.parts else root / parts


def _checksum(path: Path) -> str:
    return f"sha256:{sha256(path)}"


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


def declare(path: Path, root: Path, about: Mapping[str, Any], written: Mapping[Path, str]) -> None:
    """Declare a result done, unless the files on disk differ from those written.

    Another process may have replaced a file in the meantime, for example a run of another model.

    Parameters
    ----------
    path
        The sidecar that declares it.
    root
        Folder that the recorded paths start from.
    about
        What else the sidecar says.
    written
        Every other file of the result, with the SHA-256 of what was written.

    Raises
    ------
    FileNotFoundError
        A file was removed while the others were written.
    DatasetError
        A file was replaced while the others were written.
    """
    checksums = {
        file.relative_to(root).as_posix(): f"sha256:{checksum}"
        for file, checksum in sorted(written.items())
    }
    declaration = {**about, OUTPUTS: checksums}
    write_json(path, declaration)
    gone, changed = missing_outputs(root, declaration), changed_outputs(root, declaration)
    if not gone and not changed:
        return
    if read_json(path).get(OUTPUTS) == checksums:
        path.unlink(missing_ok=True)
    if gone:
        raise FileNotFoundError(
            errno.ENOENT, "Removed while the scan was written", str(root / gone[0])
        )
    raise DatasetError(
        f"{Path(changed[0]).name} was replaced while the scan was written.",
        "Another run writes into this folder: wait until it ends, then run again.",
    )


def finish_scan(names: ScanNames, about: Mapping[str, Any], written: Mapping[Path, str]) -> None:
    """Declare a scan done by the sidecar of its segmentation, see `declare`."""
    declare(sidecar(names.segmentation), names.root, about, written)


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
        if read_record(path).get("error"):
            with suppress(DatasetError):  # no log of ours
                names = ScanNames(root, BidsName.parse(path.stem))
                if names.record == path:
                    yield names
