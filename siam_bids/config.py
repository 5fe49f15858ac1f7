"""What one run is asked to do: a value, built once from the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

DEFAULT_SUFFIXES = (
    "T1w", "T2w", "FLAIR", "PDw", "PDT2", "T2starw", "inplaneT1", "inplaneT2", "UNIT1",
)  # fmt: skip
"""Anatomical images that are segmented unless `--suffix` says otherwise."""


COMBINATIONS = ("none", "contrasts", "sessions", "all")
"""Scans of a participant that share one prior: none; those of a session; those of all sessions that
are named alike; all."""


_CHECKPOINT = re.compile(r"(\w[\w.+-]*\.(pth|safetensors))?")


def is_checkpoint_name(name: str) -> bool:
    """Tell whether a name is that of a file of weights, without a folder; or empty."""
    return bool(_CHECKPOINT.fullmatch(name))


@dataclass(frozen=True, kw_only=True)
class Query:
    """Which scans of a dataset are wanted.

    Attributes
    ----------
    participants, sessions
        Labels without `sub-`/`ses-`; empty for all.
    suffixes
        BIDS suffixes.
    filters
        Content of a `--bids-filter-file`: per suffix (or `anat` for all) entity -> value(s).
    database
        Folder of a pybids index to reuse, or None.
    derivative
        Take a dataset of another type than raw, whose images are named as raw ones are.
    """

    participants: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = DEFAULT_SUFFIXES
    filters: dict[str, dict[str, Any]] = field(default_factory=dict)
    database: Path | None = None
    derivative: bool = False


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How a model is applied to a scan. The defaults are those of siam-pred.

    Attributes
    ----------
    voxel_size
        Pretend that voxels have this isotropic size in mm; None for the true size.
    scale
        Pretend that voxels are larger by this factor; 1.4 for newborns.
    interpolate
        False feeds the voxels to the network as they are, whatever their size.
    folds
        Names of the folds to average, for example `("0", "2")`; empty for all.
    checkpoint
        Name of the file in each fold that is run, for example `checkpoint_best.pth`; empty for the
        usual one.
    mirror
        Average over mirrored tiles too (test-time augmentation), along the axes that the model was
        trained for; None leaves it to the model.
    intensities
        Use intensity refinement if the model specifies it; False leaves the
        network's own.
    upright
        Segment rotated heads again in standard orientation if the model specifies it.
    precision
        `auto`, `float32` or `bfloat16`, on a CPU or CUDA.
    engine
        What computes the network: `auto`, `torch` or, on a CPU, `openvino`.
    volume
        Volume of a 4-D image to use, from 0; None refuses 4-D images.
    memory
        Bytes of main memory that this program may use; None for what is free.
    low_memory
        Keep the sums of logits on disk; the labels stay the same.
    """

    voxel_size: float | None = None
    scale: float = 1.0
    interpolate: bool = True
    folds: tuple[str, ...] = ()
    checkpoint: str = ""
    mirror: bool | None = None
    intensities: bool = True
    upright: bool = True
    precision: str = "auto"
    engine: str = "auto"
    volume: int | None = None
    memory: float | None = None
    low_memory: bool = False

    def changed(self) -> dict[str, Any]:
        """Return what differs from the defaults and may change labels, as sidecars record it."""
        return {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if each.name not in ("engine", "memory", "low_memory")
            and getattr(self, each.name) != each.default
        }


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run of `siam-bids`.

    Attributes
    ----------
    model
        Name of a registered model, or the path of an nnU-Net v2 model folder.
    model_dirs
        Folders of downloaded models.
    device
        `auto`, `cpu`, `cuda` or `mps`.
    threads
        CPU threads to use; 0 leaves the choice to torch.
    probabilities
        Names of tissues whose probability maps are written.
    write_probseg
        Write those of all tissues.
    combine
        Which scans of a participant share one prior, a key of `COMBINATIONS`.
    segmentations
        Further label maps that are written, by their label of `seg-`: `siamhemi`, `aseg`.
    viewer
        Put a viewer of scan and labels into the subjects' pages.
    force_output
        Write into the output folder whatever it holds.
    formula
        Model of every tissue at the group level, for example `~ age + C(sex) + TIV`, or empty.
    adjust
        Columns regressed out before outliers are looked for.
    exclude
        Rules like `rating=fail`: scans that do not count at the group level.
    site_column
        Column of the sites at the group level, for colours and `harmonize`; empty for `site`.
    harmonize
        Column of the sites whose effects ComBat takes from volumes at the group level, empty for
        `site_column`; None for no harmonization.
    group_by
        Columns that define the groups compared at the group level; empty for protocols.
    ratings
        Ratings exported from the group page, one file per rater; empty for those in the output
        folder.
    inference
        How the model is applied.
    command
        The command line, for the record.
    """

    bids_dir: Path
    output_dir: Path
    level: str
    query: Query = field(default_factory=Query)
    model: str = "compact"
    model_dirs: tuple[Path, ...] = ()
    inference: Inference = field(default_factory=Inference)
    device: str = "auto"
    threads: int = 0
    probabilities: tuple[str, ...] = ()
    write_probseg: bool = False
    segmentations: tuple[str, ...] = ()
    combine: str = "none"
    overwrite: bool = False
    dry_run: bool = False
    reports_only: bool = False
    force_output: bool = False
    stop_on_first_crash: bool = False
    progress: bool = False
    viewer: bool = False
    formula: str = ""
    adjust: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    group_by: tuple[str, ...] = ()
    site_column: str = ""
    harmonize: str | None = None
    ratings: tuple[Path, ...] = ()
    command: str = ""
