"""The tensors that a GGUF header tells of."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import ItemsView, Iterator, Mapping, Sequence, ValuesView
from dataclasses import dataclass
from math import prod
from struct import unpack_from
from typing import NamedTuple, overload

import numpy as np

from ggufnorm.errors import TensorDataError
from ggufnorm.formats.gguf_constants import GGML_QUANT_SIZES, GGMLQuantizationType
from ggufnorm.formats.gguf_cursor import Cursor, Front, quoted

_TYPES: dict[int, tuple[str, int, int]] = {
    int(kind): (kind.name, *GGML_QUANT_SIZES[kind])
    for kind in GGMLQuantizationType
    if kind in GGML_QUANT_SIZES
}
"""ggml's number of a tensor type to its name and the elements and bytes of one block."""

_MAX_DIMS = 4  # GGML_MAX_DIMS in ggml/include/ggml.h
_MAX_NAME = 4096
"""Longest name of a tensor, in bytes: llama.cpp takes 63 (GGML_MAX_NAME)."""
_MAX_ELEMENTS = 2**60 - 1  # as many float64 can still be addressed


_NUMBER = 0xFFFF_FFFF
_RECENT = 2048
"""Tensors that are kept once they were asked for: most models have fewer."""
_WALKED = 8
"""Tensors of which the place of one is kept."""
_AT_ONCE = 1 << 16
"""Names that are compared at once."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor lies in its file, and what it is.

    Attributes:
        name: as in the file.
        shape: ggml's ``ne`` without the ones at its end that the file leaves out:
            ``shape[0]`` is the length of a row. ``(1,)`` if the file names no dimension.
        dtype: ggml type name in upper case, for example ``Q4_K``.
        ggml_type: ggml's number of that type (``enum ggml_type``).
        offset: of the first byte, from the start of the file.
        n_bytes: size of the data; 0 if a dimension is.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    ggml_type: int
    offset: int
    n_bytes: int

    @property
    def n_elements(self) -> int:
        """Product of the dimensions."""
        return prod(self.shape)


class Places(Sequence[int]):
    """Where in a header the description of each tensor begins, in file order.

    Kept is every eighth, half a byte a tensor; to the others it is walked from those.

    Args:
        front: of the file.
    """

    def __init__(self, front: Front) -> None:
        self._front, self._n = front, 0
        self._kept = array("I")

    def append(self, place: int) -> None:
        """Add the next tensor's."""
        if self._n % _WALKED == 0:
            self._kept.append(place)
        self._n += 1

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, i: int) -> int: ...
    @overload
    def __getitem__(self, i: slice) -> list[int]: ...
    def __getitem__(self, i: int | slice) -> int | list[int]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(self._n))]
        if not -self._n <= i < self._n:
            raise IndexError(i)
        kept, further = divmod(i % self._n, _WALKED)
        place, buffer, order = self._kept[kept], self._front.buffer, self._front.order
        for _ in range(further):  # a name, its dimensions, a type, an offset
            place += 8 + unpack_from(order + "Q", buffer, place)[0]
            place += 4 + 8 * unpack_from(order + "I", buffer, place)[0] + 12
        return place


class TensorTable(Mapping[str, Tensor]):
    """Name to :class:`Tensor`, in file order.

    A header may tell of a million tensors, so few are kept (:data:`_RECENT`): each is read off
    the header when it is asked for. Kept are the places in the header and, sorted, a hash of each
    name with the tensor's number: 8.5 bytes a tensor.

    Args:
        front: of the file.
        places: where in it the description of each tensor begins.
        keys: of each what :func:`_key` gives; will be sorted.
        data: where the tensors' data begins.
    """

    def __init__(self, front: Front, places: Places, keys: array[int], data: int) -> None:
        self._front, self._data = front, data
        self._places = places
        np.asarray(keys).sort()
        self._keys = keys
        self._recent: dict[str | int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return map(self._name, range(len(self)))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(name) is not None

    def __getitem__(self, name: str) -> Tensor:
        found = self._recent.get(name)
        if found is not None:
            return found
        i = self._find(name)
        if i is None:
            raise KeyError(name)
        return self.at(i)

    def values(self) -> ValuesView[Tensor]:
        """In file order, read one by one."""
        return _Values(self)

    def items(self) -> ItemsView[str, Tensor]:
        """In file order, read one by one."""
        return _Items(self)

    def at(self, i: int) -> Tensor:
        """The i-th tensor of the file."""
        found = self._recent.get(i)
        if found is None:
            found = self.keep(i, _read_info(Cursor(self._front, self._places[i]), i))
        return found

    def keep(self, i: int, t: _TensorInfo) -> Tensor:
        """The i-th tensor, which was just read, kept for a while."""
        place = self._data + t.offset
        found = Tensor(t.name, t.shape, t.dtype, t.ggml_type, place, t.n_bytes)
        if len(self._recent) >= 2 * _RECENT:
            self._recent = {}  # threads that hold the other may go on with it
        self._recent[i] = self._recent[t.name] = found
        return found

    @property
    def places(self) -> Places:
        """Where in the file the description of each tensor begins, in file order."""
        return self._places

    def first_repeated(self) -> int | None:
        """The first tensor that has the name of one before it."""
        keys, found = np.asarray(self._keys), []
        for start in range(0, len(keys), _AT_ONCE):
            hashes = keys[start : start + _AT_ONCE + 1] >> 32
            for k in np.flatnonzero(hashes[1:] == hashes[:-1]).tolist():
                i = self._keys[start + k + 1] & _NUMBER
                if self._find(self._name(i)) != i:
                    found.append(i)
        return min(found, default=None)

    def _name(self, i: int) -> str:
        if len(self) <= _RECENT:  # all are kept
            return self.at(i).name
        return Cursor(self._front, self._places[i]).name("")

    def _find(self, name: str) -> int | None:
        wanted = _key(name, 0)
        k = bisect_left(self._keys, wanted)
        while k < len(self._keys) and self._keys[k] >> 32 == wanted >> 32:
            i = self._keys[k] & _NUMBER
            if self._name(i) == name:
                return i
            k += 1
        return None


def _key(name: str, i: int) -> int:
    """Half of a name's hash, above the number of the tensor."""
    return (hash(name) & _NUMBER) << 32 | i


class _Values(ValuesView[Tensor]):
    _mapping: TensorTable

    def __iter__(self) -> Iterator[Tensor]:
        return map(self._mapping.at, range(len(self._mapping)))


class _Items(ItemsView[str, Tensor]):
    _mapping: TensorTable

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((t.name, t) for t in _Values(self._mapping))


def read_tensors(cursor: Cursor, n: int, alignment: int) -> TensorTable:
    """Where each of ``n`` tensors lies, checked against the file and one another.

    Raises:
        GGUFError: what the header says is impossible.
        TensorDataError: a tensor's data is not in the file, or lies where another's does.
    """
    places, keys = Places(cursor.front), array("Q")
    read: list[_TensorInfo] = []
    end, in_order = 0, True
    for i in range(n):
        places.append(cursor.pos)
        info = _read_info(cursor, i, alignment)
        keys.append(_key(info.name, i))
        if n <= _RECENT:
            read.append(info)
        in_order = in_order and info.offset >= end
        end = max(end, info.offset + info.n_bytes)
    data = -(-cursor.pos // alignment) * alignment
    table = TensorTable(cursor.front, places, keys, data)
    for i, info in enumerate(read):
        table.keep(i, info)
    twice = table.first_repeated()
    if twice is not None:
        name = table.at(twice).name
        raise cursor.fail(f"name of tensor {twice}", f"{quoted(name)} stands twice", places[twice])
    if not in_order or data + end > cursor.front.size:
        _check_places(cursor.front, table, places)
    return table


class _TensorInfo(NamedTuple):
    """A tensor as the header describes it: ``offset`` counts from the tensor data."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    ggml_type: int
    offset: int
    n_bytes: int


def _read_info(cursor: Cursor, i: int, alignment: int = 1) -> _TensorInfo:
    name = cursor.name(f"name of tensor {i}", _MAX_NAME)
    field = f"tensor {quoted(name)}"
    n_dims = cursor.integer("I", f"number of dimensions of {field}")
    if n_dims > _MAX_DIMS:
        raise cursor.fail(
            f"number of dimensions of {field}", f"{n_dims} is more than {_MAX_DIMS}", cursor.pos - 4
        )
    shape_at = cursor.pos
    type_at = shape_at + 8 * n_dims
    *dims, ggml_type, offset = cursor.numbers(f"{n_dims}QIQ", field)
    shape = tuple(dims) or (1,)
    # A zero does not excuse the other dimensions: no array could have them.
    if prod(d or 1 for d in shape) > _MAX_ELEMENTS:
        raise cursor.fail(f"shape of {field}", f"{shape} is too large", shape_at)
    if ggml_type not in _TYPES:
        raise cursor.fail(
            f"type of {field}",
            f"unknown tensor type {ggml_type} (a newer gguf package may know it)",
            type_at,
        )
    dtype, block, block_bytes = _TYPES[ggml_type]
    if shape[0] % block:
        raise cursor.fail(
            f"shape of {field}",
            f"rows of {shape[0]} do not divide into {dtype} blocks of {block}",
            shape_at,
        )
    if offset % alignment:
        raise cursor.fail(
            f"offset of {field}",
            f"{offset} is not a multiple of the alignment, {alignment}",
            type_at + 4,
        )
    return _TensorInfo(name, shape, dtype, ggml_type, offset, prod(shape) // block * block_bytes)


def _check_places(front: Front, table: TensorTable, places: Places) -> None:
    """Check that the tensors' data lies in the file and nowhere twice, in whatever order."""

    def misplaced(i: int, problem: str, whole: int | None = None) -> TensorDataError:
        name, at = table.at(i).name, places[i]
        return TensorDataError(front.path, at, f"tensor {quoted(name)}", problem, name, whole)

    n = len(table)
    sizes = np.fromiter((t.n_bytes for t in table.values()), np.uint64, n)
    offsets = np.fromiter((min(t.offset, 2**64 - 1) for t in table.values()), np.uint64, n)
    end, before = 0, 0
    for i in map(int, np.lexsort((sizes, offsets))):
        t = table.at(i)
        missing = t.offset + t.n_bytes - front.size
        if missing > 0:
            problem = f"its data ends {missing} bytes after the end of the file (is it truncated?)"
            raise misplaced(i, problem, max(t.offset + t.n_bytes for t in table.values()))
        if t.n_bytes and t.offset < end:
            raise misplaced(i, f"its data overlaps that of {quoted(table.at(before).name)}")
        if t.n_bytes:
            end, before = t.offset + t.n_bytes, i
