import numpy as np
import pytest

from siam_bids.image.grid import Grid, Segmentation
from siam_bids.image.labels import LabelTable, siam_labels
from siam_bids.measures.volumes import SIDE_COLUMNS, dictionary, tissue_volumes


def test_volumes_sum_to_the_foreground_on_an_oblique_anisotropic_grid():
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0.0, -1.2, 0], [0.9, 0, 0.1], [0, 0, 3.0]])
    data = np.random.default_rng(0).integers(0, 18, (9, 8, 7)).astype(np.uint8)
    grid = Grid(data.shape, affine)
    table = tissue_volumes(Segmentation(data, grid, siam_labels())).set_index("name")
    tissues = table.drop("TIV")
    assert tissues["voxels"].sum() == (data > 0).sum()
    expected = (data > 0).sum() * 1.2 * 0.9 * 3.0 / 1000
    assert tissues["volume_mL"].sum() == pytest.approx(expected)
    inside = np.isin(data, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 17])
    assert table.loc["TIV", "voxels"] == inside.sum()
    assert table.loc["TIV", "volume_mL"] == pytest.approx(inside.sum() * 3.24 / 1000)


def test_absent_tissues_are_listed_as_zero():
    data = np.zeros((4, 4, 4), np.uint8)
    data[0] = 2
    grid = Grid(data.shape, np.diag([2.0, 2.0, 2.0, 1.0]))
    table = tissue_volumes(Segmentation(data, grid, siam_labels()))
    assert table["name"].tolist() == [*(label.name for label in siam_labels().foreground), "TIV"]
    assert table.set_index("name")["volume_mL"].to_dict() == pytest.approx(
        {**dict.fromkeys(table["name"], 0.0), "WM": 16 * 8 / 1000, "TIV": 16 * 8 / 1000}
    )
    assert table["index"].isna().tolist() == [False] * 17 + [True]
    assert str(table["index"].dtype) == "Int64"
    assert list(table) == ["index", "name", "voxels", "volume_mL", *SIDE_COLUMNS]


def test_what_is_summed_is_named_and_nothing_is_summed_that_is_not_known():
    data = np.array([1, 2, 3, 3], np.uint8).reshape(4, 1, 1)
    grid = Grid(data.shape, np.eye(4))
    known = LabelTable.from_names({"background": 0, "GM": 1, "CSF": 2, "Skull": 3})
    table = tissue_volumes(Segmentation(data, grid, known)).set_index("name")
    assert table.loc["TIV", "voxels"] == 2
    assert dictionary(known)["name"]["Description"] == (
        "Tissue, as in seg-siam_dseg.tsv. TIV is the total intracranial volume, the sum of GM, CSF."
    )
    odd = LabelTable.from_names({"background": 0, "GM": 1, "CSF": 2, "lobe": 3})
    table = tissue_volumes(Segmentation(data, grid, odd))
    assert table["name"].tolist() == ["GM", "CSF", "lobe"]
    assert dictionary(odd)["name"]["Description"] == "Tissue, as in seg-siam_dseg.tsv."


def test_labels_with_gaps_in_their_numbers():
    labels = LabelTable.from_names({"background": 0, "GM": 3, "WM": 40})
    data = np.array([0, 3, 3, 40], np.uint8).reshape(4, 1, 1)
    table = tissue_volumes(Segmentation(data, Grid(data.shape, np.eye(4)), labels))
    assert table["voxels"].tolist() == [2, 1]
