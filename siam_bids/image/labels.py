"""Label tables: which number in a segmentation means which tissue."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from siam_bids.errors import LabelError
from siam_bids.support.package_data import resource
from siam_bids.support.tsv import read_rows

BRAIN_TISSUES = (
    "GM", "WM", "CSFv", "cerGM", "Thal", "Pal", "Put", "Caud", "Accu", "Amyg", "Hippo",
    "Anomalies", "Brainsteam", "Wmcereb",
)  # fmt: skip
"""Names that make up the brain mask: parenchyma, ventricles and lesions, of any SIAM version."""

INTRACRANIAL_TISSUES = (*BRAIN_TISSUES, "CSF")
"""Names summed into the total intracranial volume: the brain and all cerebrospinal fluid."""

BRAIN_CLASSES = (
    "GM", "WM", "CSF", "CSFv", "cerGM", "Thal", "Pal", "Put", "Caud", "Accu", "Amyg", "Hippo",
)  # fmt: skip
"""The twelve brain classes that a model's quality is quoted over."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """One row of a label table.

    Attributes
    ----------
    index
        Voxel value, 0 is background.
    name
        Short name as in the model's dataset.json, for example `CSFv`.
    long_name
        Name in words.
    color
        `#rrggbb`.
    mapping
        Index in the BIDS common label table (BIDS 1.11.1, imaging derivatives).
    parent
        Name of the label that this one refines, if any; it counts as that tissue.
    """

    index: int
    name: str
    long_name: str
    color: str
    mapping: int
    parent: str = ""

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Colour as red, green, blue from 0 to 255."""
        red, green, blue = bytes.fromhex(self.color[1:])
        return red, green, blue


@dataclass(frozen=True)
class LabelTable:
    """The labels of one model, ordered by index; background included."""

    labels: tuple[Label, ...]

    def __post_init__(self) -> None:
        indices = [label.index for label in self.labels]
        if indices != sorted(set(indices)) or not indices or indices[0] != 0:
            raise LabelError(f"A label table needs background 0 and ascending indices: {indices}.")

    def __iter__(self) -> Iterator[Label]:
        return iter(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def by_name(self) -> Mapping[str, Label]:
        """Labels by their short name."""
        return {label.name: label for label in self.labels}

    @property
    def foreground(self) -> tuple[Label, ...]:
        """All labels but the background."""
        return self.labels[1:]

    def indices(self, names: Iterable[str]) -> list[int]:
        """Return the indices of those of `names` that this table has, finer labels included."""
        found = [
            label.index for name in names for label in self if name in (label.name, label.parent)
        ]
        return list(dict.fromkeys(found))

    def refined(self, name: str, finer: LabelTable) -> LabelTable:
        """Return the table with a label replaced by those that a model finds inside it.

        Labels of `finer` that this table names too keep their value here, others are appended.

        Raises
        ------
        LabelError
            More labels than a byte can tell apart.
        """
        outer = self.by_name[name]
        kept = [label for label in self if label.name != name or name in finer.by_name]
        new = [label for label in finer.foreground if label.name not in self.by_name]
        last = self.labels[-1].index
        if last + len(new) > 255:
            raise LabelError(f"The labels inside {name} make {last + len(new)}, 255 are possible.")
        added = [
            replace(label, index=index, mapping=outer.mapping, parent=outer.parent or name)
            for index, label in enumerate(new, start=last + 1)
        ]
        return LabelTable((*kept, *added))

    def check(self, data: npt.NDArray[np.integer], where: str) -> None:
        """Raise `LabelError` if `data` holds a value that the table does not name."""
        unknown = sorted(set(np.unique(data).tolist()) - {label.index for label in self.labels})
        if unknown:
            raise LabelError(
                f"{where} holds label values {unknown[:5]} that its label table does not name."
            )

    @classmethod
    def from_names(cls, names: Mapping[str, int]) -> LabelTable:
        """Make a table from a model's own names (dataset.json), coloured as SIAM's where known."""
        known = siam_labels().by_name
        rows = []
        for name, index in sorted(names.items(), key=lambda item: item[1]):
            twin = known.get(name)
            rows.append(
                Label(
                    index=index,
                    name=name,
                    long_name=twin.long_name if twin else name.replace("_", " "),
                    color=twin.color if twin else _spread_color(index),
                    mapping=twin.mapping if twin else 6,
                )
            )
        return cls(tuple(rows))


def _spread_color(index: int) -> str:
    """Give an unnamed label a colour of its own: golden-ratio steps around the hue circle."""
    import colorsys

    red, green, blue = colorsys.hsv_to_rgb(index * 0.618033988749895 % 1, 0.55, 0.9)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


@lru_cache(maxsize=1)
def siam_labels() -> LabelTable:
    """Return the 18 labels of SIAM v0.3, which the compact model shares."""
    rows = read_rows(resource("data", "labels", "siam.tsv"))
    return LabelTable(
        tuple(
            Label(
                index=int(row["index"]),
                name=row["name"],
                long_name=row["long_name"],
                color=row["color"],
                mapping=int(row["mapping"]),
            )
            for row in rows
        )
    )
