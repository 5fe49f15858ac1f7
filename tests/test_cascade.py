"""Models that refine labels of another one: tables, labels, probabilities, on trained networks."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import write_model
from scipy import ndimage
from stock import stock_labels_of_channels
from trained_models import CPU, opened, predicted, refined, scene, trained

import siam_bids
from siam_bids.config import Inference
from siam_bids.errors import ModelError
from siam_bids.image.grid import Reorientation
from siam_bids.image.labels import LabelTable
from siam_bids.image.loading import load_volume
from siam_bids.inference.cascade import MARGIN, Cascade, box_around
from siam_bids.measures.volumes import tissue_volumes
from siam_bids.models.registry import find_model, registry
from siam_bids.nnunet.model import NnunetModel


def test_the_region_is_relabelled_and_all_else_is_left_alone(cascade_file):
    head = scene()
    first = siam_bids.segment(head, model=str(cascade_file.parent / "first"))
    found = siam_bids.segment(head, model=str(cascade_file))
    region = first.data == 1
    assert 0.9 < region.sum() / (head.data > 1).sum() < 1.1
    names = {label.name: label.index for label in found.labels}
    assert names == {"background": 0, "CSF": 2, "Dim": 3, "Bright": 4}
    np.testing.assert_array_equal(found.data > 0, region)  # background cannot win inside
    truth = np.where(head.data > 2, 4, 3)
    assert (found.data == truth)[region].mean() > 0.9
    volumes = tissue_volumes(found).set_index("name")["volume_mL"]
    assert volumes["TIV"] == pytest.approx(region.sum() * 0.064)  # finer labels count as GM
    assert volumes["Dim"] + volumes["Bright"] == pytest.approx(volumes["TIV"])


def test_probabilities_sum_to_one_and_win_where_the_label_is(cascade_file):
    prediction = predicted(cascade_file, scene(), probabilities=["background", "Dim", "Bright"])
    assert list(prediction.probabilities) == ["background", "Dim", "Bright"]
    stack = np.stack(list(prediction.probabilities.values()))
    np.testing.assert_allclose(stack.sum(0)[prediction.segmentation.data > 0], 1, atol=1e-3)
    wins = np.array([0, 3, 4])[stack.argmax(0)]
    inside = prediction.segmentation.data > 0
    np.testing.assert_array_equal(wins[inside], prediction.segmentation.data[inside])
    assert 0.5 < prediction.confidence["Bright"] <= 1


@pytest.mark.parametrize("channels", [1, 2])
def test_a_region_is_labelled_as_stock_nnunet_labels_the_crop_around_it(
    cascade_file, tmp_path, channels
):
    """Around the region and 4 voxels more, normalised by itself, with its mask or without."""
    place, head = cascade_file.parent, scene()
    model = place / "second"
    if channels == 1:
        box = tuple(slice(n - 4, m + 4) for n, m in ((6, 26), (8, 24), (10, 28)))
        model = tmp_path / "image"
        inner = head.data[box].transpose(2, 1, 0)
        truth = (inner > 1).astype(np.int64) + (inner > 2)
        trained(model, ("background", "Dim", "Bright"), truth, [inner])
    path = tmp_path / "chain.json"
    regions = [{"inside": "GM", "model": str(model)}]
    path.write_text(json.dumps({"model": str(place / "first"), "regions": regions}))
    bright = replace(head, data=head.data.copy())
    bright.data[0, 0, 0] = 30  # beyond the crop: it must not be seen
    coarse = siam_bids.segment(bright, model=str(place / "first"), precision="float32")
    found = siam_bids.segment(bright, model=str(path), precision="float32")
    mask = coarse.data == 1
    ends = [
        (np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {n}))), mask.shape[n]) for n in range(3)
    ]
    box = tuple(slice(max(e[0] - 4, 0), min(e[-1] + 5, size)) for e, size in ends)
    assert np.prod([part.stop - part.start for part in box]) < 0.7 * mask.size
    stock = stock_labels_of_channels(
        model, [bright.data[box], mask[box]][:channels], (4.0, 4.0, 4.0)
    )
    judged = mask[box] & (stock > 0)
    assert judged.sum() > 0.9 * mask.sum()
    names = {label.name: label.index for label in found.labels}
    wanted = np.array([0, names["Dim"], names["Bright"]])[stock]
    assert (found.data[box] == wanted)[judged].mean() >= 0.9999
    np.testing.assert_array_equal(found.data[~mask], coarse.data[~mask])
    assert (found.data[mask] > 0).all()


def test_genuine_models_refine_several_labels_as_stock_nnunet_labels_the_crop(genuine, tmp_path):
    """Both were trained by stock nnU-Net 2.6.2, the second with the mask as second channel."""
    first, second = (genuine / f"nnunet-2.6.2_numpy-2.4.6_{kind}" for kind in ("plain", "inside"))
    head = load_volume(genuine / "seg3d_4mm.nii.gz")
    path = tmp_path / "chain.json"
    regions = [{"inside": ["light", "white"], "model": str(second)}]
    path.write_text(json.dumps({"model": str(first), "regions": regions}))
    coarse = siam_bids.segment(head, model=str(first), precision="float32")
    found = siam_bids.segment(head, model=str(path), precision="float32")
    assert [label.name for label in found.labels] == ["background", "dark", "light", "white"]
    mask = np.isin(coarse.data, [2, 3])
    box = box_around(mask, MARGIN)
    turn = Reorientation.to_ras(head.grid)
    assert turn.target.axcodes == head.grid.axcodes  # else the stock predictor needs it turned
    stock = stock_labels_of_channels(second, [head.data[box], mask[box]], head.grid.voxel_size)
    judged = mask[box] & (stock > 0)
    assert judged.sum() > 0.9 * mask.sum()
    wanted = np.array([0, 2, 3])[stock]
    assert (found.data[box] == wanted)[judged].mean() >= 0.9999
    np.testing.assert_array_equal(found.data[~mask], coarse.data[~mask])


def test_a_region_may_be_several_labels_together(cascade_file, tmp_path):
    place, head = cascade_file.parent, scene()
    truth = (head.data > 1).astype(np.int64).transpose(2, 1, 0)
    truth[:, 16:] *= 2  # the bright half is called WM
    trained(tmp_path / "halves", ("background", "GM", "WM"), truth, [head.data.transpose(2, 1, 0)])
    path = tmp_path / "chain.json"
    regions = [{"inside": ["GM", "WM"], "model": str(place / "second")}]
    path.write_text(json.dumps({"model": str(tmp_path / "halves"), "regions": regions}))
    model = find_model(str(path))
    assert model.describe()["Regions"][0]["Inside"] == ["GM", "WM"]
    cascade = Cascade.open(model)
    assert [(label.name, label.role) for label in cascade.labels.foreground] == [
        ("Dim", "brain"), ("Bright", "brain"),
    ]  # fmt: skip
    coarse = siam_bids.segment(head, model=str(tmp_path / "halves"))
    found = predicted(path, head, probabilities=["background", "Dim", "Bright"])
    np.testing.assert_array_equal(found.segmentation.data > 0, coarse.data > 0)
    assert {*np.unique(coarse.data).tolist()} == {0, 1, 2}
    right = np.where(head.data > 2, 4, 3) == found.segmentation.data
    assert right[coarse.data > 0].mean() > 0.9
    maps = found.probabilities
    total = maps["background"] + maps["Dim"] + maps["Bright"]
    np.testing.assert_allclose(total[coarse.data > 0], 1, atol=1e-3)
    assert (maps["Dim"][coarse.data == 0] == 0).all()


def test_a_chain_that_names_itself_is_one_line(tmp_path):
    for name, model in (("a", "b"), ("b", "c"), ("c", "a"), ("own", "own")):
        content = {"model": f"{model}.json", "regions": []}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    for name in ("a", "own"):
        with pytest.raises(ModelError, match=f"{name}.json: a circular reference") as raised:
            find_model(str(tmp_path / f"{name}.json"))
        assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    "content",
    ["[]", "null", "5", "{", "[" * 100_000, '{"model": 5, "regions": []}', '{"members": 5}',
     '{"members": {}}', '{"model": null, "regions": []}'],
)  # fmt: skip
def test_an_odd_cascade_file_is_one_line(tmp_path, content):
    path = tmp_path / "chain.json"
    path.write_text(content)
    with pytest.raises(ModelError) as raised:
        find_model(str(path))
    assert len(str(raised.value).splitlines()) == 1


def test_a_cascade_file_is_a_file_of_some_size(tmp_path):
    path = tmp_path / "chain.json"
    path.write_text(" " * (17 << 20))
    with pytest.raises(ModelError, match="more than 16 MiB"):
        find_model(str(path))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ModelError, match="it is a named pipe, not a file"):
        find_model(str(path))


def test_an_absent_region_changes_nothing(cascade_file):
    path = cascade_file.with_name("rare.json")
    content = json.loads(cascade_file.read_text())
    path.write_text(json.dumps({**content, "regions": [{"inside": "CSF", "model": "second"}]}))
    found = predicted(path, scene()).segmentation
    assert [label.name for label in found.labels] == ["background", "GM", "Dim", "Bright"]
    first = siam_bids.segment(scene(), model=str(cascade_file.parent / "first"))
    np.testing.assert_array_equal(found.data, first.data)


def test_tables_are_merged_by_name():
    outer = LabelTable.from_names({"background": 0, "GM": 1, "WM": 2, "CSF": 7})
    finer = LabelTable.from_names({"background": 0, "Left": 1, "GM": 2, "WM": 3})
    merged = outer.refined(["GM"], finer)
    assert {label.name: label.index for label in merged} == {
        "background": 0, "GM": 1, "WM": 2, "CSF": 7, "Left": 8,
    }  # fmt: skip
    left = merged.by_name["Left"]
    assert (left.parent, left.mapping) == ("GM", outer.by_name["GM"].mapping)
    assert merged.indices(["GM"]) == [1, 8]
    deeper = merged.refined(["Left"], LabelTable.from_names({"background": 0, "Deep": 1}))
    assert deeper.indices(["GM"]) == [1, 9]
    assert "Left" not in deeper.by_name


def test_what_does_not_fit_is_named(cascade_file, tmp_path):
    place = cascade_file.parent

    def refused(message, **content):
        path = tmp_path / "chain.json"
        path.write_text(json.dumps(content))
        with pytest.raises(ModelError, match=message):
            opened(path)

    first, second = str(place / "first"), str(place / "second")
    refused("is not a cascade of models", model=first)
    refused("no label WM for", model=first, regions=[{"inside": "WM", "model": second}])
    three = str(write_model(tmp_path / "three", channels=3))
    refused("has 3 channels, but is given", model=first, regions=[{"inside": "GM", "model": three}])
    regions = [{"inside": ["GM", "WM"], "model": second}]
    refused("no label WM for .*second to refine", model=first, regions=regions)
    for odd in ([], 5, None, ["GM", "GM"], [["GM"]], {}):
        refused("is not a cascade of models .inside|is not a cascade of models .'", model=first,
                regions=[{"inside": odd, "model": second}])  # fmt: skip
    alike = str(write_model(tmp_path / "alike", names=["background", "c_sf"], channels=2))
    regions = [{"inside": "GM", "model": alike}]
    refused("alike, with the models before it, names a label c_sf, which is written as csf in file "
            "names, as CSF is", model=first, regions=regions)  # fmt: skip
    refused("is not a cascade of models", model=first, regions={"inside": "GM"})
    refused("is not a cascade of models", model=first, regions=[5])
    refused("needs 2 input channels, but a scan has only one", model=second, regions=[])
    refused("no model 'x'", model=first, regions=[{"inside": "GM", "model": "x"}])


def test_a_registered_chain_is_one_model_with_its_own_checksum(cascade_file, monkeypatch):
    place = cascade_file.parent
    entry = json.loads(cascade_file.read_text())
    entry = {**entry, "model": str(place / "first"), "version": "1"}
    entry["regions"] = [{"inside": "GM", "model": str(place / "second")}]
    known = {**registry(), "halves": entry}
    monkeypatch.setattr("siam_bids.models.registry.registry", lambda: known)
    model = find_model("halves")
    assert (model.title, model.version, model.name) == ("Halves", "1", "halves")
    assert model.sha256 == find_model(str(cascade_file)).sha256 != find_model(entry["model"]).sha256
    assert model.describe()["Regions"][0]["Inside"] == "GM"
    size = Cascade.open(model).estimate([], CPU, Inference(), cpus=1)
    alone = Cascade.open(find_model(entry["model"])).estimate([], CPU, Inference(), cpus=1)
    assert size.seconds > alone.seconds
    assert isinstance(Cascade.open(model).regions[0][1], NnunetModel)


def test_an_ensemble_may_be_refined_too(pair):
    path = pair.with_name("refined.json")
    path.write_text(
        json.dumps({"model": str(pair), "regions": [{"inside": "GM", "model": "second"}]})
    )
    found = siam_bids.segment(scene(), model=str(path))
    coarse = siam_bids.segment(scene(), model=str(pair))
    np.testing.assert_array_equal(found.data > 0, coarse.data > 0)
    assert {"Dim", "Bright"} <= {label.name for label in found.labels}
    path.write_text(
        json.dumps({"model": pair.name, "regions": [{"inside": "GM", "model": "second"}]})
    )
    np.testing.assert_array_equal(siam_bids.segment(scene(), model=str(path)).data, found.data)
    both = {**json.loads(pair.read_text()), "regions": [{"inside": "GM", "model": "second"}]}
    path.write_text(json.dumps(both))
    np.testing.assert_array_equal(siam_bids.segment(scene(), model=str(path)).data, found.data)


INTENSITIES = registry()["compact"]["intensities"]


@pytest.mark.parametrize("name", ["pair", "first"])
def test_labels_follow_the_intensities_if_the_model_does(name, pair, cascade_file):
    """An ensemble and a single model, in a scan whose right half is a voxel wider than it was."""
    alone = {"model": "first"} if name == "first" else json.loads(pair.read_text())
    plain = pair if name == "pair" else cascade_file.parent / "first"
    path = (pair if name == "pair" else cascade_file).with_name(f"{name}-follows.json")
    path.write_text(json.dumps({**alone, "intensities": INTENSITIES}))
    model = find_model(str(path))
    assert model.describe()["Intensities"]["ReachInMillimetres"] == 20
    assert model.sha256 != find_model(str(plain)).sha256
    head = scene()
    grey = replace(head, data=ndimage.gaussian_filter(head.data, 1.2))
    names = [label.name for label in opened(path).labels]
    found = predicted(path, grey, probabilities=names)
    network = predicted(plain, grey, probabilities=names)
    assert (found.segmentation.data != network.segmentation.data).any()
    maps = np.stack([found.probabilities[each] for each in names])
    assert maps.sum(0) == pytest.approx(1, abs=5e-3)
    likeliest = maps.argmax(0) == found.segmentation.data
    assert likeliest.mean() > 0.999
    chosen = siam_bids.segment(grey, model=str(path), intensities=False)
    assert np.array_equal(chosen.data, network.segmentation.data)


def test_a_chain_keeps_the_intensities_of_its_first_model(pair):
    path = pair.with_name("follows.json")
    path.write_text(json.dumps({**json.loads(pair.read_text()), "intensities": INTENSITIES}))
    assert find_model(str(refined(path))).intensities == find_model(str(path)).intensities
    assert find_model("compact").intensities is not None
    assert "Intensities" in find_model("compact-2mm").describe()
    ensemble = find_model("compact").describe()
    assert not any("Intensities" in member for member in ensemble["Members"])
    plain = find_model("compact").with_options(Inference(intensities=False))
    assert "Intensities" not in plain.describe()


def test_networks_are_built_and_estimated_without_torchs_compiler():
    """Its import takes two seconds of every run, and comes with many functions of torch."""
    code = """
import sys, torch
from siam_bids.inference.cascade import Cascade, CascadeSegmenter
from siam_bids.config import Inference
from siam_bids.models.registry import find_model
cascade = Cascade.open(find_model("compact"))
CascadeSegmenter(cascade, torch.device("cpu"), Inference())
cascade.estimate([], torch.device("cpu"), Inference(), cpus=1)
print(*{"torch._dynamo", "sympy"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
