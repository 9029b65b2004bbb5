"""Is a tensor quantized as well as its type allows?

The yardstick needs no table of typical errors: the reference's own weight is quantized
again to the same type by ggml, and the error of that is compared with the error that the
file shows. A sound file lies within a fifth of it, a single block within two thirds (an
importance matrix moves a weight's plain error up a little); damage does not.

A reference that was quantized itself is as far from the weights that both files come from
as its own type costs, and values that lie on a type's grid cost that type nothing. So what
a type costs is also measured with the columns dealt out over the blocks
(:func:`type_cost`): each block then holds values of other blocks, on no common grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.metrics import Difference, DifferenceSum, difference
from ggufnorm.core.rounding import HALF_ULP
from ggufnorm.core.tolerances import WEIGHT_RATIO
from ggufnorm.engines.llama.binding import quantize_rows
from ggufnorm.errors import InputError
from ggufnorm.formats.dequantize import dequantize_rows, n_rows, read_rows
from ggufnorm.formats.gguf_constants import GGML_QUANT_SIZES, GGMLQuantizationType
from ggufnorm.formats.model_file import ModelFile

Array = NDArray[np.float32]

_GRIDS = (
    GGMLQuantizationType.Q4_0,
    GGMLQuantizationType.Q4_K,
    GGMLQuantizationType.Q5_K,
    GGMLQuantizationType.Q6_K,
    GGMLQuantizationType.Q5_0,
    GGMLQuantizationType.Q8_0,
)
"""Types that published weights are dequantized from, the commonest first."""
_GRID_ROWS = 64
"""Rows by which a grid is recognised."""

_SAMPLE = 1 << 20
"""Elements quantized again: rows spread evenly over the tensor."""
_WORST_ROWS = 16
"""Rows quantized again besides: those with the relatively worst blocks."""
_BLOCK = 256
"""Elements of a block: ggml's QK_K."""
_DEALT = 32
"""Parts of a row whose columns are dealt out: as many as the smallest block has elements."""
_SHORT = 256
"""Columns of a row from which dealing them out leaves no block as it was."""
_RUN = 8
"""Rows read at a time where rows are sampled."""
_ON_GRID = 0.3
"""Values that cost a type less than this share of what it costs them dealt out lie on its grid."""


@dataclass(frozen=True)
class WeightError:
    """Relative L2 error of a weight against the reference's.

    Attributes:
        actual: of the file under test; None if it holds NaN or infinity.
        expected: what both files' types cost: a fresh quantization of the reference to the
            type of the model under test, and the reference's own type.
        worst_block: the largest error of a block, in multiples of what it is expected to
            be; 0 where nothing is lost.
        on_grid: whether the reference's values lie on the grid of a type, though it is
            not quantized: it was, and was dequantized.
        grid: of an error that no type accounts for, the type on whose grid the values under
            test lie, though their own is finer: they were quantized before. Else None.
    """

    actual: float | None
    expected: float
    worst_block: float
    on_grid: bool = False
    grid: str | None = None


def weight_error(reference: ModelFile, quant: ModelFile, name: str) -> WeightError | None:
    """Measure one tensor; None where the files have it in different shapes or types unread."""
    if not _comparable(reference, quant, name):
        return None
    rows, width = n_rows(reference, name), reference.tensors[name].shape[0]
    sample = np.arange(0, rows, max(1, rows * width // _SAMPLE))
    step = max(1, _SAMPLE // width)
    total, shares = DifferenceSum(), []
    try:
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            values, observed = (read_rows(f, name, start, stop) for f in (reference, quant))
            total.add(values, observed, start, stop - start)
            shares.append(_worst_shares(values, observed))
        chosen = np.union1d(sample, _worst_rows(np.concatenate(shares)))
        values, observed = (_chosen_rows(file, name, chosen) for file in (reference, quant))
        is_sampled = np.isin(chosen, sample)
        return _judged(total.result(), values, observed, is_sampled, _types(reference, quant, name))
    except (InputError, NotImplementedError):  # a type that ggml alone reads, and not here
        return None


def _chosen_rows(file: ModelFile, name: str, chosen: NDArray[np.intp]) -> Array:
    """Rows of a tensor by their numbers, ascending."""
    runs = np.split(chosen, np.flatnonzero(np.diff(chosen) > 1) + 1)
    return np.concatenate([read_rows(file, name, int(r[0]), int(r[-1]) + 1) for r in runs])


def sampled_error(reference: ModelFile, quant: ModelFile, name: str) -> WeightError | None:
    """Measure rows spread evenly over a tensor, :data:`_SAMPLE` values; else the same."""
    if not _comparable(reference, quant, name):
        return None
    rows, width = n_rows(reference, name), reference.tensors[name].shape[0]
    step = max(1, rows * width // _SAMPLE) * _RUN
    try:
        values, observed = (
            np.concatenate(
                [read_rows(file, name, i, min(i + _RUN, rows)) for i in range(0, rows, step)]
            )
            for file in (reference, quant)
        )
        found, all_of_them = difference(values, observed), np.ones(len(values), np.bool_)
        return _judged(found, values, observed, all_of_them, _types(reference, quant, name))
    except (InputError, NotImplementedError):  # the same
        return None


def _is_quantized(ggml_type: int) -> bool:
    return bool(GGML_QUANT_SIZES[GGMLQuantizationType(ggml_type)][0] > 1)


def type_cost(values: Array, ggml_type: int) -> float:
    """Relative L2 error that a type costs values like these, on its grid already or not."""
    n = values.shape[-1]
    if not _is_quantized(ggml_type) or n % _DEALT or not values.size:
        return 0.0
    if n < _SHORT:  # a row is few blocks: deal out the values of each column instead
        rows = (np.arange(len(values))[:, None] + np.arange(n)) % len(values)
        dealt = values[rows, np.arange(n)]
    else:
        dealt = values[:, np.arange(n).reshape(_DEALT, -1).T.ravel()]
    return difference(dealt, _requantized(dealt, ggml_type)).rel_l2 or 0.0


def _comparable(reference: ModelFile, quant: ModelFile, name: str) -> bool:
    ref, under_test = reference.tensors.get(name), quant.tensors.get(name)
    return (
        ref is not None
        and under_test is not None
        and ref.shape == under_test.shape
        and ref.n_elements > 0
    )


def _types(reference: ModelFile, quant: ModelFile, name: str) -> tuple[int, int]:
    return reference.tensors[name].ggml_type, quant.tensors[name].ggml_type


def _judged(
    found: Difference,
    values: Array,
    observed: Array,
    is_sampled: NDArray[np.bool_],
    types: tuple[int, int],
) -> WeightError:
    """Judge a tensor.

    Args:
        found: of the whole tensor.
        values: rows of the reference, sampled or among the worst.
        observed: the same of the model under test.
        is_sampled: which of these rows are sampled.
        types: of both tensors.
    """
    if found.non_finite_rows:
        return WeightError(None, 0.0, 0.0)
    again = _requantized(values, types[1])
    some = values[is_sampled]
    fresh = difference(some, again[is_sampled]).rel_l2 or 0.0
    # What a grid hides: the reference's own loss, and the type's on values that it made.
    own, cost = (type_cost(some, ggml_type) for ggml_type in types)
    on_grid = fresh < _ON_GRID * cost
    own = max(own, HALF_ULP.get(GGMLQuantizationType(types[0]).name, 0.0))
    floor = own**2 + (cost**2 if on_grid else 0.0)
    expected = float(np.sqrt(fresh**2 + floor))
    plain = not _is_quantized(types[0])
    if plain and (found.rel_l2 or 0.0) > WEIGHT_RATIO * expected and (known := grid_of(some)):
        # A grid hides a part of what another type costs, too.
        on_grid, floor = True, floor + known[1] ** 2 + max(0.0, cost**2 - fresh**2)
        expected = float(np.sqrt(fresh**2 + floor))
    worst = _worst_block(values, observed, again, floor)
    before = None
    if (found.rel_l2 or 0.0) > WEIGHT_RATIO * expected:
        before = quantized_before(observed[is_sampled], types[1])
    return WeightError(found.rel_l2, expected, worst, on_grid and plain, before)


def quantized_before(values: Array, ggml_type: int) -> str | None:
    """The type on whose grid values lie, if it is coarser than their own; else None."""
    known = grid_of(values)
    if known is None or known[0].value == ggml_type:
        return None
    own = type_cost(values, ggml_type)
    return known[0].name if own < _ON_GRID * known[1] else None


def grid_of(values: Array) -> tuple[GGMLQuantizationType, float] | None:
    """The type on whose grid values lie and what it cost them; None if they lie on none."""
    some = values[:: max(1, len(values) // _GRID_ROWS)]
    n = some.shape[-1]
    for kind in _GRIDS:
        if n % GGML_QUANT_SIZES[kind][0] == 0 and n % _DEALT == 0:
            cost = type_cost(some, kind)
            if (difference(some, _requantized(some, kind)).rel_l2 or 0.0) < _ON_GRID * cost:
                return kind, cost
    return None


def _requantized(rows: Array, ggml_type: int) -> Array:
    return dequantize_rows(quantize_rows(rows, ggml_type), ggml_type)


def _energies(rows: Array) -> Array:
    """Sum of squares of each block, ``(rows, blocks)``; a row is one block if none fit."""
    n = rows.shape[-1]
    blocks = rows.reshape(len(rows), -1, _BLOCK if n % _BLOCK == 0 else n)
    energies: Array = np.einsum("rbi,rbi->rb", blocks, blocks)
    return energies


def _worst_shares(values: Array, observed: Array) -> Array:
    """Of each row's blocks, the largest error beside its energy."""
    with np.errstate(invalid="ignore", over="ignore"):
        share = _energies(observed - values) / np.maximum(_energies(values), np.float32(1e-30))
    worst: Array = share.max(axis=1)
    return worst


def _worst_rows(shares: Array) -> NDArray[np.intp]:
    return np.argsort(-shares, kind="stable")[:_WORST_ROWS]


def _worst_block(values: Array, observed: Array, again: Array, hidden: float) -> float:
    actual = _energies(observed - values)
    expected = _energies(again - values) + np.float32(hidden) * _energies(values)
    # A block that its type happens to hit exactly has no error to be a multiple of.
    floor = 0.01 * float(expected.mean())
    if floor == 0.0:
        return 0.0
    return float(np.sqrt((actual / np.maximum(expected, floor)).max()))
