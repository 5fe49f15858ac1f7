"""Hot voxels: single intensities far beyond all others, from a broken receiver, memory or conversion.

One voxel of a million changes mean and standard deviation of a whole scan, and so all that a network
sees of it.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from siam_bids.image.grid import Volume

_SHARE = 1.0
"""Percentile that is believed, at either end."""
_REACH = 4.0
"""How many times the range between the percentiles an intensity may lie beyond them. Of 21 scans of
the head, from T1w to FLAIR, those that are whole stay below 1.7."""
_SAMPLES = 1_000_000
_BLOCK = 1 << 16
_AROUND = np.array([place for place in itertools.product((-1, 0, 1), repeat=3) if any(place)])


def find_spikes(data: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_] | None:
    """Return (I, J, K) bool, True where an intensity lies far beyond all others; None if nowhere.

    That is, beyond the 1st or the 99th percentile of what is not zero by more than four times the
    range between them: up to one voxel in a hundred.
    """
    sample = data.ravel(order="K")[:: max(1, data.size // _SAMPLES)]
    sample = sample[sample != 0]
    if not sample.size:
        return None
    low, high = np.percentile(sample, (_SHARE, 100 - _SHARE))
    reach = _REACH * (high - low)
    if not reach or (data.min() >= low - reach and data.max() <= high + reach):
        return None
    found: npt.NDArray[np.bool_] = (data < low - reach) | (data > high + reach)
    return found


def without_spikes(volume: Volume) -> Volume:
    """Give each hot voxel the median of its neighbours; a scan without any is returned as it is.

    Where all 26 neighbours are hot as well it gets the median of the scan's other voxels.
    """
    hot = find_spikes(volume.data)
    if hot is None:
        return volume
    data = volume.data.copy()
    places = np.argwhere(hot)
    last = np.array(data.shape) - 1
    for start in range(0, len(places), _BLOCK):
        block = places[start : start + _BLOCK]
        around = block[:, None] + _AROUND
        inside = ((around >= 0) & (around <= last)).all(-1)
        index = tuple(np.moveaxis(np.clip(around, 0, last), -1, 0))
        values = np.ma.masked_array(volume.data[index], ~inside | hot[index])
        data[tuple(block.T)] = np.ma.median(values, axis=1).filled(np.nan)
    if np.isnan(data).any():
        data[np.isnan(data)] = np.median(volume.data[~hot])
    return replace(volume, data=data)
