"""Draw real heads and what a model finds in them: docs/images/real_heads.jpg.

    python benchmarks/real_heads.py data/sample_bids/sub-{colin27,seg3d}/anat/*_T1w.nii.gz

A row per scan: the middle slice of each plane, then the same with the tissues over it. Any scans
may be given, to judge them by eye; those of the repository are free to be shown (NOTICE).
"""

import argparse
from pathlib import Path

from matplotlib import pyplot as plt
from quality import open_model

from siam_bids.image.labels import siam_labels
from siam_bids.image.loading import load_volume
from siam_bids.reports.mosaics import cut


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scans", type=Path, nargs="+")
    parser.add_argument("--model", default="compact")
    parser.add_argument("--out", type=Path, default=Path("docs/images/real_heads.jpg"))
    options = parser.parse_args()
    record, segmenter = open_model(options.model)
    colors = [(0, 0, 0, 0)] * 256
    for label in siam_labels().foreground:
        colors[label.index] = (*(value / 255 for value in label.rgb), 0.5)
    size = (15, 2.7 * len(options.scans))
    figure, rows = plt.subplots(len(options.scans), 6, figsize=size, squeeze=False)
    for path, axes in zip(options.scans, rows, strict=True):
        volume = load_volume(path)
        views = cut(volume, segmenter.segment(volume).segmentation, 1)
        for place, axis in enumerate(axes):
            plane, (shown,) = views[place % 3]
            extent = (0, shown.size[0], 0, shown.size[1])
            axis.imshow(shown.grey, cmap="gray", origin="lower", extent=extent)
            if place > 2:
                tissues = [[colors[label] for label in row] for row in shown.labels]
                axis.imshow(tissues, origin="lower", extent=extent, interpolation="nearest")
            axis.set_title(plane.name if place else path.name.split(".")[0], fontsize=9)
            axis.axis("off")
    figure.suptitle(f"{record.title} {record.version}", fontsize=10)
    figure.tight_layout()
    figure.savefig(options.out, dpi=80)


if __name__ == "__main__":
    main()
