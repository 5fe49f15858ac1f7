import numpy as np
import pytest

from siam_bids.errors import LabelError
from siam_bids.labels import BRAIN_CLASSES, LabelTable, siam_labels


def test_siam_labels_are_those_of_version_0_3():
    names = [label.name for label in siam_labels()]
    assert names == [
        "background", "GM", "WM", "CSF", "CSFv", "cerGM", "Thal", "Pal", "Put", "Caud", "Accu",
        "Amyg", "Hippo", "Dura", "vascular", "Skull", "Head", "Anomalies",
    ]  # fmt: skip
    assert [label.index for label in siam_labels()] == list(range(18))
    assert siam_labels().indices(BRAIN_CLASSES) == list(range(1, 13))


def test_every_tissue_has_a_colour_of_its_own():
    colors = [label.color for label in siam_labels()]
    assert len(set(colors)) == 18
    assert all(len(color) == 7 and int(color[1:], 16) >= 0 for color in colors)


def test_an_unknown_value_raises_and_never_becomes_background():
    with pytest.raises(LabelError, match=r"map\.nii holds label values \[18, 99\]"):
        siam_labels().check(np.array([0, 3, 18, 99]), "map.nii")


def test_a_table_from_other_names_keeps_known_colours_and_makes_new_ones():
    table = LabelTable.from_names({"background": 0, "WM": 1, "left_eye": 2, "right_eye": 3})
    assert table.by_name["WM"].color == siam_labels().by_name["WM"].color
    assert table.by_name["left_eye"].long_name == "left eye"
    assert len({label.color for label in table}) == 4


@pytest.mark.parametrize("names", [{}, {"GM": 1}, {"background": 0, "GM": 1, "WM": 1}])
def test_a_table_needs_background_and_distinct_indices(names):
    with pytest.raises(LabelError, match="background 0"):
        LabelTable.from_names(names)
