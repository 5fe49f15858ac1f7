"""Memory of this process: peak, limits, and what the C library keeps."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # malloc.h


def reset_peak_memory() -> None:
    """Reset the measured peak, where the kernel allows it (Linux, proc(5) clear_refs)."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return


def release_memory() -> None:
    """Give freed memory back to the system where the C library (glibc) would keep it."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


@contextmanager
def memory_reused() -> Iterator[None]:
    """Let the C library (glibc) keep freed memory for what comes next, and give it back at the end.

    By itself glibc gets each block of more than 32 MB from the system and returns it when it is
    freed; the kernel clears its pages each time, which took a third of the CPU time of a network
    over tiles. See mallopt(3).
    """
    library: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(library, "mallopt"):
        yield
        return
    library.mallopt(_M_MMAP_MAX, 0)
    library.mallopt(_M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        library.mallopt(_M_MMAP_MAX, 65_536)
        library.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        library.mallopt(_M_TRIM_THRESHOLD, 64 << 20)
        release_memory()


def free_memory() -> float:
    """Return how many bytes of main memory this process can still use.

    What the machine has free, or what the limit of a container or a cluster's job leaves: the
    tightest cgroup v2 around the process (kernel documentation, admin-guide/cgroup-v2), whose
    file cache counts as free.
    """
    free = [float(psutil.virtual_memory().available)]
    for group in _cgroups():
        try:
            limit = float((group / "memory.max").read_text(encoding="ascii"))
            lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
        except (OSError, ValueError):  # no limit ("max"), or no such file
            continue
        held = dict(line.split() for line in lines)
        free.append(limit - sum(float(held.get(kind, 0)) for kind in ("anon", "shmem", "kernel")))
    return max(min(free), 0.0)


def _cgroups() -> Iterator[Path]:
    """Yield the folders of the cgroup v2 of this process and of those around it."""
    try:
        lines = _CGROUP.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    inner = next((line[3:] for line in lines if line.startswith("0::")), "/")
    group = _CGROUPS / inner.lstrip("/")
    while group != _CGROUPS.parent:
        yield group
        group = group.parent


def peak_memory() -> int:
    """Return the peak memory of this process in bytes, since the last reset or its start."""
    try:
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
