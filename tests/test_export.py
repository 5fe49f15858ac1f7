"""Exports, read by the programs that they are for."""

import json
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import affine_of, head_labels, write_raw

from siam_bids.bids.description import begin_dataset, raw_dataset
from siam_bids.bids.names import ScanNames, sidecar
from siam_bids.bids.scan import BidsName
from siam_bids.bids.status import finish_scan
from siam_bids.bids.writers import (
    save_probability,
    save_quality,
    save_segmentation,
    save_volumes,
)
from siam_bids.cli.export import main
from siam_bids.export.fmriprep import bias_corrected, class_of
from siam_bids.export.head import choose_references
from siam_bids.export.run import TARGETS
from siam_bids.export.simnibs import NAMES, repair, tissue_of, violations
from siam_bids.export.summaries import SUMMARIES
from siam_bids.export.surfaces import even_grid, head_surfaces, sphere
from siam_bids.image.grid import Grid, Reorientation, Segmentation, Volume
from siam_bids.image.labels import SIAM_TABLES, read_siam_table, siam_labels
from siam_bids.measures.volumes import tissue_volumes
from siam_bids.support.atomic_files import sha256

LABELS = siam_labels()
LESION = LABELS.by_name["Anomalies"].index


def anatomy_with_lesions() -> np.ndarray:
    """The head of conftest with a lesion of 27 voxels and one of 1 voxel in the white matter."""
    data = head_labels().astype(np.uint8)
    data[14:17, 20:23, 28:31] = LESION
    data[26, 30, 28] = LESION
    return data


def write_result(raw: Path, out: Path, stem: str, *, grid=None, data=None, probabilities=False):
    """Write a scan and its finished result as the participant level does."""
    data = anatomy_with_lesions() if data is None else data
    grid = grid or Grid(data.shape, np.diag([4.0, 4.0, 4.0, 1.0]))
    write_raw(raw, Volume(data * 10.0 + 1, grid), stem)
    begin_dataset(out, raw, LABELS)
    names = ScanNames(out, BidsName.parse(stem))
    segmentation = Segmentation(data, grid, LABELS)
    written = save_segmentation(names.segmentation, segmentation)
    if probabilities:
        for label in LABELS.foreground:
            one = np.where(data == label.index, np.float32(0.7), np.float32(0))
            written |= save_probability(names.probability(label.name), one, grid)
    written |= save_volumes(names.volumes, tissue_volumes(segmentation), LABELS)
    written |= save_quality(names.quality, {"snr_WM": 8.0})
    scan = next(raw.rglob(f"{stem}.nii.gz"))
    about = {
        "Sources": [f"bids:raw:{scan.relative_to(raw).as_posix()}"],
        "Model": {"Title": "t", "Version": "1", "SHA256": "0" * 64, "Citation": ""},
        "Software": {"siam-bids": "0"},
        "InputSHA256": sha256(scan),
        "Grid": {
            "Shape": list(grid.shape),
            "VoxelSize": list(grid.voxel_size),
            "Orientation": grid.axcodes,
        },
    }
    finish_scan(names, about, written)
    return names


@pytest.fixture
def place(tmp_path):
    """A raw dataset and its results: a T1w and a T2w of one person."""
    write_result(tmp_path / "raw", tmp_path / "out", "sub-01_T2w")
    write_result(tmp_path / "raw", tmp_path / "out", "sub-01_T1w")
    return tmp_path


def run(place: Path, target: str, *options: str) -> int:
    return main([str(place / "out"), target, str(place / target), *options])


def load(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def told(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def ask(python: Path, program: str, *words: object) -> dict:
    """Run a program of another environment that prints JSON on its last line."""
    done = subprocess.run(
        [python, "-c", program, *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def smriprep(tools) -> Path:
    return _python_with(tools, "smriprep")


@pytest.fixture
def mne(tools) -> Path:
    return _python_with(tools, "mne")


def _python_with(tools: Path, package: str) -> Path:
    if not list(tools.parent.glob(f"lib/python*/site-packages/{package}")):
        pytest.skip(f"needs {package}: `make tools` anew")
    return tools / "python"


# ---------------------------------------------------------------- what all targets have


def test_every_target_is_summed_up_for_the_help():
    assert list(TARGETS) == list(SUMMARIES)


def test_a_second_export_does_nothing_and_a_new_segmentation_is_exported_anew(place, capsys):
    assert run(place, "fmriprep") == 0
    assert capsys.readouterr().out == "1 exported, 0 already done, 0 failed.\n"
    path = place / "fmriprep/sub-01/anat/sub-01_dseg.nii.gz"
    before = path.stat().st_mtime_ns
    assert run(place, "fmriprep") == 0
    assert capsys.readouterr().out == "0 exported, 1 already done, 0 failed.\n"
    assert path.stat().st_mtime_ns == before
    data = anatomy_with_lesions()
    data[data == LESION] = LABELS.by_name["WM"].index
    write_result(place / "raw", place / "out", "sub-01_T1w", data=data)
    assert run(place, "fmriprep") == 0
    assert capsys.readouterr().out == "1 exported, 0 already done, 0 failed.\n"
    assert np.bincount(load(path).ravel())[2] == (data == 2).sum()


def test_a_missing_file_is_written_again(place, capsys):
    run(place, "lesions")
    path = place / "lesions/sub-01/anat/sub-01_label-lesion_roi.nii.gz"
    path.unlink()
    assert run(place, "lesions") == 0
    assert load(path).sum() == 28
    assert capsys.readouterr().out.endswith("1 exported, 0 already done, 0 failed.\n")


@pytest.mark.parametrize("target", ["fmriprep", "lesions", "simnibs"])
def test_sidecars_say_where_an_export_comes_from(place, target):
    assert run(place, target) == 0
    declared = [path for path in (place / target).rglob("*.json") if "Outputs" in told(path)]
    assert len(declared) == 1
    about = told(declared[0])
    assert about["Sources"] == [
        "bids:siam:sub-01/anat/sub-01_seg-siam_desc-T1w_dseg.nii.gz",
        "bids:raw:sub-01/anat/sub-01_T1w.nii.gz",
    ]
    for name, checksum in about["Outputs"].items():
        assert checksum == f"sha256:{sha256(place / target / name)}"
    links = told(place / target / "dataset_description.json")["DatasetLinks"]
    assert links == {"siam": (place / "out").as_uri(), "raw": (place / "raw").as_uri()}


@pytest.mark.parametrize("name", ["raw", "my data", "50%25 done", "über%20all"])
def test_the_raw_dataset_is_found_whatever_its_name(tmp_path, name):
    begin_dataset(tmp_path / "out", tmp_path / name, LABELS)
    assert raw_dataset(tmp_path / "out") == tmp_path / name


def test_a_folder_of_others_is_refused_and_left_alone(place, capsys):
    (place / "fmriprep").mkdir()
    (place / "fmriprep" / "thesis.txt").write_text("mine")
    assert run(place, "fmriprep") == 2
    assert capsys.readouterr().err == (
        f"siam-bids: error: The output folder {place / 'fmriprep'} was not made by siam-bids and "
        "is not empty (thesis.txt). Give an empty or new folder.\n"
    )
    assert [path.name for path in (place / "fmriprep").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("folder", "what"), [("out", "segmentations"), ("lesions", "siam-bids-export lesions")]
)
def test_each_export_has_a_folder_of_its_own(place, folder, what, capsys):
    run(place, "lesions")
    capsys.readouterr()
    assert main([str(place / "out"), "fmriprep", str(place / folder)]) == 2
    assert capsys.readouterr().err == (
        f"siam-bids: error: {place / folder} holds another kind of output of siam-bids: {what}. "
        "Give each export a folder of its own.\n"
    )


def test_a_result_that_was_changed_stops_no_other(place, capsys):
    names = write_result(place / "raw", place / "out", "sub-02_T1w")
    save_segmentation(
        names.segmentation,
        Segmentation(np.zeros((40, 48, 44), np.uint8), Grid((40, 48, 44), np.eye(4)), LABELS),
    )
    assert run(place, "fmriprep") == 1
    out, err = capsys.readouterr()
    assert out == "1 exported, 0 already done, 1 failed.\n"
    assert "FAILED sub-02_T1w: sub-02_seg-siam_desc-T1w_dseg.nii.gz is not the file that its" in err
    assert not (place / "fmriprep/sub-02/anat/sub-02_dseg.json").exists()


def test_no_results_and_unknown_people_are_told(tmp_path, place, capsys):
    assert main([str(tmp_path / "nothing"), "fmriprep", str(tmp_path / "x")]) == 3
    assert "nothing holds no finished results. Give the output folder" in capsys.readouterr().err
    assert run(place, "fmriprep", "--participant-label", "99") == 1
    assert "FAILED sub-99: No finished scan.\n" in capsys.readouterr().err


def test_an_option_of_another_target_is_refused(place, capsys):
    assert run(place, "mne", "--min-size", "5") == 2
    assert "--min-size is an option of lesions, not of mne." in capsys.readouterr().err


def test_the_reference_is_t1w_then_t2w_then_the_smallest_voxels(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    fine = Grid((40, 48, 44), np.diag([3.0, 4.0, 4.0, 1.0]))
    for stem in ("sub-1_T2w", "sub-1_acq-a_T1w", "sub-2_FLAIR", "sub-2_T2w", "sub-3_PDw"):
        write_result(raw, out, stem)
    write_result(raw, out, "sub-1_acq-b_T1w", grid=fine)
    sharp = Grid((40, 48, 44), np.diag([1.0, 1.0, 6.0, 1.0]))  # small voxels, but thick slices
    write_result(raw, out, "sub-1_acq-c_T1w", grid=sharp)
    write_result(raw, out, "sub-4_ses-a_T1w")
    write_result(raw, out, "sub-4_ses-b_T1w")

    def chosen(**more):
        found = choose_references(out, **more)
        return [result.names.name for result in found.chosen], found.without

    assert chosen() == (
        ["sub-1_acq-b_T1w", "sub-2_T2w", "sub-3_PDw", "sub-4_ses-a_T1w", "sub-4_ses-b_T1w"],
        {},
    )
    assert chosen(participants=["1"], wanted="acq-a_T1w")[0] == ["sub-1_acq-a_T1w"]
    assert chosen(participants=["2", "3"], wanted="FLAIR") == (
        ["sub-2_FLAIR"],
        {"sub-3": "No finished scan is called FLAIR (--reference)."},
    )
    assert chosen(sessions=["b"])[0] == ["sub-4_ses-b_T1w"]


# ---------------------------------------------------------------- fMRIPrep


def test_three_classes_as_fast_would_tell_them():
    by_name = {
        label.name: class_of(label)
        for table in SIAM_TABLES
        for label in read_siam_table(table).foreground
    }
    for name in ("GM", "cerGM", "Thal", "Pal", "Put", "Caud", "Accu", "Amyg", "Hippo", "Anomalies"):
        assert by_name[name] == "GM"
    for name in ("WM", "Wmcereb", "Brainsteam", "brain_optical_track"):
        assert by_name[name] == "WM"
    assert by_name["CSF"] == by_name["CSFv"] == "CSF"
    assert {by_name[name] for name in ("Skull", "Head", "Dura", "vascular", "Eye_ball")} == {""}


@pytest.mark.parametrize("probabilities", [False, True])
def test_probability_maps_come_from_the_networks_where_all_are_there(tmp_path, probabilities):
    write_result(tmp_path / "raw", tmp_path / "out", "sub-01_T1w", probabilities=probabilities)
    assert run(tmp_path, "fmriprep") == 0
    anat = tmp_path / "fmriprep/sub-01/anat"
    dseg = load(anat / "sub-01_dseg.nii.gz")
    source = anatomy_with_lesions()
    assert (dseg == 1).sum() == np.isin(source, [1, 6, LESION]).sum()
    assert (dseg == 2).sum() == (source == 2).sum()
    assert set(np.unique(source[dseg == 3])) <= {3, 4}
    assert (dseg[source == 4] == 3).all()
    mask = load(anat / "sub-01_desc-brain_mask.nii.gz")
    np.testing.assert_array_equal(mask == 1, dseg > 0)
    for value, name in enumerate(("GM", "WM", "CSF"), start=1):
        path = anat / f"sub-01_label-{name}_probseg.nii.gz"
        np.testing.assert_allclose(load(path), (dseg == value) * (0.7 if probabilities else 1.0))
        how = "the networks' probabilities" if probabilities else "the label map, 0 or 1"
        assert told(sidecar(path))["Description"].endswith(f"from {how}.")


COLLECT = """
import json, sys
from smriprep.utils.bids import collect_derivatives
root, person, session = sys.argv[1:]
found = collect_derivatives(root, person, ["MNI152NLin2009cAsym"], session_id=session or None)
print(json.dumps(found))
"""


def test_smriprep_takes_mask_classes_and_maps(smriprep, place):
    write_result(place / "raw", place / "out", "sub-02_ses-a_T1w")
    write_result(place / "raw", place / "out", "sub-02_ses-b_T1w")
    assert run(place, "fmriprep") == 0
    for person, session in (("01", ""), ("02", "a"), ("02", "b")):
        stem = f"sub-{person}" + (f"_ses-{session}" if session else "")
        folder = place / "fmriprep" / stem.replace("_", "/") / "anat"
        assert ask(smriprep, COLLECT, place / "fmriprep", person, session) == {
            "t1w_mask": f"{folder}/{stem}_desc-brain_mask.nii.gz",
            "t1w_dseg": f"{folder}/{stem}_dseg.nii.gz",
            "t1w_tpms": [f"{folder}/{stem}_label-{t}_probseg.nii.gz" for t in ("GM", "WM", "CSF")],
            "transforms": {},
        }


NIBABIES = """
import json, sys
from bids.layout import BIDSLayout
from niworkflows.data import load
layout = BIDSLayout(sys.argv[1], config=load("nipreps.json"), validate=False)
query = {"datatype": "anat", "desc": "aseg", "suffix": "dseg", "extension": [".nii.gz", ".nii"]}
print(json.dumps(layout.get(return_type="filename", subject="01", space=None, **query)))
"""


def test_nibabies_finds_one_aseg(smriprep, place):
    """By the query `anat_aseg` of its io_spec_anat.json, with the layout that it makes."""
    assert run(place, "fmriprep") == 0
    path = place / "fmriprep/sub-01/anat/sub-01_desc-aseg_dseg.nii.gz"
    assert ask(smriprep, NIBABIES, place / "fmriprep") == [str(path)]
    values = load(path)
    assert values.shape == load(place / "fmriprep/sub-01/anat/sub-01_dseg.nii.gz").shape
    assert {2, 3, 10, 24, 41, 42, 49} <= {*np.unique(values).tolist()}


def test_smriprep_finds_nothing_in_our_own_outputs(smriprep, tmp_path):
    """Not even probability maps of GM, WM and CSF, which are not those of FAST."""
    write_result(tmp_path / "raw", tmp_path / "out", "sub-01_T1w", probabilities=True)
    assert list((tmp_path / "out/sub-01/anat").glob("*_label-GM_desc-T1w_probseg.nii.gz"))
    assert ask(smriprep, COLLECT, tmp_path / "out", "01", "") == {"transforms": {}}


WORKFLOW = """
import json, sys
from pathlib import Path
from niworkflows.interfaces.images import Conform
from niworkflows.utils.spaces import Reference, SpatialReferences
from smriprep.utils.bids import collect_derivatives
from smriprep.workflows.anatomical import init_anat_fit_wf
import nibabel as nib, numpy as np
root, scan, work = sys.argv[1:]
found = collect_derivatives(root, "01", [])
common = dict(bids_root=str(Path(scan).parents[2]), output_dir=work, freesurfer=False, hires=False,
    longitudinal=False, msm_sulc=False, t1w=[scan], t2w=[], skull_strip_mode="auto",
    skull_strip_template=Reference("OASIS30ANTs"), spaces=SpatialReferences(), omp_nthreads=1)
nodes = {}
for name, precomputed in (("with", found), ("without", {"transforms": {}})):
    try:
        nodes[name] = init_anat_fit_wf(precomputed=precomputed, **common).list_node_names()
    except Exception as error:  # a template that has to be downloaded
        nodes[name] = [f"{type(error).__name__}: {error}"]
image = nib.load(scan)
done = Conform(in_file=scan, target_zooms=tuple(float(z) for z in image.header.get_zooms()),
    target_shape=nib.as_closest_canonical(image).shape).run(cwd=work)
conformed, mask = nib.load(done.outputs.out_file), nib.load(found["t1w_mask"])
print(json.dumps({"nodes": nodes, "shapes": [conformed.shape, mask.shape],
    "same": bool(np.allclose(conformed.affine, mask.affine, atol=1e-3))}))
"""


def test_the_bias_field_is_removed_in_the_brain(tmp_path):
    """A field of known shape over constant tissues, in an orientation that is not RAS+."""
    data = head_labels().astype(np.uint8)
    grid = Grid(data.shape, affine_of("LPI", (4.0, 4.0, 4.0)))
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in data.shape), indexing="ij")
    field = np.exp(0.35 * x - 0.25 * y + 0.2 * x * z)
    clean = np.choose(np.minimum(data, 6), [5, 70, 110, 30, 30, 50, 70]).astype(np.float32)
    scan = Volume((clean * field).astype(np.float32), grid)
    brain = np.isin(data, [1, 2, 4, 6])
    found = bias_corrected(scan, Reorientation.to_ras(grid).apply(brain))
    found = Reorientation.to_ras(grid).undo(found)
    for tissue in (1, 2):
        before, after = (image[data == tissue] for image in (scan.data, found))
        assert after.std() / after.mean() < 0.25 * before.std() / before.mean()
    assert np.log(found[brain] / scan.data[brain]).mean() == pytest.approx(0, abs=1e-3)


def test_smriprep_takes_the_bias_corrected_image(smriprep, place):
    assert run(place, "fmriprep", "--bias-corrected") == 0
    found = ask(smriprep, COLLECT, place / "fmriprep", "01", "")
    assert found["t1w_preproc"] == f"{place}/fmriprep/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz"
    (place / "work").mkdir()
    scan = place / "raw/sub-01/anat/sub-01_T1w.nii.gz"
    nodes = ask(smriprep, WORKFLOW, place / "fmriprep", scan, place / "work")["nodes"]["with"]
    assert "anat_validate" in nodes
    assert not [name for name in nodes if "n4" in name or "anat_template" in name]


def test_an_image_that_smriprep_does_not_take_is_not_corrected(tmp_path, capsys):
    write_result(tmp_path / "raw", tmp_path / "out", "sub-01_FLAIR")
    assert run(tmp_path, "fmriprep", "--bias-corrected") == 1
    assert "sub-01_FLAIR is not a T1w or T2w: sMRIPrep accepts no other" in capsys.readouterr().err
    assert not list((tmp_path / "fmriprep").rglob("*.nii.gz"))
    assert run(tmp_path, "fmriprep") == 0


def test_an_export_that_fails_writes_nothing_and_leaves_an_earlier_one(place, capsys):
    scan = place / "raw/sub-01/anat/sub-01_T1w.nii.gz"
    image = nib.load(scan)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + 1, image.affine), scan)
    folder = place / "fmriprep"
    common = {folder / "README", folder / "dataset_description.json"}
    assert run(place, "fmriprep", "--bias-corrected") == 1
    assert "is not the image that was segmented." in capsys.readouterr().err
    assert {path for path in folder.rglob("*") if path.is_file()} == common
    assert run(place, "fmriprep") == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert run(place, "fmriprep", "--bias-corrected") == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert told(folder / "sub-01/anat/sub-01_dseg.json")["Outputs"]


def test_smriprep_builds_a_workflow_that_segments_nothing_anew(smriprep, tmp_path):
    grid = Grid((40, 48, 44), affine_of("LAS", (4.0, 4.0, 4.0)))
    write_result(tmp_path / "raw", tmp_path / "out", "sub-01_T1w", grid=grid)
    assert run(tmp_path, "fmriprep") == 0
    (tmp_path / "work").mkdir()
    scan = tmp_path / "raw/sub-01/anat/sub-01_T1w.nii.gz"
    found = ask(smriprep, WORKFLOW, tmp_path / "fmriprep", scan, tmp_path / "work")
    nodes = found["nodes"]["with"]
    assert "anat_validate" in nodes
    assert not [name for name in nodes if "brain_extraction" in name or "fast" in name]
    # the scan turned to RAS+ by sMRIPrep's own code lies where our mask lies, voxel by voxel
    assert found["shapes"][0] == found["shapes"][1]
    assert found["same"]


# ---------------------------------------------------------------- lesions


@pytest.mark.parametrize(
    ("options", "voxels"),
    [((), 28), (("--min-size", "64"), 28), (("--min-size", "65"), 27), (("--min-size", "1e9"), 0)],
)
def test_lesions_above_a_size(place, options, voxels):
    assert run(place, "lesions", *options) == 0
    path = place / "lesions/sub-01/anat/sub-01_label-lesion_roi.nii.gz"
    assert load(path).sum() == voxels
    about = told(sidecar(path))
    assert about["LesionVolume"] == voxels * 64
    assert about["LesionCount"] + about["LesionsLeftOut"] == 2


@pytest.mark.parametrize(("least", "voxels"), [("0.69", 28), ("0.71", 0)])
def test_lesions_above_a_confidence(tmp_path, least, voxels):
    write_result(tmp_path / "raw", tmp_path / "out", "sub-01_T1w", probabilities=True)
    assert run(tmp_path, "lesions", "--min-confidence", least) == 0
    path = tmp_path / "lesions/sub-01/anat/sub-01_label-lesion_roi.nii.gz"
    assert load(path).sum() == voxels


def write_consensus(place: Path, *, source="T1w", other="T2w", data=None) -> ScanNames:
    """Write the consensus of two scans, as `--combine` does, on the grid of `source`."""
    raw, out = place / "raw", place / "out"
    names = {each: write_result(raw, out, f"sub-01_{each}", data=data) for each in (source, other)}
    scans = [f"sub-01/anat/sub-01_{each}.nii.gz" for each in names]
    about = told(sidecar(names[source].segmentation))
    inputs = {scan: sha256(raw / scan) for scan in scans}
    about |= {
        "Sources": [f"bids:raw:{scan}" for scan in scans],
        "InputSHA256": "c" * 64,
        "Combined": {"By": "all", "Inputs": inputs},
    }
    both = ScanNames(out, BidsName.parse("sub-01_consensus"))
    segmentation = Segmentation(
        load(names[source].segmentation),
        Grid((40, 48, 44), np.diag([4.0, 4.0, 4.0, 1.0])),
        LABELS,
    )
    written = save_segmentation(both.segmentation, segmentation)
    written |= save_volumes(both.volumes, tissue_volumes(segmentation), LABELS)
    written |= save_quality(both.quality, {"snr_WM": 8.0})
    del about["Outputs"]
    finish_scan(both, about, written)
    return both


CONSENSUS = ("--reference", "consensus")


@pytest.mark.parametrize("target", ["fmriprep", "freesurfer", "lesions", "mne", "simnibs"])
def test_a_consensus_is_exported_with_the_image_of_its_best_scan(tmp_path, target):
    write_consensus(tmp_path, data=np.pad(anatomy_with_lesions()[1:-1, 1:-1, 1:-1], 1))
    more = ("--bias-corrected",) if target == "fmriprep" else ()
    assert run(tmp_path, target, *CONSENSUS, *more) == 0
    (about,) = (
        each for path in (tmp_path / target).rglob("*.json") if "Outputs" in (each := told(path))
    )
    assert about["Sources"][1:] == [
        f"bids:raw:sub-01/anat/sub-01_{each}.nii.gz" for each in ("T1w", "T2w")
    ]
    if more:
        assert "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz" in about["Outputs"]


def test_a_consensus_has_no_confidence(tmp_path, capsys):
    write_consensus(tmp_path)
    assert run(tmp_path, "lesions", *CONSENSUS, "--min-confidence", "0.3") == 1
    assert capsys.readouterr().err.endswith(
        "FAILED sub-01_consensus: sub-01_consensus is a consensus of several scans: it has no "
        "probability maps. Choose a scan with --reference, or leave --min-confidence out.\n"
    )


def test_a_consensus_whose_best_scan_changed_or_lies_elsewhere_is_told(tmp_path, capsys):
    names = write_consensus(tmp_path)
    scan = tmp_path / "raw/sub-01/anat/sub-01_T1w.nii.gz"
    image = nib.load(scan)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), np.diag([4.0, 4.0, 5.0, 1.0])), scan)
    assert run(tmp_path, "mne", *CONSENSUS) == 1
    assert "sub-01_T1w.nii.gz is not the image that was segmented." in capsys.readouterr().err
    path = sidecar(names.segmentation)
    about = told(path)
    about["Combined"]["Inputs"]["sub-01/anat/sub-01_T1w.nii.gz"] = sha256(scan)
    path.write_text(json.dumps(about))
    assert run(tmp_path, "mne", *CONSENSUS) == 1
    assert (
        "The labels of sub-01_consensus are not on the grid of sub-01_T1w.nii.gz. Choose another "
        "scan with --reference." in capsys.readouterr().err
    )


def test_confidence_needs_a_probability_map(place, capsys):
    assert run(place, "lesions", "--min-confidence", "0.5") == 1
    assert "There is no probability map of Anomalies for the confidence. Run siam-bids" in (
        capsys.readouterr().err
    )


ROI = """
import json, sys
from niworkflows.utils.bids import collect_data
found, _ = collect_data(sys.argv[1], "01", bids_validate=False)
print(json.dumps(found["roi"]))
"""


def test_fmriprep_finds_the_lesions_beside_the_scan(smriprep, place):
    run(place, "lesions")
    name = "sub-01_label-lesion_roi.nii.gz"
    shutil.copy(place / "lesions/sub-01/anat" / name, place / "raw/sub-01/anat" / name)
    assert ask(smriprep, ROI, place / "raw") == [f"{place}/raw/sub-01/anat/{name}"]


# ---------------------------------------------------------------- SimNIBS


def test_tissues_of_simnibs_by_label():
    tables = [read_siam_table(table) for table in SIAM_TABLES]
    by_name = {label.name: tissue_of(label) for table in tables for label in table}
    wanted = {
        "WM": "WM", "GM": "GM", "Thal": "GM", "CSF": "CSF", "CSFv": "CSF", "Dura": "CSF",
        "Head": "Scalp", "vascular": "Blood", "Eye_ball": "Eye_balls", "Eye_muscle": "Muscle",
        "Skull_diploe": "Spongy_bone",
    }  # fmt: skip
    assert {name: by_name[name] for name in wanted} == {
        name: NAMES[tissue] for name, tissue in wanted.items()
    }
    assert by_name["background"] == by_name["nose_Air"] == 0


def test_rules_of_neighbours_hold_after_repair():
    rng = np.random.default_rng(0)
    tissues = rng.choice(np.arange(11, dtype=np.uint8), (24, 24, 24))
    assert all(violations(tissues).values())
    fixed, changed = repair(tissues)
    assert violations(fixed) == {"Holes": 0, "CSF": 0, "Bone": 0, "Scalp": 0}
    assert min(changed.values()) >= 0
    again, nothing = repair(fixed)
    np.testing.assert_array_equal(again, fixed)
    assert set(nothing.values()) == {0}


def test_simnibs_gets_a_qform_and_closed_tissues(tmp_path):
    grid = Grid((40, 48, 44), affine_of("LPS", (4.0, 4.0, 4.0)))
    write_result(tmp_path / "raw", tmp_path / "out", "sub-01_T1w", grid=grid)
    assert run(tmp_path, "simnibs") == 0
    folder = tmp_path / "simnibs/m2m_sub-01"
    image = nib.load(folder / "label_prep/tissue_labeling_upsampled.nii.gz")
    tissues = np.asarray(image.dataobj)
    np.testing.assert_allclose(image.get_qform(), image.affine, atol=1e-4)  # meshmesh reads it
    assert int(image.header["qform_code"]) == 1
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert set(np.unique(tissues)) == {0, 1, 2, 3, 4, 5}
    assert set(violations(tissues).values()) == {0}
    about = told(folder / "siam-bids.json")
    assert about["LabelMap"] == {"WM": 1, "GM": 2, "CSF": 3, "Bone": 4, "Scalp": 5, "Blood": 9}
    assert about["Absent"] == ["Eye_balls", "Compact_bone", "Spongy_bone", "Muscle"]


# ---------------------------------------------------------------- MNE


# ---------------------------------------------------------------- FreeSurfer


def test_freesurfers_files_share_a_grid_and_sides_are_those_of_the_world(tmp_path):
    """A scan of 4 mm whose axes are not FreeSurfer's."""
    data = anatomy_with_lesions()
    grid = Grid(data.shape, affine_of("PSL", (4.0, 4.0, 4.0)))
    write_result(tmp_path / "raw", tmp_path / "out", "sub-01_ses-a_T1w", grid=grid, data=data)
    assert run(tmp_path, "freesurfer") == 0
    folder = tmp_path / "freesurfer/sub-01_ses-a"
    images = {name: nib.load(folder / "mri" / f"{name}.mgz") for name in ("orig", "norm", "aseg")}
    for image in images.values():
        assert image.shape == (256, 256, 256)
        assert nib.aff2axcodes(image.affine) == ("L", "I", "A")
        np.testing.assert_allclose(image.affine, images["orig"].affine)
        np.testing.assert_allclose(nib.affines.voxel_sizes(image.affine), 1)
    aseg = np.asarray(images["aseg"].dataobj)
    for label, left, right in (("GM", 3, 42), ("Thal", 10, 49), ("WM", 2, 41)):
        volume = (data == LABELS.by_name[label].index).sum() * 64
        assert np.isin(aseg, (left, right)).sum() == pytest.approx(volume, rel=0.03)
        middle = [np.argwhere(aseg == value).mean(0) for value in (left, right)]
        x = [(images["aseg"].affine @ [*place, 1])[0] for place in middle]
        assert x[0] < x[1]  # RAS+
    norm = np.asarray(images["norm"].dataobj)
    assert not norm[aseg == 0].any()
    assert norm[aseg == 24].any()
    assert np.median(norm[np.isin(aseg, (2, 41))]) == 110


def test_half_a_head_makes_no_aseg(tmp_path, capsys):
    data = anatomy_with_lesions()[:18]
    write_result(tmp_path / "raw", tmp_path / "out", "sub-01_T1w", data=data)
    assert run(tmp_path, "freesurfer") == 1
    assert (
        "FAILED sub-01_T1w: The hemispheres of sub-01_T1w cannot be told. Choose another scan"
        in capsys.readouterr().err
    )
    assert run(tmp_path, "fmriprep") == 0
    assert not list((tmp_path / "fmriprep").rglob("*aseg*"))


def test_aseg_stats_has_the_lines_and_columns_of_mri_segstats(place):
    assert run(place, "freesurfer") == 0
    folder = place / "freesurfer/sub-01"
    text = (folder / "stats/aseg.stats").read_text()
    aseg = load(folder / "mri/aseg.mgz")
    rows = [line.split() for line in text.splitlines() if "#" not in line]
    assert [row[4] for row in rows[:2]] == ["Left-Cerebral-White-Matter", "Left-Cerebral-Cortex"]
    for number, row in enumerate(rows, start=1):
        assert (int(row[0]), len(row)) == (number, 10)
        assert int(row[2]) == (aseg == int(row[1])).sum() == float(row[3])
    measures = {
        line.split(",")[1].strip(): float(line.split(",")[3])
        for line in text.splitlines()
        if line.startswith("# Measure")
    }
    assert measures["CortexVol"] == np.isin(aseg, (3, 42)).sum()
    whole = pd.read_csv(
        next((place / "out").rglob("*_desc-T1w_volumes.tsv")), sep="\t", index_col="name"
    )
    assert measures["eTIV"] == pytest.approx(1000 * whole.loc["TIV", "volume_mL"])
    about = told(folder / "mri/siam-bids.json")
    assert about["Target"] == "freesurfer"
    assert "sub-01/stats/aseg.stats" in about["Outputs"]


LABELS_OF_MNE = """
import json, sys
import mne
print(json.dumps(mne.get_volume_labels_from_aseg(sys.argv[1])))
"""


def test_mne_names_the_structures_of_aseg_mgz(mne, place):
    assert run(place, "freesurfer") == 0
    found = ask(mne, LABELS_OF_MNE, place / "freesurfer/sub-01/mri/aseg.mgz")
    assert {"Left-Cerebral-Cortex", "Right-Cerebral-White-Matter", "CSF"} <= {*found}


@pytest.fixture(scope="module")
def phantom() -> Segmentation:
    """The head of conftest in a wider image, of 3 mm."""
    data = np.pad(head_labels().astype(np.uint8), 2)
    return Segmentation(data, Grid(data.shape, affine_of("LIA", (3.0, 3.0, 3.0))), LABELS)


def test_the_sphere_is_closed_and_looks_outwards():
    ball = sphere()
    corners = ball.directions[ball.faces]
    outwards = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (np.einsum("ij,ij->i", outwards, corners.mean(axis=1)) > 0).all()
    edges = np.sort(ball.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()


@pytest.mark.parametrize("codes", ["RAS", "LIA", "PSR"])
def test_the_even_grid_holds_the_whole_image(codes):
    grid = Grid((40, 48, 44), affine_of(codes, (1.0, 3.0, 0.7)))
    even = even_grid(grid)
    assert even.axcodes == "LIA"
    np.testing.assert_allclose(even.voxel_size, 1)
    corners = np.array(np.meshgrid(*[[0, n - 1] for n in grid.shape])).reshape(3, -1)
    there = nib.affines.apply_affine(np.linalg.inv(even.affine) @ grid.affine, corners.T)
    assert there.min() > -1e-6
    assert (there < np.array(even.shape)).all()


def test_surfaces_keep_their_distance_and_lie_on_the_borders(phantom):
    surfaces = head_surfaces(phantom, 3.0)
    radii = [surfaces.radii[name] for name in ("inner_skull", "outer_skull", "outer_skin")]
    assert (radii[1] >= radii[0] + 3).all()
    assert (radii[2] >= radii[1] + 3).all()
    assert surfaces.least_distance("inner_skull", "outer_skull") >= 2.99
    assert surfaces.closed_by_edge == 0
    # ellipsoids of half axes edge * limit * (n - 1) / 2 voxels: mean radii of the borders
    envelope = surfaces.radii["brain"]
    assert (envelope <= radii[0] - 1).all()
    assert np.median(radii[0] - envelope) < 15
    edges = np.array([0.9, 0.95, 0.9]) * (np.array([40, 48, 44]) - 1) / 2 * 3
    for limit, radius in zip((0.76, 0.86, 1.0), radii, strict=True):
        across = np.linalg.norm(sphere().directions / (edges * limit), axis=1)
        assert np.median(np.abs(radius - 1 / across)) < 3  # a voxel


def test_a_thicker_least_distance_is_kept(phantom):
    surfaces = head_surfaces(phantom, 8.0)
    assert surfaces.least_distance("inner_skull", "outer_skull") >= 7.99
    assert surfaces.least_distance("outer_skull", "outer_skin") >= 7.99


@pytest.mark.parametrize(
    ("axis", "cut", "message"),
    [
        (2, slice(None, 26), "The field of view cuts the brain"),
        (2, slice(None, 39), "cuts the upper head"),
    ],
)
def test_a_head_that_the_image_cuts_above_is_refused(tmp_path, capsys, axis, cut, message):
    data = head_labels().astype(np.uint8).take(np.arange(44)[cut], axis)
    write_result(tmp_path / "raw", tmp_path / "out", "sub-01_T1w", data=data)
    assert run(tmp_path, "mne") == 1
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "mne").rglob("*.surf"))


@pytest.mark.parametrize("target", ["mne", "simnibs"])
@pytest.mark.parametrize("bone", [False, True])
def test_a_skull_stripped_head_is_refused(tmp_path, capsys, target, bone):
    """Some voxels of the missing tissues are left, as networks find them at the edge."""
    data = np.pad(head_labels().astype(np.uint8), 2)
    bare = [LABELS.by_name[name].index for name in (("Head",) if bone else ("Head", "Skull"))]
    data[np.isin(data, bare) & (np.random.default_rng(0).random(data.shape) > 0.0002)] = 0
    grid = Grid(data.shape, affine_of("LAS", (3.0, 3.0, 3.0)))
    write_result(tmp_path / "raw", tmp_path / "out", "sub-01_T1w", data=data, grid=grid)
    assert run(tmp_path, target) == 1
    err = capsys.readouterr().err
    assert ("FAILED sub-01_T1w: Bone covers 100% and scalp " in err) == bone
    assert "of the upper brain: was the image skull-stripped or cut? Choose another scan" in err
    assert not [*(tmp_path / target).rglob("*.nii.gz"), *(tmp_path / target).rglob("*.surf")]


def test_an_image_that_changed_is_not_laid_under_surfaces(place, capsys):
    scan = place / "raw/sub-01/anat/sub-01_T1w.nii.gz"
    image = nib.load(scan)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + 1, image.affine), scan)
    assert run(place, "mne") == 1
    assert "sub-01_T1w.nii.gz is not the image that was segmented." in capsys.readouterr().err


BEM = """
import json, sys
import mne, numpy as np
folder, person = sys.argv[1:]
mne.set_log_level("ERROR")
model = mne.make_bem_model(person, ico=2, subjects_dir=folder)
bem = mne.make_bem_solution(model)
fine = mne.make_bem_model(person, ico=4, subjects_dir=folder)
src = mne.setup_volume_source_space(person, pos=15.0, bem=bem, subjects_dir=folder, mri="T1.mgz")
skin = next(each for each in bem["surfs"] if each["id"] == 4)["rr"]
seats = skin[skin[:, 2] > np.median(skin[:, 2])][:32]
info = mne.create_info([f"EEG{n}" for n in range(len(seats))], 100.0, "eeg")
info.set_montage(mne.channels.make_dig_montage(dict(zip(info.ch_names, seats)), coord_frame="head"))
forward = mne.make_forward_solution(info, mne.Transform("head", "mri"), src, bem, meg=False)
gain = forward["sol"]["data"]
print(json.dumps({
    "triangles": [len(each["tris"]) for each in fine], "finite": bool(np.isfinite(gain).all()),
    "sources": forward["nsource"], "least": float(np.linalg.norm(gain, axis=0).min()),
    "middle": [each["rr"].mean(axis=0).tolist() for each in fine],
}))
"""


def test_mne_makes_a_model_and_a_forward_solution(mne, tmp_path):
    grid = Grid((44, 52, 48), affine_of("LAS", (3.0, 3.0, 3.0)))
    data = np.pad(head_labels().astype(np.uint8), 2)
    write_result(tmp_path / "raw", tmp_path / "out", "sub-01_T1w", data=data, grid=grid)
    assert run(tmp_path, "mne") == 0
    found = ask(mne, BEM, tmp_path / "mne", "sub-01")
    assert found["triangles"] == [5120] * 3
    assert found["finite"]
    assert found["sources"] > 50
    assert found["least"] > 0
    image = nib.load(tmp_path / "mne/sub-01/mri/T1.mgz")
    middle = nib.affines.apply_affine(
        image.header.get_vox2ras_tkr() @ np.linalg.inv(image.affine) @ grid.affine,
        (np.array(data.shape) - 1) / 2,
    )
    np.testing.assert_allclose(np.array(found["middle"]) * 1000, [middle] * 3, atol=3)


def test_surfaces_and_image_share_one_frame(tmp_path):
    """Surface RAS of every vertex of the skin, seen in T1.mgz, is where the head ends."""
    data = np.pad(head_labels().astype(np.uint8), 2)
    grid = Grid(data.shape, affine_of("LAS", (3.0, 3.0, 3.0)))
    write_result(tmp_path / "raw", tmp_path / "out", "sub-01_T1w", data=data, grid=grid)
    assert run(tmp_path, "mne") == 0
    image = nib.load(tmp_path / "mne/sub-01/mri/T1.mgz")
    points, _ = nib.freesurfer.read_geometry(tmp_path / "mne/sub-01/bem/outer_skin.surf")
    back = np.linalg.inv(image.header.get_vox2ras_tkr())
    voxels = nib.affines.apply_affine(back, points)
    middle = voxels.mean(axis=0)
    bright = np.asarray(image.dataobj)
    for scale, inside in ((0.93, True), (1.07, False)):
        at = np.rint(middle + (voxels - middle) * scale).astype(int)
        values = bright[tuple(np.clip(at, 0, np.array(bright.shape) - 1).T)]
        assert ((values > 60) == inside).mean() > 0.95
