"""The estimate of time and memory: how it grows, and that slabs, folds and disks count."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import write_model

from siam_bids.config import Inference
from siam_bids.image.grid import Grid
from siam_bids.inference.cost import Load, estimate, load_of
from siam_bids.nnunet.model import NnunetModel
from siam_bids.nnunet.preprocessing import seen_shape
from siam_bids.support.package_data import resource

CPU = torch.device("cpu")
SIAM = Load(
    tile=(256, 256, 192), classes=18, folds=5, parameters=141_498_028, width=32, residual=True,
    precision="float32", lean=True, on_cpu=True,
)  # fmt: skip
HEAD = (181 * 217 * 181, (256, 289, 241))  # Colin27 at 0.75 mm


def test_what_each_choice_saves():
    maps = 32 * 256 * 256 * 192
    whole = SIAM.memory(*HEAD)
    sums = 2 * 18 * np.prod(HEAD[1])
    weights = 4 * SIAM.parameters
    assert whole - replace(SIAM, folds=1).memory(*HEAD) == pytest.approx(sums + weights)
    assert whole - replace(SIAM, low_memory=True).memory(*HEAD) == pytest.approx(2 * sums)
    halved = replace(SIAM, precision="bfloat16").network_memory()
    assert SIAM.network_memory() - halved > 2 * maps  # half of two maps of four bytes
    gpu = replace(SIAM, precision="float16", lean=False, on_cpu=False)
    assert whole - gpu.memory(*HEAD) > 2 * 4 * maps
    assert gpu.network_memory() < 12e9
    assert replace(gpu, lean=True).network_memory() < 8e9


def test_time_counts_tiles_and_folds():
    def seconds(load, shape):
        return load.seconds(0, shape, multiply_adds=4.32e12, cpus=1)

    one = seconds(replace(SIAM, folds=1), SIAM.tile)
    none = seconds(replace(SIAM, folds=0), SIAM.tile)
    assert seconds(SIAM, HEAD[1]) - none == pytest.approx(5 * 4 * (one - none))


def test_multiply_adds_of_a_convolution_are_voxels_times_weights(tmp_path):
    model = NnunetModel.open(write_model(tmp_path / "m", patch=16, features=(4, 8)))
    full, half = 16**3, 8**3
    encoder = full * 27 * 4 + half * 27 * (4 * 8 + 8 * 8)
    decoder = full * 8 * 4 + full * 27 * 8 * 4 + full * 4 * 18
    assert model.multiply_adds == encoder + decoder


def test_a_scan_is_seen_in_ras_order_at_the_networks_voxel_size_and_at_least_a_tile(tiny_model):
    model = NnunetModel.open(tiny_model)  # 4 mm, tiles of 32
    affine = np.eye(4)[[1, 2, 0, 3]]  # i runs to superior, j to right, k to anterior
    grid = Grid((200, 160, 40), affine)
    shape = seen_shape(model, grid, Inference())
    assert shape == (50, 32, 40)
    assert seen_shape(model, grid, Inference(scale=2)) == (100, 32, 80)


def test_the_shipped_model_is_sized_by_the_largest_scan():
    model = NnunetModel.open(resource("data", "models", "compact-2mm"))
    small, large = (Grid((n, n, n), np.eye(4)) for n in (128, 256))

    def size(*grids):
        return estimate(model, grids, CPU, Inference(), cpus=2)

    assert size(small, large) == size(large) == size()
    assert size(small).memory < size(large).memory
    assert load_of(model, CPU, Inference(precision="float32")).residual is False
