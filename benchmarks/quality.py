"""Measure a model on held-out synthetic heads and on real heads.

    python benchmarks/quality.py LABEL_MAPS HEADS [--model compact] [--jobs 2] [--only PART...]

LABEL_MAPS holds training_seg_17.nii.gz and training_seg_18.nii.gz, which no model of ours is
trained on, and siam_v03_ds000001_sub-01.nii.gz, which is (here in contrasts and deformations that
training did not draw); HEADS the real scans. Images are drawn with fixed seeds at full difficulty.
Writes OUT.tsv (every number), OUT.md (the summary that the model card quotes) and
OUT_reliability.png; OUT (`--out`) is benchmarks/quality. With `--only` some parts are measured, and
the rows of the others stay as OUT.tsv has them, if it has them; `version` is that of the model they
were measured with, and the summary tells which are of another. With none (`--only`), the summary is
written anew from OUT.tsv.

Measures: `dice`; `volume`, that found over that in truth; `hd95`, the 95th percentile of the
distances between two surfaces in mm; `mL`;
`found`, whether a lesion has a tenth of its voxels in Anomalies; `reliability`, of all voxels with
a probability between two tenths the share that is right, and `voxels`, how many these are.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from scipy import ndimage

from siam_bids.config import Inference
from siam_bids.image.grid import Grid, Volume
from siam_bids.image.labels import HEALTHY, siam_labels
from siam_bids.image.loading import load_labels, load_volume
from siam_bids.inference.cascade import Cascade, CascadeSegmenter
from siam_bids.inference.segmenter import Segmenter
from siam_bids.models.model import Model
from siam_bids.models.registry import find_model
from siam_bids.reports.methods_text import model_line
from siam_bids.synthesis.anatomy_changes import LESIONS
from siam_bids.synthesis.label_maps import Anatomy, prepare_anatomy, source_table, tissues
from siam_bids.synthesis.recipe import Recipe, draw_recipe
from siam_bids.synthesis.render import Rendering, render

BRAIN_CLASSES = siam_labels().names(*HEALTHY)
"""The twelve brain classes that a model's quality is quoted over."""
BRAIN_TISSUES = tuple(label.name for label in siam_labels().brain)
"""Those of the brain mask."""
FREESURFER = {
    "GM": [3, 42, *range(1000, 3000)],
    "WM": [2, 41, 7, 46, 16, 28, 60, 77, 85, *range(251, 256)],
    "CSFv": [4, 5, 14, 15, 43, 44, 72, 31, 63],
    "cerGM": [8, 47], "Thal": [10, 49], "Pal": [13, 52], "Put": [12, 51], "Caud": [11, 50],
    "Accu": [26, 58], "Amyg": [18, 54], "Hippo": [17, 53],
}  # fmt: skip
"""Values of aparc+aseg that each class stands for; FreeSurfer does not draw the others."""

HELD_OUT = ("training_seg_17", "training_seg_18")
SIAMS_OWN = "siam_v03_ds000001_sub-01"
UNKNOWN = 255
FOREGROUND = [label.name for label in siam_labels().foreground]
INDEX = {label.name: label.index for label in siam_labels()}
TEN = ("GM", "WM", "CSFv", "cerGM", "Thal", "Pal", "Put", "Caud", "Hippo", "Amyg")
FILLED = "brain mask, sulci filled"
NUCLEI = ("Thal", "Pal", "Put", "Caud", "Accu", "Amyg", "Hippo")

NEIGHBOURS = {
    "GM": (("gm", "wm"), ("gm", "arachnoid")),
    "WM": (("gm", "wm"),),
    "CSF": (("gm", "arachnoid"),),
}
"""Painted tissues on either side of the long borders of a class."""

Rows = Iterator[tuple[str, str, str, str, float]]
"""Set, scan, class, measure, value."""


def open_model(
    name: str, device: str = "cpu", precision: str = "float32"
) -> tuple[Model, CascadeSegmenter]:
    """Return what is known of a model, and what runs it; float32 is alike on every machine."""
    record = find_model(name)
    options = Inference(precision=precision)
    return record, CascadeSegmenter(Cascade.open(record), torch.device(device), options)


def dice(one: np.ndarray, two: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|); NaN where both are empty."""
    size = int(one.sum()) + int(two.sum())
    return 2 * int((one & two).sum()) / size if size else float("nan")


def freesurfer_masks(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return the classes that FreeSurfer's coding draws, and `brain`, all of them together."""
    masks = {name: np.isin(labels, values) for name, values in FREESURFER.items()}
    return {**masks, "brain": np.logical_or.reduce(list(masks.values()))}


def filled(brain: np.ndarray, reach: float = 3.0) -> np.ndarray:
    """Close a mask by a ball of so many voxels: the brain with its sulci, as a mask is drawn."""
    grown = ndimage.distance_transform_edt(~brain) <= reach
    closed: np.ndarray = ndimage.distance_transform_edt(grown) > reach
    return closed


def hd95(one: np.ndarray, two: np.ndarray, voxel: float = 1.0) -> float:
    """95th percentile of the distances from each surface to the other, in mm."""
    if not (one.any() and two.any()):
        return float("nan")
    box = ndimage.find_objects((one | two).astype(np.uint8))[0]
    one, two = (np.pad(mask[box], 1) for mask in (one, two))
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (one, two)]
    to_one, to_two = (ndimage.distance_transform_edt(~surface) for surface in surfaces)
    distances = np.concatenate([to_one[surfaces[1]], to_two[surfaces[0]]])
    return float(np.percentile(distances, 95)) * voxel


def compare(where: tuple[str, str], found: np.ndarray, truth: np.ndarray, surfaces: bool) -> Rows:
    """Score every class that the truth holds; voxels of unknown truth are left out."""
    found = np.where(truth == UNKNOWN, UNKNOWN, found)
    for name in FOREGROUND:
        one, two = found == INDEX[name], truth == INDEX[name]
        if not two.any():
            continue
        yield *where, name, "dice", dice(one, two)
        yield *where, name, "volume", float(one.sum() / two.sum())
        if surfaces and name in BRAIN_CLASSES:
            yield *where, name, "hd95", hd95(one, two)


def held_out_recipe(seed: int, contrast: str, thick: float) -> Recipe:
    """Draw how image `seed` of a held-out map is painted, in slices of so many mm."""
    recipe = draw_recipe(np.random.default_rng((seed, 2026)), contrast=contrast)
    return replace(recipe, spacing=(1.0, 1.0, thick), strip="no", lesions="no")


def siams_recipe(seed: int) -> Recipe:
    """Draw how image `seed` of SIAM's map is painted."""
    recipe = draw_recipe(np.random.default_rng((seed, 4052)))
    return replace(recipe, spacing=(1.0, 1.0, 1.0), strip="no", lesions="no")


def one_head_recipe(seed: int) -> Recipe:
    """Draw contrast `seed` of the head that stays as it is."""
    drawn = draw_recipe(np.random.default_rng((seed, 77)))
    return Recipe(seed=7, means=drawn.means, stds=drawn.stds, blur=0.5, noise=0.01)


def contrast_of(recipe: Recipe, name: str) -> float:
    """Return how far the mean intensity of a class is from its neighbours', at the least."""
    mean = dict(zip(tissues().names, recipe.means, strict=True))
    return min(abs(float(mean[one] - mean[two])) for one, two in NEIGHBOURS[name])


class Bench:
    """The model, the label maps and the seeds."""

    def __init__(self, segmenter: Segmenter, label_maps: Path, heads: Path, count: int) -> None:
        self.segmenter, self.heads, self.count = segmenter, heads, count
        self.few = max(1, count // 4)
        self._maps = label_maps
        self._kept: dict[str, Anatomy] = {}

    def anatomy(self, name: str) -> Anatomy:
        if name not in self._kept:
            labels, grid = load_labels(self._maps / f"{name}.nii.gz")
            source = "siam" if name == SIAMS_OWN else "synthseg"
            self._kept[name] = prepare_anatomy(labels, grid, source_table(source))
        return self._kept[name]

    def segment(self, image: np.ndarray) -> np.ndarray:
        volume = Volume(image.astype(np.float32), Grid(image.shape, np.eye(4)))
        return self.segmenter.segment(volume).segmentation.data

    def painted(self, name: str, recipe: Recipe) -> tuple[Rendering, np.ndarray]:
        rendering = render(self.anatomy(name), recipe)
        targets = self.anatomy(name).table.target
        truth = np.array([t[0] if len(t) == 1 else UNKNOWN for t in targets], np.uint8)
        return rendering, truth[rendering.codes.numpy()]

    def held_out(self, title: str, contrast: str, thick: float, count: int) -> Rows:
        for name in HELD_OUT:
            for seed in range(count):
                rendering, truth = self.painted(name, held_out_recipe(seed, contrast, thick))
                found = self.segment(rendering.image.numpy())
                surfaces = contrast == "T1w"
                yield from compare((title, f"{name}/{seed}"), found, truth, surfaces)

    def siams_own(self) -> Rows:
        for seed in range(self.count // 2):
            rendering, truth = self.painted(SIAMS_OWN, siams_recipe(seed))
            found = self.segment(rendering.image.numpy())
            yield from compare(("SIAM's map, drawn anew", str(seed)), found, truth, False)

    def contrasts(self) -> Rows:
        """One undeformed head in many contrasts: how much do the volumes vary?"""
        for seed in range(self.count):
            rendering, _ = self.painted(HELD_OUT[1], one_head_recipe(seed))
            found = self.segment(rendering.image.numpy())
            for name in FOREGROUND:
                volume = float((found == INDEX[name]).sum()) / 1000
                yield "one head, many contrasts", str(seed), name, "mL", volume

    def lesions(self) -> Rows:
        for kind in LESIONS:
            for seed in range(self.few):
                recipe = draw_recipe(np.random.default_rng((seed, 99)))
                radii = (9.0,) * 4 if kind == "ms" else (6.0 + seed,)
                recipe = replace(
                    recipe, lesions=kind, lesion_radii=radii, heal_lesions=True, strip="no"
                )
                rendering, truth = self.painted(HELD_OUT[seed % 2], recipe)
                found = self.segment(rendering.image.numpy()) == INDEX["Anomalies"]
                parts, number = ndimage.label(truth == INDEX["Anomalies"])
                for index in range(1, number + 1):
                    if (part := parts == index).sum() >= 1000:
                        hit = float(found[part].mean() >= 0.1)
                        yield "lesions of 1 mL and more", f"{kind}/{seed}", kind, "found", hit
                extra = float((found & (parts == 0)).sum()) / 1000
                yield "false anomalies", f"{kind}/{seed}", "Anomalies", "mL", extra

    def reliability(self) -> Rows:
        edges = np.linspace(0, 1, 11)
        bins = np.zeros((2, 10))
        for name in HELD_OUT:
            for seed in range(3):
                recipe = draw_recipe(np.random.default_rng((seed, 2026)))
                rendering, truth = self.painted(name, replace(recipe, strip="no"))
                volume = Volume(rendering.image.numpy(), Grid(truth.shape, np.eye(4)))
                answer = self.segmenter.segment(volume, probabilities=("background", *FOREGROUND))
                found = answer.segmentation.data
                known = (truth != UNKNOWN) & ((truth > 0) | (found > 0))
                sure = np.max(list(answer.probabilities.values()), 0)[known]
                place = np.clip(np.digitize(sure, edges) - 1, 0, 9)
                right = (found == truth)[known]
                bins[0] += np.bincount(place, minlength=10)
                bins[1] += np.bincount(place, right, minlength=10)
        for edge, count, right in zip(edges, *bins, strict=False):
            share = right / count if count else float("nan")
            yield "reliability", "all", f"{edge:.1f}", "reliability", share
            yield "reliability", "all", f"{edge:.1f}", "voxels", count

    def freesurfer(self) -> Rows:
        where = ("visualqc_id001 against FreeSurfer", "visualqc_id001")
        reference, _ = load_labels(self.heads / "visualqc_id001_aparc+aseg.mgz")
        volume = load_volume(self.heads / "visualqc_id001_T1w.mgz")
        segmentation = self.segmenter.segment(volume).segmentation
        truth = freesurfer_masks(reference)
        found = {name: segmentation.mask((name,)) for name in FREESURFER}
        found["brain mask"] = segmentation.mask(BRAIN_TISSUES)
        truth["brain mask"] = truth["brain"]
        found[FILLED], truth[FILLED] = filled(found["brain mask"]), filled(truth["brain"])
        for name, mask in found.items():
            yield *where, name, "dice", dice(mask, truth[name])
            yield *where, name, "volume", float(mask.sum() / truth[name].sum())

    def stroke(self) -> Rows:
        """Dice between the segmentations of three contrasts of one patient on one grid."""
        found = {}
        for contrast in ("T1", "T2", "FLAIR"):
            volume = load_volume(self.heads / f"stroke_{contrast}.nii.gz")
            found[contrast] = self.segmenter.segment(volume).segmentation
            lesion = float(found[contrast].mask(("Anomalies",)).sum())
            lesion *= float(np.prod(volume.grid.voxel_size)) / 1000
            yield "stroke patient's lesion", contrast, "Anomalies", "mL", lesion
        for one, two in (("T1", "T2"), ("T1", "FLAIR"), ("T2", "FLAIR")):
            for name in BRAIN_CLASSES:
                score = dice(found[one].mask((name,)), found[two].mask((name,)))
                yield "stroke patient, contrasts", f"{one}-{two}", name, "dice", score

    def poses(self) -> Rows:
        """The real colin27 turned, flipped and in thick slices, against itself."""
        data = load_volume(self.heads / "colin27_T1w.nii.gz").data
        plain = self.segment(data)
        for degrees in (15, 30):
            turned = ndimage.rotate(data, degrees, (1, 2), reshape=False, order=1)
            back = ndimage.rotate(
                self.segment(turned), -degrees, (1, 2), reshape=False, order=0, mode="nearest"
            )
            yield from compare(("colin27 against itself", f"turned {degrees}"), back, plain, False)
        flipped = self.segment(data[::-1].copy())[::-1]
        yield from compare(("colin27 against itself", "flipped"), flipped, plain, False)
        for thick in (3, 5):
            count = data.shape[2] // thick * thick
            slices = data[..., :count].reshape(*data.shape[:2], -1, thick).mean(-1)
            grid = Grid(slices.shape, np.diag([1.0, 1.0, float(thick), 1.0]))
            answer = self.segmenter.segment(Volume(slices.astype(np.float32), grid))
            found = np.repeat(answer.segmentation.data, thick, 2)
            where = ("colin27 against itself", f"{thick} mm slices")
            yield from compare(where, found, plain[..., :count], False)


def replaced(before: pd.DataFrame, anew: pd.DataFrame) -> pd.DataFrame:
    """Put the sets that were measured anew in the place of those before."""
    sets = dict.fromkeys([*before["set"], *anew["set"]])
    here = set(anew["set"])
    return pd.concat(
        [(anew if name in here else before).query("set == @name") for name in sets],
        ignore_index=True,
    )


def older(table: pd.DataFrame, version: str) -> str:
    """Say which sets were measured with another version of the model."""
    sets = table[table["version"] != version].groupby("version")["set"].unique()
    return "".join(f" Measured with {name}: {', '.join(part)}." for name, part in sets.items())


def summary(table: pd.DataFrame, about: str) -> str:
    """Return the summary as Markdown."""
    scores = table[table["measure"] == "dice"]
    means = scores.pivot_table("value", "class", "set", sort=False)
    brain = means.loc[[name for name in BRAIN_CLASSES if name in means.index]].mean()
    means.loc["**mean of the brain classes**"] = brain
    scans = scores[scores["class"].isin(BRAIN_CLASSES)].groupby(["set", "scan"])["value"].mean()
    means.loc["worst scan (mean of the brain classes)"] = scans.groupby("set").min()
    means.columns.name = "Dice"

    def of(measure: str, part: str) -> pd.DataFrame:
        return table[(table["measure"] == measure) & table["set"].str.contains(part)]

    volumes = of("mL", "many contrasts").groupby("class", sort=False)["value"]
    spread = pd.DataFrame({
        "surface distance, T1w-like, 95th percentile (mm)": of("hd95", "T1w").pivot_table(
            "value", "class", "set", sort=False
        ).mean(axis=1),
        "volume CV over contrasts (%)": 100 * volumes.std() / volumes.mean(),
        "mean volume (mL)": volumes.mean(),
    }).reindex(FOREGROUND).dropna(axis=1, how="all")  # fmt: skip
    shares = of("volume", "^(?!colin27)").pivot_table("value", "class", "set", "median", sort=False)
    shares.columns.name = "volume, share of the truth (median)"
    found = of("found", "lesions").groupby("class", sort=False)["value"].agg(["mean", "count"])
    found.columns = pd.Index(["share found", "lesions"])
    false = of("mL", "false")["value"]
    lesion = of("mL", "stroke patient")[["scan", "value"]].to_numpy()
    ends = []
    if len(false):
        ends.append(f"False anomalies beside the lesions: median {false.median():.1f} mL.")
    if len(lesion):
        told = ", ".join(f"{scan} {value:.1f} mL" for scan, value in lesion)
        ends.append(f"Anomalies in the stroke patient: {told}.")
    tables = [markdown(means), *(markdown(t, 2) for t in (shares, spread, found) if t.size)]
    parts = [about, by_contrast(table), *tables, " ".join(ends)]
    return "\n".join(part.rstrip() + "\n" for part in parts if part)


def by_contrast(table: pd.DataFrame) -> str:
    """Return scores of images with little and with much contrast, as Markdown.

    Contrasts are drawn at random: in some images two tissues look the same, and where one ends and
    the other begins can only be guessed.
    """
    random = table[(table["set"] == "random contrast, 1 mm") & (table["measure"] == "dice")]
    head = table[table["set"] == "one head, many contrasts"]
    rows = []
    for title, part, draw in (
        ("Dice, random contrast", random, lambda seed: held_out_recipe(seed, "random", 1.0)),
        ("volume CV of one head (%)", head, one_head_recipe),
    ):
        if part.empty:
            continue
        seeds = part["scan"].str.split("/").str[-1].astype(int)
        recipes = {seed: draw(seed) for seed in seeds.unique()}
        for name in NEIGHBOURS:
            values = part.loc[part["class"] == name, "value"]
            gaps = seeds[values.index].map({s: contrast_of(r, name) for s, r in recipes.items()})
            cells = []
            for low, high in ((0, 0.15), (0.15, 0.3), (0.3, np.inf)):
                here = values[(gaps >= low) & (gaps < high)]
                figure = f"{here.mean():.3f}"
                if part is head:
                    figure = f"{100 * here.std() / here.mean():.1f}"
                cells.append(f"{figure} ({len(here)})" if len(here) > 1 else "")
            rows.append(f"| {title}: {name} | " + " | ".join(cells) + " |")
    top = "| difference to its neighbours' mean intensity (images) | < 0.15 | 0.15 to 0.3 | > 0.3 |"
    return "\n".join([top, "|---|---|---|---|", *rows]) if rows else ""


def markdown(table: pd.DataFrame, digits: int = 3) -> str:
    """Write a table of numbers as Markdown, empty where there is none."""
    lines = [f"| {table.columns.name or ''} | " + " | ".join(map(str, table.columns)) + " |"]
    lines.append("|" + "---|" * (1 + len(table.columns)))
    for name, row in table.iterrows():
        cells = ["" if np.isnan(value) else f"{value:.{digits}f}" for value in row]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def targets(table: pd.DataFrame) -> str:
    """Return the targets of the compact model beside what was reached."""

    def score(part: str, classes: tuple[str, ...], measure: str = "dice") -> float:
        rows = table[table["set"].str.contains(part, regex=False) & (table["measure"] == measure)]
        return float(rows[rows["class"].isin(classes)].groupby("class")["value"].mean().mean())

    def variation(classes: tuple[str, ...]) -> float:
        rows = table[(table["set"] == "one head, many contrasts") & table["class"].isin(classes)]
        volumes = rows.groupby("class")["value"]
        return float((100 * volumes.std() / volumes.mean()).max())

    random = "random contrast, 1 mm"
    rows = [
        ("held-out maps, 12 brain classes, 1 mm", "≥ 0.86", score(random, BRAIN_CLASSES)),
        ("the same, 5 mm slices", "≥ 0.75", score("5 mm slices", BRAIN_CLASSES)),
        *(
            (f"held-out {name}", f"≥ {aim}", score(random, (name,)))
            for name, aim in (("Skull", 0.88), ("Head", 0.93), ("CSF", 0.80))
        ),
        ("Dura, SIAM's map drawn anew", "≥ 0.65", score("SIAM's map", ("Dura",))),
        ("vascular, the same", "≥ 0.55", score("SIAM's map", ("vascular",))),
        ("lesions of 1 mL found", "≥ 0.80", score("lesions", LESIONS, "found")),
        ("visualqc_id001, ten classes", "≥ 0.82", score("visualqc", TEN)),
        ("visualqc_id001, brain mask", "≥ 0.96", score("visualqc", ("brain mask",))),
        ("the same, gaps of up to 6 mm filled in both", "", score("visualqc", (FILLED,))),
        ("largest volume CV of GM, WM, CSFv (%)", "≤ 3", variation(("GM", "WM", "CSFv"))),
        ("largest volume CV of the nuclei (%)", "≤ 6", variation(NUCLEI)),
    ]
    lines = ["| | target | reached |", "|---|---|---|"]
    known = [row for row in rows if not np.isnan(row[2])]
    lines += [f"| {name} | {aim} | {value:.3f} |" for name, aim, value in known]
    return "\n".join(lines) + "\n"


def draw_reliability(bins: pd.DataFrame, path: Path) -> float:
    """Plot how often the network is right against how sure it is; return the expected error."""
    bins = bins.pivot_table("value", "class", "measure")
    middle = np.linspace(0.05, 0.95, 10)
    share, count = bins["reliability"], bins["voxels"]
    figure, axis = plt.subplots(figsize=(4, 4))
    axis.plot([0, 1], [0, 1], color="gray", linewidth=1)
    axis.plot(middle, share, "o-", color="#0072b2")
    axis.set(xlabel="probability of the chosen class", ylabel="share of voxels that are right")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    return float(np.nansum(count * abs(share - middle)) / count.sum())


PARTS: dict[str, Callable[[Bench], Rows]] = {
    "freesurfer": Bench.freesurfer,
    "stroke": Bench.stroke,
    "random": lambda bench: bench.held_out("random contrast, 1 mm", "random", 1.0, bench.count),
    "T1w": lambda bench: bench.held_out("T1w-like, 1 mm", "T1w", 1.0, bench.few),
    "5 mm": lambda bench: bench.held_out("random contrast, 5 mm slices", "random", 5.0, bench.few),
    "siam": Bench.siams_own,
    "contrasts": Bench.contrasts,
    "lesions": Bench.lesions,
    "poses": Bench.poses,
    "reliability": Bench.reliability,
}
"""What is measured, in the order of the table."""


def measure(part: str, options: argparse.Namespace) -> list[tuple[str, str, str, str, float]]:
    """Run one part in a process of its own."""
    if options.jobs > 1:
        torch.set_num_threads(1)
    _, segmenter = open_model(options.model, options.device, options.precision)
    bench = Bench(segmenter, options.label_maps, options.heads, options.count)
    return list(PARTS[part](bench))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("label_maps", type=Path)
    parser.add_argument("heads", type=Path)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--count", type=int, default=20, help="images per held-out map")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/quality"))
    parser.add_argument("--jobs", type=int, default=1, help="processes, each on its own thread")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    kept = options.out.with_suffix(".tsv")
    if not (options.only or kept.exists()):
        parser.error(f"--only without a part sums up {kept}, which is not there")
    record = find_model(options.model)
    begin = time.monotonic()
    rows = []
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(measure, part, options) for part in options.only]
        for part, future in zip(options.only, running, strict=True):
            rows += future.result()
            print(f"{part}: {time.monotonic() - begin:.0f} s", flush=True)
    table = pd.DataFrame(rows, columns=["set", "scan", "class", "measure", "value"])
    table["version"] = record.version
    if len(options.only) < len(PARTS) and kept.exists():
        table = replaced(pd.read_csv(kept, sep="\t", dtype={"scan": str}), table)
    table.to_csv(kept, sep="\t", index=False, float_format="%.4f", na_rep="n/a")
    bins = table[table["set"] == "reliability"]
    error = ""
    if len(bins):
        plot = options.out.with_name(options.out.name + "_reliability.png")
        error = f" Expected calibration error {draw_reliability(bins, plot):.3f}."
    images = table[table["set"] != "reliability"].groupby("set", sort=False)["scan"].nunique()
    about = (
        f"{model_line(record.describe())}. Images or pairs of each set: "
        f"{', '.join(f'{name} {count}' for name, count in images.items())}."
        f"{error}{older(table, record.version)}"
        f"\n\n{targets(table)}"
    )
    text = summary(table, about)
    options.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
