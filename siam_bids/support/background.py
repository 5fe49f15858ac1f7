"""Reading ahead and writing behind: the disk works while the network computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from typing import Self  # Python 3.11

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def read_ahead(
    read: Callable[[_Item], _Result], items: Iterable[_Item]
) -> Iterator[tuple[_Item, Future[_Result]]]:
    """Yield each item with its future result, while the next item is read."""
    with ThreadPoolExecutor(1, "read") as pool:
        previous = None
        for item in items:
            current = item, pool.submit(read, item)
            if previous:
                yield previous
            previous = current
        if previous:
            yield previous


class WriteBehind:
    """A thread that does one piece of work after the other; a context."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "write")
        self._pending: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown()

    def submit(self, work: Callable[..., None], *arguments: Any) -> None:
        """Do a piece of work after those before it."""
        self._pending.append(self._pool.submit(work, *arguments))

    def wait(self) -> None:
        """Wait until nothing is left to do.

        Raises
        ------
        Exception
            What a piece of work raised.
        """
        pending, self._pending = self._pending, []
        for piece in pending:
            piece.result()
