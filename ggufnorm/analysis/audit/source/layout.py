"""The values that a tensor of a file should have, read from the source row by row."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.audit.source.rows import Rows
from ggufnorm.core import kernels
from ggufnorm.core.floats import from_bf16
from ggufnorm.formats.dequantize import from_halves
from ggufnorm.formats.storage import Scratch
from ggufnorm.formats.streaming import StoredRows

Values = NDArray[np.float32]
Change = Callable[[Values], Values]


def floats(stored: NDArray[Any], dtype: str, out: Values | None = None) -> Values:
    """Stored values as float32; BF16 comes as ``uint16``.

    Args:
        stored: the values.
        dtype: in safetensors' words.
        out: where to put them.
    """
    if dtype == "BF16":
        return from_bf16(stored, out)
    if dtype == "F16":
        return from_halves(stored.view(np.uint16), out)
    if out is None:
        out = np.empty(stored.shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        out[...] = stored
    return out


def negative_exponential(values: Values) -> Values:
    """``-exp(A_log)``, as the converters of state space models store it."""
    with np.errstate(over="ignore"):
        return np.asarray(-np.exp(values), np.float32)


def exponential(values: Values) -> Values:
    """``exp(A_log)`` (conversion/bailingmoe3.py)."""
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(values), np.float32)


_STORED = Scratch()
"""What is read of a source to be converted at once."""


_AS_STORED = {"F32": (np.float32,), "F16": (np.float16, np.uint16), "BF16": (np.uint16,)}
"""How values come that loops convert; in safetensors' words, which are kernels.KINDS here."""


@dataclass(frozen=True)
class Part:
    """Rows of one source tensor, in the file's order.

    Attributes:
        source: its name.
        dtype: in safetensors' words.
        rows: as stored, read when they are asked for.
    """

    source: str
    dtype: str
    rows: Rows


@dataclass(frozen=True)
class Layout:
    """The rows of one tensor, one part behind the other.

    Attributes:
        parts: see the class.
        n_columns: the length of a row.
        change: what is done to each value.
    """

    parts: tuple[Part, ...]
    n_columns: int
    change: Change | None = field(default=None)

    @cached_property
    def _starts(self) -> list[int]:
        starts, at = [], 0
        for part in self.parts:
            starts.append(at)
            at += len(part.rows)
        return starts

    @property
    def n_rows(self) -> int:
        """Rows of all parts together."""
        return sum(len(p.rows) for p in self.parts)

    @property
    def n_held(self) -> int:
        """Bytes in memory at once besides the rows that are asked for."""
        return max((p.rows.n_held for p in self.parts), default=0)

    def as_stored(self, dtype: str) -> tuple[Rows, ...] | None:
        """The rows as they are stored, part by part; None if they are not of that type."""
        if self.change is not None or any(part.dtype != dtype for part in self.parts):
            return None
        return tuple(part.rows for part in self.parts)

    def read(self, start: int, stop: int, out: Values | None = None) -> Values:
        """Some rows as float32, ``(stop - start, length of a row)``; in ``out`` if possible."""
        if out is None:
            out = np.empty((stop - start, self.n_columns), np.float32)
        begin = start
        at = bisect_right(self._starts, start) - 1
        while start < stop and at < len(self.parts):
            part, first = self.parts[at], self._starts[at]
            end = min(stop, first + len(part.rows))
            if end > start:
                stored = part.rows.read(start - first, end - first, _STORED)
                floats(stored, part.dtype, out[start - begin : end - begin])
                start = end
            at += 1
        return out if self.change is None else self.change(out)

    def streams(self) -> list[StoredRows] | None:
        """The bytes of all rows, part by part, for loops that read them; None where these cannot.

        See :mod:`ggufnorm.formats.streaming`.
        """
        found: list[StoredRows] = []
        for part in self.parts:
            extent = part.rows.extent()
            if self.change is not None or extent is None or part.dtype not in _AS_STORED:
                return None
            found.append(StoredRows(extent, part.dtype))
        return found

    def stored(self, start: int, stop: int, scratch: Scratch) -> kernels.Stored | None:
        """Some rows for loops that convert them on the way; None where these cannot.

        Args:
            start: the first.
            stop: the one after the last.
            scratch: where they may lie until the next are read.
        """
        at = bisect_right(self._starts, start) - 1
        part, first = self.parts[at], self._starts[at]
        kinds = _AS_STORED.get(part.dtype, ())
        if self.change is not None or stop > first + len(part.rows) or not kinds:
            return None
        rows = part.rows.read(start - first, stop - first, scratch)
        if rows.dtype not in kinds or rows.strides[-1] != rows.itemsize:
            return None
        return kernels.Stored(rows, part.dtype, self.n_columns)

    def pick(self, rows: NDArray[np.intp]) -> Values:
        """Single rows as float32, in the order given."""
        out = np.empty((len(rows), self.n_columns), np.float32)
        done = 0
        for at, few in groupby(rows.tolist(), lambda row: bisect_right(self._starts, row) - 1):
            part, first = self.parts[at], self._starts[at]
            stored = [part.rows.read(row - first, row - first + 1) for row in few]
            floats(np.concatenate(stored), part.dtype, out[done : done + len(stored)])
            done += len(stored)
        return out if self.change is None else self.change(out)
