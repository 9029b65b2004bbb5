"""A bounded, lazy reader of GGUF headers; tensor data on demand.

The header is walked once over a read-only memory map. Strings and arrays are skipped
by their lengths and decoded when they are asked for, so a vocabulary of 262,144 tokens
costs the walk and nothing more. Every count, length and offset is checked against the
file's size before it is used.

Layout (``ggml/include/gguf.h``): magic ``GGUF``, version u32, tensor count u64, metadata
count u64, the metadata (key, type, value), the tensor infos (name, dimensions, type,
offset), padding to ``general.alignment``, tensor data.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import cast

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from ggufnorm.errors import GGUFError
from ggufnorm.formats.storage import LocalStorage, Storage

Value = bool | int | float | str | list["Value"]
"""A metadata value as Python sees it."""

# enum gguf_type in ggml/include/gguf.h: struct code of each scalar.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
            12: "d"}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MAX_NESTING = 8
_MAX_DIMS = 4  # GGML_MAX_DIMS in ggml/include/ggml.h


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in its file, and what it is.

    Attributes:
        name: as in the file.
        shape: ggml's ``ne``: ``shape[0]`` is the length of a row.
        dtype: ggml type name in upper case, for example ``Q4_K``.
        ggml_type: ggml's number of that type (``enum ggml_type``).
        offset: of the first byte, from the start of the file.
        n_bytes: size of the data.
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
        n = 1
        for d in self.shape:
            n *= d
        return n


class Metadata(Mapping[str, Value]):
    """The metadata of a file, decoded key by key when asked for."""

    def __init__(self, at: dict[str, tuple[int, int]], decode: Callable[[int, int], Value]) -> None:
        self._at = at
        self._decode = decode

    def __getitem__(self, key: str) -> Value:
        return self._decode(*self._at[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)

    def string(self, key: str) -> str | None:
        """The value, if it is there and is a string."""
        value = self.get(key)
        return value if isinstance(value, str) else None

    def integer(self, key: str) -> int | None:
        """The value, if it is there and is an integer."""
        value = self.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def number(self, key: str) -> float | None:
        """The value, if it is there and is a number (float32 values stay float32's)."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return float(value)


class GGUFFile:
    """A GGUF file, read-only. A context manager.

    Args:
        source: a path, or a storage already opened.

    Attributes:
        path: of the file, as given, or its storage's name.
        storage: what its bytes are read from.
        version: 2 or 3.
        byte_order: ``"<"`` for little endian, ``">"`` for big endian.
        alignment: of the tensor data, in bytes.
        header_size: bytes before the padding that precedes the tensor data.
        metadata: key to value, lazily decoded.
        tensors: name to :class:`Tensor`, in file order.
        raw_metadata_at: key to (value type, byte offset of the value).

    Raises:
        InputError: the file cannot be opened.
        GGUFError: it is not well-formed.
    """

    def __init__(self, source: str | os.PathLike[str] | Storage) -> None:
        self.storage: Storage
        if isinstance(source, (str, os.PathLike)):
            self.storage = LocalStorage(source)
        else:
            self.storage = source
        self.path = self.storage.name
        try:
            self._read_header()
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> None:
        """Read a growing front part until the whole header is in it."""
        size = self.storage.size
        n = size if isinstance(self.storage, LocalStorage) else min(size, _FIRST_READ)
        while True:
            try:
                _Header(self, self.storage.read(0, n), size).read()
                return
            except _MoreNeededError as more:
                n = min(size, more.n_bytes + more.n_bytes // 5 + _SPARE)

    version: int
    byte_order: str
    alignment: int
    header_size: int
    metadata: Metadata
    tensors: dict[str, Tensor]
    raw_metadata_at: dict[str, tuple[int, int]]

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back. Arrays already read stay valid: they are copies."""
        self.storage.close()

    @property
    def size(self) -> int:
        """Of the file, in bytes."""
        return self.storage.size

    @property
    def architecture(self) -> str:
        """``general.architecture``, or the empty string."""
        return self.metadata.string("general.architecture") or ""

    def read_bytes(self, name: str) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """The raw bytes of a tensor, as a copy in native memory.

        Raises:
            KeyError: there is no such tensor.
        """
        return self.read_many([name])[name]

    def read_many(
        self, names: Iterable[str]
    ) -> dict[str, np.ndarray[tuple[int], np.dtype[np.uint8]]]:
        """The raw bytes of several tensors; a storage that is not local fetches them together.

        Raises:
            KeyError: one of them does not exist.
            InputError: their bytes cannot be had.
        """
        wanted = [self.tensors[name] for name in names]
        parts = self.storage.read_many([(t.offset, t.n_bytes) for t in wanted])
        return {
            t.name: np.frombuffer(part, np.uint8).copy()
            for t, part in zip(wanted, parts, strict=True)
        }


_FIRST_READ = 1 << 17
"""Bytes of the first read of a header that is not on this machine."""

_SPARE = 1 << 17
"""Bytes that a further read may take too many, beyond a fifth of what is surely needed."""


class _MoreNeededError(Exception):
    """The header goes on behind the part that was read, at least to ``n_bytes``."""

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes


class _Header:
    """One walk over a header. ``pos`` is where it stands."""

    def __init__(self, file: GGUFFile, buffer: bytes | memoryview, size: int) -> None:
        self.file = file
        self.buffer = buffer
        self.size = size  # of the file; the buffer may hold its front part only
        self.pos = 0

    def fail(self, field: str, problem: str, at: int | None = None) -> GGUFError:
        return GGUFError(self.file.path, self.pos if at is None else at, field, problem)

    def read(self) -> None:
        file = self.file
        magic = bytes(self.buffer[:4])
        if magic != b"GGUF":
            raise self.fail("magic", f"this is not a GGUF file (it begins with {magic!r})")
        self.pos = 4
        self.order = "<"
        version = self.scalar("I", "version")
        if version & 0xFFFF == 0 and version:
            self.order = ">"
            version = int.from_bytes(version.to_bytes(4, "little"), "big")
        if version not in (2, 3):
            raise self.fail("version", f"version {version} is not 2 or 3", at=4)
        file.version, file.byte_order = version, self.order
        self._u64 = struct.Struct(self.order + "Q").unpack_from
        n_tensors = self.count("tensor count", smallest=24)
        n_metadata = self.count("metadata count", smallest=13)
        file.raw_metadata_at = self.metadata(n_metadata)
        file.metadata = Metadata(file.raw_metadata_at, self.decode)
        file.alignment = self.alignment()
        file.tensors = self.tensors(n_tensors)
        file.header_size = self.pos

    def scalar(self, code: str, field: str) -> int:
        n = struct.calcsize("=" + code)
        self.need(n, field)
        (value,) = struct.unpack_from(self.order + code, self.buffer, self.pos)
        self.pos += n
        return cast("int", value)

    def need(self, n: int, field: str) -> None:
        if n > self.size - self.pos:
            raise self.fail(
                field, f"needs {n} bytes, but the file ends {self.size - self.pos} bytes on"
            )
        self.buffered(n)

    def buffered(self, n: int) -> None:
        """Ask for a longer front part of the file unless it holds the next ``n`` bytes."""
        if self.pos + n > len(self.buffer):
            raise _MoreNeededError(self.pos + n)

    def count(self, field: str, smallest: int) -> int:
        """A u64 that counts things of at least ``smallest`` bytes each."""
        at = self.pos
        n = self.scalar("Q", field)
        if n * smallest > self.size - self.pos:
            raise self.fail(field, f"{n} cannot fit in the rest of the file", at)
        return n

    def string(self, field: str) -> str:
        n = self.count(f"length of {field}", smallest=1)
        self.buffered(n)
        raw = bytes(self.buffer[self.pos : self.pos + n])
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise self.fail(field, "is not valid UTF-8", self.pos + error.start) from None
        self.pos += n
        return text

    def metadata(self, n: int) -> dict[str, tuple[int, int]]:
        at: dict[str, tuple[int, int]] = {}
        for i in range(n):
            start = self.pos
            key = self.string(f"metadata key {i}")
            if key in at:
                raise self.fail(f"metadata key {i}", f"{key!r} stands twice", start)
            kind = self.scalar("I", f"type of {key!r}")
            at[key] = (kind, self.pos)
            self.skip(kind, key)
        return at

    def skip(self, kind: int, key: str, depth: int = 0) -> None:
        code = _SCALARS.get(kind)
        if code is not None:
            n = struct.calcsize("=" + code)
            self.need(n, f"value of {key!r}")
            self.pos += n
        elif kind == _STRING:
            n = self.count(f"length of the value of {key!r}", smallest=1)
            self.pos += n
        elif kind == _ARRAY:
            if depth == _MAX_NESTING:
                raise self.fail(f"value of {key!r}", f"nested deeper than {_MAX_NESTING} arrays")
            self.skip_array(key, depth)
        else:
            raise self.fail(f"type of {key!r}", f"unknown value type {kind}", self.pos - 4)

    def skip_array(self, key: str, depth: int) -> None:
        kind = self.scalar("I", f"element type of {key!r}")
        code = _SCALARS.get(kind)
        if code is not None:
            width = struct.calcsize("=" + code)
            n = self.count(f"element count of {key!r}", smallest=width)
            self.pos += n * width
        elif kind == _STRING:
            self.skip_strings(self.count(f"element count of {key!r}", smallest=8), key)
        elif kind == _ARRAY:
            for _ in range(self.count(f"element count of {key!r}", smallest=12)):
                self.skip(_ARRAY, key, depth + 1)
        else:
            raise self.fail(f"element type of {key!r}", f"unknown value type {kind}", self.pos - 4)

    def skip_strings(self, n: int, key: str) -> None:
        # The hot loop of a large vocabulary: no method call per string.
        unpack, buffer, pos, last = self._u64, self.buffer, self.pos, len(self.buffer) - 8
        for i in range(n):
            if pos > last:
                if pos > self.size - 8:
                    raise self.fail(f"string {i} of {key!r}", "the file ends inside it", pos)
                raise _MoreNeededError(pos + 8 * (n - i))
            pos += 8 + unpack(buffer, pos)[0]
        if pos > self.size:
            raise self.fail(f"last string of {key!r}", "the file ends inside it")
        self.pos = pos

    def decode(self, kind: int, at: int) -> Value:
        self.pos = at
        return self.value(kind)

    def value(self, kind: int) -> Value:
        code = _SCALARS.get(kind)
        if code is not None:
            return self.scalar(code, "value")
        if kind == _STRING:
            return self.string("value")
        kind, n = self.scalar("I", "element type"), self.scalar("Q", "element count")
        code = _SCALARS.get(kind)
        if code is not None:
            values = struct.unpack_from(f"{self.order}{n}{code}", self.buffer, self.pos)
            self.pos += n * struct.calcsize("=" + code)
            return list(values)
        return [self.value(kind) for _ in range(n)]

    def alignment(self) -> int:
        key = "general.alignment"
        if key not in self.file.raw_metadata_at:
            return 32  # GGUF_DEFAULT_ALIGNMENT in ggml/include/gguf.h
        kind, at = self.file.raw_metadata_at[key]
        here = self.pos
        value = self.decode(kind, at)
        self.pos = here
        if isinstance(value, bool) or not isinstance(value, int) or kind != 4:
            raise self.fail(key, "must be an unsigned 32-bit integer", at)
        if value == 0 or value & (value - 1):
            raise self.fail(key, f"{value} is not a power of two", at)
        return value

    def tensors(self, n: int) -> dict[str, Tensor]:
        rows: list[tuple[str, tuple[int, ...], int, int, int]] = []
        names: set[str] = set()
        for i in range(n):
            start = self.pos
            name = self.string(f"name of tensor {i}")
            if name in names:
                raise self.fail(f"name of tensor {i}", f"{name!r} stands twice", start)
            names.add(name)
            rows.append((name, self.shape(name), *self.type_and_offset(name), start))
        data = -(-self.pos // self.file.alignment) * self.file.alignment
        found = {row[0]: self.tensor(*row, data=data) for row in rows}
        self.check_overlaps(found)
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        at = self.pos
        n_dims = self.scalar("I", f"dimension count of {name!r}")
        if not 1 <= n_dims <= _MAX_DIMS:
            raise self.fail(
                f"dimension count of {name!r}", f"{n_dims} is not from 1 to {_MAX_DIMS}", at
            )
        return tuple(self.scalar("Q", f"dimension {d} of {name!r}") for d in range(n_dims))

    def type_and_offset(self, name: str) -> tuple[int, int]:
        kind = self.scalar("I", f"type of {name!r}")
        return kind, self.scalar("Q", f"offset of {name!r}")

    def tensor(
        self, name: str, shape: tuple[int, ...], kind: int, offset: int, at: int, *, data: int
    ) -> Tensor:
        field = f"tensor {name!r}"
        ggml_type = _ggml_type(kind)
        if ggml_type is None:
            raise self.fail(field, f"unknown tensor type {kind}", at)
        block, block_bytes = _block_size(ggml_type)
        if 0 in shape:
            raise self.fail(field, f"a dimension is zero: {shape}", at)
        if shape[0] % block:
            raise self.fail(
                field, f"rows of {shape[0]} do not divide into {ggml_type.name} blocks", at
            )
        n_bytes = block_bytes * (shape[0] // block)
        for d in shape[1:]:
            n_bytes *= d
        if offset % self.file.alignment:
            raise self.fail(field, f"offset {offset} is not a multiple of the alignment", at)
        if data + offset + n_bytes > self.size:
            missing = data + offset + n_bytes - self.size
            raise self.fail(
                field,
                f"its data ends {missing} bytes after the end of the file (is it truncated?)",
                at,
            )
        return Tensor(name, shape, ggml_type.name, kind, data + offset, n_bytes)

    def check_overlaps(self, tensors: dict[str, Tensor]) -> None:
        end, before = 0, ""
        for t in sorted(tensors.values(), key=lambda t: t.offset):
            if t.offset < end:
                raise self.fail(
                    f"tensor {t.name!r}", f"its data overlaps that of {before!r}", t.offset
                )
            end, before = t.offset + t.n_bytes, t.name


def _ggml_type(number: int) -> GGMLQuantizationType | None:
    try:
        return GGMLQuantizationType(number)
    except ValueError:
        return None


def _block_size(ggml_type: GGMLQuantizationType) -> tuple[int, int]:
    """(elements, bytes) of one block, from gguf-py's own table."""
    return cast("tuple[int, int]", GGML_QUANT_SIZES[ggml_type])
