"""What a scanner does to an image: bias field, blur, motion, ghosts, thick slices, noise.

All functions take and return images (I, J, K) float32, not negative. Lengths in mm; `voxel` is
the voxel size in mm. Randomness comes from a torch generator alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional


def add_objects(image: torch.Tensor, count: int, rng: torch.Generator) -> torch.Tensor:
    """Put bright ellipsoids into the dark outside of the head."""
    draws = torch.rand((count, 7), generator=rng, device=rng.device).tolist()
    axes = [torch.arange(length, device=image.device).float() for length in image.shape]
    dark = image < 0.05 * image.max()
    for draw in draws:
        inside = torch.zeros((), device=image.device)
        for axis, (steps, length) in enumerate(zip(axes, image.shape, strict=True)):
            shape = [1, 1, 1]
            shape[axis] = -1
            radius = (0.02 + 0.1 * draw[3 + axis]) * length
            inside = inside + ((steps - draw[axis] * length) / radius).square().view(shape)
        image = torch.where((inside < 1) & dark, draw[6] * image.max(), image)
    return image


def move_head(image: torch.Tensor, shift: float, moved: float, axis: int) -> torch.Tensor:
    """Let the head jump by `shift` voxels along the phase-encoding axis during the scan.

    A share `moved` of the k-space lines, the last ones acquired, sees the head at its new place
    (Fourier shift theorem). Lines far from the centre give ghosts and ringing, not a double head.
    """
    length = image.shape[axis]
    frequency = torch.fft.fftfreq(length, device=image.device)
    view = [1, 1, 1]
    view[axis] = -1
    late = frequency > 0.5 - moved
    phase = torch.where(late, torch.exp(-2j * math.pi * frequency * shift), 1.0)
    spectrum = torch.fft.fft(image, dim=axis) * phase.view(view)
    moved_image: torch.Tensor = torch.fft.ifft(spectrum, dim=axis).abs()
    return moved_image


def add_ghost(image: torch.Tensor, strength: float, copies: int, axis: int) -> torch.Tensor:
    """Add `copies` shifted echoes of the image along an axis, as periodic motion does."""
    step = image.shape[axis] // (copies + 1)
    ghosted = image
    for number in range(1, copies + 1):
        ghosted = ghosted + strength / copies * torch.roll(image, number * step, axis)
    return ghosted


def blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Smooth with a Gaussian of `sigma` voxels, truncated at 2 voxels, with zeros outside.

    A sum of shifted copies, for oneDNN keeps work space for each shape that it ever convolved,
    and no two heads have the same: gigabytes in an hour of training.
    """
    if sigma < 0.1:
        return image
    steps = torch.arange(-2, 3, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    weights = (kernel / kernel.sum()).tolist()
    for axis in range(3):
        margin = [0] * 6
        margin[4 - 2 * axis] = margin[5 - 2 * axis] = 2
        wide = functional.pad(image, margin)
        length = image.shape[axis]
        image = torch.zeros_like(image)
        for start, weight in enumerate(weights):
            image.add_(wide.narrow(axis, start, length), alpha=weight)
    return image


def acquire(
    image: torch.Tensor,
    spacing: Sequence[float],
    voxel: float,
    rng: torch.Generator,
    *,
    noise: float,
    rician: bool,
) -> torch.Tensor:
    """Average to the acquired voxel size `spacing`, add noise there, interpolate back.

    Parameters
    ----------
    noise
        Standard deviation of the noise at the acquired voxel size, in units of the image.
    rician
        Noise of a magnitude image (Gudbjartsson and Patz, 1995), else Gaussian.
    """
    full = list(image.shape)
    width, depth, height = (
        max(4, round(length * voxel / max(space, voxel)))
        for length, space in zip(full, spacing, strict=True)
    )
    coarse = [width, depth, height]
    if coarse != full:
        image = functional.adaptive_avg_pool3d(image[None, None], (width, depth, height))[0, 0]
    if noise > 0:
        grain = torch.randn((2, *image.shape), generator=rng, device=rng.device) * noise
        real = image + grain[0]
        image = torch.hypot(real, grain[1]) if rician else real.clamp_min(0)
    if coarse != full:
        image = functional.interpolate(
            image[None, None], size=full, mode="trilinear", align_corners=False
        )[0, 0]
    return image
