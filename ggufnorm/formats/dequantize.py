"""Tensor data to float32: by ggml where llama.cpp is installed, else by gguf-py.

Both give the same bits (``tests/unit/formats/test_dequantize.py``). ggml is faster, for Q4_K by a
factor of ten and more (``benchmarks/bench_diff.py``), and lets other threads run meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.floats import F16_INFINITY, below, from_bf16, from_f16
from ggufnorm.errors import InputError, TensorTypeError
from ggufnorm.formats import ggml
from ggufnorm.formats.gguf_constants import GGML_QUANT_SIZES, GGMLQuantizationType
from ggufnorm.formats.gguf_tensors import Tensor
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.storage import Extent, Scratch

if TYPE_CHECKING:
    from ggufnorm.core import kernels

# What NumPy reads by itself: a cast, no block of several values.
_PLAIN = {"F32": "f4", "F64": "f8", "I8": "i1", "I16": "i2", "I32": "i4", "I64": "i8"}
_WORD = {"F16": "u2", "BF16": "u2", **_PLAIN}
"""Types without blocks: their bytes can be put in this machine's order."""

_NO_BLOCKS = frozenset(_PLAIN) - {"F32"}
"""Types that only NumPy reads."""

_RAW = Scratch()
"""What is read to be converted at once."""

_MANY = 1 << 15
"""Halves that it pays to open ggml's library for."""


def from_halves(
    bits: NDArray[np.uint16], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """As :func:`~ggufnorm.core.floats.from_f16`, by ggml where that is faster."""
    convert = ggml.half_converter() if bits.size >= _MANY else None
    if convert is None or not bits.flags.c_contiguous:
        return from_f16(bits, out)
    values = np.empty(bits.shape, np.float32) if out is None else out
    if not values.flags.c_contiguous:
        return from_f16(bits, out)
    if not below(bits.reshape(-1), F16_INFINITY):
        return from_f16(bits, values)  # which keeps the bits of every NaN
    convert(bits.view(np.uint8), values)
    return values


_HALVES = {"F16": from_halves, "BF16": from_bf16}


_MAX_NORM = 1 << 24
"""Values of one norm at most; the largest have some 100,000."""
_MAX_NORMS = 1 << 28
"""Values of all norms of a file at most: a gigabyte, held in memory."""
_PIECE = 1 << 18
"""Values that are read at a time of a tensor that is read as a whole."""
_MAX_ROW = 1 << 28
"""Values of one row at most, which is read as a whole."""


def read_norms(
    file: ModelFile, names: Iterable[str]
) -> tuple[dict[str, NDArray[np.float32]], dict[str, str]]:
    """The values of norms, fetched together; of a size that norms have.

    Returns:
        Name to values, and name to why they cannot be read.

    Raises:
        KeyError: there is no such tensor.
        InputError: their bytes cannot be had.
    """
    values: dict[str, NDArray[np.float32]] = {}
    unreadable: dict[str, str] = {}
    wanted: list[str] = []
    left = _MAX_NORMS
    for name in names:
        n = file.tensors[name].n_elements
        if n > min(_MAX_NORM, left):
            unreadable[name] = f"{file.path}: {name}: {n:,} values are more than norms have"
        else:
            wanted.append(name)
            left -= n
    for name, raw in file.read_many(wanted).items():
        try:
            values[name] = read_tensor(file, name, raw)
        except InputError as error:
            unreadable[name] = str(error)
    return values, unreadable


def read_tensor(
    file: ModelFile, name: str, raw: NDArray[np.uint8] | None = None
) -> NDArray[np.float32]:
    """A tensor's values as float32, whatever its type.

    Args:
        file: the model.
        name: the tensor's.
        raw: its bytes, if they have been read already.

    Returns:
        The values in NumPy's order: the reverse of ggml's ``ne``, rows on the last axis.

    Raises:
        KeyError: there is no such tensor.
        TensorTypeError: its type cannot be read.
    """
    tensor = file.tensors[name]
    rows = n_rows(file, name)
    if raw is not None or tensor.shape[0] > _PIECE:
        raw = file.read_bytes(name) if raw is None else raw
        return _values(file, tensor, raw, rows).reshape(tensor.shape[::-1])
    found = np.empty((rows, tensor.shape[0]), np.float32)
    # Piece by piece, which a processor's cache holds until they are converted.
    step = max(1, _PIECE // max(1, tensor.shape[0]))
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        read_rows(file, name, start, stop, found[start:stop])
    return found.reshape(tensor.shape[::-1])


def n_rows(file: ModelFile, name: str) -> int:
    """How many rows of ``ne[0]`` values a tensor has: the product of its other dimensions."""
    tensor = file.tensors[name]
    return tensor.n_elements // tensor.shape[0] if tensor.shape[0] else 0


def read_rows(
    file: ModelFile,
    name: str,
    start: int = 0,
    stop: int | None = None,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Some rows of a tensor as float32; nothing else of it is read or kept.

    Args:
        file: may be read by several threads.
        name: of the tensor.
        start: first row, all dimensions but the first counted through.
        stop: the row after the last; None for all that follow.
        out: where to put them, C-contiguous.

    Returns:
        ``(stop - start, ne[0])``, a copy.

    Raises:
        KeyError: there is no such tensor.
        TensorTypeError: its type cannot be read, or its rows are too long to be.
    """
    tensor = file.tensors[name]
    raw = read_raw_rows(file, tensor, start, stop, _RAW)
    return _values(file, tensor, raw, len(raw), out)


def extent_of_rows(file: ModelFile, name: str, start: int, stop: int) -> Extent:
    """Where the bytes of some rows of a tensor are; see :func:`read_rows`."""
    whole = file.extent(name)
    size = whole.n // max(1, n_rows(file, name))
    return whole.part(start * size, (stop - start) * size)


def pick_rows(file: ModelFile, name: str, rows: Sequence[int]) -> NDArray[np.float32]:
    """Single rows of a tensor, in the order given; as :func:`read_rows`."""
    tensor = file.tensors[name]
    raw = [read_raw_rows(file, tensor, row, row + 1) for row in rows]
    return _values(file, tensor, np.concatenate(raw), len(rows))


def read_stored_rows(
    file: ModelFile, name: str, start: int, stop: int, scratch: Scratch
) -> kernels.Stored | None:
    """Some rows of a tensor for loops that convert them on the way.

    Args:
        file: may be read by several threads.
        name: of the tensor.
        start: first row.
        stop: the row after the last.
        scratch: where they are put, until the next are.

    Returns:
        None where there are no such loops, or they do not read the type.

    Raises:
        KeyError: there is no such tensor.
        TensorTypeError: its rows are too long to be read.
    """
    from ggufnorm.core import kernels  # no business of a mere inspect

    how = how_stored(file, name)
    if how is None:
        return None
    tensor = file.tensors[name]
    raw = read_raw_rows(file, tensor, start, stop, scratch)
    return kernels.Stored(raw, how[0], tensor.shape[0], how[1])


def how_stored(file: ModelFile, name: str) -> tuple[str, int] | None:
    """How loops convert a tensor's rows: ``kind`` and ``convert`` of Stored in core/kernels.py.

    Returns:
        None where there are no such loops, or they do not read the type.

    Raises:
        KeyError: there is no such tensor.
    """
    from ggufnorm.core import kernels  # no business of a mere inspect

    tensor = file.tensors[name]
    kind = tensor.dtype if tensor.dtype in kernels.KINDS else "OTHER"
    if kernels.library() is None or file.byte_order == ">" or tensor.dtype in _NO_BLOCKS:
        return None
    convert = ggml.converter_address(tensor.ggml_type) if kind == "OTHER" else 0
    return None if convert is None else (kind, convert)


def read_raw_rows(
    file: ModelFile,
    tensor: Tensor,
    start: int = 0,
    stop: int | None = None,
    scratch: Scratch | None = None,
) -> NDArray[np.uint8]:
    """The bytes of some rows of a tensor; see :func:`read_rows`.

    Returns:
        ``(stop - start, bytes of a row)``, as they stand in the file; in ``scratch`` if that is
        given, where the next that is read overwrites them.
    """
    if tensor.shape[0] > _MAX_ROW:
        raise TensorTypeError(f"{file.path}: {tensor.name}: rows of {tensor.shape[0]:,} values")
    rows = tensor.n_elements // tensor.shape[0] if tensor.shape[0] else 0
    n, size = (rows if stop is None else stop) - start, tensor.n_bytes // max(1, rows)
    into = None if scratch is None else scratch.of(n * size)
    raw = file.read_part(tensor.name, start * size, n * size, into)
    return np.frombuffer(raw, np.uint8).reshape(n, size)


def _values(
    file: ModelFile,
    tensor: Tensor,
    raw: NDArray[np.uint8],
    n: int,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """``n`` rows of a tensor from their raw bytes."""
    name = tensor.name
    if raw.size == 0:
        return np.empty((n, tensor.shape[0]), np.float32)
    if file.byte_order == ">":
        word = _WORD.get(tensor.dtype)
        if word is None:
            raise TensorTypeError(
                f"{file.path}: {name}: big-endian {tensor.dtype} cannot be read:"
                " convert the file with gguf-py's gguf_convert_endian.py"
            )
        raw = raw.view(f">{word}").astype(word).view(np.uint8)
    try:
        return dequantize_rows(raw.reshape(n, -1), tensor.ggml_type, out)
    except NotImplementedError:
        raise TensorTypeError(
            f"{file.path}: {name}: neither llama.cpp nor gguf-py can read {tensor.dtype} here;"
            " try a newer gguf or llama-cpp-python"
        ) from None


def dequantize_rows(
    raw: NDArray[np.uint8], ggml_type: int, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Rows of raw bytes, in this machine's byte order, to rows of values.

    Args:
        raw: ``(…, bytes of a row)``.
        ggml_type: ggml's number of the type.
        out: where to put the values, C-contiguous.

    Returns:
        ``(…, values of a row)``, a copy.

    Raises:
        NotImplementedError: neither ggml nor gguf-py knows how.
    """
    kind = GGMLQuantizationType(ggml_type)
    if out is None:
        block, n_bytes = GGML_QUANT_SIZES[kind]
        out = np.empty((*raw.shape[:-1], raw.shape[-1] // n_bytes * block), np.float32)
    plain = _PLAIN.get(kind.name)
    convert = None if plain or kind.name in _HALVES else ggml.converter(ggml_type)
    with np.errstate(over="ignore", invalid="ignore"):
        if plain:
            out[...] = np.ascontiguousarray(raw).view(plain)
        elif kind.name in _HALVES:
            _HALVES[kind.name](np.ascontiguousarray(raw).view(np.uint16), out)
        elif convert is not None:
            convert(np.ascontiguousarray(raw), out)
        else:
            from gguf.quants import dequantize  # only where there is no ggml

            out[...] = dequantize(raw, kind)
    return out
