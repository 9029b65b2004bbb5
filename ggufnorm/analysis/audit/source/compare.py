"""A tensor of a file beside the values that its source gives, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.audit.source.cost import (
    ALLOWED,
    ALLOWED_ROW,
    ROUNDED,
    WORST,
    cost_of_rows,
    fresh,
)
from ggufnorm.analysis.audit.source.layout import Layout, Values
from ggufnorm.core import kernels
from ggufnorm.core.row_dots import mark_lost
from ggufnorm.formats.dequantize import (
    extent_of_rows,
    how_stored,
    n_rows,
    pick_rows,
    read_raw_rows,
    read_rows,
    read_stored_rows,
)
from ggufnorm.formats.finite import are_finite, numbers
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.storage import Scratch
from ggufnorm.formats.streaming import StoredRows, scan, sum_rows

_BLOCK = 1 << 20
"""Elements that are compared at a time: few enough for the processors' common cache, and so many
that a thread seldom waits for the interpreter."""

_FOUND, _EXPECTED = Scratch(), Scratch()
"""Memory for those."""

_SAMPLE = 24
"""Rows that are quantized afresh to tell what the type costs."""

_GLANCE = 4
"""Rows that tell whether an order is worth a closer look."""

_SUSPECTS = 256
"""Most rows that are quantized afresh because they differ more than the others."""


@dataclass(frozen=True)
class Measured:
    """How a tensor differs from the values that it should have.

    Attributes:
        error: relative L2 distance; infinite where a value of the file is not finite and
            the source's is.
        cost: the same of the source's values, stored afresh in the tensor's type; None if
            that cannot be told.
        n_rows: rows.
        bad_rows: those that differ by more than their type explains, the first of them.
        n_bad_rows: how many there are.
        is_finite: whether the comparison showed that all values of the file are finite.
    """

    error: float
    cost: float | None
    n_rows: int
    bad_rows: tuple[int, ...] = ()
    n_bad_rows: int = 0
    is_finite: bool = False

    @property
    def is_right(self) -> bool:
        """Whether the type explains all of it."""
        return not self.n_bad_rows and self.error <= allowed(self.cost)


def allowed(cost: float | None) -> float:
    """The largest relative error of a right tensor."""
    return 0.6 if cost is None else ALLOWED * cost + 1e-7


@lru_cache(maxsize=256)
def sample(n: int, most: int = _SAMPLE) -> NDArray[np.intp]:
    """Rows spread over a tensor, the first and the last among them, the same each time."""
    if n <= most:
        return np.arange(n)
    rest = np.random.default_rng(n).choice(np.arange(1, n - 1), most - 2, replace=False)
    return np.sort(np.append(rest, (0, n - 1)))


def pick(file: ModelFile, name: str, rows: NDArray[np.intp]) -> Values:
    """Single rows of a file's tensor, in the order given."""
    return pick_rows(file, name, rows.tolist())


def glance(file: ModelFile, name: str, layout: Layout) -> bool:
    """Whether a few rows are what a layout gives, as far as their type allows."""
    rows = sample(layout.n_rows, _GLANCE)
    return is_near(pick(file, name, rows), layout.pick(rows), file.tensors[name].dtype)


def distance(file: ModelFile, name: str, layout: Layout) -> float:
    """Relative L2 distance of a few rows from what a layout gives."""
    rows = sample(layout.n_rows, _GLANCE)
    found, expected = pick(file, name, rows), layout.pick(rows)
    error, power = _squares(found, expected)
    total = float(power.sum())
    return float(np.sqrt(error.sum() / total)) if total else float("inf")


def is_near(found: Values, expected: Values, dtype: str) -> bool:
    """Whether rows are the expected ones, as far as their type allows."""
    if found.shape != expected.shape:
        return False
    cost = cost_of_rows(dtype, expected)
    error, power = _squares(found, expected)
    limit = 0.25 * power if cost is None else ALLOWED_ROW**2 * cost
    return bool((error <= limit + 1e-14 * power).all())


def measure(file: ModelFile, name: str, layout: Layout) -> Measured:
    """Compare all rows.

    Args:
        file: the file.
        name: of the tensor.
        layout: what it should have.

    Raises:
        InputError: something cannot be read.
    """
    total = n_rows(file, name)
    if total != layout.n_rows:
        raise ValueError(f"{name}: {total} rows, its source has {layout.n_rows}")
    copied = _copied(file, name, layout)
    if copied is not None:
        return copied
    rows = sample(total)
    expected = layout.pick(rows)
    costs = cost_of_rows(file.tensors[name].dtype, expected)
    cost = None if costs is None else _relative(costs, _powers(expected))
    screened = _screened(file, name, layout, cost)
    return screened or _measured(file, name, layout, cost)


def _copied(file: ModelFile, name: str, layout: Layout) -> Measured | None:
    """A tensor that is the source's bit by bit, in a type that both have; None if it is not."""
    tensor = file.tensors[name]
    stored = layout.as_stored(tensor.dtype) if tensor.dtype in WORST else None
    if stored is None or file.byte_order == ">":
        return None
    of, is_finite = numbers(tensor.ggml_type), True
    first, step = 0, max(1, _BLOCK // max(1, layout.n_columns))
    for rows in stored:
        here, there = extent_of_rows(file, name, first, first + len(rows)), rows.extent()
        if of and there and scan(here, of, there):
            first += len(rows)
            continue
        for start in range(0, len(rows), step):
            stop = min(len(rows), start + step)
            found = read_raw_rows(file, tensor, first + start, first + stop, _FOUND)
            expected = np.ascontiguousarray(rows.read(start, stop, _EXPECTED)).view(np.uint8)
            if not _same_bytes(found, expected):
                return None
            is_finite = is_finite and bool(are_finite(found, tensor.ggml_type))
        first += len(rows)
    return Measured(0.0, 0.0, layout.n_rows, is_finite=is_finite)


def _same_bytes(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> bool:
    if a.shape == b.shape and a.shape[-1] % 8 == 0:
        return np.array_equal(a.view(np.uint64), b.view(np.uint64))
    return np.array_equal(a, b)


def _blocks(file: ModelFile, name: str, layout: Layout) -> Iterator[tuple[slice, Values, Values]]:
    """Some rows of the file after others, with those that it should have.

    Each pair is overwritten by the next: memory that is given back and taken anew costs more
    than the comparison.
    """
    total, columns = layout.n_rows, layout.n_columns
    step = min(total, max(1, _BLOCK // max(1, columns)))
    one, other = np.empty((2, step, columns), np.float32)
    for start in range(0, total, step):
        stop = min(total, start + step)
        n = stop - start
        found = read_rows(file, name, start, stop, one[:n])
        yield slice(start, stop), found, layout.read(start, stop, other[:n])


_CLEAR = 0.999
"""Of a limit, what rounding in float32 leaves."""


def _screened(file: ModelFile, name: str, layout: Layout, cost: float | None) -> Measured | None:
    """A tensor that is clearly right, told in float32; None where a closer look is needed."""
    if cost is None:
        return None
    error = power = 0.0
    limit = np.float32((_CLEAR * ALLOWED_ROW * cost) ** 2)
    for errors, powers in _squares_of_rows(file, name, layout):
        with np.errstate(all="ignore"):
            # Where something is not finite, nothing is larger or smaller.
            if not ((errors <= limit * powers) & (powers < np.inf)).all():
                return None
        error += float(errors.sum(dtype=np.float64))
        power += float(powers.sum(dtype=np.float64))
    relative = float(np.sqrt(error / power)) if power else 0.0
    # Whose distance from finite values is finite is finite, too.
    measured = Measured(relative, cost, layout.n_rows, is_finite=True)
    return measured if relative <= _CLEAR * allowed(cost) else None


def _squares_of_rows(
    file: ModelFile, name: str, layout: Layout
) -> Iterator[tuple[NDArray[np.floating], NDArray[np.floating]]]:
    """Squared error and squared length of some rows after others; not finite where those are."""
    streamed = _streamed(file, name, layout)
    if streamed is not None:
        yield streamed
        return
    total, columns = layout.n_rows, max(1, layout.n_columns)
    step = min(total, max(1, _BLOCK // columns))
    memory: NDArray[np.float32] | None = None  # only where loops do not convert
    for start in range(0, total, step):
        stop = min(total, start + step)
        found = read_stored_rows(file, name, start, stop, _FOUND)
        expected = None if found is None else layout.stored(start, stop, _EXPECTED)
        if found is not None and expected is not None:
            errors, powers = np.empty((2, stop - start))
            sums = kernels.sum_pairs(expected, found, errors, powers)
            yield (errors if sums and not sums.doubtful else errors + np.inf), powers
            continue
        memory = np.empty((2, step, columns), np.float32) if memory is None else memory
        a = read_rows(file, name, start, stop, memory[0, : stop - start])
        b = layout.read(start, stop, memory[1, : stop - start])
        with np.errstate(all="ignore"):
            power = _dots(b)
            mark_lost(power, b)
            yield _dots(np.subtract(a, b, out=a)), power


def _streamed(
    file: ModelFile, name: str, layout: Layout
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """The same of all rows, by loops that read them; None where these do not tell."""
    streams, how = layout.streams(), how_stored(file, name)
    if streams is None or how is None:
        return None
    errors, powers = np.empty((2, layout.n_rows))
    first = 0
    for part, expected in zip(layout.parts, streams, strict=True):
        some = slice(first, first + len(part.rows))
        found = StoredRows(extent_of_rows(file, name, some.start, some.stop), *how)
        if not sum_rows(expected, found, layout.n_columns, errors[some], powers[some]):
            return None
        first = some.stop
    return errors, powers


def _dots(rows: Values) -> NDArray[np.float32]:
    """Squared length of each row."""
    return np.asarray(np.matmul(rows[:, None, :], rows[:, :, None])[:, 0, 0])


def _measured(file: ModelFile, name: str, layout: Layout, cost: float | None) -> Measured:
    dtype, total = file.tensors[name].dtype, layout.n_rows
    errors, powers = np.empty(total), np.empty(total)
    for rows, found, expected in _blocks(file, name, layout):
        exact = ROUNDED.get(dtype)
        if exact is not None:
            with np.errstate(over="ignore", invalid="ignore"):
                stored = exact(expected)
            # What is past the type's range is not right, though it is what the type makes of it.
            if (
                np.array_equal(found, stored)
                and np.isfinite(stored).sum() == np.isfinite(expected).sum()
            ):
                errors[rows], powers[rows] = 0.0, _powers(expected)
                continue
        errors[rows], powers[rows] = _squares(found, expected)
    power = float(powers.sum())
    error = float(np.sqrt(errors.sum() / power)) if power else float(bool(errors.any()))
    if cost is None:
        return Measured(error, None, total)
    return _with_rows(layout, dtype, Measured(error, cost, total), errors, powers)


def _powers(rows: Values) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    return np.asarray(np.einsum("ij,ij->i", wide, wide))


def _relative(errors: NDArray[np.float64], powers: NDArray[np.float64]) -> float:
    power = float(np.where(np.isfinite(powers), powers, 0.0).sum())
    return float(np.sqrt(errors.sum() / power)) if power else 0.0


def _with_rows(
    layout: Layout,
    dtype: str,
    measured: Measured,
    errors: NDArray[np.float64],
    powers: NDArray[np.float64],
) -> Measured:
    """The same with the rows that their own fresh quantization does not explain."""
    limit = (ALLOWED_ROW * (measured.cost or 0.0)) ** 2 * powers
    suspects = np.flatnonzero(errors > limit)
    # The worst first: where they are right, so are the others.
    worst = suspects[np.argsort(-(errors[suspects] / np.maximum(powers[suspects], 1e-300)))]
    worst = np.sort(worst[:_SUSPECTS])
    if not len(worst):
        return measured
    costs = cost_of_rows(dtype, layout.pick(worst))
    if costs is None:
        return measured
    bad = worst[errors[worst] > ALLOWED_ROW**2 * costs + 1e-14 * powers[worst]]
    share = len(bad) / len(worst)
    count = len(bad) if len(suspects) == len(worst) else round(share * len(suspects))
    first = tuple(int(r) for r in bad)
    return Measured(measured.error, measured.cost, measured.n_rows, first, count)


def _squares(found: Values, expected: Values) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Squared error and squared length of each row; what is finite on one side is infinite."""
    with np.errstate(invalid="ignore", over="ignore"):
        a, b = found.astype(np.float64), expected.astype(np.float64)
        d = a - b
        d[(a == b) | (np.isnan(a) & np.isnan(b))] = 0.0
        error = np.einsum("ij,ij->i", d, d)
        power = np.einsum("ij,ij->i", b, b)
    return np.where(np.isfinite(error), error, np.inf), np.where(np.isfinite(power), power, 0.0)


def rounded_by_way_of(dtype: str, found: Values, expected: Values) -> str | None:
    """The coarser type whose values a tensor has; None if there is none.

    Args:
        dtype: of the tensor in the file.
        found: some of its rows.
        expected: the source's.
    """
    for name in ("F16", "BF16", "Q8_0"):
        if name == dtype:
            continue
        coarse = fresh(name, expected)
        again = None if coarse is None else fresh(dtype, coarse)
        if again is not None and np.array_equal(found, again):
            return name
    return None
