"""The participant level: segment, measure and report every scan."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from itertools import groupby
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from siam_bids.bids.description import DESCRIPTION, FURTHER, begin_dataset
from siam_bids.bids.names import ScanNames, finished_scans, sidecar
from siam_bids.bids.ownership import check_output_folder
from siam_bids.bids.scan import CONSENSUS, CT, Scan
from siam_bids.bids.status import (
    COMBINED,
    COMBINED_AS,
    combined_by,
    failed_scans,
    finish_scan,
    place_results,
    subject_state,
    sweep_subject,
    to_do,
)
from siam_bids.bids.writers import (
    Written,
    save_described,
    save_mask,
    save_picture,
    save_probability,
    save_quality,
    save_segmentation,
    save_sidecar,
    save_text,
    save_values,
    save_volumes,
)
from siam_bids.config import RunConfig
from siam_bids.errors import DatasetError, SiamError
from siam_bids.image.grid import Segmentation, Volume
from siam_bids.image.image_file import image_checksum
from siam_bids.image.loading import load_volume
from siam_bids.image.transforms import Affine, transform_text
from siam_bids.inference.cascade import Cascade, CascadeSegmenter
from siam_bids.inference.device import choose_device
from siam_bids.inference.prediction import Prediction, Progress
from siam_bids.measures.aseg import DICTIONARY as ASEG_DICTIONARY, aseg_values, aseg_volumes
from siam_bids.measures.hemispheres import find_sides, mid_surface, sided_values
from siam_bids.measures.lesions import (
    DICTIONARY as LESIONS_DICTIONARY,
    lesion_names,
    lesion_table,
)
from siam_bids.measures.quality import scan_quality
from siam_bids.measures.volumes import COMBINED as COMBINED_COLUMN, tissue_volumes
from siam_bids.pipelines.failures import (
    fatal,
    forget_failure,
    record_failure,
    record_success,
    write_page,
)
from siam_bids.pipelines.person import (
    Kept,
    Person,
    best_first,
    consensus_provenance,
    consensus_scan,
    keeping,
    vote,
)
from siam_bids.pipelines.provenance import found_in
from siam_bids.pipelines.todo import (
    Checklist,
    Combination,
    model_of,
    nothing_matches,
    prepare,
)
from siam_bids.reports.methods_text import methods_text, model_line
from siam_bids.reports.mosaics import draw
from siam_bids.reports.subject import write_subject_page
from siam_bids.reports.viewer_volumes import save_previews
from siam_bids.support.atomic_files import read_json, staging
from siam_bids.support.background import WriteBehind, read_ahead
from siam_bids.support.memory import reset_peak_memory
from siam_bids.support.timing import Meter
from siam_bids.support.tsv import number_of

logger = logging.getLogger(__name__)


@dataclass
class Summary:
    """What became of the scans of a run, by name, with one-line reasons of what failed.

    Attributes
    ----------
    pages
        Subjects' pages that could not be written, with their reasons.
    """

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether all that was asked for exists."""
        return not self.failed and not self.pages

    def lines(self) -> list[str]:
        """Return the summary in words."""
        head = f"{len(self.done)} segmented, {len(self.skipped)} already done, "
        lines = [head + f"{len(self.failed)} failed."]
        return lines + [
            f"FAILED {name}: {reason}" for name, reason in (self.failed | self.pages).items()
        ]


def run_participant(config: RunConfig) -> Summary:
    """Segment, measure and report every scan of the query.

    Raises
    ------
    SiamError
        The dataset, the model or the options are unusable. What is wrong with a single scan ends
        in the summary instead.
    """
    checklist, found = prepare(config)
    for name, reason in found.refused.items():
        if config.stop_on_first_crash:
            raise DatasetError(f"{name}: {reason}")
        logger.error("%s failed: %s", name, reason)
    refused = Summary(failed=found.refused)
    if not found.scans:
        if not found.refused:
            raise nothing_matches(config)
        return refused
    checklist.cascade.check_device(choose_device(config.device), config.inference)
    loop = _ScanLoop(checklist, refused)
    loop.begin_dataset()
    if limits := checklist.cascade.labels.limits:
        logger.warning("%s", limits)
    logger.info(
        "%s, model %s",
        number_of(len(found.scans), "scan"),
        model_line(checklist.model.describe()),
    )
    return loop.run(found.scans)


def boilerplate(config: RunConfig) -> str:
    """Return the methods text for the model and the combinations of a run."""
    model = model_of(config)
    labels = Cascade.open(model, config.inference.folds).labels
    return methods_text(
        [model.describe()],
        labels,
        {config.combine},
        consensus=config.combine in ("contrasts", "all"),
    )


def rebuild_reports(config: RunConfig) -> tuple[list[str], dict[str, str]]:
    """Rewrite the subjects' pages from the results on disk.

    Returns
    -------
    written
        Labels of the subjects.
    failed
        Name and reason of each page that could not be written.

    Raises
    ------
    UsageError
        The output folder has files of other programs.
    """
    check_output_folder(config.output_dir, forced=config.force_output)
    known = [*finished_scans(config.output_dir), *failed_scans(config.output_dir)]
    wanted = set(config.query.participants)
    subjects = {names.identity.subject for names in known}
    labels = sorted(subjects & wanted if wanted else subjects)
    failed: dict[str, str] = {}
    for subject in labels:
        failed |= write_page(f"sub-{subject}.html", _write_page, config, subject)
    return [label for label in labels if f"sub-{label}.html" not in failed], failed


@dataclass(frozen=True, kw_only=True)
class Order:
    """A scan that must be segmented: where the results go, what is said of them.

    Attributes
    ----------
    seen
        The sidecar of an earlier result, as it was when the scan was found to be segmented anew.
    overwrite
        Replace files that siam-bids does not know.
    segmentations
        Further label maps to write, keys of `FURTHER`.
    done
        Its results exist, but others of its combination have none.
    quality
        Further metrics.
    motion
        To the space in the middle of the person's scans, if it is known.
    """

    scan: Scan
    names: ScanNames
    seen: dict[str, Any]
    overwrite: bool
    segmentations: tuple[str, ...]
    provenance: dict[str, Any]
    meter: Meter
    done: bool = False
    quality: dict[str, float] = field(default_factory=dict)
    motion: Affine | None = None


@dataclass(frozen=True, kw_only=True)
class Task(Order):
    """A scan that must be segmented, with its voxels."""

    volume: Volume

    @property
    def order(self) -> Order:
        """The same without its voxels."""
        return Order(**{each.name: getattr(self, each.name) for each in fields(Order)})


class _ScanLoop:
    """Takes scans through reading, segmenting and writing; one bad scan stops no other.

    While one scan goes through the network, a thread reads the next and another writes the last.
    """

    def __init__(self, checklist: Checklist, summary: Summary) -> None:
        self.checklist = checklist
        self.config = checklist.config
        self.summary = summary

    def run(self, scans: Sequence[Scan]) -> Summary:
        """Process scans, ordered by subject, and write each subject's page."""
        quiet = not self.config.progress
        scans_read_ahead = read_ahead(partial(read_scan, self.checklist), scans)
        with (
            tqdm(total=len(scans), unit="scan", disable=quiet, smoothing=0) as bar,
            logging_redirect_tqdm(),
            WriteBehind() as writer,
        ):
            for subject, own in groupby(
                scans_read_ahead, key=lambda pair: pair[0].identity.subject
            ):
                sweep_subject(self.config.output_dir, subject)
                with keeping(self.checklist.cascade.labels) as kept:
                    orders: dict[Scan, Order] = {}
                    done: list[Scan] = []
                    for scan, reading in own:
                        with _shown(bar, scan.name) as progress:
                            if scan not in self.checklist.combinations:
                                self._process(scan, reading, writer, progress)
                            elif order := self._look(scan, reading, kept, progress):
                                orders[scan] = order
                            elif scan.name not in self.summary.failed:
                                done.append(scan)
                    orders |= self._look_again(orders, done, kept, bar)
                    self._finish_combined(orders, kept, writer)
                    self._warn_of_old_consensus(subject)
                writer.submit(self._write_page, subject)
            writer.wait()
        return self.summary

    def _process(
        self, scan: Scan, reading: Future[Task | None], writer: WriteBehind, progress: Progress
    ) -> None:
        try:
            task = reading.result()
            prediction = self._segment(task, progress) if task else None
        except Exception as error:  # noqa: BLE001 (one bad scan stops no other)
            self._fail(scan, error)
            return
        if not task or not prediction:
            self.summary.skipped.append(scan.name)
            forget_failure(self.checklist.names(scan))
            return
        self._submit(task, prediction, writer)

    def _submit(self, task: Task, prediction: Prediction, writer: WriteBehind) -> None:
        writer.wait()  # memory holds the results of one scan, no more
        writer.submit(self._finish, task, prediction)
        if prediction.probabilities:  # they hold this scan's logits: not two at once
            del prediction
            writer.wait()

    def _look(
        self, scan: Scan, reading: Future[Task | None], kept: Kept, progress: Progress
    ) -> Order | None:
        """Run the networks over a scan that is combined with others; None if done or failed."""
        try:
            task = reading.result()
            if task:
                reset_peak_memory()
                with task.meter.stage("segment"):
                    seen = self._segmenter.network(task.volume, progress=progress)
                    kept.add(scan, task.volume, seen)
                return task.order
        except Exception as error:  # noqa: BLE001 (one bad scan stops no other)
            self._fail(scan, error)
            return None
        forget_failure(self.checklist.names(scan))
        return None

    def _look_again(
        self, orders: Mapping[Scan, Order], done: Sequence[Scan], kept: Kept, bar: tqdm[Any]
    ) -> dict[Scan, Order]:
        """Run the networks over finished scans that those combined with them need.

        A scan that failed needs none.
        """
        of = self.checklist.combinations
        needed = {of[scan] for scan in orders}
        needed |= {each for each in {of[scan] for scan in done} - needed if self._lacks(each, done)}
        again = [scan for scan in done if of[scan] in needed]
        self.summary.skipped += [scan.name for scan in done if of[scan] not in needed]
        bar.total = (bar.total or 0) + len(again)
        found = {}
        for scan, reading in read_ahead(partial(read_scan, self.checklist, again=True), again):
            with _shown(bar, scan.name) as progress:
                if order := self._look(scan, reading, kept, progress):
                    found[scan] = order
        return found

    def _lacks(self, combination: Combination, done: Sequence[Scan]) -> bool:
        """Tell whether finished scans must be combined anew."""
        seen = [scan for scan in combination.scans if scan in done]
        return any(self.checklist.lacked(scan, seen) for scan in seen) or any(
            self._lacks_consensus(session) for session in combination.sessions
        )

    def _lacks_consensus(self, session: Sequence[Scan]) -> bool:
        try:
            return bool(self.checklist.consensus_why(session))
        except (SiamError, OSError) as error:
            self._fail(consensus_scan(session), error)
            return False

    def _finish_combined(
        self, orders: Mapping[Scan, Order], kept: Kept, writer: WriteBehind
    ) -> None:
        """Finish the scans of a participant whose networks have run, by their combinations."""
        for each in dict.fromkeys(self.checklist.combinations[scan] for scan in orders):
            scans = [scan for scan in each.scans if scan in orders]
            own = {scan: self._or_anew(orders[scan], scans) for scan in scans}
            try:
                person = Person(scans, kept, [scan for scan in each.scans if scan not in orders])
            except Exception as error:  # noqa: BLE001 (one bad person stops no other)
                for scan in scans:
                    self._fail(scan, error)
                continue
            sessions = [
                used for session in each.sessions if len(used := person.aligned(session)) > 1
            ]
            for session in sessions:
                self._finish_session(session, own, person, writer)
            rest = {*scans} - {scan for session in sessions for scan in session}
            for scan in scans:
                if scan in rest:
                    self._finish_one(own[scan], person, writer)
            for scan in scans:
                kept.remove(scan)

    def _or_anew(self, order: Order, seen: Sequence[Scan]) -> Order:
        """Return an order to write results anew that lack a scan which failed before."""
        if not order.done or not (why := self.checklist.lacked(order.scan, seen)):
            return order
        logger.info("%s: %s", order.scan.name, why)
        return replace(order, done=False)

    def _warn_of_old_consensus(self, subject: str) -> None:
        """Name results of sessions that this run would not make."""
        scans = [s for s in self.checklist.scans if s.identity.subject == subject]
        seen = {scan.identity.session for scan in scans}
        made = {
            session[0].identity.session
            for scan in scans
            if (own := self.checklist.combinations.get(scan))
            for session in own.sessions
        }
        for names in finished_scans(self.config.output_dir, subject):
            session = names.identity.session
            if names.identity.suffix == CONSENSUS and session in seen - made:
                logger.warning(
                    "%s is left over from a run with another --combine or other scans: delete its "
                    "files if tables and pages are not to show it.",
                    names.name,
                )

    def _finish_one(self, order: Order, person: Person, writer: WriteBehind) -> Segmentation | None:
        """Segment a scan with the prior of its person and write its results, unless it has them."""
        scan = order.scan
        try:
            with order.meter.stage("combine"):
                volume = load_volume(scan.path, index=self.config.inference.volume)
                prediction = self._segmenter.finish(
                    *person.shared(scan, volume), probabilities=self.config.probabilities
                )
        except Exception as error:  # noqa: BLE001 (one bad scan stops no other)
            self._fail(scan, error)
            return None
        if order.done:
            self.summary.skipped.append(scan.name)
            return prediction.segmentation
        about = {**order.provenance, **person.describe(scan)}
        task = Task(
            **{each.name: getattr(order, each.name) for each in fields(Order)}
            | {
                "volume": volume,
                "provenance": about,
                "quality": person.quality(scan),
                "motion": person.motion(scan),
            }
        )
        self._submit(task, prediction, writer)
        return prediction.segmentation

    def _finish_session(
        self,
        session: Sequence[Scan],
        orders: Mapping[Scan, Order],
        person: Person,
        writer: WriteBehind,
    ) -> None:
        """Segment the aligned scans of a session, and let their labels vote."""
        found = {
            scan: segmentation
            for scan in session
            if (segmentation := self._finish_one(orders[scan], person, writer))
        }
        if len(found) < 2:
            return
        order = best_first(found, person)
        scan = consensus_scan(order)
        try:
            task = consensus_task(self.checklist, {scan: orders[scan] for scan in order}, person)
            if task:
                self._submit(task, Prediction(vote(found, order, person), {}), writer)
            else:
                self.summary.skipped.append(scan.name)
        except Exception as error:  # noqa: BLE001 (one bad consensus stops no other)
            self._fail(scan, error)

    @cached_property
    def _segmenter(self) -> CascadeSegmenter:
        """Networks are built when the first scan needs them."""
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        device = choose_device(self.config.device)
        return CascadeSegmenter(self.checklist.cascade, device, self.config.inference)

    def _segment(self, task: Task, progress: Progress) -> Prediction:
        reset_peak_memory()
        with task.meter.stage("segment"):
            return self._segmenter.segment(
                task.volume, probabilities=self.config.probabilities, progress=progress
            )

    def begin_dataset(self) -> None:
        """Make the output folder a dataset that names its maker and its labels."""
        labels = self.checklist.cascade.labels
        more = self.config.segmentations
        begin_dataset(self.config.output_dir, self.config.bids_dir, labels, more)

    def _finish(self, task: Task, prediction: Prediction) -> None:
        try:
            if not (self.config.output_dir / DESCRIPTION).is_file():  # deleted meanwhile
                self.begin_dataset()
            if self._done_meanwhile(task):
                self.summary.skipped.append(task.scan.name)
                logger.info("%s was segmented by another run in the meantime", task.scan.name)
                return
            with task.meter.stage("write"):
                written = save_results(task, prediction)
            cost = task.meter.summary()
            where = {
                "device": str(choose_device(self.config.device)),
                "threads": torch.get_num_threads(),
                "command": self.config.command,
            }
            found = found_in(task.volume, prediction, self._segmenter.loads)
            finish_scan(task.names, {**task.provenance, **found}, written)
            record_success(task.names, {**cost, **where}, written)
            self.summary.done.append(task.scan.name)
            logger.info("%s segmented in %.1f s", task.scan.name, cost["seconds"])
        except Exception as error:  # noqa: BLE001 (one bad scan stops no other)
            self._fail(task.scan, error)

    def _done_meanwhile(self, task: Task) -> bool:
        """Tell whether another run with the same model and options has finished a scan."""
        now = read_json(sidecar(task.names.segmentation))
        if not now or now == task.seen:
            return False
        return not to_do(task.names, now, task.provenance, self.checklist.outputs(task.names))

    def _write_page(self, subject: str) -> None:
        page = f"sub-{subject}.html"
        self.summary.pages |= write_page(page, _write_newest_page, self.config, subject)

    def _fail(self, scan: Scan, error: Exception) -> None:
        if fatal(error) or self.config.stop_on_first_crash:
            if isinstance(error, OSError) and error.filename is None:
                error.filename = str(self.config.output_dir)
            raise error
        names = self.checklist.names(scan)
        self.summary.failed[scan.name] = record_failure(
            names,
            error,
            source=scan.relative,
            input=self.checklist.checksum(scan),
            command=self.config.command,
        )


def read_scan(checklist: Checklist, scan: Scan, *, again: bool = False) -> Task | None:
    """Load a scan; None if it is done already.

    Parameters
    ----------
    again
        Load it all the same.

    Raises
    ------
    ImageError
        It is not a head scan that can be segmented.
    DatasetError
        One of its outputs was changed since, or is not known.
    OSError
        It cannot be read.
    """
    meter = Meter()
    with meter.stage("read"):
        names = checklist.names(scan)
        seen = read_json(sidecar(names.segmentation))
        provenance = checklist.provenance(scan, image_checksum(scan.path))
        why = checklist.compare(names, seen, provenance)
        if not why and not again:
            return None
        volume = load_volume(scan.path, index=checklist.config.inference.volume)
    logger.info("%s: %s", scan.name, why or "its networks run again for the scans combined with it")
    return Task(
        done=not why,
        scan=scan,
        names=names,
        seen=seen,
        overwrite=checklist.config.overwrite,
        segmentations=checklist.config.segmentations,
        provenance=provenance,
        volume=volume,
        meter=meter,
    )


def consensus_task(
    checklist: Checklist, orders: Mapping[Scan, Order], person: Person
) -> Task | None:
    """Return what the results of a session are written by; None if they are there.

    Parameters
    ----------
    orders
        Of the scans of the session, the best first.

    Raises
    ------
    DatasetError
        One of its outputs was changed since, or is not known.
    """
    scan = consensus_scan([*orders])
    names = checklist.names(scan)
    made = consensus_provenance({each: order.provenance for each, order in orders.items()})
    seen = read_json(sidecar(names.segmentation))
    why = checklist.compare(names, seen, made) or checklist.lacked(scan, person.scans)
    if not why:
        return None
    logger.info("%s: %s", scan.name, why)
    return Task(
        scan=scan,
        names=names,
        seen=seen,
        overwrite=checklist.config.overwrite,
        segmentations=checklist.config.segmentations,
        provenance=made | ({COMBINED_AS: person.lacking} if person.lacking else {}),
        volume=load_volume(scan.path, index=checklist.config.inference.volume),
        meter=Meter(),
    )


def save_results(task: Task, prediction: Prediction) -> Written:
    """Write all of a scan but the sidecar that declares it done.

    The files take their places together, when all of them are whole.
    """
    with staging(task.names.record.parent) as made:
        written = _write_results(task, prediction, replace(task.names, root=made))
        return place_results(task.names, made, written, task.seen, overwrite=task.overwrite)


def _write_results(task: Task, prediction: Prediction, names: ScanNames) -> Written:
    volume, segmentation = task.volume, prediction.segmentation
    about = {key: task.provenance[key] for key in ("Sources", "SpatialReference")}
    written = save_segmentation(names.segmentation, segmentation)
    if brain := segmentation.labels.brain:
        mask = np.isin(segmentation.data, [label.index for label in brain])
        made = f"Brain, by labels: {', '.join(label.name for label in brain)}."
        written |= save_mask(names.brain_mask, mask, volume.grid)
        written |= save_sidecar(names.brain_mask, {"Type": "Brain", "Description": made, **about})
    for tissue, probability in prediction.probabilities.items():
        path = names.probability(tissue)
        written |= save_probability(path, probability, volume.grid)
        written |= save_sidecar(path, {"Description": f"Probability of {tissue}.", **about})
    surface = mid_surface(segmentation)
    sides = find_sides(segmentation, surface) if surface else None
    for kind in task.segmentations:
        path = names.further_segmentation(kind)
        written |= save_sidecar(path, {**FURTHER[kind].about, **about})
        if kind == "aseg":
            aseg = aseg_values(segmentation, surface)
            written |= save_values(path, aseg, volume.grid)
            table = aseg_volumes(aseg, volume.grid)
            written |= save_described(names.further_volumes(kind), table, ASEG_DICTIONARY)
        else:
            sided = sided_values(segmentation.data, sides)
            written |= save_values(path, sided, volume.grid)
    table = tissue_volumes(segmentation, sides)
    if COMBINED in task.provenance:
        table[COMBINED_COLUMN] = combined_by(task.provenance)
    written |= save_volumes(names.volumes, table, segmentation.labels)
    if lesion_names(segmentation.labels):
        lesions = lesion_table(segmentation, prediction.lesions, sides)
        written |= save_described(names.lesions, lesions, LESIONS_DICTIONARY)
    quality = scan_quality(
        volume,
        segmentation,
        confidence=prediction.confidence,
        entropy=prediction.entropy,
        ct=task.scan.identity.suffix in CT,
    )
    written |= save_quality(names.quality, {**quality, **task.quality})
    if task.motion is not None:
        written |= save_text(names.transform, transform_text(task.motion))
    for kind, picture in draw(volume, segmentation).items():
        written |= save_picture(names.figure(kind), picture)
    return written


@contextmanager
def _shown(bar: tqdm[Any], name: str) -> Iterator[Progress]:
    """Name a scan on the progress bar; yield what moves the bar while it is segmented."""
    bar.set_description(name)
    start = bar.n

    def progress(share: float) -> None:
        bar.update(start + 0.9 * share - bar.n)

    yield progress
    bar.update(start + 1 - bar.n)


def _write_newest_page(config: RunConfig, subject: str) -> None:
    """Write a subject's page; again if other processes finished scans of it in the meantime."""
    before = None
    while before != (now := subject_state(config.output_dir, subject)):
        before = now
        _write_page(config, subject)


def _write_page(config: RunConfig, subject: str) -> None:
    if config.viewer:
        save_previews(config.output_dir, subject, config.bids_dir)
    write_subject_page(config.output_dir, subject, config.command, config.bids_dir)
