"""Measure lesions in real heads, with and without the outliers of white matter.

    python benchmarks/lesions.py HEADS [--model compact] [--pictures FOLDER]

HEADS holds the real scans: a patient with multiple sclerosis whose lesions experts drew in three
contrasts, others without a reference, a stroke patient, and healthy heads, where all that is found
is false. Writes benchmarks/lesions.md: with a reference, how many of its lesions of 0.1 mL and more
are found (a tenth of their voxels), Dice, the volume, and the volume beyond the reference; else the
volume alone. With `--pictures`, draws the scans with truth (red) and finding (blue).
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from quality import dice
from scipy import ndimage

from siam_bids.config import Inference
from siam_bids.image.grid import Reorientation, Volume
from siam_bids.image.loading import load_labels, load_volume
from siam_bids.inference.cascade import Cascade, CascadeSegmenter
from siam_bids.models.registry import find_model

PATIENT = "ms_patient26"
WITHOUT_REFERENCE = ("stroke", "ms_patient03_visit2", "ms_patient04_visit1")
HEALTHY = ("colin27_T1w.nii.gz", "seg3d_T1w.nii.gz", "visualqc_id001_T1w.mgz")
SMALLEST = 0.1
"""mL of the lesions that are counted."""
COUNT = 8
"""Slices in a picture."""


def scans(heads: Path) -> Iterator[tuple[Path, Path | None]]:
    """Yield each scan, and the mask of its lesions if there is one."""
    truth = heads / f"{PATIENT}_lesions.nii.gz"
    for contrast in ("FLAIR", "T2w", "T1w"):
        yield heads / f"{PATIENT}_{contrast}.nii.gz", truth
    for stem in WITHOUT_REFERENCE:
        for path in sorted(heads.glob(f"{stem}_*.nii.gz")):
            yield path, None
    for name in HEALTHY:
        yield heads / name, None


def describe(found: np.ndarray, truth: np.ndarray | None, voxel: float) -> str:
    """Return the cells of a row; `voxel` is in mL."""
    volume = f"{found.sum() * voxel:.2f}"
    if truth is None:
        return f" | | {volume} | "
    parts, count = ndimage.label(truth, np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    hits = np.bincount(parts[found], minlength=count + 1)[1:]
    large = sizes * voxel >= SMALLEST
    hit = int((hits[large] >= 0.1 * sizes[large]).sum())
    extra = (found & ~truth).sum() * voxel
    return f"{hit} of {large.sum()} | {dice(found, truth):.3f} | {volume} | {extra:.2f}"


def draw(path: Path, volume: Volume, found: np.ndarray, truth: np.ndarray | None) -> None:
    """Draw axial slices with outlines, where most was found or is."""
    turn = Reorientation.to_ras(volume.grid)
    image, masks = turn.apply(volume.data), [turn.apply(found)]
    masks += [] if truth is None else [turn.apply(truth)]
    brain = image > np.percentile(image, 75)
    weights = np.logical_or.reduce(masks).sum((0, 1)) + 1e-3 * brain.sum((0, 1))
    chosen: list[int] = []
    for place in np.argsort(-weights):
        if len(chosen) < COUNT and all(
            abs(place - other) > image.shape[2] / 40 for other in chosen
        ):
            chosen.append(int(place))
    box = ndimage.find_objects(brain.astype(np.uint8))[0]
    figure, axes = plt.subplots(2, COUNT // 2, figsize=(16, 9), squeeze=False)
    for axis, place in zip(axes.flat, sorted(chosen), strict=False):
        cut = (box[0], box[1], place)
        axis.imshow(image[cut].T, cmap="gray", origin="lower", vmax=np.percentile(image, 99.7))
        for mask, color in zip(masks, ("deepskyblue", "red"), strict=False):
            if mask[cut].any():
                axis.contour(mask[cut].T, [0.5], colors=[color], linewidths=0.8)
        axis.axis("off")
    figure.suptitle(path.stem)
    figure.tight_layout()
    figure.savefig(path, dpi=65)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("heads", type=Path)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/lesions.md"))
    options = parser.parse_args()
    model = find_model(options.model)
    network = replace(model, intensities=replace(model.intensities, outliers=None))
    rows = []
    for path, reference in scans(options.heads):
        volume = load_volume(path)
        truth = load_labels(reference)[0] > 0 if reference else None
        name = path.name.split(".")[0]
        for how, each in (("network", network), ("outliers", model)):
            device = torch.device("cpu")
            segmenter = CascadeSegmenter(Cascade.open(each), device, Inference())
            found = segmenter.segment(volume).segmentation.mask(("Anomalies",))
            cells = describe(found, truth, volume.grid.voxel_volume / 1000)
            rows.append(f"| {name if how == 'network' else ''} | {how} | {cells} |")
            print(rows[-1], flush=True)
        if options.pictures:
            options.pictures.mkdir(parents=True, exist_ok=True)
            draw(options.pictures / f"{name}.png", volume, found, truth)
    head = f"| {model.title} {model.version} | lesions by | found | Dice | mL | mL beyond |"
    text = "\n".join([head, "|---|---|---|---|---|---|", *rows]) + "\n"
    options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
