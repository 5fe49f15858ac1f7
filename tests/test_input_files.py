import os
import socket
from pathlib import Path

import pytest

from siam_bids.errors import DatasetError, ImageError
from siam_bids.support.input_files import regular_file


def test_the_size_of_a_regular_file(tmp_path):
    (tmp_path / "a.tsv").write_text("participant_id\n")
    assert regular_file(tmp_path / "a.tsv", DatasetError) == 15
    (tmp_path / "b.tsv").symlink_to("a.tsv")
    assert regular_file(tmp_path / "b.tsv", DatasetError) == 15


def make_socket(path):
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(path.name)
    os.chdir(here)


ANNEX = "annex/objects/Xk/0q/SHA256E-s99--aa.nii.gz/SHA256E-s99--aa.nii.gz"
KINDS = {
    "absent": (lambda p: None, "x.nii.gz does not exist"),
    "folder": (lambda p: p.mkdir(), "x.nii.gz is a folder, not a file"),
    "pipe": (os.mkfifo, "x.nii.gz is a named pipe, not a file"),
    "socket": (make_socket, "x.nii.gz is a socket, not a file"),
    "endless device": (lambda p: p.symlink_to("/dev/zero"), "x.nii.gz is a device, not a file"),
    "empty device": (lambda p: p.symlink_to("/dev/null"), "x.nii.gz is a device, not a file"),
    "empty": (lambda p: p.touch(), "x.nii.gz is empty"),
    "broken link": (
        lambda p: p.symlink_to("elsewhere"),
        "x.nii.gz is a broken link: what it points to does not exist",
    ),
    "link to itself": (lambda p: p.symlink_to(p.name), "x.nii.gz cannot be opened: Too many"),
    "annexed": (
        lambda p: p.symlink_to(f".git/{ANNEX}"),
        "broken link: its content is in git-annex and was not fetched. Get it with `datalad get`",
    ),
    "unlocked": (
        lambda p: p.write_text("/annex/objects/SHA256E-s99--aa.nii.gz\n"),
        "x.nii.gz is a pointer of git-annex: its content was not fetched. Get it with `datalad",
    ),
    "git-lfs": (
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\n"),
        "x.nii.gz is a pointer of git-lfs: its content was not fetched. Get it with `git lfs pull`",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [ImageError, DatasetError])
def test_what_is_no_regular_file_is_told_apart_and_never_waited_for(tmp_path, kind, error):
    make, message = KINDS[kind]
    make(tmp_path / "x.nii.gz")
    with pytest.raises(error) as raised:
        regular_file(tmp_path / "x.nii.gz", error)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
