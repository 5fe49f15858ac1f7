"""Checkpoints: reading weights without running code, and their conversion."""

from __future__ import annotations

import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from siam_bids.errors import ModelError
from siam_bids.models.folder import CONVERTED, fold_weights
from siam_bids.support.atomic_files import atomic
from siam_bids.support.input_files import regular_file


class _NotKept:
    """Stands in a checkpoint for whatever numpy made: training logs, which nobody here reads.

    So no function of numpy is called, whose `scalar` would unpickle what it is given.
    """

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


_NUMPY = (
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",  # numpy 1
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",  # numpy 2
    "numpy._core.multiarray._reconstruct",
)
"""What stock nnU-Net checkpoints name besides torch's own: plain numbers of training logs."""

_BROKEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
)
"""What reading a damaged or a hostile file may raise."""

_REAL = {
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int32: "I32",
    torch.int64: "I64",
}
"""Types that weights and counters may have, and their names in safetensors files."""

_LARGEST_DESCRIPTION = 1 << 28  # bytes; training logs of 4000 epochs are 1 MB


@dataclass(frozen=True)
class Checkpoint:
    """The description of one fold's weights.

    Attributes
    ----------
    path
        The file.
    configuration
        Configuration of plans.json it was trained with; empty if unknown.
    mirror_axes
        Axes (0 to 2) along which tiles may be mirrored.
    shapes
        Of each array of weights, by name.
    """

    path: Path
    configuration: str
    mirror_axes: tuple[int, ...]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read the description of a checkpoint, or of its conversion, without its weights.

        Raises
        ------
        ModelError
            See `load_weights`; or axes or the name of the configuration are of no such kind.
        """
        regular_file(path, ModelError)
        found = _of_safetensors(path) if path.suffix == ".safetensors" else _of_pickle(path)
        if not found.real or not _some_finite(found.rows):
            raise ModelError(f"{path} holds weights that are not finite real numbers.")
        if not isinstance(found.configuration, str):
            raise ModelError(f"{path} does not say in which configuration it was trained.")
        if not _are_axes(found.axes):
            raise ModelError(f"{path} allows mirroring along axes that are not 0, 1 or 2.")
        return cls(path, found.configuration, tuple(found.axes), found.shapes)


@dataclass(frozen=True, kw_only=True)
class _Description:
    """What a file says of itself, unchecked.

    Attributes
    ----------
    real
        Whether all weights are of types that weights may have.
    rows
        The first row of each array of weights.
    """

    shapes: dict[str, tuple[int, ...]]
    real: bool
    rows: list[torch.Tensor]
    configuration: Any
    axes: Any


def _of_safetensors(path: Path) -> _Description:
    try:
        with safe_open(path, "pt") as content:
            about = _metadata(content)
            slices = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118
            shapes = {name: tuple(each.get_shape()) for name, each in slices.items()}
            real = all(each.get_dtype() in _REAL.values() for each in slices.values())
            rows = [slices[name][:1] for name, shape in shapes.items() if shape and real]
        shapes |= {name: shapes[original] for name, original in about["aliases"].items()}
    except _BROKEN as error:
        raise ModelError(f"{path} is damaged: {_plain(error)}.") from error
    return _Description(
        shapes=shapes,
        real=real,
        rows=rows,
        configuration=about["configuration"],
        axes=about["mirror_axes"],
    )


def _of_pickle(path: Path) -> _Description:
    content = _unpickled(path, mmap=True)
    weights = _named(path, content.get("network_weights"))
    given = content.get("init_args")
    return _Description(
        shapes={name: tuple(value.shape) for name, value in weights.items()},
        real=all(value.dtype in _REAL for value in weights.values()),
        rows=[value[:1] for value in weights.values() if value.ndim],
        configuration=given.get("configuration", "") if isinstance(given, dict) else "",
        axes=content.get("inference_allowed_mirroring_axes") or (),
    )


def _are_axes(given: Any) -> bool:
    """Tell whether these are different ones of the axes 0, 1 and 2."""
    known = isinstance(given, list | tuple) and all(
        type(axis) is int and 0 <= axis <= 2 for axis in given
    )
    return known and len(set(given)) == len(given)


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read the network weights of a checkpoint, or of its conversion, executing no code in it.

    Raises
    ------
    ModelError
        The file is damaged, is not an nnU-Net checkpoint, or names more than tensors and numbers.
    """
    weights = _read_weights(path)
    for value in weights.values():
        if value.dtype not in _REAL or not bool(value.isfinite().all()):
            raise ModelError(f"{path} holds weights that are not finite real numbers.")
    return weights


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    regular_file(path, ModelError)
    if path.suffix != ".safetensors":
        return _named(path, _unpickled(path).get("network_weights"))
    try:
        with safe_open(path, "pt") as content:
            aliases = _metadata(content)["aliases"]
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        return {**tensors, **{name: tensors[original] for name, original in aliases.items()}}
    except _BROKEN as error:
        raise ModelError(f"{path} is damaged: {_plain(error)}.") from error


def _some_finite(rows: Sequence[torch.Tensor]) -> bool:
    """Tell whether any array of weights begins with a finite number, by its first row."""
    first = [row.flatten()[:1] for row in rows if row.is_floating_point() and row.numel()]
    return not first or any(bool(value.isfinite()) for value in first)


def mirror_axes(path: Path) -> tuple[int, ...]:
    """Return the axes (0 to 2) along which a fold may be mirrored, from its checkpoint."""
    return Checkpoint.read(path).mirror_axes


def _metadata(content: Any) -> dict[str, Any]:
    """Return what `convert_checkpoints` noted; older versions of it did so of less."""
    about = content.metadata() or {}
    aliases = json.loads(about["aliases"])
    return {
        "aliases": dict(aliases),
        "mirror_axes": json.loads(about.get("mirror_axes", "[]")),
        "configuration": about.get("configuration", ""),
    }


def _unpickled(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """Return the content of a checkpoint; with `mmap`, its arrays are not read."""
    stand_ins: list[Any] = [(_NotKept, name) for name in _NUMPY]
    try:
        _check_archive(path)
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd pickles
            if names := torch.serialization.get_unsafe_globals_in_checkpoint(path):
                what = ", ".join(sorted(_plain(name) for name in names)[:3])
                raise ModelError(
                    f"{path} is not a usable checkpoint: it names {what}, "
                    "which may run code; only tensors and numbers are read."
                )
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} is not a usable checkpoint: it holds more than tensors and numbers."
        ) from error
    except _BROKEN as error:
        raise ModelError(f"{path} is not a usable checkpoint: {_plain(error)}.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is not a usable checkpoint: it is not nnU-Net's.")
    return content


def _check_archive(path: Path) -> None:
    """Refuse what is not stored as torch stores it: as an archive no larger than its parts."""
    if not zipfile.is_zipfile(path):
        raise ValueError("it is cut off, or was not written by PyTorch 1.6 or newer")
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    if sum(part.file_size for part in parts) > path.stat().st_size:
        raise ValueError("its parts are larger than the file")
    described = [part.file_size for part in parts if part.filename.endswith("/data.pkl")]
    if max(described, default=0) > _LARGEST_DESCRIPTION:
        raise ValueError(f"the description in it is {max(described) / 1e6:.0f} MB large")


def _named(path: Path, weights: Any) -> dict[str, torch.Tensor]:
    """Return weights without the prefixes that compiling and several GPUs add to their names."""
    if not isinstance(weights, dict) or not weights:
        raise ModelError(f"{path} is not a usable checkpoint: it has no table of network_weights.")
    found = {}
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ModelError(f"{path} is not a usable checkpoint: network_weights are not tensors.")
        plain = torch.Tensor.detach(value)
        stored = plain.layout == torch.strided and plain.device.type == "cpu"
        stored = stored and not (plain.is_quantized or plain.is_nested)
        if not stored or plain.numel() * plain.itemsize > plain.untyped_storage().nbytes():
            raise ModelError(
                f"{path} is not a usable checkpoint: it does not hold all its weights."
            )
        found[_bare(name)] = plain
    if len(found) < len(weights):
        raise ModelError(f"{path} is not a usable checkpoint: it has two arrays of one name.")
    return found


def _bare(name: str) -> str:
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while parts[:1] == ["module"]:
        parts = parts[1:]
    return ".".join(parts)


def _plain(error: object) -> str:
    """Return the first line of a message, printable and short."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return "".join(letter if letter.isprintable() else "?" for letter in line)[:200].rstrip(".")


def convert_checkpoints(folder: Path) -> None:
    """Replace every checkpoint of a model folder by a safetensors file of its network weights.

    That leaves out the optimiser's state and anything that could hold code. Weights are written
    in float16 where that loses nothing, else in float32, so the network stays the same.

    Raises
    ------
    ModelError
        A checkpoint is unusable, see `load_weights`.
    """
    for path in fold_weights(folder):
        if path.name == CONVERTED:
            continue
        tensors: dict[str, torch.Tensor] = {}
        aliases: dict[str, str] = {}  # nnU-Net lists each layer under several names
        names: dict[tuple[Any, ...], str] = {}
        for name, value in load_weights(path).items():
            place = (value.data_ptr(), value.shape, value.stride(), value.dtype)
            first = names.setdefault(place, name) if value.numel() else name
            if first == name:
                tensors[name] = _halved(value)
            else:
                aliases[name] = first
        about = Checkpoint.read(path)
        notes = {
            "aliases": json.dumps(aliases),
            "mirror_axes": json.dumps(about.mirror_axes),
            "configuration": about.configuration,
        }
        with atomic(path.with_name(CONVERTED)) as scratch:
            save_file(tensors, scratch, notes)
        path.unlink()


def _halved(weights: torch.Tensor) -> torch.Tensor:
    if not weights.is_floating_point():
        return weights.contiguous()
    half = weights.half()
    return (half if torch.equal(half.to(weights.dtype), weights) else weights).contiguous()
