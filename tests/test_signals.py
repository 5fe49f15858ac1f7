"""Stop and go: signals, kills at any moment, many writers in one folder."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from checks import check_whole
from conftest import checksums, run_config, write_raw
from machine import FORK

from siam_bids.bids.names import finished_scans, sidecar
from siam_bids.config import Query, RunConfig
from siam_bids.pipelines.group import run_group
from siam_bids.pipelines.participant import run_participant
from siam_bids.support.atomic_files import SCRATCH, sweep, this_host
from siam_bids.support.signals import EXIT_TRY_AGAIN

STRESS = "SIAM_BIDS_STRESS" in os.environ  # minutes of both cores and 11 GB; else a light share
KILLS = 50 if STRESS else 12
WRITERS = 64 if STRESS else 12


@pytest.fixture(scope="module")
def study(tmp_path_factory, head) -> Path:
    """As many subjects as writers, one scan each."""
    root = tmp_path_factory.mktemp("study")
    return write_raw(root, head, *(f"sub-{number:02d}_T1w" for number in range(WRITERS)))


@pytest.fixture
def config(study, tmp_path, tiny_model) -> RunConfig:
    return run_config(study, tmp_path / "out", tiny_model)


def only(config, *labels, **changes) -> RunConfig:
    return replace(config, query=Query(participants=labels), **changes)


def scratch(root: Path) -> list[str]:
    return [path.name for path in root.rglob(f"{SCRATCH}*")]


def test_a_signal_ends_a_long_computation_that_hears_nothing():
    code = (
        "import hashlib, sys\n"
        "from siam_bids.support.signals import stoppable\n"
        "with stoppable(grace=0.5):\n"
        "    print('ready', flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'a', b'b', 10**9)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.5)
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=20)
    assert child.returncode == EXIT_TRY_AGAIN
    assert said == "siam-bids: stopped by SIGTERM in the middle of a scan; run again to continue.\n"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_signals_raise_once_and_handlers_are_given_back(number, code):
    """In a process of its own, which the signal may end if it is not heard."""
    program = f"""
import os, signal, time
from siam_bids.support.signals import Stopped, stoppable
signal.signal({int(number)}, signal.SIG_DFL)  # whoever runs the tests may ignore it
try:
    with stoppable(grace=60):
        os.kill(os.getpid(), {int(number)})
        time.sleep(5)
except Stopped as stop:
    assert stop.exit_code == {code}
    assert signal.getsignal({int(number)}) == signal.SIG_DFL
    print("raised")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "raised\n"), done.stderr


def test_scratch_of_the_dead_is_swept_and_of_the_living_kept(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    for owner, process, age, kept in [
        (this_host(), dead.pid, 0, False),
        (this_host(), os.getpid(), 0, True),
        ("0123456789", dead.pid, 0, True),
        ("0123456789", dead.pid, 7200, False),
    ]:
        path = tmp_path / f"{SCRATCH}{owner}-{process}-abcdefg_.nii.gz"
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
        sweep([tmp_path, tmp_path / "absent"])
        assert path.exists() == kept
        path.unlink(missing_ok=True)


def test_preemption_stops_within_seconds_and_a_rerun_does_the_rest(config, study):
    command = [
        sys.executable, "-m", "siam_bids", study, config.output_dir, "participant",
        "--model", config.model, "--device", "cpu", "--n-cpus", "1",
    ]  # fmt: skip
    child = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    while child.poll() is None and len(list(finished_scans(config.output_dir))) < 2:
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    _, said = child.communicate(timeout=60)
    assert time.monotonic() - begin < 30  # SLURM kills 30 s after a TERM (KillWait)
    assert child.returncode == EXIT_TRY_AGAIN
    assert said.splitlines()[-1] == (
        "siam-bids: stopped by SIGTERM; finished scans are kept, run again to continue."
    )
    assert scratch(config.output_dir) == []
    finished = sorted(names.identity.subject for names in finished_scans(config.output_dir))
    assert 2 <= len(finished) < WRITERS
    nearby = f"{int(finished[-1]) + 1:02d}"
    again = run_participant(only(config, *finished, nearby))
    assert [f"sub-{label}_T1w" for label in finished] == again.skipped
    assert again.done == [f"sub-{nearby}_T1w"]


def test_kills_at_any_moment_leave_nothing_that_a_rerun_does_not_mend(config, tmp_path):
    labels = ("00", "01", "02")
    maps = {"probabilities": ("GM",)}
    straight = only(config, *labels, output_dir=tmp_path / "straight", **maps)
    begin = time.monotonic()
    run_participant(straight)
    length = time.monotonic() - begin
    draw = random.Random(0)
    torn = only(config, *labels, **maps)
    finished = 0
    for _ in range(KILLS):
        child = FORK.Process(target=run_participant, args=(torn,))
        child.start()
        child.join(draw.uniform(0, length))
        finished += child.exitcode == 0
        child.kill()
        child.join()
        check_whole(torn.output_dir)
        for names in finished_scans(torn.output_dir):
            if draw.random() < 0.3:  # or soon there is nothing left to do and to kill
                sidecar(names.segmentation).unlink()
    assert finished < KILLS
    run_participant(torn)
    run_group(torn)
    run_group(straight)
    assert scratch(torn.output_dir) == []
    mended, whole = (checksums(each.output_dir, timeless=True) for each in (torn, straight))
    assert mended == whole


def test_many_writers_share_one_folder(config, tmp_path):
    """Every file of the whole dataset is complete at each moment; in the end all is there."""
    watched, broken, over = set(), [], threading.Event()

    def watch():
        while not over.is_set():
            for path in config.output_dir.glob("[!.]*"):
                if path.is_file():
                    text = path.read_text(encoding="utf-8")
                    whole = text.endswith("</html>" if path.suffix == ".html" else "\n")
                    watched.add(path.name)
                    if not whole or (path.suffix == ".json" and not json.loads(text)):
                        broken.append(path.name)

    watcher = threading.Thread(target=watch)
    watcher.start()
    labels = [f"{number:02d}" for number in range(WRITERS)]
    children = [
        FORK.Process(target=run_participant, args=(only(config, label),)) for label in labels
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    over.set()
    watcher.join()
    assert [child.exitcode for child in children] == [0] * WRITERS
    assert broken == []
    assert {"dataset_description.json", "seg-siam_dseg.tsv", "README"} <= watched
    assert scratch(config.output_dir) == []
    assert not [path for path in config.output_dir.rglob("*") if "lock" in path.name.lower()]
    alone = only(config, "00", output_dir=tmp_path / "alone")
    run_participant(alone)
    shared = checksums(config.output_dir, timeless=True)
    assert checksums(alone.output_dir, timeless=True).items() <= shared.items()
    assert len(list(finished_scans(config.output_dir))) == WRITERS
    assert len(run_group(config).wide) == WRITERS
    table = (config.output_dir / "logs" / "resources.tsv").read_text().splitlines()
    assert len(table) == WRITERS + 1
    assert table[0].split("\t")[:3] == ["scan", "seconds", "peak_memory_MB"]
