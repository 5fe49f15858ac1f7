"""A subject's page, from the files in the output folder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from siam_bids.bids.covariates import read_times
from siam_bids.bids.label_tables import read_label_table
from siam_bids.bids.names import ScanNames
from siam_bids.bids.records import read_record
from siam_bids.bids.results import ScanResult, read_results
from siam_bids.bids.status import COMBINED, COMBINED_AS, combined_by, failed_scans
from siam_bids.image.labels import INTRACRANIAL as INTRACRANIAL_ROLES, LabelTable
from siam_bids.measures.change_noise import BAND, noise_between
from siam_bids.measures.quality import judge, metrics
from siam_bids.measures.session_times import session_order, session_times
from siam_bids.measures.volumes import INTRACRANIAL
from siam_bids.reports.build import (
    REFERENCE,
    as_base64,
    data_url,
    if_there,
    origin_of,
    path_to_raw,
    typeset,
)
from siam_bids.reports.content import (
    Change,
    Lesion,
    Reading,
    ScanReport,
    Spread,
    SubjectReport,
    TissueVolume,
)
from siam_bids.reports.render import render_subject
from siam_bids.reports.visits import Aligned, disagreements_of, visits_of
from siam_bids.support.atomic_files import read_json, write_text
from siam_bids.support.json_kinds import misfit
from siam_bids.support.tsv import natural

_TIMES = "\N{MULTIPLICATION SIGN}"

_PARTNERS = {
    "contrasts": "with the scans of its session",
    "sessions": "with the same scans of other sessions",
    "all": "with all scans of the participant",
}
"""What each choice of `--combine` combines a scan with."""


Reference = Mapping[str, Mapping[str, Spread]]
"""How each tissue is distributed in the protocol of each scan, by scan and tissue."""


def write_subject_page(
    root: Path,
    subject: str,
    command: str,
    bids_dir: Path,
    *,
    reference: Reference | None = None,
    years: Mapping[str, float] | None = None,
) -> None:
    """Write one subject's page, on which sessions follow each other in time, else by label.

    Parameters
    ----------
    command
        Is named where no record tells what made the scans.
    reference
        Of all scans, if it was read already.
    years
        When scans were made, see `GroupTables.years`; read from `bids_dir` if None.
    """
    found = read_results(root, subject)
    bad = {n.name: n for n in failed_scans(root, subject)}
    done = [result for result in found.usable if result.names.name not in bad]
    broken = {n: why for n, why in found.unusable.items() if n.name not in bad}
    everyone = [*(result.names for result in done), *broken, *bad.values()]
    place = _places(everyone, _years(bids_dir, done) if years is None else years)
    done.sort(key=lambda result: place[result.names.name])
    records = {names.name: read_record(names.record) for names in everyone}
    commands = dict.fromkeys(r["command"] for r in records.values() if "command" in r)
    reference = read_reference(root) if reference is None else reference
    labels = read_label_table(root) if done else None
    first = _first_of_kind(done)
    scans = [
        replace(
            _scan_report(result, labels, reference, records[result.names.name]),
            changes=_changes(first[_kind(result.names)], result),
        )
        for result in done
        if labels
    ]
    scans += [_failed_report(names, {"error": why}) for names, why in broken.items()]
    scans += [_failed_report(names, records[name]) for name, names in bad.items()]
    aligned = Aligned(done, labels) if labels else None
    page = render_subject(
        SubjectReport(
            subject=f"sub-{subject}",
            scans=tuple(sorted(scans, key=lambda scan: place[scan.name])),
            command="\n".join(commands) or command,
            group=bool(reference),
            raw=path_to_raw(root),
            visits=visits_of(aligned, labels) if aligned and labels else (),
            disagreements=disagreements_of(aligned, labels) if aligned and labels else (),
            alone=tuple(
                (result.names.name, why, "agreement" in result.quality)
                for result in done
                if (why := result.about.get(COMBINED_AS, {}).get("Alone"))
            ),
            **origin_of([result.about for result in done], labels),
        )
    )
    write_text(root / f"sub-{subject}.html", page)


def read_reference(root: Path) -> Reference:
    """Read what the group level tells of all scans.

    Empty if the group level has not run, or left something of another form.
    """
    content = read_json(root / REFERENCE)
    five = {each.name: int if each.name == "scans" else float for each in fields(Spread)}
    kinds = {"protocols": {"*": str}, "spreads": {"*": {"*": five}}}
    if misfit(content, kinds, REFERENCE):
        return {}
    spreads = {
        protocol: {
            tissue: Spread(**{key: values[key] for key in five})
            for tissue, values in tissues.items()
        }
        for protocol, tissues in content["spreads"].items()
    }
    return {scan: spreads.get(own, {}) for scan, own in content["protocols"].items()}


def _years(bids_dir: Path, results: Sequence[ScanResult]) -> dict[str, float]:
    """Read when the scans of a subject were made."""
    visits = [result.names.identity.visit for result in results]
    if len({*visits}) < 2:
        return {}
    dates, ages, units = read_times(bids_dir, visits, [result.source for result in results])
    years = session_times(visits, dates, ages, units)["years"]
    return dict(zip([result.names.name for result in results], years, strict=True))


def _places(scans: Sequence[ScanNames], years: Mapping[str, float]) -> dict[str, tuple[Any, ...]]:
    """Return by what to order scans: their session, then the name."""
    first = {
        names.identity.session: when
        for names in scans
        if not math.isnan(when := years.get(names.name, math.nan))
    }
    return {
        names.name: (
            session_order(first.get(names.identity.session, math.nan), names.identity.session),
            natural(names.name),
        )
        for names in scans
    }


def _first_of_kind(results: Iterable[ScanResult]) -> dict[str, ScanResult]:
    """Return the first of the ordered scans that differ in nothing but the session, by kind."""
    first: dict[str, ScanResult] = {}
    for result in results:
        first.setdefault(_kind(result.names), result)
    return first


def _changes(first: ScanResult, later: ScanResult) -> dict[str, Change]:
    """Return the change of each tissue from one scan to another."""
    if first is later:
        return {}
    before, after = first.millilitres, later.millilitres
    alike = first.partners == later.partners
    noise = noise_between(first.noise, later.noise) if alike else {}
    return {
        tissue: Change(
            percent=100 * (after[tissue] - volume) / volume,
            noise=BAND * noise[tissue] if tissue in noise else None,
        )
        for tissue, volume in before.items()
        if volume and tissue in after
    }


def _failed_report(names: ScanNames, past: Mapping[str, Any]) -> ScanReport:
    return ScanReport(
        name=names.name,
        kind=_kind(names),
        session=names.identity.visit[1],
        source=str(past.get("source", "")),
        error=str(past.get("error", "")),
        log=str(past.get("traceback", "")),
    )


def _scan_report(
    result: ScanResult,
    labels: LabelTable,
    reference: Reference,
    past: Mapping[str, Any],
) -> ScanReport:
    names = result.names
    rows = {row["name"]: row for row in result.volumes}
    spreads = reference.get(names.name, {})
    flag, reasons = judge(result.quality) if result.quality else ("", ())
    return ScanReport(
        name=names.name,
        kind=_kind(names),
        session=names.identity.visit[1],
        source=result.source,
        segmentation=if_there(names.segmentation, names.root),
        files=tuple(filter(None, (if_there(path, names.root) for path in _files(names)))),
        figure=if_there(names.figure("mosaic"), names.root),
        slices=data_url(names.figure("slices")),
        tissues=data_url(names.figure("tissues")),
        thumbnail=data_url(names.figure("thumbnail")),
        outline=data_url(names.figure("outline")),
        image=as_base64(names.preview("image")),
        labels=as_base64(names.preview("labels")),
        volumes=tuple(
            TissueVolume(
                **{
                    key: value
                    for key, value in asdict(label).items()
                    if key not in ("mapping", "role", "parent")
                },
                voxels=rows[label.name]["voxels"],
                volume_ml=rows[label.name]["volume_mL"],
                inside=label.role in INTRACRANIAL_ROLES if label.role else None,
                brain=label in (labels.brain or labels.foreground),
                spread=spreads.get(label.name),
                left_ml=rows[label.name].get("left_mL"),
                right_ml=rows[label.name].get("right_mL"),
            )
            for label in labels.foreground
        ),
        lesions=tuple(
            Lesion(**{key: value for key, value in row.items() if key != "voxels"})
            for row in result.lesions
        ),
        intracranial_ml=rows.get(INTRACRANIAL, {}).get("volume_mL"),
        flag=flag,
        reasons=tuple(map(typeset, reasons)),
        readings=tuple(_readings(result.quality)),
        facts=tuple(scan_facts(result.about, past)),
    )


def _kind(names: ScanNames) -> str:
    """Return what the same scan has in every session: its name without participant and session."""
    entities = [f"{key}-{label}" for key, label in names.identity.entities]
    return "_".join(
        [*(e for e in entities if not e.startswith(("sub-", "ses-"))), names.identity.suffix]
    )


def _files(names: ScanNames) -> Iterable[Path]:
    """Yield what people open of a scan."""
    yield from (
        names.segmentation,
        names.brain_mask,
        names.volumes,
        names.lesions,
        names.quality,
    )


def _readings(quality: Mapping[str, float]) -> Iterable[Reading]:
    for metric in metrics():
        if metric.name in quality:
            value = quality[metric.name]
            units = "" if metric.units == "1" else f" {metric.units}"
            yield Reading(
                name=metric.name,
                value=typeset(f"{value:.4g}{units}"),
                flag=metric.flag(value),
                description=metric.description,
            )


def scan_facts(about: Mapping[str, Any], past: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Yield the name and text of each fact that the page states of a scan, from its sidecar.

    Parameters
    ----------
    about
        The sidecar of the segmentation.
    past
        The record of the last attempt, see `read_record`; empty if there is none.
    """
    grid, model = about["Grid"], about["Model"]
    yield "Grid", f" {_TIMES} ".join(map(str, grid["Shape"])) + " voxels"
    yield "Voxel size", f" {_TIMES} ".join(f"{size:g}" for size in grid["VoxelSize"]) + " mm"
    yield "Orientation", grid["Orientation"]
    if pose := about.get("Pose"):
        turned, size = pose["TurnedByDegrees"], pose["RelativeSize"]
        yield "Pose", f"rotated by {turned:g} degrees, {size:g} times the average size"
    if COMBINED in about:
        alone = about.get(COMBINED_AS, {}).get("Alone")
        yield "Combined", f"no: {alone}" if alone else _PARTNERS.get(combined_by(about), "unknown")
    yield "Model", f"{model['Title']} {model['Version']}"
    yield "Model SHA-256", model["SHA256"]
    yield "Input SHA-256", about["InputSHA256"]
    if "seconds" in past and "device" in past:
        yield "Time", f"{past['seconds']:g} s on {past['device']}"
