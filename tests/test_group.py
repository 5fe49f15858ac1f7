"""The group level on results with known volumes: tables, outliers, statistics, change, ratings."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from checks import check_tables, validator_errors
from conftest import TISSUES

from siam_bids import cli
from siam_bids.bids.names import ScanNames, sidecar
from siam_bids.bids.scan import BidsName
from siam_bids.config import RunConfig
from siam_bids.errors import DatasetError, UsageError
from siam_bids.pipelines.group import run_group
from siam_bids.reports.subject import write_subject_page

ODD = "sub-07_T1w"


def config_of(raw: Path, out: Path, **more) -> RunConfig:
    return RunConfig(bids_dir=raw, output_dir=out, level="group", command="siam-bids", **more)


@pytest.fixture
def config(study, tmp_path) -> RunConfig:
    return config_of(*study(tmp_path))


@pytest.fixture
def visits(study, tmp_path) -> RunConfig:
    return config_of(*study(tmp_path, people=10, sessions=("a", "b")))


def read(config: RunConfig, name: str) -> pd.DataFrame:
    return pd.read_csv(config.output_dir / f"{name}.tsv", sep="\t")


def page_data(config: RunConfig) -> dict:
    page = (config.output_dir / "group.html").read_text()
    return json.loads(re.search(r'id="data">(.*?)</script>', page)[1])


def test_long_and_wide_tables_agree_and_join_the_participants(config):
    wide = run_group(config).wide.set_index("scan")
    assert wide.loc["sub-05_T1w", ["age", "sex"]].tolist() == [35, "M"]
    tidy = read(config, "group_desc-tidy_volumes")
    assert len(tidy) == 12 * 18
    for scan, row in wide.iterrows():
        part = tidy[tidy["scan"] == scan].set_index("tissue")
        assert row["GM"] == pytest.approx(part.loc["GM", "volume_mL"], abs=1e-3)
        share = 100 * part.loc["GM", "volume_mL"] / part.loc["TIV", "volume_mL"]
        assert part.loc["GM", "percent_TIV"] == pytest.approx(share, abs=1e-3)
        assert row["GM_percent_TIV"] == pytest.approx(share, abs=1e-3)


def test_head_size_adjusted_volumes_keep_the_mean_and_lose_the_slope(config):
    run_group(config)
    tidy = read(config, "group_desc-tidy_volumes")
    total = tidy[tidy["tissue"] == "TIV"]["volume_mL"].to_numpy()
    part = tidy[tidy["tissue"] == "GM"]
    assert part["adjusted_mL"].mean() == pytest.approx(part["volume_mL"].mean(), abs=1e-3)
    assert part["adjusted_mL"].corr(pd.Series(total, index=part.index)) == pytest.approx(
        0, abs=1e-3
    )


def test_every_column_of_every_table_is_described_and_parquet_says_the_same(visits):
    run_group(replace(visits, formula="~ age"))
    names = [path.stem for path in visits.output_dir.glob("group_*.tsv")]
    assert len(names) == 6
    for name in names:
        table = read(visits, name)
        described = json.loads((visits.output_dir / f"{name}.json").read_text())
        assert list(described) == list(table)
        assert all(entry["Description"] for entry in described.values())
        again = pd.read_parquet(visits.output_dir / f"{name}.parquet")
        assert list(again) == list(table)
        numbers = table.select_dtypes("number").columns
        pd.testing.assert_frame_equal(
            again[numbers].astype(float), table[numbers].astype(float), rtol=1e-6
        )


def test_the_odd_scan_is_an_outlier_with_its_reason(study, tmp_path):
    config = config_of(*study(tmp_path, people=20))
    run_group(config)
    found = read(config, "group_outliers")
    assert found["scan"][0] == ODD
    row = found[found["scan"] == ODD].set_index("measure").loc["brain_cut_top"]
    assert row["value"] == 20
    run_group(replace(config, adjust=("age", "sex")))
    found = read(config, "group_outliers")
    gray = found[found["measure"] == "GM"]
    assert gray["scan"].tolist() == [ODD]
    assert gray["robust_z"].item() > 20
    assert "given age, sex" in gray["reason"].item()


def test_quality_table_flags_the_odd_scan_in_words(config):
    run_group(config)
    table = read(config, "group_qc").set_index("scan")
    assert table.loc[ODD, "flag"] == "fail"
    assert table.loc[ODD, "reasons"] == "The top of the brain is cut off (20.0 cm2 at the border)."
    assert (table["flag"] == "pass").sum() == 11


def test_statistics_recover_the_slopes_of_age_and_sex(study, tmp_path):
    config = config_of(*study(tmp_path, odd=""))
    people = config.bids_dir / "participants.tsv"
    run_group(replace(config, formula="~ age + C(sex)"))
    found = read(config, "group_statistics").set_index(["tissue", "term"])
    assert set(found.index.get_level_values("tissue")) >= {"TIV", *TISSUES} - {"Head"}
    assert found.loc[("GM", "age"), "estimate"] == pytest.approx(-2, abs=0.1)
    assert found.loc[("GM", "C(sex)[T.M]"), "estimate"] == pytest.approx(-10, abs=1)
    assert found.loc[("GM", "age"), "ci_low"] < -2 < found.loc[("GM", "age"), "ci_high"]
    assert found.loc[("GM", "age"), "q"] < 1e-6
    assert found.loc[("GM", "age"), "method"] == "ols"
    assert "<code>~ age + C(sex)</code>" in (config.output_dir / "group.html").read_text()
    run_group(config)
    assert not (config.output_dir / "group_statistics.tsv").exists()
    people.write_text(people.read_text().replace("sex", "gender"))
    run_group(replace(config, formula="GM_percent_TIV ~ age"))
    assert read(config, "group_statistics")["tissue"].tolist() == ["GM_percent_TIV"]
    with pytest.raises(UsageError, match="--formula names sex, but no table has such a column"):
        run_group(replace(config, formula="~ age + C(sex)"))
    assert not (config.output_dir / "group_statistics.tsv").exists()


def test_repeated_sessions_get_a_mixed_model(visits):
    run_group(replace(visits, formula="~ age"))
    found = read(visits, "group_statistics").set_index("tissue")
    assert found.loc["GM", "method"].startswith("mixed")
    assert (found.loc["GM", "scans"], found.loc["GM", "participants"]) == (20, 10)


def test_change_between_sessions_is_per_year_of_age(visits):
    wide = run_group(visits).wide.set_index("scan")
    changes = read(visits, "group_changes")
    row = changes[(changes["scan"] == "sub-03_ses-b_T1w") & (changes["tissue"] == "GM")].iloc[0]
    before, after = wide.loc["sub-03_ses-a_T1w", "GM"], wide.loc["sub-03_ses-b_T1w", "GM"]
    assert (row["session_from"], row["session_to"], row["years"]) == ("ses-a", "ses-b", 1)
    assert row["change_mL"] == pytest.approx(after - before, abs=1e-3)
    assert row["change_percent"] == pytest.approx(100 * (after - before) / before, abs=1e-3)
    assert row["change_mL_per_year"] == pytest.approx(row["change_mL"], abs=1e-3)
    assert wide.loc["sub-03_ses-b_T1w", "age"] == 30  # the session's own age, not 29


def test_dates_of_scans_come_before_ages(visits):
    for number in range(1, 11):
        for session, date in (("a", "2001-03-01T10:00:00"), ("b", "2003-03-01T10:00:00")):
            folder = visits.bids_dir / f"sub-{number:02d}" / f"ses-{session}"
            folder.mkdir()
            stem = f"sub-{number:02d}_ses-{session}"
            (folder / f"{stem}_scans.tsv").write_text(
                f"filename\tacq_time\nanat/{stem}_T1w.nii.gz\t{date}\n"
            )
    run_group(visits)
    assert read(visits, "group_changes")["years"].round(2).unique().tolist() == [2.0]


@pytest.mark.parametrize("known", ["age", "participants", "date", "nothing"])
def test_pages_and_tables_order_sessions_by_time_else_by_label(study, tmp_path, known):
    """Session `pre` is older than `post`, and later in the alphabet."""
    raw, out = study(tmp_path, people=2, odd="", sessions=("pre", "post"))
    (raw / "participants.tsv").write_text("participant_id\nsub-01\nsub-02\n")
    for path in raw.glob("sub-*/*_sessions.tsv"):
        if known != "age":
            path.unlink()
        if known == "participants":
            (raw / "participants.tsv").write_text(
                "participant_id\tsession_id\tage\n"
                + "".join(f"sub-0{n}\tses-pre\t30\nsub-0{n}\tses-post\t31\n" for n in (1, 2))
            )
        if known == "date":
            path.write_text("session_id\tacq_time\nses-pre\t2001-01-01\nses-post\t2002-01-01\n")
    expected = ["ses-post", "ses-pre"] if known == "nothing" else ["ses-pre", "ses-post"]

    def order() -> list[str]:
        page = (out / "sub-01.html").read_text()
        table = page[page.index('<section id="compare"') :]
        assert "<small>" not in re.search(r"TIV</th>\s*(<td.*?</td>)", table, re.DOTALL)[1]
        return re.findall(r'<section class="scan" id="sub-01_(ses-[a-z]+)_T1w"', page)

    write_subject_page(out, "01", "siam-bids", raw)  # as the participant level does
    assert order() == expected
    run_group(RunConfig(bids_dir=raw, output_dir=out, level="group"))
    assert order() == expected
    changes = pd.read_csv(out / "group_changes.tsv", sep="\t")
    assert changes[["session_from", "session_to"]].drop_duplicates().to_numpy().tolist() == [
        expected
    ]


@pytest.mark.parametrize(
    ("ages", "units", "years"),
    [
        (("88", "89+", "89+"), "", [None, None]),
        (("24", "30", "36"), "months", [0.5, 1]),
        (("36525", "36890.25", "37255.5"), "day", [1, 2]),
        (("30", "31", "32"), "year", [1, 2]),
        (("30", "31", "32"), "decade", [None, None]),
    ],
)
@pytest.mark.parametrize("described", ["sessions.json", "sub-01/sub-01_sessions.json"])
def test_years_follow_the_units_of_age_and_are_unknown_above_89(
    study, tmp_path, caplog, ages, units, years, described
):
    """Also from the tables of an earlier run, which have 89 for 89+."""
    raw, out = study(tmp_path, people=1, odd="", sessions=("a", "b", "c"))
    (raw / "participants.tsv").unlink()
    rows = "".join(f"ses-{name}\t{age}\n" for name, age in zip("abc", ages, strict=True))
    (raw / "sub-01" / "sub-01_sessions.tsv").write_text(f"session_id\tage\n{rows}")
    (raw / described).write_text(json.dumps({"age": {"Units": units}}))
    for _ in range(2):
        run_group(RunConfig(bids_dir=raw, output_dir=out, level="group"))
        changes = pd.read_csv(out / "group_changes.tsv", sep="\t").query("tissue == 'GM'")
        assert [*changes["session_to"]] == ["ses-b", "ses-c"]
        assert changes["years"].fillna(-1).tolist() == pytest.approx([y or -1 for y in years])
        assert any("(decade)" in said for said in caplog.messages) == (units == "decade")
        caplog.clear()
        (raw / "sub-01" / "sub-01_sessions.tsv").unlink(missing_ok=True)


@pytest.mark.parametrize("column", ["age", "acq_time"])
@pytest.mark.parametrize("level", ["participant", "group"])
def test_labels_in_natural_order_decide_where_a_time_is_missing(
    study, tmp_path, caplog, level, column
):
    raw, out = study(tmp_path, people=2, odd="", sessions=("2", "10", "3"))
    (raw / "participants.tsv").write_text("participant_id\nsub-01\nsub-02\n")
    times = ("33", "31") if column == "age" else ("2003-01-01", "2001-01-01")
    (raw / "sub-01" / "sub-01_sessions.tsv").write_text(
        f"session_id\t{column}\nses-2\tn/a\nses-3\t{times[0]}\nses-10\t{times[1]}\n"
    )
    if level == "participant":
        write_subject_page(out, "01", "siam-bids", raw)
    else:
        run_group(RunConfig(bids_dir=raw, output_dir=out, level="group"))
        changes = pd.read_csv(out / "group_changes.tsv", sep="\t").query("tissue == 'GM'")
        own = changes.loc[changes["participant_id"] == "sub-01"]
        assert own["session_from"].unique().tolist() == ["ses-2"]
        assert own["years"].isna().all()
        assert [*own["session_to"]] == ["ses-3", "ses-10"]
    page = (out / "sub-01.html").read_text()
    order = re.findall(r'<section class="scan" id="sub-01_(ses-[0-9]+)_T1w"', page)
    assert order == ["ses-2", "ses-3", "ses-10"]
    (said,) = (message for message in caplog.messages if "ordered by label" in message)
    assert said.endswith("known for some of them only: sub-01. Complete scans.tsv or sessions.tsv.")


def test_ratings_are_joined_and_go_back_to_the_page(config):
    path = config.output_dir / "group_ratings.tsv"
    path.write_text("scan\trating\tnote\nsub-02_T1w\tfail\tmoved a lot\nsub-03_T1w\tpass\tn/a\n")
    wide = run_group(config).wide.set_index("scan")
    assert wide.loc["sub-02_T1w", ["rating", "rating_note"]].tolist() == ["fail", "moved a lot"]
    rest = {"tags": "", "time": ""}
    assert page_data(config)["ratings"] == {
        "": {
            "sub-02_T1w": {"rating": "fail", "note": "moved a lot", **rest},
            "sub-03_T1w": {"rating": "pass", "note": "", **rest},
        }
    }
    for encoding in ("utf-8-sig", "utf-16", "latin-1"):
        path.write_text("scan\trating\tnote\nsub-02_T1w\twarn\tGrüße\n", encoding=encoding)
        wide = run_group(config).wide.set_index("scan")
        assert wide.loc["sub-02_T1w", ["rating", "rating_note"]].tolist() == ["warn", "Grüße"]
    with pytest.raises(UsageError, match="do not exist"):
        run_group(replace(config, ratings=(config.output_dir / "none.tsv",)))


def test_one_invalid_rating_stops_nothing_and_the_exit_code_tells(config, capsys):
    """Also a file without ratings, a line that is too long, and a time that is none."""
    out = config.output_dir
    (out / "group_ratings_a.tsv").write_text(
        "scan\trating\nsub-02_T1w\tugly\nsub-03_T1w\tFAIL\nsub-04_T1w\tpass\tand\tmore\n"
    )
    (out / "group_ratings_b.tsv").write_text("scan,rating\nsub-05_T1w,pass\n")
    assert cli.main([str(config.bids_dir), str(out), "group", "--exclude", "rating=fail"]) == 1
    assert capsys.readouterr().out.splitlines()[1:] == [
        (
            "LEFT OUT group_ratings_a.tsv holds what is not a rating: 'ugly' of sub-02_T1w in "
            "line 2, line 4 with more cells than columns. Correct or remove it."
        ),
        (
            f"LEFT OUT The ratings {out / 'group_ratings_b.tsv'} lack the columns scan and rating. "
            "Export them from the group page."
        ),
    ]
    wide = read(config, "group_desc-wide_volumes").set_index("scan")
    assert wide.index[wide["rating"].notna()].tolist() == ["sub-03_T1w"]
    assert wide.loc["sub-03_T1w", "excluded_because"] == "rating = fail"
    words = [str(config.bids_dir), str(out), "group", "--ratings"]
    assert cli.main([*words, str(out / "group_ratings_b.tsv")]) == 2


@pytest.mark.parametrize("participants", [True, False])
@pytest.mark.parametrize(
    ("table", "sessions"), [("scans", ("",)), ("scans", ("a", "b")), ("sessions", ("a", "b"))]
)
def test_times_that_are_none_are_named(study, tmp_path, caplog, table, sessions, participants):
    """Without sessions too, and without participants.tsv, which sessions.tsv does not need."""
    raw, out = study(tmp_path, people=2, odd="", sessions=sessions)
    if not participants:
        (raw / "participants.tsv").unlink()
    session = f"ses-{sessions[-1]}" if sessions[-1] else ""
    stem = "_".join(filter(None, ("sub-02", session)))
    folder = raw / "sub-02" / session
    folder.mkdir(exist_ok=True)
    if table == "scans":
        text = f"filename\tacq_time\nanat/{stem}_T1w.nii.gz\tyesterday\n"
        (folder / f"{stem}_scans.tsv").write_text(text)
    else:
        (raw / "sub-02" / "sub-02_sessions.tsv").write_text(
            "session_id\tage\tacq_time\nses-a\t30\t2001-01-01\nses-b\t31\tyesterday\n"
        )
    wide = run_group(RunConfig(bids_dir=raw, output_dir=out, level="group")).wide.set_index("scan")
    said = f"acq_time: values that are not times are left out: yesterday of {stem}_T1w."
    assert caplog.messages.count(said) == 1
    assert pd.isna(wide.loc[f"{stem}_T1w", "acq_time"])
    if table == "sessions":
        assert wide.loc[["sub-02_ses-a_T1w", f"{stem}_T1w"], "age"].tolist() == [30, 31]


def test_reports_only_writes_the_page_and_leaves_the_tables(config):
    run_group(config)
    table = config.output_dir / "group_desc-wide_volumes.tsv"
    table.unlink()
    page = config.output_dir / "group.html"
    before = page.read_text()
    page.unlink()
    run_group(replace(config, reports_only=True))
    assert page.read_text() == before
    assert not table.exists()


def test_a_partial_dataset_says_what_is_missing(config, caplog):
    (config.bids_dir / "sub-13").mkdir()
    record = config.output_dir / "logs" / "sub-12" / "sub-12_FLAIR.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"error": "It is damaged.", "source": "x"}))
    next(config.output_dir.glob("sub-04/anat/*_qc.tsv")).unlink()
    for path in config.output_dir.glob("sub-05/figures/*"):
        path.unlink()
    with caplog.at_level("WARNING"):
        wide = run_group(config).wide.set_index("scan")
    assert "1 participant without results: sub-13" in caplog.text
    assert pd.isna(wide.loc["sub-04_T1w", "flag"])
    page = (config.output_dir / "group.html").read_text()
    assert "sub-13" in page
    assert "<strong>sub-12_FLAIR</strong>: It is damaged." in page
    scans = page_data(config)["scans"]
    assert [scans["thumbnail"][4], scans["flag"][3]] == ["", ""]
    assert scans["thumbnail"][0].startswith("data:image/webp;base64,")


def test_an_image_under_two_names_is_named_in_log_and_page(config, caplog):
    source, copy = (
        sidecar(ScanNames(config.output_dir, BidsName.parse(f"sub-0{n}_T1w")).segmentation)
        for n in (1, 2)
    )
    about = json.loads(copy.read_text())
    about["InputSHA256"] = json.loads(source.read_text())["InputSHA256"]
    copy.write_text(json.dumps(about))
    run_group(config)
    said = (
        "sub-01_T1w and sub-02_T1w have the same image: one was copied under the name of another."
    )
    assert caplog.messages.count(said) == 1
    assert said in (config.output_dir / "group.html").read_text()


def test_many_thumbnails_stay_beside_the_page(config, monkeypatch):
    monkeypatch.setattr("siam_bids.reports.group.EMBED_LIMIT", 1000)
    run_group(config)
    thumbnails = page_data(config)["scans"]["thumbnail"]
    assert thumbnails[0] == "sub-01/figures/sub-01_desc-T1w_thumbnail.webp"
    assert all((config.output_dir / name).exists() for name in thumbnails)


def test_subject_pages_show_the_group_behind_the_volumes(config):
    run_group(config)
    page = (config.output_dir / "sub-03.html").read_text()
    assert "Among the scans of its protocol" in page
    assert "among 12 scans, median" in page
    assert 'href="group.html"' in page


def test_clashing_and_broken_participants_tables(config):
    path = config.bids_dir / "participants.tsv"
    path.write_text("participant_id\tcontrast\tsuffix\tGM\tflag\nsub-01\tx\ty\t5\tred\n")
    wide = run_group(config).wide.set_index("scan")
    assert wide.loc["sub-01_T1w", "contrast"] == "T1w"
    assert wide.loc["sub-01_T1w", "participants_contrast"] == "x"
    assert wide.loc["sub-01_T1w", "participants_suffix"] == "y"
    assert wide.loc["sub-01_T1w", "participants_GM"] == 5
    assert wide.loc["sub-01_T1w", "participants_flag"] == "red"
    for content in (b"", b"participant\nsub-01\n", b"participant_id\n\xff\xfe\n"):
        path.write_bytes(content)
        assert len(run_group(config).wide) == 12
    path.unlink()
    assert len(run_group(config).wide) == 12


def test_pybids_reads_the_group_tables_whatever_the_columns_are_called(visits):
    from bids.layout import BIDSLayout

    path = visits.bids_dir / "participants.tsv"
    path.write_text("participant_id\tsession\tsuffix\nsub-01\tx\ty\n")
    run_group(visits)
    layout = BIDSLayout(visits.bids_dir, derivatives=visits.output_dir, validate=False)
    (wide,) = layout.get(scope="derivatives", desc="wide", suffix="volumes", extension=".tsv")
    described = wide.get_metadata()
    assert described["GM"] == {"Description": "Volume: Cerebral cortex.", "Units": "mL"}
    assert {"contrast", "participants_session", "participants_suffix"} <= {*described}


def test_group_without_results_says_what_to_do(tmp_path):
    with pytest.raises(DatasetError, match="Run the participant level on it first"):
        run_group(config_of(tmp_path, tmp_path / "none"))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (
            ["--participant-label", "01"],
            ": --participant-label. --exclude leaves",
        ),
        (["--session-label", "a", "--suffix", "T1w"], ": --session-label, --suffix. "),
        ([], ""),
    ],
)
def test_options_that_choose_scans_are_said_to_have_no_effect(words, named, config, caplog):
    out = config.output_dir
    assert cli.main([str(config.bids_dir), str(out), "group", *words]) == 0
    said = [line for line in caplog.messages if line.startswith("The group level takes all scans")]
    assert len(said) == bool(words)
    assert named in " ".join(said)


def test_group_options_reach_the_run(config, capsys):
    words = [str(config.bids_dir), str(config.output_dir), "group", "--formula", "~ nope"]
    assert cli.main(words) == 2
    assert "--formula names nope, but no table has such a column" in capsys.readouterr().err
    assert cli.main([*words[:3], "--adjust_for", "age", "ICV", "--formula", "GM ~ ICV"]) == 0


def test_the_validator_finds_no_error_in_the_group_output(visits):
    run_group(replace(visits, formula="~ age"))
    check_tables(visits.output_dir)
    errors = validator_errors(visits.output_dir)
    assert [error for error in errors if "group" in error or "phenotype" in error] == []
