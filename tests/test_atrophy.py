"""Heads whose hippocampi are shrunk."""

import numpy as np
import pytest

from siam_bids.image.labels import siam_labels
from siam_bids.synthesis.atrophy import SMALLEST, TEMPORAL, shrink, shrink_temporal
from siam_bids.synthesis.label_maps import Anatomy, source_table

TABLE = source_table("siam")
WM, CSFV, HIPPO, AMYG = (
    siam_labels().by_name[name].index for name in ("WM", "CSFv", "Hippo", "Amyg")
)


@pytest.fixture(scope="module")
def pair() -> Anatomy:
    """White matter with a hippocampus and an amygdala on each side, fluid above the former."""
    codes = np.full((60, 50, 30), WM, np.uint8)
    x, y, z = np.ogrid[:60, :50, :30]
    for middle in (14, 45):
        across = (x - middle) ** 2 + (z - 14) ** 2
        codes[(across < 64) & (abs(y - 20) < 15)] = HIPPO
        codes[(across < 64) & (y > 34) & (y < 42)] = AMYG
    codes[:, 6:35, 22:24] = CSFV
    return Anatomy(codes, (1.0, 1.0, 1.0), TABLE)


def size(anatomy, side, *names):
    half = (slice(30), slice(30, None))[side]
    return int(TABLE.codes_of(*names)[anatomy.codes[half]].sum())


@pytest.mark.parametrize("share", [1.0, 0.95, 0.8, 0.6])
def test_what_is_left_is_the_share_asked_for_on_the_side_asked_for(pair, share):
    for side in (0, 1):
        found = shrink(pair, TEMPORAL, share, np.random.default_rng(3), side=side)
        assert size(found, side, *TEMPORAL) == pytest.approx(
            share * size(pair, side, *TEMPORAL), abs=1
        )
        assert size(found, 1 - side, *TEMPORAL) == size(pair, 1 - side, *TEMPORAL)
    both = shrink(pair, TEMPORAL, share, np.random.default_rng(3))
    assert size(both, 0, *TEMPORAL) + size(both, 1, *TEMPORAL) == pytest.approx(
        share * 2 * size(pair, 0, *TEMPORAL), abs=1
    )


def test_the_middle_stays_where_it_is_after_one_side_has_shrunk(pair):
    """The mean of what is left would lie in the other side."""
    first = shrink(pair, TEMPORAL, 0.1, np.random.default_rng(3), side=0)
    second = shrink(first, TEMPORAL, 0.5, np.random.default_rng(4), side=1)
    assert size(second, 0, *TEMPORAL) == size(first, 0, *TEMPORAL)
    assert size(second, 1, *TEMPORAL) == pytest.approx(size(pair, 1, *TEMPORAL) / 2, abs=1)


def test_only_the_rim_changes_and_becomes_the_tissue_beside_it(pair):
    found = shrink(pair, ("Hippo",), 0.7, np.random.default_rng(3))
    changed = found.codes != pair.codes
    assert set(pair.codes[changed].tolist()) == {HIPPO}
    assert set(found.codes[changed].tolist()) <= {WM, CSFV, AMYG}
    core = np.zeros_like(changed)
    core[12:17, 10:30, 12:17] = True
    assert not changed[core].any()
    assert np.array_equal(pair.codes, shrink(pair, ("Thal",), 0.7, np.random.default_rng(3)).codes)


def test_fluid_fills_more_of_the_space_where_it_counts_as_nearer(pair):
    fluid = [
        int((shrink(pair, ("Hippo",), 0.7, np.random.default_rng(3), fluid=bonus).codes == CSFV)
            .sum())
        for bonus in (0.0, 4.0)
    ]  # fmt: skip
    assert fluid[1] > fluid[0] + 200


def test_hippocampi_shrink_by_no_more_than_half_on_one_side_or_both(pair):
    kept = np.array([
        [size(found, side, *TEMPORAL) / size(pair, side, *TEMPORAL) for side in (0, 1)]
        for found in (shrink_temporal(pair, np.random.default_rng(seed)) for seed in range(24))
    ])  # fmt: skip
    assert kept.min() >= SMALLEST - 0.01
    assert (kept.max(1) < 0.99).mean() == pytest.approx(0.5, abs=0.25)
    assert (kept.min(1) < 0.985).all()
    one, two = (shrink_temporal(pair, np.random.default_rng(5)).codes for _ in range(2))
    assert np.array_equal(one, two)
