"""Fetching models from a local server: resume, checksums, servers that misbehave, two at once."""

import errno
import hashlib
import json
import os
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
from siam_bids.models.download import download
from siam_bids.models.folder import search_path
from siam_bids.models.install import fetch, remove
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
    assert capsys.readouterr().out.splitlines()[1:] == ["siam-t\tT\t0 MB\t\tnot fetched"]
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
        "siam-bids: error: The model siam-t is not installed. "
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
    with pytest.raises(ModelError, match=r"HTTP 404 .* --archive FILE or --mirror URL"):
        download(server.url + "none", tmp_path / "file")
    server.files["file"] = b"x" * 10
    server.breaks = [0] * 10
    with pytest.raises(ModelError, match=r"continues from here. Or get the archive elsewhere"):
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


class TestServersThatAreNotWhatTheyShould:
    """Whatever a server says: one ModelError, no more on the disk than the record tells."""

    @staticmethod
    def headers(status=200, **names):
        def answer(handler):
            handler.send_response(status)
            for name, value in names.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.end_headers()
            handler.wfile.write(b"x" * 1000)

        return answer

    @staticmethod
    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b"x" * 100_000)

    def test_a_body_ends_at_the_size_of_the_record(self, server, published, archive, capsys):
        server.odd["siam.tar.gz"] = self.endless
        assert models_command.main(["fetch", "siam-t"]) == 6
        said = capsys.readouterr().err
        assert f"not {len(archive)}, so the download was stopped" in said
        assert not list((published / ".download").iterdir())

    def test_a_body_of_unknown_size_ends_at_a_cap(self, server, tmp_path, monkeypatch):
        monkeypatch.setattr("siam_bids.models.download.LARGEST", 5_000_000)
        server.odd["file"] = self.endless
        with pytest.raises(ModelError, match="not 5000000, so the download was stopped"):
            download(server.url + "file", tmp_path / "file")
        assert not (tmp_path / "file").exists()

    def test_a_declared_size_beyond_the_record_is_not_received(self, server, tmp_path):
        server.odd["file"] = self.headers(Content_Length="99999999999")
        with pytest.raises(ModelError, match="sends 99999999999 bytes or more, not 1000"):
            download(server.url + "file", tmp_path / "file", size=1000)
        assert not (tmp_path / "file").exists()

    @pytest.mark.parametrize("length", ["nonsense", "-5", "1e9", "", "999999999999999999999x"])
    def test_a_length_that_is_no_number_is_ignored(self, server, tmp_path, length):
        server.odd["file"] = self.headers(Content_Length=length)
        download(server.url + "file", tmp_path / "file", size=1000)
        assert (tmp_path / "file").read_bytes() == b"x" * 1000

    @pytest.mark.parametrize("status", [416, 403, 410])
    def test_a_refusal_of_a_first_request_is_final(self, server, tmp_path, status):
        server.odd["file"] = self.headers(status)
        with pytest.raises(ModelError, match=f"cannot be fetched: HTTP {status}"):
            download(server.url + "file", tmp_path / "file")

    @pytest.mark.parametrize("where", ["", "bytes 0-99/100", "bytes 7-1006/1007", "x"])
    def test_another_part_than_was_asked_for_is_not_joined(self, server, tmp_path, where):
        content = np.random.default_rng(0).bytes(1000)
        server.files["whole"] = content

        def answer(handler):
            if handler.headers.get("Range"):
                self.headers(206, Content_Range=where)(handler)
            else:
                handler.path = "/whole"
                handler.do_GET()

        server.odd["file"] = answer
        (tmp_path / "file").write_bytes(content[:500])
        download(server.url + "file", tmp_path / "file", size=1000)
        assert (tmp_path / "file").read_bytes() == content

    def test_a_part_longer_than_the_file_is_begun_anew(self, server, tmp_path):
        server.files["file"] = b"y" * 100
        (tmp_path / "file").write_bytes(b"x" * 500)
        download(server.url + "file", tmp_path / "file", size=100)
        assert (tmp_path / "file").read_bytes() == b"y" * 100

    @pytest.mark.parametrize("place", ["file", "", "//file", "http://", "file:///etc/passwd"])
    def test_a_redirect_that_leads_nowhere_ends_in_one_line(self, server, tmp_path, place):
        where = place if ":" in place or not place else server.url + place.strip("/")
        server.odd["file"] = self.headers(302, Location=where)
        server.odd[""] = server.odd["file"]
        with pytest.raises(ModelError, match="cannot be fetched") as raised:
            download(server.url + "file", tmp_path / "file", attempts=2)
        assert len(str(raised.value).splitlines()) == 1
        assert not (tmp_path / "file").exists()

    def test_a_drop_at_a_time_is_given_up(self, server, tmp_path):
        server.files["file"] = b"x" * 1000
        server.breaks = [1] * 1000
        with pytest.raises(ModelError, match="the connection broke off"):
            download(server.url + "file", tmp_path / "file")
        assert len(server.breaks) == 995

    def test_a_full_disk_is_no_matter_of_the_network(self, server, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        server.files["file"] = b"x" * 1000
        monkeypatch.setattr("siam_bids.models.download._receive", full)
        with pytest.raises(ModelError, match=r"cannot be written: .*No space left.* Free space"):
            download(server.url + "file", tmp_path / "file")

    @pytest.mark.parametrize(
        ("record", "said"),
        [
            ('{"files": ' + "[" * 100_000, "does not give"),
            ('{"files": [{"key": "siam.tar.gz", "checksum": "md5:0", "size": 1}]}', "a checksum"),
            ('{"files": [{"key": "siam.tar.gz", "checksum": 5, "size": 1}]}', "not a checksum"),
            ('{"files": [{"key": "siam.tar.gz", "checksum": "%s", "size": -1}]}', "has -1 bytes"),
            ('{"files": [{"key": "siam.tar.gz", "checksum": "%s", "size": true}]}', "has True"),
            ('{"files": [{"key": "siam.tar.gz", "checksum": "%s", "size": 1e400}]}', "has inf"),
            ('{"files": [{"key": "siam.tar.gz", "checksum": "%s"}]}', "does not give"),
            ('{"files": [{"key": "other"}]}', "lists no siam.tar.gz"),
            ('{"files": [5]}', "does not give"), ('{"files": 5}', "does not give"),
            ('{"files": {"a": 5}}', "does not give"),
            ("[]", "does not give"), ("null", "does not give"), ("", "does not give"),
            ("\xff\xfe", "does not give"), (" " * (5 << 20), "longer than 4 MiB"),
        ],
    )  # fmt: skip
    def test_an_odd_record_is_one_line_that_says_what_helps(
        self, server, published, capsys, record, said
    ):
        server.files["record"] = record.replace("%s", "md5:" + "0" * 32).encode("latin-1")
        assert models_command.main(["fetch", "siam-t"]) == 6
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
        assert "--checksum md5:..." in line
        assert "--mirror URL" in line
        assert "--archive siam.tar.gz" in line

    def test_an_endless_record_is_left(self, server, published, capsys):
        server.odd["record"] = self.endless
        assert models_command.main(["fetch", "siam-t"]) == 6
        assert "longer than 4 MiB" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--checksum", "md5"], "'md5' is not a checksum. Write md5:<hex>"),
            (["--checksum", "md5:xyz"], "is not a checksum"),
            (["--checksum", "sha1:" + "0" * 40], "is not a checksum"),
            (
                ["--archive", "/nonexistent.tar.gz"],
                "The archive /nonexistent.tar.gz is not a file.",
            ),
            (["--archive", "."], "is not a file. Give --archive the archive itself"),
            (
                ["--mirror", "ftp://x/y"],
                "ftp://x/y is not an http(s) address. Give that of the archive",
            ),
            (["--mirror", "here/"], "here/siam.tar.gz is not an http(s) address"),
        ],
    )
    def test_options_say_what_they_want(self, published, capsys, words, said):
        assert models_command.main(["fetch", "siam-t", *words]) == 6
        assert said in capsys.readouterr().err


def test_two_at_once_download_once(server, published):
    roots = search_path({"SIAM_MODEL_DIR": str(published)})

    def bring(_):
        return fetch("siam-t", roots, convert=convert_checkpoints)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(bring, range(2))) == [published / FOLDER] * 2
    assert len(server.ranges) == 2  # the record and the archive, once each


def test_too_little_space_is_said_before(published, monkeypatch):
    monkeypatch.setattr(
        "siam_bids.models.download.shutil.disk_usage", lambda path: type("D", (), {"free": 1000})
    )
    assert models_command.main(["fetch", "siam-t"]) == 6
    assert not (published / ".download").exists()


def test_a_folder_of_ones_own_is_never_removed(published, original, tmp_path):
    folder = write_model(tmp_path / "mine")
    (folder / "siam-bids.json").write_text('{"files": {}}')
    with pytest.raises(ModelError, match="is not a registered model and was not removed"):
        remove(str(folder), ())
    assert folder.exists()


@pytest.mark.parametrize("content", ["[]", '{"files": 5}', '{"files": {"a": 5}}', "{", '{"a": 1}'])
def test_an_odd_manifest_is_named(published, original, content, capsys):
    assert models_command.main(["fetch", "siam-t"]) == 0
    (published / FOLDER / "siam-bids.json").write_text(content)
    capsys.readouterr()
    assert models_command.main(["verify", "siam-t"]) == 6
    assert "siam-bids.json" in capsys.readouterr().err


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
    assert "is not a usable checkpoint" in capsys.readouterr().err
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
