"""What a file's bytes are read from."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

from ggufnorm.errors import GGUFError, InputError

_BATCH = 16
"""Items that a worker's queue holds: more would go on for long after a failure."""

A = TypeVar("A")
B = TypeVar("B")


class Storage(Protocol):
    """Somewhere that byte ranges can be read from, never written to.

    Attributes:
        name: as messages call it: the path or the address.
        size: in bytes.
    """

    name: str
    size: int

    def read(self, offset: int, n: int) -> bytes | memoryview:
        """``n`` bytes from ``offset``; both lie within ``size``.

        Raises:
            InputError: they cannot be had.
        """

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes | memoryview]:
        """Several ``(offset, n)`` at once; what lies close together is fetched as one."""

    def close(self) -> None:
        """Give back what is held open. Bytes already read stay valid."""


class LocalStorage:
    """A file on disk, memory-mapped read-only.

    Raises:
        InputError: it cannot be opened.
        GGUFError: it is empty.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        try:
            with Path(path).open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                if self.size == 0:
                    raise GGUFError(self.name, 0, "magic", "the file is empty")
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"cannot open {self.name}: {reason}") from None
        self._map: mmap.mmap | None = mapped
        self._view = memoryview(mapped)

    def read(self, offset: int, n: int) -> memoryview:
        """A view of the map: nothing is copied."""
        return self._view[offset : offset + n]

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes | memoryview]:
        """Views of the map."""
        return [self.read(*r) for r in ranges]

    def forget(self, offset: int, n: int) -> None:
        """Give a range's pages back, where the system knows how: reading it loads them again."""
        advice = getattr(mmap, "MADV_DONTNEED", None)
        if self._map is None or advice is None:
            return
        start = offset + -offset % mmap.PAGESIZE
        length = (offset + n) // mmap.PAGESIZE * mmap.PAGESIZE - start
        if length > 0:
            self._map.madvise(advice, start, length)

    def close(self) -> None:
        """Drop the map; it is unmapped when the last view of it is gone."""
        self._view = memoryview(b"")
        self._map = None


def coalesce(ranges: Iterable[tuple[int, int]], spare: int) -> list[tuple[int, int]]:
    """Few ranges that cover many.

    Ranges are joined over the narrowest gaps first, as long as the gaps together stay
    within ``spare``.

    Args:
        ranges: ``(offset, n)``, in any order; they may overlap.
        spare: bytes that may be covered though no range asks for them.

    Returns:
        Disjoint ``(offset, n)`` in rising order.
    """
    spans = sorted((offset, offset + n) for offset, n in ranges)
    reach, gaps = 0, []
    for i, (start, end) in enumerate(spans):
        gaps.append((max(0, start - reach) if i else spare + 1, i))
        reach = max(reach, end)
    joined: set[int] = set()
    for gap, i in sorted(gaps):
        spare -= gap
        if spare < 0:
            break
        joined.add(i)
    whole: list[tuple[int, int]] = []
    for i, (start, end) in enumerate(spans):
        if i in joined:
            first, last = whole.pop()
            whole.append((first, max(last, end)))
        else:
            whole.append((start, end))
    return [(start, end - start) for start, end in whole]


def in_parallel(function: Callable[[A], B], items: Sequence[A], workers: int) -> list[B]:
    """Results in the order of the items; the first failure stops what has not begun."""
    if len(items) <= 1:
        return [function(item) for item in items]
    results: list[B] = []
    batch = workers * _BATCH
    with ThreadPoolExecutor(min(workers, len(items))) as pool:
        for start in range(0, len(items), batch):
            results += pool.map(function, items[start : start + batch])
    return results


def checked(found: bytes | memoryview, storage: Storage, offset: int, n: int) -> bytes | memoryview:
    """What was read, if it is all that was asked for.

    Raises:
        InputError: it is shorter or longer.
    """
    if len(found) != n:
        raise InputError(
            f"{storage.name}: byte {offset}: {len(found)} bytes came instead of {n};"
            " the file may have changed while it was read"
        )
    return found
