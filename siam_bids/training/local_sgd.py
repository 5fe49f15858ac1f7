"""Training in several processes, one or more cores each, that agree on the weights now and then.

Small networks keep few cores busy: two processes of one core train nearly twice as many patches as
one process of two. Each trains alone on its own images; every other minute the processes meet and
continue from the mean of their weights (local SGD: Stich, ICLR 2019).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import distributed

MEETING = 120.0
"""Seconds of training between two meetings."""


@dataclass(frozen=True)
class Replicas:
    """The processes of one session.

    Attributes
    ----------
    rank, count
        Which of how many this is; the first keeps the state on disk.
    """

    rank: int = 0
    count: int = 1

    @contextmanager
    def at(self, meeting_point: Path) -> Iterator[Replicas]:
        """Connect to the other processes; `meeting_point` is a file that is not there yet."""
        if Path("/sys/class/net/lo").exists():
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # whatever the host's name means
        distributed.init_process_group(
            "gloo", init_method=meeting_point.as_uri(), rank=self.rank, world_size=self.count
        )
        try:
            yield self
        finally:
            distributed.destroy_process_group()

    def leg(
        self,
        seconds: float,
        state: Callable[[], Sequence[torch.Tensor]],
        every: float = MEETING,
    ) -> Iterator[float]:
        """Yield the elapsed share of a session, until it is over for all processes.

        Parameters
        ----------
        seconds
            Length of the session.
        state
            Returns the tensors, in the same order in all processes, that are averaged in place
            every `every` seconds and at the end.
        """
        begin, meetings = time.monotonic(), 0
        share = 0.0
        while True:
            yield share
            passed = time.monotonic() - begin
            share = min(1.0, passed / seconds)
            if self.count > 1 and (share == 1 or passed // every > meetings):
                self._average(state())
                share, meetings = self._latest(share, passed // every)
            if share == 1:
                return

    def _average(self, tensors: Sequence[torch.Tensor]) -> None:
        with torch.no_grad():
            flat = torch.cat([tensor.reshape(-1).float().cpu() for tensor in tensors])
            distributed.all_reduce(flat)
            parts = (flat / self.count).split([tensor.numel() for tensor in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def _latest(self, share: float, meetings: float) -> tuple[float, int]:
        """Return the share and count of meetings of whoever is furthest."""
        found = torch.tensor([share, meetings], dtype=torch.float64)
        distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
        return float(found[0]), int(found[1])
