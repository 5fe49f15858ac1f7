"""Measure shrunk hippocampi, small lesions and the nuclei, which specialists are trained for.

    pip install bidsgate
    python benchmarks/specialists.py LABEL_MAPS HEADS [--model compact] [--only PART...]

LABEL_MAPS and HEADS are those of quality.py. Parts:

- drawn: heads of held-out maps and of SIAM's, hippocampus and amygdala of each side shrunk as in
  `SHRUNK`, the same otherwise; what of the change of volume is found, and Dice
- injected: the hippocampi of real heads contracted by bidsgate, as the model itself outlines them
- lesions: 24 lesions injected into T1w by bidsgate; those of 0.5 mL and more that are found
- contrasts: volumes of the nuclei over random contrasts of one head, the set of quality.py
- freesurfer: Dice with FreeSurfer's nuclei

Writes OUT.tsv (every number; the rows of other models and parts stay) and OUT.md, one column for
each model in it; OUT (`--out`) is benchmarks/specialists. With none (`--only`), the summary is
written anew from OUT.tsv.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from quality import (
    HELD_OUT,
    INDEX,
    NUCLEI,
    SIAMS_OWN,
    UNKNOWN,
    Bench,
    Rows,
    dice,
    held_out_recipe,
    markdown,
    one_head_recipe,
    open_model,
)

from siam_bids.image.loading import load_volume
from siam_bids.synthesis.atrophy import TEMPORAL, shrink
from siam_bids.synthesis.label_maps import Anatomy
from siam_bids.synthesis.render import render

SHRUNK = ((0.0, 0.0), (0.05, 0.2), (0.4, 0.1))
"""What hippocampus and amygdala lose on the left and on the right of a map, in its three images.

Some recipes mirror the head, so that left and right change places."""
STEPS = (-0.7, -0.3, -0.15, -0.075, -0.01)
"""True changes between two of these are averaged in the summary."""
CONTRACTED = (0.8, 0.6)
"""Volume factors of the left and the right hippocampus of real heads."""
REAL = ("colin27_T1w.nii.gz", "seg3d_T1w.nii.gz", "visualqc_id001_T1w.mgz")
LARGE = 500.0
"""Lesions from this volume count, in mm3."""

ABOUT = """\
`python benchmarks/specialists.py LABEL_MAPS HEADS`. Slopes: change of volume that is found over the
true one, through the origin; 1 is right. Drawn: simulated T1w and random contrasts of held-out
maps, hippocampi and amygdalae shrunk. Injected: hippocampi of real heads, contracted by bidsgate.
Lesions: injected by bidsgate into white matter of the same T1w heads.
"""


def sides(mask: np.ndarray) -> np.ndarray:
    """Return the centres (2, 3) of the left and the right one of a paired structure in RAS+."""
    places = np.argwhere(mask).astype(float)
    order = places[:, 0].argsort()
    centres = np.stack([places[half].mean(0) for half in np.array_split(order, 2)])
    for _ in range(5):
        side = side_of(places, centres)
        centres = np.stack([places[side == one].mean(0) for one in (0, 1)])
    return centres


def side_of(places: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return which of two centres each place (n, 3) is nearer to."""
    return np.linalg.norm(places[:, None] - centres, axis=-1).argmin(1)


def halves(mask: np.ndarray, centres: np.ndarray) -> list[np.ndarray]:
    """Return the left and the right part of a mask."""
    places = np.argwhere(mask)
    side = side_of(places, centres)
    parts = []
    for one in (0, 1):
        part = np.zeros_like(mask)
        part[tuple(places[side == one].T)] = True
        parts.append(part)
    return parts


class Specialists(Bench):
    """The parts of the benchmark; see the module."""

    def drawn(self) -> Rows:
        for name in (*HELD_OUT, SIAMS_OWN):
            for contrast in ("T1w", "random"):
                yield from self._drawn(name, contrast, ("T1w", "random").index(contrast))

    def _drawn(self, name: str, contrast: str, seed: int) -> Rows:
        """Yield what is found of the shrunk sides of one head in one contrast."""
        whole = self.anatomy(name)
        seed += 10 * (*HELD_OUT, SIAMS_OWN).index(name)
        recipe = held_out_recipe(seed, contrast, 1.0)
        before: dict[str, list[tuple[int, int]]] = {}
        centres: dict[str, np.ndarray] = {}
        for losses in SHRUNK:
            anatomy = shrunk(whole, losses)
            rendering = render(anatomy, recipe)
            image = rendering.image.numpy()
            found = self.segment(image)
            truth = codes_to_labels(anatomy)[rendering.codes.numpy()]
            for tissue in TEMPORAL:
                masks = [labels == INDEX[tissue] for labels in (truth, found)]
                centres.setdefault(tissue, sides(masks[0]))
                parts = [halves(mask, centres[tissue]) for mask in masks]
                sizes = [tuple(int(part[side].sum()) for part in parts) for side in (0, 1)]
                before.setdefault(tissue, sizes)
                for side in (0, 1):
                    scan = f"{name}/{contrast}/{100 * losses[0]:g}-{100 * losses[1]:g}/{'LR'[side]}"
                    yield "drawn", scan, tissue, "dice", dice(parts[0][side], parts[1][side])
                    for what, one, zero in zip(
                        ("true", "found"), sizes[side], before[tissue][side], strict=True
                    ):
                        yield "drawn", scan, tissue, what, one / zero - 1

    def injected(self) -> Rows:
        from bidsgate import inject_atrophy

        for name in REAL:
            volume = load_volume(self.heads / name)
            labels = self.segmenter.segment(volume).segmentation.data
            hippo = labels == INDEX["Hippo"]
            to_ras = volume.grid.affine[:3, :3]
            with tempfile.TemporaryDirectory() as place:
                scan, region = Path(place) / "scan.nii.gz", Path(place) / "region.nii.gz"
                nib.save(nib.Nifti1Image(volume.data, volume.grid.affine), scan)
                both = world_halves(hippo, to_ras)
                sided = (both[0] + 2 * both[1]).astype(np.uint8)
                nib.save(nib.Nifti1Image(sided, volume.grid.affine), region)
                after = []
                for side, factor in enumerate(CONTRACTED):
                    spec = inject_atrophy.AtrophySpec(
                        volume_factor=factor, falloff_mm=6.0, region_label=side + 1
                    )
                    truth = inject_atrophy.inject(
                        scan, None, scan, None, Path(place) / "truth.json", spec,
                        mask_path=region, region_path=region,
                    )  # fmt: skip
                    change = (
                        truth["target_volume_mm3_after_measured"]
                        / truth["target_volume_mm3_before"]
                    )
                    after.append(change - 1)
                changed = self.segmenter.segment(load_volume(scan)).segmentation.data
            found = world_halves(changed == INDEX["Hippo"], to_ras)
            for side, true in enumerate(after):
                where = ("injected", f"{name.split('_T1w')[0]}/{'LR'[side]}", "Hippo")
                yield *where, "true", true
                yield *where, "found", found[side].sum() / both[side].sum() - 1

    def lesions(self) -> Rows:
        from bidsgate import inject_lesions

        for name in REAL:
            volume = load_volume(self.heads / name)
            affine = volume.grid.affine
            with tempfile.TemporaryDirectory() as place:
                scan, mask = Path(place) / "scan.nii.gz", Path(place) / "mask.nii.gz"
                nib.save(nib.Nifti1Image(volume.data, affine), scan)
                spec = inject_lesions.LesionSpec(n=24, t1_contrast=-0.2, seed=1)
                truth = inject_lesions.inject(
                    scan, None, scan, None, mask, Path(place) / "truth.json", spec
                )
                labels = np.asarray(nib.load(mask).dataobj)
                found = self.segmenter.segment(load_volume(scan)).segmentation.data
            lesion = found == INDEX["Anomalies"]
            scan_name = name.split("_T1w")[0]
            for each in truth["lesions"]:
                if each["volume_mm3"] >= 0.9 * LARGE:
                    hit = float(lesion[labels == each["id"]].mean() >= 0.1)
                    yield "lesions", f"{scan_name}/{each['id']}", "Anomalies", "found", hit
            false = float((lesion & (labels == 0)).sum()) * volume.grid.voxel_volume / 1e3
            yield "lesions", scan_name, "Anomalies", "mL beyond", false

    def contrasts(self) -> Rows:
        for seed in range(self.count):
            rendering, truth = self.painted(HELD_OUT[1], one_head_recipe(seed))
            found = self.segment(rendering.image.numpy())
            for name in NUCLEI:
                mask = found == INDEX[name]
                yield "contrasts", str(seed), name, "mL", float(mask.sum()) / 1000
                yield "contrasts", str(seed), name, "dice", dice(mask, truth == INDEX[name])

    def freesurfer(self) -> Rows:
        for _, scan, name, measure, value in super().freesurfer():
            yield "freesurfer", scan, name, measure, value


def shrunk(anatomy: Anatomy, losses: tuple[float, float]) -> Anatomy:
    """Return the head with hippocampus and amygdala smaller by a share on the left, the right."""
    for side, loss in enumerate(losses):
        rng = np.random.default_rng((side, 41))
        anatomy = shrink(anatomy, TEMPORAL, 1 - loss, rng, side=side, fluid=2.0)
    return anatomy


def codes_to_labels(anatomy: Anatomy) -> np.ndarray:
    """Return the label of each code of a map, `UNKNOWN` where there are several."""
    targets = anatomy.table.target
    return np.array([each[0] if len(each) == 1 else UNKNOWN for each in targets], np.uint8)


def world_halves(mask: np.ndarray, to_ras: np.ndarray) -> list[np.ndarray]:
    """Return the left and the right part of a paired structure in any orientation."""
    axis = int(np.abs(to_ras[0]).argmax())
    turned = mask.swapaxes(0, axis)
    if to_ras[0, axis] < 0:
        turned = turned[::-1]
    parts = halves(turned, sides(turned))
    if to_ras[0, axis] < 0:
        parts = [part[::-1] for part in parts]
    return [part.swapaxes(0, axis) for part in parts]


def slope(table: pd.DataFrame) -> float:
    """Return the slope, through the origin, of the change that is found over the true one."""
    pairs = table.pivot_table("value", ["scan"], "measure")[["true", "found"]]
    return float((pairs["true"] * pairs["found"]).sum() / (pairs["true"] ** 2).sum())


def chosen(table: pd.DataFrame, name: str, measure: str = "", tissue: str = "") -> pd.DataFrame:
    """Return the rows of a set, of one measure and one class if these are given."""
    wanted = (("set", name), ("measure", measure), ("class", tissue))
    for column, value in wanted:
        table = table[table[column] == value] if value else table
    return table


def of_drawn(table: pd.DataFrame, tissue: str) -> dict[str, float]:
    """Return slopes, changes and Dice of a tissue in the drawn heads."""
    own = chosen(table, "drawn", tissue=tissue)
    changes = own[own["measure"].isin(["true", "found"])]
    rows = {f"drawn, {tissue}: slope": slope(changes)}
    for contrast in ("T1w", "random"):
        some = changes[changes["scan"].str.contains(f"/{contrast}/")]
        rows[f"drawn, {tissue}: slope, {contrast}"] = slope(some)
    pairs = changes.pivot_table("value", "scan", "measure")
    for _, near in pairs.groupby(pd.cut(pairs["true"], STEPS), observed=True):
        true, found = 100 * near["true"].mean(), 100 * near["found"].mean()
        rows[f"drawn, {tissue}: {true:.0f} % is found as (%)"] = found
    scores = own[own["measure"] == "dice"]
    whole = scores["scan"].str.contains("/0-0/")
    rows[f"drawn, {tissue}: Dice, not shrunk"] = scores[whole]["value"].mean()
    rows[f"drawn, {tissue}: Dice, shrunk"] = scores[~whole]["value"].mean()
    return rows


def of_injected(table: pd.DataFrame) -> dict[str, float]:
    """Return the slope and each change in the real heads."""
    rows = {"injected, Hippo: slope": slope(table)}
    for scan, pair in table.groupby("scan", sort=False):
        factor = CONTRACTED["LR".index(scan[-1])]
        found = pair.set_index("measure")["value"]["found"]
        rows[f"injected, {scan}: {100 * factor - 100:.0f} % is found as (%)"] = 100 * found
    return rows


def of_contrasts(table: pd.DataFrame) -> dict[str, float]:
    """Return how far the volumes vary, and the mean Dice."""
    volumes = chosen(table, "contrasts", "mL").groupby("class", sort=False)["value"]
    scores = chosen(table, "contrasts", "dice").groupby("class", sort=False)["value"]
    variation = 100 * volumes.std() / volumes.mean()
    return {
        **{f"contrasts, {name}: volume CV (%)": value for name, value in variation.items()},
        **{f"contrasts, {name}: Dice": value for name, value in scores.mean().items()},
    }


def figures(table: pd.DataFrame) -> dict[str, float]:
    """Return the rows of the summary for one model."""
    rows: dict[str, float] = {}
    for tissue in TEMPORAL if len(chosen(table, "drawn")) else ():
        rows |= of_drawn(table, tissue)
    if len(own := chosen(table, "injected")):
        rows |= of_injected(own)
    if len(own := chosen(table, "lesions", "found")):
        rows[f"lesions of 0.5 mL and more found, of {len(own)}"] = own["value"].sum()
        beyond = chosen(table, "lesions", "mL beyond")["value"]
        rows["lesions: mL beyond these, mean of the heads"] = beyond.mean()
    rows |= of_contrasts(table)
    for name in (*NUCLEI, "GM", "WM", "CSFv"):
        for value in chosen(table, "freesurfer", "dice", name)["value"]:
            rows[f"freesurfer, {name}: Dice"] = value
    return rows


PARTS: dict[str, Callable[[Specialists], Rows]] = {
    "drawn": Specialists.drawn,
    "injected": Specialists.injected,
    "lesions": Specialists.lesions,
    "contrasts": Specialists.contrasts,
    "freesurfer": Specialists.freesurfer,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("label_maps", type=Path)
    parser.add_argument("heads", type=Path)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--count", type=int, default=20, help="contrasts of the one head")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/specialists"))
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    record, segmenter = open_model(options.model, precision=options.precision)
    bench = Specialists(segmenter, options.label_maps, options.heads, options.count)
    title = f"{record.title} {record.version}"
    for part in options.only:
        begin = time.process_time()
        rows = pd.DataFrame(
            list(PARTS[part](bench)), columns=["set", "scan", "class", "measure", "value"]
        )
        rows.insert(0, "model", title)
        print(f"{part}: {time.process_time() - begin:.0f} s of CPU time", flush=True)
        kept = options.out.with_suffix(".tsv")
        if kept.exists():
            before = pd.read_csv(kept, sep="\t", dtype={"scan": str})
            others = before[(before["model"] != title) | (before["set"] != part)]
            rows = pd.concat([others, rows], ignore_index=True)
        rows.to_csv(kept, sep="\t", index=False, float_format="%.4f", na_rep="n/a")
        summarise(kept)
    if not options.only:
        summarise(options.out.with_suffix(".tsv"))


def summarise(path: Path) -> None:
    """Write the summary of a table of all numbers beside it, as Markdown."""
    table = pd.read_csv(path, sep="\t", dtype={"scan": str})
    models = table.groupby("model", sort=False)
    summary = pd.DataFrame({model: figures(rows) for model, rows in models})
    summary.columns.name = ""
    text = f"{ABOUT}\n{markdown(summary)}\n"
    path.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
