import shutil
import tempfile
import weakref

import pytest
import torch
from nnunetv2.inference.sliding_window_prediction import compute_gaussian

from siam_bids.inference.sliding_window import Tiling, predict_tiled, tile_starts, tile_weight

TILING = Tiling((16, 16, 16))


@pytest.mark.parametrize(
    ("length", "tile", "starts"),
    [(110, 64, [0, 23, 46]), (64, 64, [0]), (65, 64, [0, 1]), (128, 64, [0, 32, 64]), (5, 8, [0])],
)
def test_tiles_are_spread_evenly_and_reach_both_ends(length, tile, starts):
    assert tile_starts(length, tile) == starts


@pytest.mark.parametrize("tile", [(16, 24, 8), (64, 80, 48), (96, 96, 96)])
def test_the_tile_weight_is_that_of_nnunet(tile):
    """It was a float16 step off in 36 voxels of a tile of 64 x 80 x 48."""
    expected = compute_gaussian(tile, 1 / 8, 10, torch.float16, torch.device("cpu"))
    assert torch.equal(tile_weight(tile), expected.float())


def test_the_tile_weight_peaks_in_the_centre_and_is_never_zero():
    weight = tile_weight((16, 24, 8))
    assert weight.shape == (16, 24, 8)
    assert weight.max() == weight[8, 12, 4] == 10
    assert weight.min() > 0


class Pointwise(torch.nn.Module):
    """Two classes whose logits depend on the voxel alone: any tiling must give the same."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def forward(self, image):
        return torch.cat([image * self.factor, -image], 1)


class Watched(Pointwise):
    """Counts, at each call, the earlier answers that somebody still holds."""

    def __init__(self) -> None:
        super().__init__(1.0)
        self.answers, self.held = [], []

    def forward(self, image):
        self.held.append(sum(answer() is not None for answer in self.answers))
        answer = super().forward(image).numpy().copy()
        self.answers.append(weakref.ref(answer))
        return torch.from_numpy(answer)


def test_a_tiles_logits_are_gone_when_the_next_comes():
    network = Watched()
    predict_tiled([network], torch.ones((1, 16, 16, 40)), TILING, classes=2)
    assert network.held == [0] * 4


def test_tiling_a_pointwise_network_changes_nothing_and_folds_are_averaged():
    image = torch.randn((1, 21, 17, 30), generator=torch.Generator().manual_seed(0))
    seen = []
    logits = predict_tiled(
        [Pointwise(1.0), Pointwise(3.0)],
        image,
        TILING,
        classes=2,
        progress=seen.append,
    )
    assert logits.dtype == torch.float16
    inner = (slice(3, -3),) * 3  # in the corners float16 tile weights hardly differ from 0
    found, expected = logits[(slice(None), *inner)].float(), image[(0, *inner)]
    torch.testing.assert_close(found[0], 2 * expected, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(found[1], -expected, atol=1e-2, rtol=1e-2)
    assert seen[-1] == 2.0
    assert seen == sorted(seen)


def test_sums_on_disk_are_those_in_memory():
    image = torch.randn((1, 21, 17, 30), generator=torch.Generator().manual_seed(0))

    def logits(on_disk):
        folds = [Pointwise(1.0), Pointwise(3.0)]
        return predict_tiled(folds, image, TILING, classes=2, on_disk=on_disk)

    assert torch.equal(logits(True), logits(False))


def test_a_full_disk_is_an_error_not_a_crash(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    image = torch.zeros((1, 16, 16, 16))
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(OSError, match=r"No space left|File too large"):
        predict_tiled([Pointwise(1.0)], image, TILING, classes=free // 4096, on_disk=True)
    assert not list(tmp_path.iterdir())
