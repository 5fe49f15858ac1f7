"""The group level: tables over all scans, outliers, statistics, and the page that shows them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from siam_bids.bids.covariates import (
    acquisition_times,
    age_units,
    read_covariates,
    read_times,
    unreadable_participants,
)
from siam_bids.bids.index import subjects
from siam_bids.bids.label_tables import LABEL_TABLE, read_label_table
from siam_bids.bids.metadata import SCANNER, scanner_metadata
from siam_bids.bids.names import stray_results, undeclared_results
from siam_bids.bids.ownership import check_output_folder
from siam_bids.bids.results import Results, ScanResult, misplaced, read_results, undeclared
from siam_bids.bids.scan import CONSENSUS
from siam_bids.bids.status import COMBINED, sweep_root
from siam_bids.bids.writers import (
    RESOURCES,
    remove_table,
    save_phenotype,
    save_resources,
    save_table,
)
from siam_bids.config import RunConfig
from siam_bids.errors import DatasetError, UnknownColumnError, UsageError
from siam_bids.image.labels import INTRACRANIAL as INTRACRANIAL_ROLES, LabelTable
from siam_bids.measures.formula import parse
from siam_bids.measures.group_tables import (
    ADJUSTED,
    ENTITY_COLUMNS,
    GroupTables,
    changes,
    changes_dictionary,
    covariates_of,
    dictionary,
    head_size_adjusted,
    join_covariates,
    mixed_protocols,
    reserved,
    tidy_volumes,
    wide_volumes,
)
from siam_bids.measures.harmonization import (
    DICTIONARY as SITES_DICTIONARY,
    NO_EFFECTS,
    harmonize,
)
from siam_bids.measures.inclusion import PROTOCOL, Exclusion, exclusions, protocols, with_inclusion
from siam_bids.measures.outliers import check_columns, find_outliers
from siam_bids.measures.quality import dictionary as quality_dictionary, judge, metrics
from siam_bids.measures.ratings import combined, rating_files, read_ratings
from siam_bids.measures.regression import NO_STATISTICS, fit_tissues
from siam_bids.measures.session_times import session_times, top_coded
from siam_bids.measures.volumes import (
    COMBINED as COMBINED_COLUMN,
    INTRACRANIAL,
    describe_total,
)
from siam_bids.pipelines.failures import write_page
from siam_bids.reports.group import write_group_page, write_reference
from siam_bids.reports.subject import read_reference, write_subject_page
from siam_bids.support.atomic_files import Batch, read_json, together
from siam_bids.support.input_files import is_listed
from siam_bids.support.tsv import number_of, read_rows, some

logger = logging.getLogger(__name__)

_SCANNERS: dict[str, dict[str, Any]] = {
    field: {"Description": f"{field} in the JSON files beside the source image."}
    | ({"Units": units} if units else {})
    for field, units in SCANNER.items()
}

SUBJECT_PAGES = 1000
"""Subjects up to which the group level rewrites their pages, to show the group on them."""

WIDE = "group_desc-wide_volumes"
QUALITY = "group_qc"
CHANGES = "group_changes"
STATISTICS = "group_statistics"
SITES = "group_harmonization"

SITE = "site"
"""Column of the sites where --site-column names no other."""


@dataclass(frozen=True, kw_only=True)
class GroupSummary:
    """What the group level made of an output folder.

    Attributes
    ----------
    wide
        The wide table: one row per scan.
    left_out
        Results that are in no table, with the reason of each in one line.
    pages
        Subjects' pages that could not be written, with the reason of each.
    unusable
        What files of ratings hold besides ratings, in a sentence each.
    """

    wide: pd.DataFrame
    left_out: dict[str, str]
    pages: dict[str, str]
    unusable: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether nothing was left out."""
        return not self.left_out and not self.pages and not self.unusable

    def lines(self) -> list[str]:
        """Return the summary in words."""
        lines = [f"LEFT OUT {reason}" for reason in (*self.left_out.values(), *self.unusable)]
        return lines + [f"FAILED {name}: {reason}" for name, reason in self.pages.items()]


def run_group(config: RunConfig) -> GroupSummary:
    """Gather all scans of the output folder into tables and one page.

    The tables and the page of the group appear together: if the disk fills up, the old ones stay.

    Raises
    ------
    DatasetError
        The output folder holds no results.
    UsageError
        An option names columns that are absent or empty, as those of a participants.tsv that cannot
        be read are.
    OSError
        The tables cannot be written.
    """
    root = config.output_dir
    check_output_folder(root, forced=config.force_output)
    found = read_results(root)
    results, left_out = found.usable, _left_out(root, found)
    if not results:
        several = f", {len(left_out)} that cannot be used" if left_out else ""
        raise DatasetError(
            f"{root} holds no segmentations{several}.", "Run the participant level on it first."
        )
    labels = read_label_table(root)
    group = _gather(results, labels, config)
    cautions = [*mixed_protocols(group.wide), *old_consensus(results), *copies(results)]
    for said in cautions:
        logger.warning("%s", said)
    seen = {result.names.identity.subject for result in results}
    missing = [f"sub-{label}" for label in _subjects(config.bids_dir) if label not in seen]
    if missing:
        logger.warning(
            "%s without results: %s", number_of(len(missing), "participant"), some(missing)
        )
    sweep_root(root)
    people = sorted(seen | {names.identity.subject for names in found.unusable})
    paged = people if len(people) <= SUBJECT_PAGES else []
    with together() as batch:
        if not config.reports_only:
            save(batch, group, labels, config)
        resources = [RESOURCES] if save_resources(batch, root) else []
        write_reference(batch, root, group)
        write_group_page(
            batch,
            root,
            results,
            group,
            labels,
            title=_dataset_name(config.bids_dir),
            missing=missing,
            left_out=left_out,
            cautions=cautions,
            pages=paged,
            files=[*_files(group), *resources],
            formula=config.formula,
            command=config.command,
        )
    if not paged:
        logger.info("To show the group on the subject pages, run: participant --reports-only")
    pages: dict[str, str] = {}
    reference = read_reference(root)
    write = partial(write_subject_page, reference=reference, years=group.years)
    for subject in paged:
        own = (root, subject, config.command, config.bids_dir)
        pages |= write_page(f"sub-{subject}.html", write, *own)
    return GroupSummary(wide=group.wide, left_out=left_out, pages=pages, unusable=group.unusable)


def old_consensus(results: Sequence[ScanResult]) -> list[str]:
    """Name each consensus whose scans were segmented anew with another combination."""
    combined = {result.source: result.about.get(COMBINED) for result in results
                if result.names.identity.suffix != CONSENSUS}  # fmt: skip
    return [
        f"{result.names.name} is older than the scans that it was made of: run the participant "
        "level with --combine again, or delete its files."
        for result in results
        if result.names.identity.suffix == CONSENSUS
        and any(
            combined.get(str(source).removeprefix("bids:raw:")) != result.about.get(COMBINED)
            for source in result.about["Sources"]
        )
    ]


def copies(results: Sequence[ScanResult]) -> list[str]:
    """Name scans whose images have the same content."""
    names: dict[str, list[str]] = {}
    for result in results:
        if result.names.identity.suffix != CONSENSUS:
            names.setdefault(result.about["InputSHA256"], []).append(result.names.name)
    return [
        f"{' and '.join(alike) if len(alike) == 2 else some(alike, 3)} have the same image: "
        "one was copied under the name of another."
        for alike in names.values()
        if len(alike) > 1
    ]


def _left_out(root: Path, found: Results) -> dict[str, str]:
    """Name every result that is in no table, with the reason, also as a warning."""
    left_out = {names.name: reason for names, reason in found.unusable.items()}
    left_out |= {path.relative_to(root).as_posix(): misplaced(path) for path in stray_results(root)}
    usable = {result.names.name for result in found.usable}  # another run may replace some
    known = usable | {*left_out}
    left_out |= {
        name: undeclared(path) for name, path in undeclared_results(root) if name not in known
    }
    for reason in left_out.values():
        logger.warning("Left out: %s", reason)
    return left_out


def _gather(results: Sequence[ScanResult], labels: LabelTable, config: RunConfig) -> GroupTables:
    """Make every table; where a formula cannot be fulfilled, the table of an earlier one goes."""
    try:
        return gather(results, labels, config)
    except UsageError as error:
        if config.formula and not config.reports_only:
            with together() as batch:
                remove_table(batch, config.output_dir, STATISTICS)
        lost = unreadable_participants(config.bids_dir)
        if lost and isinstance(error, UnknownColumnError):
            raise UsageError(error.message, lost) from error
        raise


def check_options(config: RunConfig) -> None:
    """Check the options of the group level as far as possible without results.

    Raises
    ------
    UsageError
        The formula, a rule of exclusion or a file of ratings cannot be read.
    """
    if config.formula:
        parse(config.formula)
    for rule in config.exclude:
        Exclusion.parse(rule)
    read_ratings(config.ratings)


def gather(results: Sequence[ScanResult], labels: LabelTable, config: RunConfig) -> GroupTables:
    """Make every table from the results of all scans."""
    keys = _keys(results)
    quality = _quality_table(keys, results)
    unusable: list[str] = []
    files = config.ratings or rating_files(config.output_dir)
    ratings = read_ratings(files, unusable, strict=bool(config.ratings))
    for said in unusable:
        logger.warning("%s", said)
    unknown = sorted({*ratings["scan"]} - {*keys["scan"]})
    if unknown:
        logger.warning("The ratings name scans without results: %s.", some(unknown))
    quality = _with_scanners(quality, results, config)
    described = keys.merge(quality[["scan", "flag"]], on="scan")
    if len(ratings):
        described = described.merge(combined(ratings), on="scan", how="left")
    joined = _with_covariates(described, results, quality, config)
    covariates = tuple(str(name) for name in joined if name not in described)
    times, units = _times(results, joined, config)
    protocol = protocols(joined, config.group_by)
    for table in (joined, quality):
        table.insert(list(table).index("contrast") + 1, PROTOCOL, protocol)
    tidy = tidy_volumes(joined, [result.volumes for result in results])
    excluded = exclusions(_with_quality(wide_volumes(tidy, joined), quality), config.exclude)
    _say_what_counts(joined, excluded)
    joined, tidy, quality = (with_inclusion(each, excluded) for each in (joined, tidy, quality))
    tidy[ADJUSTED] = head_size_adjusted(tidy, excluded)
    wide = wide_volumes(tidy, joined)
    inside = (
        INTRACRANIAL,
        *(label.name for label in labels.foreground if label.role in ("", *INTRACRANIAL_ROLES)),
    )
    tissues = tuple(name for name in inside if name in wide)
    measured = _with_quality(wide, quality)
    site = _site_column(measured, config)
    effects, harmonized = NO_EFFECTS, ""
    if config.harmonize is not None:
        harmonized = config.harmonize or site or SITE
        done = harmonize(measured, tissues, harmonized, excluded)
        wide, effects = wide.join(done.volumes), done.effects
        measured = _with_quality(wide, quality)
    observed = [*tissues, *(metric.name for metric in metrics() if metric.name in quality)]
    adjust = tuple(INTRACRANIAL if name == "ICV" else name for name in config.adjust)
    return GroupTables(
        tidy=tidy,
        wide=wide,
        quality=quality,
        outliers=find_outliers(
            measured, list(dict.fromkeys(observed)), adjust=adjust, excluded=excluded
        ),
        changes=changes(
            wide,
            tissues,
            times,
            {result.names.name: result.noise for result in results},
            {result.names.name: result.partners for result in results},
        ),
        statistics=fit_tissues(measured, config.formula, tissues, excluded)
        if config.formula
        else NO_STATISTICS,
        tissues=tissues,
        covariates=covariates,
        site=site,
        harmonized=harmonized,
        site_effects=effects,
        ratings=ratings,
        unusable=tuple(unusable),
        scanners=tuple(name for name in SCANNER if name in quality),
        excluded=excluded,
        age_units=units,
        years=dict(zip(joined["scan"], times["years"], strict=True)),
    )


def _times(
    results: Sequence[ScanResult], joined: pd.DataFrame, config: RunConfig
) -> tuple[pd.DataFrame, str]:
    """Return when the session of each scan was, by the raw dataset, else by an earlier run.

    And the units of ages, empty where none are named.
    """
    visits = [result.names.identity.visit for result in results]
    sources = [result.source for result in results]
    dates, ages, units = read_times(config.bids_dir, visits, sources)
    if not any(dates) and "acq_time" in joined:
        dates = joined["acq_time"].fillna("").tolist()
    if not any(ages) and "age" in joined:
        units = [age_units(read_json(config.output_dir / f"{WIDE}.json"))] * len(joined)
        numbers = pd.to_numeric(joined["age"], errors="coerce")
        ages = [*map(top_coded, numbers, units)]
    named = {unit or "year" for unit, age in zip(units, ages, strict=True) if age}
    in_words = " or ".join(sorted(named)) if any(units) else ""
    return session_times(visits, dates, ages, units), in_words


def _site_column(table: pd.DataFrame, config: RunConfig) -> str:
    """Return the column of the sites: --site-column, that of --harmonize, or `site`, else empty."""
    if config.site_column:
        check_columns(table, [config.site_column], "--site-column")
    named = (config.site_column, config.harmonize, SITE)
    return next((name for name in named if name and name in table), "")


def _with_quality(wide: pd.DataFrame, quality: pd.DataFrame) -> pd.DataFrame:
    """Return all that is known of each scan."""
    again = list({*quality} & {*wide} - {"scan"})
    return wide.merge(quality.drop(columns=again), on="scan", validate="one_to_one")


def _say_what_counts(scans: pd.DataFrame, excluded: Mapping[str, str]) -> None:
    """Say how many scans are left out, or how many that someone or something calls bad are in."""
    if excluded:
        logger.warning(
            "--exclude leaves out %d of %s.", len(excluded), number_of(len(scans), "scan")
        )
    included = scans.loc[~scans["scan"].isin(list(excluded))]
    for column, done in (("rating", "rated"), ("flag", "flagged")):
        bad = int((included[column] == "fail").sum()) if column in included else 0
        if bad:
            logger.warning(
                "Scans %s fail are included in all statistics: %d of %d; --exclude %s=fail "
                "leaves them out.",
                done, bad, len(included), column,
            )  # fmt: skip


def save(batch: Batch, group: GroupTables, labels: LabelTable, config: RunConfig) -> None:
    """Write every table with its dictionary; tables that have become empty are removed."""
    root = config.output_dir
    known = read_json(root / f"{WIDE}.json") | read_json(config.bids_dir / "participants.json")
    if group.age_units:
        about = known.get("age")
        told = about if isinstance(about, Mapping) else {}
        known["age"] = {**told, "Units": group.age_units}
    names = {label.name: label.long_name for label in labels.foreground}
    names[INTRACRANIAL] = describe_total(labels)

    def described(table: pd.DataFrame) -> dict[str, Any]:
        return dictionary(list(map(str, table)), names, known)

    dictionaries = {
        QUALITY: {
            **described(group.quality),
            **{name: _SCANNERS[name] for name in group.scanners},
            **quality_dictionary(tuple(map(str, group.quality))),
        },
        CHANGES: changes_dictionary(list(map(str, group.changes))),
        SITES: SITES_DICTIONARY,
        STATISTICS: group.statistics.dictionary,
    }
    for name, table in _tables(group).items():
        if _is_written(name, table):
            save_table(batch, root, name, table, dictionaries.get(name) or described(table))
        else:
            remove_table(batch, root, name)
    save_phenotype(
        batch,
        root,
        {kind: (part, described(part)) for kind, part in _phenotype(group).items()},
    )


def _tables(group: GroupTables) -> dict[str, pd.DataFrame]:
    return {
        "group_desc-tidy_volumes": group.tidy,
        WIDE: group.wide,
        QUALITY: group.quality,
        "group_outliers": group.outliers,
        CHANGES: group.changes,
        SITES: group.site_effects,
        STATISTICS: group.statistics.table,
    }


def _is_written(name: str, table: pd.DataFrame) -> bool:
    return name == "group_outliers" or not table.empty


def _phenotype(group: GroupTables) -> dict[str, pd.DataFrame]:
    """Return the wide table by kind of scan: a measure has one row per participant."""
    kinds = group.wide["scan"].str.partition("_")[2]
    return {str(kind): part for kind, part in group.wide.drop(columns="scan").groupby(kinds)}


def _files(group: GroupTables) -> list[str]:
    """Return the tables of the output folder, as paths within it."""
    written = [name for name, table in _tables(group).items() if _is_written(name, table)]
    return [
        *(f"{name}.tsv" for name in written),
        *(f"phenotype/siam_{kind}.tsv" for kind in _phenotype(group)),
        LABEL_TABLE,
    ]


def _keys(results: Sequence[ScanResult]) -> pd.DataFrame:
    entities = [result.names.identity.labels for result in results]
    columns = {column: column.removesuffix("_id") for column in ENTITY_COLUMNS}
    return pd.DataFrame(
        {
            "participant_id": [result.names.identity.visit[0] for result in results],
            "session_id": _texts([result.names.identity.visit[1] for result in results]),
            "contrast": [result.names.identity.suffix for result in results],
            "scan": [result.names.name for result in results],
        }
        | {
            column: _texts([f"{key}-{own[key]}" if key in own else "" for own in entities])
            for column, key in columns.items()
            if any(key in own for own in entities)
        }
        | (
            {COMBINED_COLUMN: [result.combined for result in results]}
            if any(COMBINED in result.about for result in results)
            else {}
        )
    )


def _quality_table(keys: pd.DataFrame, results: Sequence[ScanResult]) -> pd.DataFrame:
    judged = [judge(result.quality) if result.quality else ("", ()) for result in results]
    values = pd.DataFrame([result.quality for result in results], dtype=float)
    return keys.assign(
        flag=_texts([flag for flag, _ in judged]),
        reasons=_texts(["; ".join(reasons) for _, reasons in judged]),
        **{str(name): values[name] for name in values},
    )


def _texts(values: Sequence[str]) -> pd.Series[str]:
    """Return text with empty ones missing."""
    return pd.Series([value or np.nan for value in values], dtype="str")


def _with_covariates(
    keys: pd.DataFrame, results: Sequence[ScanResult], quality: pd.DataFrame, config: RunConfig
) -> pd.DataFrame:
    """Add covariates of the raw dataset; where it has no tables, those of an earlier run."""
    visits = [result.names.identity.visit for result in results]
    scans = keys["scan"].tolist()
    tissues = dict.fromkeys(row["name"] for result in results for row in result.volumes)
    taken = {*reserved(tissues), *quality}
    columns: dict[str, Sequence[str | None]] = {}
    columns |= read_covariates(config.bids_dir, visits)
    if not columns and not is_listed(config.bids_dir / "participants.tsv"):
        columns |= _earlier(config.output_dir, scans, taken)
    sources = [result.source for result in results]
    times = acquisition_times(config.bids_dir, sources)
    if times:
        known = columns.get("acq_time", [None] * len(results))
        columns["acq_time"] = [
            times.get(source, time) for source, time in zip(sources, known, strict=True)
        ]
    return join_covariates(keys, columns, taken)


def _earlier(
    root: Path, scans: Sequence[str], taken: Collection[str]
) -> dict[str, tuple[str | None, ...]]:
    """Return the covariates in the wide table of an earlier run, as text by scan."""
    rows = _rows_by_scan(root / f"{WIDE}.tsv")
    own = [rows.get(scan, {}) for scan in scans]
    described = read_json(root / f"{WIDE}.json")
    kept = [name for name in covariates_of(described) if name not in taken]
    if kept:
        logger.warning("Covariates are taken from the earlier run: %s.", some(kept))
    return {name: tuple(row.get(name) for row in own) for name in kept}


def _rows_by_scan(path: Path) -> dict[str, dict[str, str]]:
    """Read a table of an earlier run; none without one."""
    try:
        return {row["scan"]: row for row in read_rows(path)} if path.exists() else {}
    except (ValueError, KeyError) as error:
        logger.warning("%s cannot be read as a table and is left out: %s.", path, error)
        return {}


def _with_scanners(
    quality: pd.DataFrame, results: Sequence[ScanResult], config: RunConfig
) -> pd.DataFrame:
    """Add scanner metadata of the raw images, or of an earlier run."""
    if config.bids_dir.is_dir():
        columns = scanner_metadata(config.bids_dir, [result.source for result in results])
    else:
        rows = _rows_by_scan(config.output_dir / f"{QUALITY}.tsv")
        own = [rows.get(scan, {}) for scan in quality["scan"]]
        columns = {name: tuple(row.get(name) for row in own) for name in SCANNER}
        columns = {name: cells for name, cells in columns.items() if any(cells)}
    return join_covariates(quality, columns, ())


def _subjects(bids_dir: Path) -> list[str]:
    """List who is in the raw dataset; without one, nobody, with a warning."""
    try:
        return subjects(bids_dir)
    except DatasetError as error:
        logger.warning("Participants without results cannot be listed: %s", error)
        return []


def _dataset_name(bids_dir: Path) -> str:
    about: Mapping[str, Any] = read_json(bids_dir / "dataset_description.json")
    return str(about.get("Name") or bids_dir.resolve().name)
