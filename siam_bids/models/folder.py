"""Where models and their weights are stored."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from siam_bids.errors import ModelError
from siam_bids.support.input_files import load_json

CHECKPOINT = "checkpoint_final.pth"
"""A fold's weights, as nnU-Net writes them."""

CONVERTED = "model.safetensors"
"""The same, as `fetch` keeps them; used where both are there."""

BEST = "checkpoint_best.pth"
"""Those that did best in validation: all that an unfinished training leaves."""

_FOLD = re.compile(r"fold_(\d+|all)")


_LARGEST_JSON = 16 << 20  # bytes; plans.json has some thousands


def search_path(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Return the folders that may hold downloaded models; new ones go into the first.

    Those of `SIAM_MODEL_DIR` (several are joined as in PATH), else `nnUNet_results`; then the
    platform's data folder, then SIAM's own `~/siam_params`.
    """
    chosen = environ.get("SIAM_MODEL_DIR", "").split(os.pathsep)
    if not any(chosen):
        chosen = [environ.get("nnUNet_results", "")]
    home = Path.home()
    if sys.platform == "darwin":
        data = home / "Library" / "Application Support"
    elif sys.platform == "win32":
        data = Path(environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    else:
        data = Path(environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    fallback = (data / "siam-bids" / "models", home / "siam_params")
    return (*(Path(folder).expanduser() for folder in chosen if folder), *fallback)


def find_folder(start: Path) -> Path | None:
    """Return `start` or the one folder at most three levels below it that holds plans.json."""
    for depth in range(4):
        found = sorted(path.parent for path in start.glob("*/" * depth + "plans.json"))
        if found:
            return found[0] if len(found) == 1 else None
    return None


def fold_weights(folder: Path, checkpoint: str = "") -> tuple[Path, ...]:
    """List the weights of each fold of a model folder.

    Parameters
    ----------
    checkpoint
        Name of the file in each fold. Default: `CONVERTED` where a fold has it, else `CHECKPOINT`;
        `BEST` if no fold has either.
    """
    for names in [(checkpoint,)] if checkpoint else [(CHECKPOINT, CONVERTED), (BEST,)]:
        found = {
            path.parent: path
            for name in names
            for path in folder.glob(f"fold_*/{name}")
            if _FOLD.fullmatch(path.parent.name) and path.is_file()
        }
        if found:
            return tuple(path for _, path in sorted(found.items()))
    return ()


def first_weights(folder: Path) -> Path:
    """Return the weights of a model folder's first fold, however it came here.

    Raises
    ------
    ModelError
        It holds none.
    """
    weights = fold_weights(folder)
    if not weights:
        raise ModelError(
            f"{folder} holds no weights (fold_*/{CHECKPOINT} or fold_*/{CONVERTED}).",
            "Give an nnU-Net v2 model folder.",
        )
    return weights[0]


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object of a model.

    Raises
    ------
    ModelError
        It is absent, no regular file, of more than 16 MiB, nested too deep, or no JSON object.
    """
    try:
        content = load_json(path, _LARGEST_JSON)
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
    except ValueError as error:
        raise ModelError(f"{path} cannot be read: {error}.") from error
    return content
