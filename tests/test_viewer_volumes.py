"""Coarse copies for the viewer: where the blocks lie, and when they are made."""

from dataclasses import replace

import nibabel as nib
import numpy as np
from conftest import write_dataset

from siam_bids.bids.names import finished_scans
from siam_bids.bids.results import read_result
from siam_bids.config import Query, RunConfig
from siam_bids.image.grid import Grid, Segmentation, Volume
from siam_bids.image.labels import siam_labels
from siam_bids.pipelines.participant import rebuild_reports, run_participant
from siam_bids.reports.viewer_volumes import shrink


def test_blocks_keep_their_place_and_the_commonest_label():
    rng = np.random.default_rng(0)
    affine = np.array([[0, -0.9, 0.1, 7], [1, 0, 0, -3], [0, 0.1, 5, 11], [0, 0, 0, 1]])
    grid = Grid((41, 30, 6), affine)
    labels = np.zeros(grid.shape, np.uint8)
    labels[10:20, 10:20] = 2
    labels[10:12, 10:12, 3] = [[1, 1], [1, 2]]
    volume = Volume(rng.random(grid.shape, dtype=np.float32), grid)
    image, coarse = shrink(volume, Segmentation(labels, grid, siam_labels()))
    assert image.shape == coarse.data.shape == (20, 15, 6)
    assert image.dtype == coarse.data.dtype == np.uint8
    assert coarse.data[5, 5, 3] == 1
    assert (coarse.data == 2).sum() == 5 * 5 * 6 - 1
    corner = [[0, 0, 0, 1], [1, 0, 0, 1], [0, 1, 0, 1], [1, 1, 0, 1]]
    np.testing.assert_allclose(
        coarse.grid.affine @ [0, 0, 0, 1], (affine @ np.transpose(corner)).mean(axis=1)
    )
    assert abs(image.mean() / 255 - 0.5 / 1.1) < 0.02  # white is a tenth above what is there


def test_viewers_are_made_from_what_is_there_and_go_with_a_new_result(
    tmp_path, head, tiny_model, caplog
):
    config = RunConfig(
        bids_dir=write_dataset(tmp_path / "bids", head), output_dir=tmp_path / "out",
        level="participant", model=str(tiny_model), device="cpu", threads=1,
        query=Query(participants=("01",)),
    )  # fmt: skip
    run_participant(config)
    (names,) = finished_scans(config.output_dir)
    assert "niivue" not in names.report.read_text(encoding="utf-8")
    rebuild_reports(replace(config, viewer=True))
    assert "niivue" in names.report.read_text(encoding="utf-8")
    fine, coarse = (nib.load(path) for path in (names.segmentation, names.preview("labels")))
    assert set(np.unique(coarse.dataobj)) <= set(np.unique(fine.dataobj))
    assert names.preview("image").stat().st_size < 1_000_000
    run_participant(replace(config, overwrite=True))
    assert not names.preview("image").exists()
    assert "niivue" not in names.report.read_text(encoding="utf-8")
    (config.bids_dir / read_result(names).source).unlink()
    rebuild_reports(replace(config, viewer=True))
    assert "sub-01_T1w has no viewer: " in caplog.text
