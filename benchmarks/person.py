"""What combining the scans of a person brings: drawn heads whose anatomy and motion are known.

    python benchmarks/person.py LABEL_MAPS [--model compact] [--maps training_seg_17 ...]

Of each label map (LABEL_MAPS/training_seg_17 and 18, which no model of ours is trained on) four
scans are drawn, with a pose, a bias field and noise of their own: two T1w of the same anatomy; a
T1w with thinner cortex, wider ventricles and smaller hippocampus and caudate; a T2w of the first
anatomy. Each is segmented alone, and the first together with each other one. Writes
benchmarks/person.tsv and prints the tables of benchmarks/person.md.

Measures: `dice` with the truth, mean of both scans; `change`, in percent from the first scan to the
other; `true`, the same of the truth; and of each pair the error of the alignment in degrees and mm,
`likeness`, and CPU seconds.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from quality import open_model
from scipy.spatial.transform import Rotation

from siam_bids.image.grid import Grid, Volume
from siam_bids.image.labels import siam_labels
from siam_bids.image.loading import load_labels
from siam_bids.image.transforms import Affine, inverse, move
from siam_bids.inference.person import PersonMean, align_scans, coarse_scores, person_prior
from siam_bids.synthesis.anatomy_changes import BoundaryMove
from siam_bids.synthesis.label_maps import Anatomy, prepare_anatomy, source_table
from siam_bids.synthesis.recipe import Recipe, draw_recipe
from siam_bids.synthesis.render import _rotation_matrix, render

TISSUES = siam_labels().labels[1:15]
CHANGES = (
    BoundaryMove("pial surface inward", 1, 0.06),
    BoundaryMove("ventricles wider", 1, 0.12),
    BoundaryMove("hippocampus smaller", 1, 0.12),
    BoundaryMove("caudate smaller", 1, 0.12),
)
VISITS = (
    ("first", "T1w", ()),
    ("again", "T1w", ()),
    ("changed", "T1w", CHANGES),
    ("T2w", "T2w", ()),
)
UNKNOWN = 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("label_maps", type=Path)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--maps", nargs="+", default=["training_seg_17", "training_seg_18"])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".tsv"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for number, name in enumerate(arguments.maps):
        rows += measure(arguments.label_maps / f"{name}.nii.gz", arguments.model, 10 * (number + 1))
        pd.DataFrame(rows).to_csv(arguments.out, sep="\t", index=False, float_format="%.4g")
    print(summary(pd.DataFrame(rows)))


def visit(contrast: str, changes: tuple[BoundaryMove, ...], seed: int) -> Recipe:
    """Draw a scan of one protocol, cut below the skull, with a motion of up to 5 degrees."""
    rng = np.random.default_rng((seed, 5))
    protocol = draw_recipe(np.random.default_rng((3, 99)), difficulty=0.3, contrast=contrast)
    rotation = tuple(rng.uniform(-5, 5, 3))
    low = (4 + rng.uniform(0, 3), 4 + rng.uniform(0, 3), -45 + rng.uniform(0, 3))
    return replace(
        protocol, seed=seed, rotation=rotation, scale=(1.0, 1.0, 1.0),
        shear=(0.0, 0.0, 0.0), flip=False, margin_low=low, margin_high=(5.0, 5.0, 5.0),
        elastic=0.0, boundaries=changes, lesions="no", strip="no", motion=0.0, ghost=0.0,
        objects=0, patchiness=0.0, spacing=(1.0, 1.0, 1.0), bias=0.2, noise=0.03,
        heal_lesions=False, blur=0.4,
    )  # fmt: skip


def to_map(anatomy: Anatomy, recipe: Recipe) -> Affine:
    """Return the affine from mm of a drawn scan to voxels of its label map."""
    size, shape = np.array(anatomy.voxel_size), np.array(anatomy.codes.shape)
    back = np.diag(1 / size) @ np.linalg.inv(_rotation_matrix(recipe.rotation))
    found = np.eye(4)
    found[:3, :3] = back
    middle = shape * size / 2 + np.array(recipe.margin_low)
    found[:3, 3] = (shape - 1) / 2 - back @ (middle - 0.5)
    return found


def measure(path: Path, model: str, seed: int) -> list[dict[str, object]]:
    """Draw, segment and score the scans of one label map."""
    labels, grid = load_labels(path)
    anatomy = prepare_anatomy(labels, grid, source_table("synthseg"))
    meant = np.array([t[0] if len(t) == 1 else UNKNOWN for t in anatomy.table.target], np.uint8)
    _, segmenter = open_model(model, precision="auto")
    volumes, seen, truth, alone, places = {}, {}, {}, {}, {}
    seconds = 0.0
    for number, (key, contrast, changes) in enumerate(VISITS, start=1):
        recipe = visit(contrast, changes, seed + number)
        drawn = render(anatomy, recipe)
        image = 1000 * drawn.image.numpy()
        volumes[key] = Volume(image.astype(np.float32), Grid(image.shape, np.eye(4)))
        truth[key], places[key] = meant[drawn.codes.numpy()], to_map(anatomy, recipe)
        begin = time.process_time()
        seen[key] = segmenter.network(volumes[key])
        network = time.process_time() - begin
        alone[key] = segmenter.finish(volumes[key], seen[key]).segmentation.data
        seconds += time.process_time() - begin
        print(path.name, key, f"network {network:.1f} s", flush=True)
    per_scan = seconds / len(VISITS)
    rows: list[dict[str, object]] = []
    for other in ("again", "changed", "T2w"):
        pair = ("first", other)
        begin = time.process_time()
        coarse = [coarse_scores(seen[key], segmenter.cascade.labels) for key in pair]
        together = align_scans(coarse)
        mean = PersonMean(coarse, together.motions)
        found = {}
        extra = time.process_time() - begin
        for key, scan, motion in zip(pair, coarse, together.motions, strict=True):
            begin = time.process_time()
            prior = person_prior(seen[key].prior, scan, mean, motion)
            shared = replace(seen[key], prior=prior)
            found[key] = segmenter.finish(volumes[key], shared).segmentation.data
            extra += time.process_time() - begin
        moved = inverse(together.motions[0]) @ together.motions[1]
        apart = inverse(np.linalg.inv(places["first"]) @ places[other]) @ moved
        brain = coarse[1].appearance.places
        about = {
            "degrees": np.degrees(Rotation.from_matrix(apart[:3, :3]).magnitude()),
            "mm": np.linalg.norm(move(apart, brain) - brain, axis=1).mean(),
            "likeness": together.likeness[1],
            "seconds_alone": per_scan,
            "seconds_combining": extra / 2,
        }
        for how, results in (("alone", alone), ("combined", found)):
            for label in TISSUES:
                volume = [int((results[key] == label.index).sum()) for key in pair]
                true = [int((truth[key] == label.index).sum()) for key in pair]
                rows.append(
                    {
                        "map": path.name.split(".")[0], "pair": other, "how": how,
                        "tissue": label.name,
                        "dice": np.mean([
                            dice(results[key], truth[key], label.index) for key in pair
                        ]),
                        "change": 100 * (volume[1] / max(1, volume[0]) - 1),
                        "true": 100 * (true[1] / true[0] - 1),
                        **about,
                    }
                )  # fmt: skip
    return rows


def dice(found: np.ndarray, truth: np.ndarray, label: int) -> float:
    """Overlap of one label; voxels of unknown truth are left out."""
    one, two = (found == label) & (truth != UNKNOWN), truth == label
    return float(2 * (one & two).sum() / max(1, one.sum() + two.sum()))


def summary(rows: pd.DataFrame) -> str:
    """Return the tables of the report: errors of change and Dice, by tissue."""
    rows = rows.assign(error=(rows["change"] - rows["true"]).abs())
    lines = ["| tissue | " + " | ".join(
        f"{pair}: error alone | combined | Dice alone | combined" for pair in rows["pair"].unique()
    ) + " |"]  # fmt: skip
    lines.append("|---" * (1 + 4 * rows["pair"].nunique()) + "|")
    for tissue in rows["tissue"].unique():
        cells = []
        for pair in rows["pair"].unique():
            own = rows[(rows["tissue"] == tissue) & (rows["pair"] == pair)].groupby("how")
            error, overlap = own["error"].mean(), own["dice"].mean()
            cells += [f"{error[how]:.2f}" for how in ("alone", "combined")]
            cells += [f"{overlap[how]:.3f}" for how in ("alone", "combined")]
        lines.append(f"| {tissue} | {' | '.join(cells)} |")
    pairs = rows.drop_duplicates(["map", "pair"])
    columns = ["map", "pair", "degrees", "mm", "likeness", "seconds_alone", "seconds_combining"]
    return "\n".join(lines) + "\n\n" + pairs[columns].to_string(index=False)


if __name__ == "__main__":
    main()
