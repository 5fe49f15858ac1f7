"""Ratings of one and of several people: which rating counts."""

import pandas as pd
import pytest

from siam_bids.errors import UsageError
from siam_bids.measures.ratings import combined, rating_files, read_ratings


def written(folder, name: str, *rows: str, head="rater\tscan\trating\tnote\ttags\ttime"):
    path = folder / name
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def table(*ratings: tuple[str, str]) -> pd.DataFrame:
    rows = [
        {"rater": rater, "scan": "s", "rating": rating, "note": "", "tags": "", "time": ""}
        for rater, rating in ratings
    ]
    return pd.DataFrame(rows, dtype="str")


@pytest.mark.parametrize(
    ("ratings", "expected"),
    [
        (["pass"], "pass"),
        (["pass", "fail"], "fail"),
        (["fail", "pass"], "fail"),
        (["pass", "warn"], "warn"),
        (["fail", "pass", "pass"], "pass"),
        (["pass", "warn", "fail"], "warn"),
        (["pass", "pass", "fail", "fail"], "fail"),
        (["", "pass"], "pass"),
    ],
)
def test_the_middle_rating_counts_and_of_two_the_worse(ratings, expected):
    found = combined(table(*((f"r{n}", rating) for n, rating in enumerate(ratings))))
    assert found["rating"].tolist() == [expected]
    assert found["raters"].tolist() == [sum(map(bool, ratings))]


def test_files_of_several_raters_are_read_together(tmp_path):
    written(
        tmp_path, "group_ratings_anna.tsv",
        "Anna\ta_T1w\tpass\tn/a\tn/a\t2026-01-01T10:00:00Z",
        "Anna\ta_T1w\tfail\tmoved\tmotion, ringing\t2026-01-02T10:00:00Z",
        "Anna\tb_T1w\tn/a\tlook again\tn/a\tn/a",
    )  # fmt: skip
    written(tmp_path, "group_ratings_ben.tsv", "a_T1w\twarn\ta bit", head="scan\trating\tnote")
    (tmp_path / "group_qc.tsv").write_text("scan\tflag\na_T1w\tfail\n")
    files = rating_files(tmp_path)
    assert [path.name for path in files] == ["group_ratings_anna.tsv", "group_ratings_ben.tsv"]
    ratings = read_ratings(files)
    assert ratings[["rater", "scan", "rating"]].to_numpy().tolist() == [
        ["Anna", "a_T1w", "fail"], ["Anna", "b_T1w", ""], ["ben", "a_T1w", "warn"],
    ]  # fmt: skip
    found = combined(ratings).set_index("scan")
    assert found.loc["a_T1w"].tolist() == [
        "fail", "Anna: moved; ben: a bit", "motion, ringing", 2,
    ]  # fmt: skip
    assert found.loc["b_T1w", "raters"] == 0
    assert found.loc["b_T1w", ["rating", "rating_tags"]].isna().all()
    assert found.loc["b_T1w", "rating_note"] == "look again"


def test_without_files_there_are_no_ratings(tmp_path):
    assert read_ratings(rating_files(tmp_path)).empty
    assert list(combined(read_ratings([]))) == [
        "scan", "rating", "rating_note", "rating_tags", "raters",
    ]  # fmt: skip


def test_what_is_no_rating_is_left_out_and_named_and_the_others_count(tmp_path):
    head = "scan\trating"
    files = [
        written(tmp_path, "group_ratings_a.tsv", "a_T1w\tgood", "b_T1w\tFail", "", "n/a\tfail",
                head=head),
        written(tmp_path, "group_ratings_b.tsv", "a_T1w\tpass\tmore", "b_T1w\twarn", head=head),
        written(tmp_path, "group_ratings_c.tsv", "a_T1w\tpass", head="scan\tvote"),
        tmp_path / "group_ratings_d.tsv",
    ]  # fmt: skip
    (tmp_path / "group_ratings_d.tsv").write_bytes(b"\xff\xfe\x00")
    unusable = []
    found = read_ratings(files, unusable, strict=False)
    assert found[["rater", "scan", "rating"]].to_numpy().tolist() == [
        ["a", "b_T1w", "fail"], ["b", "b_T1w", "warn"],
    ]  # fmt: skip
    assert unusable[0] == (
        "group_ratings_a.tsv holds what is not a rating: 'good' of a_T1w in line 2, line 5 without "
        "the name of a scan. Correct or remove it."
    )
    assert "not a rating: line 2 with more cells than columns." in unusable[1]
    assert "lack the columns scan and rating" in unusable[2]
    assert "cannot be read as a table" in unusable[3]
    assert len(unusable) == 4


def test_a_given_file_without_ratings_is_refused(tmp_path):
    path = written(tmp_path, "group_ratings.tsv", "a_T1w\tpass", head="scan\tvote")
    with pytest.raises(UsageError) as refused:
        read_ratings([path])
    assert "lack the columns scan and rating. Export them" in str(refused.value)
