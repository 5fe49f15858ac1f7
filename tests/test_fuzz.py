"""Random input to everything that reads: an answer or an error for the user, never another one.

CI spends a few seconds here; `HYPOTHESIS_PROFILE=long pytest tests/test_fuzz.py` minutes. What it
finds is kept as an `@example`.
"""

import gzip
import json
import os

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from siam_bids.bids.filters import read_filter_file
from siam_bids.bids.names import ScanNames, finished_scans, sidecar
from siam_bids.bids.scan import BidsName
from siam_bids.cli.app import parser
from siam_bids.errors import DatasetError, ImageError, LabelError, SiamError
from siam_bids.image.labels import LabelTable
from siam_bids.image.loading import LARGEST_VOXEL, SMALLEST_VOXEL, load_labels, load_volume
from siam_bids.synthesis.label_maps import source_table

kept = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
settings.register_profile("ci", max_examples=40, deadline=None, suppress_health_check=kept)
settings.register_profile("long", max_examples=5000, deadline=None, suppress_health_check=kept)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

labels = st.text("abcXYZ0189", min_size=1, max_size=8)


def outcome(read, given_to_it, error):
    """Return what `read` returns and None, or None and the error of that kind it raises."""
    try:
        return read(given_to_it), None
    except error as caught:
        return None, caught


@pytest.fixture(scope="module")
def whole() -> dict[str, bytes]:
    """One image in each format."""
    data = np.random.default_rng(0).integers(0, 99, (9, 10, 11), dtype=np.int16)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    both = nib.Nifti1Image(data, affine)
    both.set_qform(affine, 1)
    kinds = {"nifti2": nib.Nifti2Image(data, affine), "mgh": nib.MGHImage(data, affine)}
    return {name: image.to_bytes() for name, image in {"nifti1": both, **kinds}.items()}


@given(
    kind=st.sampled_from(["nifti1", "nifti2", "mgh"]),
    changes=st.lists(st.tuples(st.integers(0, 551), st.integers(0, 255)), min_size=1, max_size=12),
    length=st.none() | st.integers(0, 2400),
    packed=st.booleans(),
    broken=st.none() | st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)),
)
@example(kind="nifti1", changes=[(40, 0)], length=None, packed=False, broken=None)
@example(kind="nifti1", changes=[(70, 0), (72, 0)], length=None, packed=True, broken=None)
@example(  # an edge of infinite length
    kind="nifti1", changes=[(82, 128), (83, 127)], length=None, packed=False, broken=None
)
def test_a_damaged_image_is_a_volume_or_an_image_error(
    kind, changes, length, packed, broken, whole, tmp_path
):
    content = bytearray(whole[kind])
    for place, value in changes:
        content[place] = value
    content = bytes(content[:length])
    path = tmp_path / ("scan.nii.gz" if packed else "scan.nii")
    content = bytearray(gzip.compress(content) if packed else content)
    if broken and content:
        content[int(broken[0] * len(content))] ^= broken[1]
    path.write_bytes(content)
    for load in (load_volume, load_labels):
        loaded, error = outcome(load, path, ImageError)
        if loaded is None:
            assert str(error).startswith(path.name)
            assert "\n" not in str(error)
            continue
        grid = loaded.grid if load is load_volume else loaded[1]
        assert np.isfinite(grid.affine).all()
        assert min(grid.voxel_size) >= SMALLEST_VOXEL * 0.999
        assert max(grid.voxel_size) <= LARGEST_VOXEL * 1.001
        if load is load_volume:
            assert np.isfinite(loaded.data).all()


@given(
    subject=labels,
    session=st.just("") | labels,
    acquisition=st.none() | labels,
    run=st.none() | st.integers(1, 30),
    inversion=st.none() | st.integers(1, 2),
    transfer=st.none() | st.sampled_from(["on", "off"]),
    suffix=st.sampled_from(["T1w", "T2w", "FLAIR", "UNIT1", "MP2RAGE"]),
)
def test_output_names_are_read_back(
    subject, session, acquisition, run, inversion, transfer, suffix, tmp_path_factory
):
    root = tmp_path_factory.mktemp("names")
    stem = f"sub-{subject}"
    stem += f"_ses-{session}" if session else ""
    stem += f"_acq-{acquisition}" if acquisition else ""
    stem += f"_run-{run:02d}" if run else ""
    stem += f"_inv-{inversion}" if inversion else ""
    stem += f"_mt-{transfer}" if transfer else ""
    names = ScanNames(root, BidsName.parse(f"{stem}_{suffix}"))
    path = sidecar(names.segmentation)
    path.parent.mkdir(parents=True)
    path.write_text("{}", encoding="utf-8")
    assert list(finished_scans(root)) == [names]


@given(st.dictionaries(st.text(min_size=1, max_size=9), st.integers(-3, 300), max_size=9))
def test_a_label_list_is_a_table_or_a_label_error(names):
    try:
        table = LabelTable.from_names(names)
    except LabelError:
        return
    assert {label.name: label.index for label in table} == names
    assert next(iter(table)).index == 0


@given(
    content=st.binary(max_size=200) | st.text("\tvaluenmtisgr019\n |", max_size=200).map(str.encode)
)
@example(content=b"value\tname\ttissue\ttarget\n0\tx\tair\n")
@example(content=b"index\tname\n\tGM\n")
@example(content=b"\xff\xfe")
def test_a_label_file_is_a_source_table_or_an_error(content, tmp_path):
    path = tmp_path / "table.tsv"
    path.write_bytes(content)
    try:
        table = source_table(str(path))
    except LabelError:
        return
    assert len(table.values) == len(table.target) == len(table.tissue)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(content=json_values.map(json.dumps).map(str.encode) | st.binary(max_size=60))
def test_a_filter_file_is_read_or_refused(content, tmp_path):
    path = tmp_path / "filters.json"
    path.write_bytes(content)
    filters, error = outcome(read_filter_file, path, DatasetError)
    if filters is None:
        assert "\n" not in str(error)
        return
    assert all(isinstance(requested, dict) for requested in filters.values())


@given(st.lists(st.text(min_size=1, max_size=8), max_size=6))
def test_the_command_line_parses_or_exits_with_2(words):
    ends = (SystemExit, SiamError)
    arguments, end = outcome(parser().parse, ["in", "out", "participant", *words], ends)
    if arguments is None:
        assert getattr(end, "code", getattr(end, "exit_code", None)) in (0, 2)
        return
    assert arguments.analysis_level[0] == "participant"
