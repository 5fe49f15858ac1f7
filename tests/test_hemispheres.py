"""Left and right: on small heads made here, and on label maps that tell sides."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import run_config, write_model
from scipy.spatial.transform import Rotation

from siam_bids.bids.label_tables import save_label_table
from siam_bids.bids.names import finished_scans
from siam_bids.bids.results import read_result
from siam_bids.bids.writers import save_volumes
from siam_bids.config import Query, RunConfig
from siam_bids.errors import DatasetError, UsageError
from siam_bids.image.grid import Grid, Segmentation
from siam_bids.image.labels import LabelTable, siam_labels
from siam_bids.measures.hemispheres import (
    PAIRED,
    find_sides,
    mid_surface,
    sided_labels,
    sided_values,
)
from siam_bids.measures.pose import upright_head
from siam_bids.measures.volumes import dictionary, tissue_volumes
from siam_bids.pipelines.group import run_group
from siam_bids.pipelines.participant import run_participant
from siam_bids.pipelines.verify import verify
from siam_bids.support.atomic_files import read_json
from siam_bids.support.tsv import read_rows

LABELS = siam_labels()
INDEX = {label.name: label.index for label in LABELS}
MAPS = Path(__file__).parents[2] / "shared" / "label_maps"
SLOW = Path(__file__).parents[1] / "benchmarks" / "sides.py"
STEP = 2.5


def two_hemispheres(bend=0.0, *, narrower=1.0):
    """A brain of two hemispheres; its fissure bends by `bend` mm to the right in front.

    Returns labels and true sides (I, J, K), and the affine. The right hemisphere is `narrower`.
    """
    low = np.array([-76.25, -100, -65])  # no voxel lies in the middle
    x, y, z = np.meshgrid(*(np.arange(a, -a + 1, STEP) for a in low), indexing="ij")
    middle = bend * np.exp(-(((y - 40) / 30) ** 2))
    across = x - middle
    across = np.where(across > 0, across / narrower, across)
    outer = np.sqrt((across / 64) ** 2 + ((y + 5) / 84) ** 2 + ((z - 12) / 56) ** 2)
    fissure = np.where((z > 24) | (np.abs(y + 5) > 40), np.abs(x - middle), 99)
    labels = np.zeros(x.shape, np.uint8)
    labels[outer < 1.05] = INDEX["CSF"]
    labels[(outer < 1) & (fissure > 1.5)] = INDEX["GM"]
    labels[(outer < 0.93) & (fissure > 5)] = INDEX["WM"]
    ventricle = (np.abs(across) - 9) ** 2 / 49 + ((y + 3) / 30) ** 2 + ((z - 16) / 8) ** 2
    labels[ventricle < 1] = INDEX["CSFv"]
    below = (x / 48) ** 2 + ((y + 37) / 24) ** 2 + ((z + 38) / 20) ** 2
    labels[below < 1] = INDEX["cerGM"]
    labels[(x / 12) ** 2 + ((y + 12) / 10) ** 2 + ((z + 25) / 32) ** 2 < 1] = INDEX["WM"]
    for name in ("Thal", "Pal", "Put", "Caud", "Hippo", "Amyg"):
        shape = upright_head()[name]
        height, depth, width = shape.centre[0], shape.centre[1], np.sqrt(shape.covariance[2, 2])
        size = 2.2 * np.sqrt(np.diag(shape.covariance)[:2])
        place = (np.abs(across) - width) ** 2 / 25
        place = place + ((y - depth) / size[1]) ** 2 + ((z - height) / size[0]) ** 2
        labels[place < 1] = INDEX[name]
    truth = np.where(np.isin(labels, LABELS.indices(PAIRED)), 1 + (x > middle), 0)
    affine = np.diag([STEP, STEP, STEP, 1.0])
    affine[:3, 3] = low
    return labels, truth.astype(np.uint8), affine


def found_on(labels, affine):
    return find_sides(Segmentation(labels, Grid(labels.shape, affine), LABELS))


def right_share(found, truth):
    return float((found[truth > 0] == truth[truth > 0]).mean())


@pytest.mark.parametrize(
    ("bend", "narrower", "least", "error"),
    [(0, 1, 0.998, 0.002), (9, 1, 0.99, 0.01), (-9, 1, 0.99, 0.01), (0, 0.85, 0.99, 0.015)],
)
def test_both_sides_of_a_bent_or_uneven_brain_are_found(bend, narrower, least, error):
    labels, truth, affine = two_hemispheres(bend, narrower=narrower)
    found = found_on(labels, affine)
    assert ((found > 0) == (truth > 0)).all()
    assert right_share(found, truth) > least
    for side in (1, 2):
        assert (found == side).sum() == pytest.approx((truth == side).sum(), rel=error)
    if bend:
        flat = replace(
            mid_surface(Segmentation(labels, Grid(labels.shape, affine), LABELS)),
            heights=np.zeros((2, 2)),
        )
        voxels = np.argwhere(truth > 0)
        points = voxels @ affine[:3, :3].T + affine[:3, 3]
        by_plane = 1 + (flat.right_of(points) > 0)
        assert (by_plane == truth[truth > 0]).mean() < right_share(found, truth)


@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, -1, 1)])
def test_left_stays_left_in_a_head_that_lies_turned(axis):
    labels, truth, affine = two_hemispheres(4)
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec(np.radians(30) * np.array(axis)).as_matrix()
    assert right_share(found_on(labels, turn @ affine), truth) > 0.99


def test_left_is_where_the_header_says_it_is():
    labels, truth, affine = two_hemispheres(4)
    found = found_on(labels, affine)
    back = np.diag([-1.0, 1, 1, 1])
    back[0, 3] = len(labels) - 1
    mirrored = found_on(labels[::-1], affine @ back)  # every voxel where it was
    assert (mirrored[::-1] == found).mean() > 0.999
    other = found_on(labels, np.diag([-1.0, 1, 1, 1]) @ affine)  # the header alone
    assert right_share(other, np.array([0, 2, 1], np.uint8)[truth]) > 0.99
    swapped = np.moveaxis(labels, 0, 2)
    order = affine[:, [1, 2, 0, 3]]
    assert (np.moveaxis(found_on(swapped, order), 2, 0) == found).mean() > 0.999


def test_sides_of_a_brain_without_its_surroundings_and_of_a_slab():
    labels, truth, affine = two_hemispheres(4)
    alone = np.where(labels == INDEX["CSF"], 0, labels).astype(np.uint8)
    assert right_share(found_on(alone, affine), truth) > 0.985
    slab = labels.copy()
    slab[:, :, :20] = slab[:, :, 40:] = 0
    known = np.where(slab > 0, truth, 0)
    assert right_share(found_on(slab, affine), known) > 0.985
    turn = np.eye(4)  # and no pose of a whole head tells how it lies
    turn[:3, :3] = Rotation.from_rotvec([0.2, 0.3, 0.4]).as_matrix()
    assert right_share(found_on(slab, turn @ affine), known) > 0.985


@pytest.mark.parametrize("away", [-20, -10, -3, 3, 10])
@pytest.mark.parametrize("sign", [-1, 1])
def test_half_a_head_has_no_sides(away, sign):
    """The image ends some mm short of the middle or beyond it; the other side is not there."""
    labels, _, affine = two_hemispheres()
    edge = int(np.rint((sign * away - affine[0, 3]) / STEP)) + 1
    part = slice(None, edge) if sign > 0 else slice(edge, None)
    start = affine.copy()
    start[0, 3] += STEP * (part.start or 0)
    segmentation = Segmentation(labels[part], Grid(labels[part].shape, start), LABELS)
    assert mid_surface(segmentation) is None
    assert find_sides(segmentation) is None
    assert tissue_volumes(segmentation, None)["left_mL"].isna().all()


@pytest.mark.parametrize("half", [20, 30])
def test_a_sagittal_slab_around_the_middle_has_sides(half):
    labels, truth, affine = two_hemispheres()
    x = affine[0, 3] + STEP * np.arange(len(labels))
    kept = np.abs(x) < half
    start = affine.copy()
    start[0, 3] = x[kept][0]
    assert right_share(found_on(labels[kept], start), truth[kept]) > 0.98


def test_a_nucleus_is_of_one_side_wherever_the_surface_runs():
    labels, truth, affine = two_hemispheres()
    found = found_on(labels, affine)
    for name in ("Thal", "Caud", "Hippo"):
        mask = labels == INDEX[name]
        np.testing.assert_array_equal(found[mask], truth[mask])


@pytest.mark.parametrize("shape", [(1, 60, 60), (60, 60, 1), (8, 8, 8)])
def test_what_is_no_head_has_sides_or_none_but_no_error(shape):
    data = np.random.default_rng(0).integers(0, 18, shape).astype(np.uint8)
    found = found_on(data, np.diag([2.0, 2.0, 2.0, 1.0]))
    assert (found is None) == (np.prod(shape) < 1000)


def test_labels_of_other_names_have_no_sides():
    labels, _, affine = two_hemispheres()
    foreign = LabelTable.from_names({f"part{n}" if n else "background": n for n in range(18)})
    segmentation = Segmentation(labels, Grid(labels.shape, affine), foreign)
    assert find_sides(segmentation) is None
    assert list(tissue_volumes(segmentation)) == ["index", "name", "voxels", "volume_mL"]
    assert "left_mL" not in dictionary(foreign)


def test_volumes_of_both_sides_sum_to_the_whole():
    labels, _, affine = two_hemispheres()
    segmentation = Segmentation(labels, Grid(labels.shape, affine), LABELS)
    table = tissue_volumes(segmentation, find_sides(segmentation)).set_index("name")
    paired = table.loc[[name for name in PAIRED if name in INDEX]]
    assert (paired["left_voxels"] + paired["right_voxels"]).tolist() == paired["voxels"].tolist()
    both = paired["left_mL"] + paired["right_mL"]
    np.testing.assert_allclose(both.to_numpy(float), paired["volume_mL"])
    assert paired.loc["Thal", "left_mL"] == pytest.approx(
        paired.loc["Thal", "left_voxels"] * STEP**3 / 1000
    )
    assert table.loc[["CSF", "Skull", "Head", "TIV"], "left_mL"].isna().all()
    unknown = tissue_volumes(segmentation)
    assert unknown["right_voxels"].isna().all()
    assert set(unknown) == set(table.reset_index()) == {"name", *dictionary(LABELS)}


def test_values_and_names_of_sided_labels(tmp_path):
    data, sides = np.array([[[1, 1, 3, 6]]], np.uint8), np.array([[[1, 2, 0, 2]]], np.uint8)
    assert sided_values(data, sides).tolist() == [[[1001, 2001, 3, 2006]]]
    assert sided_values(data, None).tolist() == data.tolist()
    table = sided_labels(LABELS)
    rows = {label.index: label for label in table}
    assert (rows[1001].name, rows[2001].name) == ("GM_left", "GM_right")
    assert rows[2006].long_name == "Thalamus, right"
    assert rows[2006].color != rows[1006].color == LABELS.by_name["Thal"].color
    assert not {1003, 2003} & {*rows}
    save_label_table(tmp_path / "labels.tsv", table)
    assert [int(row["index"]) for row in read_rows(tmp_path / "labels.tsv")] == sorted(rows)


@pytest.fixture
def config(bids, tmp_path, tiny_model):
    query = Query(participants=("01",))
    return replace(run_config(bids, tmp_path / "out", tiny_model), query=query)


def test_a_run_writes_sides_records_them_and_takes_them_away(config):
    asked = replace(config, segmentations=("siamhemi",))
    assert run_participant(asked).done == ["sub-01_T1w"]
    (names,) = finished_scans(config.output_dir)
    path = names.further_segmentation("siamhemi")
    assert path.name == "sub-01_seg-siamhemi_desc-T1w_dseg.nii.gz"
    values, plain = (np.asarray(nib.load(p).dataobj) for p in (path, names.segmentation))
    assert values.dtype == np.uint16
    np.testing.assert_array_equal(values % 1000, plain)
    table = {int(row["index"]) for row in read_rows(config.output_dir / "seg-siamhemi_dseg.tsv")}
    assert {*np.unique(values).tolist()} <= table
    assert (
        "2000 more on the right"
        in read_json(path.with_name(path.name[:-7] + ".json"))["Description"]
    )
    rows = {row["name"]: row for row in read_rows(names.volumes)}
    for name in ("GM", "Thal"):
        label = INDEX[name]
        assert int(rows[name]["left_voxels"]) == (values == 1000 + label).sum()
        assert int(rows[name]["right_voxels"]) == (values == 2000 + label).sum()
    assert rows["Skull"]["left_mL"] == "n/a"
    assert verify(asked).whole == ["sub-01_T1w"]
    assert run_participant(asked).skipped == ["sub-01_T1w"]
    path.write_bytes(b"cut")
    assert verify(asked).wrong == {"sub-01_T1w": [f"sub-01/anat/{path.name} was changed"]}
    with pytest.raises(DatasetError, match="was changed since"):
        raise_failed(run_participant(replace(asked, stop_on_first_crash=True)))
    assert run_participant(replace(asked, overwrite=True)).done == ["sub-01_T1w"]
    assert run_participant(config).done == ["sub-01_T1w"]
    assert not path.exists()


def raise_failed(summary):
    raise AssertionError(summary.failed)


def test_sides_of_labels_that_have_none_are_refused(config, tmp_path):
    model = write_model(tmp_path / "foreign", names=["background", "lobe", "stem"])
    asked = replace(config, model=str(model), segmentations=("siamhemi",))
    with pytest.raises(UsageError, match="The model has no tissue of which both hemispheres"):
        run_participant(asked)


def slow():
    about = importlib.util.spec_from_file_location("sides", SLOW)
    module = importlib.util.module_from_spec(about)
    about.loader.exec_module(module)
    return module


@pytest.mark.skipif(not MAPS.is_dir(), reason="the label maps are not beside this checkout")
def test_sides_of_a_map_that_tells_them():
    sides = slow()
    head = sides.synthseg(MAPS / "training_seg_01.nii.gz")
    found = sides.measure(head)
    assert found["all"] >= 99.5
    assert found["volume"] < 1
    for name in ("one_sided", "cavity", "turned_front"):
        assert sides.measure(getattr(sides, name)(head, np.random.default_rng(1)))["all"] >= 98.5
    left = head.where(head.points[0] > head.middle[0] - 3)
    assert find_sides(left.segmentation) is None
    pushed = sides.measure(sides.shifted(head, np.random.default_rng(1)))
    assert pushed["all"] >= 99


def sided_study(study, place, *, share=0.52):
    """A study whose left hippocampus holds `share` of both, more by 0.002 a year of age."""
    raw, out = study(place)
    age = {row["participant_id"]: float(row["age"]) for row in read_rows(raw / "participants.tsv")}
    for names in finished_scans(out):
        table = pd.read_csv(names.volumes, sep="\t", na_values="n/a", keep_default_na=False)
        left = share + 0.002 * age[f"sub-{names.identity.subject}"]
        for side, part in (("left", left), ("right", 1 - left)):
            paired = table["name"].isin(["GM", "Hippo"])
            table[f"{side}_voxels"] = (table["voxels"] * part).where(paired).round().astype("Int64")
            table[f"{side}_mL"] = (table["volume_mL"] * part).where(paired)
        save_volumes(names.volumes, table.assign(index=table["index"].astype("Int64")), LABELS)
    return raw, out


def test_group_tables_and_pages_have_both_sides_and_the_asymmetry_index(study, tmp_path):
    raw, out = sided_study(study, tmp_path)
    run_group(
        RunConfig(bids_dir=raw, output_dir=out, level="group", formula="Hippo_asymmetry ~ age")
    )
    wide = pd.read_csv(out / "group_desc-wide_volumes.tsv", sep="\t", na_values="n/a")
    left, right = wide["Hippo_left_mL"], wide["Hippo_right_mL"]
    expected = (left - right) / ((left + right) / 2)
    np.testing.assert_allclose(wide["Hippo_asymmetry"], expected, rtol=1e-5)
    np.testing.assert_allclose(expected, 2 * (0.04 + 0.004 * wide["age"]), rtol=1e-4)
    assert "Skull_left_mL" not in wide
    tidy = pd.read_csv(out / "group_desc-tidy_volumes.tsv", sep="\t", na_values="n/a")
    known = tidy["left_mL"].notna()
    assert {*tidy.loc[known, "tissue"]} == {"GM", "Hippo"}
    assert tidy.loc[known, "asymmetry"].notna().all()
    meaning = read_json(out / "group_desc-wide_volumes.json")
    assert meaning["Hippo_asymmetry"]["Units"] == "1"
    assert meaning["Hippo_left_mL"]["LongName"] == "Hippocampus"
    (term,) = (row for row in read_rows(out / "group_statistics.tsv") if row["term"] == "age")
    assert float(term["estimate"]) == pytest.approx(0.008, rel=1e-3)
    page = (out / "sub-01.html").read_text()
    row = wide.loc[wide["participant_id"] == "sub-01"].iloc[0]
    assert f'<td class="number">{row["Hippo_left_mL"]:.2f}</td>' in page
    assert f'<td class="number">{row["Hippo_asymmetry"]:+.3f}</td>' in page
    assert 'data-kind="asymmetry"' in (out / "group.html").read_text()


def test_a_study_without_sides_has_no_columns_of_them(study, tmp_path):
    raw, out = study(tmp_path)
    run_group(RunConfig(bids_dir=raw, output_dir=out, level="group"))
    assert "left" not in (out / "group_desc-wide_volumes.tsv").read_text().partition("\n")[0]
    assert "Left and right" not in (out / "sub-01.html").read_text()
    assert 'data-kind="asymmetry"' not in (out / "group.html").read_text()


@pytest.mark.parametrize(("column", "cell"), [("left_mL", "many"), ("right_voxels", "1.5")])
def test_sides_that_are_no_numbers_are_refused(study, tmp_path, column, cell):
    _, out = sided_study(study, tmp_path)
    names = next(finished_scans(out))
    table = pd.read_csv(names.volumes, sep="\t", dtype="str", keep_default_na=False)
    table.loc[table["name"] == "GM", column] = cell
    table.to_csv(names.volumes, sep="\t", index=False)
    with pytest.raises(DatasetError, match=f"{column} in .* is '{cell}', not a"):
        read_result(names)
