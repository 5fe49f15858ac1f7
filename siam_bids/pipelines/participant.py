"""The participant level: segment, measure and report every scan."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from siam_bids import __version__
from siam_bids.bids.dataset import find_scans
from siam_bids.bids.description import begin_dataset
from siam_bids.bids.names import FIGURES, ScanNames, finished_scans, sidecar
from siam_bids.bids.scan import Scan
from siam_bids.bids.status import (
    RESULTS_VERSION,
    begin_scan,
    failed_scans,
    finish_scan,
    subject_state,
    sweep_subject,
    to_do,
)
from siam_bids.bids.writers import (
    save_mask,
    save_probability,
    save_quality,
    save_segmentation,
    save_volumes,
)
from siam_bids.config import RunConfig
from siam_bids.errors import ModelError, SiamError
from siam_bids.image.grid import Volume
from siam_bids.image.labels import BRAIN_TISSUES
from siam_bids.image.nifti import load_volume, read_grid
from siam_bids.inference.cascade import Chain, ChainSegmenter
from siam_bids.inference.device import choose_device
from siam_bids.inference.prediction import Prediction, Progress
from siam_bids.measures.quality import scan_quality
from siam_bids.measures.volumes import tissue_volumes
from siam_bids.models.record import ModelRecord
from siam_bids.models.registry import find_model
from siam_bids.pipelines.failures import disk_refuses, reason_of
from siam_bids.pipelines.todo import (
    Prospect,
    check_folders,
    nothing_matches,
    output_names,
    with_tissues,
)
from siam_bids.reports.methods_text import methods_text, model_line, software_versions
from siam_bids.reports.mosaics import draw
from siam_bids.reports.subject import write_subject_page
from siam_bids.reports.viewer_volumes import save_previews
from siam_bids.support.atomic_files import atomic, read_json, sha256, write_json
from siam_bids.support.memory import reset_peak_memory
from siam_bids.support.timing import Meter

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass
class Summary:
    """What became of the scans of a run, by name; `failed` maps to one-line reasons."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return the summary in words."""
        head = f"{len(self.done)} segmented, {len(self.skipped)} already done, "
        lines = [head + f"{len(self.failed)} failed."]
        return lines + [f"FAILED {name}: {reason}" for name, reason in self.failed.items()]


def run_participant(config: RunConfig) -> Summary:
    """Segment, measure and report every scan of the query.

    Raises
    ------
    SiamError
        The dataset, the model or the options are unusable. What is wrong with a single scan ends
        in the summary instead.
    """
    worker, scans = _prepare(config)
    if not scans:
        raise nothing_matches(config)
    begin_dataset(config.output_dir, config.bids_dir, worker.chain.labels)
    logger.info("%d scans, model %s", len(scans), model_line(worker.record.describe()))
    worker.run(scans)
    return worker.summary


def _prepare(config: RunConfig) -> tuple[_Worker, list[Scan]]:
    """Check all that a run needs, without writing anything."""
    check_folders(config)
    record = find_model(config.model, config.model_dirs).as_asked(config.inference)
    scans = find_scans(config.bids_dir, config.query)
    chain = Chain.open(record, config.inference.folds)
    chain.check(config.inference)
    return _Worker(with_tissues(config, chain.labels), record, chain), scans


def _ahead(
    work: Callable[[_Item], _Result], items: Iterable[_Item]
) -> Iterator[tuple[_Item, Future[_Result]]]:
    """Yield each item with its future result, the next item being worked on meanwhile."""
    with ThreadPoolExecutor(1, "read") as pool:
        previous = None
        for item in items:
            current = item, pool.submit(work, item)
            if previous:
                yield previous
            previous = current
        if previous:
            yield previous


def boilerplate(config: RunConfig) -> str:
    """Return the methods text for the model of a run."""
    record = find_model(config.model, config.model_dirs).as_asked(config.inference)
    return methods_text([record.describe()])


def survey(config: RunConfig) -> tuple[Chain, list[Prospect]]:
    """Return the models and what `run_participant` would do with each scan, writing nothing.

    Raises
    ------
    SiamError
        As `run_participant`, but for a query without scans.
    """
    worker, scans = _prepare(config)
    return worker.chain, [worker.prospect(scan) for scan in scans]


def unfinished(config: RunConfig) -> tuple[Chain, list[Scan]]:
    """Return the models and the scans that are not done, by their sidecars, reading no image.

    A scan whose content changed since counts as done here; its own job would notice.
    """
    worker, scans = _prepare(config)
    return worker.chain, [scan for scan in scans if worker.why(scan, trusting=True)]


def rebuild_reports(config: RunConfig) -> list[str]:
    """Write the subjects' pages anew from the results on disk; return the subjects' labels."""
    known = [*finished_scans(config.output_dir), *failed_scans(config.output_dir)]
    wanted = set(config.query.participants)
    labels = sorted({names.subject for names in known if not wanted or names.subject in wanted})
    for subject in labels:
        _write_page(config, subject)
    return labels


@dataclass(frozen=True, kw_only=True)
class _Task:
    """A scan that must be segmented: its voxels, where the results go, what is said of them."""

    scan: Scan
    names: ScanNames
    outputs: list[Path]
    provenance: dict[str, Any]
    volume: Volume
    meter: Meter


class _Worker:
    """Processes scans with one model; counts what happened.

    While one scan goes through the network, a thread reads the next and another writes the last.
    """

    def __init__(self, config: RunConfig, record: ModelRecord, chain: Chain) -> None:
        self._config = config
        self.record = record
        self.chain = chain
        self._software = software_versions()
        self._segmenter: ChainSegmenter | None = None
        self._writing: list[Future[None]] = []
        self.summary = Summary()

    def run(self, scans: Sequence[Scan]) -> None:
        """Process scans, ordered by subject, and write each subject's page."""
        quiet = not self._config.progress
        with (
            tqdm(total=len(scans), unit="scan", disable=quiet, smoothing=0) as bar,
            logging_redirect_tqdm(),
            ThreadPoolExecutor(1, "write") as writer,
        ):
            subject = scans[0].subject
            sweep_subject(self._config.output_dir, subject)
            for scan, reading in _ahead(self.read, scans):
                if scan.subject != subject:
                    self._write(writer, self._write_page, subject)
                    subject = scan.subject
                    sweep_subject(self._config.output_dir, subject)
                self._process(scan, reading, writer, bar)
            self._write(writer, self._write_page, subject)
            self._wait()

    def read(self, scan: Scan) -> _Task | None:
        """Load a scan; None if it is done already."""
        meter = Meter()
        with meter.stage("read"):
            names = output_names(self._config.output_dir, scan)
            outputs = self._outputs(names)
            provenance = self._provenance(scan, sha256(scan.path) if scan.path.exists() else "")
            why = to_do(names, provenance, outputs)
            if not why and not self._config.overwrite:
                return None
            volume = load_volume(scan.path, index=self._config.inference.volume)
        logger.info("%s: %s", scan.name, why or "to be overwritten")
        return _Task(
            scan=scan, names=names, outputs=outputs, provenance=provenance, volume=volume,
            meter=meter,
        )  # fmt: skip

    def why(self, scan: Scan, *, trusting: bool = False) -> str:
        """Say why a scan must be segmented, empty if it is done.

        Parameters
        ----------
        trusting
            Take its content for unchanged, without reading it.
        """
        names = output_names(self._config.output_dir, scan)
        checksum = read_json(sidecar(names.segmentation)).get("InputSHA256")
        if checksum and not trusting:
            checksum = sha256(scan.path) if scan.path.exists() else ""
        expected = self._provenance(scan, checksum or "")
        why = to_do(names, expected, self._outputs(names))
        return why or ("to be overwritten" if self._config.overwrite else "")

    def prospect(self, scan: Scan) -> Prospect:
        """Say what would become of a scan."""
        try:
            why = self.why(scan)
            if not why:
                return Prospect(scan=scan)
            grid = read_grid(scan.path, index=self._config.inference.volume)
        except (SiamError, OSError) as error:
            return Prospect(scan=scan, error=reason_of(error))
        return Prospect(scan=scan, why=why, grid=grid)

    def _process(
        self,
        scan: Scan,
        reading: Future[_Task | None],
        writer: ThreadPoolExecutor,
        bar: tqdm[Any],
    ) -> None:
        """Segment one scan unless done; never raises for what is wrong with the scan."""
        bar.set_description(scan.name)
        start = bar.n

        def progress(share: float) -> None:
            bar.update(start + 0.9 * share - bar.n)

        try:
            task = reading.result()
            prediction = self._segment(task, progress) if task else None
        except Exception as error:  # noqa: BLE001 (one bad scan stops no other)
            self._fail(scan, error)
        else:
            if task and prediction:
                self._wait()  # memory holds the results of one scan, no more
                self._write(writer, self._finish, task, prediction)
                if prediction.probabilities:  # they hold this scan's logits: not two at once
                    del prediction
                    self._wait()
            else:
                self._skip(scan)
        bar.update(start + 1 - bar.n)

    def _write(
        self, writer: ThreadPoolExecutor, work: Callable[..., None], *arguments: Any
    ) -> None:
        """Hand work to the writing thread, which does one piece after the other."""
        self._writing.append(writer.submit(work, *arguments))

    def _wait(self) -> None:
        """Wait until the writing thread has nothing to do.

        Raises
        ------
        Exception
            What it met and could not leave in the summary.
        """
        writing, self._writing = self._writing, []
        for piece in writing:
            piece.result()

    def _segment(self, task: _Task, progress: Progress) -> Prediction:
        reset_peak_memory()
        with task.meter.stage("segment"):
            if self._segmenter is None:
                if self._config.threads:
                    torch.set_num_threads(self._config.threads)
                self._segmenter = ChainSegmenter(
                    self.chain, choose_device(self._config.device), self._config.inference
                )
            return self._segmenter.segment(
                task.volume, probabilities=self._config.probabilities, progress=progress
            )

    def _finish(self, task: _Task, prediction: Prediction) -> None:
        try:
            with task.meter.stage("write"):
                _save_results(task, prediction)
            cost = task.meter.record()
            where = {
                "device": self._device,
                "threads": torch.get_num_threads(),
                "command": self._config.command,
            }
            write_json(task.names.record, {**cost, **where})
            about = {**task.provenance, "Grid": _describe(task.volume)}
            if prediction.pose:
                about["Pose"] = prediction.pose.describe()
            if self._segmenter:
                about["Precision"] = " + ".join(self._segmenter.precisions)
            finish_scan(task.names, about, task.outputs)
            self.summary.done.append(task.scan.name)
            logger.info("%s segmented in %.1f s", task.scan.name, cost["seconds"])
        except Exception as error:  # noqa: BLE001 (one bad scan stops no other)
            self._fail(task.scan, error)

    def _skip(self, scan: Scan) -> None:
        self.summary.skipped.append(scan.name)
        record = output_names(self._config.output_dir, scan).record
        if read_json(record).get("error"):
            record.unlink()  # of an attempt on an input that is whole again

    def _fail(self, scan: Scan, error: Exception) -> None:
        hopeless = isinstance(error, ModelError) or disk_refuses(error)
        if hopeless or self._config.stop_on_first_crash:
            raise error
        reason = reason_of(error)
        self.summary.failed[scan.name] = reason
        record = output_names(self._config.output_dir, scan).record
        past = {"error": reason, "source": scan.relative, "command": self._config.command}
        logger.error("%s failed: %s", scan.name, reason)
        if not isinstance(error, SiamError):
            past["traceback"] = "".join(traceback.format_exception(error))
            logger.debug("Traceback:", exc_info=error)
        write_json(record, past)

    def _write_page(self, subject: str) -> None:
        """Write a subject's page; again if other processes finished scans of it meanwhile."""
        root = self._config.output_dir
        before = None
        while before != (now := subject_state(root, subject)):
            before = now
            _write_page(self._config, subject)

    @property
    def _device(self) -> str:
        return str(choose_device(self._config.device))

    def _provenance(self, scan: Scan, checksum: str) -> dict[str, Any]:
        record = self.record
        return {
            "Description": f"Head tissues segmented by {record.title}, see seg-siam_dseg.tsv.",
            "Sources": [f"bids:raw:{scan.relative}"],
            "SoftwareVersion": __version__,
            "ResultsVersion": RESULTS_VERSION,
            "Software": self._software,
            "Model": {**record.describe(), "Folds": self.chain.folds},
            "Options": {
                "probabilities": sorted(self._config.probabilities),
                **self._config.inference.changed(),
            },
            "InputSHA256": checksum,
        }

    def _outputs(self, names: ScanNames) -> list[Path]:
        pictures = [names.figure(kind) for kind in FIGURES]
        maps = [names.probability(tissue) for tissue in self._config.probabilities]
        tables = [names.volumes, names.quality]
        return [names.segmentation, names.brain_mask, *tables, *pictures, *maps]


def _write_page(config: RunConfig, subject: str) -> None:
    if config.viewer:
        save_previews(config.output_dir, subject, config.bids_dir)
    write_subject_page(config.output_dir, subject, config.command)


def _save_results(task: _Task, prediction: Prediction) -> None:
    """Write all of a scan but the sidecar that declares it done."""
    names, volume, segmentation = task.names, task.volume, prediction.segmentation
    begin_scan(names, task.outputs)
    save_segmentation(names.segmentation, segmentation)
    save_mask(names.brain_mask, segmentation.mask(BRAIN_TISSUES), volume.grid)
    about = {"Sources": task.provenance["Sources"]}
    write_json(sidecar(names.brain_mask), {"Type": "Brain", **about})
    for tissue, probability in prediction.probabilities.items():
        path = names.probability(tissue)
        save_probability(path, probability, volume.grid)
        write_json(sidecar(path), about)
    save_volumes(names.volumes, tissue_volumes(segmentation))
    quality = scan_quality(
        volume, segmentation, confidence=prediction.confidence, entropy=prediction.entropy
    )
    save_quality(names.quality, quality)
    for kind, picture in draw(volume, segmentation).items():
        with atomic(names.figure(kind)) as scratch:
            scratch.write_bytes(picture)


def _describe(volume: Volume) -> dict[str, Any]:
    return {
        "Shape": list(volume.grid.shape),
        "VoxelSize": [round(size, 4) for size in volume.grid.voxel_size],
        "Orientation": volume.grid.axcodes,
    }
