"""Two versions of a tensor against each other, in blocks of rows, by several threads."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core import kernels
from ggufnorm.core.diff import NonFinite, NormDifference, Side, TensorDifference
from ggufnorm.core.metrics import DifferenceSum, difference, ulp_distance
from ggufnorm.formats.dequantize import n_rows, read_rows, read_stored_rows
from ggufnorm.formats.gguf_constants import GGML_QUANT_SIZES, GGMLQuantizationType
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.naming import layer_of, parse_norm_name
from ggufnorm.formats.storage import Scratch

_BLOCK = 1 << 20
"""Elements that a thread is given at a time."""
_PIECE = 1 << 19
"""Elements of them that are compared at a time: few enough for a cache, and so many that a
thread computes for longer than it waits for the interpreter."""


def compare_norm(
    a: ModelFile, b: ModelFile, name: str
) -> tuple[NormDifference, tuple[NonFinite, ...]]:
    """A norm's weight or bias in two files, bit by bit.

    Raises:
        TensorTypeError: it is of a type that cannot be read.
    """
    r, q = read_rows(a, name), read_rows(b, name)
    differing = r.view(np.uint32) != q.view(np.uint32)
    ulp = None
    if not np.isnan((r[differing], q[differing])).any():
        ulp = int(ulp_distance(r, q).max(initial=0, where=differing))
    d = difference(r, q)
    norm = parse_norm_name(name)
    assert norm is not None
    found = NormDifference(
        tensor=name,
        layer=norm.layer,
        role=norm.role,
        dtype_a=a.tensors[name].dtype,
        dtype_b=b.tensors[name].dtype,
        n_elements=r.size,
        n_differing=int(differing.sum()),
        max_ulp=ulp,
        max_abs=d.max_abs,
        max_abs_row=d.max_abs_token,
        max_abs_column=d.max_abs_channel,
        rel_l2=d.rel_l2,
    )
    return found, _non_finite(a, b, name, 0, r, q)


def compare_tensor(
    a: ModelFile, b: ModelFile, name: str, pool: Executor, on_block: Callable[[int], None]
) -> tuple[TensorDifference, tuple[NonFinite, ...]]:
    """A tensor in two files, dequantized, a few blocks of rows in memory at a time.

    Args:
        a: the reference.
        b: the file under test; the tensor has the same shape there.
        name: of the tensor.
        pool: whose threads read and compare.
        on_block: gets the number of elements that were compared, block by block.

    Raises:
        TensorTypeError: it is of a type that cannot be read.
    """
    columns = a.tensors[name].shape[0]
    total, identical = DifferenceSum(), True
    bad: list[NonFinite] = []

    def compare(rows: range) -> _Part:
        return _compare_rows(a, b, name, rows, floor=total.max_abs)

    for part in pool.map(compare, _blocks(a, name)):
        total.merge(part.total)
        identical &= part.identical
        bad += part.non_finite
        on_block(part.n_rows * columns)
    return _result(a, b, name, total, identical), _merged(bad)


def _blocks(file: ModelFile, name: str) -> Iterator[range]:
    rows = n_rows(file, name)
    step = max(1, _BLOCK // file.tensors[name].shape[0])
    return (range(start, min(start + step, rows)) for start in range(0, rows, step))


@dataclass(frozen=True)
class _Part:
    """What a block of rows showed."""

    n_rows: int
    total: DifferenceSum
    identical: bool
    non_finite: tuple[NonFinite, ...]


def _compare_rows(a: ModelFile, b: ModelFile, name: str, rows: range, floor: float) -> _Part:
    """Sum some rows, a few of them in a cache at a time.

    Values are read into memory that a thread keeps: fresh memory costs more than the sums.
    """
    columns = a.tensors[name].shape[0]
    step = max(1, _PIECE // columns)
    total = DifferenceSum(floor)
    for start in range(rows.start, rows.stop, step):
        stop = min(start + step, rows.stop)
        if _add_as_stored(total, a, b, name, start, stop):
            continue
        r, q = (_memory(scratch, stop - start, columns) for scratch in (_A, _B))
        read_rows(a, name, start, stop, r)
        read_rows(b, name, start, stop, q)
        total.add(r, q, start, stop - start)
    if not total.non_finite_rows:
        return _Part(len(rows), total, total.squared_error == 0, ())
    r = read_rows(a, name, rows.start, rows.stop)
    q = read_rows(b, name, rows.start, rows.stop)
    bad = _non_finite(a, b, name, rows.start, r, q)
    return _Part(len(rows), total, np.array_equal(r, q, equal_nan=True), bad)


def _add_as_stored(
    total: DifferenceSum, a: ModelFile, b: ModelFile, name: str, start: int, stop: int
) -> bool:
    """Sum some rows while they are converted; False where that cannot be, or any is doubtful."""
    r = read_stored_rows(a, name, start, stop, _A)
    q = None if r is None else read_stored_rows(b, name, start, stop, _B)
    if r is None or q is None:
        return False
    sums = kernels.sum_pairs(r, q)
    if sums is None or sums.doubtful:
        return False

    def difference_of_row(row: int) -> NDArray[np.float32]:
        of_a, of_b = (read_rows(f, name, start + row, start + row + 1)[0] for f in (a, b))
        return np.asarray(of_b - of_a)

    total.add_pairs(sums, stop - start, difference_of_row, lambda row: start + row)
    return True


_A, _B = Scratch(), Scratch()
"""What is read of the two files: bytes as they are stored, or values."""


def _memory(scratch: Scratch, n: int, columns: int) -> NDArray[np.float32]:
    """``n`` rows of values, of which nothing is said."""
    return np.frombuffer(scratch.of(4 * n * columns), np.float32).reshape(n, columns)


def _non_finite(
    a: ModelFile,
    b: ModelFile,
    name: str,
    first_row: int,
    r: NDArray[np.float32],
    q: NDArray[np.float32],
) -> tuple[NonFinite, ...]:
    sides: Iterable[tuple[Side, ModelFile, NDArray[np.float32]]] = (("a", a, r), ("b", b, q))
    found = []
    for side, file, values in sides:
        wrong = ~np.isfinite(values)
        count = int(wrong.sum())
        if count:
            row, column = divmod(int(wrong.argmax()), values.shape[1])
            kind = GGMLQuantizationType(file.tensors[name].ggml_type)
            block = column // GGML_QUANT_SIZES[kind][0]
            n_bad = int(wrong.any(axis=1).sum())
            found.append(NonFinite(name, side, count, n_bad, first_row + row, column, block))
    return tuple(found)


def _merged(found: Sequence[NonFinite]) -> tuple[NonFinite, ...]:
    """One of each side, from those of all blocks in order."""
    by_side: dict[Side, NonFinite] = {}
    for f in found:
        before = by_side.get(f.side)
        by_side[f.side] = (
            f
            if before is None
            else replace(before, count=before.count + f.count, n_rows=before.n_rows + f.n_rows)
        )
    return tuple(by_side[side] for side in sorted(by_side))


def _result(
    a: ModelFile, b: ModelFile, name: str, total: DifferenceSum, identical: bool
) -> TensorDifference:
    d, t = total.result(), b.tensors[name]
    n = d.rows * t.shape[0]
    return TensorDifference(
        tensor=name,
        layer=layer_of(name),
        role=tensor_role(name),
        shape=t.shape,
        dtype_a=a.tensors[name].dtype,
        dtype_b=t.dtype,
        share=t.n_bytes / b.size,
        n_compared=n,
        identical=identical,
        rel_l2=d.rel_l2,
        mse=total.squared_error / n if n else None,
        mean_square=total.squared_reference / n if n else None,
        nmse=None if d.rel_l2 is None else d.rel_l2**2,
        sqnr_db=sqnr_db(d.rel_l2),
        cosine=d.cosine,
        max_abs=d.max_abs,
        max_abs_row=d.max_abs_token,
        max_abs_column=d.max_abs_channel,
    )


def sqnr_db(rel_l2: float | None) -> float | None:
    """Signal-to-quantization-noise ratio in dB; None if there is no noise, or no telling."""
    return -20 * math.log10(rel_l2) if rel_l2 else None


def tensor_role(name: str) -> str:
    """What a tensor is in its block: ``ffn_down``; outside the blocks, its name: ``output``."""
    return re.sub(r"(^|\.)blk\.\d+\.", r"\1", name).removesuffix(".weight")
