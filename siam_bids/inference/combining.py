"""What the aligned scans of a person share: the prior, and within a contrast the bias field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from siam_bids.image.grid import Volume
from siam_bids.image.transforms import Affine
from siam_bids.inference.differential_bias import corrected, differential_bias
from siam_bids.inference.person import OWN, OWN_COMPARED, Coarse, PersonMean, person_prior
from siam_bids.inference.prediction import NetworkScores


class Shared:
    """What aligned scans share.

    Parameters
    ----------
    scans, motions
        Scans, and the motion from each to one space.
    """

    def __init__(self, scans: Sequence[Coarse], motions: Sequence[Affine]) -> None:
        self._scans, self._motions = scans, motions
        self._mean = PersonMean(scans, motions)
        self._fields = differential_bias(scans, motions)

    def with_it(
        self, place: int, volume: Volume, seen: NetworkScores
    ) -> tuple[Volume, NetworkScores]:
        """Return one of the scans with the mean bias field, and its scores with the shared prior.

        Parameters
        ----------
        place
            Of the scan among `scans`.
        """
        scan, field, least = self._scans[place], self._fields[place], OWN
        if field is not None:
            volume, least = corrected(volume, seen.crop, scan, field), OWN_COMPARED
        prior = person_prior(seen.prior, scan, self._mean, self._motions[place], least=least)
        return volume, replace(seen, prior=prior)
