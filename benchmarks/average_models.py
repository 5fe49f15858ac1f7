"""Average the weights of networks that one training run led to.

    python benchmarks/average_models.py TARGET MODEL_FOLDER MODEL_FOLDER [...]

Networks that continue one another lie in one basin of the loss, where their mean is often better
than each of them (Wortsman et al., Model soups, ICML 2022). Plans and labels are the first one's.
Compact 0.2.1 is the mean of 0.2.0 and of a run that went on from it.
"""

import argparse
import shutil
from pathlib import Path

import torch

from siam_bids.models.folder import CHECKPOINT, first_weights
from siam_bids.nnunet.checkpoints import load_weights, mirror_axes
from siam_bids.nnunet.write import checkpoint


def average(models: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the mean of each tensor; what is one tensor under two names stays one."""
    means: dict[int, torch.Tensor] = {}
    for name, tensor in models[0].items():
        if tensor.data_ptr() not in means:
            total = torch.stack([model[name].float() for model in models])
            means[tensor.data_ptr()] = total.mean(0).to(tensor.dtype)
    return {name: means[tensor.data_ptr()] for name, tensor in models[0].items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    options = parser.parse_args()
    paths = [first_weights(folder) for folder in options.models]
    (options.target / "fold_0").mkdir(parents=True)
    for name in ("plans.json", "dataset.json"):
        shutil.copy(options.models[0] / name, options.target)
    weights = average([load_weights(path) for path in paths])
    torch.save(checkpoint(weights, mirror_axes(paths[0])), options.target / "fold_0" / CHECKPOINT)


if __name__ == "__main__":
    main()
