"""FreeSurfer's values made of SIAM's labels, with `--aseg` and for FreeSurfer's own tools."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from conftest import run_config, write_model
from scipy.spatial.transform import Rotation
from test_hemispheres import INDEX, LABELS, MAPS, slow, two_hemispheres

from siam_bids.bids.names import finished_scans
from siam_bids.config import Query
from siam_bids.errors import UsageError
from siam_bids.image.grid import Grid, Segmentation
from siam_bids.image.labels import LabelTable, read_siam_table
from siam_bids.measures.aseg import (
    FEATURES,
    NEEDED,
    REGIONS,
    aseg_labels,
    aseg_values,
    aseg_volumes,
    can_be_aseg,
    weights,
)
from siam_bids.pipelines.participant import run_participant
from siam_bids.pipelines.verify import verify
from siam_bids.support.tsv import read_rows


def test_every_tissue_has_a_value_on_its_side():
    labels, truth, affine = two_hemispheres()
    labels[30:33, 40:43, 34:36] = INDEX["Anomalies"]
    values = aseg_values(Segmentation(labels, Grid(labels.shape, affine), LABELS))
    for name, left, right in (("GM", 3, 42), ("cerGM", 8, 47), ("Put", 12, 51), ("Hippo", 17, 53)):
        own = labels == INDEX[name]
        assert {*np.unique(values[own]).tolist()} == {left, right}
        assert ((values == right) == (truth == 2))[own].mean() > 0.99
    assert {*values[labels == INDEX["WM"]]} == {2, 41, 7, 46, 16} & {*np.unique(values)}
    assert {*values[labels == INDEX["CSF"]]} == {24}
    assert {*values[labels == INDEX["Anomalies"]]} <= {25, 57}
    assert not values[labels == 0].any()
    table = aseg_volumes(values, Grid(labels.shape, affine)).set_index("name")
    assert table["voxels"].sum() == (values > 0).sum()
    assert table.loc["Left-Putamen", "volume_mm3"] == pytest.approx((values == 12).sum() * 2.5**3)
    assert table.loc["Right-Putamen", "index"] == 51


def test_the_brain_stem_lies_below_and_follows_the_head():
    labels, _, affine = two_hemispheres()
    upright = aseg_values(Segmentation(labels, Grid(labels.shape, affine), LABELS))
    height = np.argwhere(upright == 16)[:, 2] * 2.5 + affine[2, 3]
    assert len(height) > 100
    assert height.mean() < -15
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec([0.5, 0, 0]).as_matrix()
    turned = aseg_values(Segmentation(labels, Grid(labels.shape, turn @ affine), LABELS))
    assert (turned == upright)[upright > 0].mean() > 0.98


def test_without_cerebellum_all_white_matter_is_cerebral():
    labels, _, affine = two_hemispheres()
    labels[labels == INDEX["cerGM"]] = 0
    values = aseg_values(Segmentation(labels, Grid(labels.shape, affine), LABELS))
    assert {*values[labels == INDEX["WM"]]} == {2, 41}
    assert {*values[labels == INDEX["CSFv"]]} == {4, 43}


def test_too_little_brain_is_all_nothing():
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[4] = INDEX["GM"]
    assert not aseg_values(Segmentation(labels, Grid(labels.shape, np.eye(4)), LABELS)).any()


def test_a_model_with_a_label_of_the_stem_keeps_it():
    table = read_siam_table("siam_v0.1.tsv")
    assert can_be_aseg(table)
    assert not can_be_aseg(read_siam_table("siam_v4.tsv"))
    labels, _, affine = two_hemispheres()
    data = np.zeros_like(labels)
    for name in NEEDED:
        data[labels == INDEX[name]] = table.by_name[name].index
    stem = labels == INDEX["WM"]
    stem[:, :, 18:] = False
    data[stem] = table.by_name["Brainsteam"].index
    values = aseg_values(Segmentation(data, Grid(data.shape, affine), table))
    assert {*values[stem]} == {16}
    assert not np.isin(values[~stem], (7, 46, 16)).any()


def test_names_are_freesurfers_and_weights_are_complete():
    rows = {label.index: label.name for label in aseg_labels()}
    assert (rows[2], rows[41], rows[16]) == (
        "Left-Cerebral-White-Matter", "Right-Cerebral-White-Matter", "Brain-Stem",
    )  # fmt: skip
    for name, regions in REGIONS.items():
        assert weights(name).shape == (len(FEATURES), len(regions) - 1)
        assert np.isfinite(weights(name)).all()


def test_a_run_writes_an_aseg_and_its_volumes(bids, tmp_path, tiny_model):
    query = Query(participants=("01",))
    config = run_config(bids, tmp_path / "out", tiny_model, segmentations=("aseg", "siamhemi"))
    config = replace(config, query=query)
    assert run_participant(config).done == ["sub-01_T1w"]
    (names,) = finished_scans(config.output_dir)
    values = np.asarray(nib.load(names.further_segmentation("aseg")).dataobj)
    known = {int(row["index"]): row for row in read_rows(config.output_dir / "seg-aseg_dseg.tsv")}
    assert {*np.unique(values).tolist()} <= {*known}
    assert known[42]["name"] == "Right Cerebral Cortex"
    assert known[42]["abbreviation"] == "Right-Cerebral-Cortex"
    table = read_rows(names.further_volumes("aseg"))
    assert names.further_volumes("aseg").name == "sub-01_seg-aseg_desc-T1w_volumes.tsv"
    assert {int(row["index"]): int(row["voxels"]) for row in table} == {
        index: int((values == index).sum()) for index in known if index
    }
    assert verify(config).whole == ["sub-01_T1w"]
    assert run_participant(config).skipped == ["sub-01_T1w"]
    names.further_volumes("aseg").unlink()
    assert run_participant(config).done == ["sub-01_T1w"]


def test_labels_that_make_no_aseg_are_refused(bids, tmp_path):
    model = write_model(tmp_path / "small", names=["background", "GM", "WM", "CSF"])
    config = run_config(bids, tmp_path / "out", model, segmentations=("aseg",))
    with pytest.raises(UsageError, match="do not make a segmentation of FreeSurfer's") as error:
        run_participant(config)
    assert "Needed are GM, WM, CSFv" in str(error.value.hint)
    assert not can_be_aseg(LabelTable.from_names({"background": 0, "GM": 1}))


@pytest.mark.skipif(not MAPS.is_dir(), reason="the label maps are not beside this checkout")
def test_the_stem_and_the_cerebellum_of_a_map_that_tells_them():
    head = slow().synthseg(MAPS / "training_seg_17.nii.gz")
    data = np.asarray(nib.load(MAPS / "training_seg_17.nii.gz").dataobj).astype(int)
    found = np.argwhere(data != 0)
    low, high = found.min(0), found.max(0) + 1
    data = data[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    values = aseg_values(head.segmentation)
    for told, true, least in (((7, 46), (7, 46), 0.94), ((16,), (16, 512), 0.88)):
        one, two = np.isin(values, told), np.isin(data, true)
        assert 2 * (one & two).sum() / (one.sum() + two.sum()) > least
