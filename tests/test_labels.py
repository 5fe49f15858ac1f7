import colorsys
from dataclasses import replace

import numpy as np
import pytest

from siam_bids.errors import LabelError
from siam_bids.image.labels import (
    HEALTHY,
    ROLES,
    SIAM_TABLES,
    LabelTable,
    known_labels,
    read_siam_table,
    siam_labels,
)
from siam_bids.support.tsv import read_rows


def test_siam_labels_are_those_of_version_0_3():
    names = [label.name for label in siam_labels()]
    assert names == [
        "background", "GM", "WM", "CSF", "CSFv", "cerGM", "Thal", "Pal", "Put", "Caud", "Accu",
        "Amyg", "Hippo", "Dura", "vascular", "Skull", "Head", "Anomalies",
    ]  # fmt: skip
    assert [label.index for label in siam_labels()] == list(range(18))
    assert [label.index for label in siam_labels().of_role(*HEALTHY)] == list(range(1, 13))
    inside = [*range(1, 13), 17]
    assert [label.index for label in siam_labels().intracranial] == inside
    assert [label.index for label in siam_labels().brain] == [n for n in inside if n != 3]


def test_siam_v0_1_names_brain_stem_cerebellum_and_vessels_apart():
    table = read_siam_table("siam_v0.1.tsv")
    assert len(table) == 40
    assert table.by_name["Muscle_all+Muscle_fat"].index == 28
    brain = {label.name for label in table.brain}
    assert {"Brainsteam", "Wmcereb", "CSFv", "Hippo", "brain_optical_track"} <= brain
    assert not {"CSF", "Dura", "Vas_brain", "nerve_II_optic", "Eye_ball"} & brain
    assert {label.name for label in table.intracranial} - brain == {"CSF"}


def test_the_newer_table_has_a_brain_with_ventricles_cerebellum_and_striatum():
    names = [label.name for label in read_siam_table("siam_v4.tsv")]
    assert names == [
        "background", "GM", "WM", "CSF", "Ventricles", "Cereb", "Thal", "Striatum", "RU", "Dura",
        "vascular", "Skull", "Head", "Anomalies",
    ]  # fmt: skip
    for some in (names, names[:-1]):
        table = LabelTable.from_names({name: index for index, name in enumerate(some)})
        brain = {"GM", "WM", "Ventricles", "Cereb", "Thal", "Striatum", "RU", "Anomalies"}
        assert {label.name for label in table.brain} == brain & {*some}
        assert table.by_name["WM"].long_name == "White matter"
        assert not table.limits


def test_a_name_has_one_role_in_all_tables_of_siam_and_known_words():
    roles = {}
    for file in SIAM_TABLES:
        table = read_siam_table(file)
        assert not table.limits
        assert len({label.color for label in table}) == len(table)
        for label in table:
            assert label.role in ROLES
            assert roles.setdefault(label.name, label.role) == label.role
    assert known_labels(["Brainsteam"])["WM"].long_name == "Cerebral white matter"
    assert known_labels(["GM"])["WM"].long_name == "White matter, brain stem included"


@pytest.mark.parametrize(
    ("names", "intracranial", "brain", "why"),
    [
        (["GM", "WM", "CSF", "CSFv"], 4, 3, ""),
        (["GM", "WM", "CSF", "lobe"], 0, 0, (
         "No total intracranial volume (TIV) and no brain mask: "
         "the role of lobe is unknown.")),
        (["GM", "WM", "CSFv"], 0, 3, ("No total intracranial volume (TIV): "
         "no label is cerebrospinal fluid.")),
        (["GM", "WM", "CSF"], 3, 0, ("No brain mask: "
         "no label separates the ventricles from other cerebrospinal fluid.")),
        (["Skull", "Head"], 0, 0, ("No total intracranial volume (TIV) and no brain mask: "
         "no label is brain tissue.")),
    ],
)  # fmt: skip
def test_no_number_is_made_of_a_guess(names, intracranial, brain, why):
    table = LabelTable.from_names({name: n for n, name in enumerate(["background", *names])})
    assert (len(table.intracranial), len(table.brain)) == (intracranial, brain)
    assert table.limits.startswith(why)
    assert bool(table.limits) == bool(why)


def test_finer_labels_take_the_role_of_what_they_refine():
    outer = LabelTable.from_names({"background": 0, "GM": 1, "Thal": 2, "Caud": 3, "CSF": 4})
    finer = LabelTable.from_names({"background": 0, "core": 1, "shell": 2})
    one = outer.refined(["GM"], finer)
    assert [one.by_name[name].role for name in ("core", "shell")] == ["cortex"] * 2
    two = outer.refined(["Thal", "Caud"], finer)
    assert {label.name: label.index for label in two} == {
        "background": 0, "GM": 1, "CSF": 4, "core": 5, "shell": 6,
    }  # fmt: skip
    core = two.by_name["core"]
    assert (core.parent, core.role, core.mapping) == ("Thal, Caud", "subcortical", 9)
    assert two.indices(["Thal"]) == []
    assert two.indices(["Thal", "Caud"]) == [5, 6]
    mixed = outer.refined(["GM", "Thal"], finer)
    assert (mixed.by_name["core"].role, mixed.by_name["core"].mapping) == ("brain", None)
    unknown = outer.refined(["GM", "CSF"], finer)
    assert unknown.without_role == ("core", "shell")


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
    assert (table.by_name["eye"].mapping, table.by_name["eye"].role) == (None, "")


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
