"""What a network is trained for: the whole head, or one label in a part of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from siam_bids.synthesis.anatomy_changes import NUCLEI


@dataclass(frozen=True, kw_only=True)
class Task:
    """The part of the head that a network is trained on, and what counts there.

    Attributes
    ----------
    box
        Labels around which images are cropped; none for whole heads.
    margin
        By which the box is wider at each end, in mm.
    centres
        Labels that patches are centred on, each as often as the others; none for all.
    scored
        Labels of the Dice term of the loss; none for all but the background.
    stripped
        Share of the heads that are skull-stripped whatever their recipe says.
    shrunken
        Share of the heads in which hippocampi and amygdalae shrink, see `synthesis.atrophy`.
    """

    box: tuple[str, ...] = ()
    margin: float = 0.0
    centres: tuple[str, ...] = ()
    scored: tuple[str, ...] = ()
    stripped: float = 0.0
    shrunken: float = 0.0


TASKS: Mapping[str, Task] = {
    "head": Task(),
    "lesions": Task(
        box=("GM", "cerGM"),
        margin=8.0,
        centres=("WM", "Anomalies"),
        scored=("WM", "Anomalies"),
        stripped=0.4,
    ),
    "nuclei": Task(
        box=NUCLEI,
        margin=8.0,
        centres=NUCLEI,
        scored=("WM", "CSFv", *NUCLEI),
        shrunken=0.5,
    ),
}
