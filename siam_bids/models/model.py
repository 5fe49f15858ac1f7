"""Identity of a model: name, version, checksum."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from siam_bids.config import Inference
from siam_bids.models.settings import Focus, Intensities, Upright, describe_focus

WORDS = ("Name", "Title", "Version", "License", "Citation")
"""Entries of `Model.describe` that are descriptive only; no label depends on them."""


@dataclass(frozen=True)
class Region:
    """Labels that another model refines, together as one region, and that model."""

    inside: tuple[str, ...]
    model: Model

    def describe(self) -> dict[str, Any]:
        """Return the region as an entry of sidecars."""
        inside = self.inside[0] if len(self.inside) == 1 else list(self.inside)
        return {"Inside": inside, **self.model.describe()}


@dataclass(frozen=True, kw_only=True)
class Model:
    """Identity of a model on disk.

    Attributes
    ----------
    name, title, version
        Registry name, name for people, version string (`unversioned` for a user's own folder).
    folder
        The nnU-Net v2 model folder.
    checkpoint
        Which file of each fold is run; empty for the usual one, see `folder.fold_weights`.
    sha256
        Checksum over plans.json, dataset.json and all checkpoints.
    licence, citation
        Empty where unknown.
    precisions
        Those (`bfloat16`) whose labels were compared with float32's and agreed on 99.9 % or
        more of the voxels of whole scans: the first that the CPU is fast in is the default.
        Measured for the embedded models only, see benchmarks/precision.py. What is known of an
        ensemble holds for its members in it, not for these alone.
    mirror
        Whether mirrored tiles are averaged by default: measured to help, and trained for. Of an
        ensemble, only its members know.
    members
        The models of an ensemble, whose probabilities are averaged; empty for a single model.
    focus
        Where each member but the first looks, None for everywhere; empty for a single model.
    intensities
        How far the labels follow the intensities of the scan; None for not at all. What a member of
        an ensemble has here holds for it alone.
    upright
        Heads to segment again in standard orientation; None for none. What a member of
        an ensemble has here holds for it alone.
    repair_spikes
        Whether hot voxels are replaced before the network sees a scan, see `image.spikes`. True of
        the embedded models only: others see each scan as it is.
    regions
        What refines labels of this model, in order; see `inference.cascade`.
    """

    name: str
    title: str
    version: str
    folder: Path
    sha256: str
    licence: str
    citation: str
    checkpoint: str = ""
    precisions: tuple[str, ...] = ()
    mirror: bool = False
    members: tuple[Model, ...] = ()
    focus: tuple[Focus | None, ...] = ()
    intensities: Intensities | None = None
    upright: Upright | None = None
    repair_spikes: bool = False
    regions: tuple[Region, ...] = ()

    def describe(self) -> dict[str, Any]:
        """Return the model as sidecars name it."""
        members = [each.describe() for each in self.members]
        focus = describe_focus(self.focus)
        intensities = self.intensities and self.intensities.describe()
        upright = self.upright and self.upright.describe()
        regions = [each.describe() for each in self.regions]
        return {
            "Name": self.name,
            "Title": self.title,
            "Version": self.version,
            "SHA256": self.sha256,
            "License": self.licence,
            "Citation": self.citation,
            **({"MirroredByDefault": True} if self.mirror else {}),
            **({"Members": members} if members else {}),
            **({"Focus": focus} if focus else {}),
            **({"Intensities": intensities} if intensities else {}),
            **({"Upright": upright} if upright else {}),
            **({"HotVoxelsReplaced": True} if self.repair_spikes else {}),
            **({"Regions": regions} if regions else {}),
        }

    def with_options(self, options: Inference) -> Model:
        """Return the model without what the options leave out of it."""
        return replace(
            self,
            intensities=self.intensities if options.intensities else None,
            upright=self.upright if options.upright else None,
        )

    def networks(self) -> list[Model]:
        """Return all models, each with a folder of its own."""
        heads = [part for each in self.members for part in each.networks()] or [self]
        return [*heads, *(part for region in self.regions for part in region.model.networks())]
