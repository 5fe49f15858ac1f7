"""The participant level: segment, measure and report every scan."""

from __future__ import annotations

import errno
import logging
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from siam_bids import __version__, derivatives, figures, pages
from siam_bids.chain import Chain, ChainSegmenter
from siam_bids.config import RunConfig
from siam_bids.dataset import Scan, find_scans
from siam_bids.derivatives import ScanNames
from siam_bids.errors import DatasetError, ModelError, SiamError, UsageError, out_of_memory
from siam_bids.files import atomic, sha256, write_json
from siam_bids.labels import BRAIN_TISSUES, LabelTable
from siam_bids.measure import tissue_volumes
from siam_bids.models import ModelRecord, find_model
from siam_bids.nifti import load_volume, read_grid
from siam_bids.preview import save_previews
from siam_bids.provenance import methods_text, model_line, software_versions
from siam_bids.quality import scan_quality
from siam_bids.segmenter import Prediction, Progress, choose_device
from siam_bids.usage import Meter, reset_peak_memory
from siam_bids.volume import Grid, Volume

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
    derivatives.begin_dataset(config.output_dir, config.bids_dir, worker.chain.labels)
    logger.info("%d scans, model %s", len(scans), model_line(worker.record.describe()))
    worker.run(scans)
    return worker.summary


def _prepare(config: RunConfig) -> tuple[_Worker, list[Scan]]:
    """Check all that a run needs, without writing anything."""
    _check_folders(config)
    record = find_model(config.model, config.model_dirs).as_asked(config.inference)
    scans = find_scans(config.bids_dir, config.query)
    chain = Chain.open(record, config.inference.folds)
    chain.check(config.inference)
    return _Worker(_with_tissues(config, chain.labels), record, chain), scans


def nothing_matches(config: RunConfig) -> DatasetError:
    """Return the error for a query without scans."""
    return DatasetError(
        f"No anatomical image in {config.bids_dir} matches the query "
        f"(suffixes {', '.join(config.query.suffixes)}).",
        "Look at --suffix, --participant-label, --session-label and --bids-filter-file.",
    )


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


@dataclass(frozen=True, kw_only=True)
class Prospect:
    """What a run would do with a scan.

    Attributes
    ----------
    why
        Why it would be segmented; empty if it is done, or if it would fail.
    error
        Why it would fail, as far as its header tells.
    grid
        Where its voxels are; None if it is done or would fail.
    """

    scan: Scan
    why: str = ""
    error: str = ""
    grid: Grid | None = None


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
    known = [*derivatives.results(config.output_dir), *derivatives.failures(config.output_dir)]
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
            derivatives.sweep_subject(self._config.output_dir, subject)
            for scan, reading in _ahead(self.read, scans):
                if scan.subject != subject:
                    self._write(writer, self._write_page, subject)
                    subject = scan.subject
                    derivatives.sweep_subject(self._config.output_dir, subject)
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
            why = derivatives.to_do(names, provenance, outputs)
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
        checksum = derivatives.read_json(derivatives.sidecar(names.segmentation)).get("InputSHA256")
        if checksum and not trusting:
            checksum = sha256(scan.path) if scan.path.exists() else ""
        expected = self._provenance(scan, checksum or "")
        why = derivatives.to_do(names, expected, self._outputs(names))
        return why or ("to be overwritten" if self._config.overwrite else "")

    def prospect(self, scan: Scan) -> Prospect:
        """Say what would become of a scan."""
        try:
            why = self.why(scan)
            if not why:
                return Prospect(scan=scan)
            grid = read_grid(scan.path, index=self._config.inference.volume)
        except (SiamError, OSError) as error:
            return Prospect(scan=scan, error=_reason(error))
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
            derivatives.finish_scan(task.names, about, task.outputs)
            self.summary.done.append(task.scan.name)
            logger.info("%s segmented in %.1f s", task.scan.name, cost["seconds"])
        except Exception as error:  # noqa: BLE001 (one bad scan stops no other)
            self._fail(task.scan, error)

    def _skip(self, scan: Scan) -> None:
        self.summary.skipped.append(scan.name)
        record = output_names(self._config.output_dir, scan).record
        if derivatives.read_json(record).get("error"):
            record.unlink()  # of an attempt on an input that is whole again

    def _fail(self, scan: Scan, error: Exception) -> None:
        hopeless = isinstance(error, ModelError) or _disk_refuses(error)
        if hopeless or self._config.stop_on_first_crash:
            raise error
        reason = _reason(error)
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
        while before != (now := derivatives.state(root, subject)):
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
            "ResultsVersion": derivatives.RESULTS_VERSION,
            "Software": self._software,
            "Model": {**record.describe(), "Folds": self.chain.folds},
            "Options": {
                "probabilities": sorted(self._config.probabilities),
                **self._config.inference.changed(),
            },
            "InputSHA256": checksum,
        }

    def _outputs(self, names: ScanNames) -> list[Path]:
        pictures = [names.figure(kind) for kind in derivatives.FIGURES]
        maps = [names.probability(tissue) for tissue in self._config.probabilities]
        tables = [names.volumes, names.quality]
        return [names.segmentation, names.brain_mask, *tables, *pictures, *maps]


def _write_page(config: RunConfig, subject: str) -> None:
    if config.viewer:
        save_previews(config.output_dir, subject, config.bids_dir)
    pages.write_subject_page(config.output_dir, subject, config.command)


def _save_results(task: _Task, prediction: Prediction) -> None:
    """Write all of a scan but the sidecar that declares it done."""
    names, volume, segmentation = task.names, task.volume, prediction.segmentation
    derivatives.begin_scan(names, task.outputs)
    derivatives.save_segmentation(names.segmentation, segmentation)
    derivatives.save_mask(names.brain_mask, segmentation.mask(BRAIN_TISSUES), volume.grid)
    about = {"Sources": task.provenance["Sources"]}
    write_json(derivatives.sidecar(names.brain_mask), {"Type": "Brain", **about})
    for tissue, probability in prediction.probabilities.items():
        path = names.probability(tissue)
        derivatives.save_probability(path, probability, volume.grid)
        write_json(derivatives.sidecar(path), about)
    derivatives.save_volumes(names.volumes, tissue_volumes(segmentation))
    quality = scan_quality(
        volume, segmentation, confidence=prediction.confidence, entropy=prediction.entropy
    )
    derivatives.save_quality(names.quality, quality)
    for kind, picture in figures.draw(volume, segmentation).items():
        with atomic(names.figure(kind)) as scratch:
            scratch.write_bytes(picture)


def _describe(volume: Volume) -> dict[str, Any]:
    return {
        "Shape": list(volume.grid.shape),
        "VoxelSize": [round(size, 4) for size in volume.grid.voxel_size],
        "Orientation": volume.grid.axcodes,
    }


def output_names(root: Path, scan: Scan) -> ScanNames:
    """Return where the results of a scan go."""
    return ScanNames(root, scan.subject, scan.session, scan.stem, scan.suffix)


def _check_folders(config: RunConfig) -> None:
    source, target = config.bids_dir.resolve(), config.output_dir.resolve()
    if source == target:
        raise UsageError("Input and output folder are the same.", "Give another output folder.")
    if target.exists() and not target.is_dir():
        raise UsageError(f"The output {config.output_dir} is a file.", "Give a folder.")
    if target in source.parents:
        raise UsageError(
            f"The input folder lies inside the output folder {config.output_dir}.",
            "Give an output folder of its own.",
        )


def _with_tissues(config: RunConfig, labels: LabelTable) -> RunConfig:
    """Name all tissues whose probability maps are wanted; `UsageError` for unknown ones."""
    unknown = [name for name in config.probabilities if name not in labels.by_name]
    if unknown:
        raise UsageError(
            f"The model has no tissue {', '.join(unknown)}.",
            f"It has: {', '.join(labels.by_name)}.",
        )
    every = [label.name for label in labels.foreground] if config.write_probseg else []
    return replace(config, probabilities=tuple(dict.fromkeys([*config.probabilities, *every])))


_REFUSALS = ("ENOSPC", "EDQUOT", "EROFS", "EFBIG")


def _disk_refuses(error: Exception) -> bool:
    """Tell whether nothing more can be written: disk full, quota used up, read-only."""
    refusals = {getattr(errno, name, None) for name in _REFUSALS}
    return isinstance(error, OSError) and error.errno in refusals


def _reason(error: Exception) -> str:
    """Say in one line what went wrong."""
    if isinstance(error, SiamError):
        return str(error)
    if out_of_memory(error):
        return "Out of memory. Give the job more memory or fewer scans at once."
    if isinstance(error, OSError) and error.strerror:
        place = f" ({Path(error.filename).name})" if error.filename else ""
        return f"{error.strerror}{place}. Check the disk, permissions and names."
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first} (see the traceback with -v -v)"
