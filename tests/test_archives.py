"""Archives of models: nothing in them leaves the folder or outgrows it."""

import io
import os
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from siam_bids.errors import ModelError
from siam_bids.models.archives import unpack


def tar_with(path: Path, name: str, kind=tarfile.REGTYPE, link="") -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
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
        ("a/link", tarfile.SYMTYPE, "../../etc"),
        ("a/link", tarfile.SYMTYPE, "b/../../../etc"),
        ("link", tarfile.LNKTYPE, "/etc/passwd"),
        ("link", tarfile.LNKTYPE, "../out"),
        ("link", tarfile.SYMTYPE, "C:\\out"),
        ("pipe", tarfile.FIFOTYPE, ""),
        ("device", tarfile.CHRTYPE, ""),
        ("tab\tb", tarfile.REGTYPE, ""),
        ("a" * 1001, tarfile.REGTYPE, ""),
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


class TestArchives:
    """Links, sizes and headers of archives: nothing leaves the folder, nothing outgrows it."""

    @staticmethod
    def tar(path, *members, mode="w"):
        """A tar file of (name, content) and of links (name, type, target)."""
        with tarfile.open(path, mode) as archive:
            for name, *what in members:
                member = tarfile.TarInfo(name)
                if len(what) == 2:
                    member.type, member.linkname = what
                    archive.addfile(member)
                elif what[0] is None:
                    member.type = tarfile.DIRTYPE
                    archive.addfile(member)
                else:
                    member.size = len(what[0])
                    archive.addfile(member, io.BytesIO(what[0]))
        return path

    @staticmethod
    def zip(path, *members):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content, link in members:
                member = zipfile.ZipInfo(name)
                member.external_attr = (0o120777 if link else 0o100644) << 16
                archive.writestr(member, content)
        return path

    @staticmethod
    def files(folder):
        assert not any(path.is_symlink() for path in folder.rglob("*"))
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    def test_links_that_stay_inside_become_copies(self, tmp_path):
        path = self.tar(
            tmp_path / "a.tar.gz",
            ("./m", None),
            ("m/fold_0/w", b"weights"), ("m/fold_0/sub/x", b"x"),
            ("m/plans.json", b"{}"),
            ("m/hard", tarfile.LNKTYPE, "m/fold_0/w"),
            ("m/soft", tarfile.SYMTYPE, "fold_0/w"),
            ("m/fold_1", tarfile.SYMTYPE, "fold_0"),
            ("m/deep/up", tarfile.SYMTYPE, "../fold_1/../plans.json"),
            ("m/chain", tarfile.SYMTYPE, "soft"),
            ("m/through", tarfile.SYMTYPE, "fold_1/sub/x"),
            mode="w:gz",
        )  # fmt: skip
        unpack(path, tmp_path / "in")
        assert self.files(tmp_path / "in") == {
            "m/chain": b"weights", "m/deep/up": b"{}", "m/fold_0/sub/x": b"x",
            "m/fold_0/w": b"weights", "m/fold_1/sub/x": b"x", "m/fold_1/w": b"weights",
            "m/hard": b"weights", "m/plans.json": b"{}", "m/soft": b"weights", "m/through": b"x",
        }  # fmt: skip

    def test_links_to_nothing_and_in_circles_are_left_out(self, tmp_path):
        path = self.tar(
            tmp_path / "a.tar",
            ("f", b"f"), ("gone", tarfile.SYMTYPE, "none"), ("gone2", tarfile.LNKTYPE, "none"),
            ("a", tarfile.SYMTYPE, "b"), ("b", tarfile.SYMTYPE, "a"),
            ("self", tarfile.SYMTYPE, "self/x"), ("d/here", tarfile.SYMTYPE, "."),
        )  # fmt: skip
        unpack(path, tmp_path / "in")
        assert self.files(tmp_path / "in") == {"f": b"f"}

    def test_a_file_behind_a_link_lands_inside_or_nowhere(self, tmp_path):
        outside = tmp_path / "outside"
        outside.mkdir()
        for number, target in enumerate(("/" + "etc", str(outside), "../outside")):
            path = self.tar(
                tmp_path / f"{number}.tar", ("l", tarfile.SYMTYPE, target), ("l/f", b"f")
            )
            with pytest.raises(ModelError, match=r"holds a link, 'l', to .* is refused"):
                unpack(path, tmp_path / "in")
        path = self.tar(
            tmp_path / "chain.tar", ("a/b", None), ("l", tarfile.SYMTYPE, "a/b"),
            ("m", tarfile.SYMTYPE, "l/.."), ("m/f", b"f"), ("l/g", b"g"),
        )  # fmt: skip
        unpack(path, tmp_path / "in")
        assert self.files(tmp_path / "in") == {"l/g": b"g", "m/f": b"f"}
        assert not list(outside.iterdir())

    def test_links_in_zip_files(self, tmp_path):
        path = self.zip(
            tmp_path / "a.zip", ("m/w", "weights", False), ("m/l", "w", True), ("n", "m", True)
        )
        unpack(path, tmp_path / "in")
        assert self.files(tmp_path / "in") == dict.fromkeys(("m/l", "m/w", "n/w"), b"weights")
        for number, target in enumerate(("/etc/passwd", "../x", "m/../../x", "x" * 5000)):
            path = self.zip(tmp_path / f"{number}.zip", ("l", target, True))
            with pytest.raises(ModelError, match=r"is refused|holds a link of 5000 bytes"):
                unpack(path, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("kind", ["tar.gz", "tar.bz2", "zip"])
    def test_a_small_archive_that_grows_beyond_measure_is_refused(
        self, tmp_path, monkeypatch, kind
    ):
        monkeypatch.setattr("siam_bids.models.archives.SMALL", 1 << 20)
        path = tmp_path / f"a.{kind}"
        zeros = bytes(3 << 20)
        if kind == "zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("zeros", zeros)
        else:
            self.tar(path, ("zeros", zeros), mode=f"w:{kind[4:]}")
        assert path.stat().st_size < 10_000
        with pytest.raises(ModelError, match=r"would grow to more than 0.0 GB, 20 times its size"):
            unpack(path, tmp_path / "in")
        assert not (tmp_path / "in").exists()

    def test_copies_for_links_count(self, tmp_path, monkeypatch):
        monkeypatch.setattr("siam_bids.models.archives.SMALL", 1 << 20)
        links = [(f"l{n}", tarfile.SYMTYPE, "f") for n in range(60)]
        path = self.tar(tmp_path / "a.tar", ("f", bytes(100_000)), *links)
        with pytest.raises(ModelError, match="would grow"):
            unpack(path, tmp_path / "in")

    def test_a_declared_size_is_refused_before_anything_is_read(self, tmp_path, monkeypatch):
        member = tarfile.TarInfo("huge")
        member.size = 1 << 45
        path = tmp_path / "a.tar"
        path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
        with pytest.raises(ModelError, match="would grow"):
            unpack(path, tmp_path / "in")

    @pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
    def test_a_header_that_says_it_has_gigabytes_is_not_read(self, tmp_path, kind):
        member = tarfile.TarInfo("long")
        member.type, member.size = kind, 3 << 30
        path = tmp_path / "a.tar"
        path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
        tracemalloc.start()
        with pytest.raises(ModelError, match="has headers of more than 64 MiB"):
            unpack(path, tmp_path / "in")
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
        tracemalloc.stop()

    def test_negative_sizes_and_many_entries_come_to_an_end(self, tmp_path, monkeypatch):
        header = bytearray(tarfile.TarInfo("back").tobuf(tarfile.GNU_FORMAT))
        header[124:136] = b"\xff" * 8 + (-1024).to_bytes(4, "big", signed=True)
        header[148:156] = b"        "
        header[148:156] = b"%06o\0 " % sum(header)
        path = tmp_path / "a.tar"
        path.write_bytes(bytes(header) + bytes(10240))
        with pytest.raises(ModelError):
            unpack(path, tmp_path / "in")
        monkeypatch.setattr("siam_bids.models.archives.ENTRIES", 10)
        path = self.tar(tmp_path / "b.tar", *((f"f{n}", b"") for n in range(11)))
        with pytest.raises(ModelError, match="has more than 10 entries"):
            unpack(path, tmp_path / "in")

    def test_what_lacks_room_is_not_begun(self, tmp_path, monkeypatch):
        monkeypatch.setattr(
            "siam_bids.models.download.shutil.disk_usage", lambda path: type("D", (), {"free": 10})
        )
        path = self.tar(tmp_path / "a.tar", ("f", b"x" * 100))
        with pytest.raises(ModelError, match="GB free"):
            unpack(path, tmp_path / "in")
        assert not (tmp_path / "in").exists()

    def test_damaged_and_unusual_archives_are_one_line(self, tmp_path):
        whole = self.tar(tmp_path / "a.tar.gz", ("f", np.random.default_rng(0).bytes(9999)),
                         mode="w:gz").read_bytes()  # fmt: skip
        for number, content in enumerate((b"", whole[:500], whole[:50] + b"x" * 50 + whole[100:])):
            path = tmp_path / f"{number}.tar.gz"
            path.write_bytes(content)
            with pytest.raises(ModelError, match="cannot be unpacked") as raised:
                unpack(path, tmp_path / "in")
            assert len(str(raised.value).splitlines()) == 1
        path = tmp_path / "lzma.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
            archive.writestr("f", "x")
        with pytest.raises(ModelError, match="has an unsupported compression"):
            unpack(path, tmp_path / "in")
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ModelError, match="is not a file"):
            unpack(tmp_path / "pipe", tmp_path / "in")
