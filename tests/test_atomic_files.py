import errno
import hashlib
import os
import time

import pytest

from siam_bids.support.atomic_files import (
    SCRATCH,
    atomic,
    sha256,
    staging,
    sweep,
    write_json,
    write_text,
)


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


OLD = f"{SCRATCH}0123456789-1-abcdefg_.json"


@pytest.mark.parametrize(
    "name",
    [
        f"{SCRATCH}x",
        f"{SCRATCH}notes.txt",
        f"{SCRATCH}my-1-results.tsv",
        f"{SCRATCH}0123456789-{'9' * 40}-abcdefg_.json",
        f"{SCRATCH}0123456789-x-abcdefg_.json",
        f"{SCRATCH}0123456789--abcdefg_.json",
        f"{SCRATCH}0123456789-1-ABCDEFGH.json",
        f"{SCRATCH}0123456789-²-abcdefg_.json",
        os.fsdecode(b".tmp-\xff"),
    ],
)
def test_scratch_of_others_is_not_swept(name, tmp_path):
    for path in (tmp_path / name, tmp_path / OLD):
        path.touch()
        os.utime(path, (0, 0))
    (tmp_path / f"{name}.d").mkdir()
    sweep([tmp_path])
    assert {path.name for path in tmp_path.iterdir()} == {name, f"{name}.d"}


def test_a_folder_named_as_our_scratch_is_not_swept(tmp_path):
    (tmp_path / OLD).mkdir()
    os.utime(tmp_path / OLD, (0, 0))
    sweep([tmp_path])
    assert (tmp_path / OLD).is_dir()


@pytest.mark.parametrize("wrong", [-86400, 86400])
def test_the_clock_of_this_machine_does_not_decide_what_is_swept(wrong, tmp_path, monkeypatch):
    """The file system dates its files; a host a day ahead would take new ones for old."""
    (tmp_path / OLD).touch()
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + wrong)
    sweep([tmp_path])
    assert (tmp_path / OLD).exists()
    os.utime(tmp_path / OLD, (now() - 7200,) * 2)
    sweep([tmp_path])
    assert not (tmp_path / OLD).exists()


@pytest.mark.parametrize("refused", [errno.EPERM, errno.EINVAL, errno.ENOTSUP])
def test_file_systems_without_permissions_or_fsync_are_written_to(tmp_path, monkeypatch, refused):
    def refuse(*_, **__):
        raise OSError(refused, os.strerror(refused))

    monkeypatch.setattr("pathlib.Path.chmod", refuse)  # as CIFS does
    monkeypatch.setattr("os.fsync", refuse)
    write_text(tmp_path / "table.tsv", "new\n")
    assert (tmp_path / "table.tsv").read_text() == "new\n"


def test_a_disk_that_fails_while_a_file_settles_is_an_error(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        write_text(tmp_path / "table.tsv", "new\n")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_killed_process_is_swept_and_that_of_a_living_one_stays(tmp_path):
    with staging(tmp_path) as place:
        (place / "a").write_text("a")
        dead = tmp_path / place.name.replace(f"-{os.getpid()}-", "-999999999-")
        dead.mkdir()
        (dead / "b").write_text("b")
        sweep([tmp_path])
        assert list(tmp_path.iterdir()) == [place]
    assert list(tmp_path.iterdir()) == []
