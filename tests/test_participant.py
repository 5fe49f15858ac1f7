"""Both levels on a small dataset with a small random model: what is written, skipped, reported."""

import json
import shutil
import threading
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import checksums, run_config, write_dataset, write_model, write_raw, write_scan

from siam_bids import __version__
from siam_bids.bids.description import begin_dataset
from siam_bids.bids.label_tables import read_label_table
from siam_bids.bids.names import finished_scans, sidecar
from siam_bids.bids.status import failed_scans
from siam_bids.bids.writers import save_resources
from siam_bids.config import Inference, Query, RunConfig
from siam_bids.errors import DatasetError, ModelError, UsageError
from siam_bids.image.grid import Volume
from siam_bids.image.labels import siam_labels
from siam_bids.image.loading import load_volume
from siam_bids.inference.cascade import CascadeSegmenter
from siam_bids.models.registry import find_model
from siam_bids.pipelines.group import run_group
from siam_bids.pipelines.participant import rebuild_reports, run_participant, save_results
from siam_bids.support.atomic_files import sha256, together


@pytest.fixture
def config(bids, tmp_path, tiny_model) -> RunConfig:
    return run_config(bids, tmp_path / "out", tiny_model)


GOOD = ["sub-01_T1w", "sub-02_ses-a_T1w", "sub-02_ses-b_run-1_FLAIR", "sub-03_T2w"]


@pytest.fixture(scope="session")
def first_run(tmp_path_factory, head, tiny_model):
    """One run on the small dataset, made once; tests get a copy."""
    place = tmp_path_factory.mktemp("first")
    config = run_config(write_dataset(place / "bids", head), place / "out", tiny_model)
    return config, run_participant(config)


@pytest.fixture
def run(first_run, config):
    made, summary = first_run
    shutil.copytree(made.output_dir, config.output_dir)
    begin_dataset(config.output_dir, config.bids_dir, siam_labels())
    return config, summary


def test_a_failing_scan_among_good_ones_stops_nobody(run, bids):
    config, summary = run
    assert summary.done == GOOD
    assert list(summary.failed) == ["sub-03_T1w"]
    assert "sub-03_T1w.nii.gz" in summary.failed["sub-03_T1w"]
    assert summary.lines()[0] == "4 segmented, 0 already done, 1 failed."
    page = (config.output_dir / "sub-03.html").read_text()
    assert "sub-03_T1w.nii.gz is damaged: its gzip stream is broken" in page
    assert not list(config.output_dir.glob("sub-03/anat/*T1w*"))
    assert len(list(config.output_dir.glob("sub-03/anat/*desc-T2w_dseg.nii.gz"))) == 1


def test_what_each_scan_took_is_on_record_and_in_a_table(run):
    config, _ = run
    records = [json.loads(n.record.read_text()) for n in finished_scans(config.output_dir)]
    assert len(records) == len(GOOD)
    for record in records:
        assert list(record["stages"]) == ["read", "segment", "write"]
        assert record["seconds"] == pytest.approx(sum(record["stages"].values()), abs=0.1)
        assert 100 < record["peak_memory_MB"] < 10_000
        assert (record["device"], record["threads"]) == ("cpu", 1)
        assert record["command"] == config.command
    with together() as batch:
        save_resources(batch, config.output_dir)
    table = pd.read_csv(config.output_dir / "logs" / "resources.tsv", sep="\t")
    assert table["scan"].tolist() == GOOD
    assert [*table] == [
        "scan", "seconds", "peak_memory_MB", "device", "threads", "command",
        "read_s", "segment_s", "write_s",
    ]  # fmt: skip


def test_no_scratch_files_stay_and_the_input_is_untouched(config, bids):
    before = checksums(bids)
    run_participant(config)
    assert checksums(bids) == before
    assert not [name for name in checksums(config.output_dir) if ".tmp-" in name]


def test_outputs_lie_on_the_input_grid_and_volumes_agree_with_the_map(run, bids):
    config, _ = run
    root = config.output_dir
    source = nib.load(bids / "sub-02/ses-b/anat/sub-02_ses-b_run-1_FLAIR.nii.gz")
    stem = root / "sub-02/ses-b/anat/sub-02_ses-b_run-1"
    found = nib.load(f"{stem}_seg-siam_desc-FLAIR_dseg.nii.gz")
    assert found.shape == source.shape
    np.testing.assert_allclose(found.affine, source.affine, atol=1e-5)
    data = np.asarray(found.dataobj)
    table = pd.read_csv(f"{stem}_desc-FLAIR_volumes.tsv", sep="\t").set_index("name")
    for label in read_label_table(root).foreground:
        voxels = int((data == label.index).sum())
        assert table.loc[label.name, "voxels"] == voxels
        assert table.loc[label.name, "volume_mL"] == pytest.approx(voxels * 64 / 1000, abs=1e-3)
    mask = np.asarray(nib.load(f"{stem}_label-brain_desc-FLAIR_mask.nii.gz").dataobj)
    np.testing.assert_array_equal(mask, np.isin(data, [1, 2, 4, *range(5, 13), 17]))


def test_a_model_of_unknown_labels_gives_volumes_without_tiv_and_brain_mask(tmp_path, head, caplog):
    model = write_model(tmp_path / "lobes", names=["background", "lobe", "GM"])
    raw = write_raw(tmp_path / "raw", head, "sub-01_T1w")
    config = run_config(raw, tmp_path / "out", model)
    assert run_participant(config).done == ["sub-01_T1w"]
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert said == [
        (
            "No total intracranial volume (TIV) and no brain mask: the role of lobe is unknown. "
            "Give roles in a labels.tsv next to the model's dataset.json."
        )
    ]
    anat = config.output_dir / "sub-01/anat"
    assert not list(anat.glob("*mask*"))
    volumes = pd.read_csv(anat / "sub-01_desc-T1w_volumes.tsv", sep="\t")
    assert volumes["name"].tolist() == ["lobe", "GM"]
    quality = pd.read_csv(anat / "sub-01_desc-T1w_qc.tsv", sep="\t").loc[0]
    missing = ["TIV", "brain_share", "brain_cut_top", "left_right_dice", "confidence"]
    assert quality[missing].isna().all()
    assert run_participant(config).skipped == ["sub-01_T1w"]
    wide = run_group(replace(config, level="group")).wide
    assert {"lobe", "GM"} <= {*wide}
    assert "TIV" not in wide
    page = (config.output_dir / "sub-01.html").read_text(encoding="utf-8")
    assert "Without a known role" in page
    (model / "labels.tsv").write_text("index\trole\n1\tventricles\n")
    assert run_participant(config).done == ["sub-01_T1w"]  # another model now
    assert list(anat.glob("*mask.nii.gz"))


def test_the_sidecar_names_input_model_and_versions(run, bids):
    config, _ = run
    path = config.output_dir / "sub-01/anat/sub-01_seg-siam_desc-T1w_dseg.json"
    about = json.loads(path.read_text())
    record = find_model(config.model)
    assert about["Sources"] == ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz"]
    assert (bids / about["Sources"][0].removeprefix("bids:raw:")).exists()
    assert about["Model"]["SHA256"] == record.sha256
    assert about["Model"]["Name"] == "tiny"
    assert about["InputSHA256"] == sha256(bids / "sub-01/anat/sub-01_T1w.nii.gz")
    assert about["Software"]["siam-bids"] == __version__
    assert about["Grid"]["VoxelSize"] == [4.0, 4.0, 4.0]


def test_a_scan_is_written_while_that_of_the_next_subject_is_segmented(
    tmp_path, head, tiny_model, monkeypatch
):
    """Writing the first waits here until segmenting the second has begun."""
    bids = write_raw(tmp_path / "bids", head, "sub-01_T1w", "sub-02_T1w")
    begun = threading.Event()
    segment, calls = CascadeSegmenter.segment, []

    def watched_segment(self, volume, **options):
        calls.append(volume)
        if len(calls) == 2:
            begun.set()
        return segment(self, volume, **options)

    def waiting_save(task, prediction):
        assert task.scan.identity.subject == "02" or begun.wait(20)
        return save_results(task, prediction)

    monkeypatch.setattr(CascadeSegmenter, "segment", watched_segment)
    monkeypatch.setattr("siam_bids.pipelines.participant.save_results", waiting_save)
    summary = run_participant(run_config(bids, tmp_path / "out", tiny_model))
    assert summary.done == ["sub-01_T1w", "sub-02_T1w"]
    assert (tmp_path / "out" / "sub-01.html").exists()


def test_a_rerun_does_only_what_is_missing(run):
    config, _ = run
    before = checksums(config.output_dir)
    again = run_participant(config)
    assert (again.done, again.skipped) == ([], GOOD)
    assert checksums(config.output_dir) == before
    (config.output_dir / "sub-01/anat/sub-01_label-brain_desc-T1w_mask.nii.gz").unlink()
    sidecar(config.output_dir / "sub-03/anat/sub-03_seg-siam_desc-T2w_dseg.nii.gz").write_text(
        '{"half": '
    )
    third = run_participant(config)
    assert third.done == ["sub-01_T1w", "sub-03_T2w"]
    records = {name for name in before if name.startswith("logs/")}
    after = checksums(config.output_dir)
    pages = {name for name in before if name.endswith(".html")}  # they print the time taken
    assert {k: v for k, v in after.items() if k not in records | pages} == {
        k: v for k, v in before.items() if k not in records | pages
    }


def test_a_changed_input_option_or_overwrite_is_not_passed_for_done(run, bids, head):
    config, _ = run
    config = replace(config, query=Query(participants=("01",)))
    with_maps = replace(config, probabilities=("GM", "WM"))
    assert run_participant(with_maps).done == ["sub-01_T1w"]
    chance = (
        config.output_dir
        / "sub-01/anat/sub-01_space-orig_seg-siam_label-GM_desc-T1w_probseg.nii.gz"
    )
    data = np.asarray(nib.load(chance).dataobj)
    assert 0 <= data.min() <= data.max() <= 1
    assert run_participant(with_maps).skipped == ["sub-01_T1w"]
    assert run_participant(replace(with_maps, overwrite=True)).done == ["sub-01_T1w"]
    write_scan(bids / "sub-01/anat/sub-01_T1w.nii.gz", Volume(head.data[::-1], head.grid))
    assert run_participant(with_maps).done == ["sub-01_T1w"]


def test_write_probseg_writes_what_probabilities_of_every_tissue_does(config, tmp_path):
    config = replace(config, query=Query(participants=("01",)))
    every = replace(config, write_probseg=True)
    assert run_participant(every).done == ["sub-01_T1w"]
    listed = replace(
        config,
        output_dir=tmp_path / "listed",
        probabilities=tuple(label.name for label in siam_labels()),
    )
    assert run_participant(listed).done == ["sub-01_T1w"]
    ours, theirs = (
        {path.name: path for path in each.output_dir.rglob("*_probseg.nii.gz")}
        for each in (every, listed)
    )
    background = "sub-01_space-orig_seg-siam_label-background_desc-T1w_probseg.nii.gz"
    assert set(ours) == set(theirs) - {background}
    assert len(ours) == 17
    for name, path in ours.items():
        assert path.read_bytes() == theirs[name].read_bytes()
    total = sum(np.asarray(nib.load(path).dataobj) for path in theirs.values())
    np.testing.assert_allclose(total, 1, atol=1e-4)
    assert run_participant(every).skipped == ["sub-01_T1w"]
    by_name = replace(every, write_probseg=False, probabilities=listed.probabilities[1:])
    assert run_participant(by_name).skipped == ["sub-01_T1w"]


def test_a_repaired_scan_loses_its_error(run, bids, head):
    config, _ = run
    write_scan(bids / "sub-03/anat/sub-03_T1w.nii.gz", head)
    summary = run_participant(config)
    assert (summary.done, summary.failed) == (["sub-03_T1w"], {})
    assert not list(failed_scans(config.output_dir))


def test_an_input_that_is_whole_again_loses_its_error(run, bids):
    config, _ = run
    config = replace(config, query=Query(participants=("01",)))
    scan = bids / "sub-01/anat/sub-01_T1w.nii.gz"
    whole = scan.read_bytes()
    scan.write_bytes(whole[:-500])
    assert list(run_participant(config).failed) == ["sub-01_T1w"]
    scan.write_bytes(whole)
    assert run_participant(config).skipped == ["sub-01_T1w"]
    assert [names.name for names in failed_scans(config.output_dir)] == ["sub-03_T1w"]


def test_stop_on_first_crash(config):
    from siam_bids.errors import ImageError

    with pytest.raises(ImageError, match="sub-03_T1w"):
        run_participant(replace(config, stop_on_first_crash=True))


def test_an_unforeseen_error_in_one_scan_is_reported_too(config, monkeypatch):
    original = load_volume

    def explode(path, **options):
        if "sub-01" in path.name:
            raise ZeroDivisionError("deep inside")
        return original(path)

    monkeypatch.setattr("siam_bids.pipelines.participant.load_volume", explode)
    summary = run_participant(config)
    assert summary.failed["sub-01_T1w"].startswith("ZeroDivisionError: deep inside")
    assert summary.done == GOOD[1:]


def test_reports_can_be_written_anew(run):
    config, _ = run
    page = config.output_dir / "sub-02.html"
    before = page.read_text()
    page.unlink()
    assert rebuild_reports(config) == (["01", "02", "03"], {})
    assert page.read_text() == before
    assert "sub-02_ses-b_run-1_FLAIR" in before


def test_pages_name_the_model_that_made_the_scans_not_the_present_one(run, tmp_path):
    config, _ = run
    maker = find_model(config.model).sha256
    other = replace(config, model="compact")
    rebuild_reports(other)
    run_group(other)
    for page in ("sub-01.html", "group.html"):
        text = (config.output_dir / page).read_text()
        assert f"tiny unversioned (sha256 {maker[:12]})" in text
        assert "siam-bids compact" not in text


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": Query(suffixes=("PDw",))}, DatasetError, "No anatomical image in"),
        ({"model": "nope"}, ModelError, "There is no model 'nope'"),
        ({"probabilities": ("GM", "Bone")}, UsageError, "has no tissue Bone"),
        ({"device": "cuda"}, UsageError, "No cuda device is available"),
        ({"inference": Inference(mirror=True)}, UsageError, "was not trained for mirroring"),
    ],
)
def test_unusable_requests_end_the_run_before_it_writes_images(config, change, error, message):
    import torch

    if change.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(error, match=message):
        run_participant(replace(config, **change))
    assert not config.output_dir.exists()


def test_folders_inside_each_other(config, bids):
    with pytest.raises(UsageError, match="are the same"):
        run_participant(replace(config, output_dir=bids))
    with pytest.raises(UsageError, match="lies inside the output"):
        run_participant(replace(config, output_dir=bids.parent))
    inside = replace(
        config, output_dir=bids / "derivatives" / "siam-bids", query=Query(participants=("01",))
    )
    assert run_participant(inside).done == ["sub-01_T1w"]
