import json
import math

import nibabel as nib
import numpy as np
import pytest
from conftest import affine_of

from siam_bids import derivatives
from siam_bids.derivatives import ScanNames
from siam_bids.errors import UsageError
from siam_bids.files import write_json
from siam_bids.labels import LabelTable, siam_labels
from siam_bids.measure import tissue_volumes
from siam_bids.volume import Grid, Segmentation


@pytest.mark.parametrize(
    ("scan", "expected"),
    [
        (
            ("01", "", "sub-01", "T1w"),
            {
                "segmentation": "sub-01/anat/sub-01_seg-siam_desc-T1w_dseg.nii.gz",
                "brain_mask": "sub-01/anat/sub-01_label-brain_desc-T1w_mask.nii.gz",
                "volumes": "sub-01/anat/sub-01_desc-T1w_volumes.tsv",
                "record": "logs/sub-01/sub-01_T1w.json",
                "report": "sub-01.html",
            },
        ),
        (
            ("A2", "pre", "sub-A2_ses-pre_acq-hi_run-02_echo-1_part-mag", "T2starw"),
            {
                "segmentation": "sub-A2/ses-pre/anat/sub-A2_ses-pre_acq-hi_run-02_echo-1_part-mag"
                "_seg-siam_desc-T2starw_dseg.nii.gz",
                "volumes": "sub-A2/ses-pre/anat/sub-A2_ses-pre_acq-hi_run-02_echo-1_part-mag"
                "_desc-T2starw_volumes.tsv",
            },
        ),
    ],
)
def test_names_keep_every_entity(tmp_path, scan, expected):
    names = ScanNames(tmp_path, *scan)
    found = {key: getattr(names, key).relative_to(tmp_path).as_posix() for key in expected}
    assert found == expected


def test_probability_and_figure_names(tmp_path):
    names = ScanNames(tmp_path, "01", "", "sub-01", "T1w")
    assert names.probability("GM").name == "sub-01_seg-siam_label-GM_desc-T1w_probseg.nii.gz"
    assert names.figure("mosaic").parent.name == "figures"
    assert derivatives.sidecar(names.segmentation).name == "sub-01_seg-siam_desc-T1w_dseg.json"


def test_dataset_files(tmp_path):
    source = tmp_path / "raw data"
    root = tmp_path / "out"
    derivatives.begin_dataset(root, source, siam_labels())
    about = json.loads((root / "dataset_description.json").read_text())
    assert about["DatasetType"] == "derivative"
    assert about["GeneratedBy"][0]["Name"] == "siam-bids"
    assert about["DatasetLinks"] == {"raw": source.as_uri()}
    ignored = (root / ".bidsignore").read_text().split()
    assert "figures" in ignored
    assert not any(line.endswith("/") for line in ignored)
    lines = (root / "seg-siam_dseg.tsv").read_text().splitlines()
    assert lines[0].split("\t") == ["index", "name", "abbreviation", "color", "mapping"]
    assert lines[13].split("\t")[::2] == ["12", "Hippo", "9"]
    assert derivatives.read_label_table(root) == siam_labels()


@pytest.mark.parametrize("codes", ["RAS", "LIA", "PSR"])
def test_a_saved_segmentation_lies_on_its_grid(tmp_path, codes):
    affine = affine_of(codes, (0.9, 1.1, 4.0), 0.3)
    data = np.random.default_rng(0).integers(0, 18, (9, 8, 7)).astype(np.uint8)
    path = tmp_path / "a_dseg.nii.gz"
    derivatives.save_segmentation(path, Segmentation(data, Grid(data.shape, affine), siam_labels()))
    image = nib.load(path)
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(image.dataobj), data)
    np.testing.assert_allclose(image.get_sform(), affine, atol=1e-5)
    np.testing.assert_allclose(image.get_qform(), affine, atol=1e-5)
    assert image.header.get_xyzt_units()[0] == "mm"


def test_a_sheared_grid_keeps_its_sform_and_has_no_qform(tmp_path):
    affine = np.eye(4)
    affine[0, 1] = 0.4
    mask = np.ones((8, 8, 8), bool)
    derivatives.save_mask(tmp_path / "m.nii.gz", mask, Grid(mask.shape, affine))
    image = nib.load(tmp_path / "m.nii.gz")
    np.testing.assert_allclose(image.affine, affine)
    assert int(image.header["qform_code"]) == 0


def test_images_are_the_same_bytes_every_time(tmp_path):
    mask = np.ones((8, 8, 8), bool)
    for name in "ab":
        derivatives.save_mask(tmp_path / f"{name}.nii.gz", mask, Grid(mask.shape, np.eye(4)))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_volume_tables_come_back_and_every_column_is_explained(tmp_path):
    data = np.random.default_rng(0).integers(0, 18, (9, 8, 7)).astype(np.uint8)
    table = tissue_volumes(Segmentation(data, Grid(data.shape, np.eye(4)), siam_labels()))
    names = derivatives.ScanNames(tmp_path, "01", "", "sub-01", "T1w")
    path = names.volumes
    derivatives.save_volumes(path, table)
    derivatives.save_quality(names.quality, {"TIV": 1500.25, "snr_WM": math.nan})
    again = derivatives.read_result(names)
    assert [row["voxels"] for row in again.volumes] == table["voxels"].tolist()
    assert again.volumes[-1]["index"] is None
    np.testing.assert_allclose(list(again.millilitres.values()), table["volume_mL"], atol=1e-4)
    assert again.quality == {"TIV": 1500.25}
    assert path.read_text().splitlines()[-1].startswith("n/a\tTIV\t")
    meaning = json.loads(derivatives.sidecar(path).read_text())
    assert list(meaning) == list(table.columns)
    assert meaning["volume_mL"]["Units"] == "mL"


def test_a_model_with_other_labels_is_kept_out_of_a_folder_in_use(tmp_path):
    root, labels = tmp_path / "out", siam_labels()
    fewer = LabelTable(labels.labels[:-1])
    derivatives.begin_dataset(root, tmp_path, fewer)
    derivatives.begin_dataset(root, tmp_path, labels)  # nothing lies in it yet
    names = ScanNames(root, "01", "", "sub-01", "T1w")
    names.anat.mkdir(parents=True)
    derivatives.sidecar(names.segmentation).write_text("{}")
    derivatives.begin_dataset(root, tmp_path, labels)
    with pytest.raises(UsageError, match="holds results of a model with other labels"):
        derivatives.begin_dataset(root, tmp_path, fewer)
    assert derivatives.read_label_table(root) == labels


def test_maps_that_new_options_do_not_make_are_removed(tmp_path):
    names = ScanNames(tmp_path, "01", "", "sub-01", "T1w")
    other = ScanNames(tmp_path, "01", "", "sub-01", "T2w")
    names.anat.mkdir(parents=True)
    for path in (names.probability("GM"), names.probability("WM"), other.probability("WM")):
        path.touch()
        derivatives.sidecar(path).touch()
    derivatives.begin_scan(names, [names.segmentation, names.probability("GM")])
    left = {path.name for path in names.anat.glob("*.nii.gz")}
    assert left == {names.probability("GM").name, other.probability("WM").name}
    assert len(list(names.anat.glob("*.json"))) == 2


def test_scans_say_why_they_are_to_do(tmp_path):
    names = ScanNames(tmp_path, "01", "", "sub-01", "T1w")
    made = {"InputSHA256": "a", "Model": {"SHA256": "m"}, "Options": {}, "SoftwareVersion": "1"}
    assert derivatives.to_do(names, made, []) == "not segmented yet"
    write_json(derivatives.sidecar(names.segmentation), made)
    assert derivatives.to_do(names, made, []) == ""
    assert "is missing" in derivatives.to_do(names, made, [names.segmentation])
    for key, why in derivatives.IDENTITY.items():
        assert derivatives.to_do(names, {**made, key: "other"}, []) == why
