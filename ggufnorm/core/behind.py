"""Work on copies in a thread of its own, one piece after the other, while the caller goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

_MOST_BYTES = 1 << 22


class Behind:
    """Does work in the order in which it is given.

    NumPy lets go of the interpreter's lock for as long as it computes, so one thread of it runs
    beside another library's. Two threads of NumPy do not run well beside each other: with arrays
    that fit a core's cache they wake each other for longer than they compute.

    Args:
        most_bytes: that the work that waits may hold; one piece may always wait.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most = most_bytes
        self._pending: deque[tuple[Future[None], int]] = deque()
        self._held = 0
        self._thread = ThreadPoolExecutor(1, "behind")

    def do(self, work: Callable[[], None], n_bytes: int) -> None:
        """Do some work later.

        Args:
            work: must not touch what the caller changes before :meth:`wait` has returned.
            n_bytes: that it holds until it is done.

        Raises:
            Exception: that earlier work raised.
        """
        while self._pending and (self._pending[0][0].done() or self._held + n_bytes > self._most):
            self._settle()
        self._pending.append((self._thread.submit(work), n_bytes))
        self._held += n_bytes

    def wait(self) -> None:
        """Return when all work is done.

        Raises:
            Exception: that it raised.
        """
        while self._pending:
            self._settle()

    def _settle(self) -> None:
        done, n_bytes = self._pending.popleft()
        self._held -= n_bytes
        done.result()
