"""What all commands share when they begin and end: exit codes, logging, spelling, caches."""

from __future__ import annotations

import gc
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from siam_bids.errors import SiamError, UsageError, out_of_memory
from siam_bids.support.folders import check_folder
from siam_bids.support.signals import EXIT_INTERRUPTED, Stopped

EXIT_SOME_SCANS_FAILED = 1
EXIT_DISK = 7
EXIT_CLOSED_PIPE = 141
"""As a program that SIGPIPE ends, 128 + 13."""

_CACHES = {
    "MPLCONFIGDIR": "matplotlib",
    "XDG_CACHE_HOME": "cache",  # fontconfig and others
    "TORCH_HOME": "torch",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "NUMBA_CACHE_DIR": "numba",
}
"""Where libraries keep caches: environment variable and folder within the work folder."""


def guarded(command: Callable[[list[str]], int], argv: Sequence[str] | None) -> int:
    """Run a command on its arguments (None: those of the process); turn errors into exit codes."""
    calm_threads()
    replace_closed_streams()
    try:
        code = command(with_hyphens(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except SiamError as error:
        print(f"siam-bids: error: {_printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        if out_of_memory(error):
            print("siam-bids: error: Out of memory. Give the job more memory.", file=sys.stderr)
            return EXIT_SOME_SCANS_FAILED
        if not isinstance(error, OSError):
            raise
        return _disk_trouble(error)
    except Stopped as stop:
        print(
            f"siam-bids: {stop}; finished scans are kept, run again to continue.", file=sys.stderr
        )
        return stop.exit_code
    except KeyboardInterrupt:
        print("siam-bids: interrupted; finished scans are kept.", file=sys.stderr)
        return EXIT_INTERRUPTED


def replace_closed_streams() -> None:
    """Send to nowhere what a caller closed (`>&-`, `2>&-`); files get no standard descriptor."""
    while (lowest := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(lowest, True)
    os.close(lowest)
    if sys.stdout is None or sys.stderr is None:
        null = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (open to the end)
        sys.stdout, sys.stderr = sys.stdout or null, sys.stderr or null


def _disk_trouble(error: OSError) -> int:
    if isinstance(error, BrokenPipeError):  # whoever read our output has enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CLOSED_PIPE
    print(f"siam-bids: error: {error}. Check the disk and permissions.", file=sys.stderr)
    return EXIT_DISK


def calm_threads() -> None:
    """Let threads that wait for another sleep after some 0.1 ms; to be called before torch loads.

    GNU OpenMP's own choice is many milliseconds. On a machine that is busy otherwise they are
    spent on every step, as the other thread has lost its CPU: more than ten times the time in all.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")


@contextmanager
def quick_imports() -> Iterator[None]:
    """Pause garbage collection, and never collect what was imported: half a second of every run."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def with_hyphens(argv: Sequence[str]) -> list[str]:
    """Let `--participant_label` mean `--participant-label`, for every option."""
    spelled = []
    for word in argv:
        name, equals, value = word.partition("=")
        spelled.append(name.replace("_", "-") + equals + value if word.startswith("--") else word)
    return spelled


@contextmanager
def caches_in(work: Path | None) -> Iterator[None]:
    """Have all library caches in the work folder, or a temporary one if HOME is unusable.

    A cluster's container has a read-only system, any user number and often no HOME.
    """
    home = Path(os.environ.get("HOME") or "/nonexistent")
    usable = home.is_dir() and os.access(home, os.W_OK)
    if usable and work is None:
        yield
        return
    with ExitStack() as stack:
        try:
            if work is None:
                scratch = tempfile.TemporaryDirectory(prefix="siam-bids-")
                work = Path(stack.enter_context(scratch))
            work = work.absolute()
            check_folder(work, "--work-dir")
            work.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=work).close()
        except OSError as error:
            raise UsageError(
                f"No scratch file can be written: {error}.", "Give a folder with --work-dir."
            ) from error
        changes = {name: str(work / folder) for name, folder in _CACHES.items()}
        if not usable:
            changes["HOME"] = str(work)
        if "LOGNAME" not in os.environ:  # users without a name have no passwd entry
            changes["LOGNAME"] = "siam-bids"
        stack.enter_context(_environment({**changes, "TMPDIR": str(work)}))
        yield


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Change variables of the environment, among them `TMPDIR`, and change them back."""
    before = {name: os.environ.get(name) for name in changes}
    folder = tempfile.tempdir
    os.environ.update(changes)
    tempfile.tempdir = changes["TMPDIR"]
    try:
        yield
    finally:
        tempfile.tempdir = folder
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _printable(text: str) -> str:
    """Replace what would move the cursor or colour a terminal; lines stay lines."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


class _Formatter(logging.Formatter):
    """Shows messages without control characters: titles and names in them come from data."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message as one text of printable characters."""
        return _printable(super().format(record))


def start_logging(verbosity: int = 1) -> None:
    """Log to stderr; from verbosity 2 on with tracebacks."""
    level = logging.DEBUG if verbosity > 1 else logging.INFO
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("siam_bids").setLevel(level)
