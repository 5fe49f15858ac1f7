"""What a value read from JSON may be: small checks that are put together into tables.

Each check takes a value and what it is called, and returns the value, or raises `ValueError` with
one sentence that names both.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any, str], Any]

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def shown(value: Any) -> str:
    """Return a value of unknown origin as short printable text."""
    return _SHORT.repr(value)


def whole(low: int, high: int) -> Check:
    """Allow whole numbers from `low` to `high`; truth values are none."""

    def check(value: Any, what: str) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"{what} is {shown(value)}, not a whole number from {low} to {high}")
        return value

    return check


def number(low: float = -math.inf, high: float = math.inf) -> Check:
    """Allow finite numbers from `low` to `high`; truth values are none."""

    def check(value: Any, what: str) -> float:
        fits = type(value) in (int, float) and low <= value <= high
        if not fits or not abs(value) < 1e300:
            bounds = f" from {low:g} to {high:g}" if math.isfinite(low) else ""
            raise ValueError(f"{what} is {shown(value)}, not a number{bounds}")
        return float(value)

    return check


def flag(value: Any, what: str) -> bool:
    """Allow true and false."""
    if type(value) is not bool:
        raise ValueError(f"{what} is {shown(value)}, neither true nor false")
    return value


def one_of(*allowed: Any) -> Check:
    """Allow these values alone."""

    def check(value: Any, what: str) -> Any:
        for each in allowed:
            if type(value) is type(each) and value == each:
                return each
        known = ", ".join(str(each) for each in allowed)
        raise ValueError(f"{what} is {shown(value)}; known: {known}")

    return check


def optional(inner: Check) -> Check:
    """Allow null too."""
    return lambda value, what: None if value is None else inner(value, what)


def listed(inner: Check, length: int | None = None) -> Check:
    """Allow lists of such values, of `length` where that is given."""

    def check(value: Any, what: str) -> list[Any]:
        if not isinstance(value, list) or (length is not None and len(value) != length):
            of = "" if length is None else f" of {length}"
            raise ValueError(f"{what} is {shown(value)}, not a list{of}")
        return [inner(each, f"an entry of {what}") for each in value]

    return check


def repeated(inner: Check, length: int) -> Check:
    """Allow a list of `length` such values, or one whole number that stands for all of them."""
    many = listed(inner, length)
    return lambda value, what: (
        [inner(value, what)] * length if type(value) is int else many(value, what)
    )


def table(value: Any, what: str) -> dict[str, Any]:
    """Allow JSON objects."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {shown(value)}, not an object")
    return value


def keywords(known: Mapping[str, Check], needed: frozenset[str] = frozenset()) -> Check:
    """Allow objects with `known` keys, each of its kind, `needed` ones among them; null is {}."""

    def check(value: Any, what: str) -> dict[str, Any]:
        given = table({} if value is None else value, what)
        for name in given:
            if name not in known:
                raise ValueError(f"{what} has the unknown entry {shown(name)}")
        for name in sorted(needed - set(given)):
            raise ValueError(f"{what} lacks {name}")
        return {name: known[name](each, f"{name} in {what}") for name, each in given.items()}

    return check
