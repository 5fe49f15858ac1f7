"""Segmenting files and folders without BIDS."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from siam_bids.bids.label_tables import save_label_table
from siam_bids.bids.ownership import PIPELINE, made_by_us
from siam_bids.bids.status import changed_outputs, declare
from siam_bids.bids.writers import save_segmentation, save_volumes
from siam_bids.config import Inference
from siam_bids.errors import ImageError, ModelError, SiamError, UsageError
from siam_bids.image.image_file import image_checksum
from siam_bids.image.loading import load_volume
from siam_bids.inference.cascade import Cascade, CascadeSegmenter
from siam_bids.inference.device import choose_device
from siam_bids.measures.hemispheres import find_sides
from siam_bids.measures.volumes import tissue_volumes
from siam_bids.models.model import Model
from siam_bids.models.registry import find_model
from siam_bids.pipelines.provenance import found_in, made_from
from siam_bids.support.atomic_files import read_json, write_json
from siam_bids.support.folders import check_folder
from siam_bids.support.input_files import is_listed

logger = logging.getLogger(__name__)

_ENDING = re.compile(r"\.(?!v\d)[A-Za-z][A-Za-z0-9]{1,4}")
"""Of a file; `.2` and `.v12` end names of folders too."""

ENDINGS = (".nii.gz", ".nii", ".mgz", ".mgh")


def _segmenter(model: Model, device: str, threads: int, inference: Inference) -> CascadeSegmenter:
    if threads:
        torch.set_num_threads(threads)
    cascade = Cascade.open(model, inference.folds)
    return CascadeSegmenter(cascade, choose_device(device), inference)


@dataclass(frozen=True)
class Output:
    """Files written for one input: `<stem>_dseg.nii.gz`, or the name that was asked for."""

    segmentation: Path

    @classmethod
    def of(cls, source: Path, target: Path) -> Output:
        """Name the output: `target` itself if it is a NIfTI name, else a file in that folder."""
        if target.name.endswith((".nii", ".nii.gz")):
            return cls(target)
        return cls(target / f"{_stem(source)}_dseg.nii.gz")

    def beside(self, ending: str) -> Path:
        """Return a path next to the segmentation, for example with ending `.json`."""
        return self.segmentation.with_name(_stem(self.segmentation) + ending)

    @property
    def files(self) -> list[Path]:
        """All files that are written."""
        beside = (".tsv", "_volumes.tsv", "_volumes.json", ".json")
        return [self.segmentation, *map(self.beside, beside)]

    def check(self, inputs: Collection[tuple[int, int]], *, overwrite: bool = False) -> None:
        """Look at what is there before anything is written.

        Parameters
        ----------
        inputs
            Identity of the input files: device and inode.

        overwrite
            Replace own files that were changed since they were written.

        Raises
        ------
        UsageError
            A file that would be written is an input, or exists and was not made by this app, or
            was changed since.
        """
        there = [path for path in self.files if is_listed(path)]
        for path in there:
            if path.exists() and not path.is_file() and not path.is_dir():
                raise UsageError(f"The output {path} is not a regular file.", "Give another.")
            if path.exists() and _inode(path) in inputs:
                raise UsageError(f"The output {path} would replace an input.", "Give another.")
        if there and not made_by_us(read_json(self.beside(".json"))):
            raise UsageError(
                f"The output {there[0]} exists and was not made by {PIPELINE}.",
                "Give another, or remove it.",
            )
        folder = self.segmentation.parent
        changed = [] if overwrite else changed_outputs(folder, read_json(self.beside(".json")))
        if changed:
            raise UsageError(
                f"The output {folder / changed[0]} was changed since it was written.",
                "Move it if you want to keep it; --overwrite replaces it.",
            )


def check_target(target: Path) -> None:
    """Refuse an output that is neither a NIfTI name nor a folder, before anything is segmented.

    Raises
    ------
    UsageError
        Its name ends as that of another kind of file, or a file is in its place or above it.
    """
    if target.name.endswith((".nii", ".nii.gz")):
        check_folder(target.absolute().parent, "output folder")
        if target.exists() and not target.is_file() and not target.is_dir():
            raise UsageError(f"The output {target} is not a regular file.", "Give another.")
        return
    check_folder(target, "output")
    if not target.exists() and _ENDING.fullmatch(target.suffix):
        raise UsageError(
            f"The output {target} ends in {target.suffix}, but label maps are written as NIfTI.",
            "Give it the ending .nii.gz, or the name of a folder.",
        )


def _inode(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_dev, about.st_ino


def _stem(path: Path) -> str:
    ending = next((end for end in ENDINGS if path.name.lower().endswith(end)), path.suffix)
    return path.name[: len(path.name) - len(ending)]


def list_images(source: Path) -> list[Path]:
    """Return the image itself, or all images of a folder by name, but for our own label maps.

    Raises
    ------
    ImageError
        There is none.
    """
    if not source.is_dir():
        return [source]
    found = sorted(
        path
        for path in source.iterdir()
        if path.name.lower().endswith(ENDINGS)
        and not path.name.startswith(".")
        and not made_by_us(read_json(Output(path).beside(".json")))
    )
    if not found:
        raise ImageError(f"{source} holds no image ({', '.join(ENDINGS)}).")
    return found


def segment_files(
    source: Path,
    target: Path,
    *,
    model: str,
    model_dirs: Sequence[Path],
    device: str,
    threads: int,
    inference: Inference,
    overwrite: bool = False,
) -> tuple[list[Path], dict[str, str]]:
    """Segment an image, or every image of a folder.

    Beside each label map go its label table (`.tsv`), tissue volumes (`_volumes.tsv`) and what
    made it (`.json`).

    Returns
    -------
    written
        The label maps.
    failed
        For each image that could not be segmented the reason, in one line.

    Raises
    ------
    SiamError
        The model or the options are unusable, or there is no image.
    """
    images = list_images(source)
    if source.is_dir() and target.name.endswith((".nii", ".nii.gz")):
        raise UsageError(f"{source} is a folder, {target} is not.", "Give an output folder.")
    check_target(target)
    inputs = {_inode(image) for image in images if image.exists()}
    writers = Counter(Output.of(image, target) for image in images)
    chosen = find_model(model, model_dirs, inference.checkpoint).with_options(inference)
    segmenter = _segmenter(chosen, device, threads, inference)
    if limits := segmenter.cascade.labels.limits:
        logger.warning("%s", limits)
    written, failed = [], {}
    for image in images:
        output = Output.of(image, target)
        try:
            output.check(inputs, overwrite=overwrite)
            if writers[output] > 1:
                raise UsageError(
                    f"Other images have the same output {output.segmentation.name}.",
                    "Rename or move one of them.",
                )
            _segment_file(image, output, segmenter, chosen)
        except ModelError:
            raise
        except SiamError as error:
            failed[image.name] = str(error)
            logger.error("%s failed: %s", image.name, error)
        else:
            written.append(output.segmentation)
    return written, failed


def _segment_file(image: Path, output: Output, segmenter: CascadeSegmenter, model: Model) -> None:
    checksum = image_checksum(image)
    volume = load_volume(image, index=segmenter.options.volume)
    found = segmenter.segment(volume)
    segmentation, labels = found.segmentation, found.segmentation.labels
    about = {
        "Source": str(image),
        **made_from(
            image, checksum, model, folds=segmenter.cascade.folds, options=segmenter.options
        ),
        **found_in(volume, found, segmenter.loads),
    }
    declared = output.beside(".json")
    write_json(declared, about)  # by it, a later run knows the others for ours
    written = {
        **save_segmentation(output.segmentation, segmentation),
        **save_label_table(output.beside(".tsv"), labels),
        **save_volumes(
            output.beside("_volumes.tsv"),
            tissue_volumes(segmentation, find_sides(segmentation)),
            labels,
        ),
    }
    declare(declared, output.segmentation.parent, about, written)
