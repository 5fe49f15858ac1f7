import numpy as np
import pandas as pd
import pytest

from siam_bids.errors import UsageError
from siam_bids.measures.outliers import find_outliers, robust_z


def table(values, contrast="T1w", **more) -> pd.DataFrame:
    names = [f"sub-{i:02d}" for i in range(len(values))]
    return pd.DataFrame(
        {
            "participant_id": names, "session_id": None, "contrast": contrast, "protocol": contrast,
            "scan": [f"{name}_T1w" for name in names], "GM": np.asarray(values, float), **more,
        }
    )  # fmt: skip


def test_robust_z_estimates_the_z_score_of_normal_data():
    values = np.random.default_rng(0).normal(50, 7, 20_000)
    np.testing.assert_allclose(robust_z(values), (values - 50) / 7, atol=0.15)
    moved = robust_z(3 * values - 4)
    np.testing.assert_allclose(moved, robust_z(values))


def test_mean_deviation_stands_in_where_most_values_agree():
    values = np.array([1.0] * 9 + [5.0])
    assert robust_z(values)[-1] == pytest.approx(4 / (np.sqrt(np.pi / 2) * 0.4))
    assert (robust_z(np.ones(6)) == 0).all()
    assert np.isnan(robust_z(np.array([1.0, np.nan, 1.0]))).tolist() == [False, True, False]


def test_outliers_are_sought_within_each_contrast():
    one = table([100, 101, 99, 100, 102, 98, 160])
    two = table([160, 161, 159, 160, 162, 158], contrast="T2w")
    found = find_outliers(pd.concat([one, two], ignore_index=True), ["GM"])
    assert found["scan"].tolist() == ["sub-06_T1w"]
    assert found["contrast"].tolist() == ["T1w"]
    assert found["robust_z"].item() == pytest.approx(60 / (1.4826 * 1))
    assert found["reason"].item() == (
        "GM 160 is far above the other T1w scans (median 100, robust z +40.5)."
    )


def test_four_scans_are_too_few():
    assert find_outliers(table([1, 1.1, 0.9, 50]), ["GM"]).empty


def test_adjustment_finds_what_age_hides_and_forgives_what_it_explains():
    rng = np.random.default_rng(1)
    age = np.linspace(20, 90, 40)
    values = 700 - 3 * age + rng.normal(0, 2, 40)
    values[20] += 40
    scans = table(values, age=age, sex=np.tile(["F", "M"], 20))
    assert find_outliers(scans, ["GM"]).empty
    found = find_outliers(scans, ["GM"], adjust=["age", "sex"])
    assert found["scan"][0] == "sub-20_T1w"
    assert found["robust_z"][0] > 10
    assert (found["robust_z"][1:].abs() < 5).all()
    row = found.iloc[0]
    assert row["value"] - row["expected"] == pytest.approx(40, abs=5)
    assert row["reason"] == (
        f"GM {row['value']:.4g} is far above the {row['expected']:.4g} expected of a T1w scan "
        f"given age, sex (robust z {row['robust_z']:+.1f})."
    )


def test_too_few_scans_are_not_adjusted_and_the_reason_does_not_claim_it(caplog):
    scans = table([100, 101, 99, 100, 102, 98, 160], age=[20, 30, 40, 50, 60, 70, 80])
    found = find_outliers(scans, ["GM"], adjust=["age"])
    assert "given" not in found["reason"].item()
    assert [record.message for record in caplog.records] == [
        "T1w: too few scans have age: outliers are detected without adjustment in GM."
    ]


def test_unknown_and_empty_covariates_are_refused():
    scans = table(range(8), age=np.nan)
    with pytest.raises(UsageError, match="--adjust-for names height, but no table"):
        find_outliers(scans, ["GM"], adjust=["height"])
    with pytest.raises(
        UsageError, match="--adjust-for names age, but this column is empty for all scans"
    ):
        find_outliers(scans, ["GM"], adjust=["age"])
