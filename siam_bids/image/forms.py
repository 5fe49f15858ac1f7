"""The two placements in a NIfTI header, sform and qform, and what they disagree on.

NIfTI-1 keeps two coordinate systems, each with a code that says which space it leads to. Programs
differ in which one they follow, so a header whose forms disagree shows one head in two places.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import numpy.typing as npt

_MILLIMETRES = {1: 1000.0, 3: 0.001}
"""NIfTI codes of metres and micrometres, in mm. nibabel reads all numbers as mm, ITK does not."""
_SCALE = 1.01
_DISTANCE = 1.0
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Forms:
    """Placement of an image as its NIfTI header has it.

    Attributes
    ----------
    sform
        (4, 4) float64, voxel (i, j, k) to millimetres; None where it is unusable.
    sform_code, qform_code
        Which space each leads to (NIfTI-1 xform codes), 0 for none.
    quaternion, offset
        (b, c, d) and (x, y, z) of the qform.
    pixdim
        `pixdim[0:4]` of the header: qfac, then the edges of a voxel.
    units
        NIfTI code of the unit of length.
    """

    sform: npt.NDArray[np.float64] | None
    sform_code: int
    qform_code: int
    quaternion: tuple[float, float, float]
    offset: tuple[float, float, float]
    pixdim: tuple[float, float, float, float]
    units: int = 2

    @classmethod
    def of_header(cls, header: nib.Nifti1Header) -> Forms:
        """Read the forms of a NIfTI header; an unusable form loses its code.

        As the reference implementation does (nifti1_io.c), a quaternion that rounding left a
        little too long is brought to length 1.
        """
        b, c, d, x, y, z = (
            float(header[f"{name}"])
            for name in ("quatern_b", "quatern_c", "quatern_d", *(f"qoffset_{a}" for a in "xyz"))
        )
        length = math.hypot(b, c, d)
        if 1 < length < 1 + _ROUNDING:
            b, c, d = b / length, c / length, d / length
        qfac, i, j, k = (float(edge) for edge in header["pixdim"][:4])
        forms = cls(
            sform=np.asarray(header.get_sform(), dtype=np.float64),
            sform_code=int(header["sform_code"]),
            qform_code=int(header["qform_code"]),
            quaternion=(b, c, d),
            offset=(x, y, z),
            pixdim=(qfac, i, j, k),
            units=int(header["xyzt_units"]) % 8,
        )
        usable = forms.sform_code > 0 and _usable(forms.sform)
        placed = forms.qform_code > 0 and _usable(forms.qform)
        return cls(
            sform=forms.sform if usable else None,
            sform_code=forms.sform_code if usable else 0,
            qform_code=forms.qform_code if placed else 0,
            quaternion=forms.quaternion if placed else (0.0, 0.0, 0.0),
            offset=forms.offset if placed else (0.0, 0.0, 0.0),
            pixdim=forms.pixdim,
            units=forms.units,
        )

    @property
    def qform(self) -> npt.NDArray[np.float64] | None:
        """(4, 4) float64, voxel (i, j, k) to millimetres; None if it is not a rotation."""
        squared = sum(part * part for part in self.quaternion)
        if not squared < 1 + _ROUNDING or not self._sized:
            return None
        w = math.sqrt(max(0.0, 1.0 - squared))
        turn = nib.quaternions.quat2mat([w, *self.quaternion])
        edges = np.array(self.pixdim[1:]) * [1, 1, -1 if self.pixdim[0] < 0 else 1]
        return np.asarray(nib.affines.from_matvec(turn * edges, self.offset), dtype=np.float64)

    @property
    def _sized(self) -> bool:
        return all(0 < edge < math.inf for edge in self.pixdim[1:])

    def write_to(self, header: nib.Nifti1Header) -> None:
        """Put the same placement into another header."""
        header["pixdim"][:4] = self.pixdim
        header["qform_code"], header["sform_code"] = self.qform_code, self.sform_code
        for name, value in zip("bcd", self.quaternion, strict=True):
            header[f"quatern_{name}"] = value
        for axis, value in zip("xyz", self.offset, strict=True):
            header[f"qoffset_{axis}"] = value
        rows = np.zeros((3, 4)) if self.sform is None else self.sform[:3]
        for axis, row in zip("xyz", rows, strict=True):
            header[f"srow_{axis}"] = row
        header["xyzt_units"] = self.units or 2

    @property
    def scale(self) -> float:
        """How many times larger a voxel is by one part of the header than by another, >= 1.

        Along the edge that differs most, of sform and `pixdim`; or what the unit of length says.
        """
        factors = [_MILLIMETRES.get(self.units, 1.0)]
        if self.sform is not None and self._sized:
            edges = nib.affines.voxel_sizes(self.sform)
            factors += [float(one / two) for one, two in zip(edges, self.pixdim[1:], strict=True)]
        return max(max(factor, 1 / factor) for factor in factors if 0 < factor < math.inf)

    @property
    def flipped(self) -> bool:
        """Whether sform and qform disagree on left and right, or are mirror images."""
        if self.sform is None or self.qform is None or not self.qform_code:
            return False
        one, two = self.sform[:3, :3], self.qform[:3, :3]
        with np.errstate(all="ignore"):  # a form of 1e38 mm
            return bool(one[0] @ two[0] < 0 or np.linalg.det(one) * np.linalg.det(two) < 0)

    def distance(self, shape: tuple[int, int, int]) -> float:
        """Return how far apart in mm two forms of one space place a corner of the image.

        NaN where the codes name different spaces, as scanner and template: then both may be right.
        """
        if self.sform is None or self.qform is None or self.sform_code != self.qform_code:
            return math.nan
        corners = np.array([*itertools.product(*((0, n - 1) for n in shape))])
        apart = [nib.affines.apply_affine(form, corners) for form in (self.sform, self.qform)]
        return float(np.linalg.norm(apart[0] - apart[1], axis=1).max())

    def contradiction(self, shape: tuple[int, int, int]) -> str:
        """Describe the worst disagreement of the forms; empty if they agree."""
        if self.flipped:
            return "sform and qform disagree on left and right"
        if self.scale > _SCALE:
            return f"the sizes of its voxels (sform, pixdim, unit) differ {self.scale:.3g}-fold"
        if self.distance(shape) > _DISTANCE:
            return f"sform and qform lie {self.distance(shape):.0f} mm apart"
        return ""


def _usable(form: npt.NDArray[np.float64] | None) -> bool:
    """Return whether a form maps voxels to distinct positions."""
    if form is None or not np.isfinite(form).all():
        return False
    with np.errstate(all="ignore"):
        edges = np.linalg.norm(form[:3, :3], axis=0)
        return bool(abs(np.linalg.det(form[:3, :3])) > 1e-6 * edges.prod() > 0)
