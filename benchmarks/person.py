"""What combining the scans of a person brings: drawn heads whose anatomy and motion are known.

    python benchmarks/person.py LABEL_MAPS [--model compact] [--maps training_seg_17 ...]

Of each label map (training_seg_17 and 18, which no model of ours is trained on, and three others)
scans are drawn, see `drawn_visits`: T1w visits without change and with atrophy of 1, 2 and 5 % in
cortex, hippocampus, ventricles and caudate, and a T2w of the unchanged head. Each is segmented
alone; all T1w visits are combined with each other, and the first one with the T2w. Writes
benchmarks/person.tsv and prints the tables of benchmarks/person.md; with `--noise` also writes
data/change_noise.tsv. With none (`--maps`) only from what person.tsv has.

Columns: `found` and `true` volumes in mL and `dice` with the truth, of a scan and tissue; `mm` and
`degrees`, error of the alignment; `likeness`; CPU `seconds` of a scan, and of its `networks`.
Change is that of the logarithm of volumes in percent. A line is fitted to found against true change
over the visits of a head: its `slope`, and `noise`, the standard deviation of the change between
two visits that the residuals make. Where the truth changes by less than 0.5 %, the slope is 1.
"""

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from drawn_visits import UNKNOWN, Head, Visit
from quality import open_model
from scipy.spatial.transform import Rotation

from siam_bids.image.labels import siam_labels
from siam_bids.image.loading import load_labels
from siam_bids.image.transforms import inverse, move
from siam_bids.inference import combining
from siam_bids.inference.cascade import CascadeSegmenter
from siam_bids.inference.combining import Shared
from siam_bids.inference.person import Coarse, align_scans, coarse_scores
from siam_bids.inference.prediction import NetworkScores
from siam_bids.support.package_data import resource
from siam_bids.synthesis.label_maps import prepare_anatomy, source_table

TISSUES = [label.name for label in siam_labels().labels[1:15]]
INDEX = {label.name: label.index for label in siam_labels()}
BRAIN = ("GM", "WM", "cerGM", "Thal", "Pal", "Put", "Caud", "Accu", "Amyg", "Hippo")
CHANGED = ("cortex", "hippocampus", "ventricles", "caudate")
HELD_OUT = ("training_seg_17", "training_seg_18")
KNOWN = ("training_seg_03", "training_seg_07", "training_seg_11")
VISITS = {
    "first": ("T1w", 0),
    "again": ("T1w", 0),
    "1 %": ("T1w", 1),
    "2 %": ("T1w", 2),
    "5 %": ("T1w", 5),
    "T2w": ("T2w", 0),
}
"""Contrast and percent of atrophy of each visit."""
GROUPS = {"visits": ("first", "again", "1 %", "2 %", "5 %"), "contrasts": ("first", "T2w")}
"""Which scans are combined with each other."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("label_maps", type=Path)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--maps", nargs="*", default=[*HELD_OUT, *KNOWN])
    parser.add_argument("--visits", nargs="+", choices=VISITS, default=[*VISITS])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".tsv"))
    parser.add_argument("--noise", action="store_true")
    parser.add_argument("--own", type=float, default=combining.SESSION,
                        help="share of a visit's own prior")  # fmt: skip
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    combining.SESSION = arguments.own
    kept = pd.read_csv(arguments.out, sep="\t") if arguments.out.exists() else pd.DataFrame()
    for name in arguments.maps:
        path = arguments.label_maps / f"{name}.nii.gz"
        rows = measure(path, arguments.model, 10 * int(name[-2:]), arguments.visits)
        if not kept.empty:
            kept = kept[kept["map"] != name]
        kept = pd.concat([kept, pd.DataFrame(rows)])
        kept.to_csv(arguments.out, sep="\t", index=False, float_format="%.5g")
    print(summary(kept))
    if not (own := kept[kept["map"].isin(HELD_OUT)]).empty:
        print("\nHeld-out heads:\n" + summary(own))
    if arguments.noise:
        noise(kept).round(2).to_csv(resource("data", "change_noise.tsv"), sep="\t")


def measure(path: Path, model: str, seed: int, wanted: Sequence[str]) -> list[dict[str, object]]:
    """Draw, segment and score the scans of one label map."""
    name = path.name.split(".")[0]
    labels, grid = load_labels(path)
    head = Head(prepare_anatomy(labels, grid, source_table("synthseg")))
    _, segmenter = open_model(model, precision="auto")
    visits: dict[str, Visit] = {}
    seen: dict[str, NetworkScores] = {}
    coarse: dict[str, Coarse] = {}
    spent: dict[str, float] = {}
    rows: list[dict[str, object]] = []
    for number, (key, (contrast, percent)) in enumerate(VISITS.items(), start=1):
        if key not in wanted:
            continue
        changes = dict.fromkeys(CHANGED, float(percent)) if percent else {}
        visits[key] = visit = head.visit(contrast, changes, seed + number)
        begin = time.process_time()
        seen[key] = segmenter.network(visit.volume)
        network = time.process_time() - begin
        found = segmenter.finish(visit.volume, seen[key]).segmentation.data
        about = {
            "map": name,
            "group": "alone",
            "visit": key,
            "seconds": time.process_time() - begin,
        }
        rows += scores(visit, found, about | {"networks": network})
        print(name, key, f"alone {about['seconds']:.1f} s", flush=True)
        begin = time.process_time()
        coarse[key] = coarse_scores(visit.volume, seen[key], segmenter.cascade.labels)
        network += time.process_time() - begin
        spent[key] = network
    for group, every in GROUPS.items():
        keys = [key for key in every if key in wanted]
        if len(keys) < 2:
            continue
        found = together(group, keys, visits, seen, coarse, segmenter)
        rows += [
            {"map": name, **row, "seconds": row["seconds"] + spent[row["visit"]]} for row in found
        ]
    return rows


def together(
    group: str,
    keys: Sequence[str],
    visits: Mapping[str, Visit],
    seen: Mapping[str, NetworkScores],
    coarse: Mapping[str, Coarse],
    segmenter: CascadeSegmenter,
) -> Iterator[dict[str, object]]:
    """Combine scans and score each."""
    begin = time.process_time()
    aligned = align_scans([coarse[key] for key in keys])
    sessions = keys if group == "visits" else [group] * len(keys)
    shared = Shared([coarse[key] for key in keys], aligned.motions, sessions)
    common = (time.process_time() - begin) / len(keys)
    for place, key in enumerate(keys):
        begin = time.process_time()
        volume, scores_of_it = shared.with_it(place, visits[key].volume, seen[key])
        found = segmenter.finish(volume, scores_of_it).segmentation.data
        seconds = common + time.process_time() - begin
        true = inverse(visits[keys[0]].to_head) @ visits[key].to_head
        apart = inverse(true) @ inverse(aligned.motions[0]) @ aligned.motions[place]
        brain = coarse[key].appearance.places
        yield from scores(visits[key], found, {
            "group": group, "visit": key, "seconds": seconds,
            "degrees": np.degrees(Rotation.from_matrix(apart[:3, :3]).magnitude()),
            "mm": np.linalg.norm(move(apart, brain) - brain, axis=1).mean(),
            "likeness": aligned.likeness[place],
        })  # fmt: skip
        print(key, group, f"{seconds:.1f} s", flush=True)


def scores(
    visit: Visit, found: np.ndarray, about: Mapping[str, object]
) -> Iterator[dict[str, object]]:
    """Score the labels of one scan, tissue by tissue."""
    counts = np.bincount(found.ravel(), minlength=256) / 1000
    volumes = {name: (counts[INDEX[name]], visit.millilitres[name]) for name in TISSUES}
    volumes["brain"] = tuple(sum(volumes[name][n] for name in BRAIN) for n in (0, 1))
    for name, (millilitres, true) in volumes.items():
        overlap = dice(found, visit.truth, INDEX[name]) if name in INDEX else np.nan
        yield {**about, "tissue": name, "found": millilitres, "true": true, "dice": overlap}


def dice(found: np.ndarray, truth: np.ndarray, label: int) -> float:
    """Overlap of one label; voxels of unknown truth are left out."""
    one, two = (found == label) & (truth != UNKNOWN), truth == label
    return float(2 * (one & two).sum() / max(1, one.sum() + two.sum()))


def lines(rows: pd.DataFrame) -> pd.DataFrame:
    """Return slope and noise of change over the T1w visits, by tissue and group."""
    rows = rows[rows["visit"].isin(GROUPS["visits"]) & rows["group"].isin(["alone", "visits"])]
    found = []
    for (tissue, group), several in rows.groupby(["tissue", "group"], sort=False):
        slopes, squares, freedom = [], 0.0, 0
        for _, own in several.groupby("map"):
            x, y = (100 * np.log(own[column].to_numpy(float)) for column in ("true", "found"))
            x, y = x - x.mean(), y - y.mean()
            fixed = np.ptp(x) < 0.5
            slope = 1.0 if fixed else float(x @ y / (x @ x))
            slopes.append(np.nan if fixed else slope)
            squares += float(((y - slope * x) ** 2).sum())
            freedom += len(x) - (1 if fixed else 2)
        slope = float(np.mean(slopes))
        spread = float(np.sqrt(2 * squares / freedom))
        found.append({"tissue": tissue, "group": group, "slope": slope, "noise": spread,
                      "dice": several["dice"].mean()})  # fmt: skip
    return pd.DataFrame(found)


def noise(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the table `data/change_noise.tsv`."""
    table = lines(rows).pivot_table(index="tissue", columns="group", values="noise", sort=False)
    table = table.rename(columns={"visits": "combined"}).loc[TISSUES, ["alone", "combined"]]
    return table.round(2)


def summary(rows: pd.DataFrame) -> str:
    """Return the tables of the report."""
    wide = lines(rows).pivot_table(index="tissue", columns="group", sort=False)
    text = ["| tissue | noise alone, combined (%) | slope | Dice |", "|---|---|---|---|"]
    for tissue, row in wide.iterrows():
        cells = (f"{row[name, 'alone']:.{digits}f}, {row[name, 'visits']:.{digits}f}"
                 if (name, "alone") in row else ""
                 for name, digits in (("noise", 2), ("slope", 2), ("dice", 3)))  # fmt: skip
        text.append(f"| {tissue} | {' | '.join(cells)} |")
    text.append(
        f"| mean | {wide['noise', 'alone'].mean():.2f}, {wide['noise', 'visits'].mean():.2f} |"
    )
    pair = rows[
        rows["visit"].isin(GROUPS["contrasts"]) & rows["group"].isin(["alone", "contrasts"])
    ]
    text += ["", "| tissue | T2w against T1w, error alone, combined (%) | Dice |", "|---|---|---|"]
    if pair["visit"].nunique() < 2:
        pair = pair.iloc[:0]
    both = []
    for tissue, own in pair.groupby("tissue", sort=False):
        cells, mean = [], []
        for group in ("alone", "contrasts"):
            each = own[own["group"] == group].pivot_table(
                index="map", columns="visit", values=["found", "true"]
            )
            ratio = each["found", "T2w"] / each["found", "first"]
            error = 100 * (ratio / (each["true", "T2w"] / each["true", "first"]) - 1)
            cells.append(error.abs().mean())
            mean.append(own.loc[own["group"] == group, "dice"].mean())
        both.append(cells)
        text.append(f"| {tissue} | {cells[0]:.2f}, {cells[1]:.2f} | {mean[0]:.3f}, {mean[1]:.3f} |")
    if both:
        text.append("| mean | {:.2f}, {:.2f} |".format(*np.mean(both, 0)))
    about = rows.groupby("group")[["networks", "seconds", "mm", "degrees", "likeness"]].mean()
    return "\n".join([*text, "", about.round(3).to_string()])


if __name__ == "__main__":
    main()
