"""Image files of NIfTI and MGH: header first; nothing is read or allocated that a file cannot hold.

A header is parsed from its own few hundred bytes; extensions are left alone. Voxels are read into
memory, never mapped, and a gzip stream to its end, where its checksum stands.
"""

from __future__ import annotations

import gzip
import logging
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.volumeutils import apply_read_scaling

from siam_bids.errors import ImageError
from siam_bids.image.forms import Forms
from siam_bids.support.atomic_files import sha256
from siam_bids.support.input_files import regular_file

logger = logging.getLogger(__name__)

_READ_BYTES = 1 << 20
_MOST_PACKED = 1032
"""Bytes that deflate can make of one (zlib's documentation: the limit of its format)."""
_LONGEST_HEADER = 540
_GZIP = b"\x1f\x8b"
_ODD_HEADER = (
    nib.spatialimages.HeaderDataError,
    nib.wrapstruct.WrapStructError,
    ValueError,
    OverflowError,
)
_CHECKS = ("CRC check failed", "Incorrect length")
"""How Python words that the end of a gzip stream does not fit what was unpacked."""


@dataclass(frozen=True)
class ImageFile:
    """The header of an image file; its voxels are still on disk.

    Attributes
    ----------
    path
        The file.
    shape
        (I, J, K) or more.
    dtype
        Of the voxels as stored.
    affine
        (4, 4) float64, voxel (i, j, k) to RAS+ millimetres.
    offset
        Bytes before the first voxel, after decompression.
    slope, inter
        Scaling of the stored values.
    forms
        Both placements of a NIfTI header; None for MGH.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    affine: npt.NDArray[np.float64]
    offset: int
    slope: float = 1.0
    inter: float = 0.0
    forms: Forms | None = None

    @classmethod
    def open(cls, path: Path) -> ImageFile:
        """Read the header of a NIfTI or MGH file, packed with gzip or not, whatever its name.

        Raises
        ------
        ImageError
            Not a regular file with content, not of these formats, a header that cannot be
            understood, or one that declares more than the file can hold.
        """
        size = regular_file(path, ImageError)
        with _reading(path), _stream(path) as (stream, packed):
            start = stream.read(_LONGEST_HEADER)
        try:
            with np.errstate(all="ignore"):  # numbers of 1e38 mm
                found = cls._of_header(path, start)
        except KeyError as error:  # MGH
            raise _faulty(path, f"unknown type of voxels {error}") from error
        except _ODD_HEADER as error:
            raise _faulty(path, (str(error).splitlines() or [""])[0]) from error
        if packed != path.name.lower().endswith(("gz", ".mgz")):
            how = "compressed" if packed else "uncompressed"
            logger.warning("%s is %s, contrary to its name.", path.name, how)
        need = found.offset + math.prod(found.shape) * found.dtype.itemsize
        if need > size * (_MOST_PACKED if packed else 1):
            raise ImageError(
                f"{path.name} is damaged: {' x '.join(map(str, found.shape))} voxels need "
                f"{_amount(need)}, more than its {_amount(size)} can hold.",
                "Fetch or convert it again.",
            )
        return found

    @classmethod
    def _of_header(cls, path: Path, start: bytes) -> ImageFile:
        """Understand the first bytes of a file."""
        kind = _kind(start)
        if kind is None:
            raise ImageError(
                f"{path.name} cannot be read: it is damaged, or neither NIfTI nor MGH.",
                "Convert DICOM files with dcm2niix."
                if start[128:132] == b"DICM"
                else "Fetch or convert it again.",
            )
        if kind is nib.freesurfer.mghformat.MGHHeader:
            header = kind(start)
            affine, forms = np.asarray(header.get_affine(), dtype=np.float64), None
        else:
            header = kind(start[: kind.template_dtype.itemsize])
            if header["magic"].item()[:2] == b"ni":
                raise ImageError(
                    f"{path.name} is the header of a pair of files.", "Convert it to one .nii.gz."
                )
            forms = Forms.of_header(header)
            affine = _affine(path, header, forms)
        slope, inter = _scaling(path, header)
        offset = int(header.get_data_offset())
        if offset < 0:
            raise ValueError(f"the voxels begin at byte {offset}")
        shape = tuple(int(size) for size in header.get_data_shape())
        if not shape or min(shape) < 1:
            raise ValueError(f"its voxels are {shape}")
        return cls(path, shape, header.get_data_dtype(), affine, offset, slope, inter, forms)

    @classmethod
    def of_image(cls, image: nib.spatialimages.SpatialImage, path: Path) -> ImageFile:
        """Describe an image that nibabel opened; `path` names it in errors."""
        affine = np.asarray(image.affine, dtype=np.float64)
        forms = None
        if isinstance(image.header, nib.Nifti1Header):
            told = Forms.of_header(image.header)
            forms = told if np.allclose(affine, _affine(path, image.header, told)) else None
        shape = tuple(int(size) for size in image.shape)
        proxy = image.dataobj
        if isinstance(proxy, nib.arrayproxy.ArrayProxy):
            return cls(
                path, shape, proxy.dtype, affine, proxy.offset, proxy.slope, proxy.inter, forms
            )
        return cls(path, shape, image.get_data_dtype(), affine, 0, forms=forms)

    @property
    def volumes(self) -> int:
        """How many 3-D volumes it holds."""
        return math.prod(self.shape[3:])

    def read(self, index: int = 0) -> npt.NDArray[Any]:
        """Read one volume, scaled, as (I, J, K).

        Raises
        ------
        ImageError
            The file ends early, or its gzip stream is damaged.
        """
        length = math.prod(self.shape[:3]) * self.dtype.itemsize
        content = bytearray(length)
        with _reading(self.path), _stream(self.path) as (stream, packed):
            ahead = self.offset + index * length
            if packed:
                _skip(stream, ahead)
            else:
                stream.seek(ahead)
            _fill(stream, content)
            if packed:
                _finish(stream)
        data = np.frombuffer(content, self.dtype).reshape(self.shape[:3], order="F")
        return self.scaled(data)

    def scaled(self, data: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Apply the scaling of the header as nibabel does."""
        slope, inter = np.float64(self.slope), np.float64(self.inter)
        return apply_read_scaling(data, slope, inter)


def image_checksum(path: Path) -> str:
    """Return the SHA-256 of an image file, in hexadecimal.

    Raises
    ------
    ImageError
        It is not a regular file with content of its own.
    """
    regular_file(path, ImageError)
    return sha256(path)


def _amount(size: int) -> str:
    """Format a number of bytes in a suitable unit."""
    unit, factor = next(
        (unit, factor) for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1))
        if size >= factor
    )  # fmt: skip
    return f"{size / factor:.4g} {unit}"


def _kind(start: bytes) -> type[Any] | None:
    """Tell the format by the first bytes of a file, as the class of its header."""
    sizes = {int.from_bytes(start[:4], order) for order in ("little", "big")}
    if 348 in sizes and len(start) >= 348 and start[344:347] in (b"n+1", b"ni1"):
        return nib.Nifti1Header
    if 540 in sizes and len(start) >= 540 and start[4:7] in (b"n+2", b"ni2"):
        return nib.Nifti2Header
    if start[:4] == b"\0\0\0\1" and len(start) >= 284:
        return cast("type[Any]", nib.freesurfer.mghformat.MGHHeader)
    return None


def _faulty(path: Path, words: str) -> ImageError:
    if words.startswith("data code 1 "):
        return ImageError(
            f"{path.name} holds 1-bit voxels: it is a mask, not a scan.", "Leave it out."
        )
    return ImageError(
        f"{path.name} is damaged, its header is invalid: {words.rstrip('.')}.",
        "Fetch or convert it again.",
    )


def _affine(path: Path, header: nib.Nifti1Header, forms: Forms) -> npt.NDArray[np.float64]:
    """Choose the affine as nibabel does, skipping unusable forms."""
    if forms.sform is not None:
        return forms.sform
    declared = int(header["sform_code"]) > 0
    if forms.qform_code and forms.qform is not None:
        if declared:
            logger.warning("%s has an unusable sform; its qform is used.", path.name)
        return forms.qform
    if declared or int(header["qform_code"]) > 0:
        raise ImageError(f"{path.name} has no usable affine (sform/qform).", "Repair its header.")
    return np.asarray(header.get_base_affine(), dtype=np.float64)


def _scaling(path: Path, header: Any) -> tuple[float, float]:
    """Return slope and intercept; invalid ones are ignored, as in nifti1_io.c."""
    if isinstance(header, nib.Nifti1Header) and not np.isfinite(header["scl_inter"]):
        slope = float(header["scl_slope"])
        if slope and math.isfinite(slope):
            logger.warning("%s has no valid intercept (scl_inter): 0 is used.", path.name)
            return slope, 0.0
        return 1.0, 0.0
    slope, inter = header.get_slope_inter()
    return 1.0 if slope is None else float(slope), 0.0 if inter is None else float(inter)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say in one line why a file cannot be read to its end."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        what = "it ends early" if isinstance(error, EOFError) else "its gzip stream is broken"
        if isinstance(error, gzip.BadGzipFile) and str(error).startswith(_CHECKS):
            what = "its checksum is wrong"
        raise ImageError(
            f"{path.name} is damaged: {what}.", "Fetch or convert it again."
        ) from error
    except OSError as error:
        raise ImageError(f"{path.name} cannot be read: {error.strerror}.") from error


@contextmanager
def _stream(path: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """Open a file for reading, decompressed; also return whether it is compressed."""
    with path.open("rb") as raw:
        packed = raw.read(2) == _GZIP
        raw.seek(0)
        if not packed:
            yield raw, False
            return
        with gzip.GzipFile(fileobj=raw) as stream:
            yield cast("BinaryIO", stream), True


def _fill(stream: BinaryIO, content: bytearray) -> None:
    view, done = memoryview(content), 0
    while done < len(view):
        block = stream.read(min(_READ_BYTES, len(view) - done))
        if not block:
            raise EOFError
        view[done : done + len(block)] = block
        done += len(block)


def _skip(stream: BinaryIO, length: int) -> None:
    while length > 0:
        block = stream.read(min(_READ_BYTES, length))
        if not block:
            raise EOFError
        length -= len(block)


def _finish(stream: BinaryIO) -> None:
    """Read to the end of a gzip stream, so that its checksum and length are compared.

    What follows a whole stream and is none itself does no harm: gzip ignores it too.
    """
    try:
        while stream.read(_READ_BYTES):
            pass
    except gzip.BadGzipFile as error:
        if not str(error).startswith("Not a gzipped file"):
            raise
