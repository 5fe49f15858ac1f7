"""Model folders of our own, as stock nnU-Net reads them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

import torch

with contextlib.redirect_stdout(io.StringIO()):  # it prints advice on environment variables
    pass
from siam_bids.nnunet.model import CONFIGURATION


def compact_plans(
    *, name: str, features: tuple[int, ...], patch: tuple[int, int, int], spacing: float
) -> dict[str, Any]:
    """Return plans.json of a plain U-Net on isotropic voxels.

    Parameters
    ----------
    features
        Channels of each stage; every stage but the first halves the resolution.
    patch
        Tile in voxels.
    spacing
        Voxel size in mm.
    """
    stages = len(features)
    resampling = {
        f"resampling_fn_{kind}": "resample_data_or_seg_to_shape"
        for kind in ("data", "seg", "probabilities")
    }
    resampling_options = {
        f"resampling_fn_{kind}_kwargs": {
            "is_seg": kind == "seg",
            "order": 3 if kind == "data" else 1,
            "order_z": 0,
            "force_separate_z": False,
        }
        for kind in ("data", "seg", "probabilities")
    }
    return {
        "dataset_name": name,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [192, 224, 192],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            CONFIGURATION: {
                "data_identifier": f"nnUNetPlans_{CONFIGURATION}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 1,
                "patch_size": list(patch),
                "median_image_size_in_voxels": [96, 112, 96],
                "spacing": [spacing] * 3,
                "normalization_schemes": ["ZScoreNormalization"],
                "use_mask_for_norm": [False],
                **resampling,
                **resampling_options,
                "architecture": {
                    "network_class_name": (
                        "dynamic_network_architectures.architectures.unet.PlainConvUNet"
                    ),
                    "arch_kwargs": {
                        "n_stages": stages,
                        "features_per_stage": list(features),
                        "conv_op": "torch.nn.modules.conv.Conv3d",
                        "kernel_sizes": [[3, 3, 3]] * stages,
                        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
                        "n_conv_per_stage": [1] + [2] * (stages - 1),
                        "n_conv_per_stage_decoder": [1] * (stages - 1),
                        "conv_bias": True,
                        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                        "dropout_op": None,
                        "dropout_op_kwargs": None,
                        "nonlin": "torch.nn.LeakyReLU",
                        "nonlin_kwargs": {"inplace": True},
                    },
                    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
                },
                "batch_dice": False,
            }
        },
        "experiment_planner_used": "siam-bids-train",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": dict.fromkeys(
                ("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 0.0
            )
        },
    }


def checkpoint(
    weights: Mapping[str, torch.Tensor], mirror_axes: tuple[int, ...] | None = None
) -> dict[str, Any]:
    """Return the content of a checkpoint_final.pth that stock nnU-Net loads too.

    `mirror_axes` are those of [z, y, x] that inference may mirror.
    """
    return {
        "network_weights": dict(weights),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": CONFIGURATION},
        "inference_allowed_mirroring_axes": mirror_axes,
    }
