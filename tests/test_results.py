"""Results are read like input: whole, or named with a reason and left out; nobody else suffers."""

import hashlib
import json
import os
import shutil
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import checksums, run_config, write_model, write_raw

from siam_bids import cli
from siam_bids.bids.label_tables import LABEL_TABLE
from siam_bids.bids.names import finished_scans, sidecar
from siam_bids.bids.records import read_record
from siam_bids.bids.results import read_result, read_results
from siam_bids.bids.status import declare, failed_scans, to_do
from siam_bids.cli import segment
from siam_bids.config import Query
from siam_bids.errors import DatasetError
from siam_bids.inference.cascade import CascadeSegmenter
from siam_bids.pipelines.group import run_group
from siam_bids.pipelines.participant import rebuild_reports, run_participant, save_results
from siam_bids.pipelines.verify import verify
from siam_bids.support.atomic_files import claim_json, read_json, write_json
from siam_bids.support.json_kinds import misfit


def edited(path: Path, *, without="", **entries) -> None:
    """Change entries of a sidecar, as careless tools do."""
    content = {**json.loads(path.read_text()), **entries}
    content.pop(without, None)
    path.write_text(json.dumps(content))


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def instead(path: Path, make) -> None:
    path.unlink()
    make(path)


DAMAGES = {
    "empty object": (lambda n: sidecar(n.segmentation).write_text("{}"), "has no Sources"),
    "no JSON": (lambda n: sidecar(n.segmentation).write_text("nonsense"), "Expecting value"),
    "empty sidecar": (lambda n: sidecar(n.segmentation).write_text(""), "Expecting value"),
    "half a sidecar": (
        lambda n: sidecar(n.segmentation).write_text('{"Sources": ["bids:raw'),
        "Unterminated string",
    ),
    "a list": (lambda n: sidecar(n.segmentation).write_text("[1]"), "is not an object"),
    "deep": (lambda n: sidecar(n.segmentation).write_text("[" * 200_000), "nested more than"),
    "huge": (lambda n: os.truncate(sidecar(n.segmentation), 10**12), "it has 1000000 MB, more"),
    "binary": (lambda n: sidecar(n.segmentation).write_bytes(bytes(range(256))), "Expecting value"),
    "a pipe": (lambda n: instead(sidecar(n.segmentation), os.mkfifo), "a named pipe, not a file"),
    "a folder": (lambda n: instead(sidecar(n.segmentation), Path.mkdir), "is a folder, not a file"),
    "no grid": (lambda n: edited(sidecar(n.segmentation), without="Grid"), "has no Grid"),
    "grid of words": (
        lambda n: edited(sidecar(n.segmentation), Grid={"Shape": "big"}),
        "Grid.Shape is not a list",
    ),
    "model by name": (lambda n: edited(sidecar(n.segmentation), Model="tiny"), "Model is not an"),
    "no source": (lambda n: edited(sidecar(n.segmentation), Sources=[]), "names no source"),
    "source elsewhere": (
        lambda n: edited(sidecar(n.segmentation), Sources=["bids:raw:../../etc/passwd"]),
        "names no source within the dataset",
    ),
    "options of words": (
        lambda n: edited(sidecar(n.segmentation), Options={"volume": "first"}),
        "Options.volume is not a whole number",
    ),
    "no volumes": (lambda n: n.volumes.unlink(), "volumes.tsv cannot be read: it does not exist"),
    "empty volumes": (lambda n: n.volumes.write_text(""), "has no row for GM"),
    "cut volumes": (lambda n: os.truncate(n.volumes, 200), "has no row for"),
    "cut in a row": (
        lambda n: n.volumes.write_text(n.volumes.read_text().rpartition("\t")[0] + "\n"),
        "volume_mL in .* is '', not a number",
    ),
    "decimal commas": (
        lambda n: n.volumes.write_text(n.volumes.read_text().replace(".", ",")),
        "is '[0-9]+,[0-9]+', not a number",
    ),
    "infinite": (
        lambda n: n.volumes.write_text(
            n.volumes.read_text().rpartition("\t")[0] + "\tinf\n"
        ),
        "is 'inf', not a number",
    ),
    "other labels": (lambda n: replaced(n.volumes, "Hippo", "Bone"), "has no row for Hippo"),
    "one label more": (
        lambda n: n.volumes.write_text(n.volumes.read_text() + "18\tBone\t1\t1.0\n"),
        "holds Bone, no such label",
    ),
    "a row without a name": (
        lambda n: n.volumes.write_text(n.volumes.read_text() + "18\t\t1\t1.0\n"),
        "has a row without a label name",
    ),
    "volumes in a folder": (lambda n: instead(n.volumes, Path.mkdir), "is a folder, not a file"),
    "header of quality": (
        lambda n: n.quality.write_text(n.quality.read_text().splitlines()[0] + "\n"),
        "has no row of values",
    ),
    "words of quality": (
        lambda n: n.quality.write_text("TIV\tflag\nlarge\tpass\n"),
        "TIV in .* is 'large', not a number",
    ),
    "a pipe of quality": (lambda n: instead(n.quality, os.mkfifo), "a named pipe, not a file"),
}  # fmt: skip


@pytest.fixture
def scans(study, tmp_path):
    _, out = study(tmp_path, people=2, odd="")
    return list(finished_scans(out))


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_an_odd_result_has_a_reason_in_one_line_and_is_done_for_nobody(scans, damage, reason):
    one, other = scans
    damage(one)
    with pytest.raises(DatasetError, match=f"^sub-01_T1w has no usable result: .*{reason}") as said:
        read_result(one)
    assert len(str(said.value).splitlines()) == 1
    found = read_results(one.root)
    assert [result.names for result in found.usable] == [other]
    assert found.unusable == {one: str(said.value)}
    (one.root / "sub-01").rename(one.root / "gone")
    assert read_results(one.root).unusable == {}


def test_a_sidecar_of_a_good_result_may_say_more(scans):
    edited(sidecar(scans[0].segmentation), Remark={"of": ["a", 3, None]})
    assert read_result(scans[0]).about["Remark"] == {"of": ["a", 3, None]}
    scans[0].quality.write_text("TIV\tscan\tflag\n1500.5\tsub-99_T1w\tpass\n")
    assert read_result(scans[0]).quality == {"TIV": 1500.5}
    scans[1].quality.unlink()  # as version 0.2 left it
    assert read_result(scans[1]).quality == {}


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        ("a", str, ""),
        (3, float, ""),
        (True, int, "x is not a whole number"),
        (float("nan"), float, "x is not a number"),
        ([1, "2"], [int], "x[1] is not a whole number"),
        ({"a": 1}, {"b": int}, "x has no b"),
        ({"a": 1}, {"b?": int}, ""),
        ({"b": None}, {"b?": int}, "x.b is not a whole number"),
        ({"a": 1, "c": {"d": "e"}}, {"a": int, "*": {"d": float}}, "x.c.d is not a number"),
    ],
)
def test_json_is_of_a_kind_or_not(value, kind, said):
    assert misfit(value, kind, "x") == said


def test_group_leaves_odd_results_out_and_names_them(study, tmp_path, capsys):
    raw, out = study(tmp_path, people=12)
    scans = list(finished_scans(out))
    chosen = ("empty object", "cut volumes", "decimal commas", "header of quality", "a pipe")
    for names, name in zip(scans, chosen, strict=False):
        DAMAGES[name][0](names)
    logs = out / "logs" / "sub-03"
    logs.mkdir(parents=True)
    (logs / "notes.json").write_text('{"error": "no log of ours"}')
    (logs / "sub-03_T1w.json").write_text('{"seconds": "many", "peak_memory_MB": 5, "error": 7}')
    write_json(scans[8].record, {"seconds": 3, "peak_memory_MB": 900})  # without stages
    write_json(out / "group_reference.json", {"T1w": {"GM": {"scans": "all"}}})
    (out / "sub-05" / "figures" / "sub-05_desc-T1w_mosaic.png").unlink()
    shutil.copytree(out / "sub-07", out / "sub-07_old")
    (out / "sub-13").symlink_to("sub-08")
    for name in ("._sub-06", "notes_sub-06"):  # of macOS, and of a person
        (out / f"sub-06/anat/{name}_seg-siam_desc-T1w_dseg.json").write_text("{}")
    code = cli.main([str(raw), str(out), "group"])
    assert code == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"7 scans. Open {out / 'group.html'} in a browser."
    odd = [f"LEFT OUT sub-{n:02d}_T1w" for n in range(1, 6)]
    odd += [f"LEFT OUT sub-{folder}/anat/" for folder in ("06", "07_old", "13")]
    assert len(said) == 1 + len(odd)
    assert all(line.startswith(start) for line, start in zip(said[1:], odd, strict=True))
    table = (out / "group_desc-wide_volumes.tsv").read_text().splitlines()
    assert [row[:6] for row in table[1:]] == [f"sub-{n:02d}" for n in range(6, 13)]
    page = (out / "group.html").read_text()
    for number in range(1, 6):
        assert f"sub-{number:02d}_T1w has no usable result" in page
        own = (out / f"sub-{number:02d}.html").read_text()
        assert "has no usable result" in own
    assert "has no usable result" not in (out / "sub-06.html").read_text()
    resources = (out / "logs" / "resources.tsv").read_text()
    assert resources == "scan\tseconds\tpeak_memory_MB\nsub-09_T1w\t3\t900\n"
    assert list(failed_scans(out)) == []


def test_group_of_odd_results_only_says_so(study, tmp_path):
    raw, out = study(tmp_path, people=2)
    for names in finished_scans(out):
        names.volumes.write_text("")
    config = replace(run_config(raw, out, Path("compact")), level="group")
    with pytest.raises(DatasetError, match="no segmentations, 2 that cannot be used"):
        run_group(config)
    assert not (out / "group.html").exists()


@pytest.mark.parametrize("content", ["", "index\tname\n0\tx\n", "no table", "index\tname\t"])
def test_a_broken_label_table_is_one_line(study, tmp_path, content, capsys):
    raw, out = study(tmp_path, people=2)
    (out / LABEL_TABLE).write_text(content)
    assert cli.main([str(raw), str(out), "group"]) == 3
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{out / LABEL_TABLE} cannot be read as a label table" in said
    assert said.endswith("Remove it and run the participant level, which rewrites it.")


def test_records_hold_what_is_of_their_types(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"seconds": 3, "stages": {"read": "x"}, "threads": 1.5, "more": 1}')
    assert read_record(path) == {"seconds": 3}
    os.mkfifo(tmp_path / "pipe.json")
    assert read_record(tmp_path / "pipe.json") == {}


def test_group_beside_running_participants_never_dies(study, tmp_path):
    """Sidecars and tables go and come back while the group level reads, at a high rate."""
    raw, out = study(tmp_path, people=12)
    config = replace(run_config(raw, out, Path("compact")), level="group")
    scans, over, laps = list(finished_scans(out)), threading.Event(), []
    whole = {
        path: path.read_bytes() for n in scans for path in (sidecar(n.segmentation), n.volumes)
    }

    def disturb():
        while not over.is_set():
            for names in scans[::2]:
                path = sidecar(names.segmentation)
                path.unlink(missing_ok=True)
                for each in (names.volumes, path):
                    scratch = each.with_name(f".tmp-x-{each.name}")
                    scratch.write_bytes(whole[each])
                    scratch.replace(each)
            laps.append(1)

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        summaries = [run_group(config) for _ in range(4)]
    finally:
        over.set()
        disturber.join()
    assert len(laps) > 20
    for summary in summaries:
        named = {*summary.wide["scan"], *summary.left_out}
        assert {n.name for n in scans[1::2]} <= set(summary.wide["scan"])
        assert named <= {n.name for n in scans}
        assert len(summary.wide) + len(summary.left_out) == len(named)
        assert summary.pages == {}
    assert len(run_group(config).wide) == 12


def test_a_page_that_cannot_be_written_stops_no_other(study, tmp_path, capsys):
    raw, out = study(tmp_path, people=3)
    (out / "sub-02.html").mkdir()
    assert cli.main([str(raw), str(out), "group"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"3 scans. Open {out / 'group.html'} in a browser."
    assert len(said) == 2
    assert said[1].startswith("FAILED sub-02.html: Is a directory")
    assert all((out / f"sub-{label}.html").is_file() for label in ("01", "03"))
    config = run_config(raw, out, Path("compact"))
    written, failed = rebuild_reports(config)
    assert (written, list(failed)) == (["01", "03"], ["sub-02.html"])


def test_a_full_disk_in_group_leaves_the_old_tables(study, tmp_path, monkeypatch):
    raw, out = study(tmp_path, people=4)
    config = replace(run_config(raw, out, Path("compact")), level="group")
    run_group(config)
    before = checksums(out)
    shutil.rmtree(out / "sub-04")
    fsync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == 7:
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    assert cli.main([str(raw), str(out), "group"]) == 7
    monkeypatch.undo()
    after = checksums(out)
    assert after == {name: value for name, value in before.items() if "sub-04/" not in name}
    assert len(run_group(config).wide) == 3
    assert checksums(out)["group_qc.tsv"] != before["group_qc.tsv"]


# What done means: the files on the disk are those that the sidecar records.


@pytest.fixture(scope="module")
def raw(tmp_path_factory, head):
    return write_raw(tmp_path_factory.mktemp("raw") / "bids", head, "sub-01_T1w")


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_model):
    """Two models of other weights: the second has wider layers."""
    return tiny_model, write_model(tmp_path_factory.mktemp("other") / "other", features=(6, 8))


@pytest.fixture(scope="module")
def made(raw, tiny_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    run_participant(run_config(raw, out, tiny_model))
    return out


@pytest.fixture
def config(raw, made, tiny_model, tmp_path):
    shutil.copytree(made, tmp_path / "out")
    return run_config(raw, tmp_path / "out", tiny_model)


def only_scan(config):
    (names,) = finished_scans(config.output_dir)
    return names


def test_the_sidecar_records_every_file_of_the_scan(config):
    names = only_scan(config)
    recorded = read_json(sidecar(names.segmentation))["Outputs"]
    found = checksums(config.output_dir / "sub-01")
    found.pop(sidecar(names.segmentation).relative_to(config.output_dir / "sub-01").as_posix())
    assert recorded == {f"sub-01/{name}": f"sha256:{value}" for name, value in found.items()}
    assert len(recorded) == 15


def test_two_models_at_once_are_not_mixed(raw, models, tmp_path, monkeypatch):
    """Run A stops before its tables while run B goes from start to end; then A goes on."""
    first, second = (run_config(raw, tmp_path / "out", model) for model in models)

    def interrupted(task, prediction):
        monkeypatch.setattr("siam_bids.pipelines.participant.save_results", save_results)
        written = save_results(task, prediction)
        assert run_participant(second).done == ["sub-01_T1w"]
        monkeypatch.undo()
        return written

    monkeypatch.setattr("siam_bids.pipelines.participant.save_results", interrupted)
    summary = run_participant(first)
    assert list(summary.failed) == ["sub-01_T1w"]
    assert "was replaced while this run was writing. Another run is writing" in summary.lines()[1]
    assert run_participant(second).skipped == ["sub-01_T1w"]  # what run B declared done stays
    assert verify(second).whole == ["sub-01_T1w"]
    assert run_participant(first).done == ["sub-01_T1w"]


@pytest.mark.parametrize("same", [True, False])
def test_a_scan_that_another_run_finished_meanwhile_stays(raw, models, tmp_path, monkeypatch, same):
    """Run B goes from start to end while run A segments; then A would write."""
    first, second = (run_config(raw, tmp_path / "out", model) for model in models)
    second = first if same else second
    segment = CascadeSegmenter.segment

    def interrupted(self, volume, **options):
        monkeypatch.undo()
        assert run_participant(second).done == ["sub-01_T1w"]
        states.append(checksums(tmp_path / "out" / "sub-01"))
        return segment(self, volume, **options)

    states: list[dict[str, str]] = []
    monkeypatch.setattr(CascadeSegmenter, "segment", interrupted)
    summary = run_participant(first)
    assert checksums(tmp_path / "out" / "sub-01") == states[0]
    if same:
        assert (summary.skipped, summary.failed) == (["sub-01_T1w"], {})
    else:
        assert summary.failed["sub-01_T1w"].startswith(
            "sub-01_T1w was segmented by another run in the meantime; that result is kept."
        )


def test_a_declaration_of_another_run_is_neither_replaced_nor_removed(tmp_path, monkeypatch):
    """It appears just before ours, or between ours and our look at the files."""
    path, file = tmp_path / "a_dseg.json", tmp_path / "a_dseg.nii.gz"
    theirs = {"Outputs": {file.name: f"sha256:{hashlib.sha256(b'theirs').hexdigest()}"}}
    ours = {file: hashlib.sha256(b"ours").hexdigest()}

    def finish_theirs():
        file.write_bytes(b"theirs")
        path.unlink(missing_ok=True)
        write_json(path, theirs)

    for after in (False, True):
        path.unlink(missing_ok=True)
        file.write_bytes(b"ours")

        def claim(*given, after=after):
            monkeypatch.undo()
            claimed = claim_json(*given) if after else False
            finish_theirs()
            return claimed or claim_json(*given)

        monkeypatch.setattr("siam_bids.bids.status.claim_json", claim)
        with pytest.raises(DatasetError, match=r"another run in the meantime|was replaced"):
            declare(path, tmp_path, {"Model": {}}, ours)
        assert read_json(path) == theirs
    assert {each.name for each in tmp_path.iterdir()} == {path.name, file.name}


def edit_map(path: Path) -> bytes:
    path.write_bytes(path.read_bytes() + b"mine")
    return path.read_bytes()


@pytest.mark.parametrize("declared", [None, "", "{", "{}", '{"Note": "by hand"}'])
def test_a_map_without_a_sidecar_of_ours_is_replaced_only_if_unchanged(config, declared):
    names = only_scan(config)
    path = sidecar(names.segmentation)
    path.unlink() if declared is None else path.write_text(declared)
    foreign = declared == '{"Note": "by hand"}'
    assert run_participant(config).done == ([] if foreign else ["sub-01_T1w"])
    path.unlink() if declared is None else path.write_text(declared)
    mine = edit_map(names.segmentation)
    said = run_participant(config).failed["sub-01_T1w"]
    blamed = path if foreign else names.segmentation
    assert said == (
        f"{blamed.name} exists, but no record says that siam-bids wrote it. "
        "Move it if you want to keep it; --overwrite replaces it."
    )
    assert run_participant(config).failed["sub-01_T1w"] == said
    assert names.segmentation.read_bytes() == mine
    assert run_participant(replace(config, overwrite=True)).done == ["sub-01_T1w"]
    assert verify(config).whole == ["sub-01_T1w"]


def test_a_file_of_others_in_the_place_of_a_new_one_stays(config):
    names = only_scan(config)
    names.probability("GM").write_bytes(b"mine")
    mine = names.probability("mine")
    mine.write_bytes(b"mine")
    maps = replace(config, probabilities=("GM", "WM"))
    assert "label-GM" in run_participant(maps).failed["sub-01_T1w"]
    assert names.probability("GM").read_bytes() == b"mine"
    names.probability("GM").unlink()
    assert run_participant(maps).done == ["sub-01_T1w"]
    assert run_participant(config).done == ["sub-01_T1w"]
    assert not names.probability("GM").exists()
    assert mine.read_bytes() == b"mine"


@pytest.mark.parametrize("moved", [0, 6])
def test_a_run_that_was_killed_while_files_took_their_places_is_finished(
    config, models, monkeypatch, moved
):
    class Killed(BaseException):
        pass

    made, calls = config.output_dir / "logs", []
    place = Path.replace

    def killed(self, target):
        if self.is_relative_to(made) and not Path(target).is_relative_to(made):
            if len(calls) == moved:
                raise Killed
            calls.append(self)
        return place(self, target)

    other = replace(config, model=str(models[1]))
    monkeypatch.setattr(Path, "replace", killed)
    with suppress(Killed):
        run_participant(other)
    monkeypatch.undo()
    assert list(finished_scans(config.output_dir)) == []
    assert run_participant(config).done == ["sub-01_T1w"]
    assert verify(config).whole == ["sub-01_T1w"]


@pytest.mark.parametrize("kind", ["segmentation", "volumes", "brain_mask", "quality"])
def test_a_file_of_another_run_is_not_passed_for_done_nor_overwritten(config, kind, capsys):
    names = only_scan(config)
    path = getattr(names, kind)
    path.write_bytes(path.read_bytes() + b"\n")
    before = path.read_bytes()
    summary = run_participant(config)
    assert (summary.done, summary.skipped) == ([], [])
    assert summary.failed["sub-01_T1w"] == (
        f"{path.name} was changed since its scan was segmented, by hand or by another run. "
        "Move it if you want to keep it; --overwrite replaces it."
    )
    assert path.read_bytes() == before
    words = [str(config.bids_dir), str(config.output_dir), "participant", "--model", config.model]
    capsys.readouterr()
    assert cli.main([*words, "--verify"]) == 1
    place = path.relative_to(config.output_dir).as_posix()
    assert capsys.readouterr().out.splitlines() == [
        f"WRONG sub-01_T1w: {place} was changed",
        "0 scans as recorded, 1 not.",
    ]
    assert cli.main([*words, "--dry-run"]) in (0, 1, 4)
    assert "fail\tsub-01/anat/sub-01_T1w.nii.gz" in capsys.readouterr().out
    again = replace(config, overwrite=True)
    assert run_participant(again).done == ["sub-01_T1w"]
    assert cli.main([*words, "--verify"]) == 0
    assert capsys.readouterr().out.splitlines() == ["1 scan as recorded, 0 not."]


def test_a_missing_sidecar_of_a_table_is_made_anew(config):
    sidecar(only_scan(config).volumes).unlink()
    assert run_participant(config).done == ["sub-01_T1w"]


def test_results_of_versions_without_checksums_stay_done(config, capsys):
    names = only_scan(config)
    edited(sidecar(names.segmentation), without="Outputs")
    assert run_participant(config).skipped == ["sub-01_T1w"]
    words = [str(config.bids_dir), str(config.output_dir), "participant", "--verify"]
    assert cli.main(words) == 0
    assert capsys.readouterr().out.splitlines() == [
        "0 scans as recorded, 0 not, 1 of an earlier version without checksums."
    ]
    names.volumes.write_text("index\tname\tvoxels\tvolume_mL\n")
    assert cli.main(words) == 1
    assert run_participant(config).done == ["sub-01_T1w"]
    assert cli.main(words) == 0


@pytest.mark.parametrize("outputs", [[], "all", {"../../etc/passwd": "sha256:0"}, {"/etc": 1}])
def test_odd_records_of_outputs_are_not_done(config, outputs):
    edited(sidecar(only_scan(config).segmentation), Outputs=outputs)
    assert run_participant(config).skipped == []


def test_verify_looks_at_the_participants_asked_for(study, tmp_path, capsys):
    raw, out = study(tmp_path, people=3)
    next(finished_scans(out)).volumes.write_text("")
    words = [str(raw), str(out), "participant", "--verify", "--participant-label"]
    assert cli.main([*words, "02", "03"]) == 0
    assert cli.main([*words, "01"]) == 1
    assert cli.main([*words, "99"]) == 3
    assert "holds no segmentations" in capsys.readouterr().err


WORDY = {
    "Name": "tiny", "Title": "Tiny", "Version": "1", "License": "MIT", "Citation": "A, 2020.",
    "SHA256": "a", "Folds": 1, "Members": [{"Title": "One", "SHA256": "b"}],
    "Focus": {"Tissues": ["GM"], "Margin": 8},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"Title": "Tiny, reworded", "Citation": "B, 2021.", "License": "BSD"}, ""),
        ({"Name": "small", "Version": "2"}, ""),
        ({"Members": [{"Title": "Uno", "SHA256": "b", "Citation": "C"}]}, ""),
        ({"Members": [{"Title": "One", "SHA256": "c"}]}, "it was made with another model"),
        ({"Members": []}, "it was made with another model"),
        ({"SHA256": "b"}, "it was made with another model"),
        ({"Folds": 2}, "it was made with another model"),
        ({"Focus": {"Tissues": ["GM"], "Margin": 9}}, "it was made with another model"),
        ({"Upright": {"TurnedByMoreDegreesThan": 20}}, "it was made with another model"),
    ],
)
def test_words_about_a_model_make_no_study_undone(scans, change, why):
    names = scans[0]
    made = {"InputSHA256": "a", "Model": WORDY, "Options": {}, "ResultsVersion": 4}
    assert to_do(names, made, {**made, "Model": {**WORDY, **change}}, []) == why


def test_a_participants_page_trouble_is_in_the_exit_code(config, capsys):
    page = config.output_dir / "sub-01.html"
    page.unlink()
    page.mkdir()
    summary = run_participant(replace(config, query=Query(participants=("01",))))
    assert (summary.skipped, list(summary.pages)) == (["sub-01_T1w"], ["sub-01.html"])
    assert not summary.complete
    assert summary.lines()[1].startswith("FAILED sub-01.html: Is a directory")


def test_files_record_their_checksums_and_an_interrupted_run_is_finished(
    raw, tiny_model, tmp_path, monkeypatch
):
    def full(*_):
        raise OSError(28, "No space left on device")

    out = tmp_path / "out"
    words = [str(raw / "sub-01/anat/sub-01_T1w.nii.gz"), str(out), "--model", str(tiny_model)]
    words += ["--device", "cpu"]
    monkeypatch.setattr("siam_bids.pipelines.files.save_volumes", full)
    assert segment.main(words) == 7
    assert "Outputs" not in read_json(out / "sub-01_T1w_dseg.json")
    monkeypatch.undo()
    assert segment.main(words) == 0
    about = read_json(out / "sub-01_T1w_dseg.json")
    found = checksums(out)
    found.pop("sub-01_T1w_dseg.json")
    assert about["Outputs"] == {name: f"sha256:{value}" for name, value in found.items()}
    assert about["ResultsVersion"] == 4
    assert len(found) == 4


def test_an_edited_map_of_a_file_stays_without_overwrite(raw, tiny_model, tmp_path, capsys):
    out = tmp_path / "out"
    words = [str(raw / "sub-01/anat/sub-01_T1w.nii.gz"), str(out), "--model", str(tiny_model)]
    words += ["--device", "cpu"]
    assert segment.main(words) == 0
    path = out / "sub-01_T1w_dseg.nii.gz"
    mine = edit_map(path)
    assert segment.main(words) == 1
    said = f"The output {path} was changed since it was written. Move it if you want to keep it"
    assert said in capsys.readouterr().err
    assert path.read_bytes() == mine
    assert segment.main([*words, "--overwrite"]) == 0
    assert path.read_bytes() != mine


def test_files_without_a_sidecar_of_their_scan_are_named(study, tmp_path, capsys):
    raw, out = study(tmp_path, people=3, odd="")
    names = next(finished_scans(out))
    sidecar(names.segmentation).unlink()
    words = [str(raw), str(out)]
    assert cli.main([*words, "participant", "--verify"]) == 1
    assert "sub-01_desc-T1w_qc.tsv has no sidecar of its scan" in capsys.readouterr().out
    assert cli.main([*words, "participant", "--verify", "--participant-label", "02"]) == 0
    assert cli.main([*words, "participant", "--verify", "--participant-label", "02", "77"]) == 1
    assert "WRONG sub-77: it has no results in this folder" in capsys.readouterr().out
    assert cli.main([*words, "group"]) == 1
    assert "_qc.tsv has no sidecar of its scan" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--formula", "~ age +"], "--formula"),
        (["--exclude", "age=>50"], "--exclude 'age=>50' has an unknown operator. Write >=."),
        (["--exclude", "age<>50"], "has an unknown operator. Write !=."),
        (["--ratings", "absent.tsv"], "The ratings absent.tsv do not exist."),
    ],
)
def test_options_of_the_group_are_checked_before_segmentation(
    raw, tmp_path, tiny_model, options, said, capsys
):
    words = [str(raw), str(tmp_path / "out"), "participant", "group", "--model", str(tiny_model)]
    assert cli.main([*words, *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_rules_and_ratings_that_name_no_scan_are_said(study, tmp_path, caplog):
    raw, out = study(tmp_path, people=3, odd="")
    (out / "group_ratings.tsv").write_text("scan\trating\nsub-01_T1w\tpass\nsub-99_T1w\tfail\n")
    assert cli.main([str(raw), str(out), "group", "--exclude", "rating=fail"]) == 0
    said = caplog.text
    assert "--exclude rating = fail: no scan has this value. There are: pass." in said
    assert "The ratings name scans without results: sub-99_T1w." in said


def test_group_writes_into_a_folder_whose_name_is_no_utf8(study, tmp_path):
    raw, out = study(tmp_path, people=3, odd="")
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/out\xff"))
    try:
        out.rename(odd)
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    assert cli.main([str(raw), str(odd), "group"]) == 0
    assert (odd / "group_qc.parquet").is_file()


def test_a_label_table_without_a_column_is_told_in_words(study, tmp_path, capsys):
    raw, out = study(tmp_path, people=2, odd="")
    (out / LABEL_TABLE).write_text("index\tname\n0\tx\n")
    assert cli.main([str(raw), str(out), "group"]) == 3
    said = capsys.readouterr().err.splitlines()[-1]
    assert "cannot be read as a label table: it has no column abbreviation." in said
