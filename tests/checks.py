"""What must hold of an output folder at any moment, and of a finished derivative dataset."""

import csv
import gzip
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlparse

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
from bidsschematools.schema import load_schema
from bidsschematools.types.namespace import Namespace
from jsonschema import validate
from PIL import Image

from siam_bids.bids.label_tables import LABEL_TABLE
from siam_bids.bids.names import FIGURES, finished_scans, sidecar
from siam_bids.measures.ratings import PREFIX as RATINGS
from siam_bids.support.atomic_files import SCRATCH


def check_whole(root: Path) -> int:
    """Every file is complete and valid, what is declared done is all there; count the files."""
    found = [path for path in root.rglob("*") if path.is_file() and SCRATCH not in path.name]
    for path in found:
        _READERS[path.suffix](path)
    for names in finished_scans(root):
        about = json.loads(sidecar(names.segmentation).read_text(encoding="utf-8"))
        wanted = [names.segmentation, names.volumes, names.quality]
        masks = [place for place in about["Outputs"] if place.endswith("_mask.nii.gz")]
        wanted += [names.brain_mask] if masks else []
        wanted += [names.probability(tissue) for tissue in about["Options"]["probabilities"]]
        wanted += [sidecar(path) for path in wanted]
        wanted += [names.figure(kind) for kind in FIGURES]
        assert [path.name for path in wanted if not path.exists()] == []
    return len(found)


def _image(path: Path) -> None:
    content = gzip.decompress(path.read_bytes())  # checks length and CRC
    image = nib.Nifti1Image.from_bytes(content)
    data = np.asarray(image.dataobj)
    assert len(content) == 352 + data.nbytes, path


def _json(path: Path) -> None:
    assert json.loads(path.read_text(encoding="utf-8")), path


def _table(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    widths = {len(line.split("\t")) for line in text.splitlines()}
    assert text.endswith("\n"), path
    assert len(widths) == 1, path


def _picture(path: Path) -> None:
    with Image.open(path) as picture:
        picture.load()


def _page(path: Path) -> None:
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>"), path


def _text(path: Path) -> None:
    assert path.read_text(encoding="utf-8").endswith("\n"), path


_READERS = {
    ".gz": _image, ".json": _json, ".tsv": _table, ".png": _picture, ".webp": _picture,
    ".html": _page, ".parquet": pq.read_table, ".txt": _text, "": _text,
}  # fmt: skip


def validator_errors(root: Path, severity="error") -> list[str]:
    """What the BIDS validator calls errors or warnings, headers of images included."""
    validator = Path(sys.executable).with_name("bids-validator-deno")
    done = subprocess.run(
        [str(validator), str(root), "--format", "json"], capture_output=True, text=True, check=False
    )
    issues = json.loads(done.stdout)["issues"]["issues"]
    return [f"{i['code']} {i['location']}" for i in issues if i["severity"] == severity]


def check_derivative(root: Path, raw: Path) -> None:
    """What the validator does not see: links, sources, dictionaries, types of sidecar entries."""
    about = json.loads((root / "dataset_description.json").read_text(encoding="utf-8"))
    assert about["DatasetType"] == "derivative"
    assert about["GeneratedBy"][0]["Name"] == "siam-bids"
    assert about["GeneratedBy"][0]["Version"]
    linked = Path(unquote(urlparse(about["DatasetLinks"]["raw"]).path))
    assert linked.resolve() == raw.resolve()
    assert about["SourceDatasets"] == [{"URL": about["DatasetLinks"]["raw"]}]
    for image in root.glob("sub-*/**/anat/*.nii.gz"):
        _check_sidecar(sidecar(image), raw)
    check_tables(root)


def check_tables(root: Path) -> None:
    """Every column of every table of ours is explained in the dictionary beside it."""
    for table in [*root.glob("sub-*/**/*.tsv"), *root.glob("*.tsv"), *root.glob("phenotype/*.tsv")]:
        if table.name != LABEL_TABLE and not table.name.startswith(RATINGS):
            _check_dictionary(table)


def _check_sidecar(path: Path, raw: Path) -> None:
    known = _metadata()
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["Sources"], path
    for source in content["Sources"]:
        assert source.startswith("bids:raw:"), source
        assert (raw / source.removeprefix("bids:raw:")).is_file(), source
    for key, value in content.items():
        if key in known:
            validate(value, _plain(known[key].to_dict()))


@cache
def _metadata() -> Namespace:
    return load_schema().objects.metadata


def _plain(schema: dict) -> dict:
    """Leave out formats of the BIDS schema's own."""
    return {key: value for key, value in schema.items() if key != "format"}


def _check_dictionary(table: Path) -> None:
    with table.open(encoding="utf-8", newline="") as stream:
        columns = next(csv.reader(stream, delimiter="\t"))
    meaning = json.loads(table.with_suffix(".json").read_text(encoding="utf-8"))
    unnamed = set(columns) - set(meaning)
    assert unnamed == set(), (table.name, unnamed)
    assert all(meaning[name].get("Description") for name in columns if name in meaning), table.name
