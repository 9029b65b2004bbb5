"""Pieces of one computation in several threads: NumPy lets go of the interpreter's lock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

T = TypeVar("T")
R = TypeVar("R")


def each(work: Callable[[T], R], items: Sequence[T], n_threads: int) -> list[R]:
    """The results of ``work`` on every item, in their order.

    Args:
        work: must not change what another call reads.
        items: independent of each other.
        n_threads: 1 to do all of it here.
    """
    if n_threads < 2 or len(items) < 2:
        return [work(item) for item in items]
    return list(_pool(n_threads).map(work, items))


@cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor

    # Kept for the whole run: a hook point is over before threads would have started.
    return ThreadPoolExecutor(n_threads, "sums")
