"""Fetching models from a local server: resume, checksums, hostile archives, two at once."""

import hashlib
import json
import os
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_model
from server import archived

from siam_bids.cli import models as models_command
from siam_bids.errors import ModelError
from siam_bids.inference.segmenter import NnunetSegmenter
from siam_bids.models.archives import unpack
from siam_bids.models.download import download
from siam_bids.models.folder import search_path
from siam_bids.models.install import remove
from siam_bids.models.registry import find_model
from siam_bids.nnunet.checkpoints import convert_checkpoints
from siam_bids.nnunet.model import NnunetModel

FOLDER = "v0.3/pred_test"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("siam_bids.models.download.time.sleep", lambda seconds: None)


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("siam") / "model", folds=2)


@pytest.fixture(scope="module")
def archive(original) -> bytes:
    return archived(original)


@pytest.fixture
def published(server, archive, monkeypatch, tmp_path):
    """A registered model `siam-t` on the server, its md5 in the record; an empty store."""
    server.files["siam.tar.gz"] = archive
    entry = {"key": "siam.tar.gz", "checksum": f"md5:{hashlib.md5(archive).hexdigest()}"}
    server.files["record"] = json.dumps({"files": [{**entry, "size": len(archive)}]}).encode()
    about = {
        "title": "T", "version": "1", "folder": FOLDER, "licence": "", "citation": "",
        "archive": {"url": server.url + "siam.tar.gz", "record": server.url + "record"},
    }  # fmt: skip
    monkeypatch.setattr("siam_bids.models.registry.registry", lambda: {"siam-t": about})
    monkeypatch.setenv("SIAM_MODEL_DIR", str(tmp_path / "store"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    return tmp_path / "store"


def test_a_fetched_model_answers_as_the_original_does(published, original, head, capsys):
    assert models_command.main(["list"]) == 0
    assert capsys.readouterr().out == "siam-t\tnot fetched\n"
    assert models_command.main(["fetch", "siam-t"]) == 0
    folder = published / FOLDER
    assert capsys.readouterr().out == f"{folder}\n"
    assert not list(folder.rglob("*.pth"))
    sizes = [sum(p.stat().st_size for p in f.rglob("fold_*/*")) for f in (folder, original)]
    assert sizes[0] <= sizes[1]
    cpu = torch.device("cpu")
    ours, theirs = (
        NnunetSegmenter(NnunetModel.open(f), cpu).segment(head).segmentation.data
        for f in (folder, original)
    )
    np.testing.assert_array_equal(ours, theirs)

    assert models_command.main(["verify", "siam-t"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "ok\tfold_1/model.safetensors"
    with (folder / "plans.json").open("a") as stream:
        stream.write(" ")
    assert models_command.main(["verify", "siam-t"]) == 6
    assert "CHANGED\tplans.json" in capsys.readouterr().out
    assert models_command.main(["remove", "siam-t"]) == 0
    assert not folder.exists()
    capsys.readouterr()
    assert models_command.main(["where", "siam-t"]) == 6
    assert capsys.readouterr().err == (
        "siam-bids: error: The model siam-t is not here. "
        "Get it with: siam-bids-models fetch siam-t\n"
    )


def test_a_siam_installation_is_used_as_it_is_and_never_removed(published, original):
    folder = published / FOLDER / "nnUNetTrainerNoDA4000__nnUNetPlans__3d_fullres"
    folder.mkdir(parents=True)
    for path in original.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(original)).parent.mkdir(exist_ok=True)
            (folder / path.relative_to(original)).write_bytes(path.read_bytes())
    roots = search_path({"SIAM_MODEL_DIR": str(published)})
    assert find_model("siam-t", roots).folder == folder
    with pytest.raises(ModelError, match="was not fetched by siam-bids-models"):
        remove("siam-t", roots)
    assert folder.exists()


def test_the_parts_of_an_ensemble_are_removed_by_name_alone(published, original, tmp_path):
    assert models_command.main(["fetch", "siam-t"]) == 0
    path = tmp_path / "pair.json"
    path.write_text(json.dumps({"members": ["siam-t", str(original)]}))
    roots = search_path({"SIAM_MODEL_DIR": str(published)})
    with pytest.raises(ModelError, match="consists of siam-t, model"):
        remove(str(path), roots)
    assert (published / FOLDER / "plans.json").exists()


def test_a_broken_download_goes_on_where_it_stopped(server, tmp_path):
    content = np.random.default_rng(0).bytes(300_000)
    server.files["file"] = content
    server.breaks = [100_000, 50_000]
    seen = []
    download(server.url + "file", tmp_path / "file", progress=lambda *n: seen.append(n))
    assert (tmp_path / "file").read_bytes() == content
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert seen[-1] == (300_000, 300_000)


def test_a_server_that_never_answers_is_given_up_in_one_line(server, tmp_path):
    with pytest.raises(ModelError, match="404"):
        download(server.url + "none", tmp_path / "file")
    server.files["file"] = b"x" * 10
    server.breaks = [0] * 10
    with pytest.raises(ModelError, match="goes on from here"):
        download(server.url + "file", tmp_path / "file", attempts=3)
    assert len(server.breaks) == 7


def test_a_wrong_checksum_installs_nothing(server, published, capsys):
    server.files["siam.tar.gz"] += b"x"
    assert models_command.main(["fetch", "siam-t", "--checksum", "md5:" + "0" * 32]) == 6
    assert "damaged or not genuine" in capsys.readouterr().err
    assert [p.name for p in published.rglob("*") if p.is_file()] == [".siam-t.lock"]


def test_mirrors_and_archives_on_disk(server, published, archive, tmp_path):
    server.files["mirror/siam.tar.gz"] = server.files.pop("siam.tar.gz")
    assert models_command.main(["fetch", "siam-t", "--mirror", server.url + "mirror/"]) == 0
    assert models_command.main(["remove", "siam-t"]) == 0
    server.files.clear()
    (tmp_path / "by_hand.tar.gz").write_bytes(archive)
    checksum = f"sha256:{hashlib.sha256(archive).hexdigest()}"
    words = ["--archive", str(tmp_path / "by_hand.tar.gz"), "--checksum", checksum]
    assert models_command.main(["fetch", "siam-t", *words]) == 0
    assert (tmp_path / "by_hand.tar.gz").exists()


def test_two_at_once_download_once(server, published):
    roots = search_path({"SIAM_MODEL_DIR": str(published)})

    def fetch(_):
        return fetch("siam-t", roots, convert=convert_checkpoints)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(fetch, range(2))) == [published / FOLDER] * 2
    assert len(server.ranges) == 2  # the record and the archive, once each


def test_too_little_space_is_said_before(published, monkeypatch):
    monkeypatch.setattr(
        "siam_bids.models.download.shutil.disk_usage", lambda path: type("D", (), {"free": 1000})
    )
    assert models_command.main(["fetch", "siam-t"]) == 6
    assert not (published / ".download").exists()


def tar_with(path: Path, name: str, kind=tarfile.REGTYPE, link="") -> Path:
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        tar.addfile(member)
    return path


@pytest.mark.parametrize(
    ("name", "kind", "link"),
    [
        ("../out", tarfile.REGTYPE, ""),
        ("/tmp/out", tarfile.REGTYPE, ""),
        ("a/../../out", tarfile.REGTYPE, ""),
        ("C:\\out", tarfile.REGTYPE, ""),
        ("link", tarfile.SYMTYPE, "/etc"),
        ("link", tarfile.LNKTYPE, "plans.json"),
        ("pipe", tarfile.FIFOTYPE, ""),
    ],
)
def test_hostile_tars_are_refused(tmp_path, name, kind, link):
    archive = tar_with(tmp_path / "a.tar", name, kind, link)
    with pytest.raises(ModelError, match="is refused"):
        unpack(archive, tmp_path / "in" / "here")
    assert [path.name for path in tmp_path.rglob("*")] == ["a.tar"]


def test_hostile_zips_are_refused(tmp_path):
    for number, name in enumerate(("../out", "/out")):
        with zipfile.ZipFile(tmp_path / f"{number}.zip", "w") as content:
            content.writestr(name, "x")
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "2.zip", "w") as content:
        content.writestr(link, "/etc")
    for number in range(3):
        with pytest.raises(ModelError, match="is refused"):
            unpack(tmp_path / f"{number}.zip", tmp_path / "in")
    assert not (tmp_path / "in").exists()
    (tmp_path / "none.tar.gz").write_bytes(b"no archive")
    with pytest.raises(ModelError, match="cannot be unpacked"):
        unpack(tmp_path / "none.tar.gz", tmp_path / "in")


class Evil:
    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_malicious_checkpoint_in_an_archive_runs_nothing_and_is_not_installed(
    server, published, tmp_path, capsys
):
    folder = write_model(tmp_path / "evil")
    evil = {"network_weights": Evil(tmp_path / "owned")}
    torch.save(evil, folder / "fold_0" / "checkpoint_final.pth")
    server.files["siam.tar.gz"] = archived(folder)
    checksum = f"md5:{hashlib.md5(server.files['siam.tar.gz']).hexdigest()}"
    assert models_command.main(["fetch", "siam-t", "--checksum", checksum]) == 6
    assert "is no usable checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "owned").exists()
    assert not (published / FOLDER).exists()
    assert not list(published.rglob(".unpack-*"))


def test_models_are_searched_where_siam_keeps_them():
    first, *_ = search_path({"SIAM_MODEL_DIR": "/a", "nnUNet_results": "/b"})
    assert first == Path("/a")
    both = os.pathsep.join(["/a", "/c"])
    assert search_path({"SIAM_MODEL_DIR": both})[:2] == (Path("/a"), Path("/c"))
    assert search_path({"nnUNet_results": "/b"})[0] == Path("/b")
    assert search_path({})[-1] == Path.home() / "siam_params"


@pytest.mark.parametrize("exact", [True, False])
def test_weights_are_halved_only_where_nothing_is_lost(tmp_path, exact):
    from siam_bids.nnunet.checkpoints import load_weights

    folder = write_model(tmp_path / "m")
    path = folder / "fold_0" / "checkpoint_final.pth"
    before = load_weights(path)
    if exact:
        content = torch.load(path, weights_only=True)
        for value in content["network_weights"].values():
            value.copy_(value.half())
        torch.save(content, path)
        before = load_weights(path)
    convert_checkpoints(folder)
    after = load_weights(folder / "fold_0" / "model.safetensors")
    assert set(after) == set(before)
    for name, value in after.items():
        assert torch.equal(value.float(), before[name])
    halved = [value.dtype == torch.float16 for value in after.values()]
    assert all(halved) if exact else not all(halved)
