"""Draw what each effect of the generator does to one head: docs/images/gallery.jpg.

python benchmarks/gallery.py LABEL_MAP [--source synthseg] [--out docs/images/gallery.jpg]
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt

from siam_bids.image.labels import siam_labels
from siam_bids.image.loading import load_labels
from siam_bids.synthesis.anatomy_changes import BoundaryMove
from siam_bids.synthesis.label_maps import Anatomy, prepare_anatomy, source_table, tissues
from siam_bids.synthesis.recipe import Recipe, draw_recipe
from siam_bids.synthesis.render import render

PLAIN = Recipe(seed=1, patchiness=0.3, blur=0.5, heal_lesions=True, margin_low=(15, 15, 15))


def prior(contrast: str) -> Recipe:
    return replace(PLAIN, contrast=contrast, means=tissues().priors[contrast])


def random(seed: int) -> Recipe:
    drawn = draw_recipe(np.random.default_rng(seed), contrast="random")
    return replace(PLAIN, means=drawn.means, stds=drawn.stds)


def moves(*names: str, depth: int = 1) -> Recipe:
    return replace(PLAIN, boundaries=tuple(BoundaryMove(name, depth, 0.95) for name in names))


EFFECTS = {
    "T1w": PLAIN,
    "T2w": prior("T2w"),
    "FLAIR": prior("FLAIR"),
    "PDw": prior("PDw"),
    "CT": prior("CT"),
    "random 1": random(1),
    "random 2": random(2),
    "random 3": random(3),
    "rotation, shear": replace(PLAIN, rotation=(15, 10, 20), shear=(0.08, 0.05, 0)),
    "tilted 45 degrees": replace(PLAIN, rotation=(45, 0, 0)),
    "flipped": replace(PLAIN, flip=True),
    "elastic 3.5 mm": replace(PLAIN, elastic=3.5, elastic_points=8),
    "small head": replace(PLAIN, scale=(0.75, 0.75, 0.75)),
    "large head": replace(PLAIN, scale=(1.15, 1.15, 1.15)),
    "pial surface inward": moves("pial surface inward"),
    "pial surface outward": moves("pial surface outward"),
    "white surface outward": moves("white surface outward"),
    "ventricles wider, 4 mm": moves("ventricles wider", depth=4),
    "nuclei smaller": moves("nuclei smaller"),
    "old age": replace(
        PLAIN,
        boundaries=tuple(
            BoundaryMove(name, depth, 0.95)
            for name, depth in (
                ("pial surface inward", 1),
                ("ventricles wider", 4),
                ("hippocampus smaller", 3),
                ("caudate smaller", 1),
            )
        ),
    ),
    "skull thicker": moves("skull thicker", "scalp thicker", depth=2),
    "MS lesions": replace(prior("FLAIR"), lesions="ms", lesion_radii=(4.0,) * 20),
    "stroke": replace(prior("T2w"), lesions="stroke", lesion_radii=(18.0,)),
    "tumour, oedema": replace(prior("FLAIR"), lesions="tumour", lesion_radii=(14.0,)),
    "bias field": replace(PLAIN, bias=0.4),
    "motion": replace(PLAIN, motion=4.0, motion_share=0.3),
    "ghost": replace(PLAIN, ghost=0.15, ghost_copies=2),
    "blur": replace(PLAIN, blur=0.9),
    "noise": replace(PLAIN, noise=0.06, rician=True),
    "2.5 mm voxels": replace(PLAIN, spacing=(2.5, 2.5, 2.5)),
    "6 mm slices": replace(PLAIN, spacing=(1.0, 1.0, 6.0)),
    "gamma": replace(PLAIN, gamma=0.5),
    "skull-stripped": replace(PLAIN, strip="brain"),
    "defaced": replace(PLAIN, strip="face"),
    "cropped": replace(PLAIN, margin_low=(-20, 10, -60), margin_high=(10, -30, -25)),
    "outside objects": replace(PLAIN, objects=3, seed=4),
}


def panel(anatomy: Anatomy, recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Return an axial and a sagittal slice side by side, image and label colours.

    They pass near the middle of the brain, or where there is most of the lesions.
    """
    rendering = render(anatomy, recipe)
    first = torch.tensor([target[0] for target in anatomy.table.target])
    truth = first[rendering.codes.int()].numpy()
    image = rendering.image.numpy()
    brain = np.argwhere((truth > 0) & (truth < 13)).mean(0).astype(int)
    left, up = brain[0] - 10, brain[2] + 8
    if recipe.lesions != "no":
        lesions = truth == siam_labels().by_name["Anomalies"].index
        left, up = int(lesions.sum((1, 2)).argmax()), int(lesions.sum((0, 1)).argmax())
    colors = np.array([label.rgb for label in siam_labels()])

    def cut(data: np.ndarray) -> np.ndarray:
        axial, sagittal = data[:, :, up], data[left]
        parts = [np.rot90(part) for part in (axial, sagittal)]
        height = max(len(part) for part in parts)
        return np.hstack([np.pad(part, ((0, height - len(part)), (0, 0))) for part in parts])

    return cut(image), colors[cut(truth)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("label_map", type=Path)
    parser.add_argument("--source", default="synthseg")
    parser.add_argument("--out", type=Path, default=Path("docs/images/gallery.jpg"))
    options = parser.parse_args()
    labels, grid = load_labels(options.label_map)
    anatomy = prepare_anatomy(labels, grid, source_table(options.source))
    columns = 4
    rows = -(-len(EFFECTS) // columns)
    figure, axes = plt.subplots(rows, 2 * columns, figsize=(18, 1.55 * rows), facecolor="black")
    for place, (name, recipe) in enumerate(EFFECTS.items()):
        image, truth = panel(anatomy, recipe)
        pair = axes[place // columns, 2 * (place % columns) : 2 * (place % columns) + 2]
        pair[0].imshow(image, cmap="gray", vmax=np.percentile(image, 99.5))
        pair[1].imshow(truth)
        pair[0].set_title(name, color="white", fontsize=8, pad=2)
    for axis in axes.flat:
        axis.axis("off")
    figure.subplots_adjust(0, 0, 1, 0.985, 0.01, 0.12)
    figure.savefig(options.out, dpi=70)


if __name__ == "__main__":
    main()
