"""Tables over all scans: long and wide volumes, head-size correction, change between sessions."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from siam_bids.measures.regression import Statistics
from siam_bids.measures.volumes import DICTIONARY, INTRACRANIAL
from siam_bids.support.tsv import as_numbers_or_words

logger = logging.getLogger(__name__)

KEYS = ("participant_id", "session_id", "contrast", "scan")
"""What names one scan, first in every table."""

ENTITIES = (
    "subject", "session", "sample", "acquisition", "ceagent", "reconstruction", "direction", "run",
    "modality", "echo", "flip", "inv", "mt", "part", "chunk", "desc", "suffix", "datatype",
    "extension",
)  # fmt: skip
"""What pybids reads from file names; a dictionary with such a key would contradict its own name."""

PERCENT = "percent_TIV"
ADJUSTED = "adjusted_mL"
_FEWEST_FOR_SLOPE = 10
_COVARIATE = "participants.tsv or sessions.tsv"

_DESCRIPTIONS: dict[str, dict[str, Any]] = {
    "participant_id": {"Description": "Participant."},
    "session_id": {"Description": "Session; n/a where the dataset has none."},
    "scan": {"Description": "Name of the source image without extension."},
    "acq_time": {"Description": "When the scan was acquired, from scans.tsv or sessions.tsv."},
    "tissue": DICTIONARY["name"],
    "index": DICTIONARY["index"],
    "voxels": DICTIONARY["voxels"],
    "volume_mL": DICTIONARY["volume_mL"],
    PERCENT: {
        "Description": f"Volume in percent of the scan's {INTRACRANIAL} (proportion method).",
        "Units": "%",
    },
    ADJUSTED: {
        "Description": f"Volume at the mean {INTRACRANIAL} of the contrast: volume - b ("
        f"{INTRACRANIAL} - mean {INTRACRANIAL}), b the least-squares slope over the scans of the "
        f"contrast (residual method, Buckner et al., NeuroImage 2004); n/a below "
        f"{_FEWEST_FOR_SLOPE} scans.",
        "Units": "mL",
    },
    "flag": {"Description": "Quality of the scan, see group_qc.tsv."},
    "rating": {"Description": "What a person said of the scan: pass, warn or fail."},
    "rating_note": {"Description": "The person's note."},
    "session_from": {"Description": "Earlier session."},
    "session_to": {"Description": "Later session."},
    "volume_from_mL": {"Description": "Volume in the earlier session.", "Units": "mL"},
    "volume_to_mL": {"Description": "Volume in the later session.", "Units": "mL"},
    "change_mL": {"Description": "Later minus earlier volume.", "Units": "mL"},
    "change_percent": {"Description": "Change in percent of the earlier volume.", "Units": "%"},
    "years": {
        "Description": "Time between the sessions by acq_time, else by age; n/a if unknown.",
        "Units": "year",
    },
    "change_mL_per_year": {"Description": "Change per year.", "Units": "mL/year"},
    "change_percent_per_year": {"Description": "Change per year.", "Units": "%/year"},
    "contrast": {"Description": "BIDS suffix of the source image: T1w, FLAIR, ..."},
    "measure": {"Description": "Tissue or quality metric."},
    "value": {"Description": "The scan's value, in the unit of the measure."},
    "median": {"Description": "Median of the contrast."},
    "expected": {
        "Description": "What the robust fit of --adjust-for gives for the scan; n/a without."
    },
    "robust_z": {
        "Description": "(value - median) / (1.4826 MAD) within the contrast; after adjustment, of "
        "value - expected; an outlier if beyond +-3.5 (Iglewicz and Hoaglin, 1993). Where MAD is 0 "
        "the mean absolute deviation times 1.2533 stands for 1.4826 MAD.",
        "Units": "1",
    },
    "reason": {"Description": "The finding in words."},
}


@dataclass(frozen=True, kw_only=True)
class GroupTables:
    """All that is known of all scans; every table but `tidy` has one row per scan or finding.

    Attributes
    ----------
    tidy, wide
        Volumes, long and wide, with all covariates.
    quality
        Metrics, flag and reasons.
    tissues
        Names of the columns of `wide` that hold volumes inside the skull, and TIV.
    covariates
        Names of the columns from participants.tsv and sessions.tsv.
    """

    tidy: pd.DataFrame
    wide: pd.DataFrame
    quality: pd.DataFrame
    outliers: pd.DataFrame
    changes: pd.DataFrame
    statistics: Statistics
    tissues: tuple[str, ...]
    covariates: tuple[str, ...]


def reserved(tissues: Collection[str]) -> set[str]:
    """Return the names of columns that are ours, whatever the tables of a dataset hold."""
    shares = {f"{name}_{PERCENT}" for name in tissues}
    return {*_DESCRIPTIONS, *tissues, *shares, INTRACRANIAL, "ICV", "flag"} - {"acq_time"}


def tidy_volumes(
    keys: pd.DataFrame, volumes: Sequence[Sequence[Mapping[str, Any]]]
) -> pd.DataFrame:
    """Stack the volume tables of all scans, one row per scan and tissue.

    Parameters
    ----------
    keys
        One row per scan with at least `KEYS`.
    volumes
        Per scan the rows of its volume table: index, name, voxels, volume_mL.

    Returns
    -------
    Columns of `keys`, then tissue, index, voxels, volume_mL and the head-size corrected volumes.
    """
    rows = [row for table in volumes for row in table]
    tidy = keys.loc[np.repeat(np.arange(len(keys)), [len(table) for table in volumes])]
    tidy = tidy.reset_index(drop=True)
    tidy["tissue"] = pd.Series([row["name"] for row in rows], dtype="str")
    tidy["index"] = pd.array([row["index"] for row in rows], dtype="Int64")
    tidy["voxels"] = np.array([row["voxels"] for row in rows], dtype=np.int64)
    tidy["volume_mL"] = np.array([row["volume_mL"] for row in rows], dtype=np.float64)
    return _with_head_size(tidy)


def _with_head_size(tidy: pd.DataFrame) -> pd.DataFrame:
    total = tidy.loc[tidy["tissue"] == INTRACRANIAL].set_index("scan")["volume_mL"]
    own = tidy["scan"].map(total).to_numpy(dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = 100 * tidy["volume_mL"].to_numpy() / own
    tidy[PERCENT] = np.where(own > 0, share, np.nan)
    tidy[ADJUSTED] = np.nan
    for _, part in tidy.groupby(["contrast", "tissue"], sort=False):
        heads = own[part.index]
        spread = heads - heads.mean()
        if len(part) >= _FEWEST_FOR_SLOPE and (spread**2).sum() > 0:
            volume = part["volume_mL"].to_numpy()
            slope = (spread * volume).sum() / (spread**2).sum()
            tidy.loc[part.index, ADJUSTED] = volume - slope * spread
    return tidy


def wide_volumes(tidy: pd.DataFrame, keys: pd.DataFrame) -> pd.DataFrame:
    """Turn the long table to one row per scan: `GM` in mL, `GM_percent_TIV` in percent."""
    order = list(dict.fromkeys(tidy["tissue"]))
    known = {name: part.set_index("scan") for name, part in tidy.groupby("tissue", sort=False)}
    both = pd.DataFrame(
        {name: known[name]["volume_mL"] for name in order}
        | {f"{name}_{PERCENT}": known[name][PERCENT] for name in order if name != INTRACRANIAL},
    )
    return keys.merge(both, left_on="scan", right_index=True, validate="one_to_one")


def changes(wide: pd.DataFrame, tissues: Sequence[str]) -> pd.DataFrame:
    """Compare each later session of a participant with the first one, scan by like scan.

    Sessions are ordered by `acq_time`, else by `age`, else by label; scans are alike if all of
    their name but the session agrees.

    Returns
    -------
    One row per pair and tissue: mL, percent, and both per year where the time between is known.
    """
    columns = (
        "participant_id", "contrast", "scan", "session_from", "session_to", "years", "tissue",
        "volume_from_mL", "volume_to_mL", "change_mL", "change_percent", "change_mL_per_year",
        "change_percent_per_year",
    )  # fmt: skip
    later = wide.loc[wide["session_id"].notna()].copy()
    later["_when"] = _years(later)
    later["_alike"] = later["scan"].str.replace(r"_ses-[A-Za-z0-9]+", "", regex=True)
    later = later.sort_values(["_alike", "_when", "session_id"], kind="stable")
    first = later.drop_duplicates("_alike").set_index("_alike")
    later = later.loc[later["_alike"].duplicated()]
    if later.empty:
        return pd.DataFrame({name: pd.Series(dtype=object) for name in columns})
    before = first.loc[later["_alike"]].reset_index()
    later = later.reset_index(drop=True)
    years = (later["_when"] - before["_when"]).where(lambda gap: gap > 0)
    parts = []
    for tissue in tissues:
        start, end = before[tissue].astype(float), later[tissue].astype(float)
        change = end - start
        percent = 100 * change / start.where(start > 0)
        parts.append(
            pd.DataFrame(
                {
                    "participant_id": later["participant_id"],
                    "contrast": later["contrast"],
                    "scan": later["scan"],
                    "session_from": before["session_id"],
                    "session_to": later["session_id"],
                    "years": years,
                    "tissue": tissue,
                    "volume_from_mL": start,
                    "volume_to_mL": end,
                    "change_mL": change,
                    "change_percent": percent,
                    "change_mL_per_year": change / years,
                    "change_percent_per_year": percent / years,
                }
            )
        )
    table = pd.concat(parts, ignore_index=True)[list(columns)]
    return table.sort_values(["scan"], kind="stable", ignore_index=True)


def _years(table: pd.DataFrame) -> pd.Series[float]:
    """Return when each scan was made, in years: by `acq_time` for all of a person, else `age`."""
    missing = pd.Series(np.nan, index=table.index)
    date, age = missing, missing
    if "acq_time" in table:
        when = pd.to_datetime(table["acq_time"], errors="coerce", format="ISO8601", utc=True)
        # Differences only: BIDS shifts dates to before 1925 for privacy.
        date = (when - pd.Timestamp("1900-01-01", tz="UTC")).dt.total_seconds() / 31557600.0
    if "age" in table:
        age = pd.to_numeric(table["age"], errors="coerce")
    dated = date.groupby(table["participant_id"]).transform(lambda own: own.notna().all())
    return date.where(dated.astype(bool), age)


def dictionary(
    columns: Sequence[str],
    tissues: Mapping[str, str],
    known: Mapping[str, Any],
) -> dict[str, Any]:
    """Describe columns as a BIDS data dictionary.

    Parameters
    ----------
    columns
        Of the table.
    tissues
        Long names of tissues by their short ones.
    known
        Descriptions from elsewhere, for example participants.json; ours win.
    """
    described: dict[str, Any] = {}
    for column in columns:
        tissue = column.removesuffix(f"_{PERCENT}")
        if column in tissues:
            described[column] = {"Description": f"Volume: {tissues[column]}.", "Units": "mL"}
        elif tissue in tissues:
            described[column] = {**_DESCRIPTIONS[PERCENT], "LongName": tissues[tissue]}
        elif column in _DESCRIPTIONS:
            described[column] = _DESCRIPTIONS[column]
        else:
            about = known.get(column)
            told = {"Description": f"{column} of the participant or session."} | (
                dict(about) if isinstance(about, Mapping) else {}
            )
            described[column] = told | {"Source": _COVARIATE}
    return described


def covariates_of(described: Mapping[str, Any]) -> list[str]:
    """Return the columns that a dictionary of `dictionary` says are covariates, and `acq_time`."""
    return [
        name
        for name, about in described.items()
        if name == "acq_time" or (isinstance(about, Mapping) and about.get("Source") == _COVARIATE)
    ]


def join_covariates(
    keys: pd.DataFrame, columns: Mapping[str, Sequence[str | None]], taken: Collection[str]
) -> pd.DataFrame:
    """Add covariates to the scans, as numbers or words, with a warning for each oddity.

    Parameters
    ----------
    keys
        One row per scan with at least `KEYS`.
    columns
        Text of each covariate by scan, None where there is none. Names that are `taken` by ours or
        are `ENTITIES` get the prefix `participants_`.
    """
    ours = {*taken, *ENTITIES, *keys}
    joined = keys.copy()
    for name, cells in columns.items():
        own = name
        while own in ours or own in joined:
            own = f"participants_{own}"
        joined[own] = _covariate(name, cells, keys["scan"].tolist())
    return joined


def _covariate(name: str, cells: Sequence[str | None], scans: Sequence[str]) -> pd.Series[Any]:
    if name == "acq_time":
        return pd.Series(cells, dtype="str")
    column = as_numbers_or_words(cells, scans)
    for remark in column.remarks:
        logger.warning("%s: %s.", name, remark)
    if column.words:
        return pd.Series(column.values, dtype="str")
    numbers = pd.Series(column.values, dtype=np.float64)
    whole = len(numbers) > 0 and numbers.notna().all() and (numbers % 1 == 0).all()
    return numbers.astype(np.int64) if whole else numbers


def missing_values(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Count, per contrast, the scans without a value of each column that lacks any."""
    gaps = table[list(columns)].isna().groupby(table["contrast"]).sum().T
    return gaps.loc[gaps.sum(axis=1) > 0]


def numeric(table: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """Return those of `columns` that hold numbers and not one value only."""
    return [
        name
        for name in columns
        if pd.api.types.is_numeric_dtype(table[name]) and table[name].max() > table[name].min()
    ]
