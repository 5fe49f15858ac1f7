"""Rigid alignment of the scans of one person, whatever their contrasts.

What a network finds looks the same in every contrast. Two scans are therefore aligned by images of
the expected tissue, made of its probabilities: these have partial volume, so that borders are found
within a fraction of a voxel, and no bias field. Mutual information of the intensities, tried as a
last step, was no better on drawn heads (`benchmarks/person.md`). Motions are found in both
directions and averaged, so that neither scan is preferred (Reuter et al., NeuroImage 2010, 2012).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial.transform import Rotation

from siam_bids.image.labels import BRAIN, INTRACRANIAL, LabelTable
from siam_bids.image.transforms import TO_LPS, Affine, inverse, move

if TYPE_CHECKING:
    import SimpleITK as sitk  # noqa: N813 (its own name for itself)

_TISSUE = {
    "white_matter": 1.0,
    "brain": 1.0,
    "lesion": 0.9,
    "subcortical": 0.8,
    "cortex": 0.6,
    "cerebellum": 0.6,
    "ventricles": 0.0,
    "csf": 0.2,
}
"""Intensity of each role in the images of the expected tissue; 0.2 for what has none."""
_OUTSIDE = 0.2
_MARGIN = 6.0
"""Distance in mm around the brain in which the images are compared."""
_LEVELS = ((4.0, 3.0, 1.0), (2.0, 1.0, 0.2))
"""Voxel size and smoothing (standard deviation) in mm and share of voxels, coarse to fine."""
_ITERATIONS = 60
_LEAST_SEEN = 0.3
"""Share of the smaller brain that both scans must show."""

LEAST_LIKENESS = 0.78
"""Likeness below which two scans are not aligned.

0.5 to 0.72 if they are of different heads, 0.84 to 0.96 if not (`benchmarks/person.md`).
"""
LARGEST_INCONSISTENCY = 2.0
"""mm between the alignments of both directions, at most."""


@dataclass(frozen=True)
class Appearance:
    """What alignment looks at: a box of a scan around the brain.

    Attributes
    ----------
    tissue
        (I, J, K) float32, the expected tissue, see `expected_tissue`.
    brain
        (I, J, K) bool.
    affine
        (4, 4), voxel (i, j, k) to RAS+ millimetres.
    """

    tissue: npt.NDArray[np.float32]
    brain: npt.NDArray[np.bool_]
    affine: Affine

    @cached_property
    def centre(self) -> npt.NDArray[np.float64]:
        """Centre (3,) of the brain in mm."""
        return np.asarray(self.places.mean(0), np.float64)

    @cached_property
    def places(self) -> npt.NDArray[np.float64]:
        """Positions (N, 3) in mm of the voxels of the brain."""
        return move(self.affine, np.argwhere(self.brain))


@dataclass(frozen=True)
class Alignment:
    """A rigid motion from one scan to another, and how well they agree then.

    Attributes
    ----------
    matrix
        (4, 4), from positions in the one scan to positions in the other, RAS+ mm.
    likeness
        Correlation of the expected tissue over the brain, see `likeness`.
    inconsistency
        Largest distance in mm, over the brain, between the alignments found in both directions.
    """

    matrix: Affine
    likeness: float
    inconsistency: float

    @property
    def refusal(self) -> str:
        """Why this cannot be the same head in two scans; empty if it can."""
        if not self.likeness >= LEAST_LIKENESS:
            return (
                f"its tissues correlate only {self.likeness:.2f} with those of the other scans "
                f"({LEAST_LIKENESS:g} is needed)"
            )
        if not self.inconsistency <= LARGEST_INCONSISTENCY:
            return f"the alignments of both directions differ by {self.inconsistency:.1f} mm"
        return ""


def tissue_values(table: LabelTable) -> npt.NDArray[np.float32]:
    """Return the intensity of each label in images of the expected tissue, by place in the table.

    The expected tissue is the mean of these, weighted by the probabilities.
    """
    return np.array([_TISSUE.get(label.role, _OUTSIDE) for label in table], np.float32)


def brain_values(table: LabelTable) -> list[int]:
    """Return the places in the table of the brain's labels."""
    return [place for place, label in enumerate(table) if label.role in BRAIN]


def inside_values(table: LabelTable) -> list[int]:
    """Return the places in the table of all labels inside the skull."""
    return [place for place, label in enumerate(table) if label.role in INTRACRANIAL]


def align(one: Appearance, other: Appearance) -> Alignment:
    """Find the rigid motion from one scan to another of the same head."""
    start = _registered(one, other, _coarse(one, other), _LEVELS[:-1])
    there = _registered(one, other, start, _LEVELS[-1:])
    back = _registered(other, one, inverse(start), _LEVELS[-1:])
    apart = move(back @ there, one.places) - one.places
    matrix = mean_motion([there, inverse(back)], one.centre)
    return Alignment(
        matrix,
        likeness(one, other, matrix),
        float(np.linalg.norm(apart, axis=1).max()),
    )


def likeness(one: Appearance, other: Appearance, matrix: Affine, *, every: int = 5) -> float:
    """Return the correlation of both images of the expected tissue, where both scans see the brain.

    Parameters
    ----------
    matrix
        From positions in the one scan to positions in the other.
    every
        Of so many voxels of the other's brain one is looked at.

    Returns
    -------
    -1 where the scans hardly show the same part of the brain.
    """
    few = np.argwhere(other.brain)[::every]
    there = move(inverse(matrix @ one.affine) @ other.affine, few)
    seen = ((there >= -0.5) & (there <= np.array(one.tissue.shape) - 0.5)).all(1)
    smaller = min(abs(np.linalg.det(each.affine)) * each.brain.sum() for each in (one, other))
    if seen.sum() * every * abs(np.linalg.det(other.affine)) < _LEAST_SEEN * smaller:
        return -1.0
    found = ndimage.map_coordinates(one.tissue, there[seen].T, order=1, mode="nearest")
    own = other.tissue[tuple(few[seen].T)]
    return float(np.corrcoef(found, own)[0, 1]) if found.std() and own.std() else -1.0


def mean_motion(motions: Sequence[Affine], centre: npt.NDArray[np.float64]) -> Affine:
    """Average rigid motions: the mean rotation, and the mean of where they move `centre` (3,)."""
    found = np.eye(4)
    found[:3, :3] = Rotation.from_matrix([each[:3, :3] for each in motions]).mean().as_matrix()
    moved = np.mean([move(each, centre[None])[0] for each in motions], axis=0)
    found[:3, 3] = moved - found[:3, :3] @ centre
    return found


def halfway(to_first: Sequence[Affine], centre: npt.NDArray[np.float64]) -> list[Affine]:
    """Return motions from each scan to the space in the middle of all (Reuter et al., 2012).

    Parameters
    ----------
    to_first
        From each scan to the first one, which itself stays: the identity.
    centre
        (3,) of the brain in the first scan, mm.
    """
    out = mean_motion([inverse(each) for each in to_first], centre)
    return [out @ each for each in to_first]


def _coarse(moving: Appearance, fixed: Appearance) -> Affine:
    """Choose where to start: as the scanner says, with the centres aligned, or rotated also."""
    shift = np.eye(4)
    shift[:3, 3] = fixed.centre - moving.centre
    starts = [np.eye(4), shift]
    axes = [_principal_axes(each.places) for each in (moving, fixed)]
    for signs in itertools.product((-1.0, 1.0), repeat=2):
        flips = np.diag([*signs, signs[0] * signs[1]])
        turn = np.eye(4)
        turn[:3, :3] = axes[1] @ flips @ axes[0].T
        turn[:3, 3] = fixed.centre - turn[:3, :3] @ moving.centre
        starts.append(turn)
    return max(starts, key=lambda start: likeness(moving, fixed, start, every=97))


def _principal_axes(places: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    _, axes = np.linalg.eigh(np.cov(places.T))
    axes[:, 0] *= np.sign(np.linalg.det(axes))
    return axes


def _registered(
    moving: Appearance,
    fixed: Appearance,
    start: Affine,
    levels: Sequence[tuple[float, float, float]],
) -> Affine:
    """Register with SimpleITK, from a start near the answer."""
    import SimpleITK as sitk  # noqa: N813 - late: a tenth of a second

    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)  # sums in one order: the same result on every machine
    near = ndimage.distance_transform_edt(~fixed.brain, sampling=_sizes(fixed.affine)) <= _MARGIN
    mask = sitk.Cast(_as_sitk(near.astype(np.float32), fixed.affine), sitk.sitkUInt8)
    method.SetMetricFixedMask(mask)
    method.SetMetricAsCorrelation()
    method.SetInterpolator(sitk.sitkLinear)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentagePerLevel([share for _, _, share in levels], seed=1)
    smallest = min(_sizes(fixed.affine))
    method.SetShrinkFactorsPerLevel([max(1, round(size / smallest)) for size, _, _ in levels])
    method.SetSmoothingSigmasPerLevel([sigma for _, sigma, _ in levels])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0,
        minStep=0.005,
        numberOfIterations=_ITERATIONS,
        relaxationFactor=0.6,
        gradientMagnitudeTolerance=1e-8,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    transform = sitk.Euler3DTransform()
    transform.SetCenter((TO_LPS[:3, :3] @ fixed.centre).tolist())
    back = TO_LPS @ inverse(start) @ TO_LPS
    transform.SetMatrix(back[:3, :3].ravel().tolist(), 1e-6)
    centre = np.array(transform.GetCenter())
    transform.SetTranslation((back[:3, :3] @ centre + back[:3, 3] - centre).tolist())
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(*(_as_sitk(each.tissue, each.affine) for each in (fixed, moving)))
    except RuntimeError:  # too few voxels of one lie within the other
        return start
    rotation = np.reshape(transform.GetMatrix(), (3, 3))
    found = np.eye(4)
    found[:3, :3] = rotation
    found[:3, 3] = centre + np.array(transform.GetTranslation()) - rotation @ centre
    return inverse(TO_LPS @ found @ TO_LPS)


def _sizes(affine: Affine) -> list[float]:
    return [float(size) for size in np.linalg.norm(affine[:3, :3], axis=0)]


def _as_sitk(data: npt.NDArray[np.float32], affine: Affine) -> sitk.Image:
    import SimpleITK as sitk  # noqa: N813

    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T))
    lps = TO_LPS @ affine
    sizes = _sizes(affine)
    image.SetSpacing(sizes)
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / sizes).ravel().tolist())
    return image
