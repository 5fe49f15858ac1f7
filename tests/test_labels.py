import colorsys
from dataclasses import replace

import numpy as np
import pytest

from siam_bids.errors import LabelError
from siam_bids.image.labels import BRAIN_CLASSES, LabelTable, siam_labels
from siam_bids.support.tsv import read_rows


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


def test_a_known_name_brings_all_of_its_row_and_an_unknown_one_is_no_brain():
    table = LabelTable.from_names({"background": 0, "CSFv": 1, "eye": 2})
    assert table.by_name["CSFv"] == replace(siam_labels().by_name["CSFv"], index=1)
    assert table.by_name["eye"].mapping == 6  # non-brain, of the BIDS common labels


def test_new_colours_are_golden_ratio_steps_around_the_hue_circle():
    table = LabelTable.from_names({"background": 0, **{f"part{n}": n for n in range(1, 9)}})
    for label in table.foreground:
        hue, saturation, value = colorsys.rgb_to_hsv(*(part / 255 for part in label.rgb))
        turn = abs(hue - label.index * (5**0.5 - 1) / 2) % 1
        assert min(turn, 1 - turn) < 0.005
        assert (saturation, value) == (
            pytest.approx(0.55, abs=0.004),
            pytest.approx(0.9, abs=0.002),
        )


def test_an_error_lists_five_unknown_values_at_most():
    with pytest.raises(LabelError, match=r"values \[20, 21, 22, 23, 24\] that"):
        siam_labels().check(np.arange(20, 30), "map.nii")


def test_rows_are_separated_by_tabs_and_utf_8(tmp_path):
    path = tmp_path / "table.tsv"
    path.write_bytes("index\tname\n1\tcortex, left\n2\tčelo".encode())
    assert read_rows(path) == [
        {"index": "1", "name": "cortex, left"}, {"index": "2", "name": "čelo"},
    ]  # fmt: skip


@pytest.mark.parametrize("names", [{}, {"GM": 1}, {"background": 0, "GM": 1, "WM": 1}])
def test_a_table_needs_background_and_distinct_indices(names):
    with pytest.raises(LabelError, match="background 0"):
        LabelTable.from_names(names)
