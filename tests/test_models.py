import json

import pytest
import torch
from conftest import write_model

from siam_bids.config import Inference
from siam_bids.errors import ModelError, UsageError
from siam_bids.image.labels import siam_labels
from siam_bids.inference.cascade import Chain, ChainSegmenter
from siam_bids.models.registry import find_model
from siam_bids.nnunet.model import NnunetModel
from siam_bids.reports.methods_text import methods_text, model_line
from siam_bids.support.package_data import resource


def test_the_default_model_is_ours_and_never_passes_for_siam():
    record = find_model("compact")
    assert record.title == "siam-bids compact"
    assert "not the SIAM model" in record.citation
    assert model_line(record.describe()) == (
        f"siam-bids compact {record.version} (sha256 {record.sha256[:12]})"
    )


def test_the_default_model_is_the_mean_of_two():
    record = find_model("compact")
    described = record.describe()
    assert [each["Name"] for each in described["Members"]] == ["compact-2mm", "compact-1mm"]
    mirrored = [each.get("MirroredByDefault", False) for each in described["Members"]]
    assert mirrored == [True, True]
    assert described["Focus"]["Tissues"] == ["GM", "cerGM"]
    assert record.licence == "Apache-2.0"
    with pytest.raises(UsageError, match="Give one: --model compact-2mm or --model compact-1mm"):
        ChainSegmenter(Chain.open(record), torch.device("cpu"), Inference(interpolate=False))
    assert "averaged over the 2 networks" in methods_text([described])
    assert "updated by the intensities of the scan" in methods_text([described])
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
    record = find_model(str(folder))
    assert (record.name, record.version) == ("mine", "unversioned")
    assert not record.precisions  # nobody has measured any
    assert find_model(str(folder)).sha256 == record.sha256
    with (folder / "fold_1" / "checkpoint_final.pth").open("ab") as stream:
        stream.write(b"x")
    assert find_model(str(folder)).sha256 != record.sha256


def test_unknown_models_and_incomplete_folders(tmp_path):
    with pytest.raises(ModelError, match=r"There is no model 'siam-9'\. Known: compact"):
        find_model("siam-9")
    (tmp_path / "plans.json").write_text(json.dumps({}))
    with pytest.raises(ModelError, match=r"dataset\.json is missing"):
        find_model(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "checksum"),
    [
        ("compact", "4f9b0db5c4ce916f1974d64eaf8bf0b99dd989947eed9914dab223bcb2fcf969"),
        ("compact-2mm", "30ae089dc386dd4b83409bc539df46464e0b456fdb0ea5e6214ad7b4018236cf"),
        ("compact-1mm", "20a62504543d1600f084174682675c582952339da1bf6fa56798ac1a49adf265"),
    ],
)
def test_no_change_of_the_code_changes_the_checksum_of_a_shipped_model(name, checksum):
    """Else every study would be segmented anew. A new model changes its line here."""
    assert find_model(name).sha256 == checksum
