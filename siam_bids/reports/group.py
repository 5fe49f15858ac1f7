"""The group page, from the files in the output folder."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from siam_bids.bids.metadata import SCANNER
from siam_bids.bids.records import read_record
from siam_bids.bids.results import ScanResult
from siam_bids.bids.status import failed_scans
from siam_bids.image.labels import LabelTable
from siam_bids.measures.change_noise import BAND, noise_of_median
from siam_bids.measures.group_tables import (
    ASYMMETRY,
    ENTITY_COLUMNS,
    GroupTables,
    missing_values,
    numeric,
)
from siam_bids.measures.harmonization import HARMONIZED
from siam_bids.measures.outliers import LIMIT
from siam_bids.measures.quality import metrics
from siam_bids.measures.volumes import COMBINED, INTRACRANIAL, describe_total
from siam_bids.reports.build import (
    REFERENCE,
    data_url,
    if_there,
    origin_of,
    path_to_raw,
    typeset,
)
from siam_bids.reports.content import GroupReport
from siam_bids.reports.render import render_group
from siam_bids.support.atomic_files import Batch
from siam_bids.support.tsv import natural

EMBED_LIMIT = 16_000_000
"""Bytes of thumbnails up to which the group page embeds them; otherwise it links to files."""


_CATEGORIES = 12
"""Covariates with more values than this are not offered as categories to select scans by."""


def write_group_page(
    batch: Batch,
    root: Path,
    results: Sequence[ScanResult],
    tables: GroupTables,
    labels: LabelTable,
    *,
    title: str,
    missing: Sequence[str],
    left_out: Mapping[str, str],
    cautions: Sequence[str],
    pages: Sequence[str],
    files: Sequence[str],
    formula: str,
    command: str,
) -> None:
    """Write the page over all scans.

    Parameters
    ----------
    results
        In the order of the tables' rows.
    missing
        Subjects without results.
    left_out
        Results that cannot be used, with their reasons.
    cautions
        What must not be compared, in a sentence each.
    pages
        Subjects whose pages are about to be written; pages that are there need no mention.
    files
        Tables in the output folder, as paths within it.
    formula
        What `regression.fit_tissues` answers, or empty.
    """
    failed = {
        names.name: read_record(names.record).get("error", "") for names in failed_scans(root)
    }
    page = render_group(
        GroupReport(
            title=title,
            data=_group_data(root, results, tables, labels, title=title, pages=pages),
            subjects=tables.wide["participant_id"].nunique(),
            files=tuple(files),
            missing=tuple(missing),
            cautions=tuple(cautions),
            failed=tuple({**left_out, **failed}.items()),
            excluded=tuple(tables.excluded.items()),
            protocols=tuple(_protocols(tables.wide)),
            gaps=tuple(_gaps(tables)),
            changes=tuple(_changes(tables.changes)),
            statistics=tuple(
                _records(tables.statistics.table.astype(object).where(pd.notna, None))
            ),
            formula=formula,
            command=command,
            **origin_of([result.about for result in results], labels),
        )
    )
    batch.write_text(root / "group.html", page)


def _records(table: pd.DataFrame) -> Iterable[dict[str, Any]]:
    columns = [table[name].tolist() for name in table]
    for row in zip(*columns, strict=True):
        yield dict(zip(map(str, table), row, strict=True))


def write_reference(batch: Batch, root: Path, tables: GroupTables) -> None:
    """Write the five-number summary (mL) of every tissue by protocol, for the subjects' pages."""
    names = ("least", "quarter", "median", "three_quarters", "most")
    spreads: dict[str, Any] = {}
    included = tables.tidy.loc[tables.tidy["included"] == "yes"]
    for (protocol, tissue), values in included.groupby(["protocol", "tissue"])["volume_mL"]:
        five = values.quantile([0, 0.25, 0.5, 0.75, 1]).round(4).tolist()
        spreads.setdefault(str(protocol), {})[str(tissue)] = {
            "scans": len(values),
            **dict(zip(names, five, strict=True)),
        }
    protocols = dict(zip(tables.wide["scan"], tables.wide["protocol"], strict=True))
    batch.write_json(root / REFERENCE, {"protocols": protocols, "spreads": spreads})


def _group_data(
    root: Path,
    results: Sequence[ScanResult],
    tables: GroupTables,
    labels: LabelTable,
    *,
    title: str,
    pages: Sequence[str],
) -> dict[str, Any]:
    """Return what the group page's script shows: scans by column, measures and their values."""
    where = str(root.resolve())
    measures: dict[str, _Measure] = {}
    for measure in _measures(tables, labels):
        measures.setdefault(measure.name, measure)
    return {
        "id": hashlib.sha256(f"{title}\n{where}".encode(errors="surrogatepass")).hexdigest()[:16],
        "scans": {**_described(tables), **_files_of_scans(root, results, pages)},
        "raw": path_to_raw(root),
        "labels": [
            {"name": label.name, "title": label.long_name, "color": label.color}
            for label in labels.foreground
        ],
        "measures": {
            name: {"kind": each.kind, "title": each.title, "units": each.units}
            for name, each in measures.items()
        },
        "values": {name: list(map(_number, each.values)) for name, each in measures.items()},
        "categories": _categories(tables),
        "outliers": _outliers(tables.outliers),
        "ratings": _ratings(tables.ratings),
        "limit": LIMIT,
        "site": tables.site,
        "harmonized": _harmonized(tables),
    }


def _described(tables: GroupTables) -> dict[str, list[str]]:
    """Return names and judgements of the scans, by column."""
    wide, quality = tables.wide, tables.quality
    return {
        "name": wide["scan"].tolist(),
        "subject": wide["participant_id"].tolist(),
        "session": [_text(value) for value in wide["session_id"]],
        "protocol": wide["protocol"].tolist(),
        "excluded": [_text(value) for value in wide["excluded_because"]],
        "flag": [_text(value) for value in quality["flag"]],
        "reasons": [typeset(_text(value)) for value in quality["reasons"]],
    }


def _files_of_scans(
    root: Path, results: Sequence[ScanResult], pages: Sequence[str]
) -> dict[str, list[str]]:
    """Return page, pictures and images of the scans, by column; empty where there is none."""
    there = {path.name for path in root.glob("sub-*.html")} | {f"sub-{own}.html" for own in pages}
    reports = [result.names.report.name for result in results]
    images = [result.names.segmentation.relative_to(root).as_posix() for result in results]
    return {
        "page": [name if name in there else "" for name in reports],
        **_small_pictures(root, results),
        "sheet": [_sheet(result, root) for result in results],
        "source": [result.source for result in results],
        "segmentation": images,
    }


def _small_pictures(root: Path, results: Sequence[ScanResult]) -> dict[str, list[str]]:
    """Return thumbnails and outlines: themselves, or their paths if they are too large together."""
    paths = {
        kind: [if_there(result.names.figure(kind), root) for result in results]
        for kind in ("thumbnail", "outline")
    }
    files = [root / path for own in paths.values() for path in own if path]
    if sum(path.stat().st_size for path in files) > EMBED_LIMIT:
        return paths
    return {
        kind: [data_url(root / path) if path else "" for path in own] for kind, own in paths.items()
    }


def _categories(tables: GroupTables) -> dict[str, list[str]]:
    """Return the columns by which scans can be selected."""
    wide, quality = tables.wide, tables.quality
    known = {name: wide[name] for name in (*ENTITY_COLUMNS, *tables.covariates) if name in wide}
    known |= {name: quality[name] for name in tables.scanners} | {"included": wide["included"]}
    known |= {COMBINED: wide[COMBINED]} if COMBINED in wide else {}
    return {
        name: [_text(value) or "n/a" for value in column]
        for name, column in known.items()
        if 1 < column.nunique(dropna=False) <= _most_categories(column) or name == tables.site
    }


def _outliers(outliers: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Return what is found of each scan."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in _records(outliers):
        z, reason = round(row["robust_z"], 2), typeset(row["reason"])
        found.setdefault(row["scan"], []).append(
            {"measure": row["measure"], "z": z, "reason": reason}
        )
    return found


def _most_categories(column: pd.Series[Any]) -> int:
    """Return up to how many values are categories; numbers only if each has some scans."""
    few = len(column) // 4 if pd.api.types.is_numeric_dtype(column) else _CATEGORIES
    return min(few, _CATEGORIES)


@dataclass(frozen=True)
class _Measure:
    """A number of every scan: its name, values, and what it is."""

    name: str
    values: pd.Series[Any]
    kind: str
    title: str
    units: str


def _measures(tables: GroupTables, labels: LabelTable) -> Iterator[_Measure]:
    """Yield every number a scan has; of two with one name the first counts."""
    yield from _tissues(tables, labels)
    for metric in metrics():
        if metric.name in tables.quality:
            units = "" if metric.units == "1" else typeset(metric.units)
            title = typeset(metric.description.removesuffix("."))
            yield _Measure(metric.name, tables.quality[metric.name], "quality", title, units)
    for table, columns in ((tables.wide, tables.covariates), (tables.quality, tables.scanners)):
        for name in numeric(table, columns):
            yield _Measure(name, table[name], "covariate", name, SCANNER.get(name, ""))


def _tissues(tables: GroupTables, labels: LabelTable) -> Iterator[_Measure]:
    """Yield volumes, harmonized volumes and asymmetry of all tissues."""
    wide = tables.wide
    titles = {label.name: label.long_name for label in labels.foreground}
    names = [INTRACRANIAL, *titles]
    for name in names:
        if name in wide:
            title = titles.get(name) or describe_total(labels)
            yield _Measure(name, wide[name], "tissue", title, "mL")
    for name in tables.tissues:
        if (after := f"{name}_{HARMONIZED}") in wide:
            yield _Measure(after, wide[after], "harmonized", f"{name} after ComBat", "mL")
    for name in names:
        if (index := f"{name}_{ASYMMETRY}") in wide:
            title = f"{name}: (left - right) / ((left + right) / 2)"
            yield _Measure(index, wide[index], "asymmetry", title, "")


def _number(value: Any) -> float | None:
    number = float(value)
    return float(f"{number:.5g}") if math.isfinite(number) else None


def _text(value: Any) -> str:
    if pd.isna(value):
        return ""
    return f"{value:.10g}" if isinstance(value, (int, float)) else str(value)


def _sheet(result: ScanResult, root: Path) -> str:
    """Return the path of a scan's sheets without their ending, empty where there are none."""
    slices, contours = (result.names.figure(kind) for kind in ("slices", "contours"))
    there = slices.is_file() and contours.is_file()
    return slices.relative_to(root).as_posix().removesuffix("slices.webp") if there else ""


def _ratings(ratings: pd.DataFrame) -> dict[str, dict[str, dict[str, str]]]:
    """Return rating, note, tags and time by rater and scan."""
    by_rater: dict[str, dict[str, dict[str, str]]] = {}
    for row in _records(ratings):
        own = {name: row[name] for name in ("rating", "note", "tags", "time")}
        by_rater.setdefault(row["rater"], {})[row["scan"]] = own
    return by_rater


def _harmonized(tables: GroupTables) -> dict[str, Any]:
    """Return the column of --harmonize and the site of every scan, empty for none."""
    name = tables.harmonized
    if not name:
        return {}
    column = tables.wide[name] if name in tables.wide else tables.quality[name]
    return {"column": name, "site": [_text(value) for value in column]}


def _protocols(wide: pd.DataFrame) -> Iterable[dict[str, Any]]:
    """Count the scans of each protocol and list visits without it."""
    visits = wide["participant_id"].str.cat(wide["session_id"].fillna(""), sep=" ").str.strip()
    everyone = set(visits)
    included = (wide["included"] == "yes").groupby(wide["protocol"]).sum()
    for protocol, own in visits.groupby(wide["protocol"]):
        yield {
            "protocol": protocol,
            "scans": len(own),
            "included": int(included[protocol]),
            "visits": own.nunique(),
            "lacking": sorted(everyone - set(own), key=natural),
        }


def _gaps(tables: GroupTables) -> Iterable[tuple[str, dict[str, int]]]:
    gaps = missing_values(tables.wide, tables.covariates)
    for name, row in gaps.iterrows():
        yield str(name), {str(protocol): int(count) for protocol, count in row.items()}


def _changes(changes: pd.DataFrame) -> Iterable[dict[str, Any]]:
    """Summarise change between sessions by protocol and tissue, as medians of what is included.

    `noise`: the 95 % range of such a median where nothing changes, in percent; None where it is
    not known for all pairs. Pairs of one person share their first scan, and count once.
    """
    included = changes.loc[changes["included"] == "yes"]
    for (protocol, tissue), part in included.groupby(["protocol", "tissue"], sort=False):
        yield {
            "protocol": protocol,
            "tissue": tissue,
            "pairs": len(part),
            **_median(part, "change_percent", "noise_percent", ""),
            **_median(part, "change_percent_per_year", "noise_percent_per_year", "_per_year"),
        }


def _median(part: pd.DataFrame, change: str, noise: str, ending: str) -> dict[str, Any]:
    """Return the median change, what it is without change, and whether it is within that."""
    known = part.loc[part[change].notna()]
    percent = _number(known[change].median())
    band = None
    if len(known) and known[noise].notna().all():
        people = known[noise].astype(float).groupby(known["participant_id"]).max()
        band = _number(BAND * noise_of_median(np.square(people).tolist()))
    within = percent is not None and band is not None and abs(percent) <= band
    return {f"percent{ending}": percent, f"noise{ending}": band, f"within{ending}": within}
