"""The configuration of a training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from siam_bids.image.labels import siam_labels
from siam_bids.training.task import TASKS, Task

CLASSES = len(siam_labels())


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """All choices of a training run; everything but `minutes` and `cooldown` is kept with it.

    Attributes
    ----------
    maps
        Label maps to train on: (path, source) each; see `label_maps.source_table`.
    folder
        Where state, log and the model folder are kept.
    minutes
        Length of this session.
    cooldown
        Let the learning rate fall to zero over this session, which then ends the training.
    ramp_steps
        Steps over which the difficulty of the images rises from 0 to 1.
    fresh_every
        A new image replaces the oldest of the pool every so many patches.
    pool
        Images kept to draw patches from.
    voxel
        Voxel size of the network in mm: a whole number, images are generated at 1 mm.
    siam_share
        Share of images generated from maps of source `siam` if there are others too.
    contrasts
        Paint half of the images in these (see `CONTRASTS`), the others in any.
    lesion_share
        Share of images with lesions: of those in `contrasts`, or of all.
    start
        Model folder to begin from (see `warm_start.start_from`), at full difficulty.
    dice_weight
        Weight of the Dice term. Soft Dice inflates what is uncertain (Bertels et al., Med. Image
        Anal. 2021); a last session at 0 calibrates volumes and probabilities.
    features, patch
        Channels of each stage, and edge of the training patches and tiles in voxels.
    batch
        Patches in one step: a GPU learns from several in the time of one.
    processes
        How many train side by side and share what they learn, see `local_sgd`.
    task
        The part of the head to train on.
    lesions
        Masks of patients' lesions in MNI space, painted into the images; see `synthesis.lesions`.
    hardest
        Difficulty at the end of the ramp.
    validation
        Label maps that are not trained on, like `maps`; their Dice is logged.
    """

    maps: tuple[tuple[Path, str], ...]
    folder: Path
    minutes: float
    cooldown: bool = False
    seed: int = 0
    features: tuple[int, ...] = (16, 32, 64, 128, 160)
    patch: int = 64
    batch: int = 1
    voxel: int = 2
    learning_rate: float = 2e-3
    warmup_steps: int = 200
    ramp_steps: int = 6000
    fresh_every: int = 8
    pool: int = 12
    siam_share: float = 0.15
    contrasts: tuple[str, ...] = ()
    lesion_share: float = 0.35
    ema: float = 0.998
    dice_weight: float = 1.0
    device: str = "cpu"
    compile: bool = False
    processes: int = 1
    start: Path | None = None
    task: Task = TASKS["head"]
    lesions: tuple[Path, ...] = ()
    hardest: float = 1.0
    validation: tuple[tuple[Path, str], ...] = ()
