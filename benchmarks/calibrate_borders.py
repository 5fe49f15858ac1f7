"""Try offsets of the logits of some tissues with the whole model, borders included.

    python benchmarks/calibrate_borders.py LABEL_MAPS Dura=0.25,CSF=0.15 Dura=0.4,CSF=0.3 ...

`calibrate_volumes.py` makes the volumes that a network finds unbiased. The borders, which follow
the intensities of the scan, then move them again: thin and grey tissues lose. Heads are painted on
label maps of the training (random contrasts, T1w-like and other MRI, SIAM's map drawn anew);
printed are, with each choice of offsets, mean Dice and the median of found over true volume.
`calibrate_volumes.py --offsets` writes the choice into a network. Takes 2 minutes a head and core.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from calibrate_volumes import given
from quality import (
    BRAIN_CLASSES,
    SIAMS_OWN,
    Bench,
    compare,
    held_out_recipe,
    markdown,
    open_model,
    siams_recipe,
)
from tqdm import tqdm

from siam_bids.image.grid import Crop, Volume
from siam_bids.inference.intensity_refinement import following
from siam_bids.inference.resampling import Prior, Scores, labels_of
from siam_bids.models.settings import Intensities

HEADS = [
    *(("random contrast", f"training_seg_{2 * k + 1:02d}", "random", 900 + k) for k in range(8)),
    *(("T1w-like", f"training_seg_{4 * k + 2:02d}", "T1w", 920 + k) for k in range(4)),
    *(("SIAM's map", SIAMS_OWN, "", 930 + k) for k in range(3)),
    *(
        ("other MRI", f"training_seg_{4 * k + 4:02d}", contrast, 940 + k)
        for k, contrast in enumerate(("T2w", "FLAIR", "PDw"))
    ),
]
"""Set, label map, contrast and seed."""


@dataclass(frozen=True)
class Shifted:
    """Scores with offsets (classes, 1, 1)."""

    scores: Prior
    offsets: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.scores.shape

    @property
    def classes(self) -> int:
        return self.scores.classes

    def planes(self) -> Iterator[torch.Tensor]:
        return (plane.float() + self.offsets for plane in self.scores.planes())

    def subsample(self, stride: Sequence[int]) -> "Shifted":
        return Shifted(self.scores.subsample(stride), self.offsets)


def tried(
    bench: Bench, image: npt.NDArray[np.float32], choices: Sequence[torch.Tensor]
) -> list[npt.NDArray[np.uint8]]:
    """Return the labels (I, J, K) of an image with each choice; the networks run once."""
    follow, found = following, []

    def all_of_them(prior: Prior, volume: Volume, crop: Crop, how: Intensities | None) -> Scores:
        for offsets in choices:
            shifted = Shifted(prior, offsets[:, None, None])
            scores = follow(shifted, volume, crop, how)
            found.append(crop.undo(labels_of(scores)))
        return prior

    with mock.patch("siam_bids.inference.ensemble.following", all_of_them):
        bench.segment(image)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("label_maps", type=Path)
    parser.add_argument("choices", nargs="*")
    parser.add_argument("--model", default="compact")
    parser.add_argument("--precision", default="float32")
    options = parser.parse_args()
    _, segmenter = open_model(options.model, precision=options.precision)
    bench = Bench(segmenter, options.label_maps, options.label_maps, 1)
    titles = ["as is", *options.choices]
    choices = [given([]), *(given(choice.split(",")) for choice in options.choices)]
    rows = []
    for title, name, contrast, seed in tqdm(HEADS, "Heads"):
        recipe = held_out_recipe(seed, contrast, 1.0) if contrast else siams_recipe(seed)
        rendering, truth = bench.painted(name, recipe)
        for choice, labels in zip(
            titles, tried(bench, rendering.image.numpy(), choices), strict=True
        ):
            rows += compare((title, choice), labels, truth, surfaces=False)
    table = pd.DataFrame(rows, columns=["set", "offsets", "tissue", "measure", "value"])

    def of(measure: str, *tissues: str) -> pd.core.groupby.SeriesGroupBy:
        here = table[(table["measure"] == measure) & table["tissue"].isin(tissues)]
        return here.groupby(["set", "offsets"], sort=False)["value"]

    parts = {"brain classes": of("dice", *BRAIN_CLASSES).mean()}
    for tissue in ("GM", "CSF", "Dura", "Skull"):
        parts[f"{tissue}: Dice"] = of("dice", tissue).mean()
        parts[f"{tissue}: volume"] = of("volume", tissue).median()
    together = pd.DataFrame(parts)
    together.index = pd.Index([f"{title}, {choice}" for title, choice in together.index])
    print(markdown(together))


if __name__ == "__main__":
    main()
