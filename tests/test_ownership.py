"""What others made is neither replaced nor deleted."""

import json
import os

import pytest
from conftest import checksums, write_raw

from siam_bids import __version__, cli
from siam_bids.bids.ownership import check_output_folder, generated_by_us
from siam_bids.errors import UsageError

OURS = {"GeneratedBy": [{"Name": "siam-bids", "Version": "0.1.0"}]}
OTHER = {"GeneratedBy": [{"Name": "fMRIPrep", "Version": "25.0"}]}


def describe(root, about) -> None:
    (root / "dataset_description.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    "names",
    [
        [],
        [".git/config", ".gitattributes", ".datalad/config", ".gitignore", ".bidsignore"],
        ["code/job.sh", "logs/slurm/1.out", "slurm-17.out", "job.log", "work/x", "lost+found/x"],
        ["group_ratings.tsv", ".DS_Store", ".nfs0001"],
    ],
)
def test_an_empty_folder_is_taken(names, tmp_path):
    check_output_folder(tmp_path / "absent")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    check_output_folder(tmp_path)
    (tmp_path / "thesis.odt").touch()
    with pytest.raises(UsageError, match=r"not empty \(thesis\.odt\)"):
        check_output_folder(tmp_path)


def test_the_work_folder_of_the_run_is_no_foreign_content(tmp_path, monkeypatch):
    (tmp_path / "scratch/here").mkdir(parents=True)
    with pytest.raises(UsageError):
        check_output_folder(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch/here"))
    check_output_folder(tmp_path)


@pytest.mark.parametrize(
    "about", [OURS, {"GeneratedBy": [*OTHER["GeneratedBy"], {"Name": "siam-bids"}]}]
)
def test_outputs_of_any_version_are_recognised(about, tmp_path):
    (tmp_path / "sub-01").mkdir()
    (tmp_path / "sub-01.html").touch()
    describe(tmp_path, about)
    check_output_folder(tmp_path)
    assert generated_by_us(about)


@pytest.mark.parametrize(
    "about",
    [OTHER, {}, [], {"GeneratedBy": "siam-bids"}, {"GeneratedBy": {"Name": "siam-bids"}},
     {"GeneratedBy": ["siam-bids"]}, {"Name": "siam-bids"}],
)  # fmt: skip
def test_datasets_of_others_are_refused(about, tmp_path):
    (tmp_path / "sub-01").mkdir()
    describe(tmp_path, about)
    with pytest.raises(UsageError, match=r"was not made by siam-bids and is not empty .*--force"):
        check_output_folder(tmp_path)
    check_output_folder(tmp_path, forced=True)


@pytest.mark.parametrize("name", ["notes.txt", "sub-01/anat/a.nii.gz", "README", "group.html"])
def test_folders_with_other_things_are_refused(name, tmp_path):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    first = name.split("/")[0]
    with pytest.raises(UsageError, match=rf"is not empty \({first}\)"):
        check_output_folder(tmp_path)


def test_a_description_without_content_is_said(tmp_path):
    (tmp_path / "sub-01").mkdir()
    (tmp_path / "dataset_description.json").symlink_to(".git/annex/objects/x")
    with pytest.raises(UsageError, match=r"it is unclear what made this folder.*datalad get"):
        check_output_folder(tmp_path)


@pytest.mark.parametrize(
    "level", [["participant"], ["group"], ["participant", "--reports-only"],
              ["participant", "--dry-run"]],
)  # fmt: skip
def test_no_level_touches_the_folder_of_another_app(level, tmp_path, head, tiny_model, capsys):
    bids = write_raw(tmp_path / "bids", head, "sub-01_T1w")
    out = write_raw(tmp_path / "out", head, "sub-01_T1w")
    describe(out, OTHER)
    for name in ("README", ".bidsignore", "sub-01.html", "phenotype/siam_mynotes.tsv"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("of others")
    scratch = out / ".tmp-0123456789-1-abcdefg_.json"
    scratch.touch()
    os.utime(scratch, (0, 0))
    before = checksums(out)
    words = [str(bids), str(out), *level, "--model", str(tiny_model)]
    assert cli.main(words) == 2
    assert "was not made by siam-bids and is not empty" in capsys.readouterr().err
    assert checksums(out) == before


def test_who_knows_may_write_into_any_folder(tmp_path, head, tiny_model):
    bids = write_raw(tmp_path / "bids", head, "sub-01_T1w")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/README").write_text("of others")
    words = [str(bids), str(tmp_path / "out"), "participant", "--model", str(tiny_model)]
    assert cli.main([*words, "--force-output", "--n-cpus", "1"]) == 0
    assert (tmp_path / "out/README").read_text() == "of others"
    about = json.loads((tmp_path / "out/dataset_description.json").read_text())
    assert about["GeneratedBy"][0]["Version"] == __version__
    assert cli.main([*words, "--n-cpus", "1"]) == 0, "it is ours now"
