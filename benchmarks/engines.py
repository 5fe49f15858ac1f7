"""What computes the networks, side by side on this CPU: torch as it is, LeanUNet, OpenVINO.

    python benchmarks/engines.py [--parts tiles scans stages siam] [--isa native AVX2]
        [--heads SCAN ...] [--networks NAME_OR_FOLDER ...] [--threads 1] [--scratch FOLDER]

Every figure comes from a process of its own, in CPU seconds (user and system, all threads), which
other work on the machine changes less than it changes the wall clock. Prints the tables of
benchmarks/engines.md:

tiles   one tile through each network, beside a matrix product of the same multiply-adds
scans   whole runs of `siam-bids-segment`, with labels compared
stages  where the CPU seconds of a run of `siam-bids` go, with one thread
siam    one tile, and an eighth of it, through a network of SIAM's size with random weights:
        10 GB and 6 CPU minutes, so only if it is named

Each comes twice: as the CPU is, and with torch's and OpenVINO's convolutions limited to what older
CPUs have (ONEDNN_MAX_CPU_ISA). Precisions that a CPU is not fast in are left out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
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
STAGES = {
    "finding the scan": ("pipelines.participant:prepare",),
    "reading, normalising and resampling the image": (
        "pipelines.participant:image_checksum", "pipelines.participant:load_volume",
        "inference.segmenter:normalise", "inference.segmenter:resample",
    ),
    "making the networks ready": (
        "inference.openvino_engine:OpenVinoEngine.__init__", "inference.engines:TorchEngine.load",
        "inference.openvino_engine:OpenVinoEngine.load", "inference.engines:TorchEngine.__init__",
    ),
    "forward passes": (
        "inference.openvino_engine:OpenVinoEngine.__call__",
        "inference.engines:TorchEngine.__call__",
    ),
    "adding up tiles, mirroring": ("inference.runner:Runner.predict",),
    "logits to labels with the refinement": ("inference.ensemble:EnsembleSegmenter.finish",),
    "pictures": ("pipelines.participant:draw",),
    "the other files and the page": (
        "pipelines.participant:save_results", "pipelines.participant:write_page",
    ),
}  # fmt: skip
"""Functions of siam_bids that make up a part of a run, but for what others of them do within."""


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


class Stages:
    """CPU seconds of the parts of a run: a function's thread, less what it calls that is listed."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._inner = threading.local()

    def watch(self, stage: str, place: str) -> None:
        """Time a function, `module:name` or `module:class.name`."""
        module, _, path = place.partition(":")
        owner: Any = importlib.import_module(f"siam_bids.{module}")
        *classes, name = path.split(".")
        for each in classes:
            owner = getattr(owner, each)
        plain = getattr(owner, name)

        def timed(*arguments: Any, **words: Any) -> Any:
            stack = self._inner.__dict__.setdefault("seconds", [])
            begin = time.thread_time()
            stack.append(0.0)
            try:
                return plain(*arguments, **words)
            finally:
                took = time.thread_time() - begin
                self.seconds[stage] += took - stack.pop()
                if stack:
                    stack[-1] += took

        setattr(owner, name, timed)


def child_stages(arguments: Sequence[str]) -> dict[str, float]:
    """Seconds of each part of a run of `siam-bids` over one scan."""
    from siam_bids.cli.app import main as run
    from siam_bids.cli.console import quick_imports

    head, way, precision = arguments
    with quick_imports():
        import siam_bids.pipelines.participant  # noqa: F401
    stages = Stages()
    begin = stages.seconds["start and imports"] = time.process_time()
    for stage, places in STAGES.items():
        for place in places:
            stages.watch(stage, place)
    begin = time.process_time() - begin  # modules that a run with one engine would not import
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        scan = Path(folder) / "in/sub-01/anat/sub-01_T1w.nii.gz"
        scan.parent.mkdir(parents=True)
        scan.symlink_to(Path(head).resolve())
        about = scan.parents[2] / "dataset_description.json"
        about.write_text('{"Name": "One head", "BIDSVersion": "1.10.0"}')
        options = ["--engine", way, "--precision", precision, "--n-cpus", "1"]
        if run([str(about.parent), f"{folder}/out", "participant", *options]):
            raise SystemExit("the run failed")
    return {**stages.seconds, "all, with what is not listed": time.process_time() - begin}


def measured(kind: str, *arguments: str, threads: int, isa: str) -> dict[str, Any]:
    """Run one of the above in a process of its own."""
    command = [sys.executable, __file__, "--child", kind, *arguments]
    environment = environment_of(threads, isa)
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True, text=True)
    print(kind, *arguments, done.stdout.strip(), flush=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def environment_of(threads: int, isa: str) -> dict[str, str]:
    limit = {} if isa == "native" else {"ONEDNN_MAX_CPU_ISA": isa}
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT), **limit}


def scan(
    head: Path, out: Path, way: str, precision: str, *, threads: int, isa: str
) -> dict[str, float]:
    """Run a whole command on one scan; return what it took."""
    start = "import sys; from siam_bids.cli.segment import main; sys.exit(main())"
    command = [sys.executable, "-c", start, str(head), str(out)]
    command += ["--engine", way, "--precision", precision, "--n-cpus", str(threads)]
    begin = time.monotonic()
    environment = environment_of(threads, isa)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
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


def tile_rows(
    networks: Sequence[str], ways: Sequence[tuple[str, str]], *, tiles: int, threads: int, isa: str
) -> list[str]:
    rows = header(
        "network, one tile", "computed by", "precision", "CPU s", "of LeanUNet float32",
        "of the matrix product", "CPU s to make it ready", "peak memory",
    )  # fmt: skip
    for network in networks:
        limit = measured("matrix", threads=threads, isa=isa)["seconds"]
        found = {
            way: measured("tile", network, *way, str(tiles), threads=threads, isa=isa)
            for way in ways
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
    heads: Sequence[Path],
    ways: Sequence[tuple[str, str]],
    scratch: Path,
    *,
    threads: int,
    isa: str,
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
            took = scan(head, out, way, precision, threads=threads, isa=isa)
            base = base or took
            labels = np.asanyarray(nib.load(out).dataobj)
            first = np.asanyarray(nib.load(scratch / "torch_float32.nii.gz").dataobj)
            rows.append(
                f"| {head.name} | {NAMES[way]} | {precision} | {took['seconds']:.1f} | "
                f"{took['seconds'] / base['seconds']:.2f} | {took['wall']:.0f} | "
                f"{took['peak']:.2f} GB | {100 * (labels == first).mean():.4f} % |"
            )
    return rows


def stage_rows(head: Path, ways: Sequence[tuple[str, str]], isa: str) -> list[str]:
    found = [measured("stages", str(head), *way, threads=1, isa=isa) for way in ways]
    names = [f"{NAMES[way]}, {precision}" for way, precision in ways]
    rows = header(f"CPU s of a run of one scan ({head.name})", *names)
    for part in found[0]:
        rows.append(f"| {part} | {' | '.join(f'{each[part]:.1f}' for each in found)} |")
    shares = (each["forward passes"] / each["all, with what is not listed"] for each in found)
    rows.append(f"| not forward passes | {' | '.join(f'{1 - share:.0%}' for share in shares)} |")
    return rows


def siam_networks(scratch: Path) -> list[str]:
    """Write networks of SIAM's size, of whose tiles one has an eighth of the voxels."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from siam_cost import write_model

    patches = {"siam_tile": (256, 256, 192), "siam_eighth": (128, 128, 96)}
    for name, patch in patches.items():
        if not (scratch / name / "dataset.json").exists():
            write_model(scratch / name, 1, patch=patch)
    return [str(scratch / name) for name in patches]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("tiles", "scans", "stages", "siam")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts[:3])
    parser.add_argument("--isa", nargs="+", default=["native", "AVX2"])
    parser.add_argument("--heads", nargs="*", type=Path, default=HEADS)
    parser.add_argument("--networks", nargs="*", default=["compact-2mm", "compact-1mm"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/siam-engines"))
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, *arguments = options.child
        children = {"matrix": child_matrix, "tile": child_tile, "stages": child_stages}
        print(json.dumps(children[kind](arguments)))
        return
    options.scratch.mkdir(parents=True, exist_ok=True)
    tables = [table for isa in options.isa for table in tables_of(options, isa)]
    print("\n".join(tables))


def tables_of(options: argparse.Namespace, isa: str) -> list[str]:
    """All tables that are asked for, with the CPU as it is or limited."""
    from siam_bids.support.cpu import has_fast_bfloat16

    fast = has_fast_bfloat16() and isa == "native"
    ways = [way for way in WAYS if fast or way[1] == "float32"]
    how = {"threads": options.threads, "isa": isa}
    limit = "" if isa == "native" else f", limited to {isa}"
    tables = [f"\n## {processor()}{limit}, {options.threads} thread(s)"]
    if "tiles" in options.parts:
        tables += ["", *tile_rows(options.networks, ways, tiles=3, **how)]
    if "scans" in options.parts:
        tables += ["", *scan_rows(options.heads, ways[1:], options.scratch, **how)]
    if "stages" in options.parts:
        tables += ["", *stage_rows(options.heads[0], ways[1:], isa)]
    if "siam" in options.parts:
        tables += ["", *tile_rows(siam_networks(options.scratch), ways[1:], tiles=1, **how)]
    return tables


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
