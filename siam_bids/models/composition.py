"""Ensembles and cascades: what models.json or a file of their own says, and the model they make."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from siam_bids.errors import ModelError
from siam_bids.models.folder import read_object
from siam_bids.models.model import Model, Region
from siam_bids.models.settings import Focus, Intensities, Upright, describe_focus, read_focus


@dataclass(frozen=True, kw_only=True)
class Composition:
    """Which models make up an ensemble or a cascade, by name or path, and how.

    Attributes
    ----------
    members
        Models whose probabilities are averaged; empty where there is one `model`.
    model
        The model that is refined; empty for an ensemble.
    regions
        Labels that are refined together, and the model that does so.
    focus
        Of all members but the first, or of each of them; None where that of the model holds.
    intensities, upright
        None where those of the model hold; what members have here does not.
    precisions
        Those that were measured for these members together; empty where each has its own.
    title, version, citation
        Empty where those of the models are listed.
    """

    members: tuple[str, ...] = ()
    model: str = ""
    regions: tuple[tuple[tuple[str, ...], str], ...] = ()
    focus: Focus | tuple[Focus | None, ...] | None = None
    intensities: Intensities | None = None
    upright: Upright | None = None
    precisions: tuple[str, ...] = ()
    title: str = ""
    version: str = ""
    citation: str = ""

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Composition:
        """Understand an entry of models.json, or the content of a file like one.

        Raises
        ------
        ModelError
            A setting cannot be read.
        """
        return cls(
            members=tuple(entry.get("members", ())),
            model=entry.get("model", ""),
            regions=tuple(
                (_inside(each["inside"]), each["model"]) for each in entry.get("regions", ())
            ),
            focus=read_focus(entry.get("focus")),
            intensities=Intensities.of(entry["intensities"]) if "intensities" in entry else None,
            upright=Upright.of(entry["upright"]) if "upright" in entry else None,
            precisions=tuple(entry.get("precisions", ())),
            title=entry.get("title", ""),
            version=entry.get("version", ""),
            citation=entry.get("citation", ""),
        )

    @classmethod
    def read(cls, path: Path) -> Composition:
        """Read the file of an ensemble or a cascade; paths in it may be relative to the file.

        Raises
        ------
        ModelError
            It is no such file, or a setting in it cannot be read.
        """

        def absolute(model: str) -> str:
            there = path.parent / Path(model).expanduser()
            return str(there) if there.exists() else model

        try:
            content = read_object(path)
            members = [absolute(each) for each in content.get("members", ())]
            several = len(members) > 1
            changes = several or "intensities" in content or "upright" in content
            regions = content.get("regions", ()) if changes else content["regions"]
            entry = {
                **content,
                "members": members if several else (),
                "model": "" if several else absolute(content["model"]),
                "regions": [
                    {"inside": _inside(each["inside"]), "model": absolute(each["model"])}
                    for each in regions
                ],
                "precisions": [str(each) for each in content.get("precisions", ())],
                **{key: str(content.get(key, "")) for key in ("title", "version", "citation")},
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ModelError) as error:
            raise ModelError(
                f"{path} is not a cascade of models ({str(error).rstrip('.')}).",
                'Write {"model": ..., "regions": [{"inside": LABEL or [LABEL, ...], "model": ...}]}'
                ' or, for an ensemble, {"members": [..., ...]}.',
            ) from error
        return cls.of(entry)

    def joined(self, name: str, find: Callable[[str], Model]) -> Model:
        """Assemble the model; its checksum covers all models and settings in it.

        Raises
        ------
        ModelError
            A model cannot be found, a member is not a single model, or there is not one focus for
            each member but the first.
        """
        members = tuple(self._as_member(name, find(each)) for each in self.members)
        first = members[0] if members else find(self.model)
        regions = tuple(Region(inside, find(model)) for inside, model in self.regions)
        models = [*(members or (first,)), *(region.model for region in regions)]
        citations = dict.fromkeys(model.citation for model in models if model.citation)
        joined = replace(
            first,
            name=name,
            title=self.title or " + ".join(model.title for model in models),
            version=self.version or " + ".join(model.version for model in models),
            citation=self.citation or " ".join(citations),
            members=members or first.members,
            regions=(*first.regions, *regions),
            focus=self._focus_of_each(name, len(members or first.members)) or first.focus,
            intensities=self.intensities or first.intensities,
            upright=self.upright or first.upright,
            precisions=_common([member.precisions for member in members or (first,)]),
            mirror=first.mirror and not members,
            repair_spikes=all(model.repair_spikes for model in models),
        )
        lines = [first.sha256, *(member.sha256 for member in members[1:])]
        lines += [f"{', '.join(each.inside)} {each.model.sha256}" for each in regions]
        others = (joined.intensities, joined.upright)
        settings = [describe_focus(joined.focus), *(each and each.describe() for each in others)]
        lines += [json.dumps(settings, sort_keys=True)]
        return replace(joined, sha256=hashlib.sha256("\n".join(lines).encode()).hexdigest())

    def _focus_of_each(self, name: str, members: int) -> tuple[Focus | None, ...]:
        """Return the focus of each member but the first; empty where none is given."""
        others = max(0, members - 1)
        if self.focus is None or isinstance(self.focus, Focus):
            return (self.focus,) * others if self.focus else ()
        if len(self.focus) != others:
            raise ModelError(
                f"{name} has {len(self.focus)} entries of focus for {others} members.",
                "Give one for each member but the first (null: the whole scan), or one for all.",
            )
        return self.focus

    def _as_member(self, name: str, model: Model) -> Model:
        """Return a model without what only the whole ensemble has."""
        if model.members or model.regions:
            raise ModelError(
                f"{name}: {model.name} is not a single model, so it cannot be a member."
            )
        precisions = self.precisions or model.precisions
        return replace(model, intensities=None, upright=None, precisions=precisions)


def _common(given: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return what all have, in the order of the first."""
    return tuple(name for name in given[0] if all(name in each for each in given))


def _inside(given: Any) -> tuple[str, ...]:
    """Return the labels of a region, which may be given as one name or as a list."""
    names = (given,) if isinstance(given, str) else tuple(given)
    if not names or not all(isinstance(name, str) for name in names) or len({*names}) < len(names):
        raise TypeError("inside is neither a label nor a list of labels")
    return names
