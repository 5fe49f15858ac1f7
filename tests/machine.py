"""A machine in trouble: the command line in a child process under limits, and small disks."""

import ctypes
import multiprocessing
import multiprocessing.util
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

FORK = multiprocessing.get_context("forkserver")
multiprocessing.util.get_temp_dir()  # of its socket, before a test moves it to too long a path
FORK.set_forkserver_preload(
    ["siam_bids.pipelines.participant", "matplotlib.backends.backend_agg", "scipy"]
)


def run(
    words: list[object],
    log: Path,
    *,
    limits: Mapping[int, int] | None = None,
    memory: int = 0,
    powerless: bool = False,
    temporary: Path | None = None,
    clock: float = 0,
) -> tuple[int, list[str]]:
    """Run `siam-bids WORDS`; return the exit code and the lines on standard error.

    Parameters
    ----------
    limits
        Of `resource.setrlimit`.
    memory
        Bytes of address space beyond what the child has when it starts; 0 for no limit. Python
        can hang or print a traceback of its own if a thread lacks memory to start: again with more.
    powerless
        Whether permissions bind it even where we are root.
    temporary
        The folder for temporary files.
    clock
        Seconds by which its clock goes back at each look.
    """
    for limit in range(memory, 2 * memory, 4_000_000) if memory else (0,):
        what = (list(map(str, words)), log, dict(limits or {}), limit, powerless, temporary, clock)
        child = FORK.Process(target=_live, args=what)
        child.start()
        child.join()
        lines = log.read_text(encoding="utf-8").strip().splitlines()
        if child.exitcode != -signal.SIGALRM and not any("in thread" in line for line in lines):
            return child.exitcode, lines
    pytest.skip("no thread of Python could start with so little memory")


def _live(words, log, limits, memory, powerless, temporary, clock) -> None:
    from siam_bids import cli

    stream = log.open("w")
    os.dup2(stream.fileno(), 2)
    if memory:
        signal.alarm(20)  # ends a child that hangs
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limits[resource.RLIMIT_AS] = size + memory
    if temporary:
        os.environ["TMPDIR"] = str(temporary)
    if clock:
        start, looks = time.time(), count(1)
        time.time = lambda: start - clock * next(looks)
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))
    if powerless:
        _drop_capabilities()
    sys.exit(cli.main(words))


def _drop_capabilities() -> None:
    """Give up root's right to pass over permissions: capset(2), version 3."""
    kernel = ctypes.CDLL(None, use_errno=True)
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if kernel.capset(header, nothing):
        raise OSError(ctypes.get_errno(), "capset")


@contextmanager
def small_disk(place: Path, kilobytes: int) -> Iterator[Path]:
    """Mount a RAM disk of that size at `place`; skip the test where that is not allowed."""
    place.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk can be mounted here: {error}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)
