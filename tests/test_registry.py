import json

import pytest
import torch
from conftest import write_model, write_raw

from siam_bids import cli
from siam_bids.config import Inference
from siam_bids.errors import ModelError, UsageError
from siam_bids.image.labels import read_siam_table, siam_labels
from siam_bids.inference.cascade import Cascade, CascadeSegmenter
from siam_bids.models.labels import LABELS, read_labels
from siam_bids.models.registry import find_model
from siam_bids.nnunet.model import NnunetModel
from siam_bids.reports.methods_text import methods_text, model_line
from siam_bids.support.package_data import resource


def test_the_default_model_is_ours_and_never_passes_for_siam():
    model = find_model("compact")
    assert model.title == "siam-bids compact"
    assert "not the SIAM model" in model.citation
    assert model_line(model.describe()) == (
        f"siam-bids compact {model.version} (sha256 {model.sha256[:12]})"
    )


def test_the_default_model_is_the_mean_of_two():
    model = find_model("compact")
    described = model.describe()
    assert [each["Name"] for each in described["Members"]] == ["compact-2mm", "compact-1mm"]
    mirrored = [each.get("MirroredByDefault", False) for each in described["Members"]]
    assert mirrored == [True, True]
    assert described["Focus"]["Tissues"] == ["GM", "cerGM"]
    assert model.licence == "Apache-2.0"
    with pytest.raises(UsageError, match="Give one: --model compact-2mm or --model compact-1mm"):
        CascadeSegmenter(Cascade.open(model), torch.device("cpu"), Inference(interpolate=False))
    networks = "; ".join(
        f"{each['Title']}, SHA-256 {each['SHA256'][:12]}" for each in described["Members"]
    )
    assert f"averaged over the 2 networks of siam-bids compact ({networks})" in methods_text(
        [described]
    )
    assert "then refined with the scan's intensities" in methods_text([described])
    assert "averaged over" not in methods_text([find_model("compact-2mm").describe()])


def test_the_shipped_models_name_siams_labels_and_fit_in_16_mib():
    root = resource("data", "models")
    for folder in sorted(root.glob("*/")):
        model = NnunetModel.open(folder)
        assert [label.name for label in model.labels] == [label.name for label in siam_labels()]
    assert sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) < 16 * 2**20
    assert (root / "README.md").read_text(encoding="utf-8").startswith("# Model card")


def test_a_folder_is_a_model_and_its_checksum_follows_the_weights(tmp_path):
    folder = write_model(tmp_path / "mine", folds=2)
    model = find_model(str(folder))
    assert (model.name, model.version) == ("mine", "unversioned")
    assert not model.precisions  # nobody has measured any
    assert find_model(str(folder)).sha256 == model.sha256
    with (folder / "fold_1" / "checkpoint_final.pth").open("ab") as stream:
        stream.write(b"x")
    assert find_model(str(folder)).sha256 != model.sha256


def test_unknown_models_and_incomplete_folders(tmp_path):
    with pytest.raises(ModelError, match=r"There is no model 'siam-9'\. Known: compact"):
        find_model("siam-9")
    (tmp_path / "plans.json").write_text(json.dumps({}))
    with pytest.raises(ModelError, match=r"dataset\.json is missing"):
        find_model(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "checksum"),
    [
        ("compact", "f70d51cfe783b520033ff402b6feaa3c920e03e830f6ff7fecee0847159ce8fc"),
        ("compact-2mm", "30ae089dc386dd4b83409bc539df46464e0b456fdb0ea5e6214ad7b4018236cf"),
        ("compact-1mm", "20a62504543d1600f084174682675c582952339da1bf6fa56798ac1a49adf265"),
    ],
)
def test_no_change_of_the_code_changes_the_checksum_of_a_shipped_model(name, checksum):
    """Else every study would be segmented anew. A new model changes its line here."""
    assert find_model(name).sha256 == checksum


def dataset(tmp_path, names, rows=""):
    """A folder with these labels and this table beside them, read."""
    if rows:
        (tmp_path / LABELS).write_text(rows, encoding="utf-8")
    return read_labels(tmp_path, {"labels": names})


class TestLabelsOfAModel:
    """dataset.json names the classes; nothing in it becomes a path, a column or a wrong tissue."""

    def test_two_names_of_one_value_are_one_label_as_in_siam_v0_1(self, tmp_path):
        names = {label.name: label.index for label in read_siam_table("siam_v0.1.tsv")}
        del names["Muscle_all+Muscle_fat"]
        table = dataset(tmp_path, {**names, "Muscle_fat": 28, "Muscle_all": 28})
        assert table == read_siam_table("siam_v0.1.tsv")
        assert not table.limits

    def test_two_names_share_a_role_or_have_none(self, tmp_path):
        table = dataset(
            tmp_path, {"background": 0, "GM": 1, "CSFv": 2, "CSF": 2, "Pal": 3, "Put": 3}
        )
        assert [label.name for label in table] == ["background", "GM", "CSF+CSFv", "Pal+Put"]
        assert [label.role for label in table.foreground] == ["cortex", "", "subcortical"]

    def test_ignore_is_no_class_and_the_highest_value(self, tmp_path):
        table = dataset(tmp_path, {"background": 0, "GM": 1, "WM": 2, "ignore": 3})
        assert [label.name for label in table] == ["background", "GM", "WM"]
        with pytest.raises(ModelError, match=r"gives ignore the value 1\. It must be the highest"):
            dataset(tmp_path, {"background": 0, "ignore": 1, "GM": 2})

    @pytest.mark.parametrize(
        ("names", "said"),
        [
            ({"background": 0, "GM": 2, "WM": 4}, "has the labels 0, 2, 4. nnU-Net's labels run"),
            ({"background": 0, "GM": 257}, "has the labels 0, 257"),
            ({"GM": 1, "WM": 2}, "has the labels 1, 2"),
            ({f"a{n}": n for n in range(257)}, "0, 1, 2, 3, 4, 5, 6, 7, 8, ..."),
            ({"background": 0, "GM": -1}, "gives the label 'GM' the value -1. It must be a whole"),
            ({"background": 0, "GM": True}, "the value True"),
            ({"background": 0, "GM": 1.0}, "the value 1.0"),
            ({"background": 0, "GM": "1"}, "the value '1'"),
            ({"background": 0, "GM": None}, "the value None"),
            ({"background": 0, "GM": 10**400}, r"has the labels 0, 1000"),
            ({"0": "background", "1": "GM"}, "the value 'background'"),
            ({"background": 0, "whole": [1, 2], "core": 2}, "has overlapping regions .'whole'"),
            ({}, "has no labels"),
            (["background", "GM"], "has no labels"),
            (None, "has no labels"),
        ],
    )  # fmt: skip
    def test_values_that_are_no_class_numbers_are_refused(self, tmp_path, names, said):
        with pytest.raises(ModelError, match=said) as raised:
            dataset(tmp_path, names)
        assert len(str(raised.value).splitlines()) == 1

    @pytest.mark.parametrize(
        "name",
        ["x/../../../evil", "..", "a\tb", "a\nb", "", "left eye", "é", "a" * 65, "a\x00b", "<b>",
         "a.b", "\u202eMG", "C:", '"'],
    )  # fmt: skip
    def test_names_that_are_no_part_of_a_file_name_are_refused(self, tmp_path, name):
        with pytest.raises(ModelError, match=r"names a label '.*Names are up to 64 of") as raised:
            dataset(tmp_path, {"background": 0, name: 1})
        assert str(raised.value).isprintable()

    @pytest.mark.parametrize(
        ("one", "other"), [("GM", "G_M"), ("G-M", "GM"), ("GM", "gm"), ("a_b", "ab_")]
    )
    def test_names_that_are_one_name_in_files_are_refused(self, tmp_path, one, other):
        with pytest.raises(ModelError, match=f"{other}, which is written as .*, as {one} is"):
            dataset(tmp_path, {"background": 0, one: 1, other: 2})

    @pytest.mark.parametrize("name", ["TIV", "icv", "scan", "contrast", "rating"])
    def test_names_of_our_columns_are_refused(self, tmp_path, name):
        with pytest.raises(ModelError, match=f"names a label {name}, as a column of our tables"):
            dataset(tmp_path, {"background": 0, name: 1})

    def test_genuine_ignore_and_regions(self, genuine):
        model = NnunetModel.open(genuine / "nnunet-2.5.1_numpy-2.4.6_ignore")
        assert "ignore" in model.dataset["labels"]
        names = [label.name for label in model.labels]
        assert names == ["background", "dark", "light", "white"]
        with pytest.raises(ModelError, match=r"has overlapping regions .* are not supported"):
            NnunetModel.open(genuine / "nnunet-2.8.1_numpy-2.4.6_regions")

    def test_a_label_that_is_a_path_writes_nothing_anywhere(self, tmp_path, head, capsys):
        model = write_model(tmp_path / "evil", names=["background", "x/../../../evil"])
        raw = write_raw(tmp_path / "raw", head, "sub-01_T1w")
        before = sorted(tmp_path.rglob("*"))
        words = [str(raw), str(tmp_path / "out"), "participant", "--model", str(model)]
        for more in (["--write-probseg"], ["--dry-run"], []):
            assert cli.main([*words, *more]) == 6
            assert "names a label 'x/../../../evil'. Names are" in capsys.readouterr().err
        assert sorted(tmp_path.rglob("*")) == before

    def test_a_table_beside_the_model_gives_names_words_and_roles(self, tmp_path):
        rows = (
            "index\tname\tlong_name\tcolor\tmapping\trole\n"
            "1\tlobe\tFrontal lobe\t#0a0B0c\t8\tcortex\n"
            "2\tn/a\t\tn/a\t\tcsf\n3\t\t\t\t\tventricles\n"
        )
        names = {"background": 0, "frontal lobe": 1, "water": 2, "inner": 3}
        table = dataset(tmp_path, names, rows)
        lobe, water, _ = table.foreground
        assert (lobe.name, lobe.long_name, lobe.mapping) == ("lobe", "Frontal lobe", 8)
        assert (lobe.role, lobe.rgb) == ("cortex", (10, 11, 12))
        assert (water.name, water.long_name, water.mapping) == ("water", "water", None)
        assert [label.name for label in table.intracranial] == ["lobe", "water", "inner"]
        assert [label.name for label in table.brain] == ["lobe", "inner"]

    @pytest.mark.parametrize(
        ("rows", "said"),
        [
            ("index\trole\n1\tbrainy\n", "role of label 1 is not one of background, cortex"),
            ("index\tcolor\n1\tred\n", "color of label 1 is not #rrggbb"),
            ("index\tmapping\n1\t12\n", "mapping of label 1 is not a number from 0 to 11"),
            ('index\tlong_name\n1\ta "b"\n', "long_name of label 1 is not one line"),
            ("index\trole\n9\tcsf\n", "has a row for 9, which is not in dataset.json"),
            ("index\trole\n1\tcsf\n1\tcsf\n", "two rows for one index"),
            ("role\ncsf\n", "cannot be read as a table"),
            ("index\tname\n1\t../x\n", "names a label '../x'"),
            ("index\tname\n1\tbackground\n", "background, which is written as background"),
        ],
    )
    def test_an_odd_table_beside_the_model_is_refused(self, tmp_path, rows, said):
        with pytest.raises(ModelError, match=said):
            dataset(tmp_path, {"background": 0, "GM": 1}, rows)

    def test_the_table_is_part_of_the_models_checksum(self, tmp_path):
        folder = write_model(tmp_path / "m", names=["background", "lobe"])
        before = find_model(str(folder)).sha256
        (folder / LABELS).write_text("index\trole\n1\tcortex\n")
        assert find_model(str(folder)).sha256 != before
        assert NnunetModel.open(folder).labels.by_name["lobe"].role == "cortex"
