"""Threads that share out work on arrays: NumPy gives the interpreter free while it computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


class Team:
    """A number of threads, the caller's among them.

    Args:
        n_threads: how many, at least one.
    """

    def __init__(self, n_threads: int) -> None:
        self._n_threads = n_threads
        self._pool = ThreadPoolExecutor(n_threads - 1) if n_threads > 1 else None

    def map(self, function: Callable[[A], B], items: Sequence[A]) -> list[B]:
        """The results in the order of the items, whoever computes them."""
        if self._pool is None or len(items) < 2:
            return [function(item) for item in items]
        share = -(-len(items) // self._n_threads)
        mine, *others = (items[i : i + share] for i in range(0, len(items), share))

        def work(part: Sequence[A]) -> list[B]:
            return [function(item) for item in part]

        futures = [self._pool.submit(work, part) for part in others]
        results = work(mine)
        for future in futures:
            results += future.result()
        return results


ALONE = Team(1)
"""The caller's thread."""
