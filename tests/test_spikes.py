from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from siam_bids.image.grid import Grid, Volume
from siam_bids.image.loading import load_volume
from siam_bids.image.spikes import find_spikes, without_spikes
from siam_bids.models.registry import find_model, registry
from siam_bids.pipelines.notebook import segment


@pytest.mark.parametrize("seed", range(3))
def test_a_scan_without_hot_voxels_stays_as_it_is(head, seed):
    assert find_spikes(head.data) is None
    assert without_spikes(head) is head
    rng = np.random.default_rng(seed)
    noisy = np.hypot(*(rng.normal(part, 60, head.data.shape) for part in (head.data, 0)))
    for data in (noisy, noisy + 1000, noisy - 1000, (noisy > 300).astype(np.float32)):
        volume = Volume(data.astype(np.float32), head.grid)
        assert without_spikes(volume) is volume


@pytest.mark.parametrize("count", [1, 30, 400, 900])
@pytest.mark.parametrize("value", [6e3, 2.5e4, 1e6, -2.5e4, -1e9])
def test_hot_voxels_get_the_median_of_their_neighbours(head, count, value):
    rng = np.random.default_rng(0)
    data = head.data.copy()
    places = rng.choice(data.size, count, replace=False)
    data.reshape(-1)[places] = value * rng.uniform(0.8, 1.2, count)
    hot = np.zeros(data.shape, bool)
    hot.reshape(-1)[places] = True
    np.testing.assert_array_equal(find_spikes(data), hot)
    found = without_spikes(Volume(data, head.grid)).data
    np.testing.assert_array_equal(found[~hot], head.data[~hot])
    for i, j, k in np.argwhere(hot)[:50]:
        window = tuple(slice(max(0, n - 1), n + 2) for n in (i, j, k))
        assert found[i, j, k] == pytest.approx(np.median(head.data[window][~hot[window]]))


@pytest.mark.parametrize("factor", [3, 4])
def test_voxels_that_are_alone_in_being_bright_are_hot(head, factor):
    data = head.data.copy()
    rng = np.random.default_rng(0)
    places = rng.choice(data.size, 30, replace=False)
    data.reshape(-1)[places] = factor * head.data.max()
    hot = np.zeros(data.shape, bool)
    hot.reshape(-1)[places] = True
    np.testing.assert_array_equal(find_spikes(data), hot)
    data = head.data.copy()
    data[10:14, 10:14, 10:14] = factor * head.data.max()  # as a vessel with contrast agent
    assert find_spikes(data) is None


def test_a_clump_of_hot_voxels_gets_the_median_of_all_others(head):
    data = head.data.copy()
    data[10:15, 10:15, 10:15] = 1e6
    found = without_spikes(Volume(data, head.grid)).data
    assert found.max() == head.data.max()
    hot = data == 1e6
    assert found[12, 12, 12] == np.median(head.data[~hot])


def test_hot_voxels_are_named_when_a_scan_is_read(tmp_path, head, caplog):
    data = head.data.copy()
    data[20, 20, 20], data[30, 30, 30] = 25_000, -7_000
    nib.save(nib.Nifti1Image(data, head.grid.affine), tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(load_volume(tmp_path / "a.nii.gz").data, data)
    assert "a.nii.gz has 2 hot voxels, far beyond all others (up to 25000)." in caplog.text


def test_only_our_own_models_have_them_replaced(tmp_path, head, tiny_model):
    assert [name for name, entry in registry().items() if entry.get("repair_spikes")] == [
        "compact-2mm",
        "compact-1mm",
    ]
    for name in ("compact", "compact-2mm", "compact-1mm"):
        assert find_model(name).repair_spikes
        assert find_model(name).describe()["HotVoxelsReplaced"]
    assert not find_model(str(tiny_model)).repair_spikes
    chain = tmp_path / "chain.json"
    chain.write_text(f'{{"members": ["compact-2mm", "{tiny_model}"]}}')
    assert not find_model(str(chain)).repair_spikes


def test_a_model_of_ours_sees_the_scan_repaired_and_others_as_it_is(head, tiny_model, monkeypatch):
    data = head.data.copy()
    data[20, 20, 20] = 1e6
    hot = Volume(data, head.grid)

    def labels(volume):
        return segment(volume, model=str(tiny_model), device="cpu", threads=1).data

    taken = labels(hot)
    assert (taken != labels(head)).mean() > 0.01
    ours = replace(find_model(str(tiny_model)), repair_spikes=True)
    monkeypatch.setattr("siam_bids.pipelines.notebook.find_model", lambda *_, **__: ours)
    np.testing.assert_array_equal(labels(hot), labels(without_spikes(hot)))
    assert (labels(hot) == labels(head)).mean() > 0.999


def test_a_grid_is_kept(head):
    data = head.data.copy()
    data[0, 0, 0] = 1e6
    volume = Volume(data, Grid(head.grid.shape, head.grid.affine))
    assert without_spikes(volume).grid is volume.grid
