"""The header of a GGUF file, walked once.

Every count, length and offset is checked against the file's size before it is used. What is
refused, and where that is not what llama.cpp does, stands in :mod:`ggufnorm.formats.gguf`.

Layout (``ggml/include/gguf.h``): magic ``GGUF``, version u32, tensor count u64, metadata
count u64, the metadata (key, type, value), the tensor infos (name, dimensions, type,
offset), padding to ``general.alignment``, tensor data.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import repeat
from math import prod
from operator import attrgetter, length_hint
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFValueType

from ggufnorm.errors import GGUFError, TensorDataError
from ggufnorm.formats.storage import LocalStorage, Storage, checked

ByteOrder = Literal["<", ">"]
"""Little or big endian, as the struct module and NumPy write it."""

Value = bool | int | float | str | list["Value"]
"""A metadata value as Python sees it."""

_SCALARS: dict[int, np.dtype[Any]] = {
    int(kind): np.dtype(scalar) for kind, scalar in GGUFReader.gguf_scalar_to_np.items()
}
_STRING, ARRAY = int(GGUFValueType.STRING), int(GGUFValueType.ARRAY)
_UINT32 = int(GGUFValueType.UINT32)
# The fewest bytes that a value of each type takes.
_SMALLEST = {kind: scalar.itemsize for kind, scalar in _SCALARS.items()} | {_STRING: 8, ARRAY: 12}
_SMALLEST_METADATA = 8 + 1 + 4 + 1  # key, type, value
_SMALLEST_TENSOR = 8 + 4 + 4 + 8  # name, number of dimensions, type, offset

_TYPES: dict[int, tuple[str, int, int]] = {
    int(kind): (kind.name, *GGML_QUANT_SIZES[kind])
    for kind in GGMLQuantizationType
    if kind in GGML_QUANT_SIZES
}
"""ggml's number of a tensor type to its name and the elements and bytes of one block."""

_DEFAULT_ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT in ggml/include/gguf.h
_MAX_DIMS = 4  # GGML_MAX_DIMS in ggml/include/ggml.h
_MAX_NAME = 65_535  # longest key that the format allows
_MAX_NESTING = 8
_MAX_QUOTED = 64
_MAX_ELEMENTS = 2**60 - 1  # as many float64 can still be addressed
_FIRST_READ = 1 << 16
"""Bytes of the first read of a header that is not on this machine."""
_SPARE = 1 << 17
"""Bytes that a further read may take too many, beyond a fifth of what is surely needed."""
_MAX_FETCHED = 1 << 28
"""Most bytes that are fetched for one header that is not on this machine."""


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


@dataclass(frozen=True)
class Header:
    """What a header says. ``decode`` is :class:`Metadata`'s."""

    version: int
    byte_order: ByteOrder
    alignment: int
    n_bytes: int
    metadata_at: dict[str, tuple[int, int]]
    decode: Callable[[int, int, str], Value]
    tensors: dict[str, Tensor]


def read_header(storage: Storage) -> Header:
    """Read a growing front part of the file until the whole header is in it."""
    size = storage.size
    n = size if isinstance(storage, LocalStorage) else min(size, _FIRST_READ)
    front = _Front(storage.name, _read(storage, 0, n), size)
    while True:
        try:
            return _parse(front)
        except _MoreNeededError as more:
            front = _longer(front, storage, more.n_bytes)


def _longer(front: _Front, storage: Storage, needed: int) -> _Front:
    if needed > _MAX_FETCHED:
        raise GGUFError(
            front.path,
            needed,
            "header",
            f"it goes on after {_MAX_FETCHED >> 20} MiB, more than is fetched"
            " (is it damaged? if not, download the file first)",
        )
    have = len(front.buffer)
    n = min(front.size, max(needed, min(4 * have, needed + needed // 5 + _SPARE, _MAX_FETCHED)))
    rest = _read(storage, have, n - have)
    return replace(front, buffer=b"".join((front.buffer, rest)))


def _read(storage: Storage, offset: int, n: int) -> bytes | memoryview:
    return checked(storage.read(offset, n), storage, offset, n)


class _MoreNeededError(Exception):
    """The header goes on behind the part that was read."""

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes


def _parse(front: _Front) -> Header:
    """The header at the start of a file.

    Raises:
        GGUFError: it is not well-formed.
        _MoreNeededError: ``front`` is too short to tell.
    """
    start = _Cursor(front, 0)
    start.magic()
    version = start.integer("I", "version")
    order: ByteOrder = "<"
    # As gguf_init_from_reader: the low half of a version that is read the wrong way
    # round is zero.
    if version and version & 0xFFFF == 0:
        order, version = ">", int.from_bytes(version.to_bytes(4, "little"), "big")
    if version not in (2, 3):
        raise start.fail("version", f"version {version} is not 2 or 3", at=4)
    front = replace(front, order=order)

    cursor = _Cursor(front, start.pos)
    n_tensors = cursor.count("tensor count", smallest=_SMALLEST_TENSOR)
    n_metadata = cursor.count("metadata count", smallest=_SMALLEST_METADATA)
    metadata_at = cursor.metadata(n_metadata)
    alignment = _alignment(front, metadata_at)
    tensors = cursor.tensors(n_tensors, alignment)
    cursor.fetched(0)
    return Header(
        version=version,
        byte_order=order,
        alignment=alignment,
        n_bytes=cursor.pos,
        metadata_at=metadata_at,
        decode=lambda kind, at, field: _Cursor(front, at).value(kind, field),
        tensors=tensors,
    )


def _alignment(front: _Front, metadata_at: dict[str, tuple[int, int]]) -> int:
    key = "general.alignment"
    if key not in metadata_at:
        return _DEFAULT_ALIGNMENT
    kind, at = metadata_at[key]
    cursor = _Cursor(front, at)
    if kind != _UINT32:
        raise cursor.fail(value_of(key), "must be an unsigned 32-bit integer")
    value = cursor.integer("I", value_of(key))
    if value == 0 or value & (value - 1):
        raise cursor.fail(value_of(key), f"{value} is not a power of two", at)
    return value


@dataclass(frozen=True)
class _Front:
    """The front part of a file, or all of it.

    Attributes:
        path: what messages call the file.
        buffer: the bytes.
        size: of the whole file.
        order: byte order of its numbers.
    """

    path: str
    buffer: bytes | memoryview
    size: int
    order: ByteOrder = "<"


class _TensorInfo(NamedTuple):
    """A tensor as the header describes it: ``offset`` counts from the tensor data."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    ggml_type: int
    offset: int
    n_bytes: int
    at: int  # where the info stands


class _Cursor:
    """A place in a header, which moves on with everything that is read.

    Each step is checked against the size of the file, then against what of it is here.
    """

    def __init__(self, front: _Front, pos: int) -> None:
        self.front = front
        self.pos = pos

    def fail(self, field: str, problem: str, at: int | None = None) -> GGUFError:
        return GGUFError(self.front.path, self.pos if at is None else at, field, problem)

    def misplaced(self, t: _TensorInfo, problem: str) -> TensorDataError:
        field = f"tensor {_quoted(t.name)}"
        return TensorDataError(self.front.path, t.at, field, problem, t.name)

    def need(self, n: int, field: str) -> None:
        """Check that ``n`` more bytes lie in the file."""
        left = self.front.size - self.pos
        if n > left:
            raise self.fail(field, f"needs {n} bytes, but the file ends {left} bytes on")

    def fetched(self, n: int) -> None:
        """Ask for a longer front part unless it holds the next ``n`` bytes."""
        if self.pos + n > len(self.front.buffer):
            raise _MoreNeededError(self.pos + n)

    def numbers(self, codes: str, field: str) -> tuple[int, ...]:
        """Integers of the struct module's ``codes``."""
        layout = self.front.order + codes
        n = struct.calcsize(layout)
        self.need(n, field)
        self.fetched(n)
        found = struct.unpack_from(layout, self.front.buffer, self.pos)
        self.pos += n
        return found

    def integer(self, code: str, field: str) -> int:
        return self.numbers(code, field)[0]

    def count(self, field: str, smallest: int) -> int:
        """A u64 that counts things of at least ``smallest`` bytes each."""
        n = self.integer("Q", field)
        self.check_count(n, smallest, field, self.pos - 8)
        return n

    def check_count(self, n: int, smallest: int, field: str, at: int) -> None:
        left = self.front.size - self.pos
        if n * smallest > left:
            raise self.fail(field, f"{n} cannot fit in the {left} bytes to the file's end", at)

    def magic(self) -> None:
        n = min(4, self.front.size)
        self.fetched(n)
        found = bytes(self.front.buffer[:n])
        if found != b"GGUF":
            raise self.fail("magic", f"this is not a GGUF file (it begins with {found!r})")
        self.pos = n

    def text(self, n: int, field: str) -> str:
        """The next ``n`` bytes, which lie in the file."""
        self.fetched(n)
        try:
            text = str(self.front.buffer[self.pos : self.pos + n], "utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(field, "is not valid UTF-8", self.pos + error.start) from None
        self.pos += n
        return text

    def name(self, field: str) -> str:
        """A metadata key or a tensor's name."""
        at = self.pos
        n = self.count(f"length of {field}", smallest=1)
        if n > _MAX_NAME:
            raise self.fail(f"length of {field}", f"{n} is more than {_MAX_NAME}", at)
        name = self.text(n, field)
        if "\0" in name:
            raise self.fail(field, f"{_quoted(name)} holds a NUL character", at)
        return name

    def metadata(self, n: int) -> dict[str, tuple[int, int]]:
        """The type and offset of each of ``n`` values."""
        found: dict[str, tuple[int, int]] = {}
        for i in range(n):
            at = self.pos
            key = self.name(f"metadata key {i}")
            if not key:
                raise self.fail(f"metadata key {i}", "is empty", at)
            if key in found:
                raise self.fail(f"metadata key {i}", f"{_quoted(key)} stands twice", at)
            field = value_of(key)
            kind = self.integer("I", field)
            found[key] = kind, self.pos
            self.skip(kind, field)
        return found

    def skip(self, kind: int, field: str, depth: int = 0) -> None:
        """Pass by a value."""
        if kind in _SCALARS:
            n = _SMALLEST[kind]
            self.need(n, field)
            self.pos += n
        elif kind == _STRING:
            n = self.count(field, smallest=1)
            self.pos += n
        elif kind == ARRAY:
            self.skip_array(field, depth)
        else:
            raise self.fail(field, f"unknown value type {kind}", self.pos - 4)

    def skip_array(self, field: str, depth: int) -> None:
        kind, n = self.array_head(field, depth)
        if kind in _SCALARS:
            self.pos += n * _SMALLEST[kind]
        elif kind == _STRING:
            self.skip_strings(n, field)
        else:
            for _ in repeat(None, n):
                self.skip_array(field, depth + 1)

    def array_head(self, field: str, depth: int) -> tuple[int, int]:
        """Type and number of an array's elements, of which at least the smallest fit."""
        at = self.pos
        if depth == _MAX_NESTING:
            raise self.fail(field, f"arrays are nested more than {_MAX_NESTING} deep")
        kind, n = self.numbers("IQ", field)
        smallest = _SMALLEST.get(kind)
        if smallest is None:
            raise self.fail(field, f"unknown element type {kind}", at)
        self.check_count(n, smallest, field, at + 4)
        return kind, n

    def skip_strings(self, n: int, field: str) -> None:
        # The hot loop of a large vocabulary: neither a method call nor a comparison per
        # string. unpack_from itself refuses to read behind the buffer.
        unpack, buffer = struct.Struct(self.front.order + "Q").unpack_from, self.front.buffer
        last = pos = self.pos
        to_come = repeat(None, n)
        complete = False
        with suppress(struct.error, OverflowError):
            for _ in to_come:
                (length,) = unpack(buffer, pos)
                last, pos = pos, pos + 8 + length
            complete = pos <= self.front.size
        self.pos = pos if pos <= self.front.size else last
        if not complete:
            if pos + 8 <= self.front.size:  # each string to come has a length at least
                lengths = 8 + 8 * length_hint(to_come)
                self.fetched(min(lengths, self.front.size - pos))
            # The checked way says what is wrong, or that more must be fetched.
            self.count(f"a string of the {field}", smallest=1)

    def value(self, kind: int, field: str, depth: int = 0) -> Value:
        """A value, decoded."""
        if kind in _SCALARS:
            return self.scalars(kind, 1, field)[0]
        if kind == _STRING:
            return self.text(self.count(field, smallest=1), field)
        kind, n = self.array_head(field, depth)
        if kind in _SCALARS:
            return self.scalars(kind, n, field)
        return [self.value(kind, field, depth + 1) for _ in repeat(None, n)]

    def scalars(self, kind: int, n: int, field: str) -> list[Value]:
        scalar = _SCALARS[kind].newbyteorder(self.front.order)
        n_bytes = n * scalar.itemsize
        self.need(n_bytes, field)
        self.fetched(n_bytes)
        found = np.frombuffer(self.front.buffer, scalar, n, self.pos).tolist()
        self.pos += n_bytes
        return cast("list[Value]", found)

    def tensors(self, n: int, alignment: int) -> dict[str, Tensor]:
        """Where each of ``n`` tensors lies, checked against the file and one another."""
        infos: dict[str, _TensorInfo] = {}
        for i in range(n):
            info = self.tensor_info(i, alignment)
            if info.name in infos:
                raise self.fail(
                    f"name of tensor {i}", f"{_quoted(info.name)} stands twice", info.at
                )
            infos[info.name] = info
        data = -(-self.pos // alignment) * alignment
        self.check_places(infos.values(), data)
        return {
            t.name: Tensor(t.name, t.shape, t.dtype, t.ggml_type, data + t.offset, t.n_bytes)
            for t in infos.values()
        }

    def tensor_info(self, i: int, alignment: int) -> _TensorInfo:
        at = self.pos
        name = self.name(f"name of tensor {i}")
        field = f"tensor {_quoted(name)}"
        n_dims = self.integer("I", f"number of dimensions of {field}")
        if n_dims > _MAX_DIMS:
            raise self.fail(
                f"number of dimensions of {field}",
                f"{n_dims} is more than {_MAX_DIMS}",
                self.pos - 4,
            )
        shape_at = self.pos
        type_at = shape_at + 8 * n_dims
        *dims, ggml_type, offset = self.numbers(f"{n_dims}QIQ", field)
        shape = tuple(dims) or (1,)
        # A zero does not excuse the other dimensions: no array could have them.
        if prod(d or 1 for d in shape) > _MAX_ELEMENTS:
            raise self.fail(f"shape of {field}", f"{shape} is too large", shape_at)
        if ggml_type not in _TYPES:
            raise self.fail(
                f"type of {field}",
                f"unknown tensor type {ggml_type} (a newer gguf package may know it)",
                type_at,
            )
        dtype, block, block_bytes = _TYPES[ggml_type]
        if shape[0] % block:
            raise self.fail(
                f"shape of {field}",
                f"rows of {shape[0]} do not divide into {dtype} blocks of {block}",
                shape_at,
            )
        if offset % alignment:
            raise self.fail(
                f"offset of {field}",
                f"{offset} is not a multiple of the alignment, {alignment}",
                type_at + 4,
            )
        n_bytes = prod(shape) // block * block_bytes
        return _TensorInfo(name, shape, dtype, ggml_type, offset, n_bytes, at)

    def check_places(self, infos: Iterable[_TensorInfo], data: int) -> None:
        """Check that the tensors' data lies in the file and nowhere twice."""
        end, before = 0, ""
        for t in sorted(infos, key=attrgetter("offset", "n_bytes")):
            missing = data + t.offset + t.n_bytes - self.front.size
            if missing > 0:
                raise self.misplaced(
                    t, f"its data ends {missing} bytes after the end of the file (is it truncated?)"
                )
            if t.n_bytes and t.offset < end:
                raise self.misplaced(t, f"its data overlaps that of {_quoted(before)}")
            if t.n_bytes:
                end, before = t.offset + t.n_bytes, t.name


def value_of(key: str) -> str:
    """What messages call the value of a metadata key."""
    return f"value of {_quoted(key)}"


def _quoted(name: str) -> str:
    """A name on one line of a message, whatever stands in it."""
    return repr(name if len(name) <= _MAX_QUOTED else name[: _MAX_QUOTED - 1] + "…")
