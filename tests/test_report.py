"""Pictures show the right voxels in the right colours; pages show the right numbers and links."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from siam_bids import report as pages
from siam_bids.labels import siam_labels
from siam_bids.volume import Grid, Segmentation, Volume

NONE = "\N{EN DASH}"
EVIL = "sub-<script>alert(1)</script>"


def head(*, grey: float | None = None) -> tuple[Volume, Segmentation]:
    """Return a 4 mm RAS head of nested boxes: Head, Skull, GM and, on the left only, WM."""
    labels = np.zeros((48, 60, 54), np.uint8)
    labels[4:-4, 4:-4, 4:-4] = 16
    labels[6:-6, 6:-6, 6:-6] = 15
    labels[9:-9, 9:-9, 9:-9] = 1
    labels[12:24, 14:-14, 14:-14] = 2
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = [-94, -118, -106]
    grid = Grid(labels.shape, affine)
    noise = np.random.default_rng(0).uniform(1, 9, labels.shape)
    data = noise + 20 * labels if grey is None else np.full(labels.shape, grey)
    return Volume(data.astype(np.float32), grid), Segmentation(labels, grid, siam_labels())


def turned(volume: Volume, segmentation: Segmentation, axcodes: str):
    """Return the same anatomy with its axes stored as `axcodes`."""
    here = nib.io_orientation(volume.grid.affine)
    turn = nib.orientations.ornt_transform(here, nib.orientations.axcodes2ornt(axcodes))
    data = nib.apply_orientation(volume.data, turn)
    labels = nib.apply_orientation(segmentation.data, turn)
    affine = volume.grid.affine @ nib.orientations.inv_ornt_aff(turn, volume.grid.shape)
    grid = Grid(data.shape, affine)
    assert grid.axcodes == axcodes
    return Volume(data, grid), Segmentation(labels, grid, segmentation.labels)


def pixels(png: bytes) -> np.ndarray:
    """Return (rows, columns, 3) int from PNG bytes."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def near(picture: np.ndarray, color: np.ndarray) -> np.ndarray:
    """Return (rows, columns) bool, True where a pixel is within 3 of `color` in each channel."""
    return (abs(picture - color) <= 3).all(axis=-1)


def blend(name: str, grey: int) -> np.ndarray:
    """Return the RGB of a tissue's overlay on `grey`."""
    color = np.array([*bytes.fromhex(siam_labels().by_name[name].color[1:])])
    return 0.45 * color + 0.55 * grey


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


def tissue(name: str, volume_ml: float) -> pages.TissueVolume:
    label = siam_labels().by_name[name]
    return pages.TissueVolume(
        index=label.index,
        name=name,
        long_name=label.long_name,
        color=label.color,
        voxels=round(1000 * volume_ml),
        volume_ml=volume_ml,
    )


GOOD = pages.ScanReport(
    name="sub-01_ses-a_T1w",
    suffix="T1w",
    session="ses-a",
    source="sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz",
    figure="sub-01/figures/sub-01_ses-a_T1w.png",
    thumbnail="sub-01/figures/sub-01_ses-a_T1w_small.png",
    volumes=(tissue("GM", 543.043), tissue("CSF", 456.957), tissue("Head", 1680.696)),
    intracranial_ml=1000.0,
    facts=(("Voxel size", "1.00 x 1.33 x 1.33 mm"),),
)
FAILED = replace(
    GOOD,
    name="sub-01_ses-b_FLAIR",
    suffix="FLAIR",
    session="ses-b",
    figure="",
    thumbnail="",
    volumes=(),
    intracranial_ml=None,
    error="sub-01_ses-b_FLAIR.nii.gz is 4-D & <odd>.",
)


def subject(*scans: pages.ScanReport, name: str = "sub-01") -> str:
    return pages.render_subject(pages.SubjectReport(subject=name, scans=scans, **COMMON))


def group_scan(number: int, suffix: str, gm: float) -> pages.GroupScan:
    name = f"sub-{number:02d}_{suffix}"
    return pages.GroupScan(
        subject=f"sub-{number:02d}",
        session="",
        suffix=suffix,
        name=name,
        report=f"sub-{number:02d}.html",
        thumbnail=f"sub-{number:02d}/figures/{name}.png",
        volumes={"GM": gm, "Head": 1700.25},
        intracranial_ml=1400.5 + number,
    )


def group(*scans: pages.GroupScan, missing: tuple[str, ...] = (), title: str = "Study") -> str:
    return pages.render_group(
        pages.GroupReport(title=title, scans=scans, labels=siam_labels(), missing=missing, **COMMON)
    )


# Slices


@pytest.mark.parametrize("axcodes", ["LIA", "LPS", "PIR", "ASL"])
def test_any_orientation_shows_the_same_slices(axcodes):
    expected = pages.cut(*head(), 5)
    for (plane, slices), (_, twins) in zip(
        expected, pages.cut(*turned(*head(), axcodes), 5), strict=True
    ):
        for shown, twin in zip(slices, twins, strict=True):
            np.testing.assert_array_equal(twin.labels, shown.labels, err_msg=plane.name)
            np.testing.assert_allclose(twin.grey, shown.grey, atol=1e-6)
            assert twin.size == pytest.approx(shown.size)
            assert twin.position == pytest.approx(shown.position)


def test_oblique_scan_is_shown_along_its_own_axes():
    volume, segmentation = head()
    tilt = nib.affines.from_matvec(nib.eulerangles.euler2mat(z=0.2, y=0.1, x=0.15))
    grid = Grid(volume.grid.shape, tilt @ volume.grid.affine)
    oblique = pages.cut(Volume(volume.data, grid), replace(segmentation, grid=grid), 3)
    for (_, slices), (_, twins) in zip(pages.cut(volume, segmentation, 3), oblique, strict=True):
        for shown, twin in zip(slices, twins, strict=True):
            np.testing.assert_array_equal(twin.labels, shown.labels)
            assert twin.size == pytest.approx(shown.size)


def test_thick_slices_keep_their_size_in_mm():
    volume, segmentation = head()
    grid = Grid((48, 60, 27), volume.grid.affine @ np.diag([1, 1, 2, 1]))
    thick = pages.cut(
        Volume(volume.data[..., ::2], grid),
        Segmentation(segmentation.data[..., ::2], grid, segmentation.labels),
        3,
    )
    for (_, fine), (plane, coarse) in zip(pages.cut(volume, segmentation, 3), thick, strict=True):
        assert coarse[1].size == pytest.approx(fine[1].size, abs=8)
        assert coarse[1].position == pytest.approx(fine[1].position, abs=8)
        if plane.name != "axial":
            assert coarse[1].grey.shape[0] == pytest.approx(fine[1].grey.shape[0] / 2, abs=1)


def test_patients_left_is_on_the_left_of_the_picture():
    views = {plane.name: slices for plane, slices in pages.cut(*head(), 1)}
    for name in ("axial", "coronal"):
        columns = np.flatnonzero((views[name][0].labels == 2).any(axis=0))
        assert columns.max() < views[name][0].labels.shape[1] / 2
    assert [(plane.left, plane.right) for plane in pages.PLANES] == [
        ("L", "R"),
        ("L", "R"),
        ("P", "A"),
    ]


def test_slices_lie_inside_the_brain_at_their_scanner_coordinate():
    (_, axial), *_ = pages.cut(*head(), 6)
    # GM spans slices 9 to 44; z = 4 k - 106.
    assert [shown.position for shown in axial] == [4 * k - 106 for k in (12, 18, 24, 30, 36, 42)]


def test_stray_voxels_and_empty_label_maps_are_shown():
    volume, segmentation = head()
    segmentation.data[0, 0, 0] = 1
    (_, (shown,)), *_ = pages.cut(volume, segmentation, 1)
    assert shown.size == (4 * (30 + 12), 4 * (42 + 12))
    empty = replace(segmentation, data=np.zeros_like(segmentation.data))
    (_, (shown,)), *_ = pages.cut(volume, empty, 1)
    assert shown.grey.shape == (60, 48)


# Pictures


def test_mosaic_shows_tissues_in_the_colours_of_the_label_table():
    png = pages.mosaic(*head(grey=100))
    picture = pixels(png)
    assert picture.shape[1] == 1600
    assert len(png) < 1_500_000
    for name in ("GM", "WM", "Skull", "Head"):
        assert near(picture, blend(name, 127)).sum() > 4000, name
        swatch = near(picture, np.array([*bytes.fromhex(siam_labels().by_name[name].color[1:])]))
        assert swatch.sum() >= 14 * 14, name
    assert near(picture, blend("Hippo", 127)).sum() == 0
    assert near(picture, np.array([127] * 3)).sum() > 100_000


def test_overlay_keeps_the_proportion_of_the_volumes():
    picture = pixels(pages.thumbnail(*head(grey=100)))[:, :160]
    shown = pages.cut(*head(), 1)[0][1][0].labels
    drawn = near(picture, blend("WM", 127)).sum() / near(picture, blend("GM", 127)).sum()
    assert drawn == pytest.approx((shown == 2).sum() / (shown == 1).sum(), rel=0.05)


def test_thumbnail_is_small():
    png = pages.thumbnail(*head())
    assert pixels(png).shape == (160, 480, 3)
    assert len(png) < 60_000


def test_same_scan_gives_the_same_bytes():
    assert pages.thumbnail(*head()) == pages.thumbnail(*head())


@pytest.mark.parametrize("grey", [0, -5, 1e6])
def test_flat_images_are_drawn(grey):
    assert pixels(pages.thumbnail(*head(grey=grey))).shape == (160, 480, 3)


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
    assert page.values("img", "src") == [GOOD.figure]
    assert html.count("<table") == 1
    assert ("div", {"class": "alarm", "role": "alert"}) in page.found
    assert page.values("div", "class").count("alarm") == 2
    assert "alarm" not in Tags(subject(GOOD)).values("div", "class")


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


def test_pictures_points_and_rows_link_to_the_scan_on_its_subjects_page():
    scans = (group_scan(1, "T1w", 540.0), group_scan(2, "FLAIR", 530.0))
    page = Tags(group(*scans))
    links = page.values("a", "href")
    # A picture, points in the panels TIV, GM and Head, and a row of the table.
    assert links.count("sub-01.html#sub-01_T1w") == 5
    assert links.count("sub-02.html#sub-02_FLAIR") == 5
    assert page.values("img", "src") == [scan.thumbnail for scan in scans]
    assert "#sub-01_ses-a_T1w" not in links
    assert "sub-01_ses-a_T1w" in {attrs.get("id") for _, attrs in Tags(subject(GOOD)).found}


def test_group_table_shows_every_volume():
    html = group(group_scan(1, "T1w", 540.123), group_scan(2, "FLAIR", 529.999))
    cells = re.findall(r'<td class="number">([^<]+)</td>', html)
    absent = [NONE] * 12
    assert cells == ["1,401.50", "540.12", *absent, "1,402.50", "530.00", *absent]


def test_points_have_tooltips_and_heights_in_order_of_volume():
    html = group(group_scan(1, "T1w", 500.0), group_scan(2, "T1w", 600.0))
    gm = html[html.index('aria-label="Cerebral cortex') :]
    points = re.findall(r"<title>([^<]+)</title><circle[^>]+cy=\"([\d.]+)\"", gm)[:2]
    assert [name for name, _ in points] == ["sub-01_T1w: 500.00 mL", "sub-02_T1w: 600.00 mL"]
    assert float(points[0][1]) == 160.0
    assert float(points[1][1]) == 8.0


def test_scan_beyond_the_whiskers_is_listed():
    gm = [500.0, 510, 505, 495, 507, 900]
    html = group(*(group_scan(number, "T1w", value) for number, value in enumerate(gm, 1)))
    rows = re.findall(r"<li data-scan=\"([^\"]+)\"><a[^>]+>[^<]+</a>:\s+([^<]+)</li>", html)
    assert rows == [("sub-06_T1w", "GM 900.00 mL (median 506.00)")]
    assert html.count('class="contrast-0 outlier"') == 1


def test_missing_subjects_are_named():
    assert "No results for" not in Tags(group(group_scan(1, "T1w", 540.0))).text
    text = " ".join(Tags(group(missing=("sub-14", "sub-16"))).text.split())
    assert "No results for 2 subjects: sub-14, sub-16" in text
    assert "0 scans of 0 subjects" in text


def test_scan_without_page_or_picture_is_named_without_link():
    page = Tags(group(replace(group_scan(1, "T1w", 540.0), report="", thumbnail="")))
    assert page.values("img", "src") == []
    assert all(link.startswith("#") for link in page.values("a", "href"))
    assert "no picture" in page.text


# Both


def plain_pages() -> list[str]:
    return [subject(GOOD, FAILED), group(group_scan(1, "T1w", 540.0))]


def hostile_pages() -> list[str]:
    evil = replace(GOOD, name=EVIL, session=EVIL, source=EVIL, figure=f"{EVIL}.png")
    worse = replace(FAILED, name=f"{EVIL}2", error=EVIL)
    member = replace(group_scan(1, "T1w", 540.0), name=EVIL, subject=EVIL, suffix=EVIL)
    return [subject(evil, worse, name=EVIL), group(member, missing=(EVIL,), title=EVIL)]


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
    assert not [value for value in loaded if re.match(r"[a-z]+:|//", value)]
    assert "link" not in {tag for tag, _ in page.found}
    assert not re.search(r"@import|url\(", html)


@both
def test_pages_have_landmarks_one_title_and_described_pictures(which):
    html = plain_pages()[which]
    page = Tags(html)
    tags = [tag for tag, _ in page.found]
    assert [tags.count(tag) for tag in ("header", "nav", "main", "footer", "h1")] == [1] * 5
    assert all(GOOD.name in alt or "sub-01_T1w" in alt for alt in page.values("img", "alt"))
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [attrs["id"] for _, attrs in page.found if "id" in attrs]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_colours_have_contrast_of_at_least_4_5(scheme):
    css = pages.resource("templates", "style.css").read_text(encoding="utf-8")
    block = re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)[scheme]
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
