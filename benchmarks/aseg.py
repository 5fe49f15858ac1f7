"""Weights of `siam_bids.measures.aseg`, and how well its regions are found.

    python benchmarks/aseg.py LABEL_MAPS --fit > data/labels/aseg_regions.tsv
    python benchmarks/aseg.py LABEL_MAPS > benchmarks/aseg.md

LABEL_MAPS holds SynthSeg's training_seg_01.nii.gz to training_seg_18.nii.gz. The weights are those
of all maps; the figures are of maps left out, six at a time. One voxel of eight is looked at.
"""

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.optimize import minimize
from sides import LABELS, Head, synthseg

from siam_bids.measures.aseg import FEATURES, REGIONS, Place
from siam_bids.measures.hemispheres import mid_surface

TRUE = {
    "WM": ((2, 41, 25, 57, 28, 60, 85), (7, 46), (16, 512)),
    "CSFv": ((4, 43, 72), (5, 44), (14,), (15,)),
}
"""SynthSeg's values of the regions; the ventral diencephalon counts as cerebral white matter."""

SAMPLE = 6000
RIDGE = 1e-6


Regions = dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]]


def regions_of(head: Head, data: npt.NDArray[np.int16]) -> Regions:
    """Return features and true regions of one map, by label; `data` are SynthSeg's values."""
    surface = mid_surface(head.segmentation)
    place = Place.of(head.segmentation, surface)
    some = np.zeros(data.shape, bool)
    some[::2, ::2, ::2] = True
    found = {}
    for name, values in TRUE.items():
        truth = np.full(1024, -1)
        for number, own in enumerate(values):
            truth[list(own)] = number
        known = truth[data]
        mask = some & (head.labels == LABELS.by_name[name].index) & (known >= 0)
        found[name] = (place.features(np.argwhere(mask)), known[mask])
    return found


def read(path: Path) -> Regions:
    """Measure one map."""
    data = np.asarray(nib.load(path).dataobj).astype(np.int16)
    data = data[ndimage.find_objects((data != 0).astype(np.uint8))[0]]
    return regions_of(synthseg(path), data)


def fit(
    heads: list[tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]], number: int
) -> npt.NDArray[np.float64]:
    """Fit weights (features, number - 1) by maximum likelihood with a small ridge penalty."""
    rng = np.random.default_rng(0)
    rows, classes, shares = [], [], []
    for features, truth in heads:
        for region in range(number):
            own = np.flatnonzero(truth == region)
            chosen = rng.permutation(own)[:SAMPLE]
            rows.append(features[chosen])
            classes.append(truth[chosen])
            shares.append(np.full(len(chosen), len(own) / max(len(chosen), 1)))
    x, y, share = (np.concatenate(each) for each in (rows, classes, shares))
    share /= share.sum()
    middle, width = x[:, 1:].mean(0), x[:, 1:].std(0)
    width[width == 0] = 1
    z = np.c_[np.ones(len(x)), (x[:, 1:] - middle) / width]
    wanted = np.eye(number)[y]

    def misfit(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        guess = flat.reshape(z.shape[1], number - 1)
        scores = np.c_[np.zeros(len(z)), z @ guess]
        scores -= scores.max(1, keepdims=True)
        chance = np.exp(scores)
        chance /= chance.sum(1, keepdims=True)
        cost = -(share * np.log(chance[np.arange(len(y)), y] + 1e-12)).sum()
        slope = z.T @ ((chance - wanted) * share[:, None])[:, 1:]
        return float(cost + RIDGE * (flat**2).sum() / 2), (slope + RIDGE * guess).ravel()

    answer = minimize(
        misfit, np.zeros(z.shape[1] * (number - 1)), jac=True, method="L-BFGS-B",
        options={"maxiter": 400},
    )  # fmt: skip
    guess = answer.x.reshape(z.shape[1], number - 1)
    weights = np.empty_like(guess)
    weights[1:] = guess[1:] / width[:, None]
    weights[0] = guess[0] - (middle / width) @ guess[1:]
    return weights


def main() -> None:
    """Print the weights, or the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("maps", type=Path)
    parser.add_argument("--fit", action="store_true")
    arguments = parser.parse_args()
    paths = [arguments.maps / f"training_seg_{number:02d}.nii.gz" for number in range(1, 19)]
    heads = [read(path) for path in paths]
    print_weights(heads) if arguments.fit else print_figures(heads)


def print_weights(heads: list[Regions]) -> None:
    """Fit all heads."""
    columns = ["feature"]
    tables = []
    for name, regions in REGIONS.items():
        columns += regions[1:]
        tables.append(fit([head[name] for head in heads], len(regions)))
    print(*columns, sep="\t")
    for feature, row in zip(FEATURES, np.concatenate(tables, 1), strict=True):
        print(feature, *(f"{value:.5g}" for value in row), sep="\t")


def print_figures(heads: list[Regions]) -> None:
    """Fit two thirds of the heads, measure the others, three times."""
    print("# Brain stem, cerebellar white matter and ventricles from geometry\n")
    print("Made by `benchmarks/aseg.py`; see there. SynthSeg's maps, weights without that map.\n")
    print("| region | Dice: mean | least | volume, percent of the true one: least | most |")
    print("|---|---|---|---|---|")
    for name, regions in REGIONS.items():
        dice: list[list[float]] = [[] for _ in regions]
        volumes: list[list[float]] = [[] for _ in regions]
        for fold in range(3):
            kept = [head[name] for number, head in enumerate(heads) if number % 3 != fold]
            weights = fit(kept, len(regions))
            for features, truth in (head[name] for head in heads[fold::3]):
                found = np.c_[np.zeros(len(features)), features @ weights].argmax(1)
                for number in range(len(regions)):
                    told, true = found == number, truth == number
                    both = told.sum() + true.sum()
                    dice[number].append(2 * (told & true).sum() / max(both, 1))
                    volumes[number].append(100 * told.sum() / max(true.sum(), 1))
        for region, own, sizes in zip(regions, dice, volumes, strict=True):
            shown = "cerebral WM" if region == "WM" else region
            shown = "lateral ventricle" if region == "CSFv" else shown
            print(
                f"| {shown} | {np.mean(own):.3f} | {min(own):.3f} | {min(sizes):.0f} % "
                f"| {max(sizes):.0f} % |"
            )


if __name__ == "__main__":
    main()
