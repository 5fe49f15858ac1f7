"""The pages in a real browser: Chromium or Chrome on the PATH; skipped where there is none."""

import base64
import io
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from conftest import head_labels, write_study
from PIL import Image
from scipy import ndimage
from test_render import group as render

from siam_bids.bids.names import PREVIEWS, finished_scans
from siam_bids.bids.writers import save_preview
from siam_bids.config import RunConfig
from siam_bids.image.grid import Grid
from siam_bids.pipelines.group import run_group

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on the PATH")

HARMLESS = "GL Driver Message (OpenGL, Performance"
"""Chromium's own remark on reading a pixel's depth without a graphics card."""

EVIL = "<img src=x onerror=alert(1)>"
ODD = "sub-07_T1w"
SCHEMES = [("light", 1280), ("dark", 1280), ("light", 390)]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """A study whose table holds HTML."""
    raw, out = write_study(tmp_path_factory.mktemp("browser"), people=14, name=EVIL)
    table = raw / "participants.tsv"
    lines = table.read_text().splitlines()
    lines = [f"{line}\t{EVIL if i else 'site'}{i % 2 if i else ''}" for i, line in enumerate(lines)]
    lines[0] += f"\t{EVIL}"
    lines[1:] = [f"{line}\t{i}" for i, line in enumerate(lines[1:])]
    table.write_text("\n".join(lines) + "\n")
    image = head_labels().astype(np.uint8)
    grid = Grid(image.shape, np.diag([4.0, 4.0, 4.0, 1.0]))
    (odd,) = finished_scans(out, "07")
    for kind in PREVIEWS:
        save_preview(odd.preview(kind), image, grid)
    config = RunConfig(bids_dir=raw, output_dir=out, level="group", formula="~ age", command=EVIL)
    run_group(config)
    return out


VOTES = {
    "anna": [
        "pass",
        "pass",
        "fail",
        "warn",
        "pass",
        "fail",
        "fail",
        "pass",
        "warn",
        "pass",
        "pass",
        "pass",
    ],
    "ben": [
        "pass",
        "warn",
        "fail",
        "warn",
        "pass",
        "pass",
        "fail",
        "pass",
        "pass",
        "pass",
        "pass",
        "fail",
    ],
}


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    """A study of two centers that two people rated."""
    raw, out = write_study(tmp_path_factory.mktemp("rated"), people=20)
    table = raw / "participants.tsv"
    head, *rows = table.read_text().splitlines()
    rows = [f"{row}\t{1 + number // 2 % 2}" for number, row in enumerate(rows)]
    table.write_text("\n".join([f"{head}\tcenter", *rows]) + "\n")
    for rater, votes in VOTES.items():
        rows = [f"sub-{number:02d}_T1w\t{vote}" for number, vote in enumerate(votes, 1)]
        text = "\n".join(["scan\trating", *rows])
        (out / f"group_ratings_{rater}.tsv").write_text(text + "\n")
    run_group(
        RunConfig(
            bids_dir=raw, output_dir=out, level="group", command="", formula="~ age",
            site_column="center", harmonize="", exclude=("rating=fail",),
        )
    )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def chrome():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        options = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        options.append("--enable-unsafe-swiftshader")  # WebGL2 without a graphics card
        browser = play.chromium.launch(executable_path=BROWSER, args=options)
        yield browser
        browser.close()


@pytest.fixture
def tab(chrome):
    """A page that must not complain, ask the network for anything, or raise a dialog."""
    context = chrome.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(60_000)
    wrong = []
    page.on(
        "console",
        lambda m: (
            wrong.append(m.text)
            if m.type in ("error", "warning") and HARMLESS not in m.text
            else None
        ),
    )
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    page.on(
        "request",
        lambda r: (
            wrong.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None
        ),
    )
    yield page
    assert wrong == []
    context.close()


def opened(tab, output, name="group.html"):
    tab.goto((output / name).as_uri())
    if name == "group.html":
        tab.wait_for_selector("html[data-ready]")
    return tab


def names(tab) -> list[str]:
    return tab.eval_on_selector_all("#wall .card", "cards => cards.map(c => c.dataset.scan)")


def filtered(tab, count: int) -> None:
    tab.wait_for_function(f"document.querySelectorAll('#wall .card').length === {count}")


def test_wall_shows_the_suspicious_scan_first_and_sorts_by_any_measure(tab, output):
    opened(tab, output)
    assert len(names(tab)) == 14
    assert names(tab)[0] == ODD
    assert "The top of the brain is cut off" in tab.inner_text("#wall .card >> nth=0")
    tab.select_option("#sort", "measure:age")
    tab.wait_for_function("document.querySelector('#wall .card').dataset.scan === 'sub-14_T1w'")
    assert names(tab) == [f"sub-{n:02d}_T1w" for n in range(14, 0, -1)]
    tab.click(".more summary")
    tab.fill("#most", "30")
    filtered(tab, 3)  # 23, 26, 29 years
    assert tab.inner_text("#count") == "3 of 14 scans"


def test_search_filters_and_clearing(tab, output):
    opened(tab, output)
    tab.fill("#find", "SUB-03")
    filtered(tab, 1)
    assert names(tab) == ["sub-03_T1w"]
    tab.click("#clear")
    filtered(tab, 14)
    tab.select_option("#flag", "fail")
    filtered(tab, 1)
    assert names(tab) == [ODD]
    assert "brain_cut_top" in tab.inner_text("#outlier-list")
    tab.select_option("#flag", "*")
    tab.select_option("[data-category=sex]", "F")
    filtered(tab, 7)


def test_ten_thousand_scans_come_in_pages(tab, tmp_path):
    (tmp_path / "group.html").write_text(render(*(f"sub-{n:05d}_T1w" for n in range(10_000))))
    opened(tab, tmp_path)
    tab.select_option("#sort", "measure:GM")
    tab.wait_for_function("document.querySelector('#wall .card').dataset.scan === 'sub-09999_T1w'")
    assert len(names(tab)) == 60
    assert tab.inner_text("#pager") == "Page 1 of 167"
    tab.click("[data-do=next]")
    tab.wait_for_function("document.querySelector('#wall .card').dataset.scan === 'sub-09939_T1w'")
    tab.fill("#find", "sub-01234")
    filtered(tab, 1)
    assert tab.inner_text("#count") == "1 of 10000 scans"


def test_search_is_ringed_in_every_plot_in_sight(tab, output):
    opened(tab, output)
    tab.locator("#panels").scroll_into_view_if_needed()
    tab.locator("#panels .plot canvas").first.wait_for()
    tab.fill("#find", "sub-03")
    filtered(tab, 1)
    script = """() => [...document.querySelectorAll("#panels .plot")]
      .filter(p => p.querySelector("canvas"))
      .map(p => echarts.getInstanceByDom(p).getOption().series.find(s => s.id === "lit").data)"""
    tab.locator("#panels").scroll_into_view_if_needed()
    tab.wait_for_function(f"({script})().filter(rings => rings.length === 1).length >= 3")
    rings = [rings for rings in tab.evaluate(script) if rings]
    assert all(ring[0][2] == 2 for ring in rings)


def test_points_are_coloured_by_any_category(tab, output):
    opened(tab, output)
    assert "Left to right: T1w" in tab.inner_text("#lanes")
    tab.select_option("#colour", "sex")
    tab.locator("#panels").scroll_into_view_if_needed()
    tab.locator("#panels .plot canvas").first.wait_for()
    script = """() => echarts.getInstanceByDom(document.querySelector("#panels .plot")).getOption()
      .series.filter(s => s.id.startsWith("of ")).map(s => [s.id, s.data.length])"""
    tab.wait_for_function(f"({script})().length === 2")
    assert tab.evaluate(script) == [["of F", 7], ["of M", 7]]
    assert tab.inner_text("#lanes").endswith("sex: ● F● M")
    tab.fill("#find", "sub-03")
    filtered(tab, 1)
    tab.click("#clear")  # leaves the colours
    filtered(tab, 14)
    assert tab.input_value("#colour") == "sex"


def drag(tab, measure: str, low: float, high: float) -> None:
    """Brush a distribution between two values, over its whole width."""
    plot = tab.locator(f"[data-measure={measure}]")
    plot.scroll_into_view_if_needed()
    plot.locator("canvas").first.wait_for()
    tab.wait_for_timeout(300)
    corners = tab.evaluate(
        """([measure, low, high]) => {
          const plot = document.querySelector(`[data-measure=${measure}]`);
          const chart = echarts.getInstanceByDom(plot);
          const axes = { xAxisIndex: 0, yAxisIndex: 0 };
          return [[-0.49, low], [0.49, high]].map(p => chart.convertToPixel(axes, p));
        }""",
        [measure, low, high],
    )
    box = plot.bounding_box()
    (x1, y1), (x2, y2) = [(box["x"] + x, box["y"] + y) for x, y in corners]
    tab.mouse.move(x1, y1)
    tab.mouse.down()
    tab.mouse.move((x1 + x2) / 2, (y1 + y2) / 2, steps=4)
    tab.mouse.move(x2, y2, steps=4)
    tab.mouse.up()


def test_brushing_a_plot_leaves_its_scans_on_the_wall(tab, output):
    opened(tab, output)
    values = tab.evaluate("JSON.parse(document.getElementById('data').textContent).values.GM")
    ranked = sorted(values)
    low, high = (ranked[4] + ranked[5]) / 2, (ranked[9] + ranked[10]) / 2
    drag(tab, "GM", low, high)
    filtered(tab, 5)
    assert "brushed in GM" in tab.inner_text("#count")
    inside = {f"sub-{i + 1:02d}_T1w" for i, value in enumerate(values) if low < value < high}
    assert set(names(tab)) == inside
    tab.click("#clear")
    filtered(tab, 14)


def test_rating_by_mouse_and_keyboard_survives_reload_and_goes_out_and_in(tab, output, tmp_path):
    opened(tab, output)
    tab.click("[data-rate=fail][aria-label='fail sub-07_T1w']")
    tab.select_option("#sort", "name")
    tab.uncheck("#descending")
    tab.wait_for_function("document.querySelector('#wall .card').dataset.scan === 'sub-01_T1w'")
    tab.fill("#rater", "Anna B.")
    tab.focus("[data-open='0']")
    tab.keyboard.press("1")  # goes on to the second
    tab.keyboard.press("2")
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("Enter")
    assert tab.inner_text("#detail-title") == "sub-02_T1w"
    tab.fill("#note", "moved\ta lot")
    tab.check("[data-tag=motion]")
    tab.check("[data-tag=ringing]")
    tab.keyboard.press("Escape")
    tab.wait_for_selector("#detail", state="hidden")
    tab.wait_for_function("!location.hash.includes('scan=')")  # told by an event of the dialog
    tab.reload()
    tab.wait_for_selector("html[data-ready]")
    pressed = "[aria-pressed=true][data-rate]"
    assert tab.get_attribute(f"[data-scan='{ODD}'] {pressed}", "data-rate") == "fail"
    with tab.expect_download() as got:
        tab.click("[data-do=export]")
    path = tmp_path / got.value.suggested_filename
    got.value.save_as(path)
    assert path.name == "group_ratings_Anna-B.tsv"
    head, *rows = [line.split("\t") for line in path.read_text().splitlines()]
    assert head == ["rater", "scan", "rating", "note", "tags", "time"]
    assert [row[:5] for row in rows] == [
        ["Anna B.", "sub-01_T1w", "pass", "n/a", "n/a"],
        ["Anna B.", "sub-02_T1w", "warn", "moved a lot", "motion, ringing"],
        ["Anna B.", ODD, "fail", "n/a", "n/a"],
    ]
    assert all(re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", row[5]) for row in rows)
    tab.evaluate("localStorage.clear()")
    tab.reload()
    tab.wait_for_selector("html[data-ready]")
    tab.fill("#rater", "Anna B.")
    tab.keyboard.press("Tab")
    assert tab.locator(pressed).count() == 0
    tab.set_input_files("#import", path)
    tab.wait_for_function(
        "document.getElementById('message').textContent === '3 of 3 ratings imported.'"
    )
    assert tab.locator(f"#wall {pressed}").count() == 3


def test_the_address_keeps_the_choice_and_the_open_scan(tab, output):
    opened(tab, output)
    tab.fill("#find", "sub-0")
    filtered(tab, 9)
    tab.select_option("#sort", "measure:GM")
    tab.select_option("[data-category=sex]", "F")
    filtered(tab, 4)
    tab.uncheck("#outlines")
    tab.select_option("#across", "WM")
    tab.click("[data-kind=quality]")
    shown = names(tab)
    tab.click("#wall .open >> nth=1")

    def same() -> bool:
        tab.wait_for_selector("html[data-ready]")
        tab.wait_for_selector("#detail[open]")
        return (
            names(tab), tab.inner_text("#detail-title"), tab.input_value("#find"),
            tab.input_value("#across"), tab.is_checked("#outlines"),
            tab.get_attribute("[data-kind=quality]", "aria-pressed"),
        ) == (shown, shown[1], "sub-0", "WM", False, "true")  # fmt: skip

    assert same()
    tab.reload()
    assert same()
    tab.click("#detail-page")
    tab.wait_for_url(f"**/{shown[1].partition('_')[0]}.html*")
    tab.go_back()
    assert same()
    tab.keyboard.press("Escape")
    tab.wait_for_function("!location.hash.includes('scan=')")
    tab.click("a[href='#outliers']")
    tab.reload()
    tab.wait_for_selector("html[data-ready]")
    assert names(tab) == shown
    tab.click("#clear")
    filtered(tab, 14)


def test_addresses_that_name_nothing_are_as_none(tab, output):
    address = (output / "group.html").as_uri()
    tab.goto(
        f"{address}#sort=x&flag=%3Cb%3E&scan=%3Cimg%20src%3Dx%3E&page=99&plots=%22%5D&is+sex=Z"
    )
    tab.wait_for_selector("html[data-ready]")
    assert len(names(tab)) == 14
    assert tab.input_value("#sort") == "flag"
    assert not tab.locator("#detail").is_visible()


def test_rating_goes_on_to_the_next_scan_across_pages(tab, tmp_path):
    (tmp_path / "group.html").write_text(render(*(f"sub-{n:03d}_T1w" for n in range(130))))
    opened(tab, tmp_path)
    tab.select_option("#sort", "name")
    tab.uncheck("#descending")
    tab.wait_for_function("document.querySelector('#wall .card').dataset.scan === 'sub-000_T1w'")
    tab.focus("[data-open='59']")
    tab.keyboard.press("3")
    tab.wait_for_function("document.activeElement.dataset.open === '60'")
    assert tab.inner_text("#pager") == "Page 2 of 3"
    tab.keyboard.press("1")
    tab.wait_for_function("document.activeElement.dataset.open === '61'")
    tab.focus("[data-open='119']")
    tab.keyboard.press("Enter")
    tab.keyboard.press("2")
    assert tab.inner_text("#detail-title") == "sub-120_T1w"
    tab.keyboard.press("Escape")
    tab.uncheck("#advance")
    tab.click("[data-open='120']")
    tab.click("#detail-rate [data-rate=fail]")
    assert tab.inner_text("#detail-title") == "sub-120_T1w"
    tab.keyboard.press("Escape")
    tab.wait_for_function("document.activeElement.dataset.open === '120'")
    assert tab.inner_text("#pager") == "Page 3 of 3"
    tab.select_option("#rating", "fail")
    filtered(tab, 2)
    assert names(tab) == ["sub-059_T1w", "sub-120_T1w"]


def test_two_raters_are_compared(tab, rated):
    from statsmodels.stats.inter_rater import cohens_kappa

    opened(tab, rated)
    levels = ["pass", "warn", "fail"]
    counts = np.zeros((3, 3))
    for one, other in zip(VOTES["anna"], VOTES["ben"], strict=True):
        counts[levels.index(one), levels.index(other)] += 1
    kappa = cohens_kappa(counts).kappa
    row = tab.eval_on_selector_all("#agreement-table td", "cells => cells.map(c => c.textContent)")
    same = 100 * np.trace(counts) / counts.sum()
    assert row == ["anna", "ben", "12", f"{same:.1f}", f"{kappa:.3f}"]
    assert "4 scans have different ratings" in tab.inner_text("#agreement")
    assert "sub-02_T1w anna: pass ben: warn" in " ".join(tab.inner_text("#disagreements").split())
    tab.select_option("#rating", "differ")
    filtered(tab, 4)
    # The worse of two counts: sub-03, 06, 07 and 12 are left out.
    assert "4 of them are excluded" in tab.inner_text(".masthead")
    tab.click("#clear")
    filtered(tab, 20)
    tab.fill("#rater", "ben")
    tab.keyboard.press("Tab")
    pressed = "[data-scan=sub-12_T1w] [aria-pressed=true]"
    assert tab.get_attribute(pressed, "data-rate") == "fail"


def test_all_selected_scans_are_rated_at_once_and_ratings_of_others_come_in(tab, output, tmp_path):
    opened(tab, output)
    assert not tab.locator("#agreement").is_visible()
    tab.select_option("[data-category=sex]", "F")
    filtered(tab, 7)
    tab.click(".rating-help summary")
    assert tab.inner_text("#bulk-count") == "Rate all 7 selected:"
    tab.click("[data-bulk=warn]")
    tab.click("#clear")
    filtered(tab, 14)
    assert tab.locator("#wall [data-rate=warn][aria-pressed=true]").count() == 7
    tab.click("#undo")
    assert tab.locator("#wall [aria-pressed=true]").count() == 0
    tab.click("[data-bulk=pass]")
    path = tmp_path / "group_ratings_carl.tsv"
    path.write_text("rater\tscan\trating\nCarl\tsub-01_T1w\tfail\nCarl\tsub-02_T1w\tpass\n")
    tab.set_input_files("#import", path)
    tab.wait_for_selector("#agreement-table td")
    row = tab.eval_on_selector_all("#agreement-table td", "cells => cells.map(c => c.textContent)")
    assert row == ["unnamed", "Carl", "2", "50.0", "0.000"]
    assert tab.locator("#wall [data-rate=pass][aria-pressed=true]").count() == 14


def test_one_thing_is_counted_in_the_singular(tab, output, tmp_path):
    """And a rating in capital letters comes in, as on the command line."""
    opened(tab, output)
    path = tmp_path / "group_ratings_dora.tsv"
    path.write_text("rater\tscan\trating\nDora\tsub-01_T1w\tFAIL\n")
    tab.set_input_files("#import", path)
    tab.wait_for_function("document.getElementById('message').textContent.includes('imported')")
    assert tab.inner_text("#message") == "1 of 1 rating imported."
    tab.fill("#find", "sub-01")
    filtered(tab, 1)
    assert tab.inner_text("#count") == "1 of 14 scans"
    tab.click(".rating-help summary")
    tab.click("[data-bulk=pass]")
    assert tab.inner_text("#message") == "1 scan rated pass."
    with tab.expect_download():
        tab.click("[data-do=export]")
    assert tab.inner_text("#message") == "1 rating exported."


def test_the_dialog_shows_the_detailed_slices_a_legend_and_commands(tab, output):
    opened(tab, output)
    tab.click("[data-open='2']")
    layers = tab.locator("#detail-picture img")
    tab.wait_for_function(
        "[...document.querySelectorAll('#detail-picture img')].every(i => i.naturalWidth)"
    )
    assert layers.evaluate_all("all => all.map(i => i.naturalWidth)") == [1596, 1596]
    assert tab.inner_text("#legend").split()[:3] == ["GM", "WM", "CSF"]
    width = tab.eval_on_selector("#detail-picture .layers", "e => e.clientWidth")
    tab.click("#detail-picture")
    assert tab.eval_on_selector("#detail-picture .layers", "e => e.clientWidth") > 1.2 * width
    tab.click("#detail [data-do=outlines]")
    assert not tab.locator("#detail-picture .outline").is_visible()
    assert "outlines=no" in tab.url
    tab.click("#detail [data-do=outlines]")
    assert tab.locator("#detail-picture .outline").is_visible()
    tab.click("#detail details:last-of-type summary")
    freeview, itksnap = map(shlex.split, tab.locator("#commands code").all_inner_texts())
    assert freeview[:2] == ["freeview", "-v"]
    assert (output / freeview[2]).resolve().parent.parent.parent == output.parent / "raw"
    labels = "sub-03/anat/sub-03_seg-siam_desc-T1w_dseg.nii.gz"
    lut = "seg-siam_freesurfer.txt"
    assert freeview[3:] == [f"{labels}:colormap=lut:lut={lut}:opacity=0.4"]
    assert itksnap == ["itksnap", "-g", freeview[2], "-s", labels, "-l", "seg-siam_itksnap.txt"]
    assert (output / lut).exists()


def test_commands_quote_whatever_folders_are_called(tab, tmp_path):
    odd = "../it's $(touch x) & <b>`y`"
    page = render("sub-01_T1w", raw=odd)
    (tmp_path / "group.html").write_text(page)
    opened(tab, tmp_path)
    tab.click("[data-open='0']")
    tab.click("#detail details:last-of-type summary")
    for command in tab.locator("#commands code").all_inner_texts():
        words = shlex.split(command)
        assert f"{odd}/sub-01_T1w.nii.gz" in words
        shown = subprocess.run(
            ["bash", "-c", f"printf '%s\\n' {command}"], cwd=tmp_path, text=True, check=True,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert shown.stdout.splitlines() == words
    assert [path.name for path in tmp_path.iterdir()] == ["group.html"]


def test_headers_of_tables_sort(tab, output):
    opened(tab, output)
    tab.check("#table")
    tab.click("#sheet [data-sort='measure:GM']")
    values = tab.evaluate("JSON.parse(document.getElementById('data').textContent).values.GM")
    first = "document.querySelector('#sheet tbody tr').dataset.scan"
    assert tab.evaluate(first) == f"sub-{1 + int(np.argmax(values)):02d}_T1w"
    tab.click("#sheet [data-sort='measure:GM']")
    assert tab.evaluate(first) == f"sub-{1 + int(np.argmin(values)):02d}_T1w"
    assert tab.get_attribute("#sheet th:has([data-sort='measure:GM'])", "aria-sort") == "ascending"
    forest = "#statistics .forest >> nth=0"
    column = """table => [...table.tBodies[0].rows].map(r => Number(r.cells[1].textContent))
      .filter(value => !Number.isNaN(value))"""
    tab.click("#statistics .forest >> nth=0 >> text='Estimate, %'")
    found = tab.eval_on_selector(forest, column)
    assert found == sorted(found, reverse=True)
    tab.click("#statistics .forest >> nth=0 >> text='Estimate, %'")
    found = tab.eval_on_selector(forest, column)
    assert found == sorted(found)
    assert len(found) > 3


def test_the_bar_covers_nothing_that_is_jumped_to(tab, output):
    opened(tab, output)
    tab.evaluate("scrollTo(0, document.body.scrollHeight)")
    for place in ("outliers", "distributions", "scans"):
        tab.click(f"a[href='#{place}']")
        tab.wait_for_timeout(100)
        bar = tab.locator("#tools").bounding_box()
        title = tab.locator(f"#{place}-title").bounding_box()
        assert 0 <= title["y"] - (bar["y"] + bar["height"]) < 60, place


def test_paper_has_all_plots_in_light_colours(tab, rated):
    tab.emulate_media(color_scheme="dark")
    opened(tab, rated)
    panels = tab.locator("#panels .plot").count()
    assert tab.locator("#panels .plot canvas").count() < panels
    assert len(tab.pdf()) > 100_000
    assert tab.locator("#panels .plot canvas").count() == panels
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    ink = "getComputedStyle(document.documentElement).getPropertyValue('--ink').trim()"
    assert tab.evaluate(ink) == "#1d2126"
    tab.emulate_media(media="print", color_scheme="dark")
    tab.set_viewport_size({"width": 720, "height": 1000})
    tab.wait_for_timeout(500)
    sizes = """all => all.map(canvas => canvas.getBoundingClientRect())
      .map(({ width, height }) => [width, height])"""
    shown = np.array(tab.eval_on_selector_all(".plot canvas", sizes))
    assert len(shown) == panels + 3  # and the relation, before, after
    assert (shown > 60).all()
    assert (shown[:, 0] <= 720).all()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 720
    tab.emulate_media(media="screen", color_scheme="dark")
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.evaluate(ink) == "#e6e8eb"


def test_volumes_are_shown_by_site_before_and_after_harmonization(tab, rated):
    opened(tab, rated)
    assert tab.input_value("#colour") == "center"
    for place in ("before", "after"):  # drawn when they come into sight
        tab.locator(f"#{place}").scroll_into_view_if_needed()
        tab.wait_for_function(
            """id => echarts.getInstanceByDom(document.getElementById(id))
              ?.getOption()?.series?.some(s => s.id.startsWith("of "))""",
            arg=place,
        )
    data = tab.evaluate("JSON.parse(document.getElementById('data').textContent)")
    script = """id => echarts.getInstanceByDom(document.getElementById(id)).getOption().series
      .filter(s => s.id.startsWith("of "))
      .map(s => s.data.map(p => [Math.round(p[0]), p[1], p[2]]))"""
    for place, measure in (("before", "GM"), ("after", "GM_harmonized_mL")):
        series = tab.evaluate(script, place)
        assert [len(points) for points in series] == [10, 10]
        for lane, points in enumerate(series):
            assert {point[0] for point in points} == {lane}
            assert all(point[1] == data["values"][measure][point[2]] for point in points)
    tab.select_option("#harmonized-tissue", "Hippo")
    tab.wait_for_function(
        "document.getElementById('after').ariaLabel.startsWith('Hippo by center')"
    )
    tab.reload()
    tab.wait_for_selector("html[data-ready]")
    assert tab.input_value("#harmonized-tissue") == "Hippo"
    tab.set_viewport_size({"width": 390, "height": 800})
    # the plots follow the window when it tells them
    tab.wait_for_function("document.documentElement.scrollWidth === 390")


def test_every_link_leads_to_a_file(tab, rated):
    for name in ("group.html", "sub-03.html"):
        opened(tab, rated, name)
        links = tab.eval_on_selector_all("main a[href]", "all => all.map(a => a.href)")
        files = {link.partition("#")[0] for link in links}
        assert [f for f in files if not Path(unquote(urlsplit(f).path)).is_file()] == []
        if name == "group.html":
            found = {Path(urlsplit(file).path).name for file in files}
            tables = {path.name for path in rated.glob("group_*.tsv")} - {
                *map("group_ratings_{}.tsv".format, VOTES)
            }
            assert tables <= found
            assert {
                "siam_T1w.tsv",
                "seg-siam_dseg.tsv",
                "group_qc.parquet",
                "group_qc.json",
            } <= found


def test_details_step_through_the_chosen_scans(tab, output):
    opened(tab, output)
    tab.click("[data-open='6']")
    assert tab.inner_text("#detail-title") == ODD
    assert "The top of the brain is cut off (20.0 cm² at the border)." in tab.inner_text("#detail")
    assert tab.get_attribute("#detail-page", "href") == f"sub-07.html#{ODD}"
    tab.keyboard.press("ArrowRight")
    tab.wait_for_function("document.getElementById('detail-title').textContent !== 'sub-07_T1w'")
    assert tab.inner_text("#detail-title") == names(tab)[1]


def test_outlines_and_table_can_be_switched(tab, output):
    opened(tab, output)
    assert tab.locator("#wall .outline").first.is_visible()
    tab.uncheck("#outlines")
    assert not tab.locator("#wall .outline").first.is_visible()
    tab.check("#table")
    assert tab.locator("#sheet tbody tr").count() == 14
    assert not tab.locator("#wall").is_visible()


def test_tissues_of_a_subject_are_laid_over_in_their_colours(tab, output):
    opened(tab, output, "sub-03.html")
    tab.wait_for_selector(".viewer[data-ready]")
    painted = """() => {
      const canvas = document.querySelector(".viewer canvas");
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      const colors = new Map();
      for (let i = 0; i < data.length; i += 4) if (data[i + 3]) {
        const color = "#" + [0, 1, 2].map(k => data[i + k].toString(16).padStart(2, "0")).join("");
        colors.set(color, (colors.get(color) || 0) + 1);
      }
      return [...colors.keys()].sort();
    }"""
    shown = tab.eval_on_selector_all(
        ".viewer [data-index]", "all => all.map(b => b.dataset.color).sort()"
    )
    assert tab.evaluate(painted) == shown
    assert "#c96022" in shown
    tab.click(".viewer [data-color='#c96022']")
    assert tab.evaluate(painted) == [color for color in shown if color != "#c96022"]
    tab.click("[data-all]")
    assert tab.evaluate(painted) == []
    tab.fill("[data-opacity]", "80")
    assert tab.eval_on_selector(".viewer canvas", "c => c.style.opacity") == "0.8"
    width = tab.eval_on_selector(".viewer .layers", "e => e.clientWidth")
    tab.click("[data-zoom='1']")
    assert tab.eval_on_selector(".viewer .layers", "e => e.clientWidth") == pytest.approx(
        1.5 * width, abs=2
    )


def test_tissues_of_a_subject_are_outlined(tab, output):
    opened(tab, output, "sub-03.html")
    tab.wait_for_selector(".viewer[data-ready]")
    painted = """() => {
      const canvas = document.querySelector(".viewer canvas");
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      const alpha = new Uint8Array(data.length / 4).map((_, at) => (data[4 * at + 3] ? 1 : 0));
      return [canvas.width, alpha.join("")];
    }"""

    def drawn() -> np.ndarray:
        width, alpha = tab.evaluate(painted)
        return np.array([*alpha]).reshape(-1, width) == "1"

    picture = tab.get_attribute(".viewer canvas", "data-tissues")
    labels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))))
    assert (drawn() == (labels > 0)).all()
    tab.click("[data-style=outlines]")
    assert tab.eval_on_selector(".viewer canvas", "c => c.style.opacity") == "1"
    cross = ndimage.generate_binary_structure(2, 1)
    flat = ndimage.minimum_filter(labels, footprint=cross) == ndimage.maximum_filter(
        labels, footprint=cross
    )
    outline = drawn()
    assert (outline == ((labels > 0) & ~flat))[1:-1, 1:-1].all()
    tab.click(".viewer [data-color='#c96022']")  # without GM, its neighbours still end there
    fewer = drawn()
    assert not fewer[labels == 1].any()
    assert (fewer == (outline & (labels != 1)))[1:-1, 1:-1].all()
    tab.click("[data-style=fill]")
    assert (drawn() == ((labels > 0) & (labels != 1))).all()


def test_viewer_shows_the_labels_in_their_colours(tab, output):
    opened(tab, output, "sub-07.html")
    tab.click(".explorer summary")
    tab.wait_for_selector(".explorer[data-ready]")
    tab.fill("[data-blend]", "100")

    def pixels(color: str) -> int:
        tab.wait_for_timeout(500)
        picture = Image.open(io.BytesIO(tab.locator(".explorer canvas").screenshot()))
        wanted = np.frombuffer(bytes.fromhex(color), np.uint8).astype(int)
        return int((abs(np.asarray(picture)[..., :3] - wanted).max(axis=-1) <= 3).sum())

    def lit() -> int:
        picture = Image.open(io.BytesIO(tab.locator(".explorer canvas").screenshot()))
        return int((np.asarray(picture)[..., :3].max(axis=-1) > 40).sum())

    assert pixels("c96022") > 1000
    assert pixels("f7eed1") > 1000
    tab.click(".viewer [data-color='#c96022']")
    assert pixels("c96022") == 0
    assert pixels("f7eed1") > 1000
    tab.locator(".explorer canvas").click()
    assert re.fullmatch(r"-?\d+, -?\d+, -?\d+ mm: .+", tab.inner_text(".explorer output"))
    head = pixels("b48c5f")
    tab.click(".viewer [data-color='#c96022']")
    tab.click("[data-view=brain]")  # nothing outside the brain hides it
    assert pixels("b48c5f") == 0 < 2000 < head
    assert lit() > 2000
    tab.click("[data-view=slices]")
    assert pixels("b48c5f") > 2000


def test_viewer_takes_the_scan_and_its_labels_at_full_resolution(tab, output, tmp_path):
    opened(tab, output, "sub-07.html")
    tab.click(".explorer summary")
    tab.wait_for_selector(".explorer[data-ready]")
    image = head_labels().astype(np.uint8)
    grid = Grid((80, 96, 88), np.diag([2.0, 2.0, 2.0, 1.0]))
    fine = np.kron(image, np.ones((2, 2, 2), np.uint8))
    scan, labels = tmp_path / "sub-07_T1w.nii.gz", tmp_path / "sub-07_dseg.nii.gz"
    save_preview(scan, fine, grid)
    save_preview(labels, fine, grid)
    tab.set_input_files("[data-files]", [scan])
    assert "Choose two files together" in tab.inner_text(".explorer output")
    tab.set_input_files("[data-files]", [scan, labels])
    tab.wait_for_selector(".explorer[data-files='sub-07_T1w.nii.gz']")
    assert re.findall(r"\d+", tab.inner_text(".explorer output")) == ["80", "96", "88"]


def test_viewer_says_so_where_there_is_no_webgl(tab, output):
    tab.add_init_script("""{
      const { getContext } = HTMLCanvasElement.prototype;
      HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
        return kind === "webgl2" ? null : getContext.call(this, kind, ...rest);
      };
    }""")
    tab.goto((output / "sub-01.html").as_uri())
    assert tab.locator(".explorer").count() == 0
    tab.goto((output / "sub-07.html").as_uri())
    tab.click(".explorer summary")
    tab.wait_for_selector(".explorer canvas", state="detached")
    assert "needs WebGL2, which this browser does not support" in tab.inner_text(".explorer")


def test_markup_in_names_stays_text(tab, output):
    opened(tab, output)
    assert tab.inner_text("h1") == EVIL
    assert tab.locator("img[src=x]").count() == 0
    assert f"{EVIL}0" in tab.eval_on_selector_all("option", "all => all.map(o => o.textContent)")
    tab.click("[data-kind=covariate]")
    tab.wait_for_function("document.querySelectorAll('#panels .panel').length === 2")
    assert EVIL in tab.inner_text("#panels")


@pytest.mark.parametrize(("scheme", "width"), SCHEMES, ids=["light", "dark", "phone"])
@pytest.mark.parametrize("name", ["group.html", "sub-07.html"])
def test_pages_pass_axe_and_fit_the_screen(tab, output, name, scheme, width):
    from axe_playwright_python.sync_playwright import Axe

    tab.emulate_media(color_scheme=scheme)
    tab.set_viewport_size({"width": width, "height": 900})
    opened(tab, output, name)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    levels = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
    found = Axe().run(tab, options={"runOnly": {"type": "tag", "values": levels}}).response
    assert len(found["passes"]) > 10
    told = [(rule["id"], rule["nodes"][0]["html"][:120]) for rule in found["violations"]]
    assert told == []


def test_the_ready_page_has_no_leftover_placeholder(tab, output):
    opened(tab, output)
    for kind in ("tissue", "quality", "covariate"):
        tab.click(f"[data-kind={kind}]")
        text = tab.inner_text("body")
        assert not re.search(r"undefined|NaN|\[object", text)
        assert not re.search(r" ,|,,|\(\)|\b[cm]m[23]\b", text)
    tab.click("[data-open='6']")
    assert not re.search(r" ,|,,|\b[cm]m[23]\b", tab.inner_text("#detail"))
