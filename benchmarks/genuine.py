"""Tiny models that stock nnU-Net itself trained, of several releases, and how siam-bids runs them.

Each folder in tests/genuine is what nnU-Net's own planner, preprocessor and trainer leave behind
(plans.json, dataset.json, fold_0/checkpoint_final.pth, none of them edited), made small by the
planner's own settings: few features, few images of 4.5 mm. Its name tells the release of nnU-Net,
that of numpy, and the kind of model. One environment for each release, with Python 3.11:

    python -m venv old
    old/bin/pip install torch==2.13.0 numpy==1.26.4 nnunetv2==2.5.1
    old/bin/python benchmarks/genuine.py make tests/genuine plain resenc
    old/bin/python benchmarks/genuine.py label tests/genuine

`make` trains models of the given kinds, half a minute each; `label` lets the same release label
tests/genuine/seg3d_4mm.nii.gz (a scan of the sample data at 4 mm; `scan` writes it) and stores the
result as stock_labels.nii.gz beside each model. The other releases of the two commands above:

    nnunetv2==2.2.1, 2.4.2, 2.6.2, 2.8.1; each with numpy==1.26.4 and with numpy==2.4.6

Releases before 2.6 are older than this torch: for them `make` accepts an argument of schedulers
that torch has dropped, and `label` lets torch open checkpoints as it once did. To compare whole
scans, let every environment label the full sample scan, then siam-bids do so, which prints the
table of benchmarks/genuine.md:

    old/bin/python benchmarks/genuine.py label tests/genuine --whole /tmp/labels
    python benchmarks/genuine.py compare tests/genuine --whole /tmp/labels

`describe` prints what each checkpoint's pickle names, without executing it, and checksums.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import os
import pickletools
import shutil
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

os.environ["nnUNet_compile"] = "F"  # noqa: SIM112
os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # old releases load their own pickles so

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

Array = npt.NDArray[Any]

ROOT = Path(__file__).resolve().parent.parent
SCAN = ROOT / "data/sample_bids/sub-seg3d/anat/sub-seg3d_T1w.nii.gz"
SMALL = "seg3d_4mm.nii.gz"
DATASET = 107
CASES = 5
SPACING = 4.5
LEVELS = (50, 140, 205)
"""Where the smoothed intensities of the scan are cut into labels."""
NAMES = ("background", "dark", "light", "white")
KINDS = ("plain", "resenc", "lowres", "2d", "inside", "regions", "ignore", "thick")
"""Plain or residual encoder; the configurations 3d_lowres and 2d; the labels within a mask, which
is the second channel; labels that are sets of labels; an ignored label; thick sagittal slices, for
which nnU-Net swaps axes."""
EPOCHS, ITERATIONS = 4, 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    add = commands.add_parser("scan", help="write the small scan")
    add.set_defaults(run=lambda given: write_scan(given.folder))
    add.add_argument("folder", type=Path)
    add = commands.add_parser("make", help="train models with this environment's nnU-Net")
    add.set_defaults(run=lambda given: make(given.folder, given.kinds))
    add.add_argument("folder", type=Path)
    add.add_argument("kinds", nargs="*", choices=[*KINDS, []], default=["plain", "resenc"])
    add = commands.add_parser("label", help="label a scan with this environment's nnU-Net")
    add.set_defaults(run=lambda given: label(given.folder, given.whole, given.every))
    add.add_argument("folder", type=Path)
    add.add_argument("--whole", type=Path, help="label the full scan, into this folder")
    add.add_argument("--every", action="store_true", help="models of other releases too")
    add = commands.add_parser("compare", help="compare siam-bids with what `label` left")
    add.set_defaults(run=lambda given: compare(given.folder, given.whole))
    add.add_argument("folder", type=Path)
    add.add_argument("--whole", type=Path, help="folder of the labels of the full scan")
    add = commands.add_parser("describe", help="what the checkpoints hold")
    add.set_defaults(run=lambda given: describe(given.folder))
    add.add_argument("folder", type=Path)
    given = parser.parse_args()
    given.run(given)


def environment() -> str:
    """Releases of nnU-Net and numpy, as in the names of the folders."""
    from importlib.metadata import version

    return f"nnunet-{version('nnunetv2')}_numpy-{version('numpy')}"


def write_scan(folder: Path) -> None:
    """The sample scan at 4 mm, RAS+."""
    image = nib.as_closest_canonical(nib.load(SCAN))
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    data = resampled(image, (4.0, 4.0, 4.0)).round().astype(np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), folder / SMALL)


def resampled(image: Any, spacing: tuple[float, float, float]) -> Array:
    """An image averaged over larger voxels."""
    ratio = np.asarray(spacing) / image.header.get_zooms()
    data = np.asarray(image.dataobj, np.float32)
    smooth = ndimage.gaussian_filter(data, ratio / 2.5, mode="nearest")
    return np.asarray(ndimage.zoom(smooth, 1 / ratio, order=1, grid_mode=True, mode="nearest"))


def levels(data: Array, spacing: float = 4.0) -> Array:
    """Labels 0 to 3: the smoothed image cut at some intensities."""
    smooth = ndimage.gaussian_filter(np.asarray(data, np.float32), 3 / spacing)
    return np.digitize(smooth, LEVELS).astype(np.uint8)


def region(data: Array, spacing: float = 4.0) -> npt.NDArray[np.bool_]:
    """The mask that is the second channel of the kind `inside`."""
    return np.asarray(levels(data, spacing) >= 2)


def make(folder: Path, kinds: list[str]) -> None:
    for kind in kinds:
        target = folder / f"{environment()}_{kind}"
        shutil.rmtree(target, ignore_errors=True)
        with tempfile.TemporaryDirectory() as scratch:
            train(Path(scratch), target, kind)
        print(f"made {target}", flush=True)


def write_dataset(folder: Path, kind: str) -> None:
    """Raw data for nnU-Net: parts of the sample scan, brighter or darker, mirrored or not."""
    spacing = (12.0, SPACING, SPACING) if kind == "thick" else (SPACING,) * 3
    whole = resampled(nib.as_closest_canonical(nib.load(SCAN)), spacing)
    truth = levels(whole, SPACING)
    shape = whole.shape if kind == "lowres" else (12 if kind == "thick" else 32, 36, 28)
    rng = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for case in range(CASES):
        room = np.subtract(whole.shape, shape)
        corner = [int(at) for at in rng.integers(0, room + 1)]
        box = tuple(slice(at, at + part) for at, part in zip(corner, shape, strict=True))
        side = slice(None, None, -1 if case % 2 else 1)
        image, labels = whole[box][side], truth[box][side]
        image = image * rng.uniform(0.9, 1.1) + rng.normal(0, 2, image.shape) * (image > 0)
        channels = [image]
        if kind == "inside":
            channels.append(labels >= 2)
            labels = np.where(labels >= 2, labels - 1, 0)
        affine = np.diag([*spacing, 1.0])
        for index, channel in enumerate(channels):
            picture = nib.Nifti1Image(channel.astype(np.float32), affine)
            nib.save(picture, folder / "imagesTr" / f"case{case}_{index:04d}.nii.gz")
        if kind == "ignore":
            labels = labels.copy()
            labels[(labels == 3) & (rng.random(labels.shape) < 0.5)] = 4
        labels = nib.Nifti1Image(labels.astype(np.uint8), affine)
        nib.save(labels, folder / "labelsTr" / f"case{case}.nii.gz")
    about: dict[str, Any] = {
        "channel_names": {"0": "T1"},
        "labels": {name: index for index, name in enumerate(NAMES)},
        "numTraining": CASES,
        "file_ending": ".nii.gz",
    }
    if kind == "inside":
        about["channel_names"]["1"] = "noNorm"
        about["labels"] = {"background": 0, "light": 1, "white": 2}
    elif kind == "regions":
        about["labels"] = {"background": 0, "head": [1, 2, 3], "bright": [2, 3], "white": 3}
        about["regions_class_order"] = [1, 2, 3]
    elif kind == "ignore":
        about["labels"]["ignore"] = 4
    (folder / "dataset.json").write_text(json.dumps(about, indent=4))


def train(scratch: Path, target: Path, kind: str) -> None:
    """Plan, preprocess and train as nnU-Net's commands do; keep what a prediction needs."""
    for name in ("raw", "preprocessed", "results"):
        (scratch / name).mkdir()
        os.environ[f"nnUNet_{name}"] = str(scratch / name)
    for module in [name for name in sys.modules if name.startswith("nnunetv2")]:
        del sys.modules[module]  # they read the three folders when imported
    os.environ["nnUNet_n_proc_DA"] = "1"  # noqa: SIM112
    import torch
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        preprocess,
    )
    from nnunetv2.run.run_training import get_trainer_from_args

    write_dataset(scratch / "raw" / f"Dataset{DATASET}_Tiny", kind)
    mend_old_releases()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (nnU-Net draws from it)
    extract_fingerprints([DATASET], num_processes=1, check_dataset_integrity=False)
    planner = planner_class(kind)(DATASET)
    planner.UNet_base_num_features = 3
    planner.UNet_max_features_2d = planner.UNet_max_features_3d = 4
    planner.UNet_featuremap_min_edge_length = {"thick": 5, "lowres": 4}.get(kind, 7)
    if kind == "resenc":
        planner.UNet_blocks_per_stage_encoder = (1, *[2] * 12)
    planner.max_dataset_covered = 0.05  # else the batches of residual encoders are large
    if kind == "lowres":  # the full resolution is too large for the memory that it may take
        planner.UNet_vram_target_GB = planner.UNet_reference_val_corresp_GB / 4500
    planner.plan_experiment()
    configuration = {"lowres": "3d_lowres", "2d": "2d"}.get(kind, "3d_fullres")
    preprocess([DATASET], planner.plans_identifier, (configuration,), (1,))
    trainer = get_trainer_from_args(
        str(DATASET),
        configuration,
        0,
        "nnUNetTrainer",
        planner.plans_identifier,
        device=torch.device("cpu"),
    )
    os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112 (augment in this process)
    trainer.num_epochs = EPOCHS
    trainer.num_iterations_per_epoch = ITERATIONS
    trainer.num_val_iterations_per_epoch = 2
    trainer.run_training()
    for name in ("plans.json", "dataset.json", "fold_0/checkpoint_final.pth"):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(trainer.output_folder_base) / name, target / name)


def mend_old_releases() -> None:
    """What releases before 2.6 need to train in one process, with a torch newer than they are."""
    from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
    from torch.optim.lr_scheduler import LRScheduler

    def finish(_: Any) -> None:
        """Nothing: there are no processes to end."""

    SingleThreadedAugmenter._finish = finish  # noqa: SLF001 (before 2.4)
    original = LRScheduler.__init__
    if "verbose" not in inspect.signature(original).parameters:

        def init(self: Any, optimizer: Any, last_epoch: int = -1, _: bool = False) -> None:
            original(self, optimizer, last_epoch)

        LRScheduler.__init__ = init


def planner_class(kind: str) -> Any:
    """The default planner, or the one of residual encoders that the release recommends."""
    from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner

    if kind != "resenc":
        return default_experiment_planner.ExperimentPlanner
    try:
        from nnunetv2.experiment_planning.experiment_planners.residual_unets import (
            residual_encoder_unet_planners as planners,
        )
    except ImportError:  # before 2.4
        from nnunetv2.experiment_planning.experiment_planners import resencUNet_planner

        return resencUNet_planner.ResEncUNetPlanner
    return planners.nnUNetPlannerResEncL


def folders(folder: Path, prefix: str = "nnunet-") -> list[Path]:
    return sorted(path for path in folder.glob(f"{prefix}*") if path.is_dir())


def label(folder: Path, whole: Path | None, every: bool) -> None:
    image = nib.as_closest_canonical(nib.load(SCAN if whole else folder / SMALL))
    for model in folders(folder) if every else folders(folder, environment()):
        found = stock_labels(model, image)
        for name, labels in found.items():
            target = model / f"{name}.nii.gz"
            if whole:
                whole.mkdir(parents=True, exist_ok=True)
                target = whole / f"{model.name}_{name}.nii.gz"
            nib.save(nib.Nifti1Image(labels, image.affine), target)
        counts = np.bincount(found["stock_labels"].ravel()) / found["stock_labels"].size
        print(f"labelled {model.name}:", " ".join(f"{part:.3f}" for part in counts), flush=True)


def stock_labels(model: Path, image: Any) -> dict[str, Array]:
    """Labels of the stock predictor; for a model of a region also the likeliest within its mask."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    torch.set_num_threads(1)
    known = inspect.signature(nnUNetPredictor).parameters
    options = {name: False for name in known if name.startswith("perform_everything_on")}
    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_mirroring=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predictor.initialize_from_trained_model_folder(str(model), ("0",))
        channels = [np.asarray(image.dataobj, np.float32)]
        sizes = [float(size) for size in image.header.get_zooms()]
        mask = region(channels[0], sizes[1])
        if len(predictor.dataset_json["channel_names"]) > 1:
            channels.append(mask.astype(np.float32))
        data = np.stack([channel.transpose(2, 1, 0) for channel in channels])
        labels, scores = predictor.predict_single_npy_array(
            data, {"spacing": sizes[::-1]}, None, None, True
        )
    found = {"stock_labels": np.asarray(labels).transpose(2, 1, 0).astype(np.uint8)}
    if len(channels) > 1:
        best = np.asarray(scores)[1:].argmax(0).transpose(2, 1, 0) + 1
        found["stock_labels_inside"] = np.where(mask, best, 0).astype(np.uint8)
    return found


def compare(folder: Path, whole: Path | None) -> None:
    """Print how many voxels siam-bids labels as stock nnU-Net does; run it in its environment."""
    import torch

    from siam_bids.config import Inference
    from siam_bids.errors import SiamError
    from siam_bids.image.loading import load_volume
    from siam_bids.inference.segmenter import NnunetSegmenter
    from siam_bids.nnunet.model import NnunetModel

    volume = load_volume(SCAN if whole else folder / SMALL)
    print("| model | voxels alike | differing |\n|---|--:|--:|")
    for path in folders(folder):
        if whole and not list(whole.glob(f"{path.name}_*")):
            print(f"| {path.name} | not labelled by stock nnU-Net | |", flush=True)
            continue
        try:
            model = NnunetModel.open(path)
            segmenter = NnunetSegmenter(model, torch.device("cpu"), Inference(precision="float32"))
            inside = region(volume.data, volume.grid.voxel_size[1]) if model.channels > 1 else None
            ours = segmenter.segment(volume, inside=inside).segmentation.data
        except SiamError as error:
            print(f"| {path.name} | refused: {error} | |", flush=True)
            continue
        except Exception as error:  # noqa: BLE001 (a row of the table)
            print(f"| {path.name} | {type(error).__name__}: {error} | |", flush=True)
            continue
        name = "stock_labels" if inside is None else "stock_labels_inside"
        at = whole / f"{path.name}_{name}.nii.gz" if whole else path / f"{name}.nii.gz"
        stock = np.asarray(nib.load(at).dataobj)
        differing = int((ours != stock).sum())
        print(f"| {path.name} | {1 - differing / stock.size:.4%} | {differing} |", flush=True)


def describe(folder: Path) -> None:
    for path in folders(folder):
        print(f"\n## {path.name}")
        for file in sorted(path.rglob("*.*")):
            if file.is_file():
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                print(f"{digest}  {file.relative_to(path)}  {file.stat().st_size:,} bytes")
        for name in globals_of(path / "fold_0" / "checkpoint_final.pth"):
            print(f"- {name}")


def globals_of(checkpoint: Path) -> list[str]:
    """The functions and classes that a checkpoint's pickle names; nothing of it is executed."""
    with zipfile.ZipFile(checkpoint) as archive:
        inner = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        content = archive.read(inner)
    named = set()
    for opcode, argument, _ in pickletools.genops(content):
        assert opcode.name != "STACK_GLOBAL", "torch writes protocol 2"
        if opcode.name == "GLOBAL":
            named.add(str(argument).replace(" ", "."))
    return sorted(named)


if __name__ == "__main__":
    main()
