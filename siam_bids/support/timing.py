"""Seconds by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from siam_bids.support.memory import (
    peak_memory,
)


class Meter:
    """Adds up the wall seconds of named stages.

    Stages of several scans run at once in one process, so `peak_memory` covers the neighbours
    too: it is what the job needed while this scan was worked on.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block under a name."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begin

    def summary(self) -> dict[str, Any]:
        """Return seconds in all and by stage, and the peak memory since `reset_peak_memory`."""
        return {
            "seconds": round(sum(self.seconds.values()), 1),
            "stages": {name: round(value, 2) for name, value in self.seconds.items()},
            "peak_memory_MB": round(peak_memory() / 1e6),
        }
