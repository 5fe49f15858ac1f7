"""Which outputs a scan has, whether they are done, and why not."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from siam_bids.bids.dataset import Selection, find_scans
from siam_bids.bids.description import ABOUT_LABELS
from siam_bids.bids.names import FIGURES, ScanNames, sidecar
from siam_bids.bids.ownership import check_output_folder
from siam_bids.bids.records import read_record
from siam_bids.bids.results import read_result
from siam_bids.bids.scan import CONSENSUS, CT, EXTENSIONS, NO_ANATOMY, BidsName, Scan, stem_of
from siam_bids.bids.status import (
    COMBINED,
    COMBINED_AS,
    COMBINING_METHOD,
    changed_outputs,
    check_unknown,
    entry,
    to_do,
)
from siam_bids.config import DEFAULT_SUFFIXES, RunConfig
from siam_bids.errors import DatasetError, SiamError, UsageError, did_you_mean, known_names
from siam_bids.image.grid import Grid
from siam_bids.image.image_file import image_checksum
from siam_bids.image.labels import LabelTable
from siam_bids.image.loading import read_grid
from siam_bids.inference.cascade import Cascade
from siam_bids.measures.aseg import NEEDED, can_be_aseg
from siam_bids.measures.hemispheres import PAIRED, paired_labels
from siam_bids.measures.lesions import lesion_names
from siam_bids.models.model import Model
from siam_bids.models.registry import find_model
from siam_bids.pipelines.failures import reason_of
from siam_bids.pipelines.person import consensus_provenance, consensus_scan
from siam_bids.pipelines.provenance import made_from
from siam_bids.support.atomic_files import read_json
from siam_bids.support.tsv import some

logger = logging.getLogger(__name__)


def prepare(config: RunConfig) -> tuple[Checklist, Selection]:
    """Check all that a run needs, writing nothing; return what it makes and of which scans.

    Raises
    ------
    SiamError
        The folders, the dataset, the model or the options are unusable.
    """
    check_folders(config)
    model = model_of(config)
    found = find_scans(config.bids_dir, config.query)
    cascade = Cascade.open(model, config.inference.folds)
    cascade.check(config.inference)
    config = with_tissues(config, cascade.labels)
    if alone := alone_by_selection(found, config):
        logger.warning(
            "%s: %s other %s are not selected, so nothing is combined.",
            some([f"sub-{subject}" for subject in alone], 3),
            "its" if len(alone) == 1 else "their",
            "sessions" if config.combine == "sessions" else "scans",
        )
    return Checklist(config, model, cascade, tuple(found.scans)), found


def model_of(config: RunConfig) -> Model:
    """Find the model of a run, without what its options leave out."""
    model = find_model(config.model, config.model_dirs, config.inference.checkpoint)
    return model.with_options(config.inference)


def unfinished(config: RunConfig) -> tuple[Cascade, Selection]:
    """Return the models and the scans that are not done, by their sidecars, reading no image.

    A scan whose content changed since counts as done here; its own job would notice.
    """
    checklist, found = prepare(config)
    rest = {scan for scan in found.scans if checklist.why(scan, trusting=True)}
    for each in {*checklist.combinations.values()}:
        for session in each.sessions:
            if not rest & {*session} and checklist.consensus_why(session, trusting=True):
                rest |= {*session}
    return checklist.cascade, replace(found, scans=[s for s in found.scans if s in rest])


def nothing_matches(config: RunConfig) -> DatasetError:
    """Return the error for a query without scans."""
    odd = [suffix for suffix in config.query.suffixes if suffix not in DEFAULT_SUFFIXES]
    return DatasetError(
        f"No anatomical image in {config.bids_dir} matches the query "
        f"(suffixes {', '.join(config.query.suffixes)}).",
        (did_you_mean(odd[0], DEFAULT_SUFFIXES) if odd else "")
        or "Look at --suffix, --participant-label, --session-label and --bids-filter-file.",
    )


@dataclass(frozen=True, kw_only=True)
class Prospect:
    """What a run would do with a scan.

    Attributes
    ----------
    why
        Why it would be segmented; empty if it is done, or if it would fail.
    error
        Why it would fail, judging by its header.
    kept
        It would fail because its results were edited, or are not known, and are kept.
    again
        It failed before and is unchanged: to be tried again.
    grid
        Where its voxels are, if the networks would see it.
    """

    scan: Scan
    why: str = ""
    error: str = ""
    kept: bool = False
    again: bool = False
    grid: Grid | None = None


@dataclass(frozen=True)
class Checklist:
    """What a run makes of each scan, and whether that is there already.

    Attributes
    ----------
    config
        With the names of all tissues whose probability maps are wanted.
    """

    config: RunConfig
    model: Model
    cascade: Cascade
    scans: tuple[Scan, ...] = ()

    @cached_property
    def combinations(self) -> dict[Scan, Combination]:
        """The scans that are combined with others, each with its combination."""
        found = combinations(self.scans, self.config.combine)
        return {scan: each for each in found for scan in each.scans}

    def combined(self, scan: Scan, checksums: Mapping[str, str]) -> dict[str, Any]:
        """Return the sidecar entry on what a scan is combined with; empty for a scan alone.

        Parameters
        ----------
        checksums
            Those that are known, by path of the scan in its dataset; the others are computed.
        """
        if not (own := self.combinations.get(scan)):
            return {}
        inputs = {
            each.relative: checksums.get(each.relative) or self.checksum(each) for each in own.scans
        }
        return {COMBINED: {"By": own.by, "Method": COMBINING_METHOD, "Inputs": inputs}}

    def checksum(self, scan: Scan) -> str:
        """Return the checksum of a scan, computed once; `unreadable` if there is none."""
        if scan not in self._checksums:
            try:
                self._checksums[scan] = image_checksum(scan.path)
            except (SiamError, OSError):  # its own turn tells what is wrong with it
                self._checksums[scan] = "unreadable"
        return self._checksums[scan]

    @cached_property
    def _checksums(self) -> dict[Scan, str]:
        return {}

    def names(self, scan: Scan) -> ScanNames:
        """Return where the results of a scan go."""
        return output_names(self.config.output_dir, scan)

    def outputs(self, names: ScanNames) -> list[Path]:
        """Return all files that a finished scan has, but for sidecars and data dictionaries.

        A consensus has no probability maps.
        """
        pictures = [names.figure(kind) for kind in FIGURES]
        tissues = () if names.identity.suffix == CONSENSUS else self.config.probabilities
        maps = [names.probability(tissue) for tissue in tissues]
        tables = [names.volumes, names.quality]
        if lesion_names(self.cascade.labels):
            tables.append(names.lesions)
        masks = [names.brain_mask] if self.cascade.labels.brain else []
        kinds = self.config.segmentations
        more = [names.further_segmentation(kind) for kind in kinds]
        more += [names.further_volumes("aseg")] if "aseg" in kinds else []
        return [names.segmentation, *more, *masks, *tables, *pictures, *maps]

    def provenance(
        self, scan: Scan, checksum: str, others: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Return the sidecar of a finished scan.

        Parameters
        ----------
        checksum
            Of its input.
        others
            Checksums of the scans that it is combined with, see `combined`.
        """
        made = made_from(
            scan.path,
            checksum,
            self.model,
            folds=self.cascade.folds,
            options=self.config.inference,
        )
        return {
            **ABOUT_LABELS,
            "Sources": [f"bids:raw:{scan.relative}"],
            **made,
            **self.combined(scan, {**(others or {}), scan.relative: checksum}),
            "Options": {
                "probabilities": sorted(self.config.probabilities),
                **({"segmentations": [*more]} if (more := self.config.segmentations) else {}),
                **made["Options"],
            },
        }

    def why(self, scan: Scan, *, trusting: bool = False) -> str:
        """Say why a scan must be segmented, empty if it is done.

        Parameters
        ----------
        trusting
            Take its content for unchanged, without reading it.
        """
        names = self.names(scan)
        known = read_json(sidecar(names.segmentation))
        if trusting:
            checksum = str(known.get("InputSHA256", ""))
            made = self.provenance(scan, checksum, self._recorded(known))
            return self._missing(names, known, made) or self._again
        checksum = image_checksum(scan.path) if known else ""
        return self.compare(names, known, self.provenance(scan, checksum))

    def _recorded(self, known: Mapping[str, Any]) -> dict[str, str]:
        """Return the checksums of all scans, those of a combination as a sidecar records them."""
        others = entry(entry(known, COMBINED), "Inputs")
        return {each.relative: "unknown" for each in self.scans} | {**others}

    def consensus_why(
        self, session: Sequence[Scan], new: Collection[Scan] = (), *, trusting: bool = False
    ) -> str:
        """Say why a session needs a (new) consensus; empty if it has one, or is to have none.

        Parameters
        ----------
        session
            Scans of one combination.
        new
            Those that are to be segmented. Of the others count those that share their prior.
        trusting
            As in `why`.

        Raises
        ------
        DatasetError
            As `compare`.
        """
        known = {scan: read_json(sidecar(self.names(scan).segmentation)) for scan in session}
        made = {}
        for scan, own in known.items():
            checksum = str(own.get("InputSHA256", "")) if trusting else self.checksum(scan)
            shares = own.get("InputSHA256") == checksum and "Weight" in entry(own, COMBINED_AS)
            if shares or scan in new:
                others = self._recorded(own) if trusting else None
                made[scan] = self.provenance(scan, checksum, others)
        if len(made) < 2:
            return ""
        names = self.names(consensus_scan([*made]))
        before = read_json(sidecar(names.segmentation))
        if trusting:
            return self._missing(names, before, consensus_provenance(made)) or self._again
        return self.compare(names, before, consensus_provenance(made))

    def lacked(self, scan: Scan, seen: Collection[Scan]) -> str:
        """Say which scan failed when the results of another were made, and has been seen now."""
        known = read_json(sidecar(self.names(scan).segmentation))
        without = entry(known, COMBINED_AS).get("Without")
        failed = without if isinstance(without, list) else []
        found = [each.path.name for each in seen if each.relative in failed]
        return f"{found[0]} failed before" if found else ""

    def failed_before(self, scan: Scan) -> bool:
        """Tell whether the last attempt on a scan failed, and it is unchanged since."""
        past = read_record(self.names(scan).record)
        return bool(past.get("error")) and past.get("input") == self.checksum(scan)

    def compare(
        self, names: ScanNames, known: Mapping[str, Any], provenance: Mapping[str, Any]
    ) -> str:
        """Say why results do not do for this provenance, empty if they do; `known` is theirs.

        Raises
        ------
        DatasetError
            An output was changed since, by hand or by another run, or was never recorded, and is
            not to be overwritten.
        """
        why = self._missing(names, known, provenance) or self._again
        if self.config.overwrite:
            return why
        changed = changed_outputs(names.root, known)
        if changed:
            raise DatasetError(
                f"{Path(changed[0]).name} was changed since its scan was segmented, by hand or by "
                "another run.",
                "Move it if you want to keep it; --overwrite replaces it.",
            )
        if why:
            check_unknown(names, known, self.outputs(names))
        return why

    def _missing(
        self, names: ScanNames, known: Mapping[str, Any], provenance: Mapping[str, Any]
    ) -> str:
        if why := to_do(names, known, provenance, self.outputs(names)):
            return why
        try:
            read_result(names, self.cascade.labels)
        except DatasetError as error:
            return str(error).removesuffix(".")
        return ""

    @property
    def _again(self) -> str:
        return "to be overwritten" if self.config.overwrite else ""

    def prospect(self, scan: Scan) -> Prospect:
        """Say what would become of a scan."""
        try:
            why = self.why(scan)
            if not why:
                return Prospect(scan=scan)
            if self.failed_before(scan):
                return replace(self.needed(scan, "it failed before"), again=True)
            return self.needed(scan, why)
        except (SiamError, OSError) as error:
            kept = isinstance(error, DatasetError)  # see `compare`
            return Prospect(scan=scan, error=reason_of(error), kept=kept)

    def needed(self, scan: Scan, why: str) -> Prospect:
        """Return what a run would do with a scan that its networks must see, judging by its header.

        Raises
        ------
        SiamError, OSError
            It would fail.
        """
        grid = read_grid(scan.path, index=self.config.inference.volume)
        return Prospect(scan=scan, why=why, grid=grid)


@dataclass(frozen=True)
class Combination:
    """Scans of a participant that share one prior, in order of their paths.

    Attributes
    ----------
    by
        The choice of `--combine`.
    """

    by: str
    scans: tuple[Scan, ...]

    @property
    def sessions(self) -> list[tuple[Scan, ...]]:
        """The scans of each session that has several: these get a consensus."""
        parts: dict[str, list[Scan]] = {}
        for scan in self.scans:
            parts.setdefault(scan.identity.session, []).append(scan)
        return [tuple(part) for part in parts.values() if len(part) > 1]


def combinations(scans: Iterable[Scan], by: str) -> list[Combination]:
    """Return which scans are combined: at least two each, of one participant, none of them a CT."""
    if by == "none":
        return []
    groups: dict[tuple[str, ...], list[Scan]] = {}
    for scan in scans:
        identity = scan.identity
        if identity.suffix in CT:
            continue
        alike = tuple(f"{key}-{label}" for key, label in identity.entities if key != "ses")
        keys = {
            "all": (),
            "contrasts": (identity.session,),
            "sessions": (*alike, identity.suffix),
        }
        groups.setdefault((identity.subject, *keys[by]), []).append(scan)
    return [Combination(by, tuple(group)) for group in groups.values() if len(group) > 1]


def alone_by_selection(found: Selection, config: RunConfig) -> list[str]:
    """Return the participants of whom `--combine` combines nothing because the query leaves out."""
    selected = {scan.identity: scan for scan in found.scans}
    everyone = [*found.scans]
    for place in filter(lambda name: name.endswith(EXTENSIONS), found.skipped):
        path = Path(place)
        with suppress(DatasetError):  # no name of an image
            identity = BidsName.parse(stem_of(path))
            known = identity.suffix in {*DEFAULT_SUFFIXES, *config.query.suffixes}
            if known and identity.labels.get("part") not in NO_ANATOMY and identity not in selected:
                everyone.append(Scan(path=path, relative=place, identity=identity))
    now = {each.scans[0].identity.subject for each in combinations(found.scans, config.combine)}
    could = {
        scan.identity.subject
        for each in combinations(everyone, config.combine)
        for scan in each.scans
        if scan.identity in selected
    }
    return sorted(could - now)


def output_names(root: Path, scan: Scan) -> ScanNames:
    """Return where the results of a scan go."""
    return ScanNames(root, scan.identity)


def check_folders(config: RunConfig) -> None:
    """Refuse an output folder that is the input, holds it, is a file, or holds others' work."""
    source, target = config.bids_dir.resolve(), config.output_dir.resolve()
    if source == target:
        raise UsageError("Input and output folder are the same.", "Give another output folder.")
    if target in source.parents:
        raise UsageError(
            f"The input folder lies inside the output folder {config.output_dir}.",
            "Give an output folder of its own.",
        )
    check_output_folder(config.output_dir, forced=config.force_output)


def with_tissues(config: RunConfig, labels: LabelTable) -> RunConfig:
    """Name all tissues whose probability maps are wanted.

    Raises
    ------
    UsageError
        A tissue is unknown, or no tissue has the sides that are asked for.
    """
    unknown = [name for name in config.probabilities if name not in labels.by_name]
    if unknown:
        raise UsageError(
            f"The model has no tissue {', '.join(unknown)}.",
            known_names(unknown[0], labels.by_name, "tissues"),
        )
    if "aseg" in config.segmentations and not can_be_aseg(labels):
        raise UsageError(
            "The labels of the model do not make a segmentation of FreeSurfer's.",
            f"Leave out --aseg. Needed are {', '.join(NEEDED)}.",
        )
    if config.segmentations and not paired_labels(labels):
        raise UsageError(
            "The model has no tissue of which both hemispheres have one.",
            f"Leave out --hemispheres. Such tissues are called {', '.join(PAIRED)}.",
        )
    every = [label.name for label in labels.foreground] if config.write_probseg else []
    return replace(config, probabilities=tuple(dict.fromkeys([*config.probabilities, *every])))
