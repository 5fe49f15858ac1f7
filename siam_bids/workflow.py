"""The participant level: segment, measure and report every scan."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from siam_bids import __version__, derivatives, figures, pages
from siam_bids.config import RunConfig
from siam_bids.dataset import Scan, find_scans
from siam_bids.derivatives import ScanNames
from siam_bids.errors import DatasetError, ModelError, SiamError, UsageError
from siam_bids.files import atomic, sha256, write_json
from siam_bids.labels import BRAIN_TISSUES, LabelTable
from siam_bids.measure import tissue_volumes
from siam_bids.models import ModelRecord, find_model
from siam_bids.nifti import load_volume
from siam_bids.nnunet import NnunetModel, NnunetSegmenter
from siam_bids.provenance import methods_text, model_line, software_versions
from siam_bids.quality import scan_quality
from siam_bids.segmenter import Progress

logger = logging.getLogger(__name__)


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
    _check_folders(config)
    record = find_model(config.model, config.model_dirs)
    scans = find_scans(config.bids_dir, config.query)
    if not scans:
        raise DatasetError(
            f"No anatomical image in {config.bids_dir} matches the query "
            f"(suffixes {', '.join(config.query.suffixes)}).",
            "Look at --suffix, --participant-label, --session-label and --bids-filter-file.",
        )
    model = NnunetModel.open(record.folder)
    _check_tissues(config.probabilities, model.labels)
    derivatives.begin_dataset(config.output_dir, config.bids_dir, model.labels)
    logger.info("%d scans, model %s", len(scans), model_line(record.describe()))
    worker = _Worker(config, record, model)
    with (
        tqdm(total=len(scans), unit="scan", disable=not config.progress, smoothing=0) as bar,
        logging_redirect_tqdm(),
    ):
        for subject, group in groupby(scans, key=lambda scan: scan.subject):
            for scan in group:
                worker.process(scan, bar)
            pages.write_subject_page(config.output_dir, subject, config.command)
    return worker.summary


def boilerplate(config: RunConfig) -> str:
    """Return the methods text for the model of a run."""
    return methods_text([find_model(config.model, config.model_dirs).describe()])


def list_scans(config: RunConfig) -> list[Scan]:
    """Return what `run_participant` would look at, without touching anything."""
    return find_scans(config.bids_dir, config.query)


def rebuild_reports(config: RunConfig) -> list[str]:
    """Write the subjects' pages anew from the results on disk; return the subjects' labels."""
    known = [*derivatives.results(config.output_dir), *derivatives.failures(config.output_dir)]
    wanted = set(config.query.participants)
    labels = sorted({names.subject for names in known if not wanted or names.subject in wanted})
    for subject in labels:
        pages.write_subject_page(config.output_dir, subject, config.command)
    return labels


class _Worker:
    """Processes scans one by one with one model; counts what happened."""

    def __init__(self, config: RunConfig, record: ModelRecord, model: NnunetModel) -> None:
        self._config = config
        self._record = record
        self._model = model
        self._segmenter: NnunetSegmenter | None = None
        self.summary = Summary()

    def process(self, scan: Scan, bar: tqdm[Any]) -> None:
        """Segment one scan unless done; never raises for what is wrong with the scan."""
        names = output_names(self._config.output_dir, scan)
        bar.set_description(scan.name)
        start = bar.n
        begin = time.monotonic()
        try:
            provenance = self._provenance(scan)
            outputs = self._outputs(names)
            if not self._config.overwrite and derivatives.is_done(names, provenance, outputs):
                self.summary.skipped.append(scan.name)
                if derivatives.read_json(names.record).get("error"):
                    names.record.unlink()  # of an attempt on an input that is whole again
                return

            def progress(share: float) -> None:
                bar.update(start + 0.9 * share - bar.n)

            self._segment(scan, names, provenance, progress)
            seconds = round(time.monotonic() - begin, 1)
            write_json(names.record, {"seconds": seconds, "device": str(self._device)})
            self.summary.done.append(scan.name)
            logger.info("%s segmented in %.1f s", scan.name, seconds)
        except Exception as error:
            if isinstance(error, ModelError) or self._config.stop_on_first_crash:
                raise
            reason = _reason(error)
            self.summary.failed[scan.name] = reason
            record = {"error": reason, "source": scan.relative}
            logger.error("%s failed: %s", scan.name, reason)
            if not isinstance(error, SiamError):
                record["traceback"] = traceback.format_exc()
                logger.debug("Traceback:", exc_info=True)
            write_json(names.record, record)
        finally:
            bar.update(start + 1 - bar.n)

    @property
    def _device(self) -> torch.device:
        return _device(self._config.device)

    def _segment(
        self, scan: Scan, names: ScanNames, provenance: dict[str, Any], progress: Progress
    ) -> None:
        volume = load_volume(scan.path)
        if self._segmenter is None:
            if self._config.threads:
                torch.set_num_threads(self._config.threads)
            self._segmenter = NnunetSegmenter(self._model, self._device)
        prediction = self._segmenter.segment(
            volume, probabilities=self._config.probabilities, progress=progress
        )
        segmentation = prediction.segmentation
        derivatives.sidecar(names.segmentation).unlink(missing_ok=True)  # not done until the end
        derivatives.save_segmentation(names.segmentation, segmentation)
        brain = segmentation.mask(BRAIN_TISSUES)
        derivatives.save_mask(names.brain_mask, brain, volume.grid)
        about = {"Sources": provenance["Sources"]}
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
        grid = {
            "Shape": list(volume.grid.shape),
            "VoxelSize": [round(size, 4) for size in volume.grid.voxel_size],
            "Orientation": volume.grid.axcodes,
        }
        write_json(derivatives.sidecar(names.segmentation), {**provenance, "Grid": grid})

    def _provenance(self, scan: Scan) -> dict[str, Any]:
        record = self._record
        return {
            "Description": f"Head tissues segmented by {record.title}, see seg-siam_dseg.tsv.",
            "Sources": [f"bids:raw:{scan.relative}"],
            "SoftwareVersion": __version__,
            "Software": software_versions(),
            "Model": {**record.describe(), "Folds": len(self._model.folds)},
            "Options": {"probabilities": sorted(self._config.probabilities)},
            "InputSHA256": sha256(scan.path) if scan.path.exists() else "",
        }

    def _outputs(self, names: ScanNames) -> list[Path]:
        pictures = [names.figure(kind) for kind in derivatives.FIGURES]
        maps = [names.probability(tissue) for tissue in self._config.probabilities]
        tables = [names.volumes, names.quality]
        return [names.segmentation, names.brain_mask, *tables, *pictures, *maps]


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


def _check_tissues(names: Iterable[str], labels: LabelTable) -> None:
    unknown = [name for name in names if name not in labels.by_name]
    if unknown:
        raise UsageError(
            f"The model has no tissue {', '.join(unknown)}.",
            f"It has: {', '.join(labels.by_name)}.",
        )


def _device(wish: str) -> torch.device:
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wish == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    if not available[wish]:
        raise UsageError(f"There is no {wish} device here.", "Use --device auto or cpu.")
    return torch.device(wish)


def _reason(error: Exception) -> str:
    """Say in one line what went wrong."""
    if isinstance(error, SiamError):
        return str(error)
    if isinstance(error, MemoryError):
        return "Out of memory. Give the job more memory or fewer scans at once."
    if isinstance(error, OSError) and error.strerror:
        place = f" ({Path(error.filename).name})" if error.filename else ""
        return f"{error.strerror}{place}. Check the disk, permissions and names."
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first} (see the traceback with -v -v)"
