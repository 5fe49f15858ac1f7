"""Set a network's last biases so that the volumes of painted heads come out unbiased.

    python benchmarks/calibrate_volumes.py MODEL TARGET --synthseg MAP [...] --siam MAP [...]
    python benchmarks/calibrate_volumes.py MODEL TARGET --offsets TISSUE=OFFSET [...]

Training draws patches around small tissues and counts overlap, so that a network finds too much of
what it is unsure about (cortex for the fluid in sulci) and too little of what is thin (dura). Heads
are painted on the label maps of the training, in the contrasts of real MRI, and the logit of each
tissue gets an offset: that at which half of the heads have more of it than in truth and half have
less. Medians, for heads on which the network is lost say nothing of the others. Anomalies keep
theirs: how many painted heads have lesions says nothing of a study. The offsets, a prior correction
(Saerens et al., Neural Comput. 2002), are added to the bias of the last layer in the model folder
TARGET, and cost no time. With `--offsets` those given are added, without any head.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from siam_bids.config import Inference
from siam_bids.image.grid import Grid, Volume
from siam_bids.image.labels import siam_labels
from siam_bids.image.loading import load_labels
from siam_bids.inference.segmenter import NnunetSegmenter
from siam_bids.models.folder import CHECKPOINT, first_weights
from siam_bids.models.model import Model
from siam_bids.models.registry import find_model
from siam_bids.nnunet.checkpoints import load_weights, mirror_axes
from siam_bids.nnunet.model import NnunetModel
from siam_bids.nnunet.write import checkpoint
from siam_bids.synthesis.label_maps import CONTRASTS, Anatomy, prepare_anatomy, source_table
from siam_bids.synthesis.recipe import draw_recipe
from siam_bids.synthesis.render import render

NAMES = [label.name for label in siam_labels()]
FREE = [place for place, name in enumerate(NAMES) if name not in ("background", "Anomalies")]
MRI = tuple(kind for kind in CONTRASTS if kind != "CT")
UNKNOWN = 255
SAMPLED = 0.1
"""Share of the voxels that is looked at."""
FEW = 20
"""Fewer voxels of a class in the sample of a head tell nothing of its volume."""
SURE = 0.03
"""Voxels of air that the network takes for tissue with a lower probability stay air."""


def sample(
    segmenter: NnunetSegmenter, anatomy: Anatomy, number: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Paint and segment head `number`; return logits (N, classes) and truth (N,) of voxels."""
    rng = np.random.default_rng((number, 31337))
    contrast = "T1w" if number % 2 else MRI[number // 2 % len(MRI)]
    recipe = replace(draw_recipe(rng, contrast=contrast), strip="no")
    if number % 3:
        recipe = replace(recipe, spacing=(1.0, 1.0, 1.0))
    rendering = render(anatomy, recipe)
    image = rendering.image.numpy()
    targets = anatomy.table.target
    known = np.array([each[0] if len(each) == 1 else UNKNOWN for each in targets], np.uint8)
    scores, crop = segmenter.scores(Volume(image, Grid(image.shape, np.eye(4))))
    truth = crop.cut(known[rendering.codes.numpy()])
    wanted = (rng.random(truth.shape) < SAMPLED) & (truth != UNKNOWN)
    logits, values = [], []
    for place, plane in enumerate(scores.planes()):
        part = plane[:, torch.from_numpy(wanted[place])].T
        value = torch.from_numpy(truth[place][wanted[place]])
        open_ = (value > 0) | (part.float().softmax(1)[:, 0] < 1 - SURE)
        logits.append(part[open_].half())
        values.append(value[open_].long())
    return torch.cat(logits), torch.cat(values)


def ratios(heads: list[tuple[torch.Tensor, torch.Tensor]], offsets: torch.Tensor) -> torch.Tensor:
    """Return voxels found over voxels in truth, and Dice, of each head and class (heads, 2, 18)."""
    rows = []
    for logits, truth in heads:
        labels = (logits.float() + offsets).argmax(1)
        found, there, both = (
            torch.bincount(part, minlength=len(NAMES)).float()
            for part in (labels, truth, truth[labels == truth])
        )
        row = torch.stack([found.clamp_min(1) / there, 2 * both / (found + there)])
        rows.append(torch.where(there < FEW, torch.nan, row))
    return torch.stack(rows)


def solve(
    heads: list[tuple[torch.Tensor, torch.Tensor]], rounds: int = 30, rate: float = 0.5
) -> torch.Tensor:
    """Find the offsets (classes,) at which the median ratio of every free class is 1."""
    offsets = torch.zeros(len(NAMES))
    for _ in tqdm(range(rounds), "Offsets"):
        medians = ratios(heads, offsets)[:, 0].nanmedian(0).values
        offsets[FREE] -= rate * medians[FREE].clamp(0.2, 5).log()
    return offsets


def shifted(weights: dict[str, torch.Tensor], offsets: torch.Tensor) -> dict[str, torch.Tensor]:
    """Add the offsets to the bias of the last layer, under all names that it has."""
    names = [name for name in weights if "seg_layers" in name and name.endswith(".bias")]
    last = max(names, key=lambda name: int(name.split("seg_layers.")[1].split(".")[0]))
    place = weights[last].data_ptr()
    new = (weights[last].float() + offsets).to(weights[last].dtype)
    return {name: new if each.data_ptr() == place else each for name, each in weights.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="name or folder of a model that is one network")
    parser.add_argument("target", type=Path)
    parser.add_argument("--synthseg", type=Path, nargs="+", default=[])
    parser.add_argument("--siam", type=Path, nargs="+", default=[])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--offsets", nargs="+", metavar="TISSUE=OFFSET")
    options = parser.parse_args()
    model = find_model(options.model)
    offsets = given(options.offsets) if options.offsets else measured(model, options)
    path = first_weights(model.folder)
    (options.target / "fold_0").mkdir(parents=True)
    for name in ("plans.json", "dataset.json"):
        shutil.copy(model.folder / name, options.target)
    weights = checkpoint(shifted(load_weights(path), offsets), mirror_axes(path))
    torch.save(weights, options.target / "fold_0" / CHECKPOINT)


def given(words: list[str]) -> torch.Tensor:
    """Read offsets (classes,) such as `Dura=0.4`; those not named are 0."""
    offsets = torch.zeros(len(NAMES))
    for name, _, value in (word.partition("=") for word in words):
        offsets[NAMES.index(name)] = float(value)
    return offsets


def measured(model: Model, options: argparse.Namespace) -> torch.Tensor:
    """Paint heads, print what their volumes are before and after, and return offsets (classes,)."""
    opened = NnunetModel.open(model.folder, precisions=model.precisions, mirror=model.mirror)
    inference = Inference(precision=options.precision)
    segmenter = NnunetSegmenter(opened, torch.device("cpu"), inference)
    maps = [(path, "synthseg") for path in options.synthseg]
    maps += [(path, "siam") for path in options.siam]
    heads = []
    for number in tqdm(range(options.images), "Heads"):
        path, source = maps[number % len(maps)]
        anatomy = prepare_anatomy(*load_labels(path), source_table(source), path.name)
        heads.append(sample(segmenter, anatomy, number))
    offsets = solve(heads)
    before, after = ratios(heads, torch.zeros(len(NAMES))), ratios(heads, offsets)
    print("| | offset | volume, share of the truth (median) | Dice (mean) |\n|---|---|---|---|")
    for place in FREE:
        share, dice = (
            " to ".join(f"{float(value):.2f}" for value in pair)
            for pair in (
                [table[:, 0, place].nanmedian() for table in (before, after)],
                [table[:, 1, place].nanmean() for table in (before, after)],
            )
        )
        print(f"| {NAMES[place]} | {offsets[place]:+.2f} | {share} | {dice} |")
    return offsets


if __name__ == "__main__":
    main()
