"""Draw where a model is known to fail: docs/images/failures.jpg, which the model card shows.

    python benchmarks/failures.py LABEL_MAPS [--model compact] [--out docs/images/failures.jpg]

Each row is a painted head that training has not seen (LABEL_MAPS as for benchmarks/quality.py):
the image, the truth, what the model finds, with the Dice of the class that fails.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from quality import HELD_OUT, INDEX, UNKNOWN, Bench, dice, held_out_recipe, open_model

from siam_bids.image.labels import siam_labels
from siam_bids.synthesis.label_maps import tissues
from siam_bids.synthesis.recipe import Recipe

PLAIN = Recipe(seed=1, blur=0.5, noise=0.015, heal_lesions=True)
FLAIR = replace(PLAIN, contrast="FLAIR", means=tissues().priors["FLAIR"])
ALIKE = held_out_recipe(18, "random", 1.0)
"""A small head whose tissues look alike: the worst of the random contrasts in quality.tsv."""
SHRUNKEN = held_out_recipe(1, "T1w", 1.0)
"""The worst of the T1w-like images there, on map 18."""


@dataclass(frozen=True)
class Failure:
    """A head, and the class to look at; the picture cuts through the middle of that class."""

    title: str
    head: str
    recipe: Recipe
    classes: tuple[str, ...]
    axis: int


FAILURES = (
    Failure("small, tissues alike", HELD_OUT[1], ALIKE, ("GM",), 2),
    Failure("shrunken hippocampus", HELD_OUT[1], SHRUNKEN, ("Hippo",), 1),
    Failure(
        "stroke", HELD_OUT[0],
        replace(FLAIR, lesions="stroke", lesion_radii=(18.0,)), ("Anomalies",), 2,
    ),
    Failure(
        "6 mm slices, motion", HELD_OUT[0],
        replace(PLAIN, spacing=(1.0, 1.0, 6.0), motion=4.0, motion_share=0.3), ("GM",), 1,
    ),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("label_maps", type=Path)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--out", type=Path, default=Path("docs/images/failures.jpg"))
    arguments = parser.parse_args()
    _, segmenter = open_model(arguments.model)
    bench = Bench(segmenter, arguments.label_maps, Path(), 1)
    figure, rows = plt.subplots(len(FAILURES), 3, figsize=(9, 3 * len(FAILURES)))
    for failure, axes in zip(FAILURES, rows, strict=True):
        draw(bench, failure, axes)
    figure.tight_layout()
    figure.savefig(arguments.out, dpi=80, pil_kwargs={"quality": 85})


def draw(bench: Bench, failure: Failure, axes: np.ndarray) -> None:
    rendering, truth = bench.painted(failure.head, failure.recipe)
    image = rendering.image.numpy()
    found = np.where(truth == UNKNOWN, UNKNOWN, bench.segment(image))
    wanted = [INDEX[name] for name in failure.classes]
    score = dice(np.isin(found, wanted), np.isin(truth, wanted))
    place = int(np.median(np.argwhere(np.isin(truth, wanted))[:, failure.axis]))
    colors = np.full((256, 3), 0, np.uint8)
    for label in siam_labels().foreground:
        colors[label.index] = label.rgb
    for axis, data, title in zip(
        axes, (image, truth, found), (failure.title, "truth", f"found: Dice {score:.2f}"),
        strict=True,
    ):  # fmt: skip
        plane = np.rot90(data.take(place, failure.axis))
        if data is image:
            axis.imshow(plane, cmap="gray", vmax=np.percentile(image, 99.7))
        else:
            axis.imshow(colors[plane])
        axis.set_title(title)
        axis.axis("off")


if __name__ == "__main__":
    main()
