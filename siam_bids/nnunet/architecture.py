"""Building the network that plans.json names."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

from torch import nn

with contextlib.redirect_stdout(io.StringIO()):  # it prints advice on environment variables
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans


def build_network(
    architecture: Mapping[str, Any], *, channels: int, classes: int, initialise: bool = True
) -> nn.Module:
    """Build the network that a plans.json names, without deep supervision outputs.

    Parameters
    ----------
    architecture
        The `architecture` entry of a configuration in plans.json.
    initialise
        Draw the first weights at random as nnU-Net does: needed for training only.
    """
    network: nn.Module = get_network_from_plans(
        architecture["network_class_name"],
        dict(architecture["arch_kwargs"]),
        list(architecture["_kw_requires_import"]),
        channels,
        classes,
        allow_init=initialise,
        deep_supervision=False,
    )
    return network
