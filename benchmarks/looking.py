"""Draw one head as it is and spoilt, as docs/looking.md shows it: docs/images/looking_*.jpg.

    python benchmarks/looking.py [SCAN] [--model compact] [--out docs/images]

SCAN is Colin27 of the sample data unless another is given. Prints the flag of each copy and its
reasons, which stand below the pictures.
"""

import argparse
from pathlib import Path

from quality import open_model
from quality_bounds import Head, measured, picture

from siam_bids.measures.quality import judge
from siam_bids.support.package_data import resource

COLIN = "sub-colin27/anat/sub-colin27_T1w.nii.gz"
SHOWN = {
    "good": "as it is",
    "noise": "noise 80 %",
    "header": "header upside down",
    "motion": "motion 20 mm",
    "bias": "bias x 5",
    "cropped": "top cut by 25 %",
    "thick": "slices of 6 to 8 mm",
    "stripped": "skull stripped",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scan", type=Path, nargs="?")
    parser.add_argument("--model", default="compact")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    _, segmenter = open_model(options.model)
    scan = options.scan or resource("data", "sample_bids") / COLIN
    head = Head(scan, segmenter)
    for name, kind in SHOWN.items():
        copy, prediction = head.spoilt(kind)
        drawn = picture(copy.volume, prediction.segmentation)
        drawn.save(options.out / f"looking_{name}.jpg", quality=85)
        flag, reasons = judge(measured(copy.volume, prediction))
        print(f"{kind}: {flag}: {' '.join(reasons)}", flush=True)


if __name__ == "__main__":
    main()
