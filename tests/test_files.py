import hashlib

import pytest

from siam_bids.support.atomic_files import atomic, sha256, write_json, write_text


def test_a_failing_writer_leaves_the_old_file_and_no_scratch(tmp_path):
    path = tmp_path / "table.tsv"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic(path) as scratch:  # noqa: PT012
        scratch.write_text("half")
        assert path.read_text() == "old"
        raise RuntimeError
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["table.tsv"]


def test_the_scratch_file_keeps_the_extensions(tmp_path):
    with atomic(tmp_path / "a_dseg.nii.gz") as scratch:
        assert scratch.name.endswith(".nii.gz")
        assert scratch.name.startswith(".")


def test_what_says_the_same_is_not_written_again(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    before = path.stat().st_mtime_ns, path.stat().st_ino
    write_json(path, {"a": 1})
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    write_text(path, "other\n")
    assert path.read_text() == "other\n"


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"head")
    assert sha256(tmp_path / "a") == hashlib.sha256(b"head").hexdigest()
