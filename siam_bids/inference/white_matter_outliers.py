"""Lesions as outliers of white matter.

Lesions of white matter hold more water than white matter does, and so are outliers of its
intensities on the side of grey matter: bright on T2w and FLAIR, dark on T1w. The intensities
of sure white matter are a Gaussian whose mean varies slowly with the bias field; mean and standard
deviation are estimated robustly. A voxel is a lesion if it differs by more than such a Gaussian,
the noise of the scan and mixtures with the tissues close by explain; the rarer lesions are in its
place, the more it must differ, and where less than 1.5 % of patients have one (brain stem,
cerebellum) the network decides alone. This is the outlier class of SAMSEG (Cerri et al.,
NeuroImage 2021) and of the lesion growth algorithm (Schmidt et al., NeuroImage 2012), with a
network in the place of the atlas of tissues. The share of 24 patients with multiple sclerosis that
have a lesion at each place (Lesjak et al., Neuroinformatics 2018) is
`data/labels/lesion_places.nii.gz`, in the frame of the standard head, see `measures.pose`;
`benchmarks/lesion_places.py` made it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch.nn import functional

from siam_bids.image.grid import Box, Crop, Volume, box_of
from siam_bids.image.labels import LabelTable
from siam_bids.image.loading import load_volume
from siam_bids.inference.head_pose import centres
from siam_bids.measures.hemispheres import voxels_of, world
from siam_bids.measures.pose import pose_of, tissue_moments, upright_head
from siam_bids.models.settings import Intensities, Outliers
from siam_bids.support.package_data import resource

Mask = npt.NDArray[np.bool_]
Map = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]

_REACH = 20.0
"""Standard deviation in mm of the windows in which the mean of white matter is estimated."""
_BLOCK = 4.0
"""Edge in mm of the blocks in which voxels are summed up for it."""
_CLOSE = 2.0
"""Distance in mm within which a voxel may hold some of a tissue; and that edges of lesions have."""
_MARGIN = 2.0
"""Standard deviations by which a lesion differs from mixtures with the tissues close by."""
_LEAST_WHITE_MATTER = 20_000.0
"""mm3 of sure white matter from which its intensities can be estimated."""
_LEAST_CONTRAST = 0.5
"""Standard deviations between white matter and cortex; with less, their order is not known."""
_UNLIKE = 3.0
"""Standard deviations from which the network's lesions are unlike white matter, at the least."""
_COMMON, _RAREST = 0.05, 0.015
"""Shares of patients with a lesion beside the ventricles; and where an outlier may be one."""
_LEAST_CHANCE = 1e-6
"""A probability that counts as 0, where its logarithm is taken."""
_NOWHERE = 255
"""A label that no table has."""
_SUREST = 4.0
"""Largest log odds of a lesion, of 98 %."""
_EVERYWHERE = np.ones((3, 3, 3), np.bool_)
_FACES = ndimage.generate_binary_structure(3, 1)


class Rivals:
    """What is known of lesions and of the likeliest other class, collected plane by plane.

    Parameters
    ----------
    shape
        (I, J, K) of the scan.
    lesion, white_matter
        Indices of the classes.

    Attributes
    ----------
    others
        (I, J, K) uint8, the likeliest class apart from lesions.
    contested
        (I, J, K) bool, where the chosen class is white matter or a lesion.
    """

    def __init__(self, shape: Sequence[int], lesion: int, white_matter: int) -> None:
        self.lesion, self.white_matter = lesion, white_matter
        self.others = np.empty(tuple(shape), np.uint8)
        self.contested = np.zeros(tuple(shape), np.bool_)
        self._chances: list[npt.NDArray[np.float32]] = []

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Take the next plane: (classes, J, K) logits and the (J, K) classes chosen from them."""
        place = len(self._chances)
        lesions = labels == self.lesion
        others = labels.clone()
        if lesions.any():
            inner = logits[:, lesions].float()
            inner[self.lesion] = -math.inf
            others[lesions] = inner.max(0).indices.to(labels.dtype)
        self.others[place] = others.numpy()
        contested = lesions | (labels == self.white_matter)
        chances = logits[:, contested].float().softmax(0)
        row = others[contested].long()[None]
        lesion, other = chances[self.lesion].clone(), chances.gather(0, row)[0]
        chances[self.lesion] = 0
        self.contested[place] = contested.numpy()
        self._chances.append(torch.stack((lesion, other, chances.sum(0))).numpy())

    def chances(self, where: Mask) -> npt.NDArray[np.float32]:
        """Return the probabilities (3, n) of lesions, the likeliest other class and all others.

        Parameters
        ----------
        where
            (I, J, K), n contested voxels.
        """
        return np.concatenate(self._chances, 1)[:, where[self.contested]]


@dataclass(frozen=True)
class Revision:
    """New labels of n voxels, and by how much the log odds of a lesion change there.

    Attributes
    ----------
    lesion
        Index of lesions.
    where
        (I, J, K) bool, those voxels.
    others, chances
        (n,) likeliest class apart from lesions; (3, n) probabilities of lesions, of it and of all
        classes but lesions before.
    shift
        (n,) change of the log odds of a lesion against every other class; positive where the voxel
        becomes one.
    """

    lesion: int
    where: Mask
    others: Labels
    chances: npt.NDArray[np.float32]
    shift: npt.NDArray[np.float32]

    @property
    def labels(self) -> Labels:
        """(n,) new labels."""
        return np.where(self.shift > 0, self.lesion, self.others).astype(np.uint8)

    @property
    def lesion_chances(self) -> Map:
        """(n,) new probabilities of a lesion, 0 where there is none any more."""
        return np.where(self.shift > 0, self._revised(self.chances[0], lesion=True), 0)

    def moved(self) -> tuple[tuple[Labels, Labels], tuple[Map, Map]]:
        """Return the labels before and after, and the probability of each; all (n,)."""
        added = self.shift > 0
        before = np.where(added, self.others, self.lesion).astype(np.uint8)
        new, other = (
            self._revised(chance, lesion=lesion)
            for chance, lesion in zip(self.chances[:2], (True, False), strict=True)
        )
        return (before, self.labels), (
            np.where(added, self.chances[1], self.chances[0]),
            np.where(added, new, other),
        )

    def revised(self, probability: Map, index: int) -> Map:
        """Return the probabilities (I, J, K) of a class after it."""
        revised = probability.copy()
        revised[self.where] = self._revised(revised[self.where], lesion=index == self.lesion)
        return revised

    def _revised(self, chance: Map, *, lesion: bool) -> Map:
        """Return probabilities (n,) of lesions, or of another class, after it."""
        factor = np.exp(self.shift)
        whole = self.chances[2] + self.chances[0] * factor
        return np.asarray(chance * (factor if lesion else 1) / whole, np.float32)


@dataclass(frozen=True)
class OutlierRule:
    """Decides by intensities what is a lesion, in white matter and in the network's lesions.

    Attributes
    ----------
    image
        (I, J, K) intensities.
    voxel_size
        In mm.
    """

    image: Map
    voxel_size: tuple[float, ...]
    how: Outliers

    def rivals(self, shape: Sequence[int], table: LabelTable) -> Rivals | None:
        """Return what must be told of every plane; None if the table lacks the labels."""
        single = [table.of_role(role) for role in ("lesion", "white_matter", "cortex")]
        if any(len(labels) != 1 for labels in single):
            return None
        return Rivals(shape, single[0][0].index, single[1][0].index)

    def revise(self, rivals: Rivals, labels: Labels, table: LabelTable) -> Revision | None:
        """Return what changes of the labels (I, J, K) that the probabilities chose.

        None if the intensities of white matter are not known, or are those of the cortex.
        """
        found = labels == rivals.lesion
        if not rivals.contested.any():
            return None
        box = _box_around(rivals.contested, self.voxel_size)
        tissues = np.where(found[box], np.uint8(_NOWHERE), rivals.others[box])
        tissue = _measured(self.image[box], tissues, self.voxel_size, rivals, table)
        if tissue is None:
            return None
        places = _lesion_places(labels, box, tissue.inside, self.voxel_size, table)
        decided, evidence = _decide(tissue, found[box], places, self.voxel_size, self.how)
        changed = np.zeros(labels.shape, np.bool_)
        changed[box] = decided != found[box]
        chances = rivals.chances(changed)
        lesion, other = np.log(np.maximum(chances[:2], _LEAST_CHANCE))
        return Revision(
            lesion=rivals.lesion,
            where=changed,
            others=rivals.others[changed],
            chances=chances,
            shift=evidence[changed[box][tissue.inside]] - lesion + other,
        )


def outlier_rule(volume: Volume, crop: Crop, how: Intensities | None) -> OutlierRule | None:
    """Return the rule for a crop of a scan, if the model has one."""
    if how is None or how.outliers is None:
        return None
    return OutlierRule(crop.cut(volume.data), crop.voxel_size, how.outliers)


@dataclass(frozen=True)
class _Tissue:
    """White matter and the intensities in it.

    Attributes
    ----------
    inside
        (I, J, K) white matter and the network's lesions.
    deviation
        (I, J, K) difference to the white matter around, in its standard deviations, averaged with
        neighbours inside; positive towards grey matter.
    cortex
        Of the cortex, likewise.
    mixtures
        (I, J, K) largest deviation of a tissue close by; 0 where there is none.
    """

    inside: Mask
    deviation: Map
    cortex: float
    mixtures: Map


def _measured(
    image: Map, tissues: Labels, voxel_size: Sequence[float], rivals: Rivals, table: LabelTable
) -> _Tissue | None:
    """Measure white matter; None if there is too little, or it looks like the cortex.

    Parameters
    ----------
    image, tissues
        (I, J, K) intensities and labels, `_NOWHERE` in the network's lesions.
    """
    matter = tissues == rivals.white_matter
    inside = matter | (tissues == _NOWHERE)
    steps = max(1, round(_CLOSE / min(voxel_size)))
    sure = ndimage.binary_erosion(matter, _FACES, iterations=steps)
    if sure.sum() * math.prod(voxel_size) < _LEAST_WHITE_MATTER:
        return None
    smooth = _averaged(image, inside, voxel_size)
    mean, spread = _robust_mean(smooth, sure, voxel_size)
    if not spread > 0:
        return None
    medians = _medians((image - mean) / spread, tissues, table)
    medians[rivals.white_matter] = 0
    cortex = medians[table.of_role("cortex")[0].index]
    if abs(cortex) < _LEAST_CONTRAST:
        return None
    side = math.copysign(1.0, cortex)
    close = [2 * max(1, round(_CLOSE / size)) + 1 for size in voxel_size]
    mixtures = np.maximum(side * medians, 0).astype(np.float32)[tissues]
    mixtures = ndimage.maximum_filter(mixtures, close, mode="nearest")
    return _Tissue(inside, side * (smooth - mean) / spread, side * cortex, mixtures)


def _decide(
    tissue: _Tissue, found: Mask, places: Map, voxel_size: Sequence[float], how: Outliers
) -> tuple[Mask, Map]:
    """Return what is a lesion (I, J, K), and its log odds at the n voxels inside.

    Parameters
    ----------
    found
        (I, J, K) the network's lesions.
    places
        (n,) share of patients with a lesion at each voxel inside.
    """

    def mask_of(values: npt.NDArray[np.bool_]) -> Mask:
        mask = np.zeros_like(tissue.inside)
        mask[tissue.inside] = values
        return mask

    deviation, mixtures = tissue.deviation[tissue.inside], tissue.mixtures[tissue.inside]
    ordinary = max(how.deviations, how.contrast * tissue.cortex)
    rarity = how.place * np.log10(_COMMON / np.clip(places, _RAREST, 2 * _COMMON))
    extra = np.float32(ordinary) * rarity
    least = ordinary + extra
    above = mixtures + np.float32(_MARGIN) + np.maximum(extra, 0)
    least = np.where(mixtures > 0, np.maximum(least, above), least)
    smallest = how.smallest / math.prod(voxel_size)
    known = mask_of(places >= _RAREST)
    outliers = _mostly(_larger(mask_of(deviation > least), smallest), known)
    edge = mask_of(deviation > how.edge * ordinary)
    steps = max(1, round(_CLOSE / max(voxel_size)))
    outliers = ndimage.binary_dilation(outliers, _FACES, iterations=steps, mask=edge) | outliers
    unlike = found & mask_of(np.abs(deviation) > max(_UNLIKE, how.edge * ordinary))
    thick = ndimage.binary_erosion(unlike, _EVERYWHERE)
    thick = ndimage.binary_dilation(thick, _EVERYWHERE, iterations=2, mask=unlike) | thick
    decided = np.where(known, _larger(outliers | thick, smallest), found)
    evidence = np.clip(np.abs(deviation - least), 0.2, _SUREST)
    return decided, np.where(decided[tissue.inside], evidence, -evidence).astype(np.float32)


def _box_around(mask: Mask, voxel_size: Sequence[float]) -> Box:
    """Return the box around a mask, wider by what is close."""
    edges = (math.ceil(2 * _CLOSE / size) for size in voxel_size)
    i, j, k = (
        slice(max(0, part.start - edge), min(length, part.stop + edge))
        for part, edge, length in zip(box_of(mask), edges, mask.shape, strict=True)
    )
    return i, j, k


def _averaged(image: Map, inside: Mask, voxel_size: Sequence[float]) -> Map:
    """Average a voxel with its neighbours inside: 1/4, 1/2, 1/4 along each axis at 1 mm."""
    weights = inside.astype(np.float32)
    total = image * weights
    for axis, size in enumerate(voxel_size):
        side = 0.25 / max(1.0, size) ** 2
        kernel = [side, 1 - 2 * side, side]
        total = ndimage.correlate1d(total, kernel, axis=axis, mode="constant")
        weights = ndimage.correlate1d(weights, kernel, axis=axis, mode="constant")
    averaged: Map = np.divide(total, weights, out=np.zeros_like(total), where=inside)
    return averaged


def _robust_mean(image: Map, sure: Mask, voxel_size: Sequence[float]) -> tuple[Map, float]:
    """Return the mean (I, J, K) around each voxel, and the standard deviation of all."""
    mean: Map | np.float32 = np.float32(np.median(image[sure]))
    spread = _deviation(image[sure] - mean)
    for _ in range(2):
        usual = sure & (np.abs(image - mean) < 2.5 * spread)
        mean = _local_mean(image, usual, voxel_size)
        spread = _deviation((image - mean)[sure])
    return np.asarray(mean, np.float32), spread


def _deviation(values: Map) -> float:
    """Return the standard deviation by the median absolute one."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def _local_mean(image: Map, mask: Mask, voxel_size: Sequence[float]) -> Map:
    """Return the mean within a mask (I, J, K), in Gaussian windows around each voxel."""
    steps = [max(1, round(_BLOCK / size)) for size in voxel_size]
    reach = [_REACH / (size * step) for size, step in zip(voxel_size, steps, strict=True)]
    weight, total = (
        ndimage.gaussian_filter(_blocks(each, steps), reach, mode="constant", truncate=3.0)
        for each in (mask.astype(np.float32), np.where(mask, image, np.float32(0)))
    )
    few = 1e-3 * math.prod(steps)
    mean = (total + few * image[mask].mean()) / (weight + few)
    blocks = torch.from_numpy(mean)[None, None]
    wide = functional.interpolate(blocks, scale_factor=[*map(float, steps)], mode="trilinear")
    i, j, k = image.shape
    inner: Map = wide[0, 0, :i, :j, :k].numpy()
    return inner


def _blocks(values: Map, steps: Sequence[int]) -> Map:
    """Sum up blocks of voxels."""
    padding = [(0, -length % step) for length, step in zip(values.shape, steps, strict=True)]
    padded = np.pad(values, padding)
    i, j, k = (length // step for length, step in zip(padded.shape, steps, strict=True))
    blocks: Map = padded.reshape(i, steps[0], j, steps[1], k, steps[2]).sum((1, 3, 5))
    return blocks


def _medians(deviation: Map, labels: Labels, table: LabelTable) -> npt.NDArray[np.float64]:
    """Return the median of each label, by index; 0 for labels that are not there."""
    medians = np.zeros(256)
    for label in table:
        if (values := deviation[labels == label.index]).size:
            medians[label.index] = np.median(values)
    return medians


def _larger(mask: Mask, smallest: float) -> Mask:
    """Keep the connected parts (faces, edges or corners) of so many voxels."""
    parts, _ = ndimage.label(mask, _EVERYWHERE)
    kept = np.bincount(parts.ravel()) >= smallest
    kept[0] = False
    larger: Mask = kept[parts]
    return larger


def _mostly(mask: Mask, region: Mask) -> Mask:
    """Keep the connected parts that lie in a region with half of their voxels or more."""
    parts, count = ndimage.label(mask, _EVERYWHERE)
    voxels = np.bincount(parts.ravel(), minlength=count + 1)
    inside = np.bincount(parts[region], minlength=count + 1)
    kept = inside >= 0.5 * voxels
    kept[0] = False
    mostly: Mask = kept[parts]
    return mostly


def _lesion_places(
    labels: Labels, box: Box, inside: Mask, voxel_size: Sequence[float], table: LabelTable
) -> Map:
    """Return the share of patients with a lesion at each voxel (n,) inside; low if not known.

    Parameters
    ----------
    inside
        Voxels of the box.
    """
    every = [max(1, round(2 / size)) for size in voxel_size]
    few = labels[tuple(slice(None, None, step) for step in every)]
    size = [edge * step for edge, step in zip(voxel_size, every, strict=True)]
    pose = pose_of(tissue_moments(few, size, table, upright_head()))
    if pose is None:
        return np.full(np.count_nonzero(inside), _RAREST, np.float32)
    shares, affine = _atlas()
    corner = [part.start * edge for part, edge in zip(box, voxel_size, strict=True)]
    matrix = np.linalg.inv(affine) @ pose.affine @ centres(voxel_size, corner)
    parts = [
        ndimage.map_coordinates(shares, world(voxels, matrix).T, order=1)
        for voxels in voxels_of(inside)
    ]
    return np.concatenate(parts)


@lru_cache(maxsize=1)
def _atlas() -> tuple[Map, npt.NDArray[np.float64]]:
    """Return the shares of patients with a lesion, and the affine to mm, axes [z, y, x]."""
    volume = load_volume(resource("data", "labels", "lesion_places.nii.gz"))
    turn = np.eye(4)[[2, 1, 0, 3]]
    return volume.data.T, turn @ volume.grid.affine @ turn
