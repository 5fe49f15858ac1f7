"""What the aligned scans of a person share: the prior, and within a contrast the bias field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from siam_bids.image.grid import Volume
from siam_bids.image.transforms import Affine
from siam_bids.inference.differential_bias import corrected, differential_bias
from siam_bids.inference.person import SESSION, Coarse, PersonMean, SessionMean, person_prior
from siam_bids.inference.prediction import NetworkScores


class Shared:
    """What aligned scans share.

    Parameters
    ----------
    scans, motions
        Scans, and the motion from each to one space.
    sessions
        Label of the session of each.
    """

    def __init__(
        self, scans: Sequence[Coarse], motions: Sequence[Affine], sessions: Sequence[str]
    ) -> None:
        self._scans, self._motions, self._sessions = scans, motions, sessions
        self._mean = PersonMean(scans, motions)
        self._fields = differential_bias(scans, motions)
        self._latest: tuple[str | None, PersonMean | SessionMean] = None, self._mean

    def with_it(
        self, place: int, volume: Volume, seen: NetworkScores
    ) -> tuple[Volume, NetworkScores]:
        """Return one of the scans with the mean bias field, and its scores with the shared prior.

        Parameters
        ----------
        place
            Of the scan among `scans`.
        """
        scan, field = self._scans[place], self._fields[place]
        if field is not None:
            volume = corrected(volume, seen.crop, scan, field)
        session = self._sessions[place]
        alone = self._sessions.count(session) == 1 < len(self._scans)
        prior = person_prior(
            seen.prior,
            scan,
            self._mean if alone else self._mean_of(session),
            self._motions[place],
            least=SESSION if alone else 0,
        )
        return volume, replace(seen, prior=prior)

    def _mean_of(self, session: str) -> PersonMean | SessionMean:
        """Return what the scans of a session share; that of the latest session is kept."""
        if {*self._sessions} == {session}:
            return self._mean
        if self._latest[0] != session:
            own = [n for n, each in enumerate(self._sessions) if each == session]
            mean = PersonMean([self._scans[n] for n in own], [self._motions[n] for n in own])
            self._latest = session, SessionMean(mean, self._mean)
        return self._latest[1]
