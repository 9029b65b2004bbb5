"""One tensor made again from the source, rows after rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.verify import Outcome, TensorProof
from ggufnorm.errors import TensorTypeError
from ggufnorm.formats import ggml
from ggufnorm.formats.dequantize import dequantize_rows, n_rows, read_rows
from ggufnorm.formats.gguf_constants import GGML_QUANT_SIZES, GGMLQuantizationType
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.naming import layer_of

_BLOCK = 1 << 20
"""Values that are made again at once."""

Bytes = NDArray[np.uint8]
Importance = Mapping[str, NDArray[np.float32]]


@dataclass
class _Sum:
    """What was found so far of one tensor."""

    n_differing: int = 0
    first: tuple[int, int] | None = None
    error: float = 0.0
    norm: float = 0.0
    block_bytes: int = field(default=1)


def prove(
    source: ModelFile,
    file: ModelFile,
    name: str,
    importance: Importance,
    advance: Callable[[int], None],
) -> TensorProof:
    """Make a tensor again from the source and compare every byte.

    Each expert of a stack is quantized with its own part of the importance matrix
    (``llama_model_quantize_impl`` in ``src/llama-quant.cpp``).

    Args:
        source: the file that it is said to be made of.
        file: the file under test.
        name: of a tensor that both have, in one shape.
        importance: tensor name to a weight for each column, of each expert in turn.
        advance: is told how many values were compared.

    Raises:
        TensorTypeError: a type cannot be read, or not be made here.
        InputError: the importance matrix has weights for another shape, or bytes cannot be had.
    """
    a, b = source.tensors[name], file.tensors[name]
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(b.ggml_type)]
    found = _Sum(block_bytes=block_bytes)
    is_copied = a.ggml_type == b.ggml_type
    for start, stop, expert in _parts(file, name):
        wanted = _raw(file, name, start, stop)
        if is_copied:
            made = _raw(source, name, start, stop)
        else:
            values = read_rows(source, name, start, stop)
            if not np.isfinite(values).all():
                raise TensorTypeError(f"{name}: the source holds NaN or infinity")
            made = _made(b.dtype, b.ggml_type, values, _weights(file, name, importance, expert))
        _compare(found, made, wanted, b.ggml_type, start)
        advance((stop - start) * b.shape[0])
    rel_l2: float | None = 0.0
    if found.n_differing:
        rel_l2 = float(np.sqrt(found.error / found.norm)) if found.norm else None
        rel_l2 = rel_l2 if rel_l2 is not None and np.isfinite(rel_l2) else None
    same: Outcome = "copied" if is_copied else "derived"
    return TensorProof(
        tensor=name,
        layer=layer_of(name),
        dtype_from=a.dtype,
        dtype=b.dtype,
        outcome="differs" if found.n_differing else same,
        n_blocks=b.n_elements // block,
        n_differing=found.n_differing,
        first_row=found.first[0] if found.first else None,
        first_block=found.first[1] if found.first else None,
        rel_l2=rel_l2,
    )


def _parts(file: ModelFile, name: str) -> Iterator[tuple[int, int, int]]:
    """Rows that are compared at once, none of two experts: first, last and one, expert."""
    tensor = file.tensors[name]
    rows = n_rows(file, name)
    each = tensor.shape[1] if len(tensor.shape) > 2 else rows
    step = max(1, _BLOCK // max(1, tensor.shape[0]))
    for begin in range(0, rows, max(1, each)):
        end = min(rows, begin + each)
        for start in range(begin, end, step):
            yield start, min(end, start + step), begin // max(1, each)


def _raw(file: ModelFile, name: str, start: int, stop: int) -> Bytes:
    tensor = file.tensors[name]
    size = tensor.n_bytes // max(1, n_rows(file, name))
    part = file.read_part(name, start * size, (stop - start) * size)
    return np.frombuffer(part, np.uint8).reshape(stop - start, size)


def _weights(
    file: ModelFile, name: str, importance: Importance, expert: int
) -> NDArray[np.float32] | None:
    found = importance.get(name)
    if found is None:
        return None
    tensor = file.tensors[name]
    experts = tensor.shape[2] if len(tensor.shape) > 2 else 1
    if found.size != tensor.shape[0] * experts:
        raise TensorTypeError(
            f"{name}: the importance matrix has {found.size:,} weights for"
            f" {tensor.shape[0] * experts:,} columns: it belongs to another model"
        )
    weights: NDArray[np.float32] = found.reshape(experts, -1)[expert]
    return weights


def _made(
    dtype: str, ggml_type: int, values: NDArray[np.float32], weights: NDArray[np.float32] | None
) -> Bytes:
    made = ggml.quantized(ggml_type, values, weights)
    if made is None:
        raise TensorTypeError(f"{dtype} cannot be made here without llama.cpp that knows it")
    return made


def _compare(found: _Sum, made: Bytes, wanted: Bytes, ggml_type: int, start: int) -> None:
    if made.tobytes() == wanted.tobytes():
        return
    other = (made != wanted).reshape(len(made), -1, found.block_bytes).any(axis=-1)
    rows, blocks = np.nonzero(other)
    if found.first is None:
        found.first = (start + int(rows[0]), int(blocks[0]))
    found.n_differing += int(other.sum())
    with np.errstate(all="ignore"):
        a, b = (dequantize_rows(raw, ggml_type).astype(np.float64) for raw in (made, wanted))
        found.error += float(np.square(b - a).sum())
        found.norm += float(np.square(a).sum())
