"""Which bounds of confidence and entropy part good segmentations from bad ones.

    python benchmarks/quality_bounds.py HEADS [--model compact] [--out benchmarks/quality_bounds]

HEADS holds the real scans; two synthetic ones of data/sample_bids add other contrasts. Each is
segmented as it is, in copies with a little noise, bias or tilt, and in copies that were spoilt in
known ways. All copies keep the voxels of the original (or a part of them), so that their labels can
be compared with the original's voxel by voxel: the mean Dice over the brain classes says how much
was lost. Three stripped scans of a person after a stroke stand for unusual input that is sound.
Writes OUT.tsv (every copy; a copy that stands there is not segmented again), OUT.md (what each
bound finds, and how often it is wrong) and a plot in docs/images.
`--pictures FOLDER` keeps a picture of every copy. `--copies KIND...` makes some of them only.
All take an hour and three quarters on one core.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from quality import BRAIN_CLASSES, BRAIN_TISSUES, open_model
from scipy import ndimage

from siam_bids.image.grid import Grid, Reorientation, Segmentation, Volume
from siam_bids.image.loading import load_volume
from siam_bids.inference.cascade import CascadeSegmenter
from siam_bids.inference.prediction import Prediction
from siam_bids.measures.quality import judge, metrics, scan_quality
from siam_bids.reports.mosaics import cut, thumbnail
from siam_bids.support.package_data import resource
from siam_bids.synthesis.artefacts import acquire, move_head

REAL = ("colin27_T1w.nii.gz", "seg3d_T1w.nii.gz", "visualqc_id001_T1w.mgz")
PAINTED = (
    "sub-synth01/ses-01/anat/sub-synth01_ses-01_T2w.nii.gz",
    "sub-synth02/anat/sub-synth02_FLAIR.nii.gz",
)
STRIPPED = ("stroke_T1.nii.gz", "stroke_T2.nii.gz", "stroke_FLAIR.nii.gz")
SOUND = ("as it is", "noise 5 %", "bias 30 %", "tilt 10 deg")
"""Copies that must not be flagged for what the model says of them."""
BAD = 0.7
"""A copy with a lower mean Dice lost what volumes are about."""
MEASURES = ("confidence", "entropy")
Box = tuple[slice, slice, slice]
ALL: Box = (slice(None), slice(None), slice(None))


@dataclass(frozen=True)
class Original:
    """A scan in RAS+ order, its brain mask (I, J, K), and chance."""

    volume: Volume
    brain: np.ndarray
    rng: torch.Generator


@dataclass(frozen=True)
class Copy:
    """A scan made worse: its volume, and which voxels of the original its voxels are."""

    volume: Volume
    kept: Box = ALL


Spoil = Callable[[Original], Copy]


def _with(volume: Volume, image: np.ndarray | torch.Tensor) -> Copy:
    return Copy(Volume(np.asarray(image, dtype=np.float32), volume.grid))


def _moved(volume: Volume, turn: np.ndarray) -> Copy:
    """Let the header lie: the same voxels, placed by `turn` (3, 3) about the origin."""
    affine = volume.grid.affine.copy()
    affine[:3] = turn @ affine[:3]
    return Copy(Volume(volume.data, Grid(volume.grid.shape, affine)))


def _part(volume: Volume, kept: Box) -> Copy:
    affine = volume.grid.affine.copy()
    affine[:3, 3] = (affine @ [*(axis.start or 0 for axis in kept), 1])[:3]
    affine[:3, :3] = affine[:3, :3] * [axis.step or 1 for axis in kept]
    data = np.ascontiguousarray(volume.data[kept])
    return Copy(Volume(data, Grid(data.shape, affine)), kept)


def noise(level: float) -> Spoil:
    def spoil(scan: Original) -> Copy:
        sigma = level * float(np.median(scan.volume.data[scan.brain]))
        image = torch.from_numpy(scan.volume.data.clip(min=0))
        noisy = acquire(image, (1, 1, 1), 1, scan.rng, noise=sigma, rician=True)
        return _with(scan.volume, noisy)

    return spoil


def motion(millimetres: float, moved: float) -> Spoil:
    def spoil(scan: Original) -> Copy:
        shift = millimetres / scan.volume.grid.voxel_size[1]
        image = torch.from_numpy(scan.volume.data.clip(min=0))
        return _with(scan.volume, move_head(image, shift, moved, 1))

    return spoil


def bias(strength: float) -> Spoil:
    def spoil(scan: Original) -> Copy:
        corners = strength * (2 * torch.rand((3, 3, 3), generator=scan.rng).numpy() - 1)
        factors = np.divide(scan.volume.data.shape, 3)
        field = ndimage.zoom(corners, factors, order=1, grid_mode=True, mode="nearest")
        return _with(scan.volume, scan.volume.data * np.exp(field))

    return spoil


def turned(degrees: float, axis: int) -> Spoil:
    def spoil(scan: Original) -> Copy:
        angle = np.radians(degrees)
        one, other = sorted({0, 1, 2} - {axis})
        turn = np.eye(3)
        turn[one, one] = turn[other, other] = np.cos(angle)
        turn[one, other], turn[other, one] = -np.sin(angle), np.sin(angle)
        return _moved(scan.volume, turn)

    return spoil


def flipped(scan: Original) -> Copy:
    return _moved(scan.volume, np.diag([1.0, 1.0, -1.0]))


def scaled(factor: float) -> Spoil:
    def spoil(scan: Original) -> Copy:
        return _moved(scan.volume, factor * np.eye(3))

    return spoil


def cropped(share: float, *, top: bool) -> Spoil:
    def spoil(scan: Original) -> Copy:
        seen = np.flatnonzero(scan.brain.any(axis=(0, 1)))
        lost = int(share * len(seen))
        end = slice(None, int(seen[-1]) + 1 - lost) if top else slice(int(seen[0]) + lost, None)
        return _part(scan.volume, (slice(None), slice(None), end))

    return spoil


def thick(millimetres: float) -> Spoil:
    def spoil(scan: Original) -> Copy:
        step = max(round(millimetres / scan.volume.grid.voxel_size[2]), 2)
        mean = ndimage.uniform_filter1d(scan.volume.data, step, axis=2)
        every = slice(step // 2, None, step)
        return _part(Volume(mean, scan.volume.grid), (slice(None), slice(None), every))

    return spoil


def skull_stripped(scan: Original) -> Copy:
    near = ndimage.binary_dilation(scan.brain, iterations=3)
    return _with(scan.volume, np.where(near, scan.volume.data, 0))


def as_it_is(scan: Original) -> Copy:
    return Copy(scan.volume)


COPIES: dict[str, Spoil] = {
    "as it is": as_it_is,
    "noise 5 %": noise(0.05),
    "bias 30 %": bias(0.3),
    "tilt 10 deg": turned(10, 0),
    "noise 30 %": noise(0.3),
    "noise 80 %": noise(0.8),
    "motion 20 mm": motion(20, 0.48),
    "bias x 5": bias(1.6),
    "header turned 90 deg": turned(90, 0),
    "header upside down": flipped,
    "header x 1.6": scaled(1.6),
    "top cut by 25 %": cropped(0.25, top=True),
    "bottom cut by 40 %": cropped(0.4, top=False),
    "slices of 6 to 8 mm": thick(6),
    "skull stripped": skull_stripped,
}


def dice(found: np.ndarray, known: np.ndarray, segmentation: Segmentation) -> float:
    """Mean Dice over the brain classes that `known` holds."""
    scores = []
    for name in BRAIN_CLASSES:
        index = segmentation.labels.by_name[name].index
        one, two = found == index, known == index
        if two.any():
            scores.append(2 * int((one & two).sum()) / int(one.sum() + two.sum()))
    return float(np.mean(scores))


def measured(volume: Volume, prediction: Prediction) -> dict[str, float]:
    return scan_quality(
        volume,
        prediction.segmentation,
        confidence=prediction.confidence,
        entropy=prediction.entropy,
    )


def picture(volume: Volume, segmentation: Segmentation) -> Image.Image:
    """Three planes in grey, and below them with outlines."""
    grey, outline = (
        Image.open(io.BytesIO(part)).convert("RGBA")
        for part in thumbnail(cut(volume, segmentation, 1), segmentation.labels)
    )
    both = Image.new("RGBA", (grey.width, 2 * grey.height))
    both.paste(grey, (0, 0))
    both.paste(Image.alpha_composite(grey, outline), (0, grey.height))
    return both.convert("RGB")


class Head:
    """One scan in RAS+ order, and its segmentation as it is."""

    def __init__(self, path: Path, segmenter: CascadeSegmenter) -> None:
        self.name = path.name.split(".")[0]
        raw = load_volume(path)
        turn = Reorientation.to_ras(raw.grid)
        self.volume = Volume(turn.apply(raw.data), turn.target)
        self.segmenter = segmenter
        self.clean = segmenter.segment(self.volume)
        self.brain = self.clean.segmentation.mask(BRAIN_TISSUES)

    def spoilt(self, kind: str) -> tuple[Copy, Prediction]:
        """Make one copy, and segment it."""
        original = Original(self.volume, self.brain, torch.Generator().manual_seed(0))
        copy = COPIES[kind](original)
        untouched = copy.volume is self.volume
        return copy, self.clean if untouched else self.segmenter.segment(copy.volume)

    def row(self, kind: str, pictures: Path | None) -> dict[str, object]:
        """Segment one copy and measure it."""
        copy, prediction = self.spoilt(kind)
        own, known = prediction.segmentation, self.clean.segmentation.data[copy.kept]
        if pictures:
            pictures.mkdir(parents=True, exist_ok=True)
            stem = f"{self.name}_{kind.replace(' ', '-').replace('%', 'pct')}"
            picture(copy.volume, own).save(pictures / f"{stem}.png")
        values = measured(copy.volume, prediction)
        return {"scan": self.name, "copy": kind, "dice": dice(own.data, known, own), **values}


def rejudged(table: pd.DataFrame) -> pd.DataFrame:
    """Flag every copy by the bounds as they are now."""
    names = [metric.name for metric in metrics() if metric.name in table]
    judged = [judge(dict(row.dropna())) for _, row in table[names].iterrows()]
    return table.assign(
        flag=[flag for flag, _ in judged], reasons=["; ".join(words) for _, words in judged]
    )


def summary(table: pd.DataFrame) -> str:
    """Say in Markdown what the bounds do to sound and bad copies."""
    good, bad = table[table["copy"].isin(SOUND)], table[table["dice"] < BAD]
    found = (
        f"{table['scan'].nunique()} scans, {len(table)} copies: {len(good)} sound ones, {len(bad)} "
        f"bad ones (mean Dice with the original's labels below {BAD})."
    )
    lines = [found, "", "| bound | bad ones found | sound ones flagged |", "|---|---|---|"]

    def share(part: pd.Series) -> str:
        return f"{int(part.sum())} of {len(part)}"

    bounds = {metric.name: metric for metric in metrics()}
    for name in MEASURES:
        for kind in ("warn", "fail"):
            low, high = getattr(bounds[name], kind)
            if low is None and high is None:
                continue
            beyond = (
                (lambda v, low=low: v < low) if low is not None else (lambda v, high=high: v > high)
            )
            words = f"below {low:g}" if low is not None else f"above {high:g}"
            cells = share(beyond(bad[name])), share(beyond(good[name]))
            lines.append(f"| {kind}: {name} {words} | {' | '.join(cells)} |")
    flagged = share(bad["flag"] != "pass"), share(good["flag"] != "pass")
    lines.append(f"| any flag of all metrics | {' | '.join(flagged)} |")
    flagged = good[good["flag"] != "pass"].drop_duplicates(["scan", "reasons"])
    flagged = flagged[flagged["copy"] == "as it is"]
    told = "; ".join(
        f"{scan}: {why.rstrip('.')}" for scan, why in flagged[["scan", "reasons"]].to_numpy()
    )
    lines += [
        "",
        f"Sound ones are flagged for other reasons ({told}).",
        "",
        "| copy | Dice, median (least) | confidence | entropy | warn | fail |",
        "|---|---|---|---|---|---|",
    ]
    for kind in (kind for kind in COPIES if kind in {*table["copy"]}):
        part = table[table["copy"] == kind]
        spans = [f"{part[name].min():.2f} to {part[name].max():.2f}" for name in MEASURES]
        flags = [f"{int((part['flag'] == flag).sum())} of {len(part)}" for flag in ("warn", "fail")]
        scores = f"{part['dice'].median():.2f} ({part['dice'].min():.2f})"
        lines.append(f"| {kind} | {scores} | {' | '.join(spans + flags)} |")
    return "\n".join(lines) + "\n"


def plot(table: pd.DataFrame, path: Path) -> None:
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    bounds = {metric.name: metric for metric in metrics()}
    for axes, name in zip(panels, MEASURES, strict=True):
        for flag, color in (("pass", "#17734f"), ("warn", "#b37400"), ("fail", "#a3161f")):
            part = table[table["flag"] == flag]
            axes.scatter(part[name], part["dice"], s=18, color=color, label=f"{flag} over all")
        for style, kind in (("--", "warn"), ("-", "fail")):
            for value in getattr(bounds[name], kind):
                if value is not None:
                    axes.axvline(value, color="#555", linestyle=style, linewidth=1, label=kind)
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("mean Dice with the original's segmentation")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("heads", type=Path)
    options.add_argument("--model", default="compact")
    options.add_argument("--out", type=Path, default=Path("benchmarks/quality_bounds"))
    options.add_argument("--copies", nargs="+", default=list(COPIES), choices=list(COPIES))
    options.add_argument("--pictures", type=Path)
    arguments = options.parse_args()
    _, segmenter = open_model(arguments.model)
    sample = resource("data", "sample_bids")
    whole = [*(arguments.heads / name for name in REAL), *(sample / name for name in PAINTED)]
    stripped = [arguments.heads / name for name in STRIPPED]
    target = arguments.out.with_suffix(".tsv")
    table = pd.read_csv(target, sep="\t") if target.exists() else pd.DataFrame()
    done = {*zip(table["scan"], table["copy"], strict=True)} if len(table) else set()
    heads: dict[Path, Head] = {}
    for kind in arguments.copies:
        paths = whole + stripped if kind == "as it is" else whole
        for path in (one for one in paths if (one.name.split(".")[0], kind) not in done):
            head = heads[path] = heads.get(path) or Head(path, segmenter)
            row = head.row(kind, arguments.pictures)
            table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
            table.to_csv(target, sep="\t", index=False, float_format="%.5g")
            print(f"{row['scan']}: {row['copy']}: Dice {row['dice']:.3f}", flush=True)
    table = rejudged(table)
    table.to_csv(target, sep="\t", index=False, float_format="%.5g")
    arguments.out.with_suffix(".md").write_text(summary(table), encoding="utf-8")
    plot(table, Path("docs/images") / f"{arguments.out.name}.png")
    print(summary(table))


if __name__ == "__main__":
    main()
