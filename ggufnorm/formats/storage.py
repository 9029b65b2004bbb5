"""What a file's bytes are read from."""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from threading import Event, RLock, local
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import numpy as np

from ggufnorm.errors import GGUFError, InputError
from ggufnorm.formats.files import no_such_file, open_descriptor

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

_KEPT_OPEN = 64
"""Files that are held open: a model may have more shards than a process may have files."""

_MOST_AT_ONCE = 1 << 24
"""Bytes of one system call, which nothing interrupts."""

_BATCH = 16
"""Items that a worker's queue holds: more would go on for long after a failure."""

_MOST_KEPT = 1 << 23
"""Bytes that a thread keeps to read into again."""

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

    def read(self, offset: int, n: int, into: memoryview | None = None) -> bytes | memoryview:
        """``n`` bytes from ``offset``; both lie within ``size``.

        Args:
            offset: of the first.
            n: how many.
            into: ``n`` bytes of memory that may be used for them.

        Raises:
            InputError: they cannot be had.
        """

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes | memoryview]:
        """Several ``(offset, n)`` at once; what lies close together is fetched as one."""

    def close(self) -> None:
        """Give back what is held open. Bytes already read stay valid."""


class Scratch(local):
    """Memory of a thread's own, to read into again and again.

    Fresh memory costs more than a file's bytes: its pages are mapped and zeroed one by one, and
    threads wait for each other meanwhile.
    """

    def __init__(self) -> None:
        self._kept = np.empty(0, np.uint8)

    def of(self, n: int) -> memoryview:
        """``n`` bytes, of which nothing is said; the next call in this thread gives them again."""
        if n > _MOST_KEPT:
            return np.empty(n, np.uint8).data
        if len(self._kept) < n:
            self._kept = np.empty(n, np.uint8)
        return self._kept[:n].data


class LocalStorage:
    """A file on disk, read with ``pread``; may be read by several threads.

    Not memory-mapped: a map of a file that becomes shorter ends the process (SIGBUS), where
    a read is merely short. The file is opened again when it is read after many others
    (:data:`_KEPT_OPEN`).

    Raises:
        InputError: it cannot be opened, or is no regular file.
        GGUFError: it is empty.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        self._key = next(_KEYS)
        self._is_closed = False
        descriptor = self.opened()  # as long as there is a name for it, it stays open
        found = os.fstat(descriptor.number)
        self.size, self._identity = found.st_size, (found.st_dev, found.st_ino)
        if self.size == 0:
            self.close()
            raise GGUFError(self.name, 0, "magic", "the file is empty")

    def read(self, offset: int, n: int, into: memoryview | None = None) -> memoryview:
        """A copy, in memory of its own unless some is given."""
        found = np.empty(n, np.uint8).data if into is None else into
        descriptor, done = self.opened(), 0
        try:
            while done < n:
                heed_stop()
                part = found[done : done + _MOST_AT_ONCE]
                got = _read_into(descriptor.number, part, offset + done)
                if got == 0:
                    break
                done += got
        except OSError as error:
            raise InputError(f"cannot read {self.name}: {error.strerror}") from None
        checked(found[:done], self, offset, n)
        return found

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes | memoryview]:
        """One after the other."""
        return [self.read(*r) for r in ranges]

    def close(self) -> None:
        """Close the file, unless a thread still reads it: then it is closed by that."""
        self._is_closed = True
        with _LOCK:
            _OPEN.pop(self._key, None)

    def __del__(self) -> None:
        if hasattr(self, "_key"):
            self.close()

    def opened(self) -> Descriptor:
        """The file, open as long as this is referred to."""
        with _LOCK:
            descriptor = _OPEN.get(self._key)
            if descriptor is None:
                descriptor = _OPEN[self._key] = self._open()
                if len(_OPEN) > _KEPT_OPEN:
                    _OPEN.popitem(last=False)
            _OPEN.move_to_end(self._key)
            return descriptor

    def _open(self) -> Descriptor:
        if self._is_closed:
            raise InputError(f"cannot read {self.name}: it has been closed")
        try:
            descriptor = Descriptor(open_descriptor(self.name))
        except OSError as error:
            if error.errno == errno.ENOENT:
                raise InputError(no_such_file(self.name)) from None
            raise InputError(f"cannot open {self.name}: {error.strerror}") from None
        found = os.fstat(descriptor.number)
        if getattr(self, "_identity", None) not in (None, (found.st_dev, found.st_ino)):
            raise InputError(f"{self.name} was replaced while it was read: start again")
        return descriptor


class Descriptor:
    """An open file, closed with the last reference to it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


_OPEN: OrderedDict[int, Descriptor] = OrderedDict()
_KEYS = count()  # unlike an id, a number is never used again
_LOCK = RLock()  # the garbage collector may close a storage at any moment


class Extent(NamedTuple):
    """Bytes of a storage that follow each other.

    Attributes:
        storage: where they are.
        offset: of the first.
        n: how many.
    """

    storage: Storage
    offset: int
    n: int

    def part(self, start: int, n: int) -> Extent:
        """``n`` of them from the byte ``start`` on."""
        return Extent(self.storage, self.offset + start, n)


def _read_into(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Read what fits into a buffer; how many bytes came."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], offset)
    with _LOCK:  # where there is no preadv, as on Windows
        os.lseek(descriptor, offset, os.SEEK_SET)
        data = os.read(descriptor, len(buffer))
    buffer[: len(data)] = data
    return len(data)


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


class _StoppedError(BaseException):
    """Nobody waits any more for what this thread does."""


class _Work(local):
    """What a thread works for.

    Attributes:
        stopped: of its pool, and of the one that made that, and so on; one is set when nobody
            waits any more.
    """

    stopped: tuple[Event, ...] = ()


_WORK = _Work()


def heed_stop() -> None:
    """End a thread's work here if its pool was told to stop: see :func:`pool_of_readers`."""
    if any(event.is_set() for event in _WORK.stopped):
        raise _StoppedError


def pool_of_readers(n: int) -> tuple[ThreadPoolExecutor, Event]:
    """Threads that read files, and what stops each where it reads next.

    Whoever sets that, a Ctrl-C being the usual reason, need not wait for them to finish what they
    do; nor for threads that they have made by this function.

    Args:
        n: how many.
    """
    from concurrent.futures import ThreadPoolExecutor

    stopped = Event()
    all_of_them = (stopped, *_WORK.stopped)

    def begin() -> None:
        _WORK.stopped = all_of_them

    return ThreadPoolExecutor(n, initializer=begin), stopped


@contextmanager
def readers(n: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that read files, stopped by an error that leaves the block: a Ctrl-C above all."""
    pool, stopped = pool_of_readers(n)
    with pool:
        try:
            yield pool
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def in_parallel(function: Callable[[A], B], items: Sequence[A], workers: int) -> list[B]:
    """Results in the order of the items; the first failure stops all others."""
    if len(items) <= 1 or workers == 1:
        return [function(item) for item in items]
    results: list[B] = []
    batch = workers * _BATCH
    with readers(min(workers, len(items))) as pool:
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
