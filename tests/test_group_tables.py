"""The tables of the group level: their digits, their columns, their arithmetic."""

import numpy as np
import pandas as pd
import pytest

from siam_bids.bids.writers import save_table
from siam_bids.support.tsv import read_rows


def test_no_digit_is_lost_and_parquet_says_the_same(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "p": 10.0 ** rng.uniform(-300, 300, 200) * rng.choice([-1, 1], 200),
            "islands_GM": np.where(np.arange(200) % 7, 58.0, np.nan),
            "voxels": rng.integers(0, 2**40, 200),
            "site": 3.0,
            "note": [None, "a\tb\nc", '5" scar', "n/a", "None"] * 40,
        }
    )
    save_table(tmp_path, "group_x", table, {})
    rows = read_rows(tmp_path / "group_x.tsv")
    assert len(rows) == 200
    parquet = pd.read_parquet(tmp_path / "group_x.parquet")
    np.testing.assert_allclose([float(row["p"]) for row in rows], parquet["p"], rtol=1e-7)
    assert [row["islands_GM"] for row in rows[:2]] == ["n/a", "58"]
    assert [int(row["voxels"]) for row in rows] == table["voxels"].tolist()
    assert {row["site"] for row in rows} == {"3"}
    assert [row["note"] for row in rows[:5]] == ["n/a", "a b c", '5" scar', "n/a", "None"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(5.2e-13, "5.2e-13"), (0.00012345678, "0.00012345678"), (1234567.5, "1234567.5"), (2.0, "2")],
)
def test_numbers_are_written_as_people_read_them(tmp_path, value, text):
    save_table(tmp_path, "group_x", pd.DataFrame({"x": [value]}), {})
    assert (tmp_path / "group_x.tsv").read_text() == f"x\n{text}\n"
