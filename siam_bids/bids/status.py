"""Which scans are done, which failed, and what killed runs left behind."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from siam_bids.bids.label_tables import read_label_table
from siam_bids.bids.names import PREVIEWS, ScanNames, finished_scans, sidecar
from siam_bids.bids.ownership import PIPELINE, made_by_us
from siam_bids.bids.records import WRITTEN, read_record
from siam_bids.bids.scan import BidsName
from siam_bids.errors import DatasetError
from siam_bids.measures.volumes import NOT_COMBINED
from siam_bids.models.model import WORDS
from siam_bids.support.atomic_files import (
    claim_json,
    read_json,
    sha256,
    sweep,
    withdraw_json,
    write_json,
)

RESULTS_VERSION = 4
"""Raised when labels or tables of the same scan, model and options change, and only then.

1 was up to version 0.1.0, whose sidecars do not name it; 2 up to 0.13.0, without sides; 3 up to
0.14.0, with other priors of combined scans.
"""

COMBINING_METHOD = 2
"""Raised when labels of the same combined scans change, those of scans alone do not.

1, which sidecars do not name, was up to version 0.15.0.
"""

COMBINED = "Combined"
"""Sidecar entry that holds the choice of `--combine` and the checksum of every scan combined."""

COMBINED_AS = "CombinedAs"
"""Sidecar entry on what came of it: `Weight` of the scan, or why it was segmented `Alone`, and the
scans of the combination that it had to do `Without`, because they failed."""

IDENTITY = {
    "InputSHA256": "the input changed",
    "Model": "it was made with another model",
    "Options": "the options changed",
    COMBINED: "the scans it is combined with changed",
    "ResultsVersion": "it was made by a version of siam-bids whose results differ",
}
"""Sidecar entries that must be unchanged for a result to count as done, and what a change means.

Of the model only what labels depend on, see `siam_bids.models.model.WORDS`.
"""

_OTHER_METHOD = "scans are combined in another way by this version of siam-bids"

OUTPUTS = "Outputs"
"""Sidecar entry that holds the checksum of every file of a result, by its path from the root."""


def combined_by(about: Mapping[str, Any]) -> str:
    """Return the choice of `--combine` whose prior the labels of a sidecar follow, or none."""
    alone = "Alone" in entry(about, COMBINED_AS)
    return NOT_COMBINED if alone else str(entry(about, COMBINED).get("By", NOT_COMBINED))


def entry(about: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return an object that a sidecar holds; an empty one if it has none, or something else."""
    found = about.get(key)
    return found if isinstance(found, Mapping) else {}


def to_do(
    names: ScanNames,
    known: Mapping[str, Any],
    provenance: Mapping[str, Any],
    outputs: Sequence[Path],
) -> str:
    """Return why a scan must be segmented (again); empty if it is done.

    Done means: all outputs exist, from the same input, model and options. The sidecar of the
    segmentation is written last of all, so its presence means a whole result. What the outputs
    hold is not looked at, see `changed_outputs`.

    Parameters
    ----------
    known, provenance
        The sidecar of the segmentation as it is, empty if there is none, and as it would be.
    """
    if not known:
        return "not segmented yet"
    changed = [
        key
        for key in IDENTITY
        if _without_words(known.get(key)) != _without_words(provenance.get(key))
    ]
    changes = [
        _combined_anew(known.get(key), provenance.get(key)) if key == COMBINED else IDENTITY[key]
        for key in changed
        if key != COMBINED or "InputSHA256" not in changed  # is among those combined
    ]
    if not changes:
        gone = [path.name for path in outputs if not path.is_file()]
        gone += [Path(place).name for place in missing_outputs(names.root, known)]
        changes = [f"{name} is missing" for name in dict.fromkeys(gone)]
    return ", ".join(changes[:2])


def _combined_anew(before: Any, now: Any) -> str:
    """Say that scans were combined by another choice, or which scan was other, more or less."""
    choices = [entry({COMBINED: each}, COMBINED).get("By") for each in (before, now)]
    if all(isinstance(choice, str) for choice in choices) and choices[0] != choices[1]:
        return f"--combine was {choices[0]}"
    old, new = (each.get("Inputs") if isinstance(each, Mapping) else each for each in (before, now))
    if isinstance(new, Mapping) and old is None:
        return "it was not combined with other scans of the participant"
    if isinstance(old, Mapping) and new is None:
        return "it was combined with other scans of the participant"
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return IDENTITY[COMBINED]
    for names, what in (
        ([name for name in new if name not in old], "it is now combined with {} too"),
        ([name for name in old if name not in new], "it is no longer combined with {}"),
        ([name for name in new if old.get(name) != new[name]], "{}, combined with it, changed"),
    ):
        if names:
            return what.format(PurePosixPath(names[0]).name)
    same = choices[0] == choices[1]
    return _OTHER_METHOD if same else IDENTITY[COMBINED]


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
    """Return the path of a recorded file; None if it is not below the root."""
    parts = PurePosixPath(place)
    return None if parts.is_absolute() or ".." in parts.parts else root / parts


def _checksum(path: Path) -> str:
    return f"sha256:{sha256(path)}"


def unknown_files(names: ScanNames, known: Mapping[str, Any], paths: Iterable[Path]) -> list[Path]:
    """Return those of some files of a scan that are there, but not as siam-bids wrote them.

    Known is what `known`, the sidecar of the segmentation, or the record in `logs/` lists with its
    checksum. Sidecars of versions without checksums vouch for every file of their scan.
    """
    ours = made_by_us(known)
    if known and not ours:
        return [sidecar(names.segmentation)]
    if ours and OUTPUTS not in known:
        return []
    checksums = _known_checksums(names, known)
    return [
        path
        for path in paths
        if path.exists()
        and not (path.is_file() and _checksum(path) in checksums.get(_place(names, path), ()))
    ]


def check_unknown(names: ScanNames, known: Mapping[str, Any], paths: Iterable[Path]) -> None:
    """Refuse to replace files that siam-bids does not know.

    Raises
    ------
    DatasetError
        There are such files, see `unknown_files`.
    """
    if unknown := unknown_files(names, known, paths):
        raise DatasetError(
            f"{unknown[0].name} exists, but no record says that {PIPELINE} wrote it.",
            "Move it if you want to keep it; --overwrite replaces it.",
        )


def _place(names: ScanNames, path: Path) -> str:
    return path.relative_to(names.root).as_posix()


def _known_checksums(names: ScanNames, known: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the checksums that each recorded file of a scan may have, by its path."""
    attempt = read_record(names.record).get(WRITTEN, {})
    found = {place: [*checksums] for place, checksums in attempt.items()}
    recorded = known.get(OUTPUTS, {})
    for place, checksum in recorded.items() if isinstance(recorded, Mapping) else ():
        if checksum not in found.setdefault(place, []):
            found[place].append(checksum)
    return found


def _outdated(names: ScanNames, known: Mapping[str, Any], new: Iterable[Path]) -> list[Path]:
    """Return the recorded files of a scan that its new results do not replace."""
    places = {*_known_checksums(names, known)}
    if made_by_us(known) and OUTPUTS not in known:
        with suppress(DatasetError):
            tissues = [label.name for label in read_label_table(names.root)]
            images = [names.brain_mask, *map(names.probability, tissues)]
            places |= {_place(names, file) for path in images for file in (path, sidecar(path))}
    found = [path for place in sorted(places) if (path := _within(names.root, place))]
    kept = {*new, sidecar(names.segmentation)}
    return [path for path in found if path not in kept and _is_output(names, path)]


def _is_output(names: ScanNames, path: Path) -> bool:
    """Tell whether a file is named as an output of a scan: records may say anything."""
    folders = (names.anat, names.figure("mosaic").parent)
    named = path.name.startswith(f"{names.stem}_") and f"desc-{names.description}_" in path.name
    return (path.parent in folders and named) or path == names.transform


def place_results(
    names: ScanNames,
    made: Path,
    written: Mapping[Path, str],
    seen: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> dict[Path, str]:
    """Move the new results of a scan to their places; until then the scan does not count as done.

    What an earlier result had and this one has not is removed, as far as it is recorded.

    Parameters
    ----------
    made
        Folder that holds the results as `names.root` will.
    written
        Files in `made`, with the SHA-256 of each.
    seen
        The sidecar of the segmentation when it was decided that the scan be segmented.
    overwrite
        Replace files that siam-bids does not know.

    Returns
    -------
    The files in their places, with the SHA-256 of each.

    Raises
    ------
    DatasetError
        Another run has finished the scan meanwhile, or an unknown file is in the way.
    """
    declared = sidecar(names.segmentation)
    new = {names.root / path.relative_to(made): checksum for path, checksum in written.items()}
    now = read_json(declared)
    if now and now != seen:
        raise _finished_by_another(names.name)
    if not overwrite:
        check_unknown(names, now, new)
    outdated, known = _outdated(names, now, new), _known_checksums(names, now)
    for path, checksum in new.items():
        known.setdefault(_place(names, path), []).append(f"sha256:{checksum}")
    write_json(names.record, {WRITTEN: known})  # by it, a run after a crash knows the files
    withdraw_json(declared, lambda content: content == now)
    for path in (*outdated, *map(names.preview, PREVIEWS)):
        path.unlink(missing_ok=True)
    for path in new:
        path.parent.mkdir(parents=True, exist_ok=True)
        (made / path.relative_to(names.root)).replace(path)
    return new


def _finished_by_another(name: str) -> DatasetError:
    return DatasetError(
        f"{name} was segmented by another run in the meantime; that result is kept.",
        "Start one run at a time, or give each run its own output folder.",
    )


def _holds(root: Path, declaration: Mapping[str, Any]) -> bool:
    """Tell whether a sidecar records files, and all of them are there so."""
    return (
        bool(declaration.get(OUTPUTS))
        and not missing_outputs(root, declaration)
        and not changed_outputs(root, declaration)
    )


def declare(path: Path, root: Path, about: Mapping[str, Any], written: Mapping[Path, str]) -> None:
    """Declare a result done, unless the files on disk differ from those written.

    Another process may have replaced a file meanwhile, for example a run of another model. A
    declaration of it that holds stays.

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
    _check_written(root, declaration)
    while not claim_json(path, declaration):
        there = read_json(path)
        if _holds(root, there):
            if there[OUTPUTS] == checksums:  # of a run of the same, at the same time
                return
            raise _finished_by_another(path.name)
        withdraw_json(path, lambda content, there=there: content == there)  # type: ignore[misc]
    try:
        _check_written(root, declaration)
    except (OSError, DatasetError):
        withdraw_json(path, lambda content: content.get(OUTPUTS) == checksums)
        raise


def _check_written(root: Path, declaration: Mapping[str, Any]) -> None:
    if gone := missing_outputs(root, declaration):
        raise FileNotFoundError(
            errno.ENOENT, "Removed while the scan was written", str(root / gone[0])
        )
    if changed := changed_outputs(root, declaration):
        raise DatasetError(
            f"{Path(changed[0]).name} was replaced while this run was writing.",
            "Another run is writing into this folder: wait until it ends, then run again.",
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
