"""Turned, small and large heads, looked at once and twice.

    python benchmarks/turned.py LABEL_MAPS [--model compact-2mm]

LABEL_MAPS holds training_seg_17.nii.gz, which no model of ours is trained on: painted T1w-like at
1 mm, turned about an axis between all three, or scaled. Writes benchmarks/turned.md: the mean Dice
of the brain classes with `--no-upright` and without.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from quality import BRAIN_CLASSES, HELD_OUT, INDEX, UNKNOWN, Bench, dice, markdown
from scipy.spatial.transform import Rotation

from siam_bids.chain import Chain, ChainSegmenter
from siam_bids.config import Inference
from siam_bids.models import find_model
from siam_bids.provenance import model_line
from siam_bids.synthesis import Recipe, draw_recipe

TURNS = (0, 20, 30, 45, 60, 90)
"""Degrees."""
SIZES = (0.6, 0.7, 0.8, 0.9, 1.15, 1.3)


def recipes() -> dict[str, Recipe]:
    """Return what is painted, all in one contrast with the same grain."""
    drawn = draw_recipe(np.random.default_rng(11), contrast="T1w")
    plain = Recipe(seed=11, means=drawn.means, stds=drawn.stds, blur=0.5, noise=0.02, bias=0.2)
    plain = replace(plain, margin_low=(30.0,) * 3, margin_high=(30.0,) * 3)
    axis = np.array([1, -1, 1]) / np.sqrt(3)
    found = {}
    for degrees in TURNS:
        angles = Rotation.from_rotvec(np.radians(degrees) * axis).as_euler("XYZ", degrees=True)
        found[f"turned by {degrees} degrees"] = replace(plain, rotation=tuple(map(float, angles)))
    return found | {f"{size:g} times the size": replace(plain, scale=(size,) * 3) for size in SIZES}


def score(found: np.ndarray, truth: np.ndarray) -> float:
    """Mean Dice of the brain classes, where the truth is known."""
    known = truth != UNKNOWN
    return float(
        np.mean([dice((found == INDEX[n]) & known, truth == INDEX[n]) for n in BRAIN_CLASSES])
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("label_maps", type=Path)
    parser.add_argument("--model", default="compact-2mm")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/turned.md"))
    options = parser.parse_args()
    record = find_model(options.model)
    benches = []
    for upright in (False, True):
        asked = Inference(upright=upright)
        chain = Chain.open(record.as_asked(asked))
        segmenter = ChainSegmenter(chain, torch.device("cpu"), asked)
        benches.append(Bench(segmenter, options.label_maps, Path(), 1))
    rows = {}
    for name, recipe in recipes().items():
        rendering, truth = benches[0].painted(HELD_OUT[0], recipe)
        image = rendering.image.numpy()
        rows[name] = [score(bench.segment(image), truth) for bench in benches]
        print(name, *(f"{value:.3f}" for value in rows[name]), flush=True)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["looked at once", "as needed"])
    table.columns.name = f"{HELD_OUT[0]}, T1w-like, mean Dice"
    text = f"{model_line(record.describe())}, `benchmarks/turned.py`\n\n{markdown(table)}\n"
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
