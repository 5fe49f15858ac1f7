"""What a run would do and what it would cost, without doing it: `--dry-run`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from siam_bids.config import RunConfig
from siam_bids.image.grid import Grid
from siam_bids.inference.cascade import Cascade
from siam_bids.inference.cost import Cost
from siam_bids.inference.device import choose_device
from siam_bids.pipelines.todo import Prospect, survey


@dataclass(frozen=True, kw_only=True)
class Step:
    """What would become of one file.

    Attributes
    ----------
    path
        From the root of the dataset.
    action
        `segment`, `done`, `fail` (judging by its header) or `skip`.
    why
        The reason; empty where it is done.
    cost
        Of a scan that would be segmented.
    """

    path: str
    action: str
    why: str = ""
    cost: Cost | None = None

    def line(self) -> str:
        """Return action, path, seconds, GB of memory and reason, separated by tabs."""
        seconds = f"{self.cost.seconds:.0f}" if self.cost else "n/a"
        memory = f"{self.cost.memory / 1e9:.1f}" if self.cost else "n/a"
        return "\t".join((self.action, self.path, seconds, memory, self.why or "n/a"))


HEADER = "action\tscan\tseconds\tmemory_GB\twhy"


def plan(config: RunConfig) -> list[Step]:
    """Return what a run would do with every image in the `anat` folders of the query, by path.

    Contents of finished scans are compared by checksum, of the others only headers are read.

    Raises
    ------
    SiamError
        The dataset, the model or the options are unusable.
    """
    cascade, prospects, found = survey(config)
    cost = _estimator(cascade, config)
    steps = [_step(prospect, cost) for prospect in prospects]
    steps += [Step(path=path, action="fail", why=why) for path, why in found.refused.items()]
    steps += [Step(path=path, action="skip", why=why) for path, why in found.skipped.items()]
    return sorted(steps, key=lambda step: step.path)


def summary(steps: list[Step]) -> str:
    """Return one line on what a run would do, its time and its memory."""
    count = dict.fromkeys(("segment", "done", "fail", "skip"), 0)
    for step in steps:
        count[step.action] += 1
    text = (
        f"{count['segment']} to segment, {count['done']} already done, "
        f"{count['fail']} cannot be read, {count['skip']} skipped."
    )
    costs = [step.cost for step in steps if step.cost]
    if costs:
        seconds = costs[0].start + sum(cost.seconds for cost in costs)
        memory = max(cost.memory for cost in costs)
        text += f" About {_duration(seconds)} and {memory / 1e9:.1f} GB of memory."
    return text


def _step(prospect: Prospect, cost: Callable[[Grid], Cost]) -> Step:
    path = prospect.scan.relative
    if prospect.grid:
        return Step(path=path, action="segment", why=prospect.why, cost=cost(prospect.grid))
    return Step(path=path, action="fail" if prospect.error else "done", why=prospect.error)


def _estimator(cascade: Cascade, config: RunConfig) -> Callable[[Grid], Cost]:
    """Return a function that estimates the cost of a scan, once for each scan size."""
    device = choose_device(config.device)
    cascade.check_device(device, config.inference)
    cpus = config.threads or torch.get_num_threads()
    known: dict[tuple[tuple[int, ...], tuple[float, ...]], Cost] = {}

    def cost(grid: Grid) -> Cost:
        size = grid.shape, tuple(round(edge, 3) for edge in grid.voxel_size)
        if size not in known:
            known[size] = cascade.estimate([grid], device, config.inference, cpus=cpus)
        return known[size]

    return cost


def _duration(seconds: float) -> str:
    """Return seconds in a readable unit."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
