"""Stopping within seconds when a scheduler or the user asks for it."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

EXIT_TRY_AGAIN = 75
"""EX_TEMPFAIL of sysexits.h: nothing is wrong, run the same command again to continue."""

EXIT_INTERRUPTED = 130
"""What shells report after Ctrl-C."""

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
)
"""What users, SLURM, PBS, LSF and SGE send before they kill."""


class Stopped(BaseException):
    """The process was asked to stop. Not caught by `except Exception` of a single scan."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = EXIT_INTERRUPTED if signum == signal.SIGINT else EXIT_TRY_AGAIN


@contextmanager
def stoppable(grace: float = 5.0) -> Iterator[None]:
    """Turn the first of `SIGNALS` within the block into `Stopped`, raised in the main thread.

    Python raises only between its own instructions, so one long network layer would hold the
    exception up. A watching thread therefore ends the process `grace` seconds after the signal,
    come what may: every output file is complete at any moment (`atomic_files.atomic`).
    Signals that the parent told us to ignore (`nohup`) stay ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _raise_once()) for number in ours}
    inbox, outbox = socket.socketpair()
    outbox.setblocking(False)
    old = signal.set_wakeup_fd(outbox.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(inbox, grace, ours), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(old)
        for number, handler in before.items():
            signal.signal(number, handler)
        outbox.close()  # ends the watching thread, so a block that ends in time goes its own way


def _raise_once() -> signal._HANDLER:
    heard: list[int] = []

    def handler(signum: int, _frame: FrameType | None) -> None:
        heard.append(signum)
        if len(heard) == 1:
            raise Stopped(signum)

    return handler


def _watch(inbox: socket.socket, grace: float, signals: list[signal.Signals]) -> None:
    with inbox:
        while (byte := inbox.recv(1)) and byte[0] not in signals:
            pass
        if not byte:
            return
        stop = Stopped(byte[0])
        deadline = time.monotonic() + grace
        inbox.settimeout(grace)
        with suppress(TimeoutError):
            while inbox.recv(64):  # further signals; nothing at all when the block has ended
                inbox.settimeout(max(deadline - time.monotonic(), 0.001))
            return
    sys.stderr.write(f"siam-bids: {stop} in the middle of a scan; run again to continue.\n")
    sys.stderr.flush()
    os._exit(stop.exit_code)
