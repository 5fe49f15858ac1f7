import json
import math
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import affine_of
from test_status import made

from siam_bids import __version__
from siam_bids.bids.description import begin_dataset
from siam_bids.bids.label_tables import (
    FREESURFER_TABLE,
    ITKSNAP_TABLE,
    LABEL_TABLE,
    read_label_table,
    save_label_table,
)
from siam_bids.bids.names import ScanNames, sidecar
from siam_bids.bids.results import read_result
from siam_bids.bids.scan import BidsName
from siam_bids.bids.writers import (
    remove_table,
    save_mask,
    save_phenotype,
    save_preview,
    save_probability,
    save_quality,
    save_resources,
    save_segmentation,
    save_table,
    save_volumes,
)
from siam_bids.errors import UsageError
from siam_bids.image.grid import Grid, Segmentation
from siam_bids.image.labels import LabelTable, siam_labels
from siam_bids.measures.quality import judge
from siam_bids.measures.volumes import tissue_volumes
from siam_bids.support.atomic_files import read_json, together, write_json

ABOUT = {
    "Sources": ["bids:raw:sub-01/anat/x.nii"],
    "Model": {"Title": "tiny", "Version": "1", "SHA256": "0" * 64, "Citation": ""},
    "Software": {"siam-bids": "0"},
    "Grid": {"Shape": [9, 8, 7], "VoxelSize": [1, 1.0, 1], "Orientation": "RAS"},
    "InputSHA256": "0" * 64,
}
"""Of a sidecar as much as tables and pages take from it."""


def volumes() -> pd.DataFrame:
    data = np.random.default_rng(0).integers(0, 18, (9, 8, 7)).astype(np.uint8)
    return tissue_volumes(Segmentation(data, Grid(data.shape, np.eye(4)), siam_labels()))


def test_dataset_files(tmp_path):
    source = tmp_path / "raw data"
    root = tmp_path / "out"
    begin_dataset(root, source, siam_labels())
    about = json.loads((root / "dataset_description.json").read_text())
    assert about == {
        "Name": "Head segmentations by siam-bids",
        "BIDSVersion": "1.11.1",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "siam-bids", "Version": __version__}],
        "SourceDatasets": [{"URL": source.as_uri()}],
        "DatasetLinks": {"raw": source.as_uri()},
    }
    ignored = (root / ".bidsignore").read_text().split()
    assert {"*.html", "figures", "group_*", "seg-*.txt"} < set(ignored)
    assert not any(line.endswith("/") for line in ignored)
    readme = (root / "README").read_text().splitlines()
    assert readme[0] == f"Segmentations of whole-head MRI made by siam-bids {__version__}."
    assert len(readme) == 3
    snap, free = (
        (root / name).read_text().splitlines() for name in (ITKSNAP_TABLE, FREESURFER_TABLE)
    )
    assert snap[0] == "# ITK-SnAP Label Description File"
    assert snap[2:4] == [
        '    0    0   0   0  0  0  0  "Background"',
        '    1  201  96  34  1  1  1  "Cerebral cortex"',
    ]
    assert free[:3] == ["#No. Name R G B A", "0 background 0 0 0 0", "1 GM 201 96 34 0"]
    assert [len(snap), len(free)] == [20, 19]
    lines = (root / "seg-siam_dseg.tsv").read_text().splitlines()
    assert lines[0].split("\t") == ["index", "name", "abbreviation", "color", "mapping", "role"]
    assert lines[13].split("\t")[::2] == ["12", "Hippo", "9"]
    assert read_label_table(root) == siam_labels()


@pytest.mark.parametrize("codes", ["RAS", "LIA", "PSR"])
def test_a_saved_segmentation_lies_on_its_grid(tmp_path, codes):
    affine = affine_of(codes, (0.9, 1.1, 4.0), 0.3)
    affine = affine.astype(np.float32).astype(np.float64)  # as headers hold it: not quite square
    data = np.random.default_rng(0).integers(0, 18, (9, 8, 7)).astype(np.uint8)
    path = tmp_path / "a_dseg.nii.gz"
    save_segmentation(path, Segmentation(data, Grid(data.shape, affine), siam_labels()))
    image = nib.load(path)
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(image.dataobj), data)
    np.testing.assert_allclose(image.get_sform(), affine, atol=1e-5)
    np.testing.assert_allclose(image.get_qform(), affine, atol=1e-5)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert [int(image.header[code]) for code in ("sform_code", "qform_code")] == [1, 1]


def test_a_sheared_grid_keeps_its_sform_and_has_no_qform(tmp_path):
    affine = np.eye(4)
    affine[0, 1] = 0.4
    mask = np.ones((8, 8, 8), bool)
    save_mask(tmp_path / "m.nii.gz", mask, Grid(mask.shape, affine))
    image = nib.load(tmp_path / "m.nii.gz")
    np.testing.assert_allclose(image.affine, affine)
    assert [int(image.header[code]) for code in ("sform_code", "qform_code")] == [1, 0]
    assert image.get_data_dtype() == np.uint8
    share = np.full(mask.shape, 0.25, np.float32)
    save_probability(tmp_path / "p.nii.gz", share, Grid(mask.shape, affine))
    image = nib.load(tmp_path / "p.nii.gz")
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asarray(image.dataobj), share)


def test_images_are_the_same_bytes_every_time(tmp_path):
    mask = np.ones((8, 8, 8), bool)
    for name in "ab":
        save_mask(tmp_path / f"{name}.nii.gz", mask, Grid(mask.shape, np.eye(4)))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_preview_is_its_voxels_on_its_grid_and_the_same_bytes_every_time(tmp_path):
    data = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    affine = affine_of("LIA", (2.0, 2.5, 3.0))
    for name in "ab":
        path = tmp_path / f"{name}.nii.gz"
        save_preview(path, data, Grid(data.shape, affine))
        assert path.read_bytes()[4:8] == bytes(4)  # no time
    image = nib.load(path)
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(image.dataobj), data)
    np.testing.assert_allclose(image.affine, affine, atol=1e-5)
    assert (tmp_path / "a.nii.gz").read_bytes() == path.read_bytes()


def test_volume_tables_come_back_and_every_column_is_explained(tmp_path):
    table = volumes()
    names = ScanNames(tmp_path, BidsName.parse("sub-01_T1w"))
    path = names.volumes
    save_volumes(path, table, siam_labels())
    save_quality(names.quality, {"TIV": 1500.25, "snr_WM": math.nan})
    write_json(sidecar(names.segmentation), ABOUT)
    again = read_result(names, siam_labels())
    assert [row["voxels"] for row in again.volumes] == table["voxels"].tolist()
    assert [row["index"] for row in again.volumes] == [*range(1, 18), None]
    assert [row["name"] for row in again.volumes] == table["name"].tolist()
    np.testing.assert_allclose(list(again.millilitres.values()), table["volume_mL"], atol=1e-4)
    assert again.quality == {"TIV": 1500.25}
    assert path.read_text().splitlines()[-1].startswith("n/a\tTIV\t")
    meaning = json.loads(sidecar(path).read_text())
    assert list(meaning) == list(table.columns)
    assert meaning["volume_mL"]["Units"] == "mL"


def test_a_model_with_other_labels_is_kept_out_of_a_folder_in_use(tmp_path):
    root, labels = tmp_path / "out", siam_labels()
    fewer = LabelTable(labels.labels[:-1])
    begin_dataset(root, tmp_path, fewer)
    begin_dataset(root, tmp_path, labels)  # nothing lies in it yet
    names = ScanNames(root, BidsName.parse("sub-01_T1w"))
    names.anat.mkdir(parents=True)
    sidecar(names.segmentation).write_text("{}")
    begin_dataset(root, tmp_path, labels)
    said = r"holds results of a model with other labels\. Give another output folder\.$"
    with pytest.raises(UsageError, match=said):
        begin_dataset(root, tmp_path, fewer)
    assert read_label_table(root) == labels


def test_a_table_without_roles_as_older_versions_wrote_it_still_has_them(tmp_path):
    labels = siam_labels().labels
    part = replace(labels[-1], index=18, name="CA1", role="subcortical", parent="Hippo")
    table = LabelTable((*labels, part))
    save_label_table(tmp_path / LABEL_TABLE, table)
    rows = pd.read_csv(tmp_path / LABEL_TABLE, sep="\t", keep_default_na=False)
    rows.drop(columns="role").to_csv(tmp_path / LABEL_TABLE, sep="\t", index=False)
    assert read_label_table(tmp_path) == table


def test_labels_that_refine_another_come_back_with_it(tmp_path):
    labels = siam_labels().labels
    part = replace(labels[-1], index=18, name="CA1", long_name="CA1", parent="Hippo")
    table = LabelTable((*labels, part))
    save_label_table(tmp_path / LABEL_TABLE, table)
    rows = pd.read_csv(tmp_path / LABEL_TABLE, sep="\t", keep_default_na=False)
    assert list(rows["parent"]) == ["n/a"] * len(labels) + ["Hippo"]
    assert read_label_table(tmp_path) == table


def test_quality_is_one_row_with_its_verdict_and_every_column_explained(tmp_path):
    names = ScanNames(tmp_path, BidsName.parse("sub-01_T1w"))
    values = {"TIV": 100.0, "brain_cut_top": 25.0}
    save_quality(names.quality, values)
    header, row = names.quality.read_text().splitlines()
    flag, reasons = judge(values)
    assert len(reasons) == 2
    assert header == "TIV\tbrain_cut_top\tflag\treasons"
    assert row == f"100\t25\t{flag}\t{'; '.join(reasons)}"
    meaning = json.loads(sidecar(names.quality).read_text())
    assert list(meaning) == header.split("\t")
    save_volumes(names.volumes, volumes(), siam_labels())
    write_json(sidecar(names.segmentation), ABOUT)
    result = read_result(names, siam_labels())
    assert (result.names, result.source, result.quality) == (names, "sub-01/anat/x.nii", values)


def test_a_table_comes_with_dictionary_and_parquet_and_goes_with_them(tmp_path):
    table = pd.DataFrame(
        {"scan": ["a", "b"], "site": ["x", None], "GM": [1.23456, math.nan]}, index=[4, 7]
    )
    described = {"scan": {"Description": "x"}}
    for name in ("group_qc", "group_more"):
        with together() as batch:
            save_table(batch, tmp_path, name, table, described)
    text = (tmp_path / "group_qc.tsv").read_text()
    assert text == "scan\tsite\tGM\na\tx\t1.23456\nb\tn/a\tn/a\n"
    assert json.loads((tmp_path / "group_qc.json").read_text()) == {"scan": {"Description": "x"}}
    packed = pd.read_parquet(tmp_path / "group_qc.parquet")
    pd.testing.assert_frame_equal(packed, table.reset_index(drop=True))
    with together() as batch:
        remove_table(batch, tmp_path, "group_qc")
    assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {"group_more"}
    assert len(list(tmp_path.iterdir())) == 3


def test_what_people_add_to_the_dataset_stays(tmp_path):
    root, raw = tmp_path / "out", tmp_path / "raw"
    raw.mkdir()
    write_json(raw / "dataset_description.json", {"Name": "Raw", "Authors": ["A", "B"]})
    begin_dataset(root, raw, siam_labels())
    about = read_json(root / "dataset_description.json")
    assert about["Authors"] == ["A", "B"]
    write_json(root / "dataset_description.json", {**about, "License": "CC0", "Authors": ["C"]})
    (root / "README").write_text("Our study.\n")
    (root / ".bidsignore").write_text("mine\n")
    begin_dataset(root, raw, siam_labels())
    again = read_json(root / "dataset_description.json")
    assert again == {**about, "License": "CC0", "Authors": ["C"]}
    assert (root / "README").read_text() == "Our study.\n"
    assert (root / ".bidsignore").read_text().split()[:2] == ["mine", "*.html"]


def test_measurements_of_others_stay_in_phenotype(tmp_path):
    table = pd.DataFrame({"participant_id": ["sub-01"], "GM": [600.0]})
    with together() as batch:
        save_phenotype(batch, tmp_path, {"T1w": (table, {})})
    own = tmp_path / "phenotype"
    for name in ("siam_mynotes.tsv", "siam_mynotes.json", "siam_T9w.tsv", "siam_x.txt", "moca.tsv"):
        (own / name).write_text("{}")
    (own / "siam_copy.json").write_bytes((own / "siam_T1w.json").read_bytes())
    before = {path.name for path in own.iterdir()}
    with together() as batch:
        save_phenotype(batch, tmp_path, {"T2w": (table, {})})
    after = {path.name for path in own.iterdir()}
    assert before - after == {"siam_T1w.tsv", "siam_T1w.json"}
    assert after - before == {"siam_T2w.tsv", "siam_T2w.json"}


def test_phenotype_holds_one_table_per_kind_of_scan_and_no_old_ones(tmp_path):
    table = pd.DataFrame({"participant_id": ["sub-01"], "GM": [600.0]})
    described = {"participant_id": {"Description": "who"}}
    for kinds in (("T1w", "ses-a_T2w"), ("T1w",)):
        with together() as batch:
            save_phenotype(batch, tmp_path, dict.fromkeys(kinds, (table, described)))
        found = sorted(path.name for path in (tmp_path / "phenotype").iterdir())
        assert found == [f"siam_{kind}.{end}" for kind in kinds for end in ("json", "tsv")]
    about = json.loads((tmp_path / "phenotype/siam_T1w.json").read_text())
    tool = "Volumes of head tissues on T1w images by siam-bids."
    assert about == {"MeasurementToolMetadata": {"Description": tool}, **described}
    assert (tmp_path / "phenotype/siam_T1w.tsv").read_text().endswith("sub-01\t600\n")


def test_what_scans_took_is_one_table(tmp_path):
    one, two, three = made(tmp_path, "sub-01", "sub-02", "sub-03")
    with together() as batch:
        save_resources(batch, tmp_path)
    assert not (tmp_path / "logs").exists()
    write_json(
        one.record, {"seconds": 3.5, "stages": {"read": 1, "write": 2.5}, "peak_memory_MB": 900}
    )
    write_json(two.record, {"seconds": 2})  # of a version that did not measure
    write_json(three.record, {"seconds": 1, "stages": {"read": 1}, "peak_memory_MB": 800})
    with together() as batch:
        save_resources(batch, tmp_path)
    assert (tmp_path / "logs/resources.tsv").read_text() == (
        "scan\tseconds\tpeak_memory_MB\tread_s\twrite_s\nsub-01_T1w\t3.5\t900\t1\t2.5\n"
        "sub-03_T1w\t1.0\t800\t1\tn/a\n"
    )


@pytest.mark.parametrize(("text", "content"), [('{"a": 1}', {"a": 1}), ("[1]", {}), ("{", {})])
def test_a_broken_object_is_an_unfinished_result(tmp_path, text, content):
    path = tmp_path / "x.json"
    assert read_json(path) == {}
    path.write_text(text)
    assert read_json(path) == content
