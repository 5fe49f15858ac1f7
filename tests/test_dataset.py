"""Query tables: a tiny tree of empty files, a query, and the exact list of scans."""

import json
import logging

import pytest
from conftest import describe

from siam_bids.bids.dataset import find_scans
from siam_bids.bids.filters import read_filter_file
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


def test_a_scan_knows_its_place(tree):
    (scan,) = find_scans(tree, Query(sessions=("b",), suffixes=("FLAIR",))).scans
    assert scan.relative == "sub-02/ses-b/anat/sub-02_ses-b_rec-norm_FLAIR.nii.gz"
    assert (scan.subject, scan.session, scan.suffix) == ("02", "b", "FLAIR")
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
    with pytest.raises(DatasetError, match="is no index of pybids: file is not a database"):
        find_scans(tmp_path / "moved", query)


def test_who_is_not_in_the_database_is_named(tree, tmp_path, caplog):
    query = Query(participants=("01", "04"), database=tmp_path / "index")
    find_scans(tree, Query(database=query.database))
    (tree / "sub-04/anat").mkdir(parents=True)
    (tree / "sub-04/anat/sub-04_T1w.nii.gz").touch()
    with caplog.at_level(logging.WARNING):
        assert [scan.name for scan in find_scans(tree, query).scans] == ALL[:2]
    assert "lacks 1 images, sub-04_T1w.nii.gz first" in caplog.text


def test_of_twins_the_packed_one_counts(tree, caplog):
    (tree / "sub-01/anat/sub-01_T1w.nii").touch()
    with caplog.at_level(logging.WARNING):
        scans = find_scans(tree, Query(participants=("01",), suffixes=("T1w",))).scans
    assert [scan.path.name for scan in scans] == ["sub-01_T1w.nii.gz"]
    assert "sub-01_T1w.nii is skipped: sub-01_T1w.nii.gz is taken instead." in caplog.text


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


def test_filter_file(tmp_path):
    path = tmp_path / "filter.json"
    path.write_text(json.dumps({"t1w": {"run": 1}}))
    assert read_filter_file(path) == {"t1w": {"run": 1}}
