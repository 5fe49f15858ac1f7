"""Measure a model on held-out synthetic heads and on real heads.

    python benchmarks/quality.py LABEL_MAPS HEADS [--model compact] [--out benchmarks/quality]

LABEL_MAPS holds training_seg_17.nii.gz and training_seg_18.nii.gz, which no model of ours is
trained on; HEADS the real scans listed in `REAL`. Images of the held-out maps are drawn with fixed
seeds at full difficulty (deformation, bias field, noise, gamma). Writes OUT.tsv (every number) and
OUT.md (the summary that the model card quotes).
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from siam_bids.anatomy import prepare_anatomy, source_table
from siam_bids.labels import BRAIN_CLASSES, BRAIN_TISSUES, siam_labels
from siam_bids.models import find_model
from siam_bids.nifti import load_labels, load_volume
from siam_bids.nnunet import NnunetModel, NnunetSegmenter
from siam_bids.provenance import model_line
from siam_bids.segmenter import Segmenter
from siam_bids.synthesis import draw_recipe, render
from siam_bids.volume import Grid, Volume

FREESURFER = {
    "GM": [3, 42, *range(1000, 3000)],
    "WM": [2, 41, 7, 46, 16, 28, 60, 77, 85, *range(251, 256)],
    "CSFv": [4, 5, 14, 15, 43, 44, 72, 31, 63],
    "cerGM": [8, 47], "Thal": [10, 49], "Pal": [13, 52], "Put": [12, 51], "Caud": [11, 50],
    "Accu": [26, 58], "Amyg": [18, 54], "Hippo": [17, 53],
}  # fmt: skip
"""Values of aparc+aseg that each class stands for; FreeSurfer does not draw the others."""

CONDITIONS = {
    "random contrast, 1 mm": ("random", (1.0, 1.0, 1.0)),
    "T1w-like, 1 mm": ("T1w", (1.0, 1.0, 1.0)),
    "random contrast, 5 mm slices": ("random", (1.0, 1.0, 5.0)),
}


def dice(one: np.ndarray, two: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|); NaN where both are empty."""
    size = int(one.sum()) + int(two.sum())
    return 2 * int((one & two).sum()) / size if size else float("nan")


def synthetic(segmenter: Segmenter, label_map: Path, condition: str, count: int) -> list[dict]:
    labels, grid = load_labels(label_map)
    anatomy = prepare_anatomy(labels, grid, source_table("synthseg"))
    contrast, spacing = CONDITIONS[condition]
    truth_of = np.array([t[0] if len(t) == 1 else 255 for t in anatomy.table.target])
    rows = []
    for seed in range(count):
        recipe = draw_recipe(np.random.default_rng((seed, 2026)), contrast=contrast)
        recipe = replace(recipe, spacing=spacing, strip="no")
        rendering = render(anatomy, recipe)
        truth = truth_of[rendering.codes.numpy()]
        volume = Volume(rendering.image.numpy(), Grid(truth.shape, np.eye(4)))
        found = np.where(truth == 255, 255, segmenter.segment(volume).segmentation.data)
        rows += [
            {
                "set": condition,
                "scan": f"{label_map.name.split('.')[0]}/{seed}",
                "class": label.name,
                "dice": dice(found == label.index, truth == label.index)
                if (truth == label.index).any()
                else float("nan"),
            }
            for label in siam_labels().foreground
        ]
    return rows


def freesurfer(segmenter: Segmenter, heads: Path) -> list[dict]:
    reference, _ = load_labels(heads / "visualqc_id001_aparc+aseg.mgz")
    volume = load_volume(heads / "visualqc_id001_T1w.mgz")
    segmentation = segmenter.segment(volume).segmentation
    common = {"set": "visualqc_id001 against FreeSurfer", "scan": "visualqc_id001"}
    rows = [
        {
            **common,
            "class": name,
            "dice": dice(segmentation.mask((name,)), np.isin(reference, values)),
        }
        for name, values in FREESURFER.items()
    ]
    brain = np.isin(reference, [value for values in FREESURFER.values() for value in values])
    mask = segmentation.mask(BRAIN_TISSUES)
    return [*rows, {**common, "class": "brain mask", "dice": dice(mask, brain)}]


def consistency(segmenter: Segmenter, heads: Path) -> list[dict]:
    """Dice between the segmentations of three contrasts of one patient on one grid."""
    found = {
        contrast: segmenter.segment(load_volume(heads / f"stroke_{contrast}.nii.gz")).segmentation
        for contrast in ("T1", "T2", "FLAIR")
    }
    return [
        {
            "set": "stroke patient, contrast against contrast",
            "scan": f"{one}-{two}",
            "class": name,
            "dice": dice(found[one].mask((name,)), found[two].mask((name,))),
        }
        for one, two in (("T1", "T2"), ("T1", "FLAIR"), ("T2", "FLAIR"))
        for name in BRAIN_CLASSES
    ]


def summary(table: pd.DataFrame, about: str) -> str:
    """Return Markdown: per set and class the mean Dice, and the mean over the brain classes."""
    means = table.pivot_table("dice", "class", "set", sort=False)
    brain = means.loc[[name for name in BRAIN_CLASSES if name in means.index]].mean()
    means.loc["**mean of the brain classes**"] = brain
    scans = table[table["class"].isin(BRAIN_CLASSES)].groupby(["set", "scan"])["dice"].mean()
    means.loc["worst scan (mean of the brain classes)"] = scans.groupby("set").min()
    lines = [about, "", "| Dice | " + " | ".join(means.columns) + " |"]
    lines.append("|" + "---|" * (1 + len(means.columns)))
    for name, row in means.iterrows():
        cells = ["" if np.isnan(value) else f"{value:.3f}" for value in row]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("label_maps", type=Path)
    parser.add_argument("heads", type=Path)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--count", type=int, default=20, help="images per held-out map")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/quality"))
    options = parser.parse_args()
    record = find_model(options.model)
    segmenter = NnunetSegmenter(NnunetModel.open(record.folder), torch.device(options.device))
    begin = time.monotonic()
    rows = freesurfer(segmenter, options.heads) + consistency(segmenter, options.heads)
    for condition in CONDITIONS:
        count = options.count if condition == "random contrast, 1 mm" else options.count // 2
        for number in (17, 18):
            label_map = options.label_maps / f"training_seg_{number}.nii.gz"
            rows += synthetic(segmenter, label_map, condition, count)
            print(f"{condition}, map {number}: {time.monotonic() - begin:.0f} s", flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(
        options.out.with_suffix(".tsv"), sep="\t", index=False, float_format="%.4f", na_rep="n/a"
    )
    about = (
        f"{model_line(record.describe())}; {options.count} images of each held-out map at "
        f"1 mm with random contrast, {options.count // 2} in the other synthetic sets."
    )
    text = summary(table, about)
    options.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
