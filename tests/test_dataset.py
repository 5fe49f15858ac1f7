"""Query tables: a tiny tree of empty files, a query, and the exact list of scans."""

import json
import logging
from pathlib import Path

import pytest
from bidsschematools.schema import load_schema
from conftest import describe

from siam_bids.bids.dataset import find_scans
from siam_bids.bids.filters import read_filter_file
from siam_bids.bids.names import KEPT
from siam_bids.bids.scan import ENTITIES, BidsName
from siam_bids.config import Query
from siam_bids.errors import DatasetError

TREE = """
sub-01/anat/sub-01_T1w.nii.gz
sub-01/anat/sub-01_T1w.json
sub-01/anat/sub-01_part-mag_T2starw.nii.gz
sub-01/anat/sub-01_part-phase_T2starw.nii.gz
sub-01/func/sub-01_task-rest_bold.nii.gz
sub-011/anat/sub-011_acq-fse_T2w.nii
sub-02/ses-a/anat/sub-02_ses-a_acq-mprage_run-1_T1w.nii.gz
sub-02/ses-a/anat/sub-02_ses-a_acq-mprage_run-2_T1w.nii.gz
sub-02/ses-a/anat/sub-02_ses-a_echo-1_MEGRE.nii.gz
sub-02/ses-b/anat/sub-02_ses-b_UNIT1.nii.gz
sub-02/ses-b/anat/sub-02_ses-b_inv-1_MP2RAGE.nii.gz
sub-02/ses-b/anat/sub-02_ses-b_inv-2_MP2RAGE.nii.gz
sub-02/ses-b/anat/sub-02_ses-b_rec-norm_FLAIR.nii.gz
sub-02/ses-b/anat/sub-02_ses-b_desc-x_mask.nii.gz
sub-03/ses-b/anat/sub-03_ses-b_inplaneT2.nii.gz
sub-03/ses-b/anat/sub-03_ses-b_PDT2.nii.gz
sub-03/ses-b/ct/sub-03_ses-b_ct.nii.gz
sub-03/ses-b/ct/sub-03_ses-b_T1w.nii.gz
derivatives/other/sub-01/anat/sub-01_T1w.nii.gz
sourcedata/sub-01/anat/sub-01_T1w.nii.gz
"""


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "ds"
    for name in TREE.split():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    describe(root)
    return root


ALL = [
    "sub-01_T1w", "sub-01_part-mag_T2starw", "sub-011_acq-fse_T2w",
    "sub-02_ses-a_acq-mprage_run-1_T1w", "sub-02_ses-a_acq-mprage_run-2_T1w",
    "sub-02_ses-b_UNIT1", "sub-02_ses-b_rec-norm_FLAIR", "sub-03_ses-b_PDT2",
    "sub-03_ses-b_inplaneT2",
]  # fmt: skip


@pytest.mark.parametrize(
    ("query", "names"),
    [
        (Query(), ALL),
        (Query(participants=("01",)), ALL[:2]),
        (Query(participants=("01", "03")), [*ALL[:2], *ALL[7:]]),
        (Query(sessions=("a",)), ALL[3:5]),
        (Query(suffixes=("T1w",)), [ALL[0], *ALL[3:5]]),
        (Query(suffixes=("MP2RAGE",)),
         ["sub-02_ses-b_inv-1_MP2RAGE", "sub-02_ses-b_inv-2_MP2RAGE"]),
        (Query(suffixes=("MEGRE",)), ["sub-02_ses-a_echo-1_MEGRE"]),
        (Query(suffixes=("ct", "T1w"), sessions=("b",)), ["sub-03_ses-b_ct"]),
        (Query(suffixes=("ct",), filters={"ct": {"acquisition": "bone"}}), []),
        (Query(suffixes=("T1w",), filters={"t1w": {"run": 2}}), [ALL[4]]),
        (Query(suffixes=("T1w",), filters={"t1w": {"session": None}}), [ALL[0]]),
        (Query(suffixes=("T1w",), filters={"T1w": {"session": "Query.ANY"}}), ALL[3:5]),
        (Query(filters={"anat": {"acquisition": ["mprage", "fse"]}}), ALL[2:5]),
        (Query(filters={"t1w": {"datatype": "anat", "suffix": "T1w", "run": [1]}}),
         [*ALL[1:4], *ALL[5:]]),
        (Query(filters={"fmap": {"suffix": "epi"}, "sbref": {}}), ALL),
        (Query(suffixes=("T2starw",), filters={"t2starw": {"part": "phase"}}),
         ["sub-01_part-phase_T2starw"]),
    ],
)  # fmt: skip
def test_queries(tree, query, names):
    assert [scan.name for scan in find_scans(tree, query).scans] == names


@pytest.mark.parametrize(
    ("name", "entities", "suffix"),
    [
        ("sub-01_T1w", {"sub": "01"}, "T1w"),
        ("sub-01_ses-a_acq-x+y_run-02_FLAIR",
         {"sub": "01", "ses": "a", "acq": "x+y", "run": "02"}, "FLAIR"),
        ("sub-01_run-1_acq-a_T1w", {"sub": "01", "acq": "a", "run": "1"}, "T1w"),
        ("sub-01_inv-2_part-mag_MP2RAGE", {"sub": "01", "inv": "2", "part": "mag"}, "MP2RAGE"),
    ],
)  # fmt: skip
def test_names(name, entities, suffix):
    parsed = BidsName.parse(name)
    assert list(parsed.entities) == list(entities.items())
    assert parsed.suffix == suffix
    assert BidsName.parse(str(parsed)) == parsed


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("sub-WMH_MRI_21_01H_T1w", "'MRI' in the name is not an entity (key-label)"),
        ("sub-A-01_T1w", "The label of 'sub-A-01' may contain only letters, digits and +"),
        ("sub-Müller_T1w", "The label of 'sub-Müller' may contain only"),
        ("sub-1²_T1w", "The label of 'sub-1²' may contain only"),
        ("sub-_T1w", "The label of 'sub-' may contain only"),
        ("Copy of sub-01_T1w", "'Copy of sub-' in the name is not a BIDS entity."),
        ("SUB-02_T1w", "'SUB-' in the name is not a BIDS entity. Did you mean sub-?"),
        ("T1w", "The name has no sub- entity."),
        ("acq-a_T1w", "The name has no sub- entity."),
        ("sub-01_foo-1_T1w", "'foo-' in the name is not a BIDS entity."),
        (
            "sub-01_run-a_T1w",
            "'run-a' in the name must be a number, because BIDS requires one for run-.",
        ),
        ("sub-01_acq-a_acq-a_T1w", "The name has acq- twice."),
        ("sub-01_T1w (1)", "The suffix 'T1w (1)' may contain only letters and digits."),
        ("sub-01_", "The suffix '' may contain only"),
        ("sub-01_acq-a\nb_T1w", "The label of 'acq-a?b' may contain only"),
        ("sub-01_acq-\udcff_T1w", "The label of 'acq-?' may contain only"),
        ("sub-01__T1w", "'' in the name is not an entity"),
        ("", "The suffix '' may contain only"),
    ],
)
def test_names_that_bids_does_not_allow(name, why):
    with pytest.raises(DatasetError) as error:
        BidsName.parse(name)
    assert str(error.value).startswith(why)
    assert str(error.value).isprintable()


def test_entities_are_those_of_the_standard_in_its_order():
    schema = load_schema()
    known = schema.objects.entities
    assert [known[name]["name"] for name in schema.rules.entities] == list(ENTITIES)
    rules = schema.rules.files.deriv.imaging
    for kind in ("discrete_segmentation", "probabilistic_segmentation", "mask"):
        allowed = {known[name]["name"] for name in rules[f"anat_{kind}"].entities}
        assert set(KEPT) <= allowed
        ours = {"seg", "label", "res", "space", "desc", "atlas", "scale"}
        assert allowed - ours == set(KEPT)


def test_every_file_is_taken_refused_or_skipped(tree):
    files = {
        "sub-01/anat/Copy of sub-01_T1w.nii.gz": "refused",
        "sub-01/anat/sub-01_acq-0.8_T1w.nii.gz": "refused",
        "sub-01/anat/notes (1).txt": "no .nii.gz or .nii file",
        "sub-01/anat/sub-01_T1w_old.nii.gz": "--suffix does not list old",
        "sub-01/ses-x/anat/sub-01_T2w.nii.gz": "refused",
        "sub-02_old/ses-a/anat/sub-02_ses-a_T1w.nii.gz": "refused",
    }
    for name in files:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    found = find_scans(tree, Query())
    assert [scan.name for scan in found.scans] == ALL
    assert {name for name, what in files.items() if what == "refused"} == set(found.refused)
    assert {k: v for k, v in found.skipped.items() if k in files} == {
        name: what for name, what in files.items() if what != "refused"
    }
    some = find_scans(tree, Query(participants=("01",), sessions=("x",)))
    assert list(some.refused) == ["sub-01/ses-x/anat/sub-01_T2w.nii.gz"]


def test_a_folder_that_cannot_be_read_stops_no_other(tree, monkeypatch):
    listed = Path.iterdir

    def iterdir(path):
        if path == tree / "sub-011/anat":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    found = find_scans(tree, Query())
    assert [scan.name for scan in found.scans] == [name for name in ALL if "011" not in name]
    assert found.refused == {"sub-011/anat": "The folder cannot be read: Permission denied."}


def test_two_images_of_one_output_are_refused(tree):
    """Where entities are folded into one label, a plus can make two names equal."""
    for name in ("sub-01_dir-AP+flip1_MPM", "sub-01_dir-AP_flip-1_MPM"):
        (tree / f"sub-01/anat/{name}.nii.gz").touch()
    found = find_scans(tree, Query(participants=("01",), suffixes=("MPM",)))
    assert found.scans == []
    assert found.refused == {
        "sub-01/anat/sub-01_dir-AP+flip1_MPM.nii.gz":
            "It has the same outputs as sub-01_dir-AP_flip-1_MPM.nii.gz. Rename one.",
        "sub-01/anat/sub-01_dir-AP_flip-1_MPM.nii.gz":
            "It has the same outputs as sub-01_dir-AP+flip1_MPM.nii.gz. Rename one.",
    }  # fmt: skip
    (tree / "sub-01/anat/sub-01_ct.nii.gz").touch()
    (tree / "sub-01/anat/sub-01_CT.nii.gz").touch()
    found = find_scans(tree, Query(participants=("01",), suffixes=("ct", "CT")))
    assert len(found.refused) == 2


@pytest.mark.parametrize("root", ["link", "ds/../ds", "ds/"])
def test_the_root_may_be_written_in_any_way(tree, root, monkeypatch):
    (tree.parent / "link").symlink_to("ds")
    monkeypatch.chdir(tree.parent)
    assert [scan.name for scan in find_scans(Path(root), Query()).scans] == ALL


def test_a_bidsignore_is_not_read_and_this_is_said(tree, caplog):
    (tree / ".bidsignore").write_text("*_T1w.nii.gz\n")
    with caplog.at_level(logging.WARNING):
        assert [scan.name for scan in find_scans(tree, Query()).scans] == ALL
    assert "is not read: images that it lists are segmented too" in caplog.text


def test_a_derivative_dataset_is_taken_if_asked_for(tree):
    describe(tree, DatasetType="derivative", GeneratedBy=[{"Name": "defacing"}])
    (tree / "sub-01/anat/sub-01_desc-filled_T1w.nii.gz").touch()
    with pytest.raises(DatasetError, match=r"type derivative, not raw.*--derivative-input"):
        find_scans(tree, Query())
    found = find_scans(tree, Query(derivative=True)).scans
    assert [s.name for s in found if s.name not in ALL] == ["sub-01_desc-filled_T1w"]
    only = Query(derivative=True, suffixes=("T1w",), filters={"t1w": {"desc": "filled"}})
    assert [scan.name for scan in find_scans(tree, only).scans] == ["sub-01_desc-filled_T1w"]


@pytest.mark.parametrize(
    ("requested", "why"),
    [
        *(({name: "x"}, f"'{name}', which is not an entity") for name in (
            "target", "scope", "return_type", "regex_search", "absolute_paths", "invalid_filters",
            "filters", "drop_invalid_filters", "self")),
        ({"acq": "a"}, "Did you mean acquisition?"),
        ({"ses": "a"}, "Did you mean session?"),
        ({"aquisition": "a"}, "Did you mean acquisition?"),
        ({"run": {"a": 1}}, "Give text, a number, null, or a list of these."),
        ({"run": [True]}, "Give text, a number, null, or a list of these."),
        ({"run": [[1], {}]}, "Give text, a number, null, or a list of these."),
    ],
)  # fmt: skip
def test_filters_take_entities_alone(tree, requested, why):
    for kind in ("t1w", "T1w", "anat"):
        with pytest.raises(DatasetError) as error:
            find_scans(tree, Query(filters={kind: requested}))
        assert why in str(error.value)
    find_scans(tree, Query(filters={"bold": requested, "fmap": requested}))


def test_a_scan_knows_its_place(tree):
    (scan,) = find_scans(tree, Query(sessions=("b",), suffixes=("FLAIR",))).scans
    assert scan.relative == "sub-02/ses-b/anat/sub-02_ses-b_rec-norm_FLAIR.nii.gz"
    identity = scan.identity
    assert (identity.subject, identity.session, identity.suffix) == ("02", "b", "FLAIR")
    assert scan.identity.stem == "sub-02_ses-b_rec-norm"
    assert scan.path == tree / scan.relative


def test_a_database_serves_later_queries_too(tree, tmp_path):
    database = tmp_path / "index"
    first = find_scans(tree, Query(participants=("01",), database=database))
    assert [scan.name for scan in first.scans] == ALL[:2]
    assert database.exists()
    later = find_scans(tree, Query(participants=("03",), database=database))
    assert [scan.name for scan in later.scans] == ALL[7:]


def test_a_database_is_complete_or_absent(tree, tmp_path, monkeypatch):
    """One that was left in the middle must not pass for the whole dataset."""
    from bids.layout import BIDSLayoutIndexer

    everything = Query(database=tmp_path / "index")
    index_file = BIDSLayoutIndexer._index_file

    def torn(self, path, entities):
        if "sub-03" in str(path):
            raise KeyboardInterrupt
        return index_file(self, path, entities)

    with monkeypatch.context() as patch:
        patch.setattr(BIDSLayoutIndexer, "_index_file", torn)
        with pytest.raises(KeyboardInterrupt):
            find_scans(tree, everything)
    assert list(everything.database.iterdir()) == []
    assert [scan.name for scan in find_scans(tree, everything).scans] == ALL
    assert [path.name for path in everything.database.iterdir()] == ["layout_index.sqlite"]


def test_a_database_of_something_else_is_refused(tree, tmp_path):
    query = Query(database=tmp_path / "index")
    find_scans(tree, query)
    tree.rename(tmp_path / "moved")
    with pytest.raises(DatasetError, match=f"is of {tree}, not of {tmp_path}/moved"):
        find_scans(tmp_path / "moved", query)
    (query.database / "layout_index.sqlite").write_text("no database")
    with pytest.raises(DatasetError, match="is not a pybids index: file is not a database"):
        find_scans(tmp_path / "moved", query)


def test_who_is_not_in_the_database_is_named(tree, tmp_path, caplog):
    query = Query(participants=("01", "04"), database=tmp_path / "index")
    find_scans(tree, Query(database=query.database))
    (tree / "sub-04/anat").mkdir(parents=True)
    (tree / "sub-04/anat/sub-04_T1w.nii.gz").touch()
    with caplog.at_level(logging.WARNING):
        assert [scan.name for scan in find_scans(tree, query).scans] == ALL[:2]
    assert "lacks 1 image, sub-04_T1w.nii.gz first" in caplog.text


def test_of_twins_the_packed_one_counts(tree, caplog):
    (tree / "sub-01/anat/sub-01_T1w.nii").touch()
    with caplog.at_level(logging.WARNING):
        scans = find_scans(tree, Query(participants=("01",), suffixes=("T1w",))).scans
    assert [scan.path.name for scan in scans] == ["sub-01_T1w.nii.gz"]
    assert "sub-01_T1w.nii is skipped: sub-01_T1w.nii.gz is used instead." in caplog.text


def test_only_wanted_subjects_are_indexed(tree, monkeypatch):
    from bids.layout import BIDSLayoutIndexer

    seen = []
    original = BIDSLayoutIndexer._index_file
    monkeypatch.setattr(
        BIDSLayoutIndexer,
        "_index_file",
        lambda self, path, entities: seen.append(str(path)) or original(self, path, entities),
    )
    find_scans(tree, Query(participants=("01",)))
    assert len(seen) == 3  # the images
    assert all("/ds/sub-01/anat/" in path for path in seen)


def test_what_is_no_dataset_is_said(tmp_path, tree):
    with pytest.raises(DatasetError, match="does not exist"):
        find_scans(tmp_path / "nowhere", Query())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"has no sub-\* folders"):
        find_scans(tmp_path / "empty", Query())
    with pytest.raises(DatasetError, match="No folder for participant sub-99 in"):
        find_scans(tree, Query(participants=("01", "99")))
    (tree / "dataset_description.json").unlink()
    with pytest.raises(DatasetError, match=r"has no dataset_description\.json"):
        find_scans(tree, Query())


@pytest.mark.parametrize("content", ["{", "[]", '{"t1w": 3}'])
def test_bad_filter_files_are_named(tmp_path, content):
    path = tmp_path / "filter.json"
    path.write_text(content)
    with pytest.raises(DatasetError, match=r"filter\.json"):
        read_filter_file(path)


@pytest.mark.parametrize("kind", ["t1w", "anat"])
@pytest.mark.parametrize("suffix", ["T2w", ["T2w"], None, [], {"a": 1}])
def test_a_filter_that_wants_another_suffix_is_refused(tree, kind, suffix):
    """Suffixes are chosen with --suffix; a filter that contradicts it was ignored."""
    query = Query(suffixes=("T1w",), filters={kind: {"suffix": suffix}})
    with pytest.raises(DatasetError, match=f"'{kind}' is for T1w images, but asks for the suffix"):
        find_scans(tree, query)


def test_a_filter_may_name_its_own_suffix_among_others(tree):
    for kind, suffix in (("t1w", ["T1w", "FLAIR"]), ("anat", "*"), ("other", ["FLAIR", "T1w"])):
        asked = {"suffix": suffix, "session": None}
        query = Query(suffixes=("T1w",), filters={kind: asked})
        assert [scan.name for scan in find_scans(tree, query).scans] == [ALL[0]]


def test_filter_file(tmp_path):
    path = tmp_path / "filter.json"
    path.write_text(json.dumps({"t1w": {"run": 1}}))
    assert read_filter_file(path) == {"t1w": {"run": 1}}
