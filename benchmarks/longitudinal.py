"""Visits of one patient that an outside tool makes of real scans: change and lesions of known size.

    pip install bidsgate lesiontrack
    python benchmarks/longitudinal.py HEADS [--seeds 0 1] [--times 0 0.5 1 2]

longphantom (bidsgate) makes a series of visits of the real MS patient HEADS/ms_patient26, T1w and
FLAIR: the brain contracts by 1 % a year, lesions grow, shrink, resolve and appear, and each visit
has a pose, gain and noise of its own. The bias field of each is that of rescanphantom (bidsgate).
The same again with slices of 3 mm, averages of three. The series are a BIDS dataset, over which
siam-bids runs with `--combine none` and `all`.

Writes OUT.tsv (every number) and OUT.md; OUT (`--out`) is benchmarks/longitudinal. With none
(`--seeds`) OUT.md is written anew from OUT.tsv.

Columns: `slices` in mm; `found` and `true`, mL of a tissue of one scan (all tissues contract as the
brain does, so `true` is that of the first visit times the contraction; of lesions that of the
phantom's labels); `brain` is all tissues of the brain and lesions. `new` and `old`: lesions of
0.05 mL and more that are there, and of which a tenth is labelled Anomalies.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from quality import INDEX

from siam_bids.cli import main as siam_bids

SCANS = {"T1w": "ms_patient26_T1w.nii.gz", "FLAIR": "ms_patient26_FLAIR.nii.gz"}
BRAIN = ("GM", "WM", "cerGM", "Thal", "Pal", "Put", "Caud", "Accu", "Amyg", "Hippo")
CHOICES = {"none": "alone", "all": "combined"}
LARGE = 50.0
"""mm3 of the lesions that count."""
NEW = 1000
"""Numbers of new lesions are larger in longphantom."""
SLICES = (1, 3)
"""Thickness of slices in mm."""
BIAS = 0.1
"""Range of the bias field of a visit."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("heads", type=Path)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--times", nargs="+", type=float, default=[0, 0.5, 1, 2])
    parser.add_argument("--model", default="compact")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/longitudinal"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = options.out.with_suffix(".tsv")
    if options.seeds:
        with tempfile.TemporaryDirectory() as place:
            rows = list(measure(options, Path(place)))
        table = pd.DataFrame(rows)
        table.to_csv(kept, sep="\t", index=False, float_format="%.5g", na_rep="n/a")
    options.out.with_suffix(".md").write_text(summary(pd.read_csv(kept, sep="\t")), "utf-8")


def measure(options: argparse.Namespace, place: Path) -> Iterator[dict[str, object]]:
    """Make the series, run siam-bids over them and read its tables."""
    series = {seed: phantom(options, seed, place / f"phantom{seed}") for seed in options.seeds}
    dataset = place / "dataset"
    subjects = [(seed, slices) for seed in options.seeds for slices in SLICES]
    for seed, slices in subjects:
        copy_series(series[seed], dataset / subject_of(seed, slices), slices)
    about = {"Name": "longphantom", "BIDSVersion": "1.10.0"}
    (dataset / "dataset_description.json").write_text(json.dumps(about))
    for choice, group in CHOICES.items():
        begin, out = time.process_time(), place / choice
        command = [dataset, out, "participant", "--combine", choice, "--model", options.model,
                   "--n-cpus", 1]  # fmt: skip
        if siam_bids([str(each) for each in command]):
            raise SystemExit("siam-bids failed")
        print(f"{group}: {time.process_time() - begin:.0f} CPU s", flush=True)
        for seed, slices in subjects:
            for row in found(series[seed], out / subject_of(seed, slices), slices):
                yield {"seed": seed, "slices": slices, "group": group, **row}


def subject_of(seed: int, slices: int) -> str:
    """Return the folder of a participant."""
    return f"sub-seed{seed}slices{slices}"


def phantom(options: argparse.Namespace, seed: int, folder: Path) -> Path:
    """Make a series of visits."""
    from bidsgate.longphantom.core import Design, build
    from bidsgate.rescanphantom.core import bias_field

    folder.mkdir()
    scans = {name: options.heads / file for name, file in SCANS.items()}
    image = nib.load(scans["T1w"])
    brain = folder / "brain.nii.gz"
    nib.save(nib.Nifti1Image((image.get_fdata() > 0).astype(np.uint8), image.affine), brain)
    design = Design(times=tuple(options.times), seed=seed)
    lesions = options.heads / "ms_patient26_lesions.nii.gz"
    build(scans["T1w"], scans["FLAIR"], lesions, brain, folder / "series", design)
    rng = np.random.default_rng(seed)
    for path in sorted((folder / "series").glob("visit-*/*")):
        if path.name.split(".")[0] in SCANS:
            image = nib.load(path)
            data = image.get_fdata(dtype=np.float32)
            data *= bias_field(data.shape, rng, BIAS)
            nib.save(nib.Nifti1Image(np.maximum(data, 0), image.affine), path)
    return folder / "series"


def copy_series(folder: Path, subject: Path, slices: int) -> None:
    """Lay a series out as a participant of a BIDS dataset, with slices of some mm."""
    for visit in sorted(folder.glob("visit-*")):
        session = f"ses-{visit.name[-2:]}"
        anat = subject / session / "anat"
        anat.mkdir(parents=True)
        for suffix in SCANS:
            name = f"{subject.name}_{session}_{suffix}.nii.gz"
            image = nib.load(visit / f"{suffix}.nii.gz")
            data = image.get_fdata(dtype=np.float32)
            middle = np.eye(4)
            middle[2, 2:] = slices, (slices - 1) / 2
            thick = np.mean([taken(data, slices, step) for step in range(slices)], axis=0)
            nib.save(nib.Nifti1Image(thick, image.affine @ middle), anat / name)


def taken(data: np.ndarray, slices: int, first: int) -> np.ndarray:
    """Return every n-th slice from one of the first on; as many whichever that is."""
    return data[:, :, first : first + slices * (data.shape[2] // slices) : slices]


def found(folder: Path, results: Path, slices: int) -> Iterator[dict[str, object]]:
    """Yield volumes and lesions of each visit and contrast."""
    manifest = pd.read_csv(folder / "manifest.tsv", sep="\t")
    atrophy = json.loads((folder / "design.json").read_text())["atrophy"]
    first: dict[tuple[str, str], float] = {}
    for number, years in enumerate(manifest["time_years"]):
        labels = np.asarray(nib.load(folder / f"visit-{number:02d}/truth_labels.nii.gz").dataobj)
        labels = taken(labels, slices, slices // 2)
        for suffix in SCANS:
            stem = f"{results}/ses-{number:02d}/anat/{results.name}_ses-{number:02d}"
            where = {"visit": number, "years": years, "contrast": suffix}
            table = pd.read_csv(f"{stem}_desc-{suffix}_volumes.tsv", sep="\t")
            millilitres = table.set_index("name")["volume_mL"].astype(float)
            volumes = {name: millilitres[name] for name in (*BRAIN, "CSF", "CSFv")}
            volumes["brain"] = millilitres[[*BRAIN, "Anomalies"]].sum()
            for name, value in volumes.items():
                before = first.setdefault((suffix, name), value)
                yield {**where, "what": name, "found": value, "true": before * atrophy**years}
            dseg = nib.load(f"{stem}_seg-siam_desc-{suffix}_dseg.nii.gz")
            lesion = np.asarray(dseg.dataobj) == INDEX["Anomalies"]
            truth = {"found": lesion.sum() * slices / 1000,
                     "true": (labels > 0).sum() * slices / 1000}  # fmt: skip
            yield {**where, "what": "lesions", **truth}
            overlap = 2 * (lesion & (labels > 0)).sum() / max(1, lesion.sum() + (labels > 0).sum())
            yield {**where, "what": "Dice", "found": overlap, "true": 1.0}
            large = LARGE / slices
            for what, there in (("new", labels > NEW), ("old", (labels > 0) & (labels < NEW))):
                sizes = np.bincount(labels[there])
                ids = np.flatnonzero(sizes >= large)
                hits = sum(lesion[labels == each].mean() >= 0.1 for each in ids)
                yield {**where, "what": what, "found": hits, "true": len(ids)}


def summary(table: pd.DataFrame) -> str:
    """Return the report."""
    rows: dict[str, dict[str, str]] = {}
    for (slices, contrast), of_one in table.groupby(["slices", "contrast"]):
        name = contrast if slices == 1 else f"{contrast} of {slices} mm"
        for what in (*BRAIN, "CSF", "CSFv", "brain"):
            each = rows.setdefault(f"{name}, {what}", {})
            for group in CHOICES.values():
                slope, noise = line(of_one[(of_one["what"] == what) & (of_one["group"] == group)])
                each[f"noise (%), {group}"] = f"{noise:.2f}"
                each[f"slope, {group}"] = f"{slope:.2f}"
        for what, digits in (("lesions", 2), ("Dice", 3), ("new", 0), ("old", 0)):
            each = rows.setdefault(f"{name}, {what}", {})
            for group in CHOICES.values():
                own = of_one[(of_one["what"] == what) & (of_one["group"] == group)]
                total = (
                    own[["found", "true"]].sum() if digits == 0 else own[["found", "true"]].mean()
                )
                text = f"{total['found']:.{digits}f}"
                each[group] = text if what == "Dice" else f"{text} of {total['true']:.{digits}f}"
    changes = pd.DataFrame({key: row for key, row in rows.items() if len(row) == 4}).T
    lesions = pd.DataFrame({key: row for key, row in rows.items() if len(row) == 2}).T
    return f"{ABOUT}\n{text_of(changes)}\n\n{LESIONS}\n{text_of(lesions)}\n"


def text_of(table: pd.DataFrame) -> str:
    """Return a table of text as Markdown."""
    head = ["", *table.columns]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join([str(key), *row]) + " |" for key, row in table.iterrows()]
    return "\n".join(lines)


def line(rows: pd.DataFrame) -> tuple[float, float]:
    """Return slope of found against true change, and the noise of a change; see person.py."""
    products = squares = residuals = 0.0
    freedom = -1
    pairs = []
    for _, own in rows.groupby("seed"):
        x, y = (100 * np.log(own[column].to_numpy(float)) for column in ("true", "found"))
        pairs.append((x - x.mean(), y - y.mean()))
        products += float(pairs[-1][0] @ pairs[-1][1])
        squares += float(pairs[-1][0] @ pairs[-1][0])
        freedom += len(x) - 1
    slope = products / squares
    residuals = sum(float(((y - slope * x) ** 2).sum()) for x, y in pairs)
    return slope, float(np.sqrt(2 * residuals / freedom))


ABOUT = """\
# Visits of a real patient, made by longphantom

`python benchmarks/longitudinal.py HEADS`: T1w and FLAIR of one MS patient at 0, 0.5, 1 and 2 years,
made of real scans (8 mL of lesions) by longphantom of bidsgate 0.3, with bias fields of its
rescanphantom; and with slices of 3 mm. The brain contracts by 1 % a year, and all tissues with it.
Noise is the standard deviation of the change between two visits, as in [person.md](person.md). With
2 % of change in all, a slope is known to about a third of the noise. Combined: all eight scans.
"""
LESIONS = """\
Lesions: mean mL of the visits, and Dice; `new` and `old` count the lesions of 0.05 mL and more over
all visits, and those of which a tenth is labelled Anomalies.
"""


if __name__ == "__main__":
    main()
