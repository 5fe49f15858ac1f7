"""Checking that JSON has the entries and types that its reader relies on."""

from __future__ import annotations

import math
from typing import Any

Kind = Any
"""`str`, `int`, `float` (any finite number), a list of one kind, or a dict of kinds by key.

A key that ends in `?` may be absent; the key `*` means all others.
"""

_WORDS = {str: "text", int: "a whole number", float: "a number"}


def misfit(value: Any, kind: Kind, name: str) -> str:
    """Say in words where a value is not of its kind; empty if it is.

    >>> misfit({"Shape": [1, 2.5]}, {"Shape": [int], "Unit?": str}, "Grid")
    'Grid.Shape[1] is not a whole number'
    """
    if isinstance(kind, dict):
        return _object_misfit(value, kind, name)
    if isinstance(kind, list):
        if not isinstance(value, list):
            return f"{name} is not a list"
        misfits = (misfit(item, kind[0], f"{name}[{place}]") for place, item in enumerate(value))
        return next(filter(None, misfits), "")
    fits = isinstance(value, (int, float) if kind is float else kind)
    if fits and kind is not str:
        fits = not isinstance(value, bool) and math.isfinite(value)
    return "" if fits else f"{name} is not {_WORDS[kind]}"


def _object_misfit(value: Any, kinds: dict[str, Kind], name: str) -> str:
    if not isinstance(value, dict):
        return f"{name} is not an object"
    known = {key.removesuffix("?"): kind for key, kind in kinds.items()}
    misfits = (
        misfit(entry, known.get(key, kinds.get("*")), f"{name}.{key}")
        for key, entry in value.items()
        if key in known or "*" in kinds
    )
    required = (key for key in kinds if key != "*" and not key.endswith("?"))
    absent = (f"{name} has no {key}" for key in required if key not in value)
    return next(filter(None, (*misfits, *absent)), "")
