"""Scans of one participant that share a prior: what is kept between the two passes over them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from siam_bids.bids.scan import CONSENSUS, BidsName, Scan
from siam_bids.bids.status import COMBINED_AS
from siam_bids.image.grid import Segmentation, Volume
from siam_bids.image.labels import LabelTable
from siam_bids.image.transforms import Affine
from siam_bids.inference.combining import Shared
from siam_bids.inference.person import (
    Coarse,
    Together,
    align_scans,
    coarse_scores,
    consensus,
)
from siam_bids.inference.prediction import NetworkScores
from siam_bids.support.tsv import some

logger = logging.getLogger(__name__)


class Kept:
    """What the networks said of the scans of one participant.

    The logits are on disk; in memory are those of a coarse grid.

    Parameters
    ----------
    scratch
        Returns a folder of its own.
    """

    def __init__(self, scratch: Callable[[], Path], labels: LabelTable) -> None:
        self._scratch, self._labels = scratch, labels
        self.coarse: dict[Scan, Coarse | None] = {}
        self._without: dict[Scan, NetworkScores] = {}

    def add(self, scan: Scan, volume: Volume, seen: NetworkScores) -> None:
        """Keep the scores of a scan."""
        tensors = seen.prior.tensors()
        torch.save(tensors, self._path(scan))
        self.coarse[scan] = coarse_scores(volume, seen, self._labels)
        nothing = (torch.empty(0) for _ in tensors)
        self._without[scan] = replace(seen, prior=seen.prior.with_tensors(nothing))

    def scores(self, scan: Scan) -> NetworkScores:
        """Return the scores of a scan."""
        seen = self._without[scan]
        tensors = torch.load(self._path(scan), weights_only=True)
        return replace(seen, prior=seen.prior.with_tensors(iter(tensors)))

    def remove(self, scan: Scan) -> None:
        """Forget a scan."""
        self._path(scan).unlink()
        del self.coarse[scan], self._without[scan]

    @cached_property
    def _folder(self) -> Path:
        return self._scratch()

    def _path(self, scan: Scan) -> Path:
        return self._folder / f"{hashlib.sha256(scan.name.encode()).hexdigest()}.pt"


@contextmanager
def keeping(labels: LabelTable) -> Iterator[Kept]:
    """Keep scores in a scratch folder while the context lasts."""
    with ExitStack() as stack:

        def scratch() -> Path:
            return Path(stack.enter_context(TemporaryDirectory(prefix="siam-bids-")))

        yield Kept(scratch, labels)


class Person:
    """The aligned scans of a combination, and their mean.

    Parameters
    ----------
    scans
        Those that the networks have seen.
    without
        Those that failed.
    """

    def __init__(self, scans: Sequence[Scan], kept: Kept, without: Sequence[Scan] = ()) -> None:
        self._kept = kept
        self.without = [scan.relative for scan in without]
        self.scans = tuple(scans)
        self._places = {scan: place for place, scan in enumerate(scans)}
        self.together: Together = align_scans([kept.coarse[scan] for scan in scans])
        brainless = [scan for scan in scans if not kept.coarse[scan]]
        if len(brainless) == len(scans) - 1 and (why := _no_partner(without, brainless)):
            own = zip(scans, self.together.refusals, strict=True)
            refusals = tuple(said if scan in brainless else why for scan, said in own)
            self.together = replace(self.together, refusals=refusals)
        used = [
            (scan, coarse, motion)
            for scan, motion in zip(scans, self.together.motions, strict=True)
            if motion is not None and (coarse := kept.coarse[scan])
        ]
        self._aligned = [scan for scan, _, _ in used]
        self._shared = (
            Shared(
                [coarse for _, coarse, _ in used],
                [motion for *_, motion in used],
                [scan.identity.session for scan, *_ in used],
            )
            if used
            else None
        )
        for scan, why in zip(scans, self.together.refusals, strict=True):
            if why:
                logger.warning("%s is segmented alone: %s.", scan.name, why)

    def motion(self, scan: Scan) -> Affine | None:
        """Return the motion from a scan to the space in the middle of all; None if not aligned."""
        return self.together.motions[self._places[scan]]

    def aligned(self, scans: Sequence[Scan]) -> list[Scan]:
        """Return those of some scans that are aligned with others."""
        return [scan for scan in scans if scan in self._places and self.motion(scan) is not None]

    def weight(self, scan: Scan) -> float:
        """Return what a scan counts."""
        coarse = self._kept.coarse[scan]
        return coarse.weight if coarse else 0.0

    def shared(self, scan: Scan, volume: Volume) -> tuple[Volume, NetworkScores]:
        """Return a scan with the mean bias field, and its scores with the prior that all share."""
        seen = self._kept.scores(scan)
        if not self._shared or scan not in self._aligned:
            return volume, seen
        return self._shared.with_it(self._aligned.index(scan), volume, seen)

    def quality(self, scan: Scan) -> dict[str, float]:
        """Return how far a scan agrees with the others, as a metric of `data/quality.tsv`."""
        return {"agreement": self.together.likeness[self._places[scan]]}

    def describe(self, scan: Scan) -> dict[str, Any]:
        """Return the entry of sidecars on how a scan was combined."""
        why = self.together.refusals[self._places[scan]]
        how = {"Alone": why} if why else {"Weight": round(self.weight(scan), 4)}
        return {COMBINED_AS: how | self.lacking}

    @property
    def lacking(self) -> dict[str, list[str]]:
        """The part of that entry on failed scans."""
        return {"Without": self.without} if self.without else {}


def _no_partner(failed: Sequence[Scan], brainless: Sequence[Scan]) -> str:
    """Say why none of these can be combined with a scan; nothing if there are none."""
    causes = [f"{some([scan.name for scan in failed])} failed"] if failed else []
    if brainless:
        causes.append(f"no brain was found in {some([scan.name for scan in brainless])}")
    return " and ".join(causes)


def consensus_scan(scans: Sequence[Scan]) -> Scan:
    """Return the identity of the results of a session, with the image of its best scan, the first.

    Its names have `consensus` in place of the contrast.
    """
    entities = tuple(
        (key, label) for key, label in scans[0].identity.entities if key in ("sub", "ses")
    )
    return replace(scans[0], identity=BidsName(entities, CONSENSUS))


def consensus_provenance(made: Mapping[Scan, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sidecar of a consensus, from those of its scans, the best one first."""
    checksums = "".join(sorted(own["InputSHA256"] for own in made.values()))
    return {
        **next(iter(made.values())),
        "Options": {key: value for own in made.values() for key, value in own["Options"].items()},
        "Sources": [f"bids:raw:{scan.relative}" for scan in made],
        "InputSHA256": hashlib.sha256(checksums.encode()).hexdigest(),
    }


def best_first(scans: Mapping[Scan, Segmentation], person: Person) -> list[Scan]:
    """Order the scans of a session: smallest longest edge, smallest voxel, largest weight, name."""

    def rank(scan: Scan) -> tuple[float, float, float, str]:
        grid = scans[scan].grid
        edge, size = max(grid.voxel_size), grid.voxel_volume
        return round(edge, 1), round(size, 1), -round(person.weight(scan), 3), scan.name

    return sorted(scans, key=rank)


def vote(scans: Mapping[Scan, Segmentation], order: Sequence[Scan], person: Person) -> Segmentation:
    """Return the consensus of aligned scans, on the grid of the first of `order`."""
    motions = [motion for scan in order if (motion := person.motion(scan)) is not None]
    weights = [person.weight(scan) for scan in order]
    return consensus([scans[scan] for scan in order], motions, weights, 0)
