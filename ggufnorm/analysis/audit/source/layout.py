"""The values that a tensor of a file should have, read from the source row by row."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]
Change = Callable[[Values], Values]


def floats(stored: NDArray[Any], dtype: str) -> Values:
    """Stored values as float32; BF16 comes as ``uint16``."""
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype == "BF16":
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return stored.astype(np.float32)


def negative_exponential(values: Values) -> Values:
    """``-exp(A_log)``, as the converters of state space models store it."""
    with np.errstate(over="ignore"):
        return np.asarray(-np.exp(values), np.float32)


def exponential(values: Values) -> Values:
    """``exp(A_log)`` (conversion/bailingmoe3.py)."""
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(values), np.float32)


@dataclass(frozen=True)
class Part:
    """Rows of one source tensor, in the file's order.

    Attributes:
        source: its name.
        dtype: in safetensors' words.
        rows: ``(n, length of a row)``, as stored.
    """

    source: str
    dtype: str
    rows: NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """The rows of one tensor, one part behind the other.

    Attributes:
        parts: see the class.
        change: what is done to each value.
    """

    parts: tuple[Part, ...]
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

    def read(self, start: int, stop: int) -> Values:
        """Some rows as float32, ``(stop - start, length of a row)``."""
        found = []
        at = bisect_right(self._starts, start) - 1
        while start < stop and at < len(self.parts):
            part, begin = self.parts[at], self._starts[at]
            end = min(stop, begin + len(part.rows))
            if end > start:
                found.append(floats(part.rows[start - begin : end - begin], part.dtype))
                start = end
            at += 1
        values = found[0] if len(found) == 1 else np.concatenate(found)
        return values if self.change is None else self.change(values)

    def pick(self, rows: NDArray[np.intp]) -> Values:
        """Single rows as float32, in the order given."""
        return np.concatenate([self.read(int(r), int(r) + 1) for r in rows])
