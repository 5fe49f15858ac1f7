"""The HTML pages, put together from what lies in the output folder and from nothing else."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from siam_bids import derivatives, report
from siam_bids.derivatives import ScanNames, ScanResult
from siam_bids.files import write_json, write_text
from siam_bids.measure import INTRACRANIAL
from siam_bids.provenance import agreed, distinct, methods_text, model_line
from siam_bids.quality import judge, metrics
from siam_bids.tables import GroupTables, missing_values, numeric

EMBED_LIMIT = 16_000_000
"""Bytes of thumbnails up to which the group page holds them; more of them stay beside it."""

TOTAL = "Total intracranial volume"

REFERENCE = "group_reference.json"
"""Distribution of every tissue by contrast, for the subjects' pages."""

_CATEGORIES = 12
"""Covariates with more values than these are no categories to choose scans by."""


def write_subject_page(root: Path, subject: str, command: str) -> None:
    """Write one subject's page; `command` is named where no record tells what made the scans."""
    good = {n.name: n for n in derivatives.results(root, subject)}
    bad = {n.name: n for n in derivatives.failures(root, subject)}
    done = [derivatives.read_result(names) for name, names in good.items() if name not in bad]
    reference = derivatives.read_json(root / REFERENCE)
    records = {name: derivatives.read_json(n.record) for name, n in (good | bad).items()}
    commands = dict.fromkeys(str(r["command"]) for r in records.values() if "command" in r)
    scans = [_scan_report(result, reference, records[result.names.name]) for result in done]
    scans += [_failed_report(names, records[name]) for name, names in bad.items()]
    page = report.render_subject(
        report.SubjectReport(
            subject=f"sub-{subject}",
            scans=tuple(sorted(scans, key=lambda scan: scan.name)),
            command="\n".join(commands) or command,
            group=bool(reference),
            **_origin([result.about for result in done]),
        )
    )
    write_text(root / f"sub-{subject}.html", page)


def _origin(sidecars: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Say what made these scans, as their sidecars record it, not as the present run would."""
    models = distinct([about["Model"] for about in sidecars])
    return {
        "model": "; ".join(map(model_line, models)) or "no finished scan",
        "software": agreed(distinct([about["Software"] for about in sidecars])),
        "boilerplate": methods_text(models),
    }


def _failed_report(names: ScanNames, past: Mapping[str, Any]) -> report.ScanReport:
    return report.ScanReport(
        name=names.name,
        suffix=names.suffix,
        session=names.session_id,
        source=str(past.get("source", "")),
        error=str(past["error"]),
        log=str(past.get("traceback", "")),
    )


def _scan_report(
    result: ScanResult, reference: Mapping[str, Any], past: Mapping[str, Any]
) -> report.ScanReport:
    names = result.names
    labels = derivatives.read_label_table(names.root)
    rows = {row["name"]: row for row in result.volumes}
    spreads = reference.get(names.suffix, {})
    flag, reasons = judge(result.quality) if result.quality else ("", ())
    return report.ScanReport(
        name=names.name,
        suffix=names.suffix,
        session=names.session_id,
        source=result.source,
        figure=_if_there(names.figure("mosaic"), names.root),
        slices=_data_url(names.figure("slices")),
        tissues=_data_url(names.figure("tissues")),
        thumbnail=_data_url(names.figure("thumbnail")),
        outline=_data_url(names.figure("outline")),
        image=_base64(names.preview("image")),
        labels=_base64(names.preview("labels")),
        volumes=tuple(
            report.TissueVolume(
                **{
                    key: value
                    for key, value in asdict(label).items()
                    if key not in ("mapping", "parent")
                },
                voxels=rows[label.name]["voxels"],
                volume_ml=rows[label.name]["volume_mL"],
                spread=report.Spread(**spreads[label.name]) if label.name in spreads else None,
            )
            for label in labels.foreground
        ),
        intracranial_ml=rows[INTRACRANIAL]["volume_mL"],
        flag=flag,
        reasons=reasons,
        readings=tuple(_readings(result.quality)),
        facts=tuple(_facts(result.about, past)),
    )


def _readings(quality: Mapping[str, float]) -> Iterable[report.Reading]:
    for metric in metrics():
        if metric.name in quality:
            value = quality[metric.name]
            units = "" if metric.units == "1" else f" {metric.units}"
            yield report.Reading(
                name=metric.name,
                value=f"{value:.4g}{units}",
                flag=metric.flag(value),
                description=metric.description,
            )


def _facts(about: Mapping[str, Any], past: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    grid, model = about["Grid"], about["Model"]
    yield "Grid", " x ".join(map(str, grid["Shape"])) + " voxels"
    yield "Voxel size", " x ".join(f"{size:g}" for size in grid["VoxelSize"]) + " mm"
    yield "Orientation", grid["Orientation"]
    if pose := about.get("Pose"):
        turned, size = pose["TurnedByDegrees"], pose["RelativeSize"]
        yield "Pose", f"turned by {turned:g} degrees, {size:g} times the usual size"
    yield "Model", f"{model['Title']} {model['Version']}"
    yield "Model SHA-256", model["SHA256"]
    yield "Input SHA-256", about["InputSHA256"]
    if "seconds" in past:
        yield "Time", f"{past['seconds']:g} s on {past['device']}"


def write_group_page(
    root: Path,
    results: Sequence[ScanResult],
    tables: GroupTables,
    *,
    title: str,
    missing: Sequence[str],
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
    formula
        What `tables.statistics` answers, or empty.
    """
    failed = list(derivatives.failures(root))
    page = report.render_group(
        report.GroupReport(
            title=title,
            data=_group_data(root, results, tables, title),
            subjects=tables.wide["participant_id"].nunique(),
            missing=tuple(missing),
            failed=tuple(
                (names.name, str(derivatives.read_json(names.record)["error"])) for names in failed
            ),
            contrasts=tuple(_contrasts(tables.wide)),
            gaps=tuple(_gaps(tables)),
            changes=tuple(_changes(tables.changes)),
            statistics=tuple(_records(tables.statistics.astype(object).where(pd.notna, None))),
            formula=formula,
            command=command,
            **_origin([result.about for result in results]),
        )
    )
    write_text(root / "group.html", page)


def _records(table: pd.DataFrame) -> Iterable[dict[str, Any]]:
    columns = [table[name].tolist() for name in table]
    for row in zip(*columns, strict=True):
        yield dict(zip(map(str, table), row, strict=True))


def write_reference(root: Path, tables: GroupTables) -> None:
    """Write the five-number summary (mL) of every tissue by contrast, for the subjects' pages."""
    names = ("least", "quarter", "median", "three_quarters", "most")
    spreads: dict[str, Any] = {}
    for (contrast, tissue), values in tables.tidy.groupby(["contrast", "tissue"])["volume_mL"]:
        five = values.quantile([0, 0.25, 0.5, 0.75, 1]).round(4).tolist()
        spreads.setdefault(str(contrast), {})[str(tissue)] = {
            "scans": len(values),
            **dict(zip(names, five, strict=True)),
        }
    write_json(root / REFERENCE, spreads)


def _group_data(
    root: Path, results: Sequence[ScanResult], tables: GroupTables, title: str
) -> dict[str, Any]:
    """Return what the group page's script shows: scans by column, measures and their values."""
    wide, quality = tables.wide, tables.quality
    measures, values = _measures(root, tables)
    categories = {
        name: [_text(value) for value in wide[name]]
        for name in tables.covariates
        if name not in measures and 1 < wide[name].nunique() <= _CATEGORIES
    }
    thumbnails = [_if_there(result.names.figure("thumbnail"), root) for result in results]
    outlines = [_if_there(result.names.figure("outline"), root) for result in results]
    embedded = sum((root / name).stat().st_size for name in (*thumbnails, *outlines) if name)
    if embedded <= EMBED_LIMIT:
        thumbnails, outlines = (
            [_data_url(root / name) if name else "" for name in names]
            for names in (thumbnails, outlines)
        )
    pages = {path.name for path in root.glob("sub-*.html")}
    found: dict[str, list[dict[str, Any]]] = {}
    for row in _records(tables.outliers):
        found.setdefault(row["scan"], []).append(
            {"measure": row["measure"], "z": round(row["robust_z"], 2), "reason": row["reason"]}
        )
    where = str(root.resolve())
    return {
        "id": hashlib.sha256(f"{title}\n{where}".encode()).hexdigest()[:16],
        "scans": {
            "name": wide["scan"].tolist(),
            "subject": wide["participant_id"].tolist(),
            "session": [_text(value) for value in wide["session_id"]],
            "contrast": wide["contrast"].tolist(),
            "flag": [_text(value) for value in quality["flag"]],
            "reasons": [_text(value) for value in quality["reasons"]],
            "page": [
                result.names.report.name if result.names.report.name in pages else ""
                for result in results
            ],
            "thumbnail": thumbnails,
            "outline": outlines,
        },
        "measures": measures,
        "values": values,
        "categories": categories,
        "outliers": found,
        "ratings": _known_ratings(wide),
    }


def _measures(
    root: Path, tables: GroupTables
) -> tuple[dict[str, dict[str, str]], dict[str, list[float | None]]]:
    """Return every number a scan has: tissues, quality metrics, covariates."""
    labels = derivatives.read_label_table(root)
    wide, quality = tables.wide, tables.quality
    measures: dict[str, dict[str, str]] = {}
    values: dict[str, list[float | None]] = {}

    def add(name: str, column: pd.Series[Any], **about: str) -> None:
        measures[name] = about
        values[name] = [_number(value) for value in column]

    names = [INTRACRANIAL, *(label.name for label in labels.foreground)]
    for name in (name for name in names if name in wide):
        words = labels.by_name[name].long_name if name in labels.by_name else TOTAL
        add(name, wide[name], kind="tissue", title=words, units="mL")
    for metric in metrics():
        if metric.name in quality and metric.name not in measures:
            units = "" if metric.units == "1" else metric.units
            column = quality[metric.name]
            add(metric.name, column, kind="quality", title=metric.description, units=units)
    for name in numeric(wide, tables.covariates):
        if name not in measures:
            add(name, wide[name], kind="covariate", title=name, units="")
    return measures, values


def _number(value: Any) -> float | None:
    number = float(value)
    return float(f"{number:.5g}") if math.isfinite(number) else None


def _text(value: Any) -> str:
    return "" if pd.isna(value) else str(value)


def _known_ratings(wide: pd.DataFrame) -> dict[str, dict[str, str]]:
    if "rating" not in wide:
        return {}
    rated = wide.dropna(subset=["rating", "rating_note"], how="all")
    return {
        scan: {"rating": _text(rating), "note": _text(note)}
        for scan, rating, note in zip(
            rated["scan"], rated["rating"], rated["rating_note"], strict=True
        )
    }


def _contrasts(wide: pd.DataFrame) -> Iterable[dict[str, Any]]:
    """Say for each contrast how many scans there are and which visits have none of it."""
    visits = wide["participant_id"].str.cat(wide["session_id"].fillna(""), sep=" ").str.strip()
    everyone = set(visits)
    for contrast, own in visits.groupby(wide["contrast"]):
        lacking = sorted(everyone - set(own))
        yield {"contrast": contrast, "scans": len(own), "visits": own.nunique(), "lacking": lacking}


def _gaps(tables: GroupTables) -> Iterable[tuple[str, dict[str, int]]]:
    gaps = missing_values(tables.wide, tables.covariates)
    for name, row in gaps.iterrows():
        yield str(name), {str(contrast): int(count) for contrast, count in row.items()}


def _changes(changes: pd.DataFrame) -> Iterable[dict[str, Any]]:
    """Summarise change between sessions by contrast and tissue, as medians."""
    for (contrast, tissue), part in changes.groupby(["contrast", "tissue"], sort=False):
        yield {
            "contrast": contrast,
            "tissue": tissue,
            "pairs": len(part),
            "percent": _number(part["change_percent"].median()),
            "percent_per_year": _number(part["change_percent_per_year"].median()),
        }


def _if_there(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.exists() else ""


def _data_url(path: Path) -> str:
    """Return a picture as a data URL: scripts may read its pixels, and it needs no file beside."""
    if not path.exists():
        return ""
    return f"data:image/{path.suffix.removeprefix('.')};base64,{_base64(path)}"


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode() if path.exists() else ""
