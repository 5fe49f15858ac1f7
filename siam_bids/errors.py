"""The errors a user can meet: what happened, where, and what to do about it."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from difflib import get_close_matches


class SiamError(Exception):
    """Base of all errors that are shown to the user as one line.

    Parameters
    ----------
    message
        What is wrong and where, as one sentence that names the file or option.
    hint
        What to do about it, as one sentence. Empty where the message says it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".strip())
        self.message = message
        self.hint = hint


class UsageError(SiamError):
    """Options that cannot be fulfilled, or that contradict each other."""

    exit_code = 2


class UnknownColumnError(UsageError):
    """An option names a column that no table has."""


class DatasetError(SiamError):
    """The input is not a usable BIDS dataset, or nothing in it matches the query."""

    exit_code = 3


class ImageError(SiamError):
    """One image cannot be read or is not a head image that can be segmented."""

    exit_code = 4


class LabelError(SiamError):
    """A label map holds values that its label table does not name."""

    exit_code = 5


class ModelError(SiamError):
    """A model folder is missing, incomplete, corrupt or does not match its checksum."""

    exit_code = 6


def out_of_memory(error: Exception) -> bool:
    """Return whether an error means out of memory; torch and the loader say so only in words."""
    words = ("not enough memory", "can't allocate", "bad_alloc", "can't start new thread")
    unloaded = ("failed to map segment", "cannot allocate memory", "shared object descriptor")
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))
        or (isinstance(error, ImportError) and any(word in str(error).lower() for word in unloaded))
    )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a question that names the known word closest to this one; empty if none is close."""
    lowered = {name.lower(): name for name in known}
    close = get_close_matches(word.lower(), lowered, 1, 0.7)
    return f"Did you mean {lowered[close[0]]}?" if close else ""


def known_names(word: str, known: Iterable[str], kind: str, most: int = 12) -> str:
    """Return a hint on an unknown name: the known ones, or where these are many the closest.

    Parameters
    ----------
    kind
        What they are, in the plural.
    """
    names = [*known]
    if len(names) <= most:
        return f"There are: {', '.join(names)}."
    lowered = {name.lower(): name for name in names}
    close = [lowered[name] for name in get_close_matches(word.lower(), lowered, 3, 0.6)]
    if close:
        return f"Did you mean {' or '.join(close)}? There are {len(names)} {kind}."
    first = ", ".join(names[: most // 2])
    return f"There are {len(names)} {kind}: {first} and {len(names) - most // 2} more."
