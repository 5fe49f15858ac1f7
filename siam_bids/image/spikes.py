"""Hot voxels: intensities far beyond all others, from a broken receiver, memory or conversion.

One voxel of a million changes mean and standard deviation of a whole scan, and so all that a
network sees of it; a few hundred of three times the usual intensity blur what is learnt of tissues.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from siam_bids.image.grid import Volume

_PERCENTILE = 1.0
"""Percentile that is believed, at either end."""
_FAR, _ALONE = 4.0, 1.2
"""Times the range between the percentiles. In 21 scans of heads, from T1w to FLAIR, no voxel lies
further than 1.7 beyond them, and none further than 0.7 beyond both them and all its neighbours."""
_SAMPLES = 1_000_000
_VOXELS_AT_ONCE = 1 << 16
_AROUND = np.array([place for place in itertools.product((-1, 0, 1), repeat=3) if any(place)])


def find_spikes(data: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_] | None:
    """Return (I, J, K) bool, True where an intensity lies far beyond all others; None if nowhere.

    With p1 and p99 the percentiles of what is not zero, that is beyond them by more than
    4 (p99 - p1), or by more than 1.2 (p99 - p1) and as much beyond each of the 26 neighbours.
    """
    sample = data.ravel(order="K")[:: max(1, data.size // _SAMPLES)]
    sample = sample[sample != 0]
    if not sample.size:
        return None
    low, high = np.percentile(sample, (_PERCENTILE, 100 - _PERCENTILE))
    extent = high - low
    if not extent or (data.min() >= low - _ALONE * extent and data.max() <= high + _ALONE * extent):
        return None
    hot: npt.NDArray[np.bool_] = (data < low - _FAR * extent) | (data > high + _FAR * extent)
    alone = np.zeros_like(hot)
    for beyond, sign in ((data > high + _ALONE * extent, 1), (data < low - _ALONE * extent, -1)):
        for place, values in _neighbours(data, beyond & ~hot, hot):
            next_one = (sign * values).max(axis=1).filled(-np.inf)
            alone[place] = sign * data[place] - next_one > _ALONE * extent
    hot |= alone
    return hot if hot.any() else None


def _neighbours(
    data: npt.NDArray[np.float32], wanted: npt.NDArray[np.bool_], left_out: npt.NDArray[np.bool_]
) -> Iterator[tuple[tuple[npt.NDArray[np.intp], ...], np.ma.MaskedArray]]:
    """Yield indices of some of the wanted voxels and (voxels, 26) the intensities around each."""
    places, last = np.argwhere(wanted), np.array(data.shape) - 1
    for start in range(0, len(places), _VOXELS_AT_ONCE):
        block = places[start : start + _VOXELS_AT_ONCE]
        around = block[:, None] + _AROUND
        inside = ((around >= 0) & (around <= last)).all(-1)
        index = tuple(np.moveaxis(np.clip(around, 0, last), -1, 0))
        yield tuple(block.T), np.ma.masked_array(data[index], ~inside | left_out[index])


def without_spikes(volume: Volume) -> Volume:
    """Give each hot voxel the median of its neighbours; a scan without any is returned as it is.

    Where all 26 neighbours are hot as well it gets the median of the scan's other voxels.
    """
    hot = find_spikes(volume.data)
    if hot is None:
        return volume
    data = volume.data.copy()
    for place, values in _neighbours(volume.data, hot, hot):
        data[place] = np.ma.median(values, axis=1).filled(np.nan)  # type: ignore[no-untyped-call]
    if np.isnan(data).any():
        data[np.isnan(data)] = np.median(volume.data[~hot])
    return replace(volume, data=data)
