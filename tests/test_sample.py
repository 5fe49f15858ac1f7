"""The README's promise: a wheel alone, in an empty environment, does the sample job well."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from checks import check_derivative, check_whole, validator_errors

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "data" / "sample_bids"
SCANS = {
    "sub-colin27_T1w": "sub-colin27/anat/sub-colin27_T1w",
    "sub-seg3d_T1w": "sub-seg3d/anat/sub-seg3d_T1w",
    "sub-synth01_ses-01_T2w": "sub-synth01/ses-01/anat/sub-synth01_ses-01_T2w",
    "sub-synth01_ses-02_T2w": "sub-synth01/ses-02/anat/sub-synth01_ses-02_T2w",
    "sub-synth02_FLAIR": "sub-synth02/anat/sub-synth02_FLAIR",
}
TRUE_CLASSES = ("GM", "WM", "CSFv", "cerGM", "Thal", "Put", "Hippo")
PAINTED = {
    "sub-synth01_ses-01_T2w": (456.0, 523.7, 43.4, 101.3, 14.4, 11.5, 8.8),
    "sub-synth01_ses-02_T2w": (470.4, 541.2, 45.4, 105.9, 15.0, 12.4, 9.4),
    "sub-synth02_FLAIR": (364.4, 441.6, 94.6, 93.4, 12.9, 8.3, 4.0),
}
"""Volumes (mL) in the deformed label maps that these heads were painted on."""


def call(*words, cwd):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """Output of the sample job, run from elsewhere by a wheel in an environment of its own."""
    place = tmp_path_factory.mktemp("elsewhere")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    call(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", place, ROOT, cwd=place)
    (wheel,) = place.glob("siam_bids-*.whl")
    venv.create(place / "env", with_pip=True)
    python = place / "env" / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    call(python, "-m", "pip", "install", "--quiet", "-c", constraints, wheel, cwd=place)
    app = place / "env" / "bin" / "siam-bids"
    out = place / "out"
    for level in ("participant", "group"):
        call(app, SAMPLE, out, level, cwd=place)
    return out


def test_every_scan_of_the_sample_is_segmented_and_measured(sample):
    wide = volumes(sample)
    assert wide.index.tolist() == list(SCANS)
    assert wide["origin"].tolist() == ["real", "real", "synthetic", "synthetic", "synthetic"]
    for scan, source in SCANS.items():
        there, suffix = source.rsplit("_", 1)
        found = nib.load(sample / f"{there}_seg-siam_desc-{suffix}_dseg.nii.gz")
        image = nib.load(SAMPLE / f"{source}.nii.gz")
        assert found.shape == image.shape
        np.testing.assert_allclose(found.affine, image.affine, atol=1e-4)
        tissues = set(np.unique(np.asarray(found.dataobj)).tolist())
        assert tissues >= set(range(13)) | {15, 16}, scan


def volumes(sample):
    return pd.read_csv(sample / "group_desc-wide_volumes.tsv", sep="\t").set_index("scan")


@pytest.mark.parametrize("scan", [scan for scan in SCANS if scan not in PAINTED])
def test_volumes_are_those_of_human_heads(sample, scan):
    """Bounds hold for any adult: intracranial 1.0 to 2.0 L (e.g. Buckner et al., 2004)."""
    row = volumes(sample).loc[scan]
    assert 1000 < row["TIV"] < 2000
    assert 350 < row["GM"] < 900
    assert 350 < row["WM"] < 800
    assert 5 < row["CSFv"] < 150
    assert 50 < row["cerGM"] < 180
    assert 8 < row["Thal"] < 25
    assert 3 < row["Hippo"] < 15
    assert 5 < row["Put"] < 20


@pytest.mark.parametrize("scan", list(PAINTED))
def test_volumes_of_painted_heads_are_the_true_ones(sample, scan):
    row = volumes(sample).loc[scan]
    assert 1000 < row["TIV"] < 2000
    for name, truth in zip(TRUE_CLASSES, PAINTED[scan], strict=True):
        assert row[name] == pytest.approx(truth, rel=0.15), name


def test_left_and_right_halves_of_the_brain_are_alike(sample):
    mask = nib.load(sample / "sub-colin27/anat/sub-colin27_label-brain_desc-T1w_mask.nii.gz")
    x = mask.affine @ np.c_[np.argwhere(np.asarray(mask.dataobj)), np.ones(mask.dataobj[:].sum())].T
    share = (x[0] < 0).mean()
    assert 0.46 < share < 0.54


def test_two_contrast_settings_of_one_synthetic_head_agree(sample):
    wide = volumes(sample)
    one, two = (wide.loc[f"sub-synth01_ses-0{n}_T2w"] for n in (1, 2))
    assert one["TIV"] == pytest.approx(two["TIV"], rel=0.2)  # each session is deformed anew


@pytest.mark.parametrize("folder", ["input", "output"])
def test_the_validator_finds_no_error(sample, folder):
    assert validator_errors(SAMPLE if folder == "input" else sample) == []


def test_links_sources_and_dictionaries_of_the_sample_hold(sample):
    check_whole(sample)
    check_derivative(sample, SAMPLE)


def test_pages_refer_only_to_files_that_are_there(sample):
    import re
    from urllib.parse import unquote

    pages = sorted(sample.glob("*.html"))
    assert len(pages) == 5
    for page in pages:
        text = page.read_text(encoding="utf-8")
        text = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
        for link in re.findall(r'(?:src|href)="(?!data:)([^"#]+)', text):
            assert not link.startswith(("http:", "https:", "//")), f"{page.name}: {link}"
            assert (sample / unquote(link)).exists(), f"{page.name}: {link}"
