import numpy as np
import pandas as pd
import pytest
from scipy import stats

from siam_bids.errors import UsageError
from siam_bids.measures.regression import DICTIONARY, fit_tissues


def people(count=80, visits=1) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        sex, age, head, own = "FM"[number % 2], rng.uniform(20, 80), rng.normal(1500, 90), 0.0
        if visits > 1:
            own = rng.normal(0, 15)
        for visit in range(visits):
            then = age + visit
            gray = 600 - 2 * then + 0.2 * (head - 1500) + own + rng.normal(0, 5)
            rows.append((f"sub-{number}", "T1w", then, sex, head, gray, rng.normal(8, 1)))
    columns = ["participant_id", "contrast", "age", "sex", "TIV", "GM", "Hippo"]
    return pd.DataFrame(rows, columns=columns)


def test_estimates_p_and_intervals_are_those_of_least_squares():
    table = people()
    found = fit_tissues(table, "GM ~ age", ["GM", "Hippo"]).set_index("tissue")
    known = stats.linregress(table["age"], table["GM"])
    row = found.loc["GM"]
    assert row["estimate"] == pytest.approx(known.slope)
    assert row["standard_error"] == pytest.approx(known.stderr)
    assert row["p"] == pytest.approx(known.pvalue)
    reach = stats.t.ppf(0.975, 78) * known.stderr
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(
        (known.slope - reach, known.slope + reach)
    )
    assert row["estimate_percent"] == pytest.approx(100 * known.slope / table["GM"].mean())
    assert {"tissue", *found} == {*DICTIONARY}


def test_q_is_benjamini_hochberg_over_tissues_for_each_term():
    found = fit_tissues(people(), "~ age + C(sex) + ICV", ["GM", "Hippo", "TIV"])
    assert set(found["tissue"]) == {"GM", "Hippo"}  # the formula corrects for TIV
    for _, part in found.groupby("term"):
        p = part["p"].to_numpy()
        np.testing.assert_allclose(part["q"], stats.false_discovery_control(p))


def test_repeated_people_get_a_random_intercept():
    found = fit_tissues(people(40, visits=3), "GM ~ age + ICV", ["GM"]).set_index("term")
    assert found["method"].unique().tolist() == ["mixed"]
    assert found.loc["age", "estimate"] == pytest.approx(-2, abs=0.5)
    assert found.loc["age", "ci_low"] < -2 < found.loc["age", "ci_high"]
    assert (found["scans"].unique(), found["participants"].unique()) == ([120], [40])


def test_scans_without_a_value_are_left_out_and_counted():
    table = people()
    table.loc[:9, "age"] = np.nan
    assert fit_tissues(table, "~ age", ["GM"])["scans"].tolist() == [70]


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("GM ~ height", "names height, but no table has such a column"),
        ("GM ~ weight", "names weight, but no scan has a value of it"),
        ("GM", "is no formula"),
        ("~ age +", "cannot be read"),
        ("~ C(site)", "can be fitted to no contrast"),
    ],
)
def test_formulas_that_cannot_be_answered_are_refused(formula, message):
    table = people().assign(weight=np.nan, site=[f"s{i}" for i in range(80)])
    with pytest.raises(UsageError, match=message):
        fit_tissues(table, formula, ["GM"])
