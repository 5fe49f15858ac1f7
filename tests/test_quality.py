"""Quality metrics of heads whose faults are known, and the flags that follow."""

import math
from dataclasses import replace

import difficult_input
import nibabel as nib
import numpy as np
import pytest
from conftest import head_labels
from scipy import ndimage

from siam_bids.image.grid import Grid, Segmentation, Volume
from siam_bids.image.labels import siam_labels
from siam_bids.image.loading import read_grid
from siam_bids.measures.image_metrics import entropy_focus, smoothness
from siam_bids.measures.quality import dictionary, judge, metrics, scan_quality

SIZE = 4.0
MEANS = {3: 40.0, 1: 100.0, 2: 140.0, 4: 20.0, 15: 5.0, 16: 90.0, 6: 120.0, 5: 95.0}


def head(*, noise=2.0) -> tuple[Volume, Segmentation]:
    """A RAS head of 4 mm voxels in an empty margin, with a cerebellum behind and below."""
    labels = np.pad(head_labels(), 4).astype(np.uint8)
    i, j, k = np.ogrid[tuple(slice(0, n) for n in labels.shape)]
    ball = (i - 24) ** 2 + (j - 16) ** 2 + (k - 14) ** 2 < 25
    labels[ball & np.isin(labels, [1, 2, 3])] = 5
    data = np.random.default_rng(0).normal(0, noise, labels.shape)
    data += np.vectorize(lambda v: MEANS.get(v, 0.0))(labels)
    affine = np.diag([SIZE, SIZE, SIZE, 1.0])
    affine[:3, 3] = -SIZE * np.array(labels.shape) / 2
    grid = Grid(labels.shape, affine)
    return Volume(data.astype(np.float32), grid), Segmentation(labels, grid, siam_labels())


def stored_as(volume, segmentation, axcodes):
    """The same anatomy with its axes stored otherwise, header and data alike."""
    turn = nib.orientations.axcodes2ornt(axcodes)
    data = nib.apply_orientation(volume.data, turn)
    labels = nib.apply_orientation(segmentation.data, turn)
    back = nib.orientations.inv_ornt_aff(turn, volume.grid.shape)
    grid = Grid(data.shape, volume.grid.affine @ back)
    return Volume(data, grid), Segmentation(labels, grid, segmentation.labels)


def cropped(volume, segmentation, *window):
    grid = Grid(volume.data[window].shape, volume.grid.affine)
    return Volume(volume.data[window], grid), Segmentation(
        segmentation.data[window], grid, segmentation.labels
    )


def test_metrics_of_a_sound_head():
    volume, segmentation = head()
    found = scan_quality(volume, segmentation)
    millilitres = np.isin(segmentation.data, [1, 2, 3, 4, 5, 6]).sum() * SIZE**3 / 1000
    assert found["TIV"] == pytest.approx(millilitres)
    assert (found["voxel_volume"], found["anisotropy"]) == pytest.approx((64, 1))
    assert found["orientation"] < 25
    assert found["left_right_dice"] > 0.95
    assert (found["bodies"], found["islands_Thal"], found["stray_share"]) == (1, 2, 0)
    for name in ("brain_cut_top", "brain_cut_bottom", "brain_cut_sides", "head_cut_top"):
        assert found[name] == 0, name
    assert found["snr_WM"] == pytest.approx(140 / 2, rel=0.05)
    noise = math.sqrt(3) * 2
    assert found["cnr_GM_WM"] == pytest.approx(40 / noise, rel=0.05)
    assert found["cjv"] == pytest.approx(4 / 40, rel=0.05)
    inside = np.vectorize(lambda v: MEANS.get(v, 0.0))(segmentation.data[segmentation.data > 0])
    assert found["fber"] == pytest.approx(np.mean(inside**2) / 2**2, rel=0.05)
    assert found["missing_tissues"] == 6  # Pal, Put, Caud, Accu, Amyg, Hippo
    assert math.isnan(found["confidence"])


@pytest.mark.parametrize("axcodes", ["LIA", "LPS", "PIR"])
def test_storage_order_changes_nothing(axcodes):
    expected = scan_quality(*head())
    assert scan_quality(*stored_as(*head(), axcodes)) == pytest.approx(
        expected, rel=1e-4, abs=1e-3, nan_ok=True
    )


@pytest.mark.parametrize(
    ("turn", "low"),
    [((1, -1, -1), 150), ((1, 1, -1), 60), ((1, -1, 1), 60)],
    ids=["turned over", "upside down", "back to front"],
)
def test_wrong_headers_are_seen_as_orientation(turn, low):
    volume, segmentation = head()
    grid = replace(volume.grid, affine=np.diag([*turn, 1.0]) @ volume.grid.affine)
    found = scan_quality(replace(volume, grid=grid), replace(segmentation, grid=grid))
    assert found["orientation"] > low
    assert "degrees from upright" in " ".join(judge(found)[1])


def test_cut_heads_are_measured_in_square_centimetres():
    volume, segmentation = head()
    top = int(np.flatnonzero((segmentation.data == 1).any(axis=(0, 1)))[-1]) - 8
    window = (slice(None), slice(None), slice(0, top + 1))
    found = scan_quality(*cropped(volume, segmentation, *window))
    brain = np.isin(segmentation.data[..., top], [1, 2, 4, 5, 6]).sum()
    assert found["brain_cut_top"] == pytest.approx(brain * SIZE**2 / 100)
    assert found["above_brain"] == 0
    assert judge({"brain_cut_top": found["brain_cut_top"]})[0] == "fail"
    side = scan_quality(*cropped(volume, segmentation, slice(20, None)))
    brain = np.isin(segmentation.data[20], [1, 2, 4, 5, 6]).sum()
    assert side["brain_cut_sides"] == pytest.approx(brain * SIZE**2 / 100)
    assert side["brain_cut_top"] == 0


def test_padding_with_zeros_is_no_field_of_view():
    volume, segmentation = head()
    window = (slice(None), slice(None), slice(0, 36))
    cut = scan_quality(*cropped(volume, segmentation, *window))
    padded = volume.data.copy(), segmentation.data.copy()
    for data in padded:
        data[..., 36:] = 0
    grid = volume.grid
    found = scan_quality(Volume(padded[0], grid), Segmentation(padded[1], grid, siam_labels()))
    assert found == pytest.approx(cut, nan_ok=True)


def test_islands_and_second_bodies_are_counted():
    volume, segmentation = head()
    data = segmentation.data.copy()
    data[1, 1, 1] = 2
    data[:10, -10:, -3:] = 16
    found = scan_quality(volume, replace(segmentation, data=data))
    solid = np.isin(data, [1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12]).sum()
    assert found["stray_share"] == pytest.approx(100 / solid)
    assert found["islands_WM"] == scan_quality(volume, segmentation)["islands_WM"] + 1
    assert found["bodies"] == 1  # 300 voxels of 64 mm3 are 19 mL
    data[:18, -18:, -3:] = 16  # 62 mL
    assert scan_quality(volume, replace(segmentation, data=data))["bodies"] == 2


def test_confidence_is_weighted_by_volume():
    volume, segmentation = head()
    found = scan_quality(volume, segmentation, confidence={"GM": 0.9, "WM": 0.6}, entropy=0.4)
    gray, white = (int((segmentation.data == value).sum()) for value in (1, 2))
    assert found["confidence"] == pytest.approx((0.9 * gray + 0.6 * white) / (gray + white))
    assert (found["confidence_WM"], found["entropy"]) == (0.6, 0.4)
    assert judge(found)[1].count("The entropy of the model's probabilities is high (0.40).") == 1


def test_empty_segmentations_have_no_ratios():
    volume, segmentation = head()
    found = scan_quality(volume, replace(segmentation, data=np.zeros_like(segmentation.data)))
    assert found["TIV"] == 0
    assert math.isnan(found["orientation"])
    assert judge(found)[0] == "fail"


def test_bounds_are_nested_and_reasons_can_be_said():
    for metric in metrics():
        for (warn, fail), sign in zip(
            zip(metric.warn, metric.fail, strict=True), (1, -1), strict=True
        ):
            if warn is not None and fail is not None:
                assert sign * fail < sign * warn, metric.name
        bounded = any(bound is not None for bound in (*metric.warn, *metric.fail))
        assert bounded == bool(metric.reason), metric.name
        if bounded:
            assert metric.reason.format(value=1.5).endswith(".")


def test_every_metric_has_description_unit_formula_and_source():
    found = tuple(scan_quality(*head(), confidence={"GM": 0.9}, entropy=0.1))
    described = dictionary(found)
    assert tuple(described) == found
    for name in ("efc", "fwhm_avg", "inu_WM", "clipped", "spikes", "ct", "form_flip"):
        assert name in found
    for entry in described.values():
        assert all(entry[key] for key in ("Description", "Units", "Formula", "Source"))
    assert described["confidence_GM"]["Description"].endswith("labelled GM.")


def test_worst_reason_comes_first():
    flag, reasons = judge({"TIV": 2200.0, "brain_cut_top": 50.0, "snr_WM": math.nan})
    assert flag == "fail"
    assert reasons[0].startswith("The top of the brain is cut off (50.0 cm2")
    assert reasons[1] == "Intracranial volume of 2200 mL is unusual at any age."
    assert judge({"TIV": 1500.0}) == ("pass", ())


def test_entropy_focus_is_that_of_mriqc():
    rng = np.random.default_rng(0)
    image = rng.gamma(2, 50, (20, 21, 22)).astype(np.float32)
    n, b = image.size, np.sqrt((image.astype(float) ** 2).sum())
    largest = n / np.sqrt(n) * np.log(1 / np.sqrt(n))  # as MRIQC writes it
    expected = np.sum(image / b * np.log((image + 1e-16) / b)) / largest
    assert entropy_focus(image) == pytest.approx(expected, rel=1e-6)
    assert entropy_focus(np.ones((9, 9, 9), np.float32)) == pytest.approx(1)
    point = np.zeros((9, 9, 9), np.float32)
    point[4, 4, 4] = 7
    assert entropy_focus(point) == pytest.approx(0, abs=1e-12)
    assert math.isnan(entropy_focus(point * 0))
    ghost = image + 0.5 * np.roll(image, 5, axis=1)
    assert entropy_focus(ghost) > entropy_focus(image)


@pytest.mark.parametrize("fwhm", [(2.0, 3.0, 4.0), (2.5, 2.5, 2.5)])
def test_smoothness_of_noise_is_that_of_its_filter(fwhm):
    noise = np.random.default_rng(0).normal(100, 10, (90, 90, 90))
    image = ndimage.gaussian_filter(noise, np.array(fwhm) / math.sqrt(8 * math.log(2)))
    mask = np.zeros(image.shape, bool)
    mask[10:-10, 5:-5, 8:-8] = True
    assert smoothness(image.astype(np.float32), mask) == pytest.approx(fwhm, rel=0.07)
    assert all(map(math.isnan, smoothness(image.astype(np.float32), mask & False)))


@pytest.mark.parametrize("drift", [0.0, 0.1, 0.4])
def test_nonuniformity_is_the_range_of_the_field(drift):
    volume, segmentation = head()
    white = segmentation.data == 2
    across = np.linspace(1 - drift, 1 + drift, white.shape[1])[None, :, None] * np.ones(white.shape)
    low, middle, high = np.percentile(across[white], (5, 50, 95))
    found = scan_quality(
        replace(volume, data=(volume.data * across).astype(np.float32)), segmentation
    )
    assert found["inu_WM"] == pytest.approx((high - low) / middle, rel=0.15, abs=0.01)


def test_clipping_hot_voxels_and_ct_are_flagged():
    volume, segmentation = head()
    sound = scan_quality(volume, segmentation)
    assert (sound["spikes"], sound["ct"]) == (0, 0)
    assert sound["clipped"] < 0.1
    clipped = replace(volume, data=np.minimum(volume.data, 100))
    found = scan_quality(clipped, segmentation)
    brain = np.isin(segmentation.data, [1, 2, 4, 5, 6])
    assert found["clipped"] == pytest.approx(100 * (clipped.data == 100)[brain].mean())
    assert "of the brain is clipped" in " ".join(judge({"clipped": found["clipped"]})[1])
    hot = volume.data.copy()
    hot[20, 20, 20], hot[3, 4, 5] = 25_000, -9_000
    found = scan_quality(replace(volume, data=hot), segmentation)
    assert found["spikes"] == 2
    assert judge({"spikes": 2.0}) == (
        "warn",
        ("2 hot voxels have intensities far beyond all others.",),
    )
    units = replace(volume, data=np.where(segmentation.data > 0, volume.data, -1000 + volume.data))
    assert scan_quality(units, segmentation)["ct"] == 1
    named = scan_quality(volume, segmentation, ct=True)
    assert "for which the compact model was not made" in " ".join(judge({"ct": named["ct"]})[1])


@pytest.mark.parametrize(
    ("sform", "codes", "expected", "words"),
    [
        (np.eye(4), (1, 1), (0, 1, 0), ""),
        (np.diag([-1, 1, 1, 1]), (2, 1), (1, 1, math.nan), "Left and right are contradictory"),
        (np.diag([1, 2, 1, 1]), (2, 1), (0, 2, math.nan), "two voxel sizes, 2-fold apart"),
        (nib.affines.from_matvec(np.eye(3), (5, 0, 0)), (1, 1), (0, 1, 20), "lie 20 mm apart"),
        (nib.affines.from_matvec(np.eye(3), (5, 0, 0)), (4, 1), (0, 1, math.nan), ""),
    ],
)
def test_headers_that_contradict_themselves_are_flagged(tmp_path, sform, codes, expected, words):
    volume, segmentation = head()
    difficult_input.placed(sform, np.eye(4), codes)(tmp_path / "a.nii.gz", volume)
    grid = read_grid(tmp_path / "a.nii.gz")
    found = scan_quality(replace(volume, grid=grid), replace(segmentation, grid=grid))
    names = ("form_flip", "form_scale", "form_distance")
    assert tuple(found[name] for name in names) == pytest.approx(expected, abs=1e-4, nan_ok=True)
    reasons = " ".join(judge({name: found[name] for name in names})[1])
    assert words in reasons
    assert bool(words) == bool(reasons)
