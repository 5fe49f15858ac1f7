"""Writing images, masks and tables with their sidecars.

What writes outputs of a scan returns `Written`, for the sidecar that declares the scan done.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd

from siam_bids.bids.names import finished_scans, sidecar
from siam_bids.bids.ownership import PIPELINE
from siam_bids.bids.records import WRITTEN, read_record
from siam_bids.image.grid import Grid, Segmentation
from siam_bids.image.labels import LabelTable
from siam_bids.measures.quality import dictionary as quality_dictionary, judge
from siam_bids.measures.volumes import (
    COMBINED,
    COMBINED_DICTIONARY,
    dictionary as volumes_dictionary,
)
from siam_bids.support.atomic_files import (
    Batch,
    atomic,
    read_json,
    sha256,
    write_json,
    write_text,
)

Written = dict[Path, str]
"""Files with the SHA-256 of what was written, whatever became of them since."""


def save_segmentation(path: Path, segmentation: Segmentation) -> Written:
    """Write a label map as uint8 NIfTI on exactly its grid."""
    return _save(path, segmentation.data, segmentation.grid)


def save_values(path: Path, values: npt.NDArray[np.unsignedinteger[Any]], grid: Grid) -> Written:
    """Write a label map (I, J, K) as NIfTI of its own type."""
    return _save(path, values, grid)


def save_mask(path: Path, mask: npt.NDArray[np.bool_], grid: Grid) -> Written:
    """Write a mask (I, J, K) as uint8 NIfTI, 1 inside."""
    return _save(path, mask.astype(np.uint8), grid)


def save_probability(path: Path, probability: npt.NDArray[np.float32], grid: Grid) -> Written:
    """Write probabilities (I, J, K) in [0, 1] as float32 NIfTI."""
    return _save(path, probability, grid)


def save_image(path: Path, data: npt.NDArray[np.float32], grid: Grid) -> Written:
    """Write intensities (I, J, K) as float32 NIfTI."""
    return _save(path, data, grid)


def save_text(path: Path, text: str) -> Written:
    """Write text."""
    return {path: write_text(path, text)}


def save_picture(path: Path, content: bytes) -> Written:
    """Write an encoded picture as it is."""
    with atomic(path) as scratch:
        scratch.write_bytes(content)
    return {path: hashlib.sha256(content).hexdigest()}


def save_sidecar(path: Path, about: Mapping[str, Any]) -> Written:
    """Write the JSON beside an image or table."""
    return {sidecar(path): write_json(sidecar(path), about)}


def save_preview(path: Path, data: npt.NDArray[np.uint8], grid: Grid) -> None:
    """Write a coarse copy (I, J, K) as uint8 NIfTI, as small as gzip makes it."""
    image = nib.Nifti1Image(data, grid.affine)
    with atomic(path) as scratch:
        scratch.write_bytes(gzip.compress(image.to_bytes(), mtime=0))


def nifti_image(data: npt.NDArray[Any], grid: Grid) -> nib.Nifti1Image:
    """Return data (I, J, K) as a NIfTI image on its grid.

    Its header places it as the one that the grid was read from, if any, in sform and qform.
    """
    image = nib.Nifti1Image(data, grid.affine, dtype=data.dtype)
    if grid.forms:
        grid.forms.write_to(image.header)
        return image
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, code=1)
    directions = grid.affine[:3, :3] / np.array(grid.voxel_size)
    if np.allclose(directions.T @ directions, np.eye(3), atol=1e-4):  # a qform holds no shear
        image.set_qform(grid.affine, code=1)
    return image


def _save(path: Path, data: npt.NDArray[Any], grid: Grid) -> Written:
    with atomic(path) as scratch:
        nib.save(nifti_image(data, grid), scratch)
        return {path: sha256(scratch)}


def save_volumes(path: Path, table: pd.DataFrame, labels: LabelTable) -> Written:
    """Write a volume table as TSV with its data dictionary beside it."""
    described = volumes_dictionary(labels)
    if COMBINED in table:
        described = {**described, **COMBINED_DICTIONARY}
    return save_described(path, table, described)


def save_described(path: Path, table: pd.DataFrame, described: Mapping[str, Any]) -> Written:
    """Write a table of a scan as TSV with its data dictionary beside it."""
    return {path: write_text(path, _as_tsv(table)), **save_sidecar(path, described)}


def _as_tsv(table: pd.DataFrame) -> str:
    """Return a table in BIDS format: whole numbers without a point, others with 8 digits."""
    shown = table.copy()
    for name, column in table.items():
        if pd.api.types.is_float_dtype(column):
            known = column.dropna()
            if (np.abs(known) < 2**53).all() and (known % 1 == 0).all():
                shown[name] = column.astype("Int64")
        elif not pd.api.types.is_numeric_dtype(column):
            shown[name] = column.map(_one_line)
    text: str = shown.to_csv(
        sep="\t", index=False, na_rep="n/a", float_format="%.8g", lineterminator="\n"
    )
    return text


def _one_line(cell: object) -> object:
    """Return text without characters that would end a cell or a row."""
    return " ".join(re.split(r"[\t\r\n]+", cell)) if isinstance(cell, str) else cell


def save_quality(path: Path, values: Mapping[str, float]) -> Written:
    """Write one scan's metrics as a TSV of one row, its flag and reasons last, and a dictionary."""
    flag, reasons = judge(values)
    table = pd.DataFrame([{**values, "flag": flag, "reasons": "; ".join(reasons) or None}])
    meaning = quality_dictionary(tuple(map(str, table)))
    return {path: write_text(path, _as_tsv(table)), **save_sidecar(path, meaning)}


def save_table(
    batch: Batch, root: Path, name: str, table: pd.DataFrame, described: Mapping[str, Any]
) -> None:
    """Write a table of all scans as `NAME.tsv` with its dictionary `NAME.json`, and as Parquet."""
    path = root / f"{name}.tsv"
    batch.write_text(path, _as_tsv(table))
    batch.write_json(sidecar(path), described)
    with batch.scratch(path.with_suffix(".parquet")).open("wb") as stream:
        table.to_parquet(stream, index=False)  # a path need not be UTF-8


def save_phenotype(
    batch: Batch, root: Path, kinds: Mapping[str, tuple[pd.DataFrame, Mapping[str, Any]]]
) -> None:
    """Write the wide volumes where BIDS keeps measurements, one file per kind of scan.

    Parameters
    ----------
    kinds
        What follows the participant in the names of the scans, `ses-a_T1w`, to their table (one
        row per participant) and its dictionary.
    """
    folder = root / "phenotype"
    for path in folder.glob("siam_*.json"):
        kind = path.stem.removeprefix("siam_")
        if kind not in kinds and read_json(path).get("MeasurementToolMetadata") == _tool(kind):
            batch.remove(path)
            batch.remove(path.with_suffix(".tsv"))
    for kind, (table, described) in kinds.items():
        path = folder / f"siam_{kind}.tsv"
        batch.write_text(path, _as_tsv(table))
        batch.write_json(sidecar(path), {"MeasurementToolMetadata": _tool(kind), **described})


def _tool(kind: str) -> dict[str, str]:
    return {"Description": f"Volumes of head tissues on {kind} images by {PIPELINE}."}


def remove_table(batch: Batch, root: Path, name: str) -> None:
    """Remove what `save_table` wrote earlier and what no longer holds."""
    for ending in ("tsv", "json", "parquet"):
        batch.remove(root / f"{name}.{ending}")


RESOURCES = "logs/resources.tsv"


def save_resources(batch: Batch, root: Path) -> bool:
    """Write `RESOURCES`: what each scan took, to size jobs with. Return whether any is known."""
    rows = []
    for names in finished_scans(root):
        past = read_record(names.record)
        if {"seconds", "peak_memory_MB"} <= {*past}:
            stages = {f"{stage}_s": seconds for stage, seconds in past.get("stages", {}).items()}
            plain = {key: value for key, value in past.items() if key not in ("stages", WRITTEN)}
            rows.append({"scan": names.name, **plain, **stages})
    if rows:
        text = pd.DataFrame(rows).to_csv(sep="\t", index=False, na_rep="n/a", lineterminator="\n")
        batch.write_text(root / RESOURCES, text)
    return bool(rows)
