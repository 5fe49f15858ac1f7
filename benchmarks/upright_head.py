"""Measure where the tissues of an upright head lie, for `siam_bids/measures/pose.py`.

    python benchmarks/upright_head.py LABEL_MAPS > data/labels/upright.tsv

LABEL_MAPS holds training_seg_01.nii.gz to training_seg_16.nii.gz. Prints for ten tissues the
centre (mm from the mean of all ten) and the covariance (mm2), means over the maps and their mirror
images, so that what points to the right is 0. Amygdala and others are pairs: one shape for both.
"""

import sys
from pathlib import Path

import numpy as np

from siam_bids.image.labels import siam_labels
from siam_bids.image.loading import load_labels
from siam_bids.measures.pose import Shape, tissue_moments
from siam_bids.synthesis.label_maps import prepare_anatomy, source_table

TISSUES = ("GM", "WM", "CSFv", "cerGM", "Thal", "Pal", "Put", "Caud", "Hippo", "Amyg")


def shapes(path: Path) -> dict[str, Shape]:
    """Measure one label map; its axes become [z, y, x]."""
    labels, grid = load_labels(path)
    anatomy = prepare_anatomy(labels, grid, source_table("synthseg"))
    target = np.array([each[0] if len(each) == 1 else 255 for each in anatomy.table.target])
    return tissue_moments(target[anatomy.codes].T, anatomy.voxel_size[::-1], siam_labels(), TISSUES)


def main() -> None:
    heads = [shapes(Path(sys.argv[1]) / f"training_seg_{n:02d}.nii.gz") for n in range(1, 17)]
    print("name", "z", "y", "zz", "zy", "yy", "xx", sep="\t")
    for name in TISSUES:
        middles = [np.mean([each.centre for each in head.values()], 0) for head in heads]
        z, y, _ = np.mean([h[name].centre - m for h, m in zip(heads, middles, strict=True)], 0)
        c = np.mean([head[name].covariance for head in heads], 0)
        numbers = (z, y, c[0, 0], c[0, 1], c[1, 1], c[2, 2])
        print(name, *(f"{number:.1f}" for number in numbers), sep="\t")


if __name__ == "__main__":
    main()
