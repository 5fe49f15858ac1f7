"""siam-bids: a BIDS App that segments every head MRI of a study, any contrast, any resolution."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from siam_bids.errors import (
    DatasetError,
    ImageError,
    LabelError,
    ModelError,
    SiamError,
    UsageError,
)

if TYPE_CHECKING:
    from siam_bids.image.grid import Grid, Volume
    from siam_bids.pipelines.notebook import Segmentation, segment

__version__ = "0.16.0"

__all__ = [
    "DatasetError",
    "Grid",
    "ImageError",
    "LabelError",
    "ModelError",
    "Segmentation",
    "SiamError",
    "UsageError",
    "Volume",
    "__version__",
    "segment",
]

_LATE = {
    "Grid": "siam_bids.image.grid",
    "Volume": "siam_bids.image.grid",
    "Segmentation": "siam_bids.pipelines.notebook",
    "segment": "siam_bids.pipelines.notebook",
}
"""What is imported when it is first used: torch takes seconds to load."""


def __getattr__(name: str) -> Any:
    """Offer the names of `_LATE`."""
    if name in _LATE:
        return getattr(import_module(_LATE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
