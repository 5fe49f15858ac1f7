import shutil
import tempfile
import weakref

import numpy as np
import pytest
import torch
from skimage.transform import resize

from siam_bids.segmenter import (
    Certainty,
    labels_from_logits,
    predict_tiled,
    probability_from_logits,
    tile_starts,
    tile_weight,
)


@pytest.mark.parametrize(
    ("length", "tile", "starts"),
    [(110, 64, [0, 23, 46]), (64, 64, [0]), (65, 64, [0, 1]), (128, 64, [0, 32, 64]), (5, 8, [0])],
)
def test_tiles_are_spread_evenly_and_reach_both_ends(length, tile, starts):
    assert tile_starts(length, tile) == starts


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
    predict_tiled([network], torch.ones((1, 16, 16, 40)), tile=(16,) * 3, classes=2)
    assert network.held == [0] * 4


def test_tiling_a_pointwise_network_changes_nothing_and_folds_are_averaged():
    image = torch.randn((1, 21, 17, 30), generator=torch.Generator().manual_seed(0))
    seen = []
    logits = predict_tiled(
        [Pointwise(1.0), Pointwise(3.0)],
        image,
        tile=(16, 16, 16),
        classes=2,
        fold_count=2,
        progress=seen.append,
    )
    assert logits.dtype == torch.float16
    inner = (slice(3, -3),) * 3  # in the corners float16 tile weights hardly differ from 0
    found, expected = logits[(slice(None), *inner)].float(), image[(0, *inner)]
    torch.testing.assert_close(found[0], 2 * expected, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(found[1], -expected, atol=1e-2, rtol=1e-2)
    assert seen[-1] == 1.0
    assert seen == sorted(seen)


@pytest.mark.parametrize("shape", [(20, 22, 14), (7, 9, 31), (10, 11, 12), (5, 5, 5)])
def test_labels_are_those_of_linearly_resized_logits(shape):
    logits = np.random.default_rng(1).normal(size=(4, 10, 11, 12)).astype(np.float32)
    normaliser = np.empty(shape, np.float32)
    labels = labels_from_logits(torch.from_numpy(logits), shape, normaliser=normaliser)
    chance = probability_from_logits(torch.from_numpy(logits), 2, normaliser)
    sized = [resize(one, shape, order=1, mode="edge", anti_aliasing=False) for one in logits]
    sized = np.float16(sized).astype(np.float64)
    expected = np.argmax(sized, axis=0)
    assert labels.dtype == np.uint8
    assert (labels == expected).mean() > 0.999
    softmax = np.exp(sized[2]) / np.exp(sized).sum(0)
    np.testing.assert_allclose(chance, softmax, atol=1e-3)


def test_certainty_is_the_mean_softmax_of_the_chosen_class_and_the_normalised_entropy():
    logits = torch.from_numpy(np.random.default_rng(2).normal(size=(4, 6, 7, 8))).half()
    certainty = Certainty(4)
    labels = labels_from_logits(logits, (6, 7, 8), certainty=certainty)
    softmax = logits.double().softmax(0).numpy()
    for index, confidence in certainty.confidence().items():
        assert confidence == pytest.approx(softmax[index][labels == index].mean(), abs=1e-6)
    assert set(certainty.confidence()) == {1, 2, 3}
    entropy = -(softmax * np.log(softmax)).sum(0)[labels > 0].mean() / np.log(4)
    assert certainty.entropy() == pytest.approx(entropy, abs=1e-6)


def test_certainty_of_uniform_sharp_and_empty_answers():
    for scale, sure in ((0.0, 0.25), (100.0, 1.0)):
        logits = torch.zeros((4, 3, 3))
        logits[2] = scale
        certainty = Certainty(4)
        certainty.add(logits, torch.full((3, 3), 2, dtype=torch.uint8))
        assert certainty.confidence() == {2: pytest.approx(sure)}
        assert certainty.entropy() == pytest.approx(1.0 if scale == 0 else 0.0, abs=1e-5)
    empty = Certainty(4)
    empty.add(torch.zeros((4, 3, 3)), torch.zeros((3, 3), dtype=torch.uint8))
    assert (empty.confidence(), empty.entropy()) == ({}, None)


def test_sums_on_disk_are_those_in_memory():
    image = torch.randn((1, 21, 17, 30), generator=torch.Generator().manual_seed(0))

    def logits(on_disk):
        folds = [Pointwise(1.0), Pointwise(3.0)]
        return predict_tiled(
            folds, image, tile=(16, 16, 16), classes=2, fold_count=2, on_disk=on_disk
        )

    assert torch.equal(logits(True), logits(False))


def test_a_full_disk_is_an_error_not_a_crash(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    image = torch.zeros((1, 16, 16, 16))
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(OSError, match=r"No space left|File too large"):
        predict_tiled([Pointwise(1.0)], image, tile=(16,) * 3, classes=free // 4096, on_disk=True)
    assert not list(tmp_path.iterdir())
