"""Affine transforms between spaces, and ITK's files of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

Affine = npt.NDArray[np.float64]
"""(4, 4), from positions or voxels to positions or voxels."""

TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From RAS+, as in NIfTI, to LPS+, as in ITK; or back."""

_LARGEST = 10_000
"""Bytes above which a file is none of these."""


def inverse(matrix: Affine) -> Affine:
    """Return the inverse of an affine (4, 4)."""
    return np.asarray(np.linalg.inv(matrix), np.float64)


def move(matrix: Affine, places: npt.NDArray[np.number]) -> npt.NDArray[np.float64]:
    """Apply an affine (4, 4) to positions (N, 3)."""
    return np.asarray(places @ matrix[:3, :3].T + matrix[:3, 3], np.float64)


def transform_text(matrix: Affine) -> str:
    """Return the motion from a scan to another space as the text of an ITK transform file.

    As ITK has it, the file maps positions (LPS mm) of the space to those of the scan: given to a
    program that resamples, it brings the image of the scan into the space.
    """
    back = TO_LPS @ inverse(matrix) @ TO_LPS
    numbers = " ".join(f"{value:.12g}" for value in [*back[:3, :3].ravel(), *back[:3, 3]])
    return (
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        f"Parameters: {numbers}\nFixedParameters: 0 0 0\n"
    )


def read_transform(path: Path) -> Affine:
    """Read the motion of a file as `transform_text` makes it.

    Raises
    ------
    ValueError
        It is another file.
    OSError
        It cannot be read.
    """
    text = path.read_text(encoding="utf-8")[:_LARGEST]
    lines = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    numbers = [float(word) for word in lines.get("Parameters", "").split()]
    centre = [float(word) for word in lines.get("FixedParameters", "").split()]
    if len(numbers) != 12 or not np.isfinite(numbers).all() or centre != [0, 0, 0]:
        raise ValueError(f"{path.name} is no affine transform about the origin")
    back = np.eye(4)
    back[:3, :3], back[:3, 3] = np.reshape(numbers[:9], (3, 3)), numbers[9:]
    if not abs(np.linalg.det(back)) > 1e-6:
        raise ValueError(f"{path.name} is not invertible")
    return inverse(TO_LPS @ back @ TO_LPS)
