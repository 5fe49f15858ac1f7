"""benchmarks/gpu.py in its small form: without a GPU it can at least be run."""

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


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 2
    assert done.stdout.startswith("There is no CUDA device here; --small tests this script")
