"""Lesions as outliers of white matter: drawn heads with known lesions, and a real patient."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from siam_bids.config import Inference
from siam_bids.errors import ModelError
from siam_bids.image.grid import Crop, Grid, Volume
from siam_bids.image.labels import siam_labels
from siam_bids.image.loading import load_labels, load_volume
from siam_bids.inference.cascade import Cascade, CascadeSegmenter
from siam_bids.inference.prediction import Prediction, prediction_of
from siam_bids.inference.white_matter_outliers import outlier_rule
from siam_bids.models.registry import find_model
from siam_bids.models.settings import Intensities

HEADS = Path(__file__).parents[2] / "shared" / "heads"
TABLE = siam_labels()
INDEX = {label.name: label.index for label in TABLE}
LESION = INDEX["Anomalies"]
COMPACT = find_model("compact").intensities
CONTRASTS = {
    "T1w": {"WM": 100, "GM": 70, "CSFv": 20, "background": 0, "lesion": 75},
    "T2w": {"WM": 100, "GM": 130, "CSFv": 250, "background": 0, "lesion": 160},
    "FLAIR": {"WM": 100, "GM": 110, "CSFv": 20, "background": 0, "lesion": 145},
}
SHAPE = (56, 56, 56)


class Known:
    """Scores of a network that knows the labels but for a share of doubt."""

    def __init__(self, labels: np.ndarray, doubt: float = 0.1) -> None:
        self.labels, self.doubt = labels, doubt
        self.shape, self.classes = labels.shape, len(TABLE)

    def planes(self):
        for index in range(len(self.labels)):
            yield self._chances(slice(index, index + 1))[:, 0].log()

    def probability(self, index: int) -> np.ndarray:
        return self._chances(slice(None))[index].numpy()

    def _chances(self, part: slice) -> torch.Tensor:
        sure = np.arange(self.classes)[:, None, None, None] == self.labels[part]
        rest = self.doubt / (self.classes - 1)
        return torch.from_numpy(np.where(sure, 1 - self.doubt, rest).astype(np.float32))


def distance(centre: tuple[int, ...]) -> np.ndarray:
    """Of every voxel from a centre, in voxels."""
    places = np.indices(SHAPE) - np.array(centre)[:, None, None, None]
    return np.sqrt((places**2).sum(0))


def head() -> np.ndarray:
    """Labels: ventricle, white matter around it, a shell of cortex."""
    far = distance((28, 28, 28))
    labels = np.zeros(SHAPE, np.uint8)
    for radius, name in ((27, "GM"), (23, "WM"), (6, "CSFv")):
        labels[far <= radius] = INDEX[name]
    return labels


def lesions() -> np.ndarray:
    """Two balls in the white matter, of 257 and 123 voxels."""
    return (distance((28, 28, 41)) <= 4) | (distance((28, 15, 28)) <= 3)


def painted(labels: np.ndarray, contrast: str, where: np.ndarray | None = None) -> np.ndarray:
    """Intensities with partial volume, noise and a bias field."""
    levels = np.zeros(len(TABLE), np.float32)
    for name, level in CONTRASTS[contrast].items():
        if name in INDEX:
            levels[INDEX[name]] = level
    image = levels[labels]
    if where is not None:
        image[where] = CONTRASTS[contrast]["lesion"]
    image = ndimage.gaussian_filter(image, 0.6)
    image += np.random.default_rng(41).normal(0, 5, SHAPE).astype(np.float32)
    return image * np.linspace(0.95, 1.05, SHAPE[0], dtype=np.float32)[:, None, None]


def segment(
    image: np.ndarray, labels: np.ndarray, how: Intensities | None = COMPACT, **options
) -> Prediction:
    """Label an image [z, y, x] that a network saw so."""
    volume = Volume(np.ascontiguousarray(image.T), Grid(SHAPE, np.eye(4)))
    crop = Crop.around(np.ones(SHAPE, np.bool_), volume.grid)
    rule = outlier_rule(volume, crop, how)
    return prediction_of(Known(labels, **options), crop, TABLE, tuple(INDEX), outliers=rule)


def found(prediction: Prediction) -> np.ndarray:
    return prediction.segmentation.data.T == LESION


def dice(one: np.ndarray, two: np.ndarray) -> float:
    return 2 * (one & two).sum() / (one.sum() + two.sum())


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_lesions_that_the_network_missed_are_found(contrast: str) -> None:
    lesion = found(segment(painted(head(), contrast, lesions()), head()))
    assert lesion[lesions()].mean() > 0.7
    assert dice(lesion, lesions()) > 0.6
    assert not lesion[~ndimage.binary_dilation(lesions(), iterations=2)].any()


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_healthy_white_matter_has_no_lesion(contrast: str) -> None:
    assert not found(segment(painted(head(), contrast), head())).any()


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_lesions_of_the_network_that_look_like_white_matter_are_none(contrast: str) -> None:
    labels = head()
    labels[lesions()] = LESION
    prediction = segment(painted(head(), contrast), labels)
    assert not found(prediction).any()
    assert "Anomalies" not in prediction.confidence


def test_what_is_unlike_white_matter_on_the_other_side_stays_with_the_network() -> None:
    image, labels = painted(head(), "T1w"), head()
    image[lesions()] = 160
    assert not found(segment(image, labels)).any()
    labels[lesions()] = LESION
    assert dice(found(segment(image, labels)), lesions()) > 0.9


def test_partial_volume_beside_the_ventricle_is_no_lesion() -> None:
    labels = head()
    rim = (distance((28, 28, 28)) > 6) & (distance((28, 28, 28)) <= 7)
    labels[rim] = LESION  # as networks find caps of ventricles
    image = painted(head(), "T1w")
    image[rim] = 60
    assert not found(segment(image, labels)).any()


def test_specks_are_left_out() -> None:
    speck = distance((28, 28, 41)) <= 1
    assert speck.sum() == 7
    assert not found(segment(painted(head(), "FLAIR", speck), head())).any()


def test_without_contrast_of_cortex_and_white_matter_the_network_decides() -> None:
    labels = head()
    image = painted(np.full_like(labels, INDEX["WM"]), "T1w", lesions())
    labels[distance((28, 41, 28)) <= 3] = LESION
    assert np.array_equal(found(segment(image, labels)), labels == LESION)


def test_without_the_setting_the_network_decides() -> None:
    image = painted(head(), "T1w", lesions())
    for how in (None, replace(COMPACT, outliers=None)):
        assert not found(segment(image, head(), how)).any()


def test_probabilities_and_confidence_are_those_of_the_labels() -> None:
    prediction = segment(painted(head(), "FLAIR", lesions()), head())
    lesion = found(prediction).T
    chance, matter = (prediction.probabilities[name] for name in ("Anomalies", "WM"))
    assert (chance > matter)[lesion].all()
    assert 0.5 < chance[lesion].mean() < 0.99
    assert prediction.confidence["Anomalies"] == pytest.approx(chance[lesion].mean(), abs=1e-3)
    white = prediction.segmentation.data == INDEX["WM"]
    assert (chance < matter)[white].all()
    assert prediction.confidence["WM"] == pytest.approx(matter[white].mean(), abs=1e-3)
    assert (chance + matter).max() < 1 + 1e-5
    assert (chance + matter)[lesion].min() > 0.9


@pytest.mark.parametrize("doubt", [0.1, 1e-4, 2e-6, 4e-7])
@pytest.mark.parametrize("missed", [True, False])
def test_probabilities_of_all_labels_sum_to_one(doubt: float, missed: bool) -> None:
    """Also where the network was sure that there is no lesion, or nothing else."""
    labels = head()
    if not missed:
        labels[lesions()] = LESION
    image = painted(head(), "FLAIR", lesions() if missed else None)
    prediction = segment(image, labels, doubt=doubt)
    assert found(prediction).any() == missed
    total = sum(prediction.probabilities[name] for name in INDEX)
    np.testing.assert_allclose(total, 1, atol=1e-4)


@pytest.mark.parametrize("entry", [{}, {"deviations": "x"}, {"deviations": 0}, {"edge": 2}])
def test_settings_that_cannot_be_read(entry: dict[str, object]) -> None:
    whole = {"deviations": 4, "contrast": 0.5, "place": 0.6, "edge": 0.8, "smallest": 10}
    outliers = {**whole, **entry} if entry else {}
    about = {"weight": 1, "reach": 1, "spread": 1, "neighbours": 1, "temperature": 1, "rounds": 1}
    with pytest.raises(ModelError, match="The outliers of a model cannot be read"):
        Intensities.of({**about, "outliers": outliers})
    assert Intensities.of({**about, "outliers": whole}).describe()["WhiteMatterOutliers"] == {
        "Deviations": 4,
        "Contrast": 0.5,
        "Place": 0.6,
        "Edge": 0.8,
        "SmallestInCubicMillimetres": 10,
    }
    assert "WhiteMatterOutliers" not in Intensities.of(about).describe()


@pytest.mark.skipif(not HEADS.is_dir(), reason="no real heads beside the checkout")
def test_a_patient_with_lesions_drawn_by_experts() -> None:
    truth = load_labels(HEADS / "ms_patient26_lesions.nii.gz")[0] > 0
    volume = load_volume(HEADS / "ms_patient26_FLAIR.nii.gz")
    cascade = Cascade.open(find_model("compact"))
    segmenter = CascadeSegmenter(cascade, torch.device("cpu"), Inference())
    lesion = segmenter.segment(volume).segmentation.mask(("Anomalies",))
    assert dice(lesion, truth) > 0.72
    assert 5 < lesion.sum() / 1000 < 12  # mL; 8.2 in truth
