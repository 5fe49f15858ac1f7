"""Difficult input: every kind of scan and dataset, and what must become of it.

`SCANS` are put side by side into one dataset and run together; each either gets a segmentation
(`message` is empty) or fails alone with a line that matches `message`. `RUNS` are whole command
lines that end with an exit code and a line on standard error. `MACHINES` have full disks, limits
and other troubles of their own.
"""

import gzip
import json
import os
import resource
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import nibabel as nib
import numpy as np
from conftest import describe

from siam_bids.image.grid import Volume

Make = Callable[[Path, Volume], None]


@dataclass(frozen=True)
class OddScan:
    """A file that lies where a T1w image is expected."""

    kind: str
    make: Make
    message: str = ""
    name: str = "sub-{label}_T1w.nii.gz"


def save(path: Path, data: np.ndarray, affine: np.ndarray, **header: object) -> None:
    image = nib.Nifti1Image(data, affine)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)


def with_data(change: Callable[[np.ndarray], np.ndarray]) -> Make:
    return lambda path, head: save(path, change(head.data.copy()), head.grid.affine)


def with_affine(change: Callable[[np.ndarray], np.ndarray]) -> Make:
    return lambda path, head: save(path, head.data, change(head.grid.affine.copy()))


def with_bytes(change: Callable[[bytearray], bytes]) -> Make:
    """Change the uncompressed bytes of a good file: the 348-byte header begins at 0."""

    def make(path: Path, head: Volume) -> None:
        save(path, head.data, head.grid.affine)
        path.write_bytes(gzip.compress(change(bytearray(gzip.decompress(path.read_bytes())))))

    return make


def truncated(path: Path, head: Volume) -> None:
    save(path, head.data, head.grid.affine)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def put(offset: int, code: str, *values: float) -> Callable[[bytearray], bytes]:
    def change(content: bytearray) -> bytes:
        struct.pack_into("<" + code, content, offset, *values)
        return bytes(content)

    return change


def pieces(*changes: Callable[[bytearray], bytes]) -> Callable[[bytearray], bytes]:
    def change(content: bytearray) -> bytes:
        for one in changes:
            content = bytearray(one(content))
        return bytes(content)

    return change


def holes(data: np.ndarray) -> np.ndarray:
    data[3::7, 5::5] = np.nan
    data[4, 4, 4] = np.inf
    return data


def two_codes(path: Path, head: Volume) -> None:
    image = nib.Nifti1Image(head.data, head.grid.affine)
    moved = head.grid.affine.copy()
    moved[:3, 3] += 40
    image.set_sform(head.grid.affine, 1)
    image.set_qform(moved, 1)
    nib.save(image, path)


def no_codes(path: Path, head: Volume) -> None:
    image = nib.Nifti1Image(head.data, head.grid.affine)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nib.save(image, path)


def pipe(path: Path, head: Volume) -> None:
    os.mkfifo(path)


def plain(path: Path, head: Volume) -> None:
    """An uncompressed file, whatever its name says."""
    path.write_bytes(nib.Nifti1Image(head.data, head.grid.affine).to_bytes())


def flipped_bit(path: Path, head: Volume) -> None:
    """A gzip stream that still unpacks to its end; only the checksum tells."""
    image = nib.Nifti1Image(head.data, head.grid.affine)
    content = bytearray(gzip.compress(image.to_bytes(), compresslevel=0))
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def huge_extensions(path: Path, head: Volume) -> None:
    """Six extensions, each of 2^30 bytes, in a file of 6 MB."""
    content = bytearray(nib.Nifti1Image(head.data, head.grid.affine).to_bytes())
    count, size = 6, 1 << 30
    struct.pack_into("<f", content, 108, 352 + count * size)
    content[348:352] = b"\1\0\0\0"
    zeros = bytes(1 << 20)
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(content[:352])
        for _ in range(count):
            stream.write(struct.pack("<ii", size, 6) + zeros[8:])
            for _ in range(3):  # far less than it declares
                stream.write(zeros)


def placed(sform: np.ndarray | None, qform: np.ndarray, codes: tuple[int, int]) -> Make:
    """A scan whose header has both forms, each times a matrix, and these codes of theirs."""

    def make(path: Path, head: Volume) -> None:
        image = nib.Nifti1Image(head.data, None)
        image.set_qform(head.grid.affine @ qform, codes[1])
        content = bytearray(image.to_bytes())
        rows = np.zeros(12) if sform is None else (head.grid.affine @ sform)[:3].ravel()
        struct.pack_into("<12f", content, 280, *rows)
        struct.pack_into("<h", content, 254, codes[0])
        path.write_bytes(gzip.compress(content))

    return make


def long_quaternion(path: Path, head: Volume) -> None:
    """A rotation by 180 degrees whose quaternion is a little too long, as rounding leaves it."""
    placed(None, np.diag([-1, -1, 1, 1]), (0, 1))(path, head)
    content = bytearray(gzip.decompress(path.read_bytes()))
    path.write_bytes(gzip.compress(put(264, "f", 1.0000002)(content)))


def components(path: Path, head: Volume) -> None:
    save(path, np.stack([head.data] * 3, -1)[:, :, :, None], head.grid.affine)


def hot(data: np.ndarray) -> np.ndarray:
    data[20, 20, 20] = 1e6
    return data


def rgb(path: Path, head: Volume) -> None:
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(np.zeros(head.data.shape, kind), head.grid.affine), path)


def sheared(affine: np.ndarray) -> np.ndarray:
    affine[0, 1] += 0.3 * affine[1, 1]
    return affine


def flat(affine: np.ndarray) -> np.ndarray:
    affine[:3, 2] = affine[:3, 1]
    return affine


def sized(factor: float) -> Make:
    return with_affine(lambda affine: affine @ np.diag([factor, factor, factor, 1]))


def stripped(data: np.ndarray) -> np.ndarray:
    middle = [n // 2 for n in data.shape]
    place = np.indices(data.shape)
    far = sum((place[axis] - middle[axis]) ** 2 for axis in range(3)) ** 0.5
    return data * (far < 15)


def defaced(data: np.ndarray) -> np.ndarray:
    data[:, data.shape[1] * 3 // 4 :, : data.shape[2] // 2] = 0
    return data


def twice(path: Path, head: Volume) -> None:
    """The same run under two numbers, `run-1` and `run-01`."""
    for name in (path.name, path.name.replace("run-1", "run-01")):
        save(path.with_name(name), head.data, head.grid.affine)


SCANS = (
    OddScan("a whole scan", with_data(lambda data: data)),
    OddScan("truncated gzip stream", truncated, "damaged"),
    OddScan("not gzip", lambda path, head: path.write_bytes(b"no gzip at all" * 99), "damaged"),
    OddScan("empty file", lambda path, head: path.write_bytes(b""), "empty"),
    OddScan("gzip checksum wrong", flipped_bit, "damaged: its checksum"),
    OddScan("named pipe", pipe, "named pipe"),
    OddScan("link to an endless device", lambda p, h: p.symlink_to("/dev/zero"), "a device"),
    OddScan("pointer of git-annex", lambda p, h: p.write_text(
        "/annex/objects/SHA256E-s9--0.nii.gz\n"), "git-annex.*not fetched"),
    OddScan("pointer of git-lfs", lambda p, h: p.write_text(
        "version https://git-lfs.github.com/spec/v1\n"), "git-lfs.*not fetched"),
    OddScan("not compressed, though its name ends in .gz", plain),
    OddScan("only a header", lambda p, h: p.write_bytes(
        nib.Nifti1Image(h.data, h.grid.affine).to_bytes()[:352]), "damaged.*can hold"),
    OddScan("extensions of 6 GB declared", huge_extensions, "damaged"),
    OddScan("wrong magic", with_bytes(put(344, "4s", b"xxxx")), "damaged"),
    OddScan("data shorter than its header says", with_bytes(lambda c: bytes(c[:9000])), "damaged"),
    OddScan("NaN and infinite voxels", with_data(holes)),
    OddScan("all NaN", with_data(lambda data: data * np.nan), "constant"),
    OddScan("constant", with_data(lambda data: data * 0 + 7), "constant"),
    OddScan("all zero", with_data(lambda data: data * 0), "constant"),
    OddScan("negative values, as in CT", with_data(lambda data: data * 10 - 1000)),
    OddScan("RGB voxels", rgb, "not plain intensities"),
    OddScan("complex voxels", with_data(lambda data: data.astype(np.complex64)), "not plain"),
    OddScan("float64 voxels", with_data(lambda data: data.astype(np.float64))),
    OddScan("int64 voxels", lambda p, h: nib.save(
        nib.Nifti1Image(h.data.astype(np.int64), h.grid.affine, dtype=np.int64), p)),
    OddScan("big-endian header", lambda p, h: nib.save(
        nib.Nifti1Image(h.data.astype(">i2"), h.grid.affine,
                        nib.Nifti1Header(endianness=">")), p)),
    OddScan("NIfTI-2", lambda p, h: nib.save(nib.Nifti2Image(h.data, h.grid.affine), p)),
    OddScan("scl_slope 0", with_bytes(put(112, "f", 0.0))),
    OddScan("scl_slope NaN", with_bytes(put(112, "f", np.nan))),
    OddScan("scl_inter NaN", with_bytes(pieces(put(112, "f", 1.0), put(116, "f", np.nan)))),
    OddScan("1-bit voxels", with_bytes(put(70, "hh", 1, 1)), "1-bit"),
    OddScan("a voxel of 1e6", with_data(hot)),
    OddScan("2-D", with_data(lambda data: data[..., 20]), "2-D"),
    OddScan("4-D, two volumes", with_data(lambda data: np.stack([data, data], -1)),
            "4-D.*--volume"),
    OddScan("4-D, one volume", with_data(lambda data: data[..., None])),
    OddScan("5-D", with_data(lambda data: np.stack([data, data], -1)[..., None, :]), "5-D"),
    OddScan("5-D, three components", components, "5-D.*one of its 3 with --volume"),
    OddScan("a single slice", with_data(lambda data: data[..., 20:21]), "too thin"),
    OddScan("voxels of 10 m", sized(2500), "voxels"),
    OddScan("voxels of 4 micrometres", sized(0.001), "voxels"),
    OddScan("zooms of 0 without sform", with_bytes(
        pieces(put(254, "h", 0), put(80, "fff", 0.0, 0.0, 0.0)))),
    OddScan("negative zooms", with_bytes(put(80, "fff", -4.0, -4.0, -4.0))),
    OddScan("NaN in the affine", with_bytes(put(280, "f", np.nan)), "affine"),
    OddScan("singular affine", with_affine(flat), "affine"),
    OddScan("sheared affine", with_affine(sheared)),
    OddScan("sform and qform disagree", two_codes),
    OddScan("sform and qform disagree on the size", placed(
        np.diag([2, 2, 2, 1]), np.eye(4), (1, 1))),
    OddScan("sform and qform disagree on left and right", placed(
        np.diag([-1, 1, 1, 1]), np.eye(4), (2, 1))),
    OddScan("neither sform nor qform", no_codes),
    OddScan("sform of zeros beside a qform", placed(None, np.eye(4), (1, 1))),
    OddScan("quaternion a little too long", long_quaternion),
    OddScan("0.8 mm voxels of a small animal", sized(0.2)),
    OddScan("0.2 mm voxels", sized(0.05)),
    OddScan("8 mm voxels", sized(2)),
    OddScan("1024 x 1024 x 1024 declared", with_bytes(put(42, "hhh", 1024, 1024, 1024)),
            "1024.*GB|damaged"),
    OddScan("32767^3 declared", with_bytes(put(42, "hhh", 32767, 32767, 32767)), "GB"),
    OddScan("noise, no head", with_data(
        lambda data: np.random.default_rng(0).random(data.shape, np.float32))),
    OddScan("mirrored", with_affine(lambda affine: affine @ np.diag([-1, 1, 1, 1]))),
    OddScan("upside down", with_data(lambda data: data[:, :, ::-1])),
    OddScan("defaced", with_data(defaced)),
    OddScan("skull-stripped", with_data(stripped)),
    OddScan("two heads", with_data(lambda data: np.concatenate([data, data]))),
    OddScan("link to content that was not fetched",
            lambda path, head: path.symlink_to(".git/annex/objects/none"), "broken link"),
    OddScan("uncompressed", with_data(lambda data: data), name="sub-{label}_T1w.nii"),
    OddScan("MGH data with the name of a NIfTI file", lambda p, h: p.write_bytes(
        nib.MGHImage(h.data, h.grid.affine).to_bytes())),
    OddScan("a run that is there twice", twice, name="sub-{label}_run-1_T1w.nii.gz"),
    OddScan("a name of 240 bytes", with_data(lambda data: data), "too long",
            name="sub-{label}_acq-" + "x" * 217 + "_T1w.nii.gz"),
)  # fmt: skip
"""Odd scans; all lie in one dataset, `sub-000`, `sub-001`, ..."""


def write_scans(root: Path, head: Volume) -> dict[str, str]:
    """Write the dataset of all odd scans; return the name of the scan of each kind."""
    names = {}
    for number, odd in enumerate(SCANS):
        label = f"{number:03d}"
        path = root / f"sub-{label}" / "anat" / odd.name.format(label=label)
        path.parent.mkdir(parents=True)
        odd.make(path, head)
        names[odd.kind] = path.name.split(".")[0]
    describe(root)
    return names


@dataclass(frozen=True)
class OddRun:
    """A dataset or command line that is wrong as a whole, or looks so.

    `make` gets an empty folder with one good dataset at `bids`, and returns the arguments after
    `IN OUT participant`, or all of them where they begin with a path. With `group` the group level
    must go through afterwards.
    """

    kind: str
    exit_code: int
    message: str
    make: Callable[[Path], list[str]]
    group: bool = False


def arguments(*words: str) -> Callable[[Path], list[str]]:
    return lambda root: list(words)


def changed(change: Callable[[Path], object], *words: str) -> Callable[[Path], list[str]]:
    def make(root: Path) -> list[str]:
        change(root)
        return list(words)

    return make


def text(path: str, content: str | bytes) -> Callable[[Path], list[str]]:
    data = content if isinstance(content, bytes) else content.encode()
    return changed(lambda root: (root / path).write_bytes(data))


def renamed(new: str) -> Callable[[Path], list[str]]:
    anat = Path("bids/sub-01/anat")
    return changed(lambda root: (root / anat / "sub-01_T1w.nii.gz").rename(root / anat / new))


def moved(new: str) -> Callable[[Path], list[str]]:
    """Move the image to another path within the dataset."""

    def make(root: Path) -> list[str]:
        (root / "bids" / new).parent.mkdir(parents=True, exist_ok=True)
        (root / "bids/sub-01/anat/sub-01_T1w.nii.gz").rename(root / "bids" / new)
        return []

    return make


def model(change: Callable[[Path], object]) -> Callable[[Path], list[str]]:
    def make(root: Path) -> list[str]:
        change(root / "model")
        return ["--model", str(root / "model")]

    return make


def drop_label(folder: Path) -> None:
    content = json.loads((folder / "dataset.json").read_text())
    content["labels"].popitem()
    (folder / "dataset.json").write_text(json.dumps(content))


def widen(folder: Path) -> None:
    content = json.loads((folder / "plans.json").read_text())
    plan = content["configurations"]["3d_fullres"]
    plan["architecture"]["arch_kwargs"]["features_per_stage"] = [6, 12]
    (folder / "plans.json").write_text(json.dumps(content))


def filters(content: str) -> Callable[[Path], list[str]]:
    def make(root: Path) -> list[str]:
        (root / "filters.json").write_text(content)
        return ["--bids-filter-file", str(root / "filters.json")]

    return make


def described(kind: str | None, *words: str) -> Callable[[Path], list[str]]:
    about = {"Name": "d", "BIDSVersion": "1.10.0", "DatasetType": kind}
    return changed(
        lambda root: (root / "bids/dataset_description.json").write_text(json.dumps(about)), *words
    )


def copied(folder: Path, *stems: str) -> None:
    for stem in stems:
        shutil.copy(folder / "sub-01_T1w.nii.gz", folder / f"{stem}_T1w.nii.gz")


def relinked(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


CHECKPOINT = "fold_0/checkpoint_final.pth"
RUNS = (
    OddRun("no input folder", 3, "does not exist", lambda r: [str(r / "no"), str(r / "o")]),
    OddRun("a file as input", 3, "not a folder|does not exist",
           lambda r: [str(r / "bids/dataset_description.json"), str(r / "o")]),
    OddRun("a folder without subjects", 3, "no sub-", lambda r: [str(r / "model"), str(r / "o")]),
    OddRun("no dataset_description.json", 3, "dataset_description.json",
           changed(lambda r: (r / "bids/dataset_description.json").unlink())),
    OddRun("dataset_description.json is not JSON", 3, "dataset_description.json",
           text("bids/dataset_description.json", "{")),
    OddRun("dataset_description.json without a name", 0, "",
           text("bids/dataset_description.json", "{}")),
    OddRun("malformed sidecar", 0, "", text("bids/sub-01/anat/sub-01_T1w.json", "{,")),
    OddRun("no sidecar", 0, "", arguments()),
    OddRun("empty participants.tsv", 0, "", text("bids/participants.tsv", ""), group=True),
    OddRun("participants.tsv with sessions, a byte-order mark, `89+` and tabs at the end", 0, "",
           text("bids/participants.tsv", "\ufeffparticipant_id\tsession_id\tage\n"
                "01\tn/a\t89+\t\n01\tb\t34,5\t\n"), group=True),
    OddRun("participants.tsv and its JSON are links whose content was not fetched", 0, "",
           changed(lambda r: [(r / f"bids/participants.{kind}").symlink_to(".git/annex/objects/x")
                              for kind in ("tsv", "json")]), group=True),
    OddRun("a pipe as participants.tsv", 0, "",
           changed(lambda r: os.mkfifo(r / "bids/participants.tsv")), group=True),
    OddRun("participants.json of 200,000 brackets", 0, "",
           text("bids/participants.json", "[" * 200_000), group=True),
    OddRun("participants.tsv without some subjects", 0, "",
           text("bids/participants.tsv", "participant_id\tage\n"), group=True),
    OddRun("participants.tsv with other subjects", 0, "",
           text("bids/participants.tsv", "participant_id\nsub-77\n"), group=True),
    OddRun("participants.tsv in Latin-1", 0, "",
           text("bids/participants.tsv", "participant_id\tsite\nsub-01\tMalmö\n".encode("latin1")),
           group=True),
    OddRun(".nii beside .nii.gz", 0, "", changed(lambda r: (
        r / "bids/sub-01/anat/sub-01_T1w.nii").write_bytes(b"x"))),
    OddRun("suffix in lower case", 3, "No anatomical image.*--suffix",
           renamed("sub-01_t1w.nii.gz")),
    OddRun("MGH file name", 3, "No anatomical image", renamed("sub-01_T1w.mgz")),
    OddRun("a folder in place of the image", 3, "No anatomical image", changed(
        lambda r: (r / "bids/sub-02/anat/sub-02_T1w.nii.gz").mkdir(parents=True),
        "--participant-label", "02")),
    OddRun("only the phase part", 3, "No anatomical image",
           renamed("sub-01_part-phase_T1w.nii.gz")),
    OddRun("only an MP2RAGE inversion", 3, "No anatomical image.*--suffix",
           renamed("sub-01_inv-1_MP2RAGE.nii.gz")),
    OddRun("the inversion asked for", 0, "", lambda r: [
        *renamed("sub-01_inv-1_MP2RAGE.nii.gz")(r), "--suffix", "MP2RAGE"]),
    OddRun("a subject without anat", 3, "No anatomical image", changed(
        lambda r: (r / "bids/sub-02/func").mkdir(parents=True), "--participant-label", "02")),
    OddRun("a dot in a label", 1, "'acq-0.8mm' may contain only letters, digits",
           renamed("sub-01_acq-0.8mm_T1w.nii.gz")),
    OddRun("HTML in a name", 1, "'acq-<b>' may contain only letters",
           renamed("sub-01_acq-<b>_T1w.nii.gz")),
    OddRun("letters of other alphabets in a name", 1, "'acq-čšž' may contain only letters",
           renamed("sub-01_acq-čšž_T1w.nii.gz")),
    OddRun("a label with underscores", 1, "'MRI' in the name is not an entity.*underscores",
           moved("sub-WMH_MRI_21/anat/sub-WMH_MRI_21_T1w.nii.gz")),
    OddRun("a label with a hyphen", 1, "'sub-A-01' may contain only letters",
           moved("sub-A-01/anat/sub-A-01_T1w.nii.gz")),
    OddRun("a label with an umlaut", 1, "'sub-Müller' may contain only letters",
           moved("sub-Müller/anat/sub-Müller_T1w.nii.gz")),
    OddRun("a session in the folder, not in the name", 1,
           "says no session, but the file is in ses-a",
           moved("sub-01/ses-a/anat/sub-01_T1w.nii.gz")),
    OddRun("a session in the name, not in the folder", 1,
           "says ses-a, but the file is in no session folder",
           renamed("sub-01_ses-a_T1w.nii.gz")),
    OddRun("the image of another participant", 1, "says sub-02, but the file is in sub-01",
           renamed("sub-02_T1w.nii.gz")),
    OddRun("a folder put aside", 1, "says sub-01, but the file is in sub-01_old",
           moved("sub-01_old/anat/sub-01_T1w.nii.gz")),
    OddRun("a copy by a file manager", 1, "'Copy of sub-' in the name is not a BIDS entity",
           renamed("Copy of sub-01_T1w.nii.gz")),
    OddRun("a copy by another file manager", 1, r"The suffix 'T1w \(1\)' may contain only letters",
           renamed("sub-01_T1w (1).nii.gz")),
    OddRun("an entity in upper case", 1, "'SUB-'.*Did you mean sub-", renamed("SUB-01_T1w.nii.gz")),
    OddRun("an entity that BIDS does not know", 1, "'site-' in the name is not a BIDS entity",
           renamed("sub-01_site-x_T1w.nii.gz")),
    OddRun("an entity twice", 1, "has acq- twice", renamed("sub-01_acq-a_acq-b_T1w.nii.gz")),
    OddRun("a run without number", 1, "'run-a' in the name must be a number",
           renamed("sub-01_run-a_T1w.nii.gz")),
    OddRun("no subject in the name", 1, "no sub- entity", renamed("T1w.nii.gz")),
    OddRun("a line break in a name", 1, r"'acq-a\?b' may contain only letters",
           renamed("sub-01_acq-a\nb_T1w.nii.gz")),
    OddRun("entities in another order", 0, "", renamed("sub-01_run-1_acq-a_T1w.nii.gz"),
           group=True),
    OddRun("the same name in two orders", 1, "has the same outputs as sub-01_", changed(
        lambda r: copied(r / "bids/sub-01/anat", "sub-01_run-1_acq-a", "sub-01_acq-a_run-1"))),
    OddRun("a participant that links to another", 1, "says sub-01, but the file is in sub-02",
           changed(lambda r: (r / "bids/sub-02").symlink_to("sub-01")), group=True),
    OddRun("hidden files of macOS", 0, "", changed(lambda r: (
        r / "bids/sub-01/anat/._sub-01_T1w.nii.gz").write_bytes(b"x")), group=True),
    OddRun("a file name that is not UTF-8", 0, "", changed(lambda r: (
        r / "bids/sub-01/anat" / os.fsdecode(b"n\xf6te.txt")).write_bytes(b"x")), group=True),
    OddRun("an image name that is not UTF-8", 1, r"'sub-01_acq-\?_T1w.nii.gz|'acq-\?' may contain",
           changed(lambda r: (r / "bids/sub-01/anat/sub-01_T1w.nii.gz").rename(
               r / "bids/sub-01/anat" / os.fsdecode(b"sub-01_acq-\xf6_T1w.nii.gz")))),
    OddRun("a participant whose label is not UTF-8", 1, r"'sub-\?' may contain only letters",
           moved(os.fsdecode(b"sub-\xf6/anat/sub-\xf6_T1w.nii.gz"))),
    OddRun("a file of patterns for pybids in the dataset", 0, "", text(
        "bids/layout_config.json", '{"name": "x", "entities": [{"name": "run", "pattern": "("}]}')),
    OddRun("a filter that is an argument of pybids", 3, "names 'target', which is not an entity",
           filters('{"t1w": {"target": "subject", "return_type": "id"}}')),
    OddRun("a filter by the key of a name", 3, "'acq'.*Did you mean acquisition",
           filters('{"t1w": {"acq": "a"}}')),
    OddRun("a filter for an object", 3, "wants {", filters('{"t1w": {"run": {"a": 1}}}')),
    OddRun("filters for other images", 0, "",
           filters('{"fmap": {"target": "x"}, "bold": {"x": {}}}')),
    OddRun("a filter with a byte-order mark", 0, "", filters("\ufeff{}")),
    OddRun("unknown participant", 3, "sub-99", arguments("--participant-label", "99")),
    OddRun("unknown session", 3, "No anatomical image", arguments("--session-label", "x")),
    OddRun("unknown suffix", 3, "No anatomical image", arguments("--suffix", "T9w")),
    OddRun("filter file missing", 3, "cannot be read", arguments("--bids-filter-file", "/no")),
    OddRun("filter file is not JSON", 3, "cannot be read as JSON", filters("{")),
    OddRun("filter file is a list", 3, "one object", filters("[]")),
    OddRun("filter that matches nothing", 3, "No anatomical image",
           filters('{"t1w": {"acquisition": "none"}}')),
    OddRun("unknown model", 6, "no model 'nonesuch'", arguments("--model", "nonesuch")),
    OddRun("model without plans", 6, "plans.json",
           model(lambda m: (m / "plans.json").unlink())),
    OddRun("model without checkpoint", 6, "checkpoint_final.pth",
           model(lambda m: (m / CHECKPOINT).unlink())),
    OddRun("plans are not JSON", 6, "plans.json",
           model(lambda m: (m / "plans.json").write_text("{"))),
    OddRun("checkpoint cut off", 6, "not a usable checkpoint", model(
        lambda m: (m / CHECKPOINT).write_bytes((m / CHECKPOINT).read_bytes()[:999]))),
    OddRun("checkpoint of another network", 6, "does not fit", model(widen)),
    OddRun("plans and label list disagree", 6, "does not fit", model(drop_label)),
    OddRun("unknown tissue", 2, "no tissue Gold", arguments("--probabilities", "Gold")),
    OddRun("negative number of threads", 2, "negative", arguments("--n-cpus", "-2")),
    OddRun("options that contradict each other", 2, "contradicts",
           arguments("--no-interpolation", "--voxel-size", "1")),
    OddRun("options that exclude each other", 2, "not allowed",
           arguments("--resume", "--overwrite")),
    OddRun("unknown option", 2, "There is no option --quick", arguments("--quick")),
    OddRun("unknown level", 2, "not one of participant, group",
           lambda r: [str(r), str(r / "o"), "session"]),
    OddRun("output is the input", 2, "same", lambda r: [str(r / "bids"), str(r / "bids")]),
    OddRun("output around the input", 2, "inside", lambda r: [str(r / "bids"), str(r)]),
    OddRun("output inside the input", 0, "",
           lambda r: [str(r / "bids"), str(r / "bids/derivatives/siam")]),
    OddRun("output is a file", 2, "is a file",
           lambda r: [str(r / "bids"), str(r / "bids/dataset_description.json")]),
    OddRun("output below a file", 2, "is a file, not a folder",
           lambda r: [str(r / "bids"), str(r / "bids/dataset_description.json/out")]),
    OddRun("spaces and other alphabets in paths", 0, "", lambda r: [
        str((r / "bids").rename(r / "mein Gehirn 脳")), str(r / "out put")]),
    OddRun("a derivative dataset as input", 3, "type derivative, not raw.*--derivative-input",
           described("derivative")),
    OddRun("a derivative dataset as input, allowed", 0, "", described(
        "derivative", "--derivative-input"), group=True),
    OddRun("a dataset of type Raw", 0, "", described("Raw"), group=True),
    OddRun("a dataset of type null", 0, "", described(None)),
    OddRun("a dataset of an empty type", 0, "", described("")),
    OddRun("dataset_description.json with a byte-order mark", 0, "",
           text("bids/dataset_description.json", '\ufeff{"Name": "d"}'), group=True),
    OddRun("dataset_description.json, content not fetched", 3, "not fetched.*datalad get",
           changed(lambda r: relinked(
               r / "bids/dataset_description.json", ".git/annex/objects/x"))),
)  # fmt: skip


@dataclass(frozen=True)
class OddMachine:
    """A good dataset on a machine in trouble.

    `make` gets the folder with the dataset `bids`, and `disk` of so many kB if any, and returns
    arguments of `machine.run`. The output goes to `out`, a folder there, empty at first.
    """

    kind: str
    exit_code: int
    message: str
    make: Callable[[Path], dict[str, Any]] = lambda root: {}
    disk: int = 0
    out: str = "out"


def read_only(root: Path) -> dict[str, Any]:
    machine.remount(root / "disk", "ro")
    return {}


def forbidden(place: str) -> Callable[[Path], dict[str, Any]]:
    def make(root: Path) -> dict[str, Any]:
        (root / place).chmod(0o500 if (root / place).is_dir() else 0)
        return {"powerless": True}

    return make


def filled(root: Path) -> dict[str, Any]:
    with suppress(OSError), (root / "disk/rubbish").open("wb") as stream:
        while stream.write(bytes(4096)):
            stream.flush()
    return {"temporary": root / "disk"}


def limited(kind: int, limit: int) -> Callable[[Path], dict[str, Any]]:
    return lambda root: {"limits": {kind: limit}}


MACHINES = (
    OddMachine("output on a full disk", 7, "No space left", disk=60, out="disk/out"),
    OddMachine("output on a read-only disk", 7, "Read-only", read_only, disk=60, out="disk/out"),
    OddMachine("a limit on the size of files", 7, "File too large",
               limited(resource.RLIMIT_FSIZE, 12_000)),
    OddMachine("temporary folder full", 0, "", filled, disk=60),
    OddMachine("a scan that may not be read", 1, "Permission denied",
               forbidden("bids/sub-01/anat/sub-01_T1w.nii.gz")),
    OddMachine("an output folder that may not be written", 7, "Permission denied",
               forbidden("out")),
    OddMachine("few open files allowed", 0, "", limited(resource.RLIMIT_NOFILE, 40)),
    OddMachine("little memory allowed", 1, "Out of memory", lambda root: {"memory": 24_000_000}),
    OddMachine("a clock that goes backwards", 0, "", lambda root: {"clock": 3600.0}),
)  # fmt: skip
