"""Models of tissues against independent computations, here by statsmodels' own formulas."""

import time

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats

from siam_bids.errors import UsageError
from siam_bids.measures.formula import parse
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
    columns = ["participant_id", "protocol", "age", "sex", "TIV", "GM", "Hippo"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(scan=[f"scan-{place}" for place in range(len(table))])


def fitted(table, formula, tissues) -> pd.DataFrame:
    return fit_tissues(table, formula, tissues).table


def test_estimates_p_and_intervals_are_those_of_least_squares():
    table = people()
    found = fitted(table, "~ age", ["GM", "Hippo"]).set_index("tissue")
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


def test_the_left_side_chooses_what_is_explained_and_the_table_says_so():
    table = people().assign(GM_percent_TIV=lambda own: 100 * own["GM"] / own["TIV"])
    table.loc[0, "age"] = np.nan
    found = fit_tissues(table, "GM_percent_TIV + Hippo ~ log(age)", ["GM"])
    assert found.table["tissue"].tolist() == ["GM_percent_TIV", "Hippo"]
    assert found.table["formula"].tolist() == ["GM_percent_TIV ~ log(age)", "Hippo ~ log(age)"]
    assert found.table[["scans", "left_out"]].to_numpy().tolist() == [[79, 1], [79, 1]]
    assert found.dictionary["left_out"]["Scans"] == {"scan-0": "no age"}
    assert found.dictionary["formula"]["Formula"] == "GM_percent_TIV + Hippo ~ log(age)"


def test_levels_called_none_and_na_are_levels_and_codes_stay_integers():
    words = people().assign(group=np.tile(["None", "NA", "drug", "NaN"], 20))
    found = fitted(words, "GM ~ group", ["GM"])
    assert found["term"].tolist() == ["group[T.NaN]", "group[T.None]", "group[T.drug]"]
    assert found["scans"].unique() == [80]
    codes = people().assign(site=np.tile([1.0, 2.0, 3.0, np.nan], 20))
    found = fitted(codes, "GM ~ C(site)", ["GM"])
    assert found["term"].tolist() == ["C(site)[T.2]", "C(site)[T.3]"]
    assert found["scans"].unique() == [60]


def test_what_cannot_be_fitted_is_one_plain_line(caplog):
    table = people().assign(months=lambda own: 12 * own["age"])
    two = pd.concat([table, table.assign(protocol="T2w", months=np.arange(80) % 7)])
    found = fitted(two.reset_index(drop=True), "~ age + months", ["GM", "Hippo"])
    assert found["protocol"].unique() == ["T2w"]
    assert [record.message for record in caplog.records] == [
        "T1w: too few scans for the formula, or its terms are collinear: GM, Hippo is left out."
    ]


def test_q_is_benjamini_hochberg_over_tissues_for_each_term():
    found = fitted(people(), "~ age + C(sex) + ICV", ["GM", "Hippo", "TIV"])
    assert set(found["tissue"]) == {"GM", "Hippo"}  # the formula corrects for TIV
    for _, part in found.groupby("term"):
        p = part["p"].to_numpy()
        np.testing.assert_allclose(part["q"], stats.false_discovery_control(p))


def test_repeated_people_get_a_random_intercept():
    found = fitted(people(40, visits=3), "GM ~ age + ICV", ["GM"]).set_index("term")
    assert found["method"].unique().tolist() == ["mixed"]
    assert found.loc["age", "estimate"] == pytest.approx(-2, abs=0.5)
    assert found.loc["age", "ci_low"] < -2 < found.loc["age", "ci_high"]
    assert (found["scans"].unique(), found["participants"].unique()) == ([120], [40])


def test_scans_without_a_value_are_left_out_and_counted():
    table = people()
    table.loc[:9, "age"] = np.nan
    assert fitted(table, "~ age", ["GM"])["scans"].tolist() == [70]


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("GM ~ height", "names height, but no table has such a column"),
        ("GM ~ weight", "names weight, but this column is empty for all scans"),
        ("GM", "is not a formula"),
        ("~ age +", "cannot be read: 'its end' is not a column"),
        ("GM ~ age + (1|site)", "random effects are not written; people who repeat get a random"),
        ("~ C(site)", "cannot be fitted in any protocol"),
        ("nonsense ~ age", "names nonsense, but no table has such a column"),
        ("sex ~ age", "models sex, which contains text"),
        ("GM ~ log(sex)", r"log\(sex\) contains numbers, but sex contains text"),
        ('~ C(sex, "X")', "sex has no level 'X'. It has F, M."),
    ],
)
def test_formulas_that_cannot_be_answered_are_refused(formula, message):
    table = people().assign(weight=np.nan, site=[f"s{i}" for i in range(80)])
    with pytest.raises(UsageError, match=message):
        fit_tissues(table, formula, ["GM"])


def study(seed=3, count=60) -> pd.DataFrame:
    """Ages, sexes, sites, head sizes and volumes, with a third of the people scanned twice."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "participant_id": [f"sub-{n}" for n in range(count)],
            "protocol": "T1w",
            "age": rng.uniform(20, 80, count),
            "sex": rng.choice(["F", "M"], count),
            "site": rng.choice([1, 2, 3], count),
            "TIV": rng.normal(1500, 100, count),
        }
    )
    for tissue, slope in (("GM", -2.0), ("WM", 0.3), ("Hippo", -0.02)):
        table[tissue] = 600 + slope * table["age"] + 0.1 * table["TIV"] + rng.normal(0, 9, count)
        table[tissue] += np.where(table["sex"] == "F", 6, 0) + 4 * table["site"]
    table["ICV"] = table["TIV"]
    return table.assign(scan=table["participant_id"] + "_T1w")


SAME = [
    "age",
    "age + C(sex) + ICV",
    "sex * age",
    "age:sex",
    "0 + sex + age",
    "sex + age - 1",
    "C(site) * sex",
    "C(site):sex",
    "(age + sex + C(site))**2",
    "(age + sex + C(site))**3 - age:sex:C(site)",
    "sex / age",
    "np.log(age) + I(age**2 / 100 - 3)",
    "np.sqrt(age) + center(age):sex",
    "C(sex, Treatment('M')) + np.exp(-age / 50)",
    "np.log10(ICV) + np.log1p(age) + np.abs(center(age))",
    "((sex + age)**2)**2",
    "age + ICV + 1",
    "C(site) + C(site):age",
]


@pytest.mark.parametrize("right", SAME)
@pytest.mark.parametrize("tissue", ["GM", "Hippo"])
def test_least_squares_are_those_of_statsmodels_own_formulas(right, tissue):
    table = study()
    known = smf.ols(f"{tissue} ~ {right}", table).fit()
    own = right.replace("np.", "")
    found = fitted(table, f"{tissue} ~ {own}", [tissue]).set_index("term")
    names = [name for name in known.params.index if name != "Intercept"]
    assert len(found) == len(names)
    reference = known.params[names].to_numpy()
    order = [np.argmin(abs(found["estimate"].to_numpy() - value)) for value in reference]
    assert sorted(order) == [*range(len(names))]
    found = found.iloc[order]
    np.testing.assert_allclose(found["estimate"], reference, rtol=1e-6)
    np.testing.assert_allclose(found["standard_error"], known.bse[names], rtol=1e-6)
    np.testing.assert_allclose(found["p"], known.pvalues[names], rtol=1e-5, atol=1e-300)
    np.testing.assert_allclose(found[["ci_low", "ci_high"]], known.conf_int().loc[names], rtol=1e-6)


def test_mixed_models_are_those_of_statsmodels_own_formulas():
    table = people(40, visits=3).assign(site=np.repeat(np.arange(40) % 3, 3))
    found = fitted(table, "GM ~ age * C(sex) + C(site) + ICV", ["GM"]).set_index("term")
    known = smf.mixedlm(
        "GM ~ age * C(sex) + C(site) + TIV", table, groups=table["participant_id"]
    ).fit(reml=True)
    for column, values in (
        ("estimate", known.params), ("standard_error", known.bse), ("p", known.pvalues),
    ):  # fmt: skip
        named = values.rename({"TIV": "ICV"})[found.index]
        np.testing.assert_allclose(found[column], named, rtol=1e-4, atol=1e-12)


def test_scale_divides_by_the_standard_deviation_as_in_r():
    table = study()
    found = fitted(table, "GM ~ scale(age)", ["GM"])
    slope = stats.linregress(table["age"], table["GM"]).slope
    assert found["estimate"].item() == pytest.approx(slope * table["age"].std(ddof=1))


def test_polynomials_are_orthonormal_and_fit_as_powers_do():
    table = study()
    found = fitted(table, "GM ~ poly(age, 3)", ["GM"])
    assert found["term"].tolist() == [f"poly(age, 3)[{degree}]" for degree in (1, 2, 3)]
    basis = parse("~ poly(age, 3)").design(table).to_numpy()[:, 1:]
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(basis.sum(axis=0), 0, atol=1e-12)
    cubic = smf.ols("GM ~ age + I(age**2) + I(age**3)", table).fit()
    known = np.polyfit(table["age"], table["GM"], 3)
    fit = np.linalg.lstsq(np.c_[np.ones(60), basis], table["GM"], rcond=None)[0]
    np.testing.assert_allclose(np.c_[np.ones(60), basis] @ fit, cubic.fittedvalues, rtol=1e-8)
    np.testing.assert_allclose(np.polyval(known, table["age"]), cubic.fittedvalues, rtol=1e-8)
    np.testing.assert_allclose(found["estimate"], fit[1:], rtol=1e-8)


class TestFormulasAreNotCode:
    """Nothing in a formula is run, whatever it says; what is refused is refused in one line."""

    HOSTILE = (
        "np.lib._npyio_impl.os.system('touch PWNED')",
        "np.save('PWNED', age)",
        "__import__('os').system('touch PWNED')",
        "C(__import__('os').system('touch PWNED'))",
        "I(__import__('os').system('touch PWNED'))",
        "I(age.__class__.__mro__)",
        "age.__class__",
        "C(age.to_csv('PWNED'))",
        "{open('PWNED', 'w')}",
        "{age}",
        "Q('age')",
        "Q(\"__import__('os')\")",
        "`__import__('os').system('touch PWNED')`",
        "C(`age`, contr.treatment(open('PWNED', 'w')))",
        "C(sex, levels=[open('PWNED', 'w')])",
        "C(sex, Treatment(open('PWNED', 'w')))",
        "(lambda: open('PWNED', 'w'))()",
        "(x := open('PWNED', 'w'))",
        "f'{open(1)}'",
        "I([age for age in open('PWNED', 'w')])",
        "log(age, out=open('PWNED', 'w'))",
        "log(eval('1'))",
        "exec('1')",
        "eval(age)",
        "bs(age, df=3)",
        "stateful(age)",
        "age[0]",
        "age @ age",
        "age; import os",
        "age\nimport os",
        "age if age else age",
        "age == open('PWNED', 'w')",
        "age ~ sex",
        "age | sex",
        "(1|site)",
        "%%age",
        "$(touch PWNED)",
        "age # comment",
        "'age'",
        "\x00",
        "\ud800",
        ".",
        "age ** sex",
        "age ** -1",
        "age ** 2.5",
        "age ** 1000000000000",
        "2 * age",
        "0:age",
        "I(2)",
        "poly(age, 99)",
        "poly(age)",
        "log()",
        "C()",
        "C(age",
        "age)",
        "()",
        "+",
        "age age",
    )

    @pytest.mark.parametrize("right", HOSTILE)
    def test_hostile_formulas_are_refused_in_one_line(self, right, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for text in (f"GM ~ {right}", f"{right} ~ age"):
            with pytest.raises(UsageError) as refused:
                fit_tissues(people(), text, ["GM"])
            assert "\n" not in str(refused.value)
            assert "--formula" in str(refused.value)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        "right",
        [
            "(age + sex)**10000000",
            "+".join(f"x{n}" for n in range(150)),
            "(a+b+c+d+e+f+g+h+i+j)**8",
            "*".join("abcdefghijklmnop"),
            "(" * 10_000 + "age" + ")" * 10_000,
            "(" * 400 + "age" + ")" * 400,
            "I(" * 40 + "age" + ")" * 40,
            "log(" + "-" * 900 + "age)",
            "I(age" + "**2" * 200 + ")",
            "I(" + "+".join(["age"] * 450) + ")",
        ],
    )
    def test_no_formula_takes_long(self, right):
        start = time.perf_counter()
        with pytest.raises(UsageError, match="--formula"):
            fit_tissues(people(), f"~ {right}", ["GM"])
        assert time.perf_counter() - start < 2

    @pytest.mark.parametrize(
        ("right", "scans"),
        [("I(age**9**9**9)", 0), ("log(age - 50)", 49), ("I(1 / (age - age))", 0)],
    )
    def test_values_that_are_no_numbers_are_left_out(self, right, scans):
        table = people()
        if scans:
            found = fit_tissues(table, f"GM ~ {right}", ["GM"])
            assert found.table["scans"].item() == (table["age"] > 50).sum() == scans
            assert set(found.left_out.values()) == {"the formula has no value"}
        else:
            with pytest.raises(UsageError, match="cannot be fitted in any protocol"):
                fit_tissues(table, f"GM ~ {right}", ["GM"])

    def test_any_name_and_level_is_only_a_name(self):
        nasty = "__import__('os').system('id')"
        table = people().rename(columns={"age": nasty, "sex": "Intercept"})
        table["1"] = np.arange(80) ** 2
        table["site"] = np.tile(["[T.b]", "Intercept", "{1+1}", nasty, "f1[T.l2]"], 16)
        found = fitted(table, f"GM ~ `{nasty}` + `Intercept` + `1` + site", ["GM"])
        assert found["term"].tolist()[:3] == [f"`{nasty}`", "`Intercept`[T.M]", "`1`"]
        assert len(found) == 7
        assert found["estimate"][0] == pytest.approx(-2, abs=0.5)
