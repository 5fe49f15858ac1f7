"""The colours of tissues differ where they are laid over a scan, for colour-blind readers too."""

from itertools import combinations

import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab

from siam_bids.image.labels import SIAM_TABLES, read_siam_table, siam_labels
from siam_bids.reports.mosaics import OVERLAY_ALPHA

GREYS = np.array([64, 128, 192]) / 255
"""Of cerebrospinal fluid to white matter in T1-weighted scans, and the reverse."""

DEUTERANOPIA = np.array(
    [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]
)
"""Machado, Oliveira and Fernandes, IEEE Trans. Vis. Comput. Graph. 2009, table 1: severity 1."""

TOUCHING = {
    "GM": "WM CSF CSFv cerGM Put Accu Amyg Hippo Dura vascular",
    "WM": "CSF CSFv cerGM Thal Pal Put Caud Accu Amyg Hippo Anomalies",
    "CSF": "CSFv cerGM Thal Accu Amyg Hippo Dura vascular Anomalies",
    "CSFv": "cerGM Thal Caud Accu Amyg Hippo Anomalies",
    "cerGM": "Dura vascular",
    "Thal": "Caud Hippo",
    "Pal": "Put",
    "Put": "Accu",
    "Caud": "Accu Anomalies",
    "Amyg": "Hippo",
    "Dura": "vascular Skull",
    "vascular": "Skull Head",
    "Skull": "Head",
}
"""Tissues with a common border in the sample scans (2 % of the smaller one's surface or more)."""


def seen_by_deuteranopes(srgb: np.ndarray) -> np.ndarray:
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ DEUTERANOPIA.T, 0, 1)
    return np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)


def differences(table, pairs, vision=lambda srgb: srgb) -> dict[str, float]:
    """CIEDE2000 of each pair at the default opacity, the least over the greys below."""

    def lab(name: str) -> np.ndarray:
        over = np.array(table.by_name[name].rgb) / 255 * OVERLAY_ALPHA
        return rgb2lab(vision(over + (1 - OVERLAY_ALPHA) * GREYS[:, None]))

    return {f"{a}-{b}": float(deltaE_ciede2000(lab(a), lab(b)).min()) for a, b in pairs}


@pytest.mark.parametrize("file", ["siam.tsv", "siam_v4.tsv"])
def test_every_two_tissues_differ(file):
    table = read_siam_table(file)
    found = differences(table, combinations([label.name for label in table.foreground], 2))
    assert min(found.values()) >= 10, min(found, key=found.get)


@pytest.mark.parametrize("file", SIAM_TABLES)
def test_tissues_with_a_common_border_differ_for_deuteranopes(file):
    table = read_siam_table(file)
    pairs = [(a, b) for a, others in TOUCHING.items() for b in others.split()]
    pairs = [pair for pair in pairs if {*pair} <= {*table.by_name}]
    assert len(pairs) >= 15
    found = differences(table, pairs, seen_by_deuteranopes)
    assert min(found.values()) >= 10, min(found, key=found.get)


def test_nothing_looks_the_same_to_deuteranopes():
    names = [label.name for label in siam_labels().foreground]
    found = differences(siam_labels(), combinations(names, 2), seen_by_deuteranopes)
    assert min(found.values()) >= 3.5, min(found, key=found.get)


def test_a_grey_looks_the_same_to_deuteranopes():
    greys = np.repeat(GREYS[:, None], 3, axis=1)
    np.testing.assert_allclose(seen_by_deuteranopes(greys), greys, atol=1e-4)
