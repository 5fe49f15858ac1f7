"""What computes the networks, side by side on this CPU: torch as it is, LeanUNet, OpenVINO.

    python benchmarks/engines.py [--heads SCAN ...] [--networks NAME_OR_FOLDER ...] [--threads 1]

Every figure comes from a process of its own, in CPU seconds (user and system, all threads), which
other work on the machine changes less than it changes the wall clock. Beside them stands what a
matrix product of the same multiply-adds takes: no convolution in float32 is much faster. Prints
the tables of benchmarks/engines.md: one tile through each network, then whole scans with labels
compared.
ONEDNN_MAX_CPU_ISA=AVX2 makes torch's and OpenVINO's convolutions use what older CPUs have.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data" / "sample_bids"
HEADS = [
    SAMPLE / f"sub-{name}" / "anat" / f"sub-{name}_T1w.nii.gz" for name in ("colin27", "seg3d")
]
WAYS = (
    ("stock", "float32"), ("torch", "float32"), ("openvino", "float32"),
    ("torch", "bfloat16"), ("openvino", "bfloat16"),
)  # fmt: skip
NAMES = {"stock": "torch as it is", "torch": "LeanUNet (torch)", "openvino": "OpenVINO"}
SIDE = 1536  # of the matrices whose product is the limit


def cpu_seconds() -> float:
    return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])


def child_matrix(_: Sequence[str]) -> dict[str, float]:
    """Seconds of a matrix product, per multiply-add."""
    import torch

    one, two = torch.randn((2, SIDE, SIDE)).unbind()
    times = []
    for _ in range(4):
        begin = cpu_seconds()
        torch.mm(one, two)
        times.append(cpu_seconds() - begin)
    return {"seconds": min(times) / SIDE**3}


def child_tile(arguments: Sequence[str]) -> dict[str, float]:
    """Seconds to make a network ready and to run one tile, and the peak memory of both."""
    name, way, precision, tiles = arguments
    import torch

    from siam_bids.config import Inference
    from siam_bids.inference.cost import load_of
    from siam_bids.inference.engines import TorchEngine
    from siam_bids.inference.openvino_engine import OpenVinoEngine
    from siam_bids.models.registry import find_model
    from siam_bids.nnunet.model import NnunetModel
    from siam_bids.support.memory import memory_reused, peak_memory

    model = NnunetModel.open(find_model(name).folder)
    cpu = torch.device("cpu")
    load = load_of(model, cpu, Inference(precision=precision, engine="torch"))
    begin = cpu_seconds()
    engine = (
        OpenVinoEngine(model, replace(load, engine="openvino", lean=False))
        if way == "openvino"
        else TorchEngine(model, cpu, replace(load, lean=way == "torch"))
    )
    engine.load(model.folds[0])
    ready = cpu_seconds() - begin
    tile = torch.randn((1, model.channels, *load.tile), generator=torch.Generator().manual_seed(0))
    small = load.parameters < 1e8  # as `predict_tiled` does
    seconds, walls = [], []
    with torch.inference_mode(), memory_reused() if small else nullcontext():
        for _ in range(int(tiles)):
            begin, start = cpu_seconds(), time.monotonic()
            engine(tile)
            seconds.append(cpu_seconds() - begin)
            walls.append(time.monotonic() - start)
    return {
        "ready": ready, "seconds": min(seconds), "wall": min(walls), "peak": peak_memory() / 1e9,
        "multiply_adds": model.multiply_adds,
    }  # fmt: skip


def measured(kind: str, *arguments: str, threads: int) -> dict[str, Any]:
    """Run one of the above in a process of its own."""
    command = [sys.executable, __file__, "--child", kind, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True, text=True)
    print(kind, *arguments, done.stdout.strip(), flush=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def scan(head: Path, out: Path, way: str, precision: str, threads: int) -> dict[str, float]:
    """Run a whole command on one scan; return what it took."""
    start = "import sys; from siam_bids.cli.segment import main; sys.exit(main())"
    command = [sys.executable, "-c", start, str(head), str(out)]
    command += ["--engine", way, "--precision", precision, "--n-cpus", str(threads)]
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    found = {
        "seconds": used.ru_utime + used.ru_stime, "wall": time.monotonic() - begin,
        "peak": used.ru_maxrss * 1024 / 1e9,
    }  # fmt: skip
    print("scan", head.name, way, precision, found, flush=True)
    return found


def header(*columns: str) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def tile_rows(networks: Sequence[str], ways: Sequence[tuple[str, str]], threads: int) -> list[str]:
    rows = header(
        "network, one tile", "computed by", "precision", "CPU s", "of LeanUNet float32",
        "of the matrix product", "CPU s to make it ready", "peak memory",
    )  # fmt: skip
    for network in networks:
        limit = measured("matrix", threads=threads)["seconds"]
        found = {
            (way, precision): measured("tile", network, way, precision, "3", threads=threads)
            for way, precision in ways
        }
        base = found["torch", "float32"]["seconds"]
        for (way, precision), each in found.items():
            work = each["multiply_adds"] * limit
            rows.append(
                f"| {Path(network).name} ({each['multiply_adds'] / 1e9:.0f} GMAC) | {NAMES[way]} | "
                f"{precision} | {each['seconds']:.2f} | {each['seconds'] / base:.2f} | "
                f"{each['seconds'] / work:.2f} | {each['ready']:.2f} | {each['peak']:.2f} GB |"
            )
    return rows


def scan_rows(
    heads: Sequence[Path], ways: Sequence[tuple[str, str]], threads: int, scratch: Path
) -> list[str]:
    import nibabel as nib
    import numpy as np

    rows = header(
        "whole run of one scan, compact", "computed by", "precision", "CPU s",
        "of LeanUNet float32", "wall s", "peak memory", "voxels labelled as by LeanUNet in float32",
    )  # fmt: skip
    for head in heads:
        base: dict[str, float] = {}
        for way, precision in ways:
            out = scratch / f"{way}_{precision}.nii.gz"
            took = scan(head, out, way, precision, threads)
            base = base or took
            labels = np.asanyarray(nib.load(out).dataobj)
            first = np.asanyarray(nib.load(scratch / "torch_float32.nii.gz").dataobj)
            rows.append(
                f"| {head.name} | {NAMES[way]} | {precision} | {took['seconds']:.1f} | "
                f"{took['seconds'] / base['seconds']:.2f} | {took['wall']:.0f} | "
                f"{took['peak']:.2f} GB | {100 * (labels == first).mean():.4f} % |"
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", nargs="*", type=Path, default=HEADS)
    parser.add_argument("--networks", nargs="*", default=["compact-2mm", "compact-1mm"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/siam-engines"))
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, *arguments = options.child
        print(json.dumps({"matrix": child_matrix, "tile": child_tile}[kind](arguments)))
        return
    from siam_bids.support.cpu import has_fast_bfloat16

    isa = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    fast = has_fast_bfloat16() and not isa
    ways = [way for way in WAYS if fast or way[1] == "float32"]
    options.scratch.mkdir(parents=True, exist_ok=True)
    tiles = tile_rows(options.networks, ways, options.threads)
    scans = scan_rows(options.heads, ways[1:], options.threads, options.scratch)
    title = f"## {processor()}{f', limited to {isa}' if isa else ''}, {options.threads} thread(s)"
    print("\n".join([title, "", *tiles, "", *scans]))


def processor() -> str:
    """Name this CPU and what it has for networks."""
    import torch

    has = torch.cpu.get_capabilities()
    wanted = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_bf16")
    names = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{names[0].split(': ')[1]} ({', '.join(name for name in wanted if has.get(name))})"


if __name__ == "__main__":
    main()
