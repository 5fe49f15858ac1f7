"""The configuration of plans.json that a model runs in, checked before anything is built of it.

What it inherits and how older plans are understood follow stock nnU-Net's `PlansManager` and
`ConfigurationManager`. Functions and classes are looked up in tables, never by importing a name.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from siam_bids.nnunet.architecture import read_architecture, strides_of
from siam_bids.nnunet.checks import (
    Check,
    flag,
    keywords,
    listed,
    number,
    one_of,
    optional,
    shown,
    table,
    whole,
)

with contextlib.redirect_stdout(io.StringIO()):  # it prints advice on environment variables
    from nnunetv2.configuration import ANISO_THRESHOLD
    from nnunetv2.preprocessing.normalization import default_normalization_schemes as schemes
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
    from nnunetv2.preprocessing.resampling.no_resampling import no_resampling_hack


def _resample_torch(*arguments: Any, **words: Any) -> Any:
    """Resample by torch, as few models want: importing what does so takes a tenth of a second."""
    from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet

    return resample_torch_fornnunet(*arguments, **words)


_SEPARATE: dict[str, Check] = {
    "is_seg": one_of(False),
    "force_separate_z": optional(flag),
    "separate_z_anisotropy_threshold": number(0, 1e6),
}
_RESAMPLING: dict[str, tuple[Callable[..., Any], Mapping[str, Check], Mapping[str, Any]]] = {
    "resample_data_or_seg_to_shape": (
        resample_data_or_seg_to_shape,
        {**_SEPARATE, "order": whole(0, 5), "order_z": whole(0, 5)},
        {
            "is_seg": False,
            "order": 3,
            "order_z": 0,
            "force_separate_z": False,
            "separate_z_anisotropy_threshold": ANISO_THRESHOLD,
        },
    ),
    "resample_torch_fornnunet": (
        _resample_torch,
        {
            **_SEPARATE,
            "num_threads": whole(1, 64),
            "memefficient_seg_resampling": flag,
            "mode": one_of("linear", "nearest", "nearest-exact", "area"),
            "aniso_axis_mode": one_of("linear", "nearest", "nearest-exact", "area"),
        },
        {},
    ),
    "no_resampling_hack": (no_resampling_hack, {}, {}),
}
"""Functions, the keywords that they take, and those that stock nnU-Net lets a plan leave out."""


@dataclass(frozen=True)
class Normalisation:
    """One of nnU-Net's normalisations, and the intensities of the training images it needs."""

    make: Callable[..., Any]
    needs: tuple[str, ...] = ()


NORMALISATIONS = {
    "ZScoreNormalization": Normalisation(schemes.ZScoreNormalization),
    "NoNormalization": Normalisation(schemes.NoNormalization),
    "RescaleTo01Normalization": Normalisation(schemes.RescaleTo01Normalization),
    "CTNormalization": Normalisation(
        schemes.CTNormalization, ("mean", "std", "percentile_00_5", "percentile_99_5")
    ),
}

_READERS = ("SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient")
_NAMES: dict[str, tuple[str, ...]] = {
    "image_reader_writer": _READERS,
    "label_manager": ("LabelManager",),
    "preprocessor_name": ("DefaultPreprocessor",),
}
"""What else stock nnU-Net finds by name. Nothing of it is used here, other ways would differ."""

_MOST_VOXELS = 2**28
_PATCH = whole(1, 2048)
_SPACING = number(0.01, 100)


@dataclass(frozen=True)
class Plan:
    """One configuration of a plans.json.

    Attributes
    ----------
    name
        Of the configuration, for example `3d_fullres`.
    configuration
        Its content, with what it inherits, and `architecture` in place of older entries.
    patch_size
        Edges of a tile in voxels, in the plans' axis order.
    spacing
        Voxel size in mm, in the plans' axis order.
    transpose_forward
        Which axis of [z, y, x] is each of the plans' axes.
    normalization_schemes, use_mask_for_norm, intensities
        Of each channel: one of `NORMALISATIONS`, whether the zeros are left out, and intensities of
        the training images by name (`mean`, `std`, ...).
    resampling_fn_data, resampling_fn_probabilities
        Functions of (array, new shape, voxel size, new voxel size).
    """

    name: str
    configuration: dict[str, Any]
    patch_size: list[int]
    spacing: list[float]
    transpose_forward: list[int]
    normalization_schemes: list[str]
    use_mask_for_norm: list[bool]
    intensities: list[dict[str, Any]]
    resampling_fn_data: Callable[..., Any]
    resampling_fn_probabilities: Callable[..., Any]

    @classmethod
    def read(cls, plans: Mapping[str, Any], name: str, *, channels: int) -> Plan:
        """Read and check a configuration.

        Raises
        ------
        ValueError
            It is missing, 2-D, the second stage of a cascade, or holds what is not known or not
            of the right kind or size; one sentence.
        """
        found = _modern(_inherited(plans, name))
        for what, known in _NAMES.items():
            holder = plans if what in plans else found
            if what in holder:
                one_of(*known)(holder[what], what)
        if found.get("previous_stage") is not None:
            raise ValueError(
                f"{name} is the second stage of a cascade, which cannot run on its own"
            )
        patch = _three(_PATCH)(found.get("patch_size"), "patch_size")
        if math.prod(patch) > _MOST_VOXELS:
            raise ValueError(f"patch_size is {patch}, more voxels than any computer can hold")
        _, options = read_architecture(found["architecture"])
        depths = strides_of(options)
        if any(edge % step for edge, step in zip(patch, depths, strict=True)) or patch == depths:
            raise ValueError(f"patch_size is {patch}, not a multiple of the network's {depths}")
        data, probabilities = (_resampling(found, kind) for kind in ("data", "probabilities"))
        if probabilities.func is no_resampling_hack is not data.func:
            raise ValueError("resampling_fn_probabilities leaves out what resampling_fn_data does")
        return cls(
            name,
            {
                **found,
                "resampling_fn_data_kwargs": data.keywords,
                "resampling_fn_probabilities_kwargs": probabilities.keywords,
            },
            patch,
            _three(_SPACING)(found.get("spacing"), "spacing"),
            _axes(plans),
            *_normalisation(plans, found, channels),
            data,
            probabilities,
        )


def configurations(plans: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configurations of a plans.json by name.

    Raises
    ------
    ValueError
        There is none.
    """
    found = table(plans.get("configurations"), "configurations")
    if not found:
        raise ValueError("it has no configuration")
    return found


def _inherited(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a configuration with what it inherits: its own entries count."""
    known, chain = configurations(plans), list[str]()
    following: Any = name
    while following is not None:
        if not isinstance(following, str) or following not in known:
            raise ValueError(f"there is no configuration {shown(following)}")
        if following in chain:
            raise ValueError(f"the configuration {shown(name)} inherits from itself")
        chain.append(following)
        following = table(known[following], f"configuration {shown(following)}").get(
            "inherits_from"
        )
    merged: dict[str, Any] = {}
    for each in reversed(chain):
        merged.update(known[each])
    return merged


_OLD: dict[str, Check] = {
    "UNet_class_name": one_of("PlainConvUNet", "ResidualEncoderUNet"),
    "UNet_base_num_features": whole(1, 4096),
    "unet_max_num_features": whole(1, 4096),
    "n_conv_per_stage_encoder": lambda value, what: listed(whole(1, 64))(_short(value, what), what),
    "n_conv_per_stage_decoder": listed(whole(1, 64)),
    "num_pool_per_axis": listed(whole(0, 12)),
    "pool_op_kernel_sizes": listed(listed(whole(1, 8))),
    "conv_kernel_sizes": listed(listed(whole(1, 15))),
}
"""How plans of nnU-Net 2.0 to 2.2 describe a network."""


def _short(value: Any, what: str) -> Any:
    if isinstance(value, list) and len(value) > 12:
        raise ValueError(f"{what} has {len(value)} stages, more than 12")
    return value


def _modern(configuration: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with an `architecture`, as stock nnU-Net makes it of older ones."""
    patch = configuration.get("patch_size")
    if isinstance(patch, list) and len(patch) == 2:
        raise ValueError("it is a 2-D configuration; only 3-D ones are supported")
    if "architecture" in configuration:
        return configuration
    if "UNet_class_name" not in configuration:
        raise ValueError("it has no architecture")
    old = {name: configuration[name] for name in _OLD if name in configuration}
    keywords(_OLD, frozenset(_OLD))(old, "an older configuration")
    _three(_PATCH)(patch, "patch_size")
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager  # takes time

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is old
        found: dict[str, Any] = ConfigurationManager(dict(configuration)).configuration
    return found


def _three(inner: Check) -> Check:
    return listed(inner, 3)


def _axes(plans: Mapping[str, Any]) -> list[int]:
    """Return the order of the axes, if the way back is that back."""
    orders = [
        _three(whole(0, 2))(plans.get(name), name)
        for name in ("transpose_forward", "transpose_backward")
    ]
    forward: list[int]
    forward, backward = orders
    if sorted(forward) != [0, 1, 2] or [forward[axis] for axis in backward] != [0, 1, 2]:
        raise ValueError(f"transpose_forward {forward} and transpose_backward {backward} disagree")
    return forward


def _normalisation(
    plans: Mapping[str, Any], configuration: Mapping[str, Any], channels: int
) -> tuple[list[str], list[bool], list[dict[str, Any]]]:
    names = listed(one_of(*NORMALISATIONS))(
        configuration.get("normalization_schemes"), "normalization_schemes"
    )
    masks = listed(flag)(configuration.get("use_mask_for_norm"), "use_mask_for_norm")
    if min(len(names), len(masks)) < channels:
        raise ValueError(f"normalization_schemes or use_mask_for_norm lack one of {channels}")
    what = "foreground_intensity_properties_per_channel"
    older = "foreground_intensity_properties_by_modality"
    properties = table(plans.get(what, plans.get(older)), what)
    intensities = []
    for channel in range(channels):
        own = table(properties.get(str(channel)), f"channel {channel} of {what}")
        for name in NORMALISATIONS[names[channel]].needs:
            number()(own.get(name), f"{name} of channel {channel} in {what}")
        intensities.append(own)
    return names, masks, intensities


def _resampling(configuration: Mapping[str, Any], kind: str) -> partial[Any]:
    what = f"resampling_fn_{kind}"
    function, known, usual = _RESAMPLING[one_of(*_RESAMPLING)(configuration.get(what), what)]
    options = keywords(known)(configuration.get(f"{what}_kwargs"), f"{what}_kwargs")
    return partial(function, **{**usual, **options})
