"""What a run would do and what it would cost, without doing it: `--dry-run`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import torch

from siam_bids.bids.names import sidecar
from siam_bids.bids.ownership import PIPELINE
from siam_bids.bids.scan import Scan
from siam_bids.config import RunConfig
from siam_bids.errors import DatasetError, SiamError
from siam_bids.image.grid import Grid
from siam_bids.inference.cascade import Cascade
from siam_bids.inference.cost import Cost
from siam_bids.inference.device import choose_device
from siam_bids.pipelines.failures import reason_of
from siam_bids.pipelines.person import consensus_scan
from siam_bids.pipelines.todo import Checklist, Combination, Prospect, prepare


@dataclass(frozen=True, kw_only=True)
class Step:
    """What would become of one file, or of the consensus of a session.

    Attributes
    ----------
    path
        From the root of the dataset; of a consensus its name in place of a scan's.
    action
        `segment`, `combine` (a consensus), `done`, `fail` (judging by its header) or `skip`.
    why
        The reason; empty where it is done, unless its networks are to run again for others.
    cost
        Of a scan that the networks would see.
    kept
        It fails because results were edited, or are not known, and are kept.
    """

    path: str
    action: str
    why: str = ""
    cost: Cost | None = None
    kept: bool = False

    def line(self) -> str:
        """Return action, path, seconds, GB of memory and reason, separated by tabs."""
        seconds = f"{self.cost.seconds:.0f}" if self.cost else "n/a"
        memory = f"{self.cost.memory / 1e9:.1f}" if self.cost else "n/a"
        return "\t".join((self.action, self.path, seconds, memory, self.why or "n/a"))


HEADER = "action\tscan\tseconds\tmemory_GB\twhy"


def plan(config: RunConfig) -> list[Step]:
    """Return what a run would do with every image in the `anat` folders of the query, by path.

    With `--combine`, also what it would do with the consensus of each session.

    Contents of finished scans are compared by checksum, of the others only headers are read.

    Raises
    ------
    SiamError
        The dataset, the model or the options are unusable.
    """
    checklist, found = prepare(config)
    prospects = {scan: checklist.prospect(scan) for scan in found.scans}
    cost = _estimator(checklist.cascade, config)
    steps: list[Step] = []
    for combination in dict.fromkeys(checklist.combinations.values()):
        steps += _combined(checklist, combination, prospects)
    steps += [_step(prospect, cost) for prospect in prospects.values()]
    steps += [Step(path=path, action="fail", why=why) for path, why in found.refused.items()]
    steps += [Step(path=path, action="skip", why=why) for path, why in found.skipped.items()]
    return sorted(steps, key=lambda step: step.path)


def summary(steps: list[Step]) -> str:
    """Return one line on what a run would do, its time and its memory."""
    count = Counter(step.action for step in steps)
    agreed = f"{count['combine']} consensus to make, " if count["combine"] else ""
    kept = sum(step.kept for step in steps)
    edited = f"{kept} kept because edited or not made by {PIPELINE}, " if kept else ""
    text = (
        f"{count['segment']} to segment, {agreed}{count['done']} already done, {edited}"
        f"{count['fail'] - kept} cannot be read, {count['skip']} skipped."
    )
    costs = [step.cost for step in steps if step.cost]
    if costs:
        seconds = costs[0].start + sum(cost.seconds for cost in costs)
        memory = max(cost.memory for cost in costs)
        text += f" About {_duration(seconds)} and {memory / 1e9:.1f} GB of memory."
    return text


def _combined(
    checklist: Checklist, combination: Combination, prospects: dict[Scan, Prospect]
) -> list[Step]:
    """Return what would become of each consensus; say which finished scans are needed for others.

    Parameters
    ----------
    prospects
        Of all scans; those of the combination are replaced where others change them.
    """
    seen = [
        scan
        for scan in combination.scans
        if not prospects[scan].error and not prospects[scan].again
    ]
    done = [scan for scan in seen if not prospects[scan].why]
    for scan in done:
        if why := checklist.lacked(scan, seen):
            prospects[scan] = checklist.needed(scan, why)
    new = [scan for scan in seen if prospects[scan].why]
    planned = [
        _consensus(checklist, [scan for scan in session if not prospects[scan].again], new)
        for session in combination.sessions
        if any(not prospects[scan].again for scan in session)
    ]
    steps = [step for step in planned if step]
    if new or any(step.action == "combine" for step in steps):
        prospects |= {scan: checklist.needed(scan, "") for scan in done if not prospects[scan].why}
    return steps


def _consensus(checklist: Checklist, session: Sequence[Scan], new: Sequence[Scan]) -> Step | None:
    scan = consensus_scan(session)
    path = (PurePosixPath(scan.relative).parent / scan.name).as_posix()
    try:
        why = checklist.consensus_why(session, new)
    except (SiamError, OSError) as error:
        kept = isinstance(error, DatasetError)
        return Step(path=path, action="fail", why=reason_of(error), kept=kept)
    if why:
        return Step(path=path, action="combine", why=why)
    there = sidecar(checklist.names(scan).segmentation).is_file()
    return Step(path=path, action="done") if there else None


def _step(prospect: Prospect, cost: Callable[[Grid], Cost]) -> Step:
    path = prospect.scan.relative
    if prospect.error:
        return Step(path=path, action="fail", why=prospect.error, kept=prospect.kept)
    if not prospect.grid:
        return Step(path=path, action="done")
    return Step(
        path=path,
        action="segment" if prospect.why else "done",
        why=prospect.why or "its networks run again for the scans combined with it",
        cost=cost(prospect.grid),
    )


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
