"""ComBat on simulated sites whose effects are known."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from siam_bids import cli
from siam_bids.config import RunConfig
from siam_bids.errors import UsageError
from siam_bids.measures.harmonization import DICTIONARY, harmonize
from siam_bids.pipelines.group import run_group

TISSUES = [f"t{n}" for n in range(12)]
SHIFT = {"A": 0.0, "B": 30.0, "C": -15.0}
SCALE = {"A": 1.0, "B": 1.5, "C": 0.8}


def sites(count=300, seed=0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Volumes with effects of sites, and the same without; sites differ in age and sex too."""
    rng = np.random.default_rng(seed)
    site = rng.choice(["A", "B", "C"], count)
    age = rng.uniform(20, 70, count) + np.where(site == "B", 12, 0)
    sex = np.where(rng.random(count) < np.where(site == "C", 0.7, 0.4), "F", "M")
    heads = rng.normal(1500, 100, count) + np.where(sex == "M", 80, 0)
    table = pd.DataFrame(
        {
            "scan": [f"s{n}" for n in range(count)], "protocol": "T1w", "site": site,
            "age": age, "sex": sex, "TIV": heads,
        }
    )  # fmt: skip
    clean = table.copy()
    for place, tissue in enumerate(TISSUES):
        real = 300 + 20 * place - 1.2 * age + 0.1 * heads + np.where(sex == "F", 5, 0)
        noise = rng.normal(0, 10, count)
        own = rng.normal(1, 0.1, 3)[np.unique(site, return_inverse=True)[1]]
        clean[tissue] = real + noise
        table[tissue] = real + noise * pd.Series(site).map(SCALE) + own * pd.Series(site).map(SHIFT)
    return table, clean


def _slopes(table: pd.DataFrame, volumes: pd.Series) -> np.ndarray:
    """Effects of age, TIV and sex."""
    design = np.column_stack([table["age"], table["TIV"], table["sex"] == "F", np.ones(len(table))])
    return np.linalg.lstsq(design, volumes, rcond=None)[0][:3]


def test_known_effects_of_sites_go_and_those_of_age_sex_and_head_size_stay():
    table, clean = sites()
    found = harmonize(table, ["TIV", *TISSUES], "site")
    assert list(found.volumes) == [f"{name}_harmonized_mL" for name in TISSUES]
    gaps = []
    for tissue in TISSUES:
        after = found.volumes[f"{tissue}_harmonized_mL"]
        gaps.append((after - clean[tissue]).groupby(table["site"]).mean())
        before = (table[tissue] - clean[tissue]).groupby(table["site"]).mean()
        assert np.ptp(before) > 35
        assert np.ptp(gaps[-1]) < 6  # a site's mean is known to 10 mL / sqrt(100), or 1.5 times so
        slopes = [_slopes(table, own) for own in (after, clean[tissue])]
        assert (abs(slopes[0] - slopes[1]) < [0.1, 0.02, 4]).all()  # of age, TIV, sex
    assert np.ptp(np.mean(gaps, axis=0)) < 2
    effects = found.effects.groupby("site")[["shift_mL", "scale"]].mean()
    assert (effects["shift_mL"] - effects["shift_mL"]["A"]).round().tolist() == pytest.approx(
        [0, 30, -15], abs=4
    )
    assert (effects["scale"] / effects["scale"]["A"]).tolist() == pytest.approx(
        [1, 1.5, 0.8], abs=0.12
    )


def test_excluded_scans_change_nothing_and_are_adjusted():
    table, _ = sites()
    spoilt = table.copy()
    spoilt.loc[:4, TISSUES] *= 3
    names = spoilt["scan"][:5].tolist()
    one = harmonize(spoilt, TISSUES, "site", excluded=names)
    other = harmonize(table, TISSUES, "site", excluded=names)
    pd.testing.assert_frame_equal(one.effects, other.effects)
    pd.testing.assert_frame_equal(one.volumes[5:], other.volumes[5:])
    assert one.volumes[:5].notna().all(axis=None)


def test_scans_without_a_value_are_not_harmonized_and_counted(caplog):
    table, _ = sites()
    table.loc[:9, "age"] = np.nan
    found = harmonize(table, TISSUES, "site")
    assert found.volumes.isna().any(axis=1).sum() == 10
    assert "T1w: 10 scans cannot be harmonized without all of site, age, sex, TIV." in caplog.text


def test_what_cannot_be_told_apart_is_refused_with_the_reason():
    table, _ = sites()
    few = pd.concat([table[table["site"] != "C"], table[table["site"] == "C"][:4]])
    old = table.assign(age=np.where(table["site"] == "A", 20.0, 60.0) + np.arange(300) % 3)
    for scans, message in (
        (few, r"a site needs 5 scans or more .* C has 4. .*example --exclude site=C."),
        (table[table["site"] == "A"], "there is one site only"),
        (old[old["site"] != "C"], "site and age are nearly collinear"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            harmonize(scans, TISSUES, "site")
    with pytest.raises(UsageError, match="--harmonize names scanner, but no table"):
        harmonize(table, TISSUES, "scanner")


def test_protocols_are_harmonized_each_by_itself(caplog):
    table, _ = sites()
    table.loc[table["site"] == "C", "protocol"] = "acq-x_T1w"
    found = harmonize(table, TISSUES, "site")
    assert found.effects["protocol"].unique().tolist() == ["T1w"]
    assert "Not harmonized: acq-x_T1w: there is one site only." in caplog.text
    assert found.volumes[table["protocol"] == "acq-x_T1w"].isna().all(axis=None)


def test_volumes_are_those_of_neurocombat():
    """The first values of neuroCombat 0.2.12 (Fortin et al.), run outside on the same scans."""
    table, _ = sites(60, seed=1)
    assert table["site"][:4].tolist() == ["B", "B", "C", "C"]
    found = harmonize(table, TISSUES, "site").volumes
    known = [
        [375.009, 370.255, 416.052, 429.821, 454.415],
        [424.641, 470.418, 464.210, 488.142, 511.353],
        [384.315, 404.447, 449.697, 435.380, 476.652],
        [375.178, 390.644, 397.285, 430.072, 450.931],
    ]
    np.testing.assert_allclose(found.iloc[:4, :5], known, atol=0.001)


def test_the_group_level_has_harmonized_columns_and_a_table_of_sites(study, tmp_path, capsys):
    raw, out = study(tmp_path, people=20)
    config = RunConfig(bids_dir=raw, output_dir=out, level="group", command="siam-bids")
    path = raw / "participants.tsv"
    head, *rows = path.read_text().splitlines()
    rows = [f"{row}\t{1 + number // 2 % 2}" for number, row in enumerate(rows)]
    path.write_text("\n".join([f"{head}\tsite", *rows]) + "\n")
    place = [str(raw), str(out), "group", "--exclude", "flag=fail"]
    words = ["--harmonize", "site", "--formula", "GM_harmonized_mL ~ age + C(sex)"]
    assert cli.main([*place, *words]) == 0
    wide = pd.read_csv(out / "group_desc-wide_volumes.tsv", sep="\t", na_values="n/a")
    assert wide["GM_harmonized_mL"].notna().all()
    assert json.loads((out / "group_desc-wide_volumes.json").read_text())["GM_harmonized_mL"][
        "LongName"
    ]
    effects = pd.read_csv(out / "group_harmonization.tsv", sep="\t")
    assert list(effects) == list(DICTIONARY)
    assert effects.loc[effects["tissue"] == "GM", ["site", "scans"]].to_numpy().tolist() == [
        [1, 10], [2, 9],
    ]  # fmt: skip
    fit = pd.read_csv(out / "group_statistics.tsv", sep="\t").set_index("term")
    assert fit.loc["age", "estimate"] == pytest.approx(-2, abs=0.1)
    page = (out / "group.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    assert data["measures"]["GM_harmonized_mL"]["kind"] == "harmonized"
    assert 'data-kind="harmonized"' in page
    assert (data["site"], data["harmonized"]["column"]) == ("site", "site")
    assert data["harmonized"]["site"][:4] == ["1", "1", "2", "2"]
    path.write_text(path.read_text().replace("site", "center"))
    assert cli.main([*place, "--site-column", "center", "--harmonize"]) == 0
    again = pd.read_csv(out / "group_harmonization.tsv", sep="\t")
    pd.testing.assert_frame_equal(again, effects)
    assert cli.main([*place, "--harmonize"]) == 2
    assert "--harmonize names site, but no table has such a column" in capsys.readouterr().err
    assert cli.main([*place, "--site-column", "site"]) == 2
    assert "--site-column names site, but no table has" in capsys.readouterr().err
    run_group(config)
    assert not (out / "group_harmonization.tsv").exists()
    assert 'data-kind="harmonized"' not in (out / "group.html").read_text()
    with pytest.raises(UsageError, match="one sex only"):
        run_group(replace(config, harmonize="sex", exclude=("sex=M",)))
