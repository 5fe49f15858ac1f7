"""Pages show the right numbers and links, and names stay text."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest

from siam_bids.image.labels import siam_labels
from siam_bids.reports.content import Change, GroupReport, ScanReport, SubjectReport, TissueVolume
from siam_bids.reports.render import render_group, render_subject
from siam_bids.support.package_data import resource
from siam_bids.support.tsv import number_of

NONE = "\N{EN DASH}"
EVIL = "sub-<script>alert(1)</script>"


class Tags(HTMLParser):
    """Collects start tags with their attributes, ids, and the text outside of them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def values(self, tag: str, attribute: str) -> list[str | None]:
        return [
            attrs[attribute] for name, attrs in self.found if name == tag and attribute in attrs
        ]


COMMON = {
    "model": "compact 1.0.0 (sha256 9f2c4e)",
    "software": (("siam-bids", "0.1.0"),),
    "command": "siam-bids /data /out participant --participant-label '01'",
    "boilerplate": "Scans were segmented.",
}


def tissue(name: str, volume_ml: float) -> TissueVolume:
    label = siam_labels().by_name[name]
    return TissueVolume(
        index=label.index,
        name=name,
        long_name=label.long_name,
        color=label.color,
        voxels=round(1000 * volume_ml),
        volume_ml=volume_ml,
        inside=label in siam_labels().intracranial,
    )


GOOD = ScanReport(
    name="sub-01_ses-a_T1w",
    kind="T1w",
    session="ses-a",
    source="sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz",
    figure="sub-01/figures/sub-01_ses-a_T1w.png",
    slices="data:image/webp;base64,AAAA",
    tissues="data:image/png;base64,AAAA",
    volumes=(tissue("GM", 543.043), tissue("CSF", 456.957), tissue("Head", 1680.696)),
    intracranial_ml=1000.0,
    facts=(("Voxel size", "1.00 x 1.33 x 1.33 mm"),),
)
FAILED = replace(
    GOOD,
    name="sub-01_ses-b_FLAIR",
    kind="FLAIR",
    session="ses-b",
    figure="",
    slices="",
    tissues="",
    volumes=(),
    intracranial_ml=None,
    error="sub-01_ses-b_FLAIR.nii.gz is 4-D & <odd>.",
)


def subject(*scans: ScanReport, name: str = "sub-01") -> str:
    return render_subject(SubjectReport(subject=name, scans=scans, **COMMON))


@pytest.mark.parametrize("compared", [True, False])
def test_only_a_scan_that_was_compared_with_others_may_be_of_another_person(compared):
    alone = (("sub-01_FLAIR", "sub-01_T1w failed", compared),)
    page = render_subject(SubjectReport(subject="sub-01", scans=(GOOD,), alone=alone, **COMMON))
    assert "could not be combined with the others: sub-01_T1w failed." in page
    assert ("sub-01_T1w failed. Another person's head" in page) == compared


def test_numbers_of_one_are_singular():
    assert [number_of(number, "scan") for number in range(3)] == ["0 scans", "1 scan", "2 scans"]
    assert "1 of 1 scan failed." in subject(FAILED)


def group_data(*names: str) -> dict:
    """What the page's script is given for these scans."""
    count = len(names)
    return {
        "id": "0123456789abcdef",
        "scans": {
            "name": list(names), "subject": [name.split("_")[0] for name in names],
            "session": [""] * count, "protocol": ["T1w"] * count, "flag": ["pass"] * count,
            "excluded": [""] * count,
            "reasons": [""] * count, "page": [""] * count, "thumbnail": [""] * count,
            "outline": [""] * count, "sheet": [""] * count,
            "source": [f"{name}.nii.gz" for name in names],
            "segmentation": [f"{name}_dseg.nii.gz" for name in names],
        },
        "raw": "../raw", "limit": 3.5, "site": "", "harmonized": {},
        "labels": [{"name": "GM", "title": "Cerebral cortex", "color": "#c96022"}],
        "measures": {"GM": {"kind": "tissue", "title": "Cerebral cortex", "units": "mL"}},
        "values": {"GM": [500.0 + i for i in range(count)]},
        "categories": {}, "outliers": {}, "ratings": {},
    }  # fmt: skip


def group(*names: str, title: str = "Study", raw: str = "../raw", **more) -> str:
    data = {**group_data(*(names or ("sub-01_T1w", "sub-02_T1w"))), "raw": raw}
    return render_group(GroupReport(title=title, data=data, subjects=2, **COMMON, **more))


# The subject's page


def test_subject_page_shows_volumes_and_shares_to_two_decimals():
    cells = re.findall(r'<td class="number[^>]*>([^<]+)</td>', subject(GOOD))
    assert cells == ["543.04", "54.30", "456.96", "45.70", "1,680.70", NONE]
    assert "1,000.00 mL" in Tags(subject(GOOD)).text


def test_failed_scan_is_announced_and_has_neither_picture_nor_volumes():
    html = subject(GOOD, FAILED)
    page = Tags(html)
    assert "1 of 2 scans failed." in page.text
    assert FAILED.error in page.text
    assert page.values("img", "src") == [GOOD.slices]
    assert page.values("canvas", "data-tissues") == [GOOD.tissues]
    assert html.count("<table") == 1
    assert ("div", {"class": "alarm", "role": "alert"}) in page.found
    assert page.values("div", "class").count("alarm") == 2
    assert "alarm" not in Tags(subject(GOOD)).values("div", "class")


def test_later_scans_show_their_change_and_what_of_it_may_be_noise():
    later = replace(
        GOOD, name="sub-01_ses-b_T1w", volumes=(tissue("GM", 532.18214),), intracranial_ml=1010.0,
        changes={"TIV": Change(percent=1.0, noise=1.2), "GM": Change(percent=-2.0, noise=0.55)},
    )  # fmt: skip
    other = replace(GOOD, name="sub-01_ses-b_T2w", kind="T2w", intracranial_ml=1050.0)
    html = subject(GOOD, later, other).partition('id="compare"')[2]
    shown = re.findall(r'<td class="number">(.*?)(?:<br><small(.*?)</small>)?</td>', html)
    assert shown[:6] == [
        ("1,000.00", ""), ("1,010.00", ">+1.0 ± 1.2 % ≈"), ("1,050.00", ""),
        ("543.04", ""), ("532.18", ' class="beyond">-2.0 ± 0.6 %'), ("543.04", ""),
    ]  # fmt: skip
    assert shown[6:] == [("456.96", ""), (NONE, ""), ("456.96", "")]


def test_links_of_the_subject_page_lead_to_its_sections_and_pictures():
    page = Tags(subject(GOOD, FAILED))
    ids = {attrs["id"] for _, attrs in page.found if "id" in attrs}
    links = page.values("a", "href")
    assert {"sub-01_ses-a_T1w", "sub-01_ses-b_FLAIR", "methods", "main"} <= ids
    assert {link[1:] for link in links if link.startswith("#")} <= ids
    assert {link for link in links if not link.startswith("#")} == {GOOD.figure}


def test_subject_page_states_facts_command_model_and_methods():
    text = Tags(subject(GOOD)).text
    said = [COMMON[key] for key in ("model", "command", "boilerplate")]
    for words in (*said, "siam-bids", "0.1.0", "1.00 x 1.33 x 1.33 mm", GOOD.source):
        assert words in text


def test_scan_without_intracranial_tissue_has_no_shares():
    html = subject(replace(GOOD, volumes=(tissue("GM", 0.0),), intracranial_ml=0.0))
    assert re.findall(r'<td class="number[^>]*>([^<]+)</td>', html) == ["0.00", NONE]


# The group page


def test_group_page_carries_its_data_unharmed():
    html = group("sub-01_T1w", EVIL)
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', html)[1]
    assert "<" not in text
    assert json.loads(text) == group_data("sub-01_T1w", EVIL)


def test_missing_and_failed_scans_are_named():
    assert "No results for" not in Tags(group()).text
    html = group(missing=("sub-14", "sub-16"), failed=(("sub-03_T1w", "It is damaged & gone."),))
    text = " ".join(Tags(html).text.split())
    assert "No results for 2 subjects: sub-14, sub-16" in text
    assert "1 scan failed" in text
    assert "sub-03_T1w: It is damaged & gone." in text


def test_gaps_and_protocols_are_tabled():
    protocol = {
        "protocol": "T1w",
        "scans": 2,
        "included": 2,
        "visits": 2,
        "lacking": ["sub-07 ses-b"],
    }
    html = group(protocols=(protocol,), gaps=(("age", {"T1w": 1}),))
    text = " ".join(Tags(html).text.split())
    assert "sub-07 ses-b" in text
    assert "1 of 2" in text


def test_forest_plot_shows_estimates_with_intervals():
    row = {
        "protocol": "T1w", "tissue": "GM", "term": "age", "estimate_percent": -0.5,
        "ci_low_percent": -1.0, "ci_high_percent": 0.0, "p": 0.03, "q": 0.04, "scans": 20,
        "method": "ols",
    }  # fmt: skip
    html = group(statistics=(row,), formula="GM ~ age")
    assert re.search(r'd="M-96.0 0H0.0"/>\s*<circle cx="-48.0"', html)
    assert "-1 to 0" in Tags(html).text
    assert '<tr class="found">' in html


def test_models_without_an_interval_have_no_bar():
    row = {
        "protocol": "T1w", "tissue": "GM", "term": "age", "estimate_percent": -0.5,
        "ci_low_percent": None, "ci_high_percent": None, "p": None, "q": None, "scans": 20,
        "method": "mixed, not converged",
    }  # fmt: skip
    html = group(statistics=(row,), formula="GM ~ age")
    assert html.count("<circle") == 0
    assert html.count(f'<td class="number">{NONE}</td>') == 3  # interval, p, q


# Both


def plain_pages() -> list[str]:
    return [subject(GOOD, FAILED), group()]


def hostile_pages() -> list[str]:
    evil = replace(GOOD, name=EVIL, session=EVIL, source=EVIL, figure=f"{EVIL}.png")
    worse = replace(FAILED, name=f"{EVIL}2", error=EVIL)
    protocol = {"protocol": EVIL, "scans": 1, "included": 1, "visits": 1, "lacking": [EVIL]}
    return [
        subject(evil, worse, name=EVIL),
        group(
            EVIL, missing=(EVIL,), title=EVIL, failed=((EVIL, EVIL),), protocols=(protocol,),
            gaps=((EVIL, {EVIL: 1}),), formula=EVIL,
        ),
    ]  # fmt: skip


both = pytest.mark.parametrize("which", [0, 1], ids=["subject", "group"])


@both
def test_markup_in_names_stays_text(which):
    html = hostile_pages()[which]
    page = Tags(html)
    assert "<script>alert" not in html
    assert EVIL in page.text
    ids = [attrs["id"] for _, attrs in page.found if "id" in attrs]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in ids)


@both
def test_pages_open_offline(which):
    html = plain_pages()[which]
    page = Tags(html)
    loaded = [v for _, attrs in page.found for k, v in attrs.items() if k in {"src", "href"}]
    assert not [value for value in loaded if re.match(r"(?!data:)[a-z]+:|//", value)]
    assert "link" not in {tag for tag, _ in page.found}
    assert not re.search(r"@import|url\(", re.search(r"<style>(.*?)</style>", html, re.DOTALL)[1])


@both
def test_pages_have_landmarks_one_title_and_described_pictures(which):
    html = plain_pages()[which]
    page = Tags(html)
    tags = [tag for tag, _ in page.found]
    assert [tags.count(tag) for tag in ("header", "main", "footer", "h1")] == [1] * 4
    assert len(page.values("nav", "aria-label")) == tags.count("nav") > 0
    assert all(GOOD.name in alt or "sub-01_T1w" in alt for alt in page.values("img", "alt"))
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [attrs["id"] for _, attrs in page.found if "id" in attrs]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_colours_have_contrast_of_at_least_4_5(scheme):
    css = resource("templates", "style.css").read_text(encoding="utf-8")
    block = re.findall(r":root[^{]*\{(.*?)\}", css, flags=re.DOTALL)[scheme]
    colors = dict(re.findall(r"--([a-z0-9-]+): #([0-9a-f]{3,6})", block))

    def luminance(name: str) -> float:
        code = colors[name] if len(colors[name]) == 6 else "".join(c * 2 for c in colors[name])
        channels = np.array([*bytes.fromhex(code)]) / 255
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return float(linear @ [0.2126, 0.7152, 0.0722])

    pairs = [
        (ink, paper) for ink in ("ink", "soft", "link") for paper in ("paper", "card", "hover")
    ]
    pairs += [("alarm", "alarm-paper"), ("ink", "alarm-paper"), ("link", "alarm-paper")]
    pairs += [(f"c{n}", paper) for n in range(6) for paper in ("paper", "card")]
    for ink, paper in pairs:
        dark, light = sorted((luminance(ink), luminance(paper)))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, paper)
