"""The HTML pages, put together from what lies in the output folder and from nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from siam_bids import derivatives, report
from siam_bids.derivatives import ScanNames
from siam_bids.files import write_text
from siam_bids.measure import INTRACRANIAL
from siam_bids.provenance import agreed, distinct, methods_text, model_line


def write_subject_page(root: Path, subject: str, command: str) -> None:
    """Write one subject's page."""
    good = {n.name: n for n in derivatives.results(root, subject)}
    bad = {n.name: n for n in derivatives.failures(root, subject)}
    scans = tuple(
        _scan_report(good.get(name) or bad[name], failed=name in bad)
        for name in sorted({**good, **bad})
    )
    page = report.render_subject(
        report.SubjectReport(
            subject=f"sub-{subject}", scans=scans, command=command, **_origin(good.values())
        )
    )
    write_text(root / f"sub-{subject}.html", page)


def _origin(scans: Iterable[ScanNames]) -> dict[str, Any]:
    """Say what made these scans, as their sidecars record it, not as the present run would."""
    sidecars = [_sidecar(names) for names in scans]
    models = distinct([about["Model"] for about in sidecars])
    return {
        "model": "; ".join(map(model_line, models)) or "no finished scan",
        "software": agreed([about["Software"] for about in sidecars]),
        "boilerplate": methods_text(models),
    }


def _sidecar(names: ScanNames) -> dict[str, Any]:
    return derivatives.read_json(derivatives.sidecar(names.segmentation))


def _scan_report(names: ScanNames, *, failed: bool) -> report.ScanReport:
    past = derivatives.read_json(names.record)
    common = {"name": names.name, "suffix": names.suffix, "session": names.session_id}
    if failed:
        return report.ScanReport(
            **common,
            source=str(past.get("source", "")),
            figure="",
            thumbnail="",
            volumes=(),
            intracranial_ml=None,
            facts=(),
            error=str(past["error"]),
        )
    about = _sidecar(names)
    labels = derivatives.read_label_table(names.root)
    table = derivatives.read_volumes(names.volumes).set_index("name")
    voxels, millilitres = table["voxels"].to_dict(), table["volume_mL"].to_dict()
    return report.ScanReport(
        **common,
        source=str(about["Sources"][0]).removeprefix("bids:raw:"),
        figure=names.figure("mosaic").relative_to(names.root).as_posix(),
        thumbnail=names.figure("thumbnail").relative_to(names.root).as_posix(),
        volumes=tuple(
            report.TissueVolume(
                **{key: value for key, value in asdict(label).items() if key != "mapping"},
                voxels=voxels[label.name],
                volume_ml=millilitres[label.name],
            )
            for label in labels.foreground
        ),
        intracranial_ml=millilitres[INTRACRANIAL],
        facts=tuple(_facts(about, past)),
    )


def _facts(about: Mapping[str, Any], past: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    grid, model = about["Grid"], about["Model"]
    yield "Grid", " x ".join(map(str, grid["Shape"])) + " voxels"
    yield "Voxel size", " x ".join(f"{size:g}" for size in grid["VoxelSize"]) + " mm"
    yield "Orientation", grid["Orientation"]
    yield "Model", f"{model['Title']} {model['Version']}"
    yield "Model SHA-256", model["SHA256"]
    yield "Input SHA-256", about["InputSHA256"]
    if "seconds" in past:
        yield "Time", f"{past['seconds']:g} s on {past['device']}"


def write_group_page(
    root: Path, scans: Sequence[ScanNames], title: str, missing: Sequence[str], command: str
) -> None:
    """Write the page over all `scans`; `missing` are the subjects that have none."""
    labels = derivatives.read_label_table(root)
    page = report.render_group(
        report.GroupReport(
            title=title,
            scans=tuple(_group_scan(names) for names in scans),
            labels=labels,
            command=command,
            missing=tuple(missing),
            **_origin(scans),
        )
    )
    write_text(root / "group.html", page)


def _group_scan(names: ScanNames) -> report.GroupScan:
    table = derivatives.read_volumes(names.volumes)
    volumes = dict(zip(table["name"], table["volume_mL"], strict=True))
    intracranial = volumes.pop(INTRACRANIAL)
    return report.GroupScan(
        subject=f"sub-{names.subject}",
        session=names.session_id,
        suffix=names.suffix,
        name=names.name,
        report=names.report.name if names.report.exists() else "",
        thumbnail=_if_there(names.figure("thumbnail"), names.root),
        volumes=volumes,
        intracranial_ml=intracranial,
    )


def _if_there(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.exists() else ""
