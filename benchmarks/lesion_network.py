"""Measure a network for lesions on real heads, alone and added to what compact finds.

    python benchmarks/lesion_network.py RUN/model HEADS LESIONS [--only WORD]

HEADS holds the real scans (a patient with multiple sclerosis whose lesions experts drew, and
healthy heads), LESIONS masks of other patients in MNI space, the space of that patient too: the
lesions of one are painted into those scans, for a load that no scan with a reference has here.
Prints the rows of benchmarks/lesion_network.md.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from quality import dice, open_model
from scipy import ndimage

from siam_bids.config import Inference
from siam_bids.image.grid import Segmentation, Volume
from siam_bids.image.labels import siam_labels
from siam_bids.image.loading import load_labels, load_volume
from siam_bids.inference.cascade import MARGIN, box_around
from siam_bids.inference.segmenter import NnunetSegmenter
from siam_bids.nnunet.model import NnunetModel

AROUND = ("WM", "Thal", "Pal", "Put", "Caud", "Accu", "Anomalies")
REACH, SHARE, LEAST = 3.0, 0.3, 0.5
"""The network looks where `SHARE` of the surroundings (Gaussian, mm) are `AROUND`."""
HEALTHY = ("colin27_T1w.nii.gz", "visualqc_id001_T1w.mgz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("heads", type=Path)
    parser.add_argument("lesions", type=Path)
    parser.add_argument("--only", default="", help="part of a scan's name")
    options = parser.parse_args()
    torch.set_num_threads(1)
    _, compact = open_model("compact", precision="auto")
    network = NnunetSegmenter(
        NnunetModel.open(options.model), torch.device("cpu"), Inference(precision="bfloat16")
    )
    print("| scan | compact | network alone | both |\n|---|---|---|---|")
    for name, volume, truth in scans(options.heads, options.lesions):
        if options.only not in name:
            continue
        first = compact.segment(volume).segmentation
        own = first.mask(["Anomalies"])
        found = chance(network, volume, first) >= LEAST
        size = volume.grid.voxel_volume / 1e3
        cells = [describe(mask, truth, size) for mask in (own, found, own | found)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def scans(heads: Path, lesions: Path) -> Iterator[tuple[str, Volume, np.ndarray | None]]:
    """Yield the name of each scan, the scan, and the mask of its lesions if there are some."""
    truth = load_labels(heads / "ms_patient26_lesions.nii.gz")[0] > 0
    others = load_labels(lesions / "patient12_lesions.nii.gz")[0] > 0
    for contrast in ("FLAIR", "T1w", "T2w"):
        volume = load_volume(heads / f"ms_patient26_{contrast}.nii.gz")
        yield f"patient 26, {contrast}", volume, truth
        yield f"with the lesions of patient 12, {contrast}", *painted(volume, truth, others)
    for name in HEALTHY:
        yield name, load_volume(heads / name), None


def painted(volume: Volume, truth: np.ndarray, others: np.ndarray) -> tuple[Volume, np.ndarray]:
    """Return the scan with the lesions of another patient, and the mask of all lesions.

    Within the brain and away from what is as dark or bright as CSF they get the median of the real
    lesions, with their spread.
    """
    rng = np.random.default_rng(5)
    image = volume.data
    core = image[ndimage.binary_erosion(truth)]
    brain = ndimage.binary_erosion(image > 0, iterations=2)
    low, high = np.percentile(image[brain], (8, 92))
    near = (image > min(low, core.min())) & (image < max(high, core.max()))
    mask = others & brain & near
    parts, count = ndimage.label(mask)
    smooth = ndimage.gaussian_filter(rng.standard_normal(image.shape), 2)
    own = np.median(core) + rng.normal(0, 0.35 * core.std(), count + 1)[parts]
    own += 0.6 * core.std() * smooth / smooth.std()
    own += 0.3 * core.std() * rng.standard_normal(image.shape)
    weight = ndimage.gaussian_filter(mask.astype(np.float32), 0.7) * (image > 0)
    data = (image * (1 - weight) + own * weight).astype(np.float32)
    return Volume(data, volume.grid), mask | truth


def chance(network: NnunetSegmenter, volume: Volume, first: Segmentation) -> np.ndarray:
    """Return the network's probability (I, J, K) of a lesion in the surroundings of `AROUND`."""
    region = first.mask(AROUND).astype(np.float32)
    reach = [REACH / edge for edge in volume.grid.voxel_size]
    near = ndimage.gaussian_filter(region, reach, truncate=2) > SHARE
    box = box_around(near, MARGIN)
    scores, crop = network.scores(volume.cut(box))
    found = np.zeros(near.shape, np.float32)
    found[box] = crop.undo(scores.probability(siam_labels().by_name["Anomalies"].index))
    return found * near


def describe(found: np.ndarray, truth: np.ndarray | None, size: float) -> str:
    """Return the cell of a mask: lesions found, Dice, mL and false mL; voxels have `size` mL."""
    if truth is None:
        return f"{found.sum() * size:.1f} mL"
    parts, count = ndimage.label(truth, np.ones((3, 3, 3)))
    volumes = np.bincount(parts.ravel(), minlength=count + 1)
    hits = np.bincount(parts[found], minlength=count + 1)
    large = np.flatnonzero(volumes[1:] * size >= 0.1) + 1
    hit = int((hits[large] >= 0.1 * volumes[large]).sum())
    parts, count = ndimage.label(found, np.ones((3, 3, 3)))
    alone = np.setdiff1d(np.arange(1, count + 1), parts[truth])
    false = np.isin(parts, alone).sum() * size
    return (
        f"{hit} of {len(large)}, {dice(found, truth):.2f}, {found.sum() * size:.0f} of "
        f"{truth.sum() * size:.0f} mL, false {false:.1f}"
    )


if __name__ == "__main__":
    main()
