"""Reading back what lies on disk of a finished scan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from siam_bids.bids.names import ScanNames, sidecar
from siam_bids.support.atomic_files import read_json
from siam_bids.support.tsv import read_rows


@dataclass(frozen=True, kw_only=True)
class ScanResult:
    """What lies on disk of one finished scan.

    Attributes
    ----------
    about
        Sidecar of the segmentation.
    volumes
        Rows of the volume table: index (None for sums), name, voxels, volume_mL.
    quality
        Metrics by name, those that could be measured; empty for results of versions without them.
    """

    names: ScanNames
    about: dict[str, Any]
    volumes: tuple[dict[str, Any], ...]
    quality: dict[str, float]

    @property
    def millilitres(self) -> dict[str, float]:
        """Volumes by tissue in mL."""
        return {row["name"]: row["volume_mL"] for row in self.volumes}

    @property
    def source(self) -> str:
        """Path of the scan in its dataset."""
        return str(self.about["Sources"][0]).removeprefix("bids:raw:")


def read_result(names: ScanNames) -> ScanResult:
    """Read the tables and the sidecar of one scan, each once."""
    volumes = tuple(
        {
            "index": None if row["index"] == "n/a" else int(row["index"]),
            "name": row["name"],
            "voxels": int(row["voxels"]),
            "volume_mL": float(row["volume_mL"]),
        }
        for row in read_rows(names.volumes)
    )
    rows = read_rows(names.quality) if names.quality.exists() else [{}]
    quality = {
        name: float(value)
        for name, value in rows[0].items()
        if value != "n/a" and name not in ("flag", "reasons")
    }
    about = read_json(sidecar(names.segmentation))
    return ScanResult(names=names, about=about, volumes=volumes, quality=quality)
