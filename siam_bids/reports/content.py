"""The content of pages, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Pairs = tuple[tuple[str, str], ...]
"""Ordered names and values, printed as they are."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Distribution of a tissue over the scans of one protocol, in mL."""

    scans: int
    least: float
    quarter: float
    median: float
    three_quarters: float
    most: float


@dataclass(frozen=True, kw_only=True)
class TissueVolume:
    """One tissue of one scan; `volume_ml` in millilitres, `color` as `#rrggbb`.

    `inside`: whether it is inside the skull; None if unknown. `brain`: whether the 3-D view shows
    it. `left_ml` and `right_ml` of what is paired, where the hemispheres could be told.
    """

    index: int
    name: str
    long_name: str
    color: str
    voxels: int
    volume_ml: float
    inside: bool | None
    brain: bool = True
    spread: Spread | None = None
    left_ml: float | None = None
    right_ml: float | None = None

    @property
    def asymmetry(self) -> float | None:
        """(left - right) / ((left + right) / 2); None without sides, or if both are empty."""
        if self.left_ml is None or self.right_ml is None or not self.left_ml + self.right_ml:
            return None
        return (self.left_ml - self.right_ml) / ((self.left_ml + self.right_ml) / 2)


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """One lesion: volume in mm3, where it lies in words, centre in mm; None is unknown."""

    number: int
    volume_mm3: float
    place: str | None
    hemisphere: str | None
    x: float
    y: float
    z: float
    confidence: float | None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One quality metric of one scan, in words: value with unit, and its flag."""

    name: str
    value: str
    flag: str
    description: str


@dataclass(frozen=True, kw_only=True)
class Change:
    """Change of a volume from the first session, in percent.

    `noise` is the 95 % range of changes without change; None if it is unknown.
    """

    percent: float
    noise: float | None = None

    @property
    def within(self) -> bool:
        """Whether it cannot be distinguished from no change."""
        return self.noise is not None and abs(self.percent) <= self.noise


@dataclass(frozen=True, kw_only=True)
class ScanReport:
    """One scan on its subject's page.

    `name` is its BIDS name without extension, `kind` what it shares with the same scan of other
    sessions (`acq-mprage_T1w`), `source` its path within the dataset. `segmentation`,
    `files` and `figure` are relative to the page's folder; `slices` and `tissues` are data URLs of
    the same cuts in grey and in label indices, `thumbnail` and `outline` of the middle cuts.
    `image` and `labels` are gzipped NIfTI in base64, for the viewer. A scan with an `error` has no
    pictures and no volumes; text that does not apply is empty. `changes` are those from the first
    session, by tissue.
    """

    name: str
    kind: str
    session: str
    source: str
    segmentation: str = ""
    files: tuple[str, ...] = ()
    figure: str = ""
    slices: str = ""
    tissues: str = ""
    thumbnail: str = ""
    outline: str = ""
    image: str = ""
    labels: str = ""
    volumes: tuple[TissueVolume, ...] = ()
    lesions: tuple[Lesion, ...] = ()
    intracranial_ml: float | None = None
    changes: Mapping[str, Change] = field(default_factory=dict)
    flag: str = ""
    reasons: tuple[str, ...] = ()
    readings: tuple[Reading, ...] = ()
    facts: Pairs = ()
    error: str = ""
    log: str = ""

    def millilitres(self, tissue: str) -> float | None:
        """Return the volume of a tissue in mL; None if the model does not know it."""
        return next((own.volume_ml for own in self.volumes if own.name == tissue), None)


@dataclass(frozen=True, kw_only=True)
class Visit:
    """A scan among those of its kind, as pictures in data URLs: its labels, and what changed."""

    name: str
    labels: str
    changed: str = ""


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """Scans of a session on one grid, as pictures in data URLs: labels of the first, and a map.

    `map` shows at each place how many of the pairs of scans differ. `scans` are names with their
    agreement, None if that is unknown.
    """

    session: str
    scans: tuple[tuple[str, float | None], ...]
    labels: str
    map: str


@dataclass(frozen=True, kw_only=True)
class SubjectReport:
    """One subject's page; `model`, `command` and `boilerplate` are plain text.

    `raw` is the path of the raw dataset from the page's folder. `alone` are scans that could not be
    combined with others, with the reason, and whether they were compared with others.
    """

    subject: str
    scans: tuple[ScanReport, ...]
    model: str
    software: Pairs
    command: str
    boilerplate: str
    group: bool = False
    raw: str = "BIDS_DIR"
    visits: tuple[Visit, ...] = ()
    disagreements: tuple[Disagreement, ...] = ()
    alone: tuple[tuple[str, str, bool], ...] = ()


@dataclass(frozen=True, kw_only=True)
class GroupReport:
    """All scans of a dataset on one page.

    Attributes
    ----------
    data
        What the page's script shows, JSON-able; see `siam_bids.reports.group`.
    files
        Tables in the output folder, as paths within it.
    missing
        Subjects without results.
    failed
        Scans that failed, with the reason.
    excluded
        Scans that do not count, with the reason.
    protocols
        Per `protocol` the number of scans and of those included, and the sessions of the study
        that lack it.
    gaps
        Covariates with missing values: name, then scans without it per protocol.
    cautions
        What must not be compared, in a sentence each.
    changes
        Rows of tissue, protocol, pairs; median change in percent, its 95 % range without change,
        and whether it is within that; the same per year. None is unknown.
    statistics
        Rows of the table of `siam_bids.measures.regression`, None for NaN, and their formula.
    """

    title: str
    data: Mapping[str, Any]
    subjects: int
    model: str
    software: Pairs
    command: str
    boilerplate: str
    files: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()
    failed: Pairs = ()
    excluded: Pairs = ()
    protocols: tuple[Mapping[str, Any], ...] = ()
    gaps: tuple[tuple[str, Mapping[str, int]], ...] = ()
    changes: tuple[Mapping[str, Any], ...] = ()
    statistics: tuple[Mapping[str, Any], ...] = ()
    formula: str = ""
