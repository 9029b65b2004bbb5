"""Which operation of one run is which of another, told by what they compute.

Two programs for one network cut it into other operations: one adds a bias by itself, the other
inside a product; one keeps heads apart, the other in another order. Yet most results of the one
appear somewhere among those of the other, and an operation whose result does not, and from
which no later result leads back, is where they part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.tokens import tokens_first
from ggufnorm.core.tolerances import SAME_GATHERED, SAME_OPERATION

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation in one run.

    Attributes:
        name: as its engine calls it.
        op: what it does, in the engine's word.
        inputs: numbers of the operations whose results it takes.
        value: its result; None where it cannot be read.
        tensor: of the file, that it reads; None for none.
        params: ggml's ``op_params``.
        weight: of a matrix product, ``(out, in)``; None for none.
        bias: that it adds besides, ``(out,)``.
        computes: whether the result is more than a view or a copy of an input.
    """

    name: str
    op: str
    inputs: tuple[int, ...]
    value: Array | None
    tensor: str | None = None
    params: bytes = b""
    weight: Array | None = None
    bias: Array | None = None
    computes: bool = True


@dataclass(frozen=True)
class Match:
    """The operation of the other run that has the same result.

    Attributes:
        index: its number.
        distance: relative L2 distance of the results, in the order that brings them together.
        in_order: whether each token's values stand in the same order.
    """

    index: int
    distance: float
    in_order: bool


@dataclass(frozen=True)
class Segment:
    """What both sides compute between two norms.

    Attributes:
        engine: the engine's operations, in order.
        source: the source's.
        n_tokens: length of the axis of tokens.
        tolerance: relative L2 distance up to which the first results are the same.
        goal: what the engine's last result should be; None for the source's last one.
        weights: the engine's matrices by name, ``(out, in)``.
        numbers: of the source's configuration, by their names.
        belongs: where the source's matrices belong, by their names: the engine's name.
    """

    engine: Sequence[Operation]
    source: Sequence[Operation]
    n_tokens: int
    tolerance: float
    weights: Mapping[str, Array]
    numbers: Mapping[str, float]
    belongs: Mapping[str, str]
    goal: Array | None = None


class TokenRows:
    """A value as one row per token.

    Attributes:
        rows: ``(tokens, values of a token)``.
        norm: L2 norm of all.
    """

    def __init__(self, rows: Array) -> None:
        self.rows = rows
        self.norm = l2_norm(rows)

    @classmethod
    def of(cls, value: Array, n_tokens: int) -> TokenRows | None:
        """The rows of a value, None if no axis has a place for each token."""
        moved = tokens_first(value, n_tokens, channels_last=False)
        return None if moved is None else cls(np.ascontiguousarray(moved).reshape(n_tokens, -1))

    @cached_property
    def _sorted(self) -> Array:
        return np.sort(self.rows, axis=1)

    def sorted(self, width: int) -> Array:
        """Each row in ascending order, filled up with zeros to a width: a cache has room left."""
        missing = width - self.rows.shape[1]
        return (
            np.sort(np.pad(self.rows, ((0, 0), (0, missing))), axis=1)
            if missing
            else (self._sorted)
        )


class Results:
    """What one run computed, to find values among.

    Args:
        operations: of the run, in order.
        n_tokens: length of the axis of tokens.
    """

    def __init__(self, operations: Sequence[Operation], n_tokens: int) -> None:
        self.operations, self.n_tokens = operations, n_tokens
        self._rows = [
            (i, rows)
            for i, o in enumerate(operations)
            if o.value is not None and (rows := TokenRows.of(o.value, n_tokens)) is not None
        ]
        # Experts get their tokens together, and a token as often as it has experts.
        self._gathered = [
            (i, o.value)
            for i, o in enumerate(operations)
            if o.value is not None
            and n_tokens not in o.value.shape
            and o.value.size
            and not len(o.value) % n_tokens
        ]

    def find(self, value: Array, tolerance: float) -> Match | None:
        """The operation with this result: in this order if there is one, the nearest, the first.

        Args:
            value: with an axis of tokens.
            tolerance: relative L2 distance up to which two values are the same.
        """
        rows = TokenRows.of(value, self.n_tokens)
        if rows is None or not np.isfinite(rows.norm):
            return None
        found = [m for i, r in self._rows if (m := _match(rows, i, r, tolerance)) is not None]
        if not found:
            found = [
                m
                for i, r in self._gathered
                if r.size == value.size and (m := _match_gathered(value, i, r, tolerance))
            ]
        if not found:
            return None
        best = min(found, key=lambda m: (not m.in_order, m.distance))
        return next(
            m for m in found if m.in_order == best.in_order and m.distance <= 2 * best.distance
        )

    def users(self, index: int) -> list[Operation]:
        """The operations that take a result, or a part of it."""
        found = []
        for i, operation in enumerate(self.operations):
            if index in operation.inputs:
                found += [operation] if operation.computes else self.users(i)
        return found


def l2_norm(value: Array) -> float:
    """In double precision: what a mask hides may be as low as float32 goes."""
    return float(np.linalg.norm(value.astype(np.float64)))


def _match(rows: TokenRows, index: int, other: TokenRows, tolerance: float) -> Match | None:
    if not abs(rows.norm - other.norm) <= tolerance * other.norm:
        return None
    if rows.rows.shape == other.rows.shape:
        distance = _distance(rows.rows, other.rows, other.norm)
        if distance <= tolerance:
            return Match(index, distance, True)
    tolerance = min(tolerance, SAME_OPERATION)  # in ascending order unrelated rows come near
    width = max(rows.rows.shape[1], other.rows.shape[1])
    distance = _distance(rows.sorted(width), other.sorted(width), other.norm)
    return Match(index, distance, False) if distance <= tolerance else None


def _match_gathered(value: Array, index: int, other: Array, tolerance: float) -> Match | None:
    """A match whose rows, one of each token and expert, stand in the order of the experts."""
    rows, others = value.reshape(-1, other.shape[-1]), other.reshape(-1, other.shape[-1])
    norm = l2_norm(others)
    if not abs(l2_norm(rows) - norm) <= tolerance * norm:
        return None
    distance = _distance(np.sort(rows, axis=None), np.sort(others, axis=None), norm)
    if distance > min(tolerance, SAME_GATHERED):
        order = _nearest(rows, others)
        distance = math.inf if order is None else _distance(rows, others[order], norm)
    return Match(index, distance, False) if distance <= tolerance else None


def _nearest(rows: Array, others: Array) -> NDArray[np.intp] | None:
    """The other row that is nearest to each; None if that is one row for several."""
    a, b = rows.astype(np.float64), others.astype(np.float64)
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T
    order = squares.argmin(axis=1)
    return order if len(np.unique(order)) == len(order) else None


def _distance(a: Array, b: Array, norm: float) -> float:
    error = float(np.linalg.norm(a.astype(np.float64) - b))
    return error / norm if norm else error


def leads_back(operations: Sequence[Operation], matches: Sequence[Match | None]) -> list[bool]:
    """For each operation, whether a later one that takes its result has a match."""
    found = [False] * len(operations)
    for i in reversed(range(len(operations))):
        if matches[i] is not None or found[i]:
            for source in operations[i].inputs:
                found[source] = True
    return found
