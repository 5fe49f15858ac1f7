"""benchmarks/gpu*.py in their small form: without a GPU they can at least be run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu.py"

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="benchmarks are not part of the sdist")


def run(*arguments, script=SCRIPT):
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_gpu_benchmark_runs_through_in_its_small_form(tmp_path):
    done = run(tmp_path, "--small")
    assert done.returncode == 0, done.stdout + done.stderr
    for way in ("stock", "float16", "bfloat16", "float32", "in pieces"):
        (share,) = re.findall(rf"^\| {way} \|.* ([\d.]+)% \|$", done.stdout, re.MULTILINE)
        assert float(share) > 99.9
    assert "Out of memory on mps: continuing in smaller pieces. |" in done.stdout
    assert "in smaller pieces. / Out of memory on mps: continuing on the CPU. |" in done.stdout
    assert re.search(r"^\| 2 scans \| [1-9]\d* \|", done.stdout, re.MULTILINE)
    assert "WRONG" not in done.stdout


def test_the_training_for_a_gpu_runs_through_in_its_small_form(tmp_path):
    script = SCRIPT.with_name("gpu_training.py")
    done = run(tmp_path, "--small", "--minutes", "0.05", script=script)
    assert done.returncode == 0, done.stdout + done.stderr
    for network in ("compact-2mm", "compact-1mm"):
        rows = rf"^\| {network} \| (plateau|cooldown) \| (\d+) \|"
        sessions = dict(re.findall(rows, done.stdout, re.MULTILINE))
        assert sorted(sessions) == ["cooldown", "plateau"]
        assert all(int(steps) >= 1 for steps in sessions.values())
        assert (tmp_path / network / "model" / "plans.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 2
    assert done.stdout.startswith("There is no CUDA device here; --small tests this script")
