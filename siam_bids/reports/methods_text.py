"""Saying exactly what made a result: software, model, method."""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from siam_bids import __version__
from siam_bids.image.labels import LabelTable
from siam_bids.measures.volumes import INTRACRANIAL, describe_total

Description = Mapping[str, Any]
"""A model as sidecars name it: Name, Title, Version, SHA256, License, Citation."""


@cache
def software_versions() -> dict[str, str]:
    """Return the versions that shape a result."""
    names = ["torch", "nnunetv2", "nibabel", "numpy", "scipy"]
    if find_spec("openvino"):
        names.append("openvino")
    return {
        "siam-bids": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def model_line(model: Description) -> str:
    """Name, version and short checksum of a model, for logs and pages."""
    return f"{model['Title']} {model['Version']} (sha256 {model['SHA256'][:12]})"


def _member_line(member: Description) -> str:
    return f"{member['Title']}, SHA-256 {member['SHA256'][:12]}"


_COMBINED = {
    "contrasts": "of one session of a participant",
    "sessions": "of one kind from different sessions of a participant",
    "all": "of one participant",
}
"""Which scans each choice of `--combine` combines."""


def _together(combined: Collection[str], *, consensus: bool) -> str:
    """Say how scans were combined, by which choices of `--combine`; nothing if they were not."""
    which = [scans for choice, scans in _COMBINED.items() if choice in combined]
    if not which:
        return ""
    text = (
        f" Scans {' or '.join(which)} were aligned rigidly by their class probabilities in a space "
        "halfway between them (Reuter et al., NeuroImage 2010; Reuter et al., NeuroImage 2012), "
        "and the class probabilities of each, its prior, were corrected by their mean. Those of "
        "one contrast were given a common bias field by differential bias correction (Lewis and "
        "Fox, NeuroImage 2004)."
    )
    if consensus:
        text += (
            " The consensus of a session was found by weighted voting of its label maps "
            "(Artaechevarria et al., IEEE Trans. Med. Imaging 2009)."
        )
    return text


def methods_text(
    models: Sequence[Description],
    labels: LabelTable | None = None,
    combined: Collection[str] = (),
    *,
    consensus: bool = False,
) -> str:
    """Return a paragraph on the method, fit for the methods section of a paper.

    With the `labels` of the models it defines the total intracranial volume.

    Parameters
    ----------
    combined
        Choices of `--combine` by which scans were combined.
    consensus
        Sessions have a consensus of their scans.
    """
    if not models:
        return ""
    used = " and ".join(
        f"{model['Title']}, version {model['Version']} (SHA-256 {model['SHA256']})"
        for model in models
    )
    several = "".join(
        f" and averaged over the {len(members)} networks of {model['Title']} "
        f"({'; '.join(map(_member_line, members))})"
        for model in models
        if (members := model.get("Members"))
    )
    followed = "".join(
        f" The class probabilities of {model['Title']} were then refined with the scan's "
        "intensities, using Gaussian class models estimated in local windows and a Markov random "
        "field "
        "(Ashburner and Friston, NeuroImage 2005; Zhang et al., IEEE Trans. Med. Imaging "
        "2001)."
        for model in models
        if "Intensities" in model
    )
    turned = "".join(
        f" Heads rotated by more than {upright['TurnedByMoreDegreesThan']:g} degrees, or larger or "
        f"smaller than average by more than a factor of {upright['OfSizeFactorMoreThan']:g}, were "
        f"rotated to a standard orientation and scaled to average size for {model['Title']}."
        for model in models
        if (upright := model.get("Upright"))
    )
    together = _together(combined, consensus=consensus)
    total = ""
    if labels and labels.intracranial:
        total = f"; {INTRACRANIAL} is the {describe_total(labels)}"
    text = (
        f"Head MRI scans were segmented with siam-bids {__version__} using the model {used}. "
        "Each scan was reoriented to RAS+, z-scored and resampled to the voxel size of the "
        "network, labelled by an nnU-Net (Isensee et al., Nature Methods 2021) over "
        "overlapping tiles, and the class scores were interpolated back to the scan's own "
        f"grid{several}.{turned}{followed}{together} Volumes are label counts times the voxel "
        f"volume{total}."
    )
    cited = [str(model["Citation"]) for model in models if model["Citation"]]
    return " ".join([text, *(f"Model: {citation}" for citation in cited)])


def distinct(descriptions: Sequence[Description]) -> list[Description]:
    """Drop repetitions, keep the order."""
    kept: list[Description] = []
    for item in descriptions:
        if item not in kept:
            kept.append(item)
    return kept


def agreed(versions: Sequence[Mapping[str, str]]) -> tuple[tuple[str, str], ...]:
    """Join several software lists: each name once, with all its versions."""
    names = dict.fromkeys(name for one in versions for name in one)
    return tuple(
        (name, ", ".join(dict.fromkeys(one[name] for one in versions if name in one)))
        for name in names
    )
