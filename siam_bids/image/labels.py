"""Label tables: which number in a segmentation means which tissue."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from siam_bids.errors import LabelError
from siam_bids.support.package_data import resource
from siam_bids.support.tsv import read_rows

_Value = TypeVar("_Value")

ROLES = {
    "background": "outside the head",
    "cortex": "cerebral cortex",
    "white_matter": "white matter of the cerebrum",
    "subcortical": "paired grey matter below the cortex, thalamus to hippocampus",
    "cerebellum": "cerebellum, or its cortex or white matter",
    "brain": "other brain tissue, for example the brain stem",
    "lesion": "lesions, tumours and other anomalies of the brain",
    "ventricles": "cerebrospinal fluid in the ventricles",
    "csf": "cerebrospinal fluid outside the ventricles",
    "dura": "dura mater, falx and tentorium",
    "vessels": "arteries, veins and dural sinuses",
    "skull": "bone, and the air in it",
    "head": "what else lies outside the skull",
}
"""What a label can be; it decides what counts as brain and as intracranial."""

HEALTHY = ("cortex", "white_matter", "subcortical", "cerebellum", "brain", "ventricles", "csf")
"""Roles of the labels that every whole head has inside the skull."""

INTRACRANIAL = (*HEALTHY, "lesion")
"""Roles of the labels that are summed into the total intracranial volume."""

BRAIN = tuple(role for role in INTRACRANIAL if role != "csf")
"""Roles of the labels that make up the brain mask."""

SIAM_TABLES = ("siam.tsv", "siam_v0.1.tsv", "siam_v4.tsv")
"""Labels of SIAM in data/labels: versions 0.3 (and 0.2, which lacks Anomalies), 0.1, and 4."""


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
        Index in the BIDS common label table (BIDS 1.11.1, imaging derivatives); None if unknown.
    role
        One of `ROLES`; empty if unknown.
    parent
        Name of the label that this one refines, if any, or several joined by `, `.
    """

    index: int
    name: str
    long_name: str
    color: str
    mapping: int | None = None
    role: str = ""
    parent: str = ""

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Colour as red, green, blue from 0 to 255."""
        red, green, blue = bytes.fromhex(self.color[1:])
        return red, green, blue

    @property
    def parents(self) -> frozenset[str]:
        """Names of the labels that this one refines."""
        return frozenset(self.parent.split(", ")) - {""}


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

    @cached_property
    def intracranial(self) -> tuple[Label, ...]:
        """Labels that make up the total intracranial volume; none if roles are unknown.

        These are known if every label has a role, and both brain tissue and CSF have labels.
        """
        inside = self.of_role(*INTRACRANIAL)
        known = not self.without_role and self.of_role("csf") and self.of_role(*BRAIN)
        return inside if known else ()

    @cached_property
    def brain(self) -> tuple[Label, ...]:
        """Labels that make up the brain mask; none if roles are unknown.

        These are known if every label has a role, some are brain tissue, and ventricles are
        separate from other CSF.
        """
        mixed = self.of_role("csf") and not self.of_role("ventricles")
        return () if self.without_role or mixed else self.of_role(*BRAIN)

    @property
    def without_role(self) -> tuple[str, ...]:
        """Names of the labels whose role is not known."""
        return tuple(label.name for label in self.foreground if not label.role)

    @property
    def limits(self) -> str:
        """Say in one line what cannot be derived from these labels; empty if nothing is missing."""
        lacking = [
            *(["total intracranial volume (TIV)"] if not self.intracranial else []),
            *(["brain mask"] if not self.brain else []),
        ]
        if not lacking:
            return ""
        if names := self.without_role:
            more = ", ..." if len(names) > 5 else ""
            why = f"the role of {', '.join(names[:5])}{more} is unknown"
        elif not self.of_role(*BRAIN):
            why = "no label is brain tissue"
        elif not self.of_role("csf"):
            why = "no label is cerebrospinal fluid"
        else:
            why = "no label separates the ventricles from other cerebrospinal fluid"
        return (
            f"No {' and no '.join(lacking)}: {why}. "
            "Give roles in a labels.tsv next to the model's dataset.json."
        )

    def of_role(self, *roles: str) -> tuple[Label, ...]:
        """Return the labels that have one of these roles."""
        return tuple(label for label in self if label.role in roles)

    def names(self, *roles: str) -> tuple[str, ...]:
        """Return the names of the labels that have one of these roles."""
        return tuple(label.name for label in self.of_role(*roles))

    def indices(self, names: Iterable[str]) -> list[int]:
        """Return the indices of those of `names` that this table has, finer labels included.

        A label that refines several together counts where all of them are named.
        """
        wanted = list(dict.fromkeys(names))
        own = [self.by_name[name].index for name in wanted if name in self.by_name]
        finer = [label.index for label in self if label.parents and label.parents <= {*wanted}]
        return list(dict.fromkeys([*own, *finer]))

    def refined(self, names: Sequence[str], finer: LabelTable) -> LabelTable:
        """Return the table with labels replaced by those that a model finds inside them.

        Labels of `finer` that this table names too keep their value here, others are appended.
        What has no role of its own takes that of the labels it refines, if they agree; labels of
        different brain tissues make `brain`.

        Raises
        ------
        LabelError
            More labels than a byte can represent.
        """
        outer = [self.by_name[name] for name in names]
        kept = [label for label in self if label.name not in names or label.name in finer.by_name]
        new = [label for label in finer.foreground if label.name not in self.by_name]
        last = self.labels[-1].index
        if last + len(new) > 255:
            where = ", ".join(names)
            raise LabelError(f"The labels inside {where} make {last + len(new)}, 255 are possible.")
        role = _common([label.role for label in outer], "")
        if not role and {label.role for label in outer} <= {*BRAIN}:
            role = "brain"
        parents = dict.fromkeys(label.parent or label.name for label in outer)
        added = [
            replace(
                label,
                index=index,
                mapping=_common([each.mapping for each in outer], label.mapping),
                role=label.role or role,
                parent=", ".join(parents),
            )
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
        """Make a table from a model's own names (dataset.json); what SIAM names is known."""
        known = known_labels(names)
        rows = []
        for name, index in sorted(names.items(), key=lambda item: item[1]):
            known_label = known.get(name) or Label(
                index=index,
                name=name,
                long_name=name.replace("_", " "),
                color=_spread_color(index),
            )
            role = known_label.role.replace("background", "") if index else "background"
            rows.append(replace(known_label, index=index, role=role))
        return cls(tuple(rows))


def name_in_files(name: str) -> str:
    """Return a label's name as the value of a BIDS entity, which has no `_` and no `-`."""
    return name.replace("_", "").replace("-", "")


def _common(values: Sequence[_Value], otherwise: _Value) -> _Value:
    """Return the value that all have, else another one."""
    return values[0] if len({*values}) == 1 else otherwise


def _spread_color(index: int) -> str:
    """Return a distinct colour for an unnamed label: golden-ratio steps around the hue circle."""
    import colorsys

    red, green, blue = colorsys.hsv_to_rgb(index * 0.618033988749895 % 1, 0.55, 0.9)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def known_labels(names: Collection[str]) -> Mapping[str, Label]:
    """Return SIAM's labels by name, of that table of SIAM's first which has all of `names`.

    One name has one role in all of them, but not always the same extent.
    """
    tables = [read_siam_table(file) for file in SIAM_TABLES]
    tables.sort(key=lambda table: not {*names} <= table.by_name.keys())
    return {label.name: label for table in reversed(tables) for label in table}


def siam_labels() -> LabelTable:
    """Return the 18 labels of SIAM v0.3, which the compact model shares."""
    return read_siam_table("siam.tsv")


@cache
def read_siam_table(file: str) -> LabelTable:
    """Return one of `SIAM_TABLES`."""
    rows = read_rows(resource("data", "labels", file))
    return LabelTable(
        tuple(
            Label(
                index=int(row["index"]),
                name=row["name"],
                long_name=row["long_name"],
                color=row["color"],
                mapping=int(row["mapping"]) if row["mapping"] != "n/a" else None,
                role=row["role"],
            )
            for row in rows
        )
    )
