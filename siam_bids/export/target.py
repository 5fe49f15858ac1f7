"""The interface of an export target, and its options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siam_bids.bids.names import ScanNames
from siam_bids.bids.writers import Written
from siam_bids.export.head import Head


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line can ask of targets.

    Attributes
    ----------
    smallest
        Lesions below this volume in mm3 are left out.
    confidence
        Lesions whose mean probability is below this are left out.
    thickness
        Least distance between two surfaces in mm.
    bias_corrected
        The bias-corrected image is written too.
    """

    smallest: float = 0.0
    confidence: float = 0.0
    thickness: float = 3.0
    bias_corrected: bool = False


@dataclass(frozen=True, kw_only=True)
class Target:
    """A program that takes our results.

    Attributes
    ----------
    options
        Names of the fields of `Options` that change what is written.
    declares
        Returns the JSON file that says that the export of a scan is whole, below a folder.
    write
        Writes all other files of a scan below a folder; returns what that JSON file tells, and the
        files.
    """

    declares: Callable[[Path, ScanNames], Path]
    write: Callable[[Head, Path, Options], tuple[dict[str, Any], Written]]
    options: tuple[str, ...] = ()


def anat(root: Path, names: ScanNames, ending: str) -> Path:
    """Return a file of a session's anatomy: `sub-01[/ses-a]/anat/sub-01[_ses-a]_ENDING`."""
    stem = "_".join(filter(None, (*names.identity.visit, ending)))
    return root.joinpath(*names.identity.visit, "anat", stem)


def person(root: Path, names: ScanNames, prefix: str = "") -> Path:
    """Return the folder of a person and session for programs without sessions: `sub-01_ses-a`."""
    stem = "_".join(filter(None, names.identity.visit))
    return root / f"{prefix}{stem}"
