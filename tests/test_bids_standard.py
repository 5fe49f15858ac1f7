"""The outputs of every configuration keep the BIDS standard, and others' tools read them."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bidsschematools.schema import load_schema
from checks import check_derivative, check_whole, validator_errors
from conftest import run_config, write_dataset, write_model, write_raw, write_scan
from jsonschema import ValidationError

from siam_bids.bids.description import begin_dataset
from siam_bids.bids.label_tables import FREESURFER_TABLE, ITKSNAP_TABLE, read_label_table
from siam_bids.bids.names import ScanNames, finished_scans, sidecar
from siam_bids.bids.scan import ENTITIES, BidsName
from siam_bids.bids.writers import save_mask, save_probability, save_segmentation, save_volumes
from siam_bids.config import Inference, Query
from siam_bids.image.grid import Grid, Segmentation
from siam_bids.image.labels import LabelTable, siam_labels
from siam_bids.measures.volumes import tissue_volumes
from siam_bids.pipelines.group import run_group
from siam_bids.pipelines.participant import run_participant
from siam_bids.support.atomic_files import write_json


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, head, tiny_model):
    """Sessions or none, several contrasts, a failing scan, maps, viewer, adjustment, ratings."""
    place = tmp_path_factory.mktemp("mixed")
    raw, out = write_dataset(place / "bids", head), place / "out"
    out.mkdir()
    (out / "group_ratings.tsv").write_text("scan\trating\tnote\nsub-01_T1w\tpass\t\n")
    config = run_config(raw, out, tiny_model, probabilities=("GM", "CSFv"), viewer=True)
    assert list(run_participant(config).failed) == ["sub-03_T1w"]
    run_group(replace(config, adjust=("TIV",)))
    return raw, out


@pytest.fixture(scope="module")
def inside(tmp_path_factory, head, tiny_model):
    """Sessions for all, in the derivatives folder of the raw dataset; every tissue's map."""
    stems = (f"sub-01_ses-{rest}" for rest in ("a_T1w", "b_T1w", "b_acq-tse_run-1_T2w"))
    raw = write_raw(tmp_path_factory.mktemp("inside") / "bids", head, *stems)
    out = raw / "derivatives" / "siam-bids"
    run_participant(run_config(raw, out, tiny_model, write_probseg=True))
    run_group(run_config(raw, out, tiny_model))
    return raw, out


@pytest.fixture(scope="module")
def foreign(tmp_path_factory, head):
    """A model with labels of its own; the participant level alone."""
    place = tmp_path_factory.mktemp("foreign")
    model = write_model(place / "model", names=("background", "Brain", "Skull_diploe", "Muscle"))
    raw = write_dataset(place / "bids", head)
    config = run_config(raw, place / "out", model, query=Query(participants=("01",)))
    run_participant(config)
    return raw, place / "out"


@pytest.fixture(scope="module")
def refined(tmp_path_factory, head):
    """A chain of models, a CT in a folder of its own, one volume of a 4-D image."""
    place = tmp_path_factory.mktemp("refined")
    write_model(place / "first", names=("background", "GM", "Skull"))
    write_model(place / "second", names=("background", "layer_1", "layer_2"), channels=2)
    chain = place / "chain.json"
    regions = [{"inside": "GM", "model": "second"}]
    chain.write_text(json.dumps({"model": "first", "regions": regions}))
    raw = write_raw(place / "bids", head, "sub-01_T2w")
    write_scan(raw / "sub-01/ct/sub-01_ct.nii.gz", head)
    series = nib.Nifti1Image(np.stack([head.data, head.data], -1), head.grid.affine)
    nib.save(series, raw / "sub-01/anat/sub-01_T2starw.nii.gz")
    run = {"query": Query(suffixes=("T2w", "T2starw", "ct")), "inference": Inference(volume=1)}
    config = run_config(raw, place / "out", chain, probabilities=("layer_1",), **run)
    assert len(run_participant(config).done) == 3
    run_group(config)
    return raw, place / "out"


CONFIGURATIONS = ("mixed", "inside", "foreign", "refined")


@pytest.fixture(params=CONFIGURATIONS)
def dataset(request):
    return request.getfixturevalue(request.param)


def test_the_validator_finds_no_error(dataset):
    assert validator_errors(dataset[1]) == []


def test_the_validator_warns_of_tables_of_measurements_alone(inside):
    """Descriptions of phenotype are MeasurementToolMetadata; Authors are those of the raw data."""
    raw, out = inside
    warnings = validator_errors(out, "warning")
    allowed = ("TOO_FEW_AUTHORS /dataset_description.json", "SIDECAR_KEY_RECOMMENDED /phenotype/")
    assert [warning for warning in warnings if not warning.startswith(allowed)] == []
    assert "Authors" not in json.loads((raw / "dataset_description.json").read_text())


def all_names() -> list[str]:
    """Every suffix of anatomical images of BIDS, and of CT, with all entities that it may have."""
    schema = load_schema()
    keys = {name: about["name"] for name, about in schema.objects.entities.items()}
    values = {"sub": "01", "ses": "a", "part": "mag", "mt": "on"}
    names = []
    for rule in schema.rules.files.raw.anat.values():
        for suffix in rule["suffixes"]:
            allowed = [key for name, key in keys.items() if name in rule.entities]
            for chosen in (["sub", "ses"], allowed):
                ordered = [key for key in ENTITIES if key in chosen]
                parts = [f"{key}-{values.get(key, '1')}" for key in ordered]
                names.append("_".join([*parts, suffix]))
    some = ["dir-AP", "flip-1", "inv-1", "inv-2", "mt-off", "mt-on", "acq-a+b_run-1_inv-2_part-mag"]
    names += [f"sub-01_ses-a_{entities}_MPM" for entities in some]
    names += [f"sub-01_ses-a_{entities}_T1w" for entities in ("desc-filled", "space-x_res-2")]
    return [*names, "sub-01_ses-a_ct", "sub-01_ses-b_CT", "sub-01_ses-a_acq-bone_ct"]


def test_outputs_of_every_name_that_is_accepted_are_valid(tmp_path):
    labels = siam_labels()
    begin_dataset(tmp_path, tmp_path / "raw", labels)
    data = np.zeros((4, 4, 4), np.uint8)
    grid = Grid(data.shape, np.diag([4.0, 4.0, 4.0, 1.0]))
    written = set()
    every = [ScanNames(tmp_path, BidsName.parse(name)) for name in all_names()]
    for names in every:
        images = [names.segmentation, names.brain_mask, names.probability("GM")]
        save_segmentation(images[0], Segmentation(data, grid, labels))
        save_mask(images[1], data > 0, grid)
        save_probability(images[2], data.astype(np.float32), grid)
        for path in images:
            kind = {"Type": "Brain"} if path == names.brain_mask else {}
            write_json(sidecar(path), {"Description": "x", "SpatialReference": "orig", **kind})
        save_volumes(names.volumes, tissue_volumes(Segmentation(data, grid, labels)), labels)
        written |= {*images, names.volumes, names.record, names.figure("mosaic")}
    assert len(every) > 60
    assert len(written) == 6 * len(every)
    assert validator_errors(tmp_path) == []
    assert sorted(map(str, finished_scans(tmp_path))) == sorted(map(str, every))


def test_files_are_whole_and_links_sources_and_dictionaries_hold(dataset):
    raw, out = dataset
    assert check_whole(out) > 15
    check_derivative(out, raw)


def test_pybids_reads_every_output_with_its_metadata(dataset):
    from bids.layout import BIDSLayout

    raw, out = dataset
    layout = BIDSLayout(raw, derivatives=out, validate=False)
    found = layout.get(scope="siam-bids", suffix="dseg", extension=".nii.gz")
    assert len(found) == len(list(out.rglob("*_dseg.nii.gz"))) >= 1
    for item in found:
        entities, metadata = item.get_entities(), item.get_metadata()
        (source,) = metadata["Sources"]
        original = layout.get_file(str(raw / source.removeprefix("bids:raw:")))
        for name, value in original.get_entities().items():
            if name not in ("suffix", "datatype", "extension"):
                assert entities[name] == value, (item.path, name)
        assert entities["desc"] == original.get_entities()["suffix"]
        assert metadata["Model"]["SHA256"]


def test_nilearn_finds_and_parses_the_outputs(mixed):
    from nilearn.interfaces.bids import get_bids_files, parse_bids_filename

    _, out = mixed
    wanted = {"file_tag": "dseg", "file_type": "nii.gz", "modality_folder": "anat"}
    (path,) = get_bids_files(out, sub_label="01", **wanted)
    entities = parse_bids_filename(path)["entities"]
    assert entities == {"sub": "01", "seg": "siam", "desc": "T1w"}
    (path,) = get_bids_files(out, sub_label="02", filters=[("desc", "FLAIR")], **wanted)
    assert parse_bids_filename(path)["entities"]["run"] == "1"
    maps = get_bids_files(
        out, file_tag="probseg", file_type="nii.gz", modality_folder="anat", sub_label="01"
    )
    assert [parse_bids_filename(path)["entities"]["label"] for path in maps] == ["CSFv", "GM"]


def lookup(path: Path, pattern: str) -> dict[int, tuple[str, tuple[int, ...]]]:
    """Read a table of labels: value to name and colour."""
    rows = [re.fullmatch(pattern, line) for line in path.read_text().splitlines() if line[0] != "#"]
    return {int(row["i"]): (row["name"], tuple(map(int, row["rgb"].split()))) for row in rows}


@pytest.mark.parametrize("configuration", ["mixed", "foreign", "refined"])
def test_itksnap_and_freesurfer_get_the_names_and_colours(configuration, request):
    _, out = request.getfixturevalue(configuration)
    labels = read_label_table(out)
    color = r"(?P<rgb>(?:\d+ +){2}\d+)"
    snap = lookup(
        out / ITKSNAP_TABLE,
        rf' *(?P<i>\d+) +{color} +[01](?:\.\d+)? +[01] +[01] +"(?P<name>[^"]+)"',
    )
    free = lookup(out / FREESURFER_TABLE, rf"(?P<i>\d+) +(?P<name>\S+) +{color} +0")
    assert snap == {label.index: (label.long_name, label.rgb) for label in labels}
    assert free == {label.index: (label.name, label.rgb) for label in labels}
    for path in out.rglob("*_dseg.nii.gz"):
        assert set(np.unique(np.asarray(nib.load(path).dataobj)).tolist()) <= set(free)


def test_colours_are_those_of_the_table():
    assert siam_labels().by_name["GM"].color == "#{:02x}{:02x}{:02x}".format(
        *siam_labels().by_name["GM"].rgb
    )
    odd = LabelTable.from_names({"background": 0, "Muscle": 1})
    assert len(odd.by_name["Muscle"].rgb) == 3


def test_the_checks_notice_what_the_validator_does_not(foreign, tmp_path):
    """Each break of a rule fails just one of our own checks."""
    raw, made = foreign

    def broken(change) -> Path:
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(made, out)
        change(out)
        return out

    def edit(pattern, **entries):
        def change(out):
            (path,) = out.rglob(pattern)
            path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))

        return change

    check_derivative(broken(lambda out: None), raw)
    breaks = [
        edit("dataset_description.json", GeneratedBy=[{"Name": "other", "Version": "1"}]),
        edit("dataset_description.json", DatasetLinks={"raw": tmp_path.as_uri()}),
        edit("sub-*_dseg.json", Sources=["bids:raw:sub-01/anat/sub-01_T9w.nii.gz"]),
        edit("sub-*_dseg.json", SoftwareVersion=3),
        edit("*_volumes.json", voxels={}),
    ]
    for change in breaks:
        with pytest.raises((AssertionError, ValidationError)):
            check_derivative(broken(change), raw)
    torn = [
        lambda out: os.truncate(next(out.rglob("*_dseg.nii.gz")), 99),
        lambda out: next(out.rglob("sub-*_volumes.json")).unlink(),
        lambda out: next(out.rglob("*_qc.tsv")).write_text("a\tb\n1\n"),
        lambda out: next(out.rglob("*.png")).write_bytes(b"half"),
    ]
    for change in torn:
        with pytest.raises((AssertionError, EOFError, OSError)):
            check_whole(broken(change))
