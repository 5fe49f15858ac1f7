"""Reading the results of a finished scan from disk, validated like any input.

Files of results are copied, edited, cut and replaced by others while we read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from siam_bids.bids.label_tables import read_label_table
from siam_bids.bids.names import ScanNames, finished_scans, sidecar
from siam_bids.bids.scan import CONSENSUS
from siam_bids.bids.status import COMBINED, COMBINED_AS, OUTPUTS, combined_by, entry
from siam_bids.errors import DatasetError
from siam_bids.image.labels import LabelTable
from siam_bids.measures.change_noise import OVER_VISITS, noise_kind
from siam_bids.measures.hemispheres import HEMISPHERES
from siam_bids.measures.lesions import DICTIONARY as LESION_COLUMNS
from siam_bids.measures.quality import dictionary as quality_dictionary
from siam_bids.measures.volumes import INTRACRANIAL, NOT_COMBINED, SIDE_COLUMNS
from siam_bids.support.atomic_files import sha256
from siam_bids.support.input_files import load_json
from siam_bids.support.json_kinds import misfit
from siam_bids.support.tsv import read_rows

_LARGEST = 4_000_000
"""Bytes above which a file was not made by this app; a table of a scan has a few thousand."""

_TRIES = 5
"""How often a result is read again if it was replaced in the meantime."""

_SIDECAR = {
    "Sources": [str],
    "Model": {
        "Title": str,
        "Version": str,
        "SHA256": str,
        "Citation": str,
        "Members?": [{"Title": str, "SHA256": str}],
        "Upright?": {"TurnedByMoreDegreesThan": float, "OfSizeFactorMoreThan": float},
    },
    "Software": {"*": str},
    "Options?": {"volume?": int},
    "Grid": {"Shape": [int], "VoxelSize": [float], "Orientation": str},
    "Pose?": {"TurnedByDegrees": float, "RelativeSize": float},
    "InputSHA256": str,
    f"{COMBINED}?": {"By": str, "Inputs": {"*": str}},
    f"{COMBINED_AS}?": {"Weight?": float, "Alone?": str, "Without?": [str]},
    f"{OUTPUTS}?": {"*": str},
}
"""What the tables and pages take from the sidecar of a segmentation."""


@dataclass(frozen=True, kw_only=True)
class ScanResult:
    """The results of one finished scan, as read from disk.

    Attributes
    ----------
    about
        Sidecar of the segmentation.
    volumes
        Rows of the volume table: index (None for sums), name, voxels, volume_mL, and if the table
        has them `SIDE_COLUMNS` (None where there is no value). There is one for each label of the
        dataset, and one of the total intracranial volume where it is known.
    lesions
        Rows of the table of lesions, the columns of `measures.lesions.DICTIONARY`; what is unknown
        is None.
    quality
        Metrics by name, those that could be measured; empty for results of versions without them.
    """

    names: ScanNames
    about: dict[str, Any]
    volumes: tuple[dict[str, Any], ...]
    quality: dict[str, float]
    lesions: tuple[dict[str, Any], ...] = ()

    @property
    def millilitres(self) -> dict[str, float]:
        """Volumes by tissue in mL."""
        return {row["name"]: row["volume_mL"] for row in self.volumes}

    @property
    def source(self) -> str:
        """Path of the scan in its dataset."""
        return str(self.about["Sources"][0]).removeprefix("bids:raw:")

    @property
    def combined(self) -> str:
        """The choice of `--combine` whose prior the labels follow, or none."""
        return combined_by(self.about)

    @property
    def partners(self) -> tuple[str, ...]:
        """What two sessions must have in common for their volumes to be comparable.

        Of a combined scan, and of a consensus: the scans of its session, without its label; and
        with their checksums those of all sessions that share a prior. Without those that failed.
        """
        inputs = entry(self.about, COMBINED).get("Inputs")
        if self.combined == NOT_COMBINED or not isinstance(inputs, Mapping):
            return ()
        failed = entry(self.about, COMBINED_AS).get("Without", ())
        used = [path for path in inputs if path not in failed]
        voted = [str(source).removeprefix("bids:raw:") for source in self.about["Sources"]]
        here = voted if self.names.identity.suffix == CONSENSUS else used
        session = f"_ses-{self.names.identity.session}_"
        own = [name.replace(session, "_") for path in here if session in (name := Path(path).name)]
        over = [f"{path} {inputs[path]}" for path in used] if self.combined in OVER_VISITS else []
        return (*sorted(own), *sorted(over))

    @property
    def noise(self) -> str:
        """Which measurement noise holds for its changes, see `measures.change_noise`."""
        return noise_kind(
            str(self.about["Model"].get("Name")),
            self.about.get("Options", {}),
            self.names.identity.suffix,
            self.about["Grid"]["VoxelSize"],
            self.combined,
        )


@dataclass(frozen=True)
class Results:
    """All results of a dataset or subject, by path.

    Attributes
    ----------
    usable
        Those that are whole.
    unusable
        For each other one the reason, in one line.
    """

    usable: tuple[ScanResult, ...]
    unusable: dict[ScanNames, str]


def read_results(root: Path, subject: str = "*") -> Results:
    """Read every result of a derivative dataset, or of one subject.

    Raises
    ------
    DatasetError
        The label table of the dataset cannot be read.
    """
    scans = tuple(finished_scans(root, subject))
    labels = read_label_table(root) if scans else None
    usable, unusable = [], {}
    for names in scans:
        result, reason = _result_or_reason(names, labels)
        if result:
            usable.append(result)
        else:
            unusable[names] = reason
    return Results(tuple(usable), unusable)


def _result_or_reason(names: ScanNames, labels: LabelTable | None) -> tuple[ScanResult | None, str]:
    try:
        return read_result(names, labels), ""
    except DatasetError as error:
        return None, str(error)


def read_result(names: ScanNames, labels: LabelTable | None = None) -> ScanResult:
    """Read the tables and the sidecar of one scan.

    Parameters
    ----------
    labels
        Of the dataset; None reads them.

    Raises
    ------
    DatasetError
        Something is missing, cut, of another form, or not what the sidecar records.
    """
    labels = labels or read_label_table(names.root)
    for _ in range(_TRIES):
        before = _stamp(names)
        try:
            result, reason = _read(names, labels), ""
        except OSError as error:
            reason = f"{Path(error.filename or '').name} cannot be read: {error.strerror or error}"
        except ValueError as error:
            reason = str(error)
        if before and before == _stamp(names):
            break
    else:
        reason = "its sidecar keeps changing: the scan is being segmented"
    if reason:
        raise DatasetError(f"{names.name} has no usable result: {reason}.")
    return result


def misplaced(path: Path) -> str:
    """Return why a sidecar in an unexpected place is refused, see `stray_results`."""
    place = Path(*path.parts[-3:]).as_posix()
    return f"{place} is not named or placed as siam-bids does it: a copied or renamed file?"


def undeclared(path: Path) -> str:
    """Return what is wrong with a file of a scan without sidecar, see `undeclared_results`."""
    return f"{path.name} has no sidecar of its scan (*_dseg.json): interrupted, or removed?"


def _stamp(names: ScanNames) -> tuple[int, ...]:
    """Tell one sidecar from its successor; empty if there is none."""
    with suppress(OSError):
        found = sidecar(names.segmentation).stat()
        return found.st_ino, found.st_mtime_ns, found.st_size
    return ()


def _read(names: ScanNames, labels: LabelTable) -> ScanResult:
    """Read one result; the message of ValueError says what is wrong with it."""
    path = sidecar(names.segmentation)
    try:
        about = load_json(path, _LARGEST)
    except ValueError as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
    if said := misfit(about, _SIDECAR, path.name):
        raise ValueError(said)
    if not about["Sources"] or not _stays_below(about["Sources"][0].removeprefix("bids:raw:")):
        raise ValueError(f"{path.name} names no source within the dataset")
    recorded = {
        table: about.get(OUTPUTS, {}).get(table.relative_to(names.root).as_posix(), "")
        for table in (names.volumes, names.lesions, names.quality)
    }
    volumes = tuple(_volumes(names.volumes, labels))
    quality = _quality(names.quality, recorded=bool(recorded[names.quality]))
    lesions = tuple(_lesions(names.lesions, labels)) if recorded[names.lesions] else ()
    for table, checksum in recorded.items():
        if checksum and checksum != f"sha256:{sha256(table)}":
            raise ValueError(f"{table.name} does not match the checksum in the sidecar")
    return ScanResult(names=names, about=about, volumes=volumes, lesions=lesions, quality=quality)


def _stays_below(place: str) -> bool:
    path = PurePosixPath(place)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        return read_rows(path, largest=_LARGEST)
    except ValueError as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error


def _volumes(path: Path, labels: LabelTable) -> Iterable[dict[str, Any]]:
    rows = {row.get("name", ""): row for row in _rows(path)}
    wanted = {label.name: str(label.index) for label in labels.foreground}
    if labels.intracranial or INTRACRANIAL in rows:
        wanted[INTRACRANIAL] = "n/a"
    missing = [name for name in wanted if name not in rows]
    if missing:
        raise ValueError(f"{path.name} has no row for {missing[0]}")
    for name, row in rows.items():
        if row.get("index") != wanted.get(name):
            why = f"holds {name}, no such label" if name else "has a row without a label name"
            raise ValueError(f"{path.name} {why}")
        yield {
            "index": None if row["index"] == "n/a" else int(row["index"]),
            "name": name,
            "voxels": int(_number(path, row, "voxels", whole=True)),
            "volume_mL": _number(path, row, "volume_mL"),
            **{
                column: None
                if row[column] == "n/a"
                else _number(path, row, column, whole=column.endswith("voxels"))
                for column in SIDE_COLUMNS
                if column in row
            },
        }


def _lesions(path: Path, labels: LabelTable) -> Iterable[dict[str, Any]]:
    texts = {"place": {*labels.by_name}, "hemisphere": {*HEMISPHERES.values()}}
    for row in _rows(path):
        if missing := [column for column in LESION_COLUMNS if column not in row]:
            raise ValueError(f"{path.name} has no column {missing[0]}")
        for column, known in texts.items():
            if row[column] not in {*known, "n/a"}:
                raise ValueError(f"{column} in {path.name} is '{row[column]}', no such {column}")
        yield {
            column: None
            if row[column] == "n/a"
            else row[column]
            if column in texts
            else _number(path, row, column, whole=column in ("number", "voxels"))
            for column in LESION_COLUMNS
        }


def _quality(path: Path, *, recorded: bool) -> dict[str, float]:
    if not recorded and not path.exists():
        return {}
    rows = _rows(path)
    if not rows:
        raise ValueError(f"{path.name} has no row of values")
    known = quality_dictionary(tuple(rows[0]))
    return {
        name: _number(path, rows[0], name)
        for name, value in rows[0].items()
        if name in known and name not in ("flag", "reasons") and value != "n/a"
    }


def _number(path: Path, row: Mapping[str, str], column: str, *, whole: bool = False) -> float:
    """Return a number of a table, finite and with a decimal point."""
    text = row.get(column, "")
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        kind = "whole number" if whole else "number"
        raise ValueError(f"{column} in {path.name} is '{text}', not a {kind}")
    return value
