"""Label maps for synthesis, what their values mean, and the properties of each tissue.

Label maps name their structures in a source table (`data/labels/source_*.tsv`): what to paint
(`tissue`) and what a network should answer (`target`). A target such as `background|Skull` says
that the map does not tell the two apart there; the training loss then accepts either.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from siam_bids.errors import LabelError
from siam_bids.image.grid import Grid, Reorientation
from siam_bids.image.labels import siam_labels
from siam_bids.support.package_data import resource
from siam_bids.support.tsv import read_rows, some

CONTRASTS = ("T1w", "T2w", "FLAIR", "PDw", "CT")
"""Contrasts with prior mean intensities in `data/labels/synthesis_tissues.tsv`."""

SOURCES = ("synthseg", "siam")
"""Kinds of label maps whose tables are shipped."""

_ENCLOSED_AIR, _AIRWAY, _DURA = 1000, 1001, 1002
_LEFT_CORTEX, _RIGHT_CORTEX, _CSF, _BONE = 3, 42, 24, (515, 516)
_CEREBELLUM = (7, 8, 46, 47)


@dataclass(frozen=True)
class Tissues:
    """Tissues for synthesis: names, families of similar tissues, prior means per contrast."""

    names: tuple[str, ...]
    family: tuple[str, ...]
    priors: dict[str, npt.NDArray[np.float64]]
    second: npt.NDArray[np.uint8]
    """For each tissue the one that takes patches of it (itself where none does)."""


@lru_cache(maxsize=1)
def tissues() -> Tissues:
    """Read the table of tissues for synthesis."""
    rows = read_rows(resource("data", "labels", "synthesis_tissues.tsv"))
    names = tuple(row["tissue"] for row in rows)
    return Tissues(
        names=names,
        family=tuple(row["family"] for row in rows),
        priors={kind: np.array([float(row[kind]) for row in rows]) for kind in CONTRASTS},
        second=np.array([names.index(row["second"] or row["tissue"]) for row in rows], np.uint8),
    )


@dataclass(frozen=True)
class SourceTable:
    """How the values of a kind of label map are synthesised and learnt.

    Attributes
    ----------
    values
        The map's own values, one per code.
    tissue
        Index into `tissues()` per code.
    target
        Per code the accepted classes: indices of SIAM's labels, one or several.
    ignored
        Values without tissue of their own: their voxels take the nearest proper value.
    """

    values: tuple[int, ...]
    tissue: npt.NDArray[np.uint8]
    target: tuple[tuple[int, ...], ...]
    ignored: tuple[int, ...]

    @classmethod
    def load(cls, path: Path) -> SourceTable:
        """Read a table with the columns value, name, tissue, target."""
        by_name = siam_labels().by_name
        values, tissue, target, ignored = [], [], [], []
        for row in read_rows(path):
            if row["target"] == "nearest":
                ignored.append(int(row["value"]))
                continue
            try:
                tissue.append(tissues().names.index(row["tissue"]))
                target.append(tuple(by_name[name].index for name in row["target"].split("|")))
            except (KeyError, ValueError) as error:
                raise LabelError(
                    f"{path.name}: the row of value {row['value']} names an unknown tissue "
                    f"or target ({row['tissue']}, {row['target']})."
                ) from error
            values.append(int(row["value"]))
        if not target or target[0] != (0,):
            raise LabelError(f"{path.name} does not begin with the background.")
        return cls(tuple(values), np.array(tissue, np.uint8), tuple(target), tuple(ignored))

    def codes_of(self, *classes: str) -> npt.NDArray[np.bool_]:
        """Mark the codes that stand for one of these classes and for nothing else."""
        wanted = {(siam_labels().by_name[name].index,) for name in classes}
        return np.array([target in wanted for target in self.target])


def source_table(source: str) -> SourceTable:
    """Load a source table.

    Parameters
    ----------
    source
        `synthseg` or `siam`, which are shipped; or the path of a table of your own, with the
        columns value, name, tissue, target; or of a BIDS label table (index, name) with SIAM's
        names as names or abbreviations, as siam-bids writes it.

    Raises
    ------
    LabelError
        The file is missing, or has neither set of columns, or names something unknown.
    """
    shipped = {name: resource("data", "labels", f"source_{name}.tsv") for name in SOURCES}
    path = shipped.get(source, Path(source))
    if not path.is_file():
        raise LabelError(f"There is no label table {source}.", f"Shipped: {', '.join(SOURCES)}.")
    try:
        return _read_table(path, SourceTable.load(shipped["siam"]))
    except (ValueError, KeyError, AttributeError, TypeError, csv.Error) as error:
        raise LabelError(
            f"{path} cannot be read as a label table: {error}.", "Write tab-separated UTF-8."
        ) from error


def _read_table(path: Path, siam: SourceTable) -> SourceTable:
    columns = path.read_text(encoding="utf-8").partition("\n")[0].strip().split("\t")
    if {"value", "tissue", "target"} <= set(columns):
        return SourceTable.load(path)
    if not {"index", "name"} <= set(columns):
        raise LabelError(
            f"{path} has the columns {some(columns)}.",
            "Needed: value, name, tissue, target; or index, name.",
        )
    known = set(siam_labels().by_name)
    rows = {
        name if (name := row.get("abbreviation")) in known else row["name"]: int(row["index"])
        for row in read_rows(path)
    }
    unknown = sorted(set(rows) - known)
    if unknown:
        raise LabelError(
            f"{path} names {', '.join(unknown[:5])}, which SIAM does not know.",
            "Write a table with the columns value, name, tissue, target.",
        )
    names = [label.name for label in siam_labels() if label.name in rows]
    codes = [siam_labels().by_name[name].index for name in names] + [len(siam_labels())]
    return SourceTable(
        values=(*(rows[name] for name in names), siam.values[-1]),
        tissue=siam.tissue[codes],
        target=tuple(siam.target[code] for code in codes),
        ignored=(),
    )


@dataclass(frozen=True)
class Anatomy:
    """A label map of a head, prepared for synthesis.

    Attributes
    ----------
    codes
        (I, J, K) uint8 in RAS+ order, rows of `table`; the outermost voxels are background.
    voxel_size
        Edge lengths in mm.
    table
        What the codes mean.
    """

    codes: npt.NDArray[np.uint8]
    voxel_size: tuple[float, float, float]
    table: SourceTable


def prepare_anatomy(
    labels: npt.NDArray[np.int32], grid: Grid, table: SourceTable, where: str = "label map"
) -> Anatomy:
    """Reorient a label map to RAS+, crop it to the head and add labels from geometry.

    Values marked `nearest` take the nearest proper label. Where the table has rows for them, air
    enclosed by the head, airway openings, and the places of dura (CSF within 1.5 mm of bone,
    and the midplanes between the hemispheres and above the cerebellum) get values of their own.

    Raises
    ------
    LabelError
        The map holds a value that the table lacks.
    """
    turn = Reorientation.to_ras(grid)
    data = turn.apply(labels)
    unknown = sorted(set(np.unique(data).tolist()) - set(table.values) - set(table.ignored))
    if unknown:
        raise LabelError(f"{where} holds values {unknown[:5]} that are not in its source table.")
    bounds = ndimage.find_objects((data != 0).astype(np.uint8))[0]
    data = np.pad(data[bounds], 1)
    data = _fill_nearest(data, table.ignored)
    size = turn.target.voxel_size
    if _ENCLOSED_AIR in table.values:
        data = _mark_air(data, size)
    if _DURA in table.values:
        data = _mark_dura(data, size)
    lookup = np.zeros(max(table.values) + 1, np.uint8)
    lookup[list(table.values)] = np.arange(len(table.values), dtype=np.uint8)
    return Anatomy(np.ascontiguousarray(lookup[data]), size, table)


def _fill_nearest(data: npt.NDArray[np.int32], values: tuple[int, ...]) -> npt.NDArray[np.int32]:
    holes = np.isin(data, values)
    if not holes.any():
        return data
    nearest = ndimage.distance_transform_edt(
        holes | (data == 0), return_distances=False, return_indices=True
    )
    filled: npt.NDArray[np.int32] = np.where(holes, data[tuple(nearest)], data)
    return filled


def _mark_air(
    data: npt.NDArray[np.int32], size: tuple[float, float, float]
) -> npt.NDArray[np.int32]:
    head = data != 0
    enclosed = ndimage.binary_fill_holes(head) & ~head
    pad = 12
    outside = ndimage.distance_transform_edt(np.pad(~head, pad, constant_values=True), size)
    closed = ndimage.distance_transform_edt(outside < 8.0, size) > 8.0
    airway = closed[pad:-pad, pad:-pad, pad:-pad] & ~head & ~enclosed
    return np.where(enclosed, _ENCLOSED_AIR, np.where(airway, _AIRWAY, data)).astype(np.int32)


def _mark_dura(
    data: npt.NDArray[np.int32], size: tuple[float, float, float]
) -> npt.NDArray[np.int32]:
    def distance(values: tuple[int, ...]) -> npt.NDArray[np.float64]:
        far: npt.NDArray[np.float64] = ndimage.distance_transform_edt(~np.isin(data, values), size)
        return far

    left, right = distance((_LEFT_CORTEX,)), distance((_RIGHT_CORTEX,))
    below = distance(_CEREBELLUM)
    cerebrum = np.minimum(left, right)

    def midway(one: npt.NDArray[np.float64], two: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        return (abs(one - two) <= 0.75) & (np.maximum(one, two) < 6.0)

    place = (distance(_BONE) <= 1.5) | midway(left, right) | midway(cerebrum, below)
    return np.where((data == _CSF) & place, _DURA, data).astype(np.int32)
