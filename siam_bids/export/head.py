"""One finished scan as the exports read it: labels, probability maps, image."""

from __future__ import annotations

import glob
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt

from siam_bids.bids.names import ScanNames, sidecar
from siam_bids.bids.results import ScanResult, read_results
from siam_bids.bids.scan import CONSENSUS, BidsName
from siam_bids.bids.status import COMBINED, OUTPUTS
from siam_bids.errors import DatasetError, ImageError
from siam_bids.image.grid import Reorientation, Segmentation, Volume
from siam_bids.image.image_file import ImageFile, image_checksum
from siam_bids.image.labels import LabelTable
from siam_bids.image.loading import load_labels, load_volume, read_grid
from siam_bids.support.atomic_files import sha256

PREFERRED = ("T1w", "UNIT1", "T2w")
"""Suffixes that make an anatomical reference, best first; all others come after them."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """A finished scan, read when it is asked for.

    Attributes
    ----------
    raw
        Root of the dataset that was segmented; None if the results do not name it.
    """

    result: ScanResult
    labels: LabelTable
    raw: Path | None = None

    @property
    def names(self) -> ScanNames:
        """Where its results lie."""
        return self.result.names

    @property
    def stem(self) -> str:
        """`sub-01`, or `sub-01_ses-a`."""
        return "_".join(filter(None, self.names.identity.visit))

    @cached_property
    def segmentation(self) -> Segmentation:
        """The label map, its voxels in RAS+ order.

        Raises
        ------
        DatasetError
            It is not the file that its sidecar records.
        ImageError, LabelError
            It cannot be read, or holds values that the label table does not name.
        """
        path = self._recorded(self.names.segmentation)
        data, grid = load_labels(path)
        self.labels.check(data, path.name)
        turn = Reorientation.to_ras(grid)
        if turn.target.same_as(grid):
            return Segmentation(data.astype(np.uint8), grid, self.labels)
        return Segmentation(turn.apply(data).astype(np.uint8), turn.target, self.labels)

    @property
    def sources(self) -> list[str]:
        """BIDS URIs of the label map and the scan; of a consensus the scans, the best one first."""
        place = self.names.segmentation.relative_to(self.names.root).as_posix()
        scans = (str(each).removeprefix("bids:raw:") for each in self.result.about["Sources"])
        return [f"bids:siam:{place}", *(f"bids:raw:{scan}" for scan in scans)]

    @cached_property
    def identity(self) -> str:
        """SHA-256 of the sidecar, which names every file of the result."""
        return sha256(sidecar(self.names.segmentation))

    @property
    def suffix(self) -> str:
        """Suffix of the image, which is not that of a consensus' results: `T1w`."""
        return Path(self.result.source).name.partition(".")[0].rpartition("_")[2]

    @property
    def is_consensus(self) -> bool:
        """Tell whether the labels are a consensus of several scans, which has no probabilities."""
        return self.names.identity.suffix == CONSENSUS

    def has_probabilities(self, tissues: Collection[str]) -> bool:
        """Tell whether there is a probability map of each of these labels."""
        return all(self.names.probability(tissue).is_file() for tissue in tissues)

    def probability(self, tissues: Collection[str]) -> npt.NDArray[np.float32]:
        """Return the probability that one of these labels is right, (I, J, K) in RAS+ order.

        Raises
        ------
        DatasetError
            A map is not the one that the sidecar records, or lies on another grid.
        """
        total = np.zeros(self.segmentation.grid.shape, np.float32)
        for tissue in tissues:
            path = self._recorded(self.names.probability(tissue))
            image = ImageFile.open(path)
            grid = read_grid(path)  # not `load_volume`: a tissue may be nowhere
            turn = Reorientation.to_ras(grid)
            if not turn.target.same_as(self.segmentation.grid):
                raise DatasetError(f"{path.name} is not on the grid of the label map.")
            total += turn.apply(np.nan_to_num(image.read()))
        return np.clip(total, 0, 1)

    def scan(self) -> Volume:
        """Return the image that was segmented; for a consensus that whose grid it has.

        Raises
        ------
        DatasetError
            It is not where the results say, has changed since, or is not on the grid of the labels.
        """
        if self.raw is None:
            raise DatasetError(
                "The results do not record where the images are.", "Name their dataset: --bids-dir."
            )
        about = self.result.about
        path = self.raw / self.result.source
        known = about.get(COMBINED, {}).get("Inputs", {}).get(self.result.source)
        try:
            checksum = image_checksum(path)
        except (OSError, ImageError) as error:
            raise DatasetError(
                f"The image {path} cannot be read.", "Name the dataset: --bids-dir."
            ) from error
        if checksum != (known or about["InputSHA256"]).removeprefix("sha256:"):
            raise DatasetError(
                f"{path.name} is not the image that was segmented.",
                "Run siam-bids again, or name the right dataset: --bids-dir.",
            )
        scan = load_volume(path, index=about.get("Options", {}).get("volume"))
        grid = Reorientation.to_ras(scan.grid).target
        if not grid.same_as(self.segmentation.grid):
            raise DatasetError(
                f"The labels of {self.names.name} are not on the grid of {path.name}.",
                "Choose another scan with --reference.",
            )
        return scan

    def _recorded(self, path: Path) -> Path:
        """Return a file of the result, unless it was changed."""
        place = path.relative_to(self.names.root).as_posix()
        known = self.result.about.get(OUTPUTS, {}).get(place, "")
        if not path.is_file():
            raise DatasetError(f"{path.name} is missing.", "Run siam-bids again.")
        if known and known != f"sha256:{sha256(path)}":
            raise DatasetError(
                f"{path.name} is not the file that its sidecar records.", "Run siam-bids again."
            )
        return path


@dataclass(frozen=True)
class Choice:
    """The anatomical reference of each session, and what has none, with the reason."""

    chosen: tuple[ScanResult, ...]
    without: dict[str, str]


def choose_references(
    root: Path,
    *,
    participants: Collection[str] = (),
    sessions: Collection[str] = (),
    wanted: str = "",
) -> Choice:
    """Choose one finished scan of each session.

    The first suffix of `PREFERRED` that is there wins, then any other; among the same suffix the
    shortest longest edge of a voxel, then the smallest voxel, then the first name.

    Parameters
    ----------
    participants, sessions
        Labels; none means all.
    wanted
        Suffix, or any parts of a name: `T2w`, `acq-mprage_T1w`. Only scans that have all of them
        are looked at.
    """
    people = [glob.escape(subject) for subject in participants] or ["*"]
    read = [read_results(root, subject) for subject in people]
    usable = [result for each in read for result in each.usable]
    unusable = {names: reason for each in read for names, reason in each.unusable.items()}
    known = {names.identity.subject for names in (*unusable, *(result.names for result in usable))}
    without = {f"sub-{name}": "No finished scan." for name in participants if name not in known}
    without |= {
        names.name: reason for names, reason in unusable.items() if _within(names, sessions)
    }
    chosen = []
    asked = [result for result in usable if _within(result.names, sessions)]
    for session, results in groupby(sorted(asked, key=_session), key=_session):
        fitting = [result for result in results if _has(result.names.identity, wanted)]
        if fitting:
            chosen.append(min(fitting, key=_rank))
        else:
            place = session.relative_to(root).as_posix()
            without[place] = f"No finished scan is called {wanted} (--reference)."
    return Choice(tuple(chosen), without)


def _session(result: ScanResult) -> Path:
    return result.names.anat.parent


def _within(names: ScanNames, sessions: Collection[str]) -> bool:
    return not sessions or names.identity.session in sessions


def _has(identity: BidsName, wanted: str) -> bool:
    return {*filter(None, wanted.split("_"))} <= {*str(identity).split("_")}


def _rank(result: ScanResult) -> tuple[int, float, float, str]:
    suffix = result.names.identity.suffix
    place = PREFERRED.index(suffix) if suffix in PREFERRED else len(PREFERRED)
    size = [float(edge) for edge in result.about["Grid"]["VoxelSize"]]
    return place, max(size), float(np.prod(size)), result.names.name
