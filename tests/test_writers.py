import hashlib
import json
import math
import os
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import affine_of

from siam_bids import __version__
from siam_bids.bids.description import begin_dataset
from siam_bids.bids.label_tables import (
    FREESURFER_TABLE,
    ITKSNAP_TABLE,
    LABEL_TABLE,
    read_label_table,
    save_label_table,
)
from siam_bids.bids.names import ScanNames, finished_scans, sidecar
from siam_bids.bids.results import read_result
from siam_bids.bids.scan import BidsName
from siam_bids.bids.status import (
    IDENTITY,
    failed_scans,
    finish_scan,
    place_results,
    subject_state,
    sweep_root,
    sweep_subject,
    to_do,
)
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
from siam_bids.support.atomic_files import SCRATCH, read_json, together, write_json

NOTHING = hashlib.sha256().hexdigest()

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


@pytest.mark.parametrize(
    ("scan", "expected"),
    [
        (
            "sub-01_T1w",
            {
                "segmentation": "sub-01/anat/sub-01_seg-siam_desc-T1w_dseg.nii.gz",
                "brain_mask": "sub-01/anat/sub-01_label-brain_desc-T1w_mask.nii.gz",
                "volumes": "sub-01/anat/sub-01_desc-T1w_volumes.tsv",
                "record": "logs/sub-01/sub-01_T1w.json",
                "report": "sub-01.html",
            },
        ),
        (
            "sub-A2_ses-pre_acq-hi_run-02_echo-1_part-mag_T2starw",
            {
                "segmentation": "sub-A2/ses-pre/anat/sub-A2_ses-pre_acq-hi_run-02_echo-1_part-mag"
                "_seg-siam_desc-T2starw_dseg.nii.gz",
                "volumes": "sub-A2/ses-pre/anat/sub-A2_ses-pre_acq-hi_run-02_echo-1_part-mag"
                "_desc-T2starw_volumes.tsv",
            },
        ),
        (
            "sub-01_dir-AP_run-1_flip-2_inv-1_mt-on_part-mag_MP2RAGE",
            {
                "segmentation": "sub-01/anat/sub-01_run-1_part-mag"
                "_seg-siam_desc-MP2RAGE+dirAP+flip2+inv1+mton_dseg.nii.gz",
                "record": "logs/sub-01/sub-01_dir-AP_run-1_flip-2_inv-1_mt-on_part-mag"
                "_MP2RAGE.json",
            },
        ),
    ],
)
def test_names_keep_every_entity(tmp_path, scan, expected):
    names = ScanNames(tmp_path, BidsName.parse(scan))
    found = {key: getattr(names, key).relative_to(tmp_path).as_posix() for key in expected}
    assert found == expected


def test_probability_and_figure_names(tmp_path):
    names = ScanNames(tmp_path, BidsName.parse("sub-01_T1w"))
    assert (
        names.probability("GM").name
        == "sub-01_space-orig_seg-siam_label-GM_desc-T1w_probseg.nii.gz"
    )
    skull = names.probability("Skull_diploe").name
    assert skull == "sub-01_space-orig_seg-siam_label-Skulldiploe_desc-T1w_probseg.nii.gz"
    chunk = ScanNames(tmp_path, BidsName.parse("sub-01_chunk-2_T1w")).probability("GM").name
    assert chunk == "sub-01_space-orig_chunk-2_seg-siam_label-GM_desc-T1w_probseg.nii.gz"
    assert names.figure("mosaic").parent == tmp_path / "sub-01" / "figures"
    preview = names.preview("labels").relative_to(tmp_path).as_posix()
    assert preview == "sub-01/figures/sub-01_desc-T1w_previewlabels.nii.gz"
    assert sidecar(names.segmentation).name == "sub-01_seg-siam_desc-T1w_dseg.json"


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
        '    1  213  94   0  1  1  1  "Cerebral cortex"',
    ]
    assert free[:3] == ["#No. Name R G B A", "0 background 0 0 0 0", "1 GM 213 94 0 0"]
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


def recorded(names, paths):
    return {path.relative_to(names.root).as_posix(): f"sha256:{NOTHING}" for path in paths}


@pytest.mark.parametrize("kept_in", ["sidecar", "record"])
def test_maps_that_new_options_do_not_make_are_removed_if_recorded(tmp_path, kept_in):
    names = ScanNames(tmp_path, BidsName.parse("sub-01_T1w"))
    other = ScanNames(tmp_path, BidsName.parse("sub-01_T2w"))
    names.anat.mkdir(parents=True)
    ours = [names.probability("GM"), names.probability("WM"), other.probability("WM")]
    ours += [sidecar(path) for path in ours]
    for path in ours:
        path.touch()
    places = recorded(names, ours)
    if kept_in == "sidecar":
        write_json(sidecar(names.segmentation), {**ABOUT, "Outputs": places})
    else:  # of a run that was killed before its sidecar
        write_json(names.record, {"written": {place: [each] for place, each in places.items()}})
    names.probability("mine").touch()
    names.preview("image").parent.mkdir()
    names.preview("image").touch()
    made = replace(names, root=tmp_path / "made")
    made.anat.mkdir(parents=True)
    made.probability("GM").touch()
    sidecar(made.probability("GM")).touch()
    written = dict.fromkeys([made.probability("GM"), sidecar(made.probability("GM"))], NOTHING)
    seen = read_json(sidecar(names.segmentation))
    placed = place_results(names, made.root, written, seen)
    assert list(placed) == [names.probability("GM"), sidecar(names.probability("GM"))]
    left = {path.name for path in names.anat.glob("*.nii.gz")}
    kept = (names.probability("GM"), names.probability("mine"), other.probability("WM"))
    assert left == {path.name for path in kept}
    assert len(list(names.anat.glob("*.json"))) == 2
    assert not names.preview("image").exists()


def test_of_results_without_checksums_maps_of_known_tissues_are_removed(tmp_path):
    names = ScanNames(tmp_path, BidsName.parse("sub-01_T1w"))
    save_label_table(tmp_path / LABEL_TABLE, siam_labels())
    names.anat.mkdir(parents=True)
    for tissue in ("GM", "mine"):
        names.probability(tissue).touch()
    about = {**ABOUT, "Software": {"siam-bids": "0.1.0"}}
    write_json(sidecar(names.segmentation), about)
    assert place_results(names, tmp_path / "made", {}, about) == {}
    assert list(names.anat.iterdir()) == [names.probability("mine")]


def test_a_scan_of_which_something_is_gone_is_not_declared_done(tmp_path):
    names = ScanNames(tmp_path, BidsName.parse("sub-01_T1w"))
    declared = sidecar(names.segmentation)
    written = [names.segmentation, names.brain_mask, names.figure("mosaic")]
    written += [sidecar(names.brain_mask)]
    checksums = dict.fromkeys(written, NOTHING)
    for gone in written:
        for path in written:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        finish_scan(names, {"InputSHA256": "a"}, checksums)
        assert declared.exists()
        declared.unlink()
        gone.unlink()
        with pytest.raises(FileNotFoundError, match=gone.name):
            finish_scan(names, {"InputSHA256": "a"}, checksums)
        assert not declared.exists()


def test_scans_say_why_they_are_to_do(tmp_path):
    names = ScanNames(tmp_path, BidsName.parse("sub-01_T1w"))
    made = {"InputSHA256": "a", "Model": {"SHA256": "m"}, "Options": {}, "ResultsVersion": 1}
    assert to_do(names, made, []) == "not segmented yet"
    write_json(sidecar(names.segmentation), made)
    assert to_do(names, made, []) == ""
    assert "is missing" in to_do(names, made, [names.segmentation])
    for key, why in IDENTITY.items():
        assert to_do(names, {**made, key: "other"}, []) == why
    all_changed = dict.fromkeys(made, "other")
    assert to_do(names, all_changed, []) == "the input changed, it was made with another model"


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


def made(root, *stems) -> list[ScanNames]:
    """Finished scans, as far as their sidecars tell."""
    names = [ScanNames(root, BidsName.parse(f"{stem}_T1w")) for stem in stems]
    for each in names:
        write_json(sidecar(each.segmentation), {"Sources": ["bids:raw:x"]})
    return names


def test_results_and_failures_are_told_apart_and_by_subject(tmp_path):
    one, two = made(tmp_path, "sub-01", "sub-02_run-1")
    (third,) = made(tmp_path, "sub-02_ses-b")
    write_json(one.record, {"seconds": 3})
    write_json(two.record, {"error": "damaged"})
    assert list(finished_scans(tmp_path)) == [one, two, third]
    assert list(finished_scans(tmp_path, "02")) == [two, third]
    assert list(failed_scans(tmp_path)) == [two]
    assert list(failed_scans(tmp_path, "01")) == []
    assert third.identity.visit == ("sub-02", "ses-b")
    assert third.name == "sub-02_ses-b_T1w"


def test_the_state_of_a_subject_changes_with_its_results_and_failures(tmp_path):
    seen = [subject_state(tmp_path, "01")]
    (names,) = made(tmp_path, "sub-01")
    (other,) = made(tmp_path, "sub-02")
    write_json(other.record, {"error": "damaged"})
    seen.append(subject_state(tmp_path, "01"))
    write_json(names.record, {"error": "damaged"})
    seen.append(subject_state(tmp_path, "01"))
    assert [len(state) for state in seen] == [0, 1, 2]
    assert seen[2][0] == seen[1][0]
    os.utime(names.record, (5, 5))
    assert subject_state(tmp_path, "01")[1] == (names.record.as_posix(), 5 * 10**9)


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


def test_half_written_files_are_swept_where_they_can_lie(tmp_path):
    dead = f"{SCRATCH}0123456789-1-abcdefg_.json"
    of_subject = ["logs/sub-01", "sub-01/anat", "sub-01/ses-a/anat", "sub-01/figures"]
    places = {name: tmp_path / name / dead for name in (".", "logs", "sub-02/anat", *of_subject)}
    for path in places.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (0, 0))
    sweep_subject(tmp_path, "01")
    assert {name for name, path in places.items() if not path.exists()} == set(of_subject)
    sweep_root(tmp_path)
    assert [name for name, path in places.items() if path.exists()] == ["sub-02/anat"]
