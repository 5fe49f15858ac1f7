"""One anatomical image of a dataset, and where such images lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

EXTENSIONS = (".nii.gz", ".nii")
CT = ("ct", "CT")
FOLDERS = ("anat", *CT)
"""Where images of heads lie: as BIDS has it, and CT as BIDS extension proposal 24 and labs do."""

NO_ANATOMY = ("phase", "real", "imag")


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One anatomical image of a dataset.

    Attributes
    ----------
    path
        The image file.
    relative
        Its path from the dataset's root, with forward slashes.
    subject, session
        Labels without prefix; session is empty where there is none.
    suffix
        The contrast, for example `T1w`.
    """

    path: Path
    relative: str
    subject: str
    session: str
    suffix: str

    @property
    def stem(self) -> str:
        """All entities of the name, in order: `sub-01_ses-a_run-2`."""
        return self.name.rpartition("_")[0]

    @property
    def name(self) -> str:
        """Name without extension: `sub-01_ses-a_run-2_T1w`."""
        return self.path.name.split(".", 1)[0]
