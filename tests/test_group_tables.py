"""The tables of the group level: their digits, their columns, their arithmetic."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from documentation import blocks, fenced
from statsmodels.stats.multitest import multipletests

from siam_bids import cli
from siam_bids.bids.writers import save_table
from siam_bids.config import RunConfig
from siam_bids.errors import UsageError
from siam_bids.measures.group_tables import changes, head_size_adjusted
from siam_bids.measures.inclusion import Exclusion, exclusions, protocols
from siam_bids.measures.outliers import check_columns, find_outliers
from siam_bids.measures.regression import fit_tissues
from siam_bids.measures.session_times import session_times
from siam_bids.pipelines.group import run_group
from siam_bids.support.atomic_files import together
from siam_bids.support.tsv import read_rows


@pytest.fixture
def config(study, tmp_path) -> RunConfig:
    raw, out = study(tmp_path, people=12)
    return RunConfig(bids_dir=raw, output_dir=out, level="group", command="siam-bids")


def read(config: RunConfig, name: str) -> pd.DataFrame:
    return pd.read_csv(config.output_dir / f"{name}.tsv", sep="\t", na_values="n/a")


def add_protocol(root: Path, entity: str, factor: float) -> None:
    """Give everybody a second scan with an entity, all of its tissues larger by a factor."""
    for path in sorted(root.glob("sub-*/anat/*")):
        new = path.with_name(path.name.replace("_", f"_{entity}_", 1))
        shutil.copy(path, new)
        if path.name.endswith("dseg.json"):
            new.write_text(path.read_text().replace("_T1w.nii", f"_{entity}_T1w.nii"))
        if path.name.endswith("volumes.tsv"):
            table = pd.read_csv(path, sep="\t", na_values="n/a", dtype={"index": "Int64"})
            table["volume_mL"] *= factor
            table.to_csv(new, sep="\t", index=False, na_rep="n/a")


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
    with together() as batch:
        save_table(batch, tmp_path, "group_x", table, {})
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
    with together() as batch:
        save_table(batch, tmp_path, "group_x", pd.DataFrame({"x": [value]}), {})
    assert (tmp_path / "group_x.tsv").read_text() == f"x\n{text}\n"


class TestProtocols:
    @staticmethod
    def scans(**columns) -> pd.DataFrame:
        count = len(next(iter(columns.values())))
        people = {"participant_id": [f"sub-{n}" for n in range(count)], "contrast": ["T1w"] * count}
        return pd.DataFrame({**people, **columns})

    def test_entities_that_people_share_tell_them_apart(self):
        table = self.scans(acq_id=["acq-a", "acq-b", "acq-a", None], run_id=["run-1"] * 4)
        assert protocols(table).tolist() == ["acq-a_T1w", "acq-b_T1w", "acq-a_T1w", "T1w"]

    def test_labels_of_one_person_each_do_not(self):
        table = self.scans(acq_id=["acq-20010203", "acq-20010204", "acq-20010205"])
        assert protocols(table).unique().tolist() == ["T1w"]

    def test_one_odd_person_is_apart(self):
        table = self.scans(ce_id=["ce-gado", None, None])
        assert protocols(table).tolist() == ["ce-gado_T1w", "T1w", "T1w"]

    def test_columns_of_ones_own_tell_them_apart(self):
        table = self.scans(acq_id=["acq-a", "acq-b", None], site=[1.0, 2.0, np.nan])
        assert protocols(table, ["contrast"]).unique().tolist() == ["T1w"]
        assert protocols(table, ["site", "contrast"]).tolist() == [
            "site-1_T1w", "site-2_T1w", "site-n/a_T1w",
        ]  # fmt: skip
        with pytest.raises(UsageError, match="--group-by names scanner, but no table"):
            protocols(table, ["scanner"])

    def test_two_protocols_are_never_pooled(self, config):
        """What people say pooled: one median, one slope, one model for scans 1.3 times as large."""
        add_protocol(config.output_dir, "acq-ce", 1.3)
        wide = run_group(replace(config, formula="GM ~ age")).wide.set_index("scan")
        assert len(wide) == 24
        assert wide["acq_id"].value_counts().to_dict() == {"acq-ce": 12}
        assert wide["protocol"].value_counts().to_dict() == {"T1w": 12, "acq-ce_T1w": 12}
        found = read(config, "group_statistics").set_index("protocol")
        assert found["scans"].tolist() == [12, 12]
        assert found.loc["acq-ce_T1w", "estimate"] == pytest.approx(
            1.3 * found.loc["T1w", "estimate"], rel=1e-4
        )
        outliers = read(config, "group_outliers")
        assert {"sub-07_T1w", "sub-07_acq-ce_T1w"} <= {*outliers["scan"]}
        assert outliers["scans"].unique().tolist() == [12]
        tidy = read(config, "group_desc-tidy_volumes")
        for _, part in tidy[tidy["tissue"] == "GM"].groupby("protocol"):
            assert part["adjusted_mL"].mean() == pytest.approx(part["volume_mL"].mean())
        reference = json.loads((config.output_dir / "group_reference.json").read_text())
        assert reference["spreads"]["acq-ce_T1w"]["GM"]["scans"] == 12
        page = (config.output_dir / "group.html").read_text()
        data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
        assert set(data["scans"]["protocol"]) == {"T1w", "acq-ce_T1w"}
        assert data["categories"]["acq_id"].count("acq-ce") == 12
        pooled = run_group(replace(config, group_by=("contrast",))).wide
        assert pooled["protocol"].unique().tolist() == ["T1w"]


class TestExclusion:
    TABLE = pd.DataFrame(
        {
            "scan": list("abcd"), "rating": ["fail", None, "pass", "warn"],
            "age": [17, 30, np.nan, 90], "site": [1, 2, 2, 3],
        }
    )  # fmt: skip

    @pytest.mark.parametrize(
        ("rule", "scans"),
        [
            ("rating=fail", "a"), ("rating == fail", "a"), ("rating!=pass", "ad"),
            ("rating=n/a", "b"), ("age<18", "a"), ("age <= 30", "ab"), ("age>=30", "bd"),
            ("age>30", "d"), ("age=n/a", "c"), ("age!=n/a", "abd"), ("site=2", "bc"),
            ("site!=2.0", "ad"), ("age=17", "a"), ("rating=ugly", ""),
        ],
    )  # fmt: skip
    def test_a_rule_is_a_column_a_comparison_and_a_value(self, rule, scans):
        assert "".join(exclusions(self.TABLE, [rule])) == scans

    @pytest.mark.parametrize(
        ("rule", "scans"), [("rating=FAIL", "a"), ("rating != Pass", "ad"), ("flag=Warn", "b")]
    )
    def test_ratings_and_flags_are_written_in_any_case(self, rule, scans, caplog):
        table = self.TABLE.assign(flag=["pass", "warn", "pass", None])
        assert "".join(exclusions(table, [rule])) == scans
        assert not caplog.messages

    @pytest.mark.parametrize("sign", ["=", "!="])
    def test_a_word_that_no_scan_has_is_named_with_those_there_are(self, sign, caplog):
        table = self.TABLE.assign(sex=["F", "M", "F", None])
        exclusions(table, [f"sex{sign}f"])
        assert caplog.messages == [
            f"--exclude sex {sign} f: no scan has this value. There are: F, M."
        ]

    def test_every_rule_that_applies_is_a_reason(self):
        assert exclusions(self.TABLE, ["age<18", "rating=fail", "site>2"]) == {
            "a": "age < 18; rating = fail", "d": "site > 2",
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("rule", "message"),
        [
            ("rating", "is not a comparison"), ("=fail", "is not a comparison"),
            ("height>3", "names height, but no table has such a column"),
            ("rating<3", "rating contains text. Use = or !=."), ("age<old", "age contains numbers"),
            ("age<inf", "age contains numbers"), ("site>0", "leaves no scan"),
            ("rating.__class__=fail", "but no table has such a column"),
        ],
    )  # fmt: skip
    def test_rules_that_cannot_be_followed_are_refused(self, rule, message):
        with pytest.raises(UsageError, match=re.escape(message)):
            exclusions(self.TABLE, [rule])

    def test_without_ratings_a_rule_on_them_says_where_they_are_looked_for(self):
        said = "--exclude rating = fail: no ratings were found. Put the group_ratings*.tsv that"
        with pytest.raises(UsageError, match=re.escape(said)):
            exclusions(self.TABLE.drop(columns="rating"), ["age<18", "rating=fail"])

    def test_an_unknown_column_names_the_closest_and_how_many_there_are(self):
        columns = [f"{tissue}_{side}_mL" for tissue in ("GM", "WM", "Thal", "Put", "Caud")
                   for side in ("left", "right", "mean")]  # fmt: skip
        table = pd.DataFrame([range(15)], columns=columns)
        with pytest.raises(UsageError) as refused:
            check_columns(table, ["gm_left_ml"], "--adjust-for")
        assert refused.value.hint.startswith("Did you mean GM_left_mL or ")
        assert refused.value.hint.endswith("? There are 15 columns.")
        with pytest.raises(UsageError) as refused:
            check_columns(table, ["height"], "--adjust-for")
        assert refused.value.hint.startswith("There are 15 columns: GM_left_mL, GM_right_mL, ")
        assert refused.value.hint.endswith("WM_mean_mL and 9 more.")
        with pytest.raises(UsageError) as refused:
            check_columns(table[["GM_left_mL"]], ["height"], "--adjust-for")
        assert refused.value.hint == "There are: GM_left_mL."

    def test_rules_read_back_as_they_are_told(self):
        assert Exclusion.parse(str(Exclusion.parse("a=b<c"))) == Exclusion.parse("a=b<c")

    def test_excluded_scans_count_nowhere_and_every_table_says_so(self, config, caplog):
        (config.output_dir / "group_ratings.tsv").write_text(
            "scan\trating\tnote\nsub-02_T1w\tfail\tmoved\nsub-03_T1w\tpass\tn/a\n"
        )
        run_group(replace(config, formula="~ age + C(sex)"))
        assert (
            "Scans rated fail are included in all statistics: 1 of 12; --exclude "
            "rating=fail" in caplog.text
        )
        assert (
            "Scans flagged fail are included in all statistics: 1 of 12; --exclude "
            "flag=fail" in caplog.text
        )
        before = read(config, "group_statistics").set_index(["tissue", "term"]).loc[("GM", "age")]
        caplog.clear()
        place = [str(config.bids_dir), str(config.output_dir), "group"]
        options = ["--exclude", "rating=fail", "flag=fail", "--formula", "~ age + C(sex)"]
        assert cli.main([*place, *options]) == 0
        assert "--exclude leaves out 2 of 12 scans." in caplog.text
        assert "are included in all statistics" not in caplog.text
        for name in ("group_desc-wide_volumes", "group_desc-tidy_volumes", "group_qc"):
            table = read(config, name).drop_duplicates("scan").set_index("scan")
            assert table["included"].value_counts().to_dict() == {"yes": 10, "no": 2}
            assert table.loc["sub-02_T1w", "excluded_because"] == "rating = fail"
            assert table.loc["sub-07_T1w", "excluded_because"] == "flag = fail"
        phenotype = pd.read_csv(config.output_dir / "phenotype/siam_T1w.tsv", sep="\t")
        assert (phenotype["included"] == "yes").sum() == 10
        found = read(config, "group_statistics").set_index(["tissue", "term"]).loc[("GM", "age")]
        assert found[["scans", "left_out"]].tolist() == [10, 2]
        assert abs(found["estimate"] + 2) < 0.1 < abs(before["estimate"] + 2)
        about = json.loads((config.output_dir / "group_statistics.json").read_text())
        assert about["left_out"]["Scans"] == {
            "sub-02_T1w": "rating = fail", "sub-07_T1w": "flag = fail",
        }  # fmt: skip
        assert set(read(config, "group_outliers")["scans"]) <= {10}
        reference = json.loads((config.output_dir / "group_reference.json").read_text())
        assert reference["spreads"]["T1w"]["GM"]["scans"] == 10
        page = (config.output_dir / "group.html").read_text()
        assert "2 of them are excluded from" in page
        assert "<strong>sub-02_T1w</strong>: rating = fail" in page
        data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
        assert data["scans"]["excluded"][1] == "rating = fail"


def test_the_wide_table_has_all_that_the_long_one_has(config):
    run_group(config)
    wide = read(config, "group_desc-wide_volumes").set_index("scan")
    tidy = read(config, "group_desc-tidy_volumes")
    names = {"volume_mL": "{}", "percent_TIV": "{}_percent_TIV", "adjusted_mL": "{}_adjusted_mL",
             "voxels": "{}_voxels"}  # fmt: skip
    for column, name in names.items():
        for tissue, part in tidy.groupby("tissue"):
            if tissue != "TIV" or column in ("volume_mL", "voxels"):
                own = wide.loc[part["scan"], name.format(tissue)]
                np.testing.assert_allclose(own, part[column], rtol=1e-6)
    assert {*tidy} - {*wide} == {"scan", "tissue", "index", *names}


def simulated(count=40) -> pd.DataFrame:
    """Volumes that follow head size and age, in long form; the last five scans are far off."""
    rng = np.random.default_rng(5)
    heads, age = rng.normal(1500, 120, count), rng.uniform(20, 80, count)
    gray = 400 + 0.15 * heads - 1.5 * age + rng.normal(0, 6, count)
    gray[-5:] += 150
    names = [f"sub-{n:02d}_T1w" for n in range(count)]
    return pd.DataFrame({"scan": names, "TIV": heads, "GM": gray, "age": age})


@pytest.mark.parametrize("left_out", [0, 5])
def test_head_size_adjustment_is_that_of_least_squares(left_out):
    wide = simulated()
    excluded = wide["scan"].tolist()[len(wide) - left_out :]
    tidy = wide.melt("scan", ["TIV", "GM"], "tissue", "volume_mL").assign(protocol="T1w")
    found = head_size_adjusted(tidy, excluded)[tidy["tissue"] == "GM"]
    fit = smf.ols("GM ~ TIV", wide.iloc[: len(wide) - left_out]).fit()
    middle = wide["TIV"].iloc[: len(wide) - left_out].mean()
    np.testing.assert_allclose(found, wide["GM"] - fit.params["TIV"] * (wide["TIV"] - middle))


@pytest.mark.parametrize("left_out", [0, 5])
def test_outliers_after_adjustment_are_those_of_statsmodels_robust_regression(left_out):
    wide = simulated().assign(
        participant_id="x", session_id="", contrast="T1w", protocol="T1w",
        sex=np.tile(["F", "M"], 20),
    )  # fmt: skip
    excluded = wide["scan"].tolist()[len(wide) - left_out :]
    counted = wide.iloc[: len(wide) - left_out]
    fit = smf.rlm("GM ~ age + C(sex) + TIV", counted, M=sm.robust.norms.HuberT()).fit()
    residual = wide["GM"] - fit.predict(wide)
    own = residual.iloc[: len(wide) - left_out]
    scale = 1.4826 * (own - own.median()).abs().median()
    found = find_outliers(wide, ["GM"], adjust=["age", "sex", "TIV"], excluded=excluded)
    found = found.set_index("scan")
    assert {*wide["scan"].tail(5)} <= {*found.index}
    score = pd.Series(((residual - own.median()) / scale).to_numpy(), index=wide["scan"])
    np.testing.assert_allclose(found["robust_z"], score[found.index], rtol=1e-4)
    assert found["scans"].unique() == [len(counted)]


def test_false_discovery_rates_are_those_of_statsmodels():
    rng = np.random.default_rng(2)
    names = [f"t{n}" for n in range(12)]
    table = pd.DataFrame(rng.normal(100, 5, (30, 12)), columns=names)
    table = table.assign(participant_id=range(30), protocol="T1w", age=rng.uniform(20, 80, 30))
    table["scan"] = [f"sub-{n}_T1w" for n in range(30)]
    table["t0"] -= table["age"]
    found = fit_tissues(table, "~ age", names).table
    known = [smf.ols(f"{name} ~ age", table).fit().pvalues["age"] for name in names]
    np.testing.assert_allclose(found["p"], known, rtol=1e-6)
    np.testing.assert_allclose(found["q"], multipletests(known, method="fdr_bh")[1], rtol=1e-6)


def test_changes_per_year_recover_rates_that_were_put_in():
    rng = np.random.default_rng(4)
    rows, rates, gaps = [], {}, {}
    for number in range(20):
        rate, gap, start = rng.normal(-4, 2), rng.uniform(0.5, 3), rng.normal(600, 40)
        rates[f"sub-{number:02d}"], gaps[f"sub-{number:02d}"] = rate, gap
        first = pd.Timestamp("1911-03-05T12:00:00")
        for session, years in (("ses-a", 0), ("ses-b", gap), ("ses-c", 2 * gap)):
            when = first + pd.Timedelta(days=365.25 * years)
            rows.append(
                {
                    "participant_id": f"sub-{number:02d}", "session_id": session, "contrast": "T1w",
                    "protocol": "T1w", "scan": f"sub-{number:02d}_{session}_T1w",
                    "included": "yes", "excluded_because": None,
                    "acq_time": when.isoformat(), "age": 50.0, "GM": start + rate * years,
                }
            )  # fmt: skip
    rows[1]["excluded_because"] = "rating = fail"
    wide = pd.DataFrame(rows).sample(frac=1, random_state=1, ignore_index=True)
    visits = [*zip(wide["participant_id"], wide["session_id"], strict=True)]
    times = session_times(visits, wide["acq_time"].tolist(), ["50"] * len(wide), [""] * len(wide))
    found = changes(wide, ["GM"], times)
    assert len(found) == 40
    people = found["participant_id"]
    np.testing.assert_allclose(found["change_mL_per_year"], people.map(rates), rtol=1e-5)
    factor = found["session_to"].map({"ses-b": 1, "ses-c": 2})
    np.testing.assert_allclose(found["years"], people.map(gaps) * factor, rtol=1e-6)
    percent = 100 * found["change_mL"] / found["volume_from_mL"] / found["years"]
    np.testing.assert_allclose(found["change_percent_per_year"], percent)
    assert found.loc[found["included"] == "no", "scan"].tolist() == ["sub-00_ses-b_T1w"]


def test_changes_within_30_days_are_not_extrapolated_to_a_year():
    days = {"a": 0, "b": 0.2, "c": 29.5, "d": 30, "e": 60}
    sessions = [f"ses-{name}" for name in days]
    wide = pd.DataFrame({
        "participant_id": "sub-1", "session_id": sessions, "contrast": "T1w", "protocol": "T1w",
        "scan": [f"sub-1_{name}_T1w" for name in sessions], "included": "yes",
        "excluded_because": None, "GM": [600.0, 601, 602, 603, 604],
    })  # fmt: skip
    dates = [str(pd.Timestamp("2020-01-01") + pd.Timedelta(days=each)) for each in days.values()]
    visits = [("sub-1", name) for name in sessions]
    noise = dict.fromkeys(wide["scan"], "alone")
    found = changes(wide, ["GM"], session_times(visits, dates, [""] * 5, [""] * 5), noise)
    assert found[["years", "noise_percent"]].notna().all(axis=None)
    for column in ("change_mL_per_year", "change_percent_per_year", "noise_percent_per_year"):
        assert found[column].notna().tolist() == [False, False, True, True]


@pytest.fixture
def outputs(config, monkeypatch) -> Path:
    """A folder with the output as the documentation calls it."""
    run_group(replace(config, exclude=("flag=fail",)))
    place = config.output_dir.parent
    config.output_dir.rename(place / "OUT")
    monkeypatch.chdir(place)
    return place


def test_the_recipe_in_python_reads_the_tables(outputs, capsys):
    (recipe,) = (block for block in blocks("docs/outputs.md") if "read_csv" in block)
    exec(recipe)
    assert re.search(r"T1w +11\.0 ", capsys.readouterr().out)


@pytest.mark.skipif(not shutil.which("Rscript"), reason="needs R")
def test_the_recipe_in_r_reads_the_tables(outputs):
    (outputs / "recipe.R").write_text(
        fenced("docs/outputs.md")["In R:"] + "stopifnot(nrow(kept) == 11)\n"
    )
    subprocess.run(["Rscript", "recipe.R"], check=True)
