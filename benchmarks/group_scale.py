"""Time, memory and page size of the group level over 100, 1,000 and 10,000 scans.

    python benchmarks/group_scale.py OUTPUT SCRATCH [--scans 100 1000 10000]

OUTPUT is a finished derivative dataset (for example of `make demo`), whose scans are multiplied:
each copy has its own volumes, metrics, age and sex, drawn with a fixed seed, and real thumbnails;
every subject comes twice, a year and more apart. The page is opened in the Chromium that is on
the PATH, if there is one; one scan is then searched for. CPU seconds stand beside those on the
clock, which depend on what else the machine does. Writes benchmarks/group_scale.png, and the table
of group_scale.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from tables import replace_table

from siam_bids.bids.names import ScanNames, finished_scans, sidecar
from siam_bids.bids.results import ScanResult, read_result
from siam_bids.bids.scan import BidsName
from siam_bids.bids.writers import save_quality, save_volumes
from siam_bids.image.labels import siam_labels


def multiply(source: Path, raw: Path, out: Path, scans: int) -> None:
    """Write a raw dataset of empty subjects and a derivative dataset of `scans` scans."""
    rng = np.random.default_rng(0)
    originals = [read_result(names) for names in finished_scans(source)]
    pictures = [
        {kind: r.names.figure(kind).read_bytes() for kind in ("thumbnail", "outline")}
        for r in originals
    ]
    out.mkdir(parents=True)
    for name in ("seg-siam_dseg.tsv", "dataset_description.json"):
        shutil.copy(source / name, out / name)
    people = ["participant_id\tage\tsex\tsite"]
    for number in range(scans):
        subject, visit = f"{number // 2:05d}", number % 2
        if not visit:
            place = int(rng.integers(len(originals)))
            age, sex = rng.uniform(18, 90), "FM"[rng.integers(2)]
            people.append(f"sub-{subject}\t{age:.1f}\t{sex}\tsite{rng.integers(4)}")
            folder = raw / f"sub-{subject}"
            folder.mkdir(parents=True)
            later = age + rng.uniform(1, 3)
            (folder / f"sub-{subject}_sessions.tsv").write_text(
                f"session_id\tage\nses-1\t{age:.2f}\nses-2\t{later:.2f}\n"
            )
        stem = f"sub-{subject}_ses-{visit + 1}"
        names = ScanNames(out, BidsName.parse(f"{stem}_{originals[place].names.identity.suffix}"))
        copy(originals[place], names, rng, (age, later)[visit])
        for kind, content in pictures[place].items():
            names.figure(kind).parent.mkdir(parents=True, exist_ok=True)
            names.figure(kind).write_bytes(content)
    (raw / "participants.tsv").write_text("\n".join(people) + "\n")
    (raw / "dataset_description.json").write_text('{"Name": "Scale", "BIDSVersion": "1.10.0"}')


def copy(original: ScanResult, names: ScanNames, rng: np.random.Generator, age: float) -> None:
    """Write the tables and the sidecar of one scan with its own head size, age and noise."""
    head = rng.normal(1, 0.08)
    table = pd.DataFrame(original.volumes).astype({"index": "Int64"})
    noise = rng.normal(1, 0.05, len(table)) * head
    noise -= np.where(table["name"].isin(["GM", "Hippo"]), 0.003 * (age - 50), 0)
    table["volume_mL"] *= noise
    names.anat.mkdir(parents=True, exist_ok=True)
    save_volumes(names.volumes, table, siam_labels())
    spread = {
        key: value if value.is_integer() else value * rng.normal(1, 0.05)
        for key, value in original.quality.items()
    }
    save_quality(names.quality, spread)
    sidecar(names.segmentation).write_text(json.dumps(original.about))


def measured(raw: Path, out: Path) -> tuple[float, float, float]:
    """Run the group level; return wall seconds, CPU seconds and peak memory in GB."""
    command = [sys.executable, "-m", "siam_bids", str(raw), str(out), "group"]
    begin = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"the group level ended with status {status}")
    seconds = time.monotonic() - begin
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / (1 << 20)


def opened(page: Path) -> dict[str, float]:
    """Open a page in Chromium and search a scan.

    Returns
    -------
    Seconds until the page answers and its first pictures are there, of the page's process (CPU),
    and until the search is answered; nothing without a browser.
    """
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        return {}
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chrome = play.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        tab = chrome.new_page(viewport={"width": 1280, "height": 900})
        tools = tab.context.new_cdp_session(tab)
        tools.send("Performance.enable")
        begin = time.monotonic()
        tab.goto(page.absolute().as_uri())
        tab.wait_for_selector("html[data-ready]")
        tab.wait_for_function("document.querySelector('#wall img')?.complete")
        seconds = time.monotonic() - begin
        measured = {m["name"]: m["value"] for m in tools.send("Performance.getMetrics")["metrics"]}
        begin = time.monotonic()
        tab.fill("#find", "sub-00007_ses-2")
        tab.wait_for_function("document.querySelectorAll('#wall .card').length === 1")
        search = time.monotonic() - begin
        chrome.close()
    return {
        "page opens, s": seconds,
        "page, CPU s": measured["ProcessTime"],
        "search, s": search,
    }


def plot(table: pd.DataFrame, path: Path) -> None:
    """Draw cost by scans, with the limits that 10,000 scans must keep."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    wanted = (("group level, CPU s", 60), ("peak memory, GB", 1.5), ("page, CPU s", 3))
    for axes, (name, limit) in zip(figure.subplots(1, 3), wanted, strict=True):
        if name not in table:
            continue
        axes.plot(table["scans"], table[name], "o-", color="#0b63b5")
        axes.axhline(limit, linestyle="--", color="#a3161f", linewidth=1)
        axes.set(xlabel="scans", title=name, ylim=(0, 1.1 * max(limit, table[name].max())))
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


def markdown(table: pd.DataFrame) -> str:
    """Return the table in Markdown."""
    lines = [f"| {' | '.join(table)} |", "|---" * table.shape[1] + "|"]
    for _, row in table.iterrows():
        cells = [f"{int(row['scans']):,}", *(f"{row[name]:.2f}" for name in [*table][1:])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("output", type=Path)
    options.add_argument("scratch", type=Path)
    options.add_argument("--scans", type=int, nargs="+", default=[100, 1000, 10000])
    arguments = options.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    rows = []
    for scans in arguments.scans:
        place = arguments.scratch / str(scans)
        raw, out = place / "raw", place / "out"
        if not raw.exists():
            multiply(arguments.output, raw, out, scans)
        seconds, cpu, memory = measured(raw, out)
        page = out / "group.html"
        row = {
            "scans": scans,
            "group level, s": seconds,
            "group level, CPU s": cpu,
            "peak memory, GB": memory,
            "page, MB": page.stat().st_size / 1e6,
        }
        rows.append(row | opened(page))
        print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    target = Path(__file__).with_suffix(".md")
    replace_table(target, markdown(table))
    plot(table, target.with_suffix(".png"))


if __name__ == "__main__":
    main()
