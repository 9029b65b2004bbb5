"""The rows that a source tensor gives after some steps, read when they are asked for.

What only moves whole rows is read row by row, and what changes each expert of a stack by itself
expert by expert. Any other change needs the whole tensor: of these a few are kept
(:class:`Held`), and :class:`Gate` lets so many be worked on at once as memory allows.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Condition, Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.audit.source.arrange import (
    EACH_ITEM,
    WHOLE_ROWS,
    Site,
    Steps,
    Stored,
    apply,
)
from ggufnorm.formats.hf import Source
from ggufnorm.formats.storage import Extent, Scratch

BUDGET = 512 << 20
"""Bytes of source tensors that are held as wholes; one that is larger is held alone."""

MOST_HELD = 1 << 30
"""Most bytes that an order may hold that is only tried."""

_OVERREAD = 256
"""Rows that may be read besides twice those that are wanted: cheaper than many reads."""


_SPAN = Scratch()
"""What is read of a source to put its rows in order."""


class Rows(Protocol):
    """Rows of a source tensor, in the file's order."""

    @property
    def n_held(self) -> int:
        """Bytes that are in memory at once besides the rows asked for."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int, scratch: Scratch | None = None) -> Stored:
        """Some of them, as stored: ``(stop - start, length of a row)``.

        They may lie in ``scratch``, if that is given, until the next are read.

        Raises:
            InputError: their bytes cannot be had.
        """

    def extent(self) -> Extent | None:
        """Where the bytes of all of them are; None if they do not follow each other."""


@dataclass(frozen=True)
class Straight:
    """Rows that follow each other in the source, too.

    Attributes:
        first: rows of this length before them.
        n: how many they are.
        columns: the length of a row, which may be another one than the source's.
    """

    source: Source
    name: str
    first: int
    n: int
    columns: int
    n_held: int = 0

    def __len__(self) -> int:
        return self.n

    def read(self, start: int, stop: int, scratch: Scratch | None = None) -> Stored:
        """See :class:`Rows`."""
        first, last = ((self.first + n) * self.columns for n in (start, stop))
        found = self.source.read_flat(self.name, first, last, scratch)
        return found.reshape(stop - start, self.columns)

    def extent(self) -> Extent | None:
        """See :class:`Rows`."""
        whole = self.source.extent(self.name)
        if whole is None:
            return None
        size = whole.n // max(1, math.prod(self.source.tensors[self.name].shape))
        start, n = (rows * self.columns * size for rows in (self.first, self.n))
        return whole.part(start, n)


@dataclass(frozen=True, eq=False)
class Moved:
    """Rows in another order.

    Attributes:
        order: of each the source's row, counted from 1; 0 for a row of zeros.
    """

    source: Source
    name: str
    order: NDArray[np.intp]
    n_held: int = 0

    def __len__(self) -> int:
        return len(self.order)

    def read(self, start: int, stop: int, scratch: Scratch | None = None) -> Stored:
        """See :class:`Rows`."""
        wanted = self.order[start:stop] - 1
        is_there = wanted >= 0
        there = wanted[is_there]
        if not len(there):
            return np.zeros_like(self.source.read_rows(self.name, 0, 1), shape=self._shape(wanted))
        first, last = int(there.min()), int(there.max()) + 1
        if last - first <= 2 * len(there) + _OVERREAD:
            span = self.source.read_rows(self.name, first, last, _SPAN)
            out = None if scratch is None else _like(span, len(there), scratch)
            found = np.take(span, there - first, axis=0, out=out, mode="clip")
        else:
            ends = [*(np.flatnonzero(np.diff(there) != 1) + 1).tolist(), len(there)]
            starts = [0, *ends[:-1]]
            runs = (
                self.source.read_rows(self.name, int(there[a]), int(there[b - 1]) + 1)
                for a, b in zip(starts, ends, strict=True)
            )
            found = np.concatenate(list(runs))
        if is_there.all():
            return found
        padded = np.zeros((len(wanted), found.shape[1]), found.dtype)
        padded[is_there] = found
        return padded

    def extent(self) -> Extent | None:
        """See :class:`Rows`."""
        return None

    def _shape(self, rows: NDArray[np.intp]) -> tuple[int, int]:
        return len(rows), self.source.tensors[self.name].shape[-1]


@dataclass(frozen=True, eq=False)
class Made:
    """Rows of an array that has to be made as a whole.

    Attributes:
        held: keeps it for a while.
        key: tells it from others.
        make: makes it, ``(rows, columns)``.
        n: rows.
        n_held: bytes of what it is made of, and of itself.
    """

    held: Held
    key: tuple[Any, ...]
    make: Callable[[], Stored]
    n: int
    n_held: int

    def __len__(self) -> int:
        return self.n

    def read(self, start: int, stop: int, scratch: Scratch | None = None) -> Stored:
        """See :class:`Rows`."""
        del scratch  # it is read from memory
        return self.held.get(self.key, self.make)[start:stop]

    def extent(self) -> Extent | None:
        """See :class:`Rows`."""
        return None


def _like(rows: Stored, n: int, scratch: Scratch) -> Stored:
    """Memory for so many rows of the same kind."""
    n_bytes = n * rows.shape[1] * rows.itemsize
    return np.frombuffer(scratch.of(n_bytes), rows.dtype).reshape(n, rows.shape[1])


class Held:
    """Arrays that were made last, within :data:`BUDGET`; for several threads."""

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget, self._total = budget, 0
        self._arrays: OrderedDict[tuple[Any, ...], Stored] = OrderedDict()
        self._lock = Lock()

    def get(self, key: tuple[Any, ...], make: Callable[[], Stored]) -> Stored:
        """An array, made if it is not there any more."""
        with self._lock:
            found = self._arrays.get(key)
            if found is not None:
                self._arrays.move_to_end(key)
                return found
        made = make()
        with self._lock:
            if key not in self._arrays:
                self._arrays[key] = made
                self._total += made.nbytes
            while self._total > self._budget and self._arrays:
                self._total -= self._arrays.popitem(last=False)[1].nbytes
        return made


class Gate:
    """Lets work begin when what it holds in memory fits a budget, or nothing else is held."""

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget, self._held = budget, 0
        self._changed = Condition()

    @contextmanager
    def holding(self, n_bytes: int) -> Iterator[None]:
        """Wait, and hold so much."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + n_bytes <= self._budget)
            self._held += n_bytes
        try:
            yield
        finally:
            with self._changed:
                self._held -= n_bytes
                self._changed.notify_all()


def rows_of(source: Source, name: str, steps: Steps, site: Site, held: Held) -> Iterator[Rows]:
    """A source tensor's rows after some steps, one part behind the other.

    Args:
        source: the checkpoint.
        name: of its tensor.
        steps: what is done to its order.
        site: what it is to become.
        held: for what has to be made as a whole.

    Raises:
        NoSuchStepError: a step does not fit it.
        ValueError: it does not give rows of the site's length.
    """
    shape, columns = source.tensors[name].shape, site.shape[-1]
    if not steps:
        yield Straight(source, name, 0, _divided(math.prod(shape), columns), columns)
        return
    n_first = next((i for i, s in enumerate(steps) if s not in WHOLE_ROWS), len(steps))
    moving, rest = steps[:n_first], steps[n_first:]
    if len(shape) < 2 or not all(s in EACH_ITEM for s in rest):
        yield _whole(source, name, steps, site, held)
        return
    moved, stack = _moved(source, name, moving, site)
    if not rest and shape[-1] == columns:
        yield moved
    elif rest and len(stack) == 2:
        yield from _by_items(moved, stack, rest, site, held, (name, steps))
    else:
        yield _whole(source, name, steps, site, held)


def _divided(n: int, columns: int) -> int:
    if not columns or n % columns:
        raise ValueError(f"{n} values are no rows of {columns}")
    return n // columns


def _moved(source: Source, name: str, steps: Steps, site: Site) -> tuple[Rows, tuple[int, ...]]:
    """Rows after steps that move whole ones, and the dimensions but the last."""
    *stack, width = source.tensors[name].shape
    n = math.prod(stack)
    numbers = np.arange(1, n + 1).reshape(*stack, 1)
    narrow = replace(site, shape=(*site.shape[:-1], 1))
    order = apply(steps, numbers, narrow)
    shape, order = order.shape[:-1], order.reshape(-1)
    if len(order) and order[0] and (np.diff(order) == 1).all():
        return Straight(source, name, int(order[0]) - 1, len(order), width), shape
    return Moved(source, name, order), shape


def _by_items(
    rows: Rows,
    stack: tuple[int, ...],
    steps: Steps,
    site: Site,
    held: Held,
    key: tuple[Any, ...],
) -> Iterator[Rows]:
    """Each matrix of a stack after some steps."""
    n_items, n_rows = stack
    one = rows.read(0, 1)
    blank = apply(steps, np.broadcast_to(one[:, :1], (n_rows, one.shape[1])), site)
    n = _divided(math.prod(blank.shape), site.shape[-1])
    if blank.shape[-1] != site.shape[-1]:
        raise ValueError(f"rows of {blank.shape[-1]} for {site.shape[-1]}")

    def made(i: int) -> Made:
        def make() -> Stored:
            return apply(steps, rows.read(i * n_rows, (i + 1) * n_rows), site)

        n_held = 2 * one.nbytes * n_rows
        return Made(held, (*key, site.shape, i), make, n, n_held)

    yield from map(made, range(n_items))


def _whole(source: Source, name: str, steps: Steps, site: Site, held: Held) -> Rows:
    shape, columns = source.tensors[name].shape, site.shape[-1]
    n = apply(steps, _blank(shape), site).reshape(-1, columns).shape[0]

    def make() -> Stored:
        return apply(steps, source.read_stored(name), site).reshape(-1, columns)

    n_held = 2 * _SIZE * math.prod(shape)
    return Made(held, (name, steps, site.shape, site.role, site.layer), make, n, n_held)


_SIZE = 4
"""Bytes of a value at most; F64 is rare."""


def _blank(shape: tuple[int, ...]) -> Stored:
    """An array of that shape which takes no memory."""
    return np.broadcast_to(np.uint8(0), shape)
