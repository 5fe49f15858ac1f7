"""Plot the training log: docs/images/training.png.

python benchmarks/plot_training.py [--log benchmarks/training_log.csv]
"""

import argparse
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

SHOWN = ("GM", "WM", "CSF", "CSFv", "Thal", "Hippo", "Dura", "vascular", "Skull", "Head")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--log", type=Path, default=Path("benchmarks/training_log.csv"))
    parser.add_argument("--out", type=Path, default=Path("docs/images/training.png"))
    options = parser.parse_args()
    log = pd.read_csv(options.log)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for run, part in log.groupby("run", sort=False):
        smooth = part.rolling(5, min_periods=1, on="step").mean(numeric_only=True)
        left.plot(part["step"], smooth["loss"], label=run)
    for name in SHOWN:  # of the last run
        right.plot(part["step"], smooth[f"dice_{name}"], label=name)
    if "validation" in part:
        right.plot(part["step"], part["validation"], "k", label="held out, all")
    left.set(xlabel="step", ylabel="loss of the training patches")
    left.legend()
    right.set(xlabel="step", ylabel="soft Dice", ylim=(0, 1))
    right.set_title(f"{run}: training patches, and the mean on held-out maps", fontsize=9)
    right.legend(ncol=2, fontsize=8)
    figure.tight_layout()
    figure.savefig(options.out, dpi=80)


if __name__ == "__main__":
    main()
