"""Make data/sample_bids from its sources (see NOTICE).

    python benchmarks/make_sample_bids.py HEADS LABEL_MAPS data/sample_bids

HEADS holds colin27_T1w.nii.gz and seg3d_T1w.nii.gz; LABEL_MAPS holds training_seg_17.nii.gz and
training_seg_18.nii.gz of SynthSeg's training set, the two maps no model of ours is trained on. The
painted heads that are shipped come from the generator before version 0.1.0; today's draws others
from the same seed.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from torch.nn import functional

from siam_bids.image.loading import load_labels
from siam_bids.synthesis.label_maps import prepare_anatomy, source_table
from siam_bids.synthesis.recipe import Recipe, draw_recipe
from siam_bids.synthesis.render import render

README = """# Sample heads for siam-bids

Two real and two synthetic participants, small enough to travel with the code.

- sub-colin27: the Colin27 average of 27 T1-weighted scans of one person, 1 mm. Copyright (C)
  1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill
  University; permission to use, copy, modify and distribute with this notice; no warranty.
- sub-seg3d: a T1-weighted scan of the Seg3D sample data. Copyright (c) 2015 Scientific Computing
  and Imaging Institute, University of Utah; MIT License.
- sub-synth01 (two sessions, T2w), sub-synth02 (FLAIR, 4 mm slices, oblique): NOT real scans. They
  were painted by siam-bids on label maps of SynthSeg's public training set (Apache License 2.0).

Full notices: NOTICE in the source code of siam-bids.
"""


def save(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = np.clip(np.rint(data), 0, 255).astype(np.uint8)
    image = nib.Nifti1Image(whole, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)


def synthetic(path: Path, label_map: Path, recipe: Recipe, voxel: tuple[float, ...]) -> None:
    labels, grid = load_labels(label_map)
    anatomy = prepare_anatomy(labels, grid, source_table("synthseg"))
    image = render(anatomy, recipe).image
    shape = [round(n / edge) for n, edge in zip(image.shape, voxel, strict=True)]
    image = functional.adaptive_avg_pool3d(image[None, None], shape)[0, 0].numpy()
    axes = np.eye(3)
    angle = np.deg2rad(recipe.rotation[0])
    axes[1:, 1:] = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    affine = np.eye(4)
    affine[:3, :3] = axes @ np.diag(voxel)  # oblique slices, upright head
    affine[:3, 3] = -affine[:3, :3] @ (np.array(image.shape) / 2)
    save(path, image * 230, affine)


def main(heads: Path, maps: Path, root: Path) -> None:
    for name in ("colin27", "seg3d"):
        scan = nib.load(heads / f"{name}_T1w.nii.gz")
        path = root / f"sub-{name}" / "anat" / f"sub-{name}_T1w.nii.gz"
        save(path, np.asarray(scan.dataobj), scan.affine)
    rng = np.random.default_rng(17)
    plain = {"flip": False, "strip": "no", "shear": (0.0, 0.0, 0.0), "spacing": (1.0, 1.0, 1.0)}
    margins = {"margin_low": (8.0, 8.0, -30.0), "margin_high": (8.0, 8.0, 8.0)}
    for session in ("01", "02"):
        recipe = replace(draw_recipe(rng, difficulty=0.1, contrast="T2w"), **plain, **margins)
        stem = f"sub-synth01_ses-{session}"
        path = root / "sub-synth01" / f"ses-{session}" / "anat" / f"{stem}_T2w.nii.gz"
        synthetic(
            path,
            maps / "training_seg_17.nii.gz",
            replace(recipe, rotation=(0.0, 0.0, 0.0), objects=0),
            (1.5, 1.5, 1.5),
        )
    recipe = replace(draw_recipe(rng, difficulty=0.1, contrast="FLAIR"), **plain, **margins)
    path = root / "sub-synth02" / "anat" / "sub-synth02_FLAIR.nii.gz"
    synthetic(
        path,
        maps / "training_seg_18.nii.gz",
        replace(recipe, rotation=(14.0, 0.0, 0.0), objects=0),
        (1.0, 1.0, 4.0),
    )
    (root / "README").write_text(README)
    (root / "CHANGES").write_text("1.0.0 2026-11-22\n  - First version.\n")
    (root / "dataset_description.json").write_text(
        json.dumps(
            {
                "Name": "Sample heads for siam-bids",
                "BIDSVersion": "1.11.1",
                "DatasetType": "raw",
                "License": "See README: each participant has its own",
                "Authors": ["The siam-bids developers"],
                "GeneratedBy": [
                    {"Name": "siam-bids", "Description": "benchmarks/make_sample_bids.py"}
                ],
            },
            indent=2,
        )
        + "\n"
    )
    rows = ["participant_id\tsex\torigin", "sub-colin27\tM\treal", "sub-seg3d\tn/a\treal"]
    rows += ["sub-synth01\tn/a\tsynthetic", "sub-synth02\tn/a\tsynthetic"]
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    (root / "participants.json").write_text(
        json.dumps(
            {
                "sex": {"Description": "Sex", "Levels": {"M": "male", "F": "female"}},
                "origin": {
                    "Description": "Where the images come from",
                    "Levels": {
                        "real": "scanned",
                        "synthetic": "painted on a label map by siam-bids",
                    },
                },
            },
            indent=2,
        )
        + "\n"
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
