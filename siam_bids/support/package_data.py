"""The package's `data/` and `templates/` folders.

A wheel carries them inside the package; a checkout (and so an editable install) has them
beside it. The packaged copy wins.
"""

from __future__ import annotations

from pathlib import Path

from siam_bids.errors import SiamError

_PACKAGE = Path(__file__).resolve().parents[1]


def resource(*parts: str) -> Path:
    """Return the path of a shipped file or folder, for example `resource("data", "labels")`.

    Raises
    ------
    SiamError
        The installation lacks the file.
    """
    for root in (_PACKAGE, _PACKAGE.parent):
        path = root.joinpath(*parts)
        if path.exists():
            return path
    name = "/".join(parts)
    raise SiamError(f"The installation lacks its own file {name}.", "Reinstall siam-bids.")
