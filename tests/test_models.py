import json

import pytest
from conftest import write_model

from siam_bids.errors import ModelError
from siam_bids.labels import siam_labels
from siam_bids.models import find_model
from siam_bids.nnunet import NnunetModel
from siam_bids.provenance import model_line
from siam_bids.resources import resource


def test_the_default_model_is_ours_and_never_passes_for_siam():
    record = find_model("compact")
    assert record.title == "siam-bids compact"
    assert "not the SIAM model" in record.citation
    assert model_line(record.describe()) == (
        f"siam-bids compact {record.version} (sha256 {record.sha256[:12]})"
    )


def test_the_shipped_model_names_siams_labels_and_fits_in_16_mib():
    folder = resource("data", "models", "compact")
    model = NnunetModel.open(folder)
    assert [label.name for label in model.labels] == [label.name for label in siam_labels()]
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 16 * 2**20
    assert (folder / "README.md").read_text(encoding="utf-8").startswith("# Model card")


def test_a_folder_is_a_model_and_its_checksum_follows_the_weights(tmp_path):
    folder = write_model(tmp_path / "mine", folds=2)
    record = find_model(str(folder))
    assert (record.name, record.version) == ("mine", "unversioned")
    assert not record.bfloat16  # nobody has measured it
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
