"""The header of a GGUF file, walked once.

Every count, length and offset is checked against the file's size before it is used. What is
refused, and where that is not what llama.cpp does, stands in :mod:`ggufnorm.formats.gguf`.

Layout (``ggml/include/gguf.h``): magic ``GGUF``, version u32, tensor count u64, metadata
count u64, the metadata (key, type, value), the tensor infos (name, dimensions, type,
offset), padding to ``general.alignment``, tensor data.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from operator import length_hint
from types import ModuleType
from typing import Any, cast

import numpy as np

from ggufnorm.core.printable import printable
from ggufnorm.errors import GGUFError, TensorDataError
from ggufnorm.formats.contents import words_for
from ggufnorm.formats.gguf_constants import GGUFValueType
from ggufnorm.formats.gguf_cursor import ByteOrder as ByteOrder
from ggufnorm.formats.gguf_cursor import Cursor, Front, quoted
from ggufnorm.formats.gguf_cursor import value_of as value_of
from ggufnorm.formats.gguf_tensors import Tensor as Tensor
from ggufnorm.formats.gguf_tensors import TensorTable, read_tensors
from ggufnorm.formats.storage import LocalStorage, Storage

Value = bool | int | float | str | list["Value"]
"""A metadata value as Python sees it."""

_SCALARS: dict[int, np.dtype[Any]] = {  # whose names are NumPy's, in capitals
    int(kind): np.dtype(kind.name.lower())
    for kind in GGUFValueType
    if kind not in (GGUFValueType.STRING, GGUFValueType.ARRAY)
}
_STRING, ARRAY = int(GGUFValueType.STRING), int(GGUFValueType.ARRAY)
_UINT32 = int(GGUFValueType.UINT32)
# The fewest bytes that a value of each type takes.
_SMALLEST = {kind: scalar.itemsize for kind, scalar in _SCALARS.items()} | {_STRING: 8, ARRAY: 12}
_SMALLEST_METADATA = 8 + 1 + 4 + 1  # key, type, value
_SMALLEST_TENSOR = 8 + 4 + 4 + 8  # name, number of dimensions, type, offset

_MAX_SHOWN = 40
_PEEK = 1 << 10
"""Bytes that tell what a file is that is no GGUF file."""
_DEFAULT_ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT in ggml/include/gguf.h
_MAX_NESTING = 8
_FIRST_READ = 1 << 16
"""Bytes of the first read of a header."""
_MAX_FETCHED = 1 << 28
"""Most bytes that are read for one header; the largest vocabularies take some 20 MB."""
_BLOCK = 1 << 18
"""Bytes in which strings are looked for at once: they stay in a core's cache."""
_WALKED = 4096
"""Strings that are walked one by one before others are looked for at once."""
_WORTH_WHILE = 1024
"""Strings passed by at once for which looking for them took less time than a walk."""
_MAX_DECODED = 1 << 22
"""Most elements of one array that become a list; the largest vocabularies have a tenth."""
_NATIVE = "<" if sys.byteorder == "little" else ">"


@dataclass(frozen=True)
class Header:
    """What a header says. ``values_at`` gives a cursor at a byte offset."""

    version: int
    byte_order: ByteOrder
    alignment: int
    n_bytes: int
    metadata_at: dict[str, tuple[int, int]]
    values_at: Callable[[int], Values]
    tensors: TensorTable


def read_header(storage: Storage) -> Header:
    """The header at the start of a file; of the file, little more than that is read.

    Raises:
        GGUFError: it is not well-formed.
        InputError: it cannot be read.
    """
    near = isinstance(storage, LocalStorage)
    front = Front(storage, _FIRST_READ, _MAX_FETCHED, near=near)
    start = Values(front, 0)
    start.magic()
    version = start.integer("I", "version")
    # As gguf_init_from_reader: the low half of a version that is read the wrong way
    # round is zero.
    if version and version & 0xFFFF == 0:
        front.order, version = ">", int.from_bytes(version.to_bytes(4, "little"), "big")
    if version not in (2, 3):
        raise start.fail("version", f"version {version} is not 2 or 3", at=4)

    cursor = Values(front, start.pos)
    n_tensors = cursor.count("tensor count", smallest=_SMALLEST_TENSOR)
    n_metadata = cursor.count("metadata count", smallest=_SMALLEST_METADATA)
    metadata_at = cursor.metadata(n_metadata)
    alignment = _alignment(front, metadata_at)
    try:
        tensors = read_tensors(cursor, n_tensors, alignment)
    except TensorDataError as error:
        raise _with_facts(error, front, metadata_at) from None
    cursor.fetched(0)
    return Header(
        version=version,
        byte_order=front.order,
        alignment=alignment,
        n_bytes=cursor.pos,
        metadata_at=metadata_at,
        values_at=partial(Values, front),
        tensors=tensors,
    )


def _with_facts(
    error: TensorDataError, front: Front, metadata_at: dict[str, tuple[int, int]]
) -> TensorDataError:
    """The error, with what the header says of the model that is not all there."""
    if error.whole is None:
        return error
    said = []
    for key, words in (("general.architecture", "{}"), (".block_count", "{} layers")):
        found = next((k for k in metadata_at if k == key or k.endswith(key)), None)
        kind, at = metadata_at.get(found or "", (ARRAY, 0))
        if found is not None and kind != ARRAY:
            with suppress(GGUFError):
                value = str(Values(front, at).value(kind, value_of(found)))
                said.append(words.format(printable(value, _MAX_SHOWN)))
    have, whole = _decimal(front.size), _decimal(error.whole)
    problem = f"{error.problem}: {have} of about {whole} are there"
    problem += f"; the header says {', '.join(said)}" if said else ""
    return TensorDataError(error.path, error.offset, error.field, problem, error.tensor)


def _decimal(n: int) -> str:
    """Bytes as downloads are shown: ``4.7 GB``."""
    for factor, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if n >= factor:
            return f"{n / factor:,.1f} {unit}"
    return f"{n} bytes"


def _alignment(front: Front, metadata_at: dict[str, tuple[int, int]]) -> int:
    key = "general.alignment"
    if key not in metadata_at:
        return _DEFAULT_ALIGNMENT
    kind, at = metadata_at[key]
    cursor = Cursor(front, at)
    if kind != _UINT32:
        raise cursor.fail(value_of(key), "must be an unsigned 32-bit integer")
    value = cursor.integer("I", value_of(key))
    if value == 0 or value & (value - 1):
        raise cursor.fail(value_of(key), f"{value} is not a power of two", at)
    return value


class Values(Cursor):
    """A cursor that knows metadata, which it passes by or decodes.

    Every method raises a :class:`GGUFError` where the header is not well-formed.
    """

    decoded = 0
    """Elements of the array that is being decoded."""

    def magic(self) -> None:
        """Pass by the first four bytes.

        Raises:
            GGUFError: they are not ``GGUF``.
        """
        n = min(4, self.front.size)
        self.fetched(n)
        found = bytes(self.front.buffer[:n])
        if found != b"GGUF":
            what = words_for(bytes(self.front.buffer[:_PEEK]))
            instead = f" but {what}" if what else ""
            raise self.fail("magic", f"this is not a GGUF file{instead} (it begins with {found!r})")
        self.pos = n

    def metadata(self, n: int) -> dict[str, tuple[int, int]]:
        """The type and offset of each of ``n`` values."""
        found: dict[str, tuple[int, int]] = {}
        for i in range(n):
            at = self.pos
            key = self.name(f"metadata key {i}")
            if not key:
                raise self.fail(f"metadata key {i}", "is empty", at)
            if key in found:
                raise self.fail(f"metadata key {i}", f"{quoted(key)} stands twice", at)
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
        """Pass by an array."""
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
        """Pass by ``n`` strings."""
        loops = self._loops_for(n)
        while n:
            if loops is not None:  # they pass by all that were read already
                many, self.pos = loops.skip_strings(self.front.buffer, self.pos, n)
            else:
                many = self.skip_short_strings(n)
            n -= many
            if n and (loops is not None or many < _WORTH_WHILE):
                n -= self.walk_strings(n, field, _WALKED if loops is None else 1)

    def _loops_for(self, n: int) -> ModuleType | None:
        """The module of compiled loops, if there are such and ``n`` strings are worth them."""
        if n <= _WALKED or self.front.order != _NATIVE:
            return None
        from ggufnorm.core import kernels  # no business of a file with few strings

        return None if kernels.library() is None else kernels

    def skip_short_strings(self, n: int) -> int:
        """Pass by many at once of ``n`` strings; returns how many.

        Of those that are shorter than 256 bytes the length is one byte and seven zeros, found
        by NumPy in a whole block. They are passed by as long as each ends where the next begins.
        """
        buffer, pos = self.front.buffer, self.pos
        if self.front.order == ">" or len(buffer) <= pos:
            return 0
        block = np.frombuffer(buffer, np.uint8, min(_BLOCK, len(buffer) - pos), pos)
        zeros = np.flatnonzero(block == 0)
        heads = zeros[:-6][zeros[6:] - zeros[:-6] == 6] - 1
        if not heads.size or heads[0] != 0:
            return 0
        ends = heads[:-1] + 8 + block[heads[:-1]]
        follows = ends == heads[1:]
        many = min(n, len(follows) if follows.all() else int(follows.argmin()))
        self.pos += int(heads[many])
        return many

    def raw(self, kind: int, field: str) -> bytes:
        """The bytes of a value, which is not decoded."""
        start = self.pos
        self.skip(kind, field)
        self.fetched(0)
        return bytes(self.front.buffer[start : self.pos])

    def walk_strings(self, n: int, field: str, most: int) -> int:
        """Pass by ``most`` of ``n`` strings, one by one; returns how many."""
        unpack, front = struct.Struct(self.front.order + "Q").unpack_from, self.front
        # Neither a method call nor a comparison per string: unpack_from itself refuses to
        # read behind the buffer.
        some = min(n, most)
        last = pos = self.pos
        to_come = repeat(None, some)
        buffer = front.buffer
        with suppress(struct.error, OverflowError):
            for _ in to_come:
                (length,) = unpack(buffer, pos)
                last, pos = pos, pos + 8 + length
            if pos <= front.size:
                self.pos = pos
                return some
        done = some - 1 - length_hint(to_come)
        self.pos = pos if pos <= front.size else last
        if pos + 8 <= front.size:  # each string to come has a length at least
            self.fetched(min(8 * (n - done), front.size - pos))
        # The checked way says what is wrong, or reads on.
        n_bytes = self.count(f"a string of the {field}", smallest=1)
        self.pos += n_bytes
        return done + 1

    def value(self, kind: int, field: str, depth: int = 0) -> Value:
        """A value, decoded."""
        if kind in _SCALARS:
            return self.scalars(kind, 1, field)[0]
        if kind == _STRING:
            return self.text(self.count(field, smallest=1), field)
        at = self.pos
        kind, n = self.array_head(field, depth)
        self.decoded += n
        if self.decoded > _MAX_DECODED:
            raise self.fail(field, f"has more than the {_MAX_DECODED:,} elements that are read", at)
        if kind in _SCALARS:
            return self.scalars(kind, n, field)
        found = self.strings(n) if kind == _STRING else None
        if found is not None:
            return found
        return [self.value(kind, field, depth + 1) for _ in repeat(None, n)]

    def strings(self, n: int) -> list[Value] | None:
        """Strings that were passed by before, decoded without a check for each.

        Returns:
            None if one is not all there or not UTF-8: the checked way says which.
        """
        loops = self._loops_for(n)
        if loops is not None:
            _, end = loops.skip_strings(self.front.buffer, self.pos, n)
            together = loops.split_strings(self.front.buffer, self.pos, end, n)
            if together is not None:
                self.pos = end
                return cast("list[Value]", together)
        unpack, buffer = struct.Struct(self.front.order + "Q").unpack_from, self.front.buffer
        found: list[Value] = []
        keep, pos = found.append, self.pos
        try:
            for _ in repeat(None, n):
                (length,) = unpack(buffer, pos)
                start, pos = pos + 8, pos + 8 + length
                keep(str(buffer[start:pos], "utf-8"))
        except (struct.error, OverflowError, UnicodeDecodeError):
            return None
        if pos > len(buffer):
            return None
        self.pos = pos
        return found

    def scalars(self, kind: int, n: int, field: str) -> list[Value]:
        """``n`` numbers or truth values."""
        scalar = _SCALARS[kind].newbyteorder(self.front.order)
        n_bytes = n * scalar.itemsize
        self.need(n_bytes, field)
        self.fetched(n_bytes)
        found = np.frombuffer(self.front.buffer, scalar, n, self.pos).tolist()
        self.pos += n_bytes
        return cast("list[Value]", found)
