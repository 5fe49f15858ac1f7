"""The table of lesions: measured, written, read back."""

import nibabel as nib
import numpy as np
import pytest
from conftest import run_config, write_raw

from siam_bids.bids.names import finished_scans, sidecar
from siam_bids.bids.results import read_results
from siam_bids.image.grid import Grid, Segmentation
from siam_bids.image.labels import LabelTable, siam_labels
from siam_bids.measures.lesions import DICTIONARY, connected_lesions, lesion_table
from siam_bids.pipelines.participant import run_participant
from siam_bids.support.atomic_files import read_json

TABLE = siam_labels()
INDEX = {label.name: label.index for label in TABLE}
AFFINE = np.array([[0.0, -2, 0, 10], [1, 0, 0, -5], [0, 0, 3, 7], [0, 0, 0, 1]])


def segmentation() -> Segmentation:
    """White matter with a lesion of 8 voxels; cortex around another of 2, joined at a corner."""
    data = np.zeros((12, 10, 8), np.uint8)
    data[:7], data[7:11] = INDEX["WM"], INDEX["GM"]
    data[2:4, 2:4, 2:4] = INDEX["Anomalies"]
    data[8, 5, 4] = data[9, 6, 5] = INDEX["Anomalies"]
    return Segmentation(data, Grid(data.shape, AFFINE), TABLE)


def test_lesions_are_numbered_by_size_and_measured() -> None:
    head = segmentation()
    probability = np.where(head.data == INDEX["Anomalies"], 0.75, 0).astype(np.float16)
    probability[8, 5, 4] = 0.25
    sides = np.where(np.arange(10) < 5, 1, 2)[None, :, None] * np.ones(head.data.shape, np.uint8)
    table = lesion_table(head, probability, sides.astype(np.uint8))
    assert list(table) == list(DICTIONARY)
    first, second = table.to_dict("records")
    assert first == {
        "number": 1,
        "voxels": 8,
        "volume_mm3": 48.0,
        "place": "WM",
        "hemisphere": "left",
        "x": 5.0,  # voxel (2.5, 2.5, 2.5) by the affine
        "y": -2.5,
        "z": 14.5,
        "confidence": 0.75,
    }
    assert (second["number"], second["voxels"], second["volume_mm3"]) == (2, 2, 12.0)
    assert (second["place"], second["hemisphere"]) == ("GM", "right")
    assert second["confidence"] == 0.5
    assert (second["x"], second["y"], second["z"]) == (-1.0, 3.5, 20.5)


def test_what_is_not_known_is_missing() -> None:
    head = segmentation()
    head.data[head.data != INDEX["Anomalies"]] = 0
    table = lesion_table(head)
    assert table["place"].isna().all()
    assert table["hemisphere"].isna().all()
    assert table["confidence"].isna().all()


def test_a_healthy_head_has_an_empty_table() -> None:
    head = segmentation()
    head.data[head.data == INDEX["Anomalies"]] = INDEX["WM"]
    table = lesion_table(head)
    assert (list(table), len(table)) == (list(DICTIONARY), 0)


def test_models_without_a_lesion_label_have_no_lesion() -> None:
    table = LabelTable.from_names({"background": 0, "WM": 1})
    head = Segmentation(np.ones((3, 3, 3), np.uint8), Grid((3, 3, 3), np.eye(4)), table)
    assert connected_lesions(head)[1] == 0


@pytest.fixture
def finished(tmp_path, head, tiny_model):
    """Folder and output names of a scan, segmented by a model of SIAM's labels."""
    raw = write_raw(tmp_path / "raw", head, "sub-01_T1w")
    run_participant(run_config(raw, tmp_path / "out", tiny_model))
    (names,) = finished_scans(tmp_path / "out")
    return tmp_path / "out", names


def test_the_participant_level_writes_it_and_the_page_shows_it(finished) -> None:
    out, names = finished
    assert names.lesions.name == "sub-01_desc-T1w_lesions.tsv"
    assert read_json(sidecar(names.lesions)) == DICTIONARY
    recorded = read_json(sidecar(names.segmentation))["Outputs"]
    assert f"sub-01/anat/{names.lesions.name}" in recorded
    labels = np.asarray(nib.load(names.segmentation).dataobj)
    (result,) = read_results(out).usable
    assert sum(row["voxels"] for row in result.lesions) == (labels == INDEX["Anomalies"]).sum() > 0
    assert [row["number"] for row in result.lesions] == list(range(1, 1 + len(result.lesions)))
    assert all(0 < row["confidence"] <= 1 for row in result.lesions)
    first = result.lesions[0]
    page = (out / "sub-01.html").read_text(encoding="utf-8")
    assert "<h3>Lesions</h3>" in page
    assert f"{first['x']:.0f}, {first['y']:.0f}, {first['z']:.0f}" in page
    assert f'href="sub-01/anat/{names.lesions.name}"' in page


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("number\t", "count\t", "has no column number"),
        ("\tWM\t", "\t<b>\t", "place in sub-01_desc-T1w_lesions.tsv is '<b>', no such place"),
        ("\n1\t", "\none\t", "number in sub-01_desc-T1w_lesions.tsv is 'one'"),
        ("\n1\t", "\n7\t", "does not match the checksum"),
    ],
)
def test_a_table_that_was_changed_is_named(finished, old: str, new: str, reason: str) -> None:
    out, names = finished
    text = names.lesions.read_text(encoding="utf-8")
    place = read_results(out).usable[0].lesions[0]["place"]
    old = old.replace("WM", place)
    assert old in text
    names.lesions.write_text(text.replace(old, new, 1), encoding="utf-8")
    (said,) = read_results(out).unusable.values()
    assert reason in said


def test_a_missing_table_makes_the_scan_unfinished(finished, head, tiny_model) -> None:
    out, names = finished
    names.lesions.unlink()
    summary = run_participant(run_config(out.parent / "raw", out, tiny_model))
    assert summary.done == ["sub-01_T1w"]
    assert names.lesions.is_file()
