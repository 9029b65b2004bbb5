"""Loops of ``kernels.c`` that read their values once, where NumPy makes a pass for each operation.

``hatch_build.py`` compiles them when the package is built. Without a C compiler and in the wheel
for all platforms there are none: each function then says so, and its callers compute in NumPy.
Arrays that a loop does not take are NumPy's too: rows must hold contiguous float32.
"""

from __future__ import annotations

import ctypes
import struct
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import ggufnorm.core as _package

Array = NDArray[np.float32]
Sums = NDArray[np.float64]

_FOLDER = _package.__path__[0]

LIBRARY = "libkernels.so"
"""The file beside this one, of that name on all platforms."""

_VERSION = 2
"""Of ``kernels.c``: a library that says another one was left by another version."""

_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64
_ROWS = [_POINTER, _COUNT]
"""Where rows begin, and how many values they lie apart."""
_SIZES = [_COUNT, _COUNT]

_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "sum_pairs": (None, [_POINTER, _POINTER, *_SIZES, _POINTER, _POINTER, _POINTER]),
    "sum_columns": (None, [*_ROWS, *_ROWS, *_SIZES, _POINTER, _POINTER]),
    "below_16": (ctypes.c_int, [_POINTER, _COUNT, _COUNT, ctypes.c_uint16]),
    "below_32": (ctypes.c_int, [_POINTER, _COUNT, ctypes.c_uint32]),
    "skip_strings": (_COUNT, [_POINTER, _COUNT, _POINTER, _COUNT]),
    "join_strings": (_COUNT, [_POINTER, *3 * [_COUNT], _POINTER]),
    "sum_files": (_COUNT, [*4 * [_POINTER], *_SIZES, _POINTER, _POINTER, _POINTER, _COUNT]),
    "scan": (ctypes.c_int, [_POINTER, _POINTER, _COUNT, _POINTER, _POINTER, _COUNT]),
}


class Peak(NamedTuple):
    """The largest magnitude in some rows.

    Attributes:
        value: 0 where no value is another number.
        row: the first in which it stands.
    """

    value: float
    row: int


class PairSums(NamedTuple):
    """Sums over all rows, with ``d = q - r``.

    Attributes:
        dd: ``Σ d²``.
        dr: ``Σ d·r``.
        rr: ``Σ r²``.
        doubtful: rows that have to be summed again; see :class:`~ggufnorm.core.row_dots.RowDots`.
        d: the largest ``|d|``; a NaN does not count.
        r: the largest ``|r|``.
        q: the largest ``|q|``.
    """

    dd: float
    dr: float
    rr: float
    doubtful: int
    d: Peak
    r: Peak
    q: Peak


_TOTALS = struct.Struct("=dddq" + 3 * "dq")
"""``totals`` of ``kernels.c``."""


class Stored(NamedTuple):
    """Rows of values as they are stored.

    Attributes:
        data: ``(rows, …)``, each row contiguous.
        kind: of :data:`KINDS`.
        columns: values of a row.
        convert: address of a function of ggml's, ``to_float`` of ``struct ggml_type_traits``;
            0 unless ``kind`` is ``OTHER``.
    """

    data: NDArray[Any]
    kind: str
    columns: int
    convert: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Of the values."""
        return len(self.data), self.columns


KINDS = ("F32", "F16", "BF16", "OTHER")
"""How values may be stored, as ``kernels.c`` numbers it."""


class _Side(ctypes.Structure):
    """``rows_of_values`` of ``kernels.c``."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("row_bytes", ctypes.c_int64),
        ("kind", ctypes.c_int64),
        ("convert", ctypes.c_void_p),
    )


def _side(rows: Array | Stored) -> _Side | None:
    """Rows for a loop; None for those that it does not take."""
    if isinstance(rows, Stored):
        data, kind, convert = rows.data, KINDS.index(rows.kind), rows.convert
    elif _are_rows(rows):
        data, kind, convert = rows, 0, 0
    else:
        return None
    return _Side(data.__array_interface__["data"][0], data.strides[0], kind, convert)


@cache
def library() -> Any:
    """The compiled loops, None where there are none."""
    try:
        found = ctypes.CDLL(f"{_FOLDER}/{LIBRARY}")
        if found.ggufnorm_kernels_version() != _VERSION:
            return None
        for name, (result, arguments) in _FUNCTIONS.items():
            function = found[f"ggufnorm_{name}"]
            function.restype, function.argtypes = result, arguments
            setattr(found, name, function)
    except (OSError, AttributeError):
        return None
    return found


def _rows(rows: NDArray[Any]) -> tuple[int, int]:
    return rows.__array_interface__["data"][0], rows.strides[0] // rows.itemsize


def _are_rows(*arrays: NDArray[Any]) -> bool:
    """Whether arrays are rows of contiguous float32, whole values apart."""
    return all(
        a.ndim == 2 and a.dtype == np.float32 and a.strides[1] == 4 and a.strides[0] % 4 == 0
        for a in arrays
    )


def sum_pairs(
    r: Array | Stored, q: Array | Stored, dd: Sums | None = None, rr: Sums | None = None
) -> PairSums | None:
    """Sum ``d²``, ``d·r`` and ``r²`` over rows, with ``d = q - r``.

    Args:
        r: reference, ``(rows, channels)``.
        q: observation of the same shape.
        dd: gets ``Σ d²`` of each row if it is given, contiguous.
        rr: gets ``Σ r²`` of each row.

    Returns:
        None if nothing was computed.
    """
    lib = library()
    of_r, of_q = _side(r), _side(q)
    if lib is None or of_r is None or of_q is None:
        return None
    n_rows, columns = r.shape
    found = np.empty(_TOTALS.size, np.uint8)
    places = (None if v is None else _rows(v)[0] for v in (dd, rr, found))
    lib.sum_pairs(ctypes.byref(of_r), ctypes.byref(of_q), n_rows, columns, *places)
    sum_dd, sum_dr, sum_rr, doubtful, *peaks = _TOTALS.unpack(found.tobytes())
    largest = (Peak(*peaks[i : i + 2]) for i in (0, 2, 4))
    return PairSums(sum_dd, sum_dr, sum_rr, doubtful, *largest)


def sum_columns(r: Array, q: Array, rr: Sums, dd: Sums) -> bool:
    """Add ``r²`` and ``(q - r)²`` to the sums of each column.

    Args:
        r: reference, ``(rows, channels)``.
        q: observation of the same shape.
        rr: of each channel, contiguous.
        dd: of each channel, contiguous.

    Returns:
        Whether it was computed.
    """
    lib = library()
    if lib is None or not _are_rows(r, q):
        return False
    lib.sum_columns(*_rows(r), *_rows(q), *r.shape, _rows(rr)[0], _rows(dd)[0])
    return True


def below(bits: NDArray[np.unsignedinteger[Any]], infinity: int) -> bool | None:
    """Whether no exponent is the largest; None if nothing was computed.

    Args:
        bits: of floating-point numbers of 16 or, contiguous, of 32 bits; ``(n,)``.
        infinity: the bits of theirs.
    """
    lib = library()
    if lib is None or bits.ndim != 1:
        return None
    where, apart = _rows(bits) if len(bits) else (None, 1)
    if bits.itemsize == 2:
        return bool(lib.below_16(where, len(bits), apart, infinity))
    if bits.itemsize == 4 and apart == 1:
        return bool(lib.below_32(where, len(bits), infinity))
    return None


def skip_strings(buffer: bytearray, pos: int, n: int) -> tuple[int, int]:
    """Pass by strings, each so many bytes as the 64-bit number before them says.

    Args:
        buffer: holds them, one after the other; numbers are in this machine's order.
        pos: of the first.
        n: how many to pass by.

    Returns:
        How many lie wholly in the buffer, and where the next one begins.
    """
    at = ctypes.c_int64(pos)
    done = library().skip_strings(*_memory(buffer), ctypes.byref(at), n)
    return int(done), at.value


def split_strings(buffer: bytearray, pos: int, end: int, n: int) -> list[str] | None:
    """Strings as :func:`skip_strings` passes by, decoded together.

    Args:
        buffer: holds them, one after the other; numbers are in this machine's order.
        pos: where the first begins.
        end: where the last ends.
        n: how many they are.

    Returns:
        None if they are not told apart so: one has a NUL character or is not UTF-8, or they do
        not end there.
    """
    joined = bytearray(end - pos)
    size = library().join_strings(*_memory(buffer), pos, n, _memory(joined)[0])
    if size != end - pos - 7 * n:
        return None
    del joined[size - 1 :]
    try:
        return joined.decode("utf-8").split("\0")
    except UnicodeDecodeError:
        return None


class Position(NamedTuple):
    """Bytes of a file.

    Attributes:
        descriptor: of the open file.
        offset: of the first.
    """

    descriptor: int
    offset: int


class Numbers(NamedTuple):
    """Floating-point numbers that stand in each block of bytes.

    Attributes:
        block: bytes of one.
        width: bytes of a number: 2, or 4 if a block is a number.
        places: where in a block they begin.
        infinity: the bits of theirs, which are less than those of every NaN.
    """

    block: int
    width: int
    places: tuple[int, ...]
    infinity: int


class _Numbers(ctypes.Structure):
    """``numbers`` of ``kernels.c``."""

    _fields_ = (
        ("block", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("n_places", ctypes.c_int64),
        ("places", ctypes.POINTER(ctypes.c_int64)),
        ("infinity", ctypes.c_int64),
    )


def scan(
    of: Numbers, n: int, buffer: memoryview, file: Position, other: Position | None = None
) -> bool | None:
    """Read a part of a file, and look at it piece by piece while a processor's cache holds it.

    Args:
        of: the numbers in it.
        n: its bytes, which are whole blocks.
        buffer: memory for one piece, or for two.
        file: where it begins.
        other: bytes that should be the same.

    Returns:
        Whether no exponent is the largest and the bytes are the same; None if nothing was told:
        there are no loops, or something could not be read.
    """
    lib = library()
    if lib is None:
        return None
    places = (ctypes.c_int64 * len(of.places))(*of.places)
    numbers = _Numbers(of.block, of.width, len(of.places), places, of.infinity)
    at, beside = _position(file), None if other is None else _position(other)
    told = lib.scan(at, beside, n, ctypes.byref(numbers), *_memory(buffer))
    return None if told < 0 else bool(told)


class FileRows(NamedTuple):
    """Rows of values in a file, one after the other.

    Attributes:
        position: where they begin.
        row_bytes: bytes of one.
        kind: as in :class:`Stored`.
        convert: as in :class:`Stored`.
    """

    position: Position
    row_bytes: int
    kind: str
    convert: int = 0


def sum_files(
    r: FileRows, q: FileRows, columns: int, dd: Sums, rr: Sums, buffer: memoryview
) -> int | None:
    """Sum rows of two files as :func:`sum_pairs`, piece by piece while a cache holds them.

    Args:
        r: reference.
        q: observation.
        columns: values of a row.
        dd: gets ``Σ d²`` of each row, contiguous; so many rows are read.
        rr: gets ``Σ r²`` of each row.
        buffer: memory for the pieces.

    Returns:
        How many rows are doubtful; None if nothing was computed: there are no loops, or something
        could not be read.
    """
    lib = library()
    if lib is None:
        return None
    sides = (_Side(None, f.row_bytes, KINDS.index(f.kind), f.convert) for f in (r, q))
    arguments = (
        _position(r.position),
        _position(q.position),
        *map(ctypes.byref, sides),
        len(dd),
        columns,
    )
    told = int(lib.sum_files(*arguments, _rows(dd)[0], _rows(rr)[0], *_memory(buffer)))
    return None if told < 0 else told


def _position(position: Position) -> Any:
    return (ctypes.c_int64 * 2)(*position)


def _memory(buffer: memoryview | bytearray) -> tuple[Any, int]:
    return (ctypes.c_char * len(buffer)).from_buffer(buffer), len(buffer)
