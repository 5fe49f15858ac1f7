"""Covariates as people write them: nothing is lost or changed without a word."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from siam_bids import cli
from siam_bids.bids.covariates import acquisition_times, read_covariates
from siam_bids.bids.filters import read_filter_file
from siam_bids.bids.index import check_description
from siam_bids.bids.metadata import scanner_metadata
from siam_bids.config import RunConfig
from siam_bids.errors import DatasetError
from siam_bids.measures.group_tables import join_covariates
from siam_bids.pipelines.group import run_group
from siam_bids.support.atomic_files import read_json, write_json
from siam_bids.support.input_files import load_json, read_text
from siam_bids.support.tsv import as_numbers_or_words, read_rows

VISITS = [("sub-01", "ses-a"), ("sub-01", "ses-b"), ("sub-02", "ses-a")]


def table(root: Path, *lines: str, name="participants.tsv", end="\n") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line.replace(" ", "\t") + end for line in lines), newline="")
    return path


def ages(root: Path, visits=VISITS) -> list:
    return list(read_covariates(root, visits)["age"])


class TestIdentity:
    @pytest.mark.parametrize("column", ["session_id", "session", "ses"])
    @pytest.mark.parametrize("prefix", ["ses-", ""])
    def test_several_rows_a_person_belong_to_their_sessions(self, tmp_path, column, prefix):
        table(
            tmp_path, f"participant_id {column} age", f"sub-01 {prefix}b 31",
            f"sub-01 {prefix}a 30", f"sub-02 {prefix}a 40",
        )  # fmt: skip
        assert ages(tmp_path) == ["30", "31", "40"]

    def test_a_session_without_a_row_takes_no_value_of_another(self, tmp_path, caplog):
        table(tmp_path, "participant_id session_id age", "sub-01 ses-a 30", "sub-02 n/a 40")
        assert ages(tmp_path) == ["30", None, "40"]
        assert "participants.tsv has no row for sub-01 ses-b." in caplog.text

    def test_a_scan_without_session_takes_the_only_row_of_its_person(self, tmp_path):
        table(tmp_path, "participant_id session_id age", "sub-01 ses-1 30")
        assert ages(tmp_path, [("sub-01", "")]) == ["30"]

    def test_one_row_a_person_with_a_column_session_holds_for_all_sessions(self, tmp_path):
        table(tmp_path, "participant_id session age", "sub-01 morning 30", "sub-02 evening 40")
        assert ages(tmp_path) == ["30", "30", "40"]

    def test_labels_need_no_prefix(self, tmp_path):
        table(tmp_path, "participant_id age", "01 30", "02 40")
        table(tmp_path, "session_id age", "b 31", name="sub-01/sub-01_sessions.tsv")
        assert ages(tmp_path) == ["30", "31", "40"]

    def test_rows_that_disagree_give_no_value_and_are_named(self, tmp_path, caplog):
        table(tmp_path, "participant_id age sex", "sub-01 30 F", "sub-01 31 F", "sub-02 40 M")
        found = read_covariates(tmp_path, VISITS)
        assert found == {"age": (None, None, "40"), "sex": ("F", "F", "M")}
        assert "rows with different values of age for sub-01; they are left out" in caplog.text
        table(tmp_path, "session_id age", "ses-a 1", "ses-a 2", name="sub-02/sub-02_sessions.tsv")
        assert ages(tmp_path) == [None, None, "40"]
        assert "different values of age for sub-02 ses-a" in caplog.text

    def test_who_has_no_row_is_named(self, tmp_path, caplog):
        table(tmp_path, "participant_id age", "sub-1 30", "sub-02 40")
        assert ages(tmp_path) == [None, None, "40"]
        assert "has no row for sub-01 ses-a, sub-01 ses-b." in caplog.text

    def test_scans_tsv_may_have_backslashes_and_a_leading_dot(self, tmp_path):
        table(
            tmp_path, "filename acq_time", r"anat\sub-01_T1w.nii.gz 2001-02-03T04:05:06",
            "./anat/sub-01_T2w.nii.gz 2002-02-03T04:05:06", name="sub-01/sub-01_scans.tsv",
        )  # fmt: skip
        names = [f"sub-01/anat/sub-01_{suffix}.nii.gz" for suffix in ("T1w", "T2w")]
        assert list(acquisition_times(tmp_path, names).values()) == [
            "2001-02-03T04:05:06", "2002-02-03T04:05:06",
        ]  # fmt: skip


class TestShape:
    @pytest.mark.parametrize("end", ["\t\n", "\t\t\r\n", "\r", "\n\n"])
    def test_tabs_and_line_ends_shift_no_column(self, tmp_path, end):
        path = table(tmp_path, "participant_id age sex", end="\n")
        with path.open("a", newline="") as stream:
            stream.write(f"sub-01\t30\tF{end}sub-02\t40\tM{end}")
        found = read_covariates(tmp_path, VISITS)
        assert found == {"age": ("30", "30", "40"), "sex": ("F", "F", "M")}

    def test_lines_too_long_or_without_a_name_are_left_out_and_named(self, tmp_path, caplog):
        table(tmp_path, "participant_id age", "sub-01 30", "sub-02 40 M", "n/a 50")
        assert ages(tmp_path) == ["30", "30", None]
        assert "more cells than columns in line 3, left out" in caplog.text
        assert "no participant_id in line 4, left out" in caplog.text

    def test_a_quote_swallows_no_lines(self, tmp_path):
        table(tmp_path, "participant_id note age", 'sub-01 "scar 30', "sub-02 none 40")
        found = read_covariates(tmp_path, VISITS)
        assert found == {"note": ('"scar', '"scar', "none"), "age": ("30", "30", "40")}

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (
                "participant_id,age\nsub-01,30\n",
                "it has no column participant_id; columns must be separated by tabs",
            ),
            ("participant_id\tage\tage\nsub-01\t30\t31\n", "it has two columns age"),
            ("participant_id\tage\nsub-01\t" + "9" * 200_000, "field larger than field limit"),
        ],
    )
    def test_what_is_no_table_is_left_out_with_a_reason(self, tmp_path, caplog, content, message):
        (tmp_path / "participants.tsv").write_text(content)
        assert read_covariates(tmp_path, VISITS) == {}
        assert message in caplog.text


class TestEncoding:
    TEXT = "participant_id\tcity\nsub-01\tMünchen\n"

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
    def test_every_encoding_of_a_table_gives_its_text(self, tmp_path, encoding, caplog):
        (tmp_path / "participants.tsv").write_bytes(self.TEXT.encode(encoding))
        assert read_covariates(tmp_path, VISITS[:1]) == {"city": ("München",)}
        assert ("is not in UTF-8; it is read as Latin-1" in caplog.text) == (encoding == "latin-1")

    def test_a_byte_order_mark_hides_no_session(self, tmp_path):
        table(tmp_path, "participant_id age", "sub-01 30", "sub-02 40")
        path = table(tmp_path, "session_id age", "ses-b 31", name="sub-01/sub-01_sessions.tsv")
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert ages(tmp_path) == ["30", "31", "40"]

    def test_json_files_may_begin_with_a_byte_order_mark(self, tmp_path):
        path = tmp_path / "dataset_description.json"
        path.write_text('{"Name": "é"}', encoding="utf-8-sig")
        check_description(tmp_path)
        assert read_json(path) == {"Name": "é"}
        path.write_text('{"t1w": {"run": 1}}', encoding="utf-8-sig")
        assert read_filter_file(path) == {"t1w": {"run": 1}}

    @pytest.mark.parametrize("kind", ['"Raw"', "null", '""', '"RAW"'])
    def test_the_type_of_a_raw_dataset_may_be_spelled_otherwise(self, tmp_path, kind, caplog):
        (tmp_path / "dataset_description.json").write_text(f'{{"DatasetType": {kind}}}')
        check_description(tmp_path)
        assert caplog.messages == []


class TestAbsentContent:
    POINTERS = (
        "/annex/objects/MD5E-s3--1\n", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    )  # fmt: skip

    def test_links_of_git_annex_say_how_to_get_them(self, tmp_path, caplog):
        (tmp_path / "participants.tsv").symlink_to(".git/annex/objects/x")
        (tmp_path / "sub-01").mkdir()
        (tmp_path / "sub-01/sub-01_scans.tsv").symlink_to("../.git/annex/objects/y")
        assert read_covariates(tmp_path, VISITS) == {}
        assert acquisition_times(tmp_path, ["sub-01/anat/sub-01_T1w.nii.gz"]) == {}
        for name in ("participants.tsv", "sub-01_scans.tsv"):
            assert (
                "its content is in git-annex and was not fetched; get it with `datalad"
                in caplog.text
            )
            assert f"git annex get {name}`" in caplog.text
        (tmp_path / "dataset_description.json").symlink_to(".git/annex/objects/z")
        with pytest.raises(DatasetError, match=r"git annex get dataset_description.json"):
            check_description(tmp_path)

    @pytest.mark.parametrize("text", POINTERS)
    def test_pointers_are_no_tables(self, tmp_path, caplog, text):
        (tmp_path / "participants.tsv").write_text(text)
        assert read_covariates(tmp_path, VISITS) == {}
        assert "it is a pointer of git-" in caplog.text

    def test_a_pipe_hangs_nothing(self, tmp_path, caplog):
        os.mkfifo(tmp_path / "participants.tsv")
        assert read_covariates(tmp_path, VISITS) == {}
        assert "it is a named pipe, not a file" in caplog.text


class TestNumbers:
    @staticmethod
    def read(*cells):
        rows = [f"r{place}" for place in range(len(cells))]
        column = as_numbers_or_words(cells, rows)
        return list(column.values), " | ".join(column.remarks)

    def test_plain_numbers_need_no_remark(self):
        assert self.read("1", "-2.5", "3e2", "n/a", "", None) == (
            [1, -2.5, 300, None, None, None], "",
        )  # fmt: skip

    def test_89_plus_is_89(self):
        assert self.read("89+", "34") == (
            [89, 34], "values with a plus sign are read as the number before it (89+ of r0)",
        )  # fmt: skip

    def test_decimal_commas_are_said(self):
        values, remark = self.read("34,5", "35")
        assert values == [34.5, 35]
        assert "with a decimal comma" in remark
        assert self.read("1,234", "1000", "1", "2", "3")[0] == [None, 1000, 1, 2, 3]  # thousands?

    def test_a_few_words_leave_a_column_of_numbers(self):
        values, remark = self.read("30", "31", "32", "33", "old")
        assert values == [30, 31, 32, 33, None]
        assert remark == "values that are not numbers are left out (old of r4)"
        assert self.read("30", "NA", "NA", "None", "nan")[0] == [30, None, None, None, None]

    def test_words_stay_words_whatever_they_are(self):
        assert self.read("None", "NA", "a", "n/a") == (["None", "NA", "a", None], "")
        values, remark = self.read("1", "2", "3A", "4B")
        assert values == ["1", "2", "3A", "4B"]
        assert remark.startswith("is read as text")

    @pytest.mark.parametrize("cell", ["inf", "1e999", "1_000", "0x10", "True", "٣٤x", "1+1"])
    def test_what_python_takes_for_a_number_is_none(self, cell):
        assert self.read(cell, "1", "2", "3", "4")[0] == [None, 1, 2, 3, 4]

    def test_identifiers_keep_their_digits(self):
        digits = "12345678901234567890123456"
        assert self.read(digits, "1") == ([digits, "1"], "")


def test_names_that_are_ours_get_a_prefix_and_collide_with_nothing():
    keys = pd.DataFrame({"participant_id": ["sub-01"], "scan": ["sub-01_T1w"], "contrast": ["T1w"]})
    columns = {"GM": ["1"], "participants_GM": ["2"], "GM_percent_TIV": ["3"], "scan": ["x"]}
    joined = join_covariates(keys, columns, {"GM", "GM_percent_TIV"})
    assert joined.iloc[0, 3:].to_dict() == {
        "participants_GM": 1, "participants_participants_GM": 2,
        "participants_GM_percent_TIV": 3, "participants_scan": "x",
    }  # fmt: skip


@pytest.fixture
def config(study, tmp_path) -> RunConfig:
    raw, out = study(tmp_path, people=6)
    return RunConfig(bids_dir=raw, output_dir=out, level="group", command="siam-bids")


class TestGroupNeverDies:
    @pytest.mark.parametrize(
        "column",
        ["GM_percent_TIV", "TIV", "ICV", "snr_WM", "flag", "tissue", "adjusted_mL", "robust_z",
         "session_id", "rating", "reasons", "median", "_volume", "index", "name"],
    )  # fmt: skip
    def test_of_a_column_with_a_name_of_ours(self, config, column):
        path = config.bids_dir / "participants.tsv"
        path.write_text(f"participant_id\t{column}\nsub-01\t7\nsub-02\t8\n")
        wide = run_group(replace(config, formula="~ GM", adjust=("ICV",))).wide.set_index("scan")
        assert 500 < wide.loc["sub-01_T1w", "GM"] < 800
        assert wide.loc["sub-01_T1w", "TIV"] > 1000

    @pytest.mark.parametrize(
        "value", ["1" * 26, "-" + "9" * 400, "1e308", "\ud800".encode("utf-8", "surrogatepass")]
    )
    def test_of_a_huge_or_broken_value(self, config, value):
        path = config.bids_dir / "participants.tsv"
        value = value if isinstance(value, bytes) else value.encode()
        path.write_bytes(b"participant_id\tx\nsub-01\t" + value + b"\nsub-02\t2\n")
        wide = run_group(config).wide.set_index("scan")
        assert wide["x"].notna().sum() == 2

    @pytest.mark.parametrize(
        "content",
        ["[" * 200_000, '{"age": ' * 900 + "1" + "}" * 900, '{"age": {"Description": "\\ud800"}}',
         '{"age": 3}', "[]", '{"age": ' + "9" * 5000 + "}"],
    )  # fmt: skip
    @pytest.mark.parametrize("name", ["participants.json", "dataset_description.json"])
    def test_of_json(self, config, content, name):
        (config.bids_dir / name).write_text(content)
        assert len(run_group(config).wide) == 6

    @pytest.mark.parametrize(
        ("options", "code"),
        [([], 0), (["--exclude", "flag=fail"], 0), (["--formula", "~ age"], 2),
         (["--adjust-for", "age"], 2), (["--exclude", "age<18"], 2), (["--group-by", "sex"], 2),
         (["--harmonize", "site"], 2), (["--site-column", "site"], 2)],
    )  # fmt: skip
    @pytest.mark.parametrize("kind", ["folder", "commas"])
    def test_of_a_participants_tsv_that_cannot_be_read_unless_it_is_needed(
        self, config, options, code, kind, caplog, capsys
    ):
        """Nor is it replaced by what an earlier run read."""
        run_group(config)
        path = config.bids_dir / "participants.tsv"
        path.unlink()
        if kind == "folder":
            path.mkdir()
            why = "it is a folder, not a file"
        else:
            path.write_text("participant_id,age,sex,site\nsub-01,30,F,a\n")
            why = "it has no column participant_id; columns must be separated by tabs"
        words = [str(config.bids_dir), str(config.output_dir), "group", *options]
        assert cli.main(words) == code
        assert f"{path} cannot be read as a table and is left out: {why}." in caplog.text
        said = capsys.readouterr().err
        assert (f"but no table has such a column. {path} cannot be read as a table: {why}." in said
                ) == (code == 2)  # fmt: skip

    def test_of_a_missing_raw_dataset_and_keeps_what_was_known(self, config, caplog, capsys):
        path = config.bids_dir / "participants.tsv"
        path.write_text(path.read_text().replace("sub-03\t29", "sub-03\t89+"))
        (config.bids_dir / "participants.json").write_text('{"age": {"Units": "year"}}')
        before = run_group(config).wide
        mistyped = config.bids_dir / "mistyped"
        assert cli.main([str(mistyped), str(config.output_dir), "group"]) == 0
        assert f"{mistyped}/participants.tsv was not found" in caplog.text
        assert "Covariates are taken from the earlier run: age, sex." in caplog.text
        for _ in range(2):
            after = run_group(replace(config, bids_dir=mistyped)).wide
            pd.testing.assert_frame_equal(after, before)
        assert after.set_index("scan").loc["sub-03_T1w", "age"] == 89
        wide = json.loads((config.output_dir / "group_desc-wide_volumes.json").read_text())
        assert wide["age"]["Units"] == "year"


def test_json_is_bounded_in_depth(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("[" * 101 + "]" * 101)
    with pytest.raises(ValueError, match="nested more than 100 deep"):
        load_json(path)
    path.write_text("[" * 100 + "]" * 100)
    assert load_json(path)
    write_json(path, {"half": "\ud800"})
    assert read_text(path) == '{\n  "half": "?"\n}\n'


def test_rows_of_our_own_tables_are_strict(tmp_path):
    path = table(tmp_path, "a b", "1 2 3")
    with pytest.raises(ValueError, match="line 2 has more cells"):
        read_rows(path)


class TestScanners:
    IMAGE = "sub-01/ses-a/anat/sub-01_ses-a_acq-x_T1w.nii.gz"

    def test_values_are_inherited_and_the_nearest_wins(self, tmp_path):
        for name, content in {
            "T1w.json": {"Manufacturer": "Siemens", "MagneticFieldStrength": 3, "EchoTime": 0.003},
            "acq-x_T1w.json": {"EchoTime": 0.004, "FlipAngle": 9},
            "acq-y_T1w.json": {"FlipAngle": 7},
            "T2w.json": {"InversionTime": 1},
            "sub-01/sub-01_T1w.json": {"Manufacturer": "GE"},
            "sub-01/ses-a/anat/sub-01_ses-a_acq-x_T1w.json": {"FlipAngle": 8.5},
            "sub-01/ses-a/anat/sub-01_ses-a_acq-y_T1w.json": {"FlipAngle": 6},
        }.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            write_json(tmp_path / name, content)
        other = "sub-02/anat/sub-02_T1w.nii"
        assert scanner_metadata(tmp_path, [self.IMAGE, other]) == {
            "Manufacturer": ("GE", "Siemens"), "MagneticFieldStrength": ("3", "3"),
            "EchoTime": ("0.004", "0.003"), "FlipAngle": ("8.5", None),
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("value", "text"),
        [("VE11\n C", "VE11 C"), ([1, 2.5], "1, 2.5"), (True, None), ({"a": 1}, None), ("", None),
         (None, None), ("n/a", None)],
    )  # fmt: skip
    def test_values_of_any_kind_are_text_or_nothing(self, tmp_path, value, text):
        write_json(tmp_path / "T1w.json", {"SoftwareVersions": value})
        found = scanner_metadata(tmp_path, [self.IMAGE])
        assert found == ({"SoftwareVersions": (text,)} if text else {})

    def test_files_that_cannot_be_read_are_named(self, tmp_path, caplog):
        (tmp_path / "T1w.json").write_text("{")
        (tmp_path / "acq-x_T1w.json").symlink_to(".git/annex/objects/x")
        assert scanner_metadata(tmp_path, [self.IMAGE, self.IMAGE]) == {}
        assert caplog.text.count("cannot be read as JSON and is left out") == 2

    def test_no_path_leads_out_of_the_dataset(self, tmp_path):
        write_json(tmp_path / "T1w.json", {"Manufacturer": "x"})
        (tmp_path / "raw").mkdir()
        sources = ["../sub-01_T1w.nii.gz", f"{tmp_path}/sub-01_T1w.nii.gz"]
        assert scanner_metadata(tmp_path / "raw", sources) == {}

    def test_the_tables_and_the_page_have_them_and_a_later_run_without_raw_data(self, config):
        write_json(config.bids_dir / "T1w.json", {"MagneticFieldStrength": 3})
        for number in (2, 4):
            place = config.bids_dir / f"sub-{number:02d}" / "anat"
            write_json(
                place / f"sub-{number:02d}_T1w.json", {"Manufacturer": "GE", "EchoTime": 0.01}
            )
        for raw in (config.bids_dir, config.bids_dir / "mistyped"):
            run_group(replace(config, bids_dir=raw, exclude=("EchoTime>5",)))
            path = config.output_dir / "group_qc.tsv"
            rows = {row["scan"]: row for row in read_rows(path)}
            assert rows["sub-02_T1w"]["Manufacturer"] == "GE"
            assert rows["sub-03_T1w"]["Manufacturer"] == "n/a"
            assert {row["MagneticFieldStrength"] for row in rows.values()} == {"3"}
            about = json.loads(path.with_suffix(".json").read_text())
            assert about["MagneticFieldStrength"]["Units"] == "T"
            assert {*about} == {*rows["sub-02_T1w"]}
            page = (config.output_dir / "group.html").read_text()
            data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
            assert data["categories"]["Manufacturer"].count("GE") == 2
