"""Tables over all scans: long and wide volumes, head-size correction, change between sessions."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from siam_bids.measures.change_noise import (
    BAND,
    CONTRAST,
    LONGEST_EDGE,
    MODEL,
    noise_between,
)
from siam_bids.measures.harmonization import HARMONIZED, NO_EFFECTS
from siam_bids.measures.inclusion import SHARED
from siam_bids.measures.outliers import LIMIT as OUTLIER_LIMIT
from siam_bids.measures.regression import Statistics
from siam_bids.measures.session_times import as_times, session_order
from siam_bids.measures.volumes import (
    COMBINED,
    COMBINED_DICTIONARY,
    DICTIONARY,
    INTRACRANIAL,
    SIDE_COLUMNS,
    SIDES_DICTIONARY,
)
from siam_bids.support.tsv import as_numbers_or_words, natural, some

logger = logging.getLogger(__name__)

ENTITIES = (
    "subject", "session", "sample", "acquisition", "ceagent", "reconstruction", "direction", "run",
    "modality", "echo", "flip", "inv", "mt", "part", "chunk", "desc", "suffix", "datatype",
    "extension",
)  # fmt: skip
"""What pybids reads from file names; a dictionary with such a key would contradict its own name."""

ENTITY_COLUMNS = (
    *(f"{entity}_id" for entity in SHARED), "run_id", "chunk_id", "task_id",
)  # fmt: skip
"""Columns of the entities of source images, besides participant_id and session_id."""

PERCENT = "percent_TIV"
ADJUSTED = "adjusted_mL"
ASYMMETRY = "asymmetry"
_MEASURES = (PERCENT, ADJUSTED, HARMONIZED, *SIDE_COLUMNS, ASYMMETRY, "voxels")
"""What follows the name of a tissue in the columns of the wide table."""

MIXED = "mixed"
"""Of two scans one is combined with others, the other is not, or otherwise."""

_FEWEST_FOR_SLOPE = 10
_SHORTEST = 30
"""Days between sessions from which change per year is given."""
_RATE = f"Change per year; n/a where sessions are less than {_SHORTEST} days apart."
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
    **SIDES_DICTIONARY,
    ASYMMETRY: {
        "Description": "Asymmetry index of the tissue: (left - right) / ((left + right) / 2); "
        "positive where the left is larger; n/a where the hemispheres cannot be told.",
        "Units": "1",
    },
    PERCENT: {
        "Description": f"Volume in percent of the scan's {INTRACRANIAL} (proportion method).",
        "Units": "%",
    },
    ADJUSTED: {
        "Description": f"Volume at the mean {INTRACRANIAL} of the protocol: volume - b ("
        f"{INTRACRANIAL} - mean {INTRACRANIAL}), b the least-squares slope over the included scans "
        f"of the protocol (residual method, Buckner et al., NeuroImage 2004); n/a below "
        f"{_FEWEST_FOR_SLOPE} scans.",
        "Units": "mL",
    },
    HARMONIZED: {
        "Description": "Volume without what the sites of --harmonize add (ComBat: Johnson et al., "
        "Biostatistics 2007; Fortin et al., NeuroImage 2018); age, sex and TIV are preserved.",
        "Units": "mL",
    },
    "flag": {"Description": "Quality flag of the scan, see group_qc.tsv."},
    "rating": {
        "Description": "Rating of the scan by people: pass, warn or fail. Of several raters the "
        "middle one in this order, of two middle ones the worse."
    },
    "rating_note": {"Description": "Notes of the people who rated it."},
    "rating_tags": {"Description": "What any of them found, for example motion."},
    "raters": {"Description": "How many people rated it."},
    "session_from": {"Description": "Earlier session."},
    "session_to": {"Description": "Later session."},
    "volume_from_mL": {"Description": "Volume in the earlier session.", "Units": "mL"},
    "volume_to_mL": {"Description": "Volume in the later session.", "Units": "mL"},
    "change_mL": {"Description": "Later minus earlier volume.", "Units": "mL"},
    "change_percent": {"Description": "Change in percent of the earlier volume.", "Units": "%"},
    "years": {
        "Description": "Time between the sessions by acq_time, else by age; n/a if unknown, as "
        "from or to an age such as 89+.",
        "Units": "year",
    },
    "change_mL_per_year": {"Description": _RATE, "Units": "mL/year"},
    "change_percent_per_year": {"Description": _RATE, "Units": "%/year"},
    "noise_percent": {
        "Description": "Standard deviation of the error of the change between two simulated scans "
        f"of a head: {CONTRAST} with voxels up to {LONGEST_EDGE} mm, model {MODEL}; both scans "
        "segmented alone, or combined with each other by --combine sessions. n/a where it was not "
        "measured for such scans. Real scans add motion, distortion and the scanner: it is a lower "
        "bound.",
        "Units": "%",
    },
    "noise_percent_per_year": {
        "Description": "noise_percent divided by years, where change per year is given.",
        "Units": "%/year",
    },
    "within_noise": {
        "Description": f"Whether the change is within {BAND} noise_percent of none, as 95 % of the "
        "differences between scans of an unchanged head are. A larger change need not be real.",
        "Levels": {"yes": "it cannot be distinguished from no change", "no": "it is larger"},
    },
    "contrast": {"Description": "BIDS suffix of the source image: T1w, FLAIR, ..."},
    "protocol": {
        "Description": "Scans that are compared with each other: the contrast and the entities "
        "that participants share, or the columns of --group-by."
    },
    "included": {
        "Description": "Whether the scan counts in medians, adjustments and models.",
        "Levels": {"yes": "it counts", "no": "--exclude leaves it out"},
    },
    "excluded_because": {"Description": "The rule of --exclude that leaves the scan out."},
    "scans": {"Description": "Included scans of the protocol that have a value."},
    "measure": {"Description": "Tissue or quality metric."},
    "value": {"Description": "The scan's value, in the unit of the measure."},
    "median": {"Description": "Median of the included scans of the protocol."},
    "expected": {
        "Description": "Value that the robust fit of --adjust-for predicts for the scan; n/a "
        "without."
    },
    "robust_z": {
        "Description": "(value - median) / (1.4826 MAD) within the protocol; after adjustment, of "
        f"value - expected; an outlier if beyond +-{OUTLIER_LIMIT} (Iglewicz and Hoaglin, 1993). "
        "Where MAD is 0 the mean absolute deviation times 1.2533 stands for 1.4826 MAD.",
        "Units": "1",
    },
    "reason": {"Description": "The finding as a sentence."},
    **COMBINED_DICTIONARY,
}

_OF_PAIRS: dict[str, dict[str, Any]] = {
    "scan": {"Description": "Name of the later source image without extension."},
    "included": {
        "Description": "Whether the pair of scans counts in medians.",
        "Levels": {"yes": "it counts", "no": "--exclude leaves out one of the scans or both"},
    },
    "excluded_because": {
        "Description": "The rule of --exclude that leaves out a scan of the pair."
    },
    COMBINED: {
        **COMBINED_DICTIONARY[COMBINED],
        "Levels": COMBINED_DICTIONARY[COMBINED]["Levels"]
        | {MIXED: "the two scans were segmented differently, or with other partners"},
    },
}
"""What columns of `changes` mean otherwise than in tables of scans."""


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
    scanners
        Names of the columns of `quality` that distinguish scanners and sequences.
    site
        Name of the column of the sites or scanners, empty if unknown.
    harmonized
        The column of --harmonize, empty without.
    ratings
        Every rating of every rater, see `siam_bids.measures.ratings.read_ratings`.
    unusable
        What was left out of the files of ratings, in a sentence each.
    site_effects
        What --harmonize took away, empty without.
    excluded
        Scans that do not count, and why.
    years
        When the session of each scan was; NaN if that is not known.
    age_units
        Of `age`, empty if no table names them.
    """

    tidy: pd.DataFrame
    wide: pd.DataFrame
    quality: pd.DataFrame
    outliers: pd.DataFrame
    changes: pd.DataFrame
    statistics: Statistics
    tissues: tuple[str, ...]
    covariates: tuple[str, ...]
    scanners: tuple[str, ...] = ()
    site: str = ""
    harmonized: str = ""
    ratings: pd.DataFrame = field(default_factory=pd.DataFrame)
    unusable: tuple[str, ...] = ()
    site_effects: pd.DataFrame = field(default_factory=lambda: NO_EFFECTS)
    excluded: Mapping[str, str] = field(default_factory=dict)
    years: Mapping[str, float] = field(default_factory=dict)
    age_units: str = ""


def reserved(tissues: Collection[str]) -> set[str]:
    """Return the names of columns that are ours, whatever the tables of a dataset hold."""
    more = {f"{name}_{kind}" for name in tissues for kind in _MEASURES}
    ours = {*_DESCRIPTIONS, *ENTITY_COLUMNS, *tissues, *more, INTRACRANIAL, "ICV", "flag"}
    return ours - {"acq_time"}


def tidy_volumes(
    keys: pd.DataFrame, volumes: Sequence[Sequence[Mapping[str, Any]]]
) -> pd.DataFrame:
    """Stack the volume tables of all scans, one row per scan and tissue.

    Parameters
    ----------
    keys
        One row per scan with at least `outliers.KEYS`.
    volumes
        Per scan the rows of its volume table: index, name, voxels, volume_mL.

    Returns
    -------
    Columns of `keys`, then tissue, index, voxels, volume_mL and percent of TIV; where tissues have
    sides also theirs and the asymmetry index.
    """
    rows = [row for table in volumes for row in table]
    tidy = keys.loc[np.repeat(np.arange(len(keys)), [len(table) for table in volumes])]
    tidy = tidy.reset_index(drop=True)
    tidy["tissue"] = pd.Series([row["name"] for row in rows], dtype="str")
    tidy["index"] = pd.array([row["index"] for row in rows], dtype="Int64")
    tidy["voxels"] = np.array([row["voxels"] for row in rows], dtype=np.int64)
    tidy["volume_mL"] = np.array([row["volume_mL"] for row in rows], dtype=np.float64)
    own = _head_sizes(tidy)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = 100 * tidy["volume_mL"].to_numpy() / own
    tidy[PERCENT] = np.where(own > 0, share, np.nan)
    _add_sides(tidy, rows)
    return tidy


def _add_sides(tidy: pd.DataFrame, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add the columns of both hemispheres that volume tables have, and the asymmetry index."""
    there = {column for row in rows for column in row}
    for name in (column for column in SIDE_COLUMNS if column in there):
        cells = [row.get(name) for row in rows]
        whole = name.endswith("voxels")
        tidy[name] = pd.array(cells, dtype="Int64") if whole else np.array(cells, np.float64)
    if "left_mL" in tidy:
        left, right = tidy["left_mL"], tidy["right_mL"]
        tidy[ASYMMETRY] = (left - right) / ((left + right) / 2).where(lambda mean: mean > 0)


def _head_sizes(tidy: pd.DataFrame) -> npt.NDArray[np.float64]:
    total = tidy.loc[tidy["tissue"] == INTRACRANIAL].set_index("scan")["volume_mL"]
    return tidy["scan"].map(total).to_numpy(dtype=np.float64)


def head_size_adjusted(
    tidy: pd.DataFrame, excluded: Collection[str] = ()
) -> npt.NDArray[np.float64]:
    """Return volumes (mL) at the mean head size of their protocol, NaN below ten included scans.

    The residual method (Buckner et al., NeuroImage 2004): volume - b (TIV - mean TIV), with slope b
    and mean of the included scans.

    Parameters
    ----------
    tidy
        As `tidy_volumes` returns it, with the column protocol.
    excluded
        Scans that are adjusted as the others are, but do not count.
    """
    heads, volumes = _head_sizes(tidy), tidy["volume_mL"].to_numpy()
    counted = ~tidy["scan"].isin(list(excluded)).to_numpy() & np.isfinite(heads)
    adjusted = np.full(len(tidy), np.nan)
    places = pd.Series(np.arange(len(tidy)), index=tidy.index)
    for _, part in places.groupby([tidy["protocol"], tidy["tissue"]], sort=False):
        rows = part.to_numpy()
        own = rows[counted[rows]]
        if len(own) < _FEWEST_FOR_SLOPE:
            continue
        spread = heads[own] - heads[own].mean()
        if (spread**2).sum() > 0:
            slope = (spread * volumes[own]).sum() / (spread**2).sum()
            adjusted[rows] = volumes[rows] - slope * (heads[rows] - heads[own].mean())
    return adjusted


def wide_volumes(tidy: pd.DataFrame, keys: pd.DataFrame) -> pd.DataFrame:
    """Turn the long table to one row per scan.

    `GM` in mL, `GM_percent_TIV`, and where the long table has them `GM_adjusted_mL`, `GM_left_mL`,
    `GM_right_mL`, `GM_asymmetry` and the voxels of both sides; `GM_voxels`.
    """
    known = {name: part.set_index("scan") for name, part in tidy.groupby("tissue", sort=False)}
    columns = {name: own["volume_mL"] for name, own in known.items()}
    for column in (PERCENT, ADJUSTED, *SIDE_COLUMNS, ASYMMETRY, "voxels"):
        columns |= {
            f"{name!s}_{column}": own[column]
            for name, own in known.items()
            if column in own
            and (name != INTRACRANIAL or column == "voxels")
            and (column not in (*SIDE_COLUMNS, ASYMMETRY) or own[column].notna().any())
        }
    return keys.merge(
        pd.DataFrame(columns), left_on="scan", right_index=True, validate="one_to_one"
    )


def changes(
    wide: pd.DataFrame,
    tissues: Sequence[str],
    times: pd.DataFrame,
    noise: Mapping[str, str] | None = None,
    partners: Mapping[str, Sequence[str]] | None = None,
) -> pd.DataFrame:
    """Compare each later session of a participant with the first one, scan by like scan.

    Sessions are ordered by time, else by label; scans are alike if all of their name but the
    session agrees.

    Parameters
    ----------
    times
        Of the rows of `wide`, see `session_times`.
    noise
        Which noise holds for each scan, see `change_noise.noise_kind`.
    partners
        What each scan was combined with, see `ScanResult.partners`. Two scans are comparable if
        they have the same.

    Returns
    -------
    One row per pair and tissue: mL, percent, and both per year where the time between is known;
    what of it may be noise; and, where `wide` has it, `combined`, `mixed` where the scans differ.
    """
    columns = [
        "participant_id", "contrast", "protocol", "scan", "included", "excluded_because",
        "session_from", "session_to", "years", "tissue",
        "volume_from_mL", "volume_to_mL", "change_mL", "change_percent", "change_mL_per_year",
        "change_percent_per_year", "noise_percent", "noise_percent_per_year", "within_noise",
    ]  # fmt: skip
    later = wide.assign(_when=times["years"], _exact=times["exact"]).loc[wide["session_id"].notna()]
    later["_alike"] = later["scan"].str.replace(r"_ses-[A-Za-z0-9]+", "", regex=True)
    keys = [
        (natural(alike), session_order(when, session))
        for alike, when, session in zip(
            later["_alike"], later["_when"], later["session_id"], strict=True
        )
    ]
    later = later.iloc[sorted(range(len(keys)), key=keys.__getitem__)]
    first = later.drop_duplicates("_alike").set_index("_alike")
    later = later.loc[later["_alike"].duplicated()]
    if later.empty:
        return pd.DataFrame({name: pd.Series(dtype=object) for name in columns})
    before = first.loc[later["_alike"]].reset_index()
    later = later.reset_index(drop=True)
    years = (later["_when"] - before["_when"]).where(lambda gap: gap > 0)
    years = years.where(later["_exact"].astype(bool) & before["_exact"].astype(bool))
    long = years.where((years * 365.25).round(3) >= _SHORTEST)
    because = before["excluded_because"].fillna(later["excluded_because"])
    pairs = [*zip(before["scan"], later["scan"], strict=True)]
    kinds, shared = noise or {}, partners or {}
    alike = np.array([shared.get(one) == shared.get(other) for one, other in pairs])
    noises = [
        noise_between(kinds.get(one, ""), kinds.get(other, "")) if comparable else {}
        for (one, other), comparable in zip(pairs, alike, strict=True)
    ]
    if COMBINED in wide:
        columns.insert(columns.index("scan") + 1, COMBINED)
        same = (before[COMBINED] == later[COMBINED]) & alike
        later[COMBINED] = later[COMBINED].where(same, MIXED)
    tables = []
    for tissue in tissues:
        start, end = before[tissue].astype(float), later[tissue].astype(float)
        change = end - start
        percent = 100 * change / start.where(start > 0)
        own = pd.Series([each.get(tissue, np.nan) for each in noises], dtype=np.float64)
        judged = percent.notna() & own.notna()
        within = pd.Series(np.where(percent.abs() <= BAND * own, "yes", "no"), dtype="str")
        tables.append(
            pd.DataFrame(
                {
                    "participant_id": later["participant_id"],
                    "contrast": later["contrast"],
                    "protocol": later["protocol"],
                    "scan": later["scan"],
                    "included": np.where(because.isna(), "yes", "no"),
                    "excluded_because": because,
                    "session_from": before["session_id"],
                    "session_to": later["session_id"],
                    "years": years,
                    "tissue": tissue,
                    "volume_from_mL": start,
                    "volume_to_mL": end,
                    "change_mL": change,
                    "change_percent": percent,
                    "change_mL_per_year": change / long,
                    "change_percent_per_year": percent / long,
                    "noise_percent": own,
                    "noise_percent_per_year": own / long,
                    "within_noise": within.where(judged),
                    **({COMBINED: later[COMBINED]} if COMBINED in later else {}),
                }
            )
        )
    return pd.concat(tables)[columns].sort_index(kind="stable").reset_index(drop=True)


def mixed_protocols(wide: pd.DataFrame) -> list[str]:
    """Say of each protocol whose included scans are combined differently that these differ."""
    if COMBINED not in wide:
        return []
    included = wide.loc[wide["included"] == "yes"]
    parts = included.groupby("protocol")[COMBINED]
    counts = {protocol: own.value_counts() for protocol, own in parts}
    return [
        f"{protocol!s} has scans with different --combine: "
        + ", ".join(f"{number} {kind!s}" for kind, number in own.items())
        + ". Their volumes are not comparable; --group-by contrast combined separates them."
        for protocol, own in counts.items()
        if len(own) > 1
    ]


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
        tissue, kind = next(
            (
                (column.removesuffix(f"_{kind}"), kind)
                for kind in _MEASURES
                if column.endswith(f"_{kind}")
            ),
            (column, ""),
        )
        if column in tissues:
            described[column] = {"Description": f"Volume: {tissues[column]}.", "Units": "mL"}
        elif tissue in tissues:
            described[column] = {**_DESCRIPTIONS[kind], "LongName": tissues[tissue]}
        elif column in ENTITY_COLUMNS:
            entity = column.removesuffix("_id")
            described[column] = {"Description": f"The entity {entity}- of the source image."}
        elif column in _DESCRIPTIONS:
            described[column] = _DESCRIPTIONS[column]
        else:
            about = known.get(column)
            told = {"Description": f"{column} of the participant or session."} | (
                dict(about) if isinstance(about, Mapping) else {}
            )
            described[column] = told | {"Source": _COVARIATE}
    return described


def changes_dictionary(columns: Sequence[str]) -> dict[str, Any]:
    """Describe the columns of `changes`."""
    described = dictionary(columns, {}, {})
    return described | {name: own for name, own in _OF_PAIRS.items() if name in described}


def covariates_of(described: Mapping[str, Any]) -> list[str]:
    """Return the columns that a data dictionary marks as covariates, and `acq_time`."""
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
        One row per scan with at least `outliers.KEYS`.
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
        times: pd.Series[Any] = pd.Series(cells, dtype="str")
        odd = times.notna() & as_times(times).isna()
        if odd.any():
            named = [f"{times[place]} of {scans[place]}" for place in odd.index[odd]]
            logger.warning("acq_time: values that are not times are left out: %s.", some(named, 5))
        return times.where(~odd)
    column = as_numbers_or_words(cells, scans)
    for remark in column.remarks:
        logger.warning("%s: %s.", name, remark)
    if column.words:
        return pd.Series(column.values, dtype="str")
    numbers = pd.Series(column.values, dtype=np.float64)
    whole = len(numbers) > 0 and numbers.notna().all() and (numbers % 1 == 0).all()
    return numbers.astype(np.int64) if whole else numbers


def missing_values(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Count, per protocol, the scans without a value of each column that lacks any."""
    gaps = table[list(columns)].isna().groupby(table["protocol"]).sum().T
    return gaps.loc[gaps.sum(axis=1) > 0]


def numeric(table: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """Return those of `columns` that hold numbers and not one value only."""
    return [
        name
        for name in columns
        if pd.api.types.is_numeric_dtype(table[name]) and table[name].max() > table[name].min()
    ]
