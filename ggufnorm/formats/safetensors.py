"""safetensors: a JSON header with names, types, shapes and places, then the raw values.

The format is described in the README of https://github.com/huggingface/safetensors, whose
own library writes only what is held in memory as a whole. Here the header comes first,
and values are then written, and read, a part at a time.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ggufnorm.errors import InputError

MAX_HEADER = 100_000_000
"""Bytes of a header at most: ``MAX_HEADER_SIZE`` in the library's ``tensor.rs``."""

_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I32": np.dtype("<i4"),
}
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Entry:
    """Type and shape of one array: ``F32``, ``F16`` or ``I32``, the slowest axis first."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """As NumPy knows it."""
        return _DTYPES[self.dtype]

    @property
    def n_bytes(self) -> int:
        """Of all values."""
        return math.prod(self.shape) * self.numpy_dtype.itemsize

    @property
    def part(self) -> Entry:
        """One item along the first axis."""
        return Entry(self.dtype, self.shape[1:])


def pack_header(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    """The bytes that precede the values, which follow in the order of the entries.

    Raises:
        ValueError: they are more than a reader takes.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, entry in entries.items():
        begin, end = end, end + entry.n_bytes
        header[name] = {
            "dtype": entry.dtype,
            "shape": entry.shape,
            "data_offsets": (begin, end),
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ValueError(f"the header takes {len(text)} bytes, and {MAX_HEADER} are allowed")
    return _LENGTH.pack(len(text)) + text


class SafetensorsWriter:
    """A file whose header is written at once, and whose values in any order. A context manager.

    Args:
        path: the file; what it held is lost.
        entries: all arrays, in the order in which they are to lie.
        metadata: text to go with them.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(
        self, path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str]
    ) -> None:
        header = pack_header(entries, metadata)
        self._entries = dict(entries)
        self._begin: dict[str, int] = {}
        at = len(header)
        for name, entry in entries.items():
            self._begin[name] = at
            at += entry.n_bytes
        self._file = path.open("wb")
        self._file.write(header)
        self._file.truncate(at)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, name: str, i: int, values: ArrayLike) -> None:
        """Put the i-th item along an array's first axis where it belongs.

        Raises:
            OSError: the file cannot be written.
            ValueError: the values are more or fewer than the item has.
        """
        part = self._entries[name].part
        data = np.ascontiguousarray(values, dtype=part.numpy_dtype)
        if data.size != math.prod(part.shape):
            raise ValueError(f"{name}: {data.shape} values do not fill {part.shape}")
        self._file.seek(self._begin[name] + i * part.n_bytes)
        self._file.write(data.tobytes())

    def finish(self) -> None:
        """Wait until the disk has it all.

        Raises:
            OSError: the file cannot be written.
        """
        self._file.flush()
        os.fsync(self._file.fileno())


class SafetensorsReader:
    """A file whose values are read a part at a time. A context manager.

    Attributes:
        path: as given.
        metadata: text that goes with the arrays.

    Raises:
        InputError: the file cannot be opened or is not safetensors.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._file = _open(self.path)
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self._header = self._read_header()
            self.metadata = self._read_metadata()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> SafetensorsReader:
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
        self._file.close()

    def _bytes(self, offset: int, n: int) -> bytes:
        self._file.seek(offset)
        data = self._file.read(n)
        if len(data) < n:
            raise InputError(f"{self.path}: the file is truncated at byte {offset + len(data)}")
        return data

    def _wrong(self, problem: str) -> InputError:
        return InputError(f"{self.path} is not a well-formed safetensors file: {problem}")

    def _read_header(self) -> dict[str, Any]:
        if self._size < _LENGTH.size:
            raise self._wrong(f"it has {self._size} bytes")
        n = _LENGTH.unpack(self._bytes(0, _LENGTH.size))[0]
        if n > min(MAX_HEADER, self._size - _LENGTH.size):
            raise self._wrong(f"its first 8 bytes announce a header of {n} bytes")
        try:
            header = json.loads(self._bytes(_LENGTH.size, n))
        except (ValueError, RecursionError) as error:
            raise self._wrong(f"its header is not JSON ({error})") from None
        if not isinstance(header, dict):
            raise self._wrong("its header is not a JSON object")
        self._data_at = _LENGTH.size + n
        return header

    def _read_metadata(self) -> dict[str, str]:
        found = self._header.pop("__metadata__", {})
        if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
            raise self._wrong("its __metadata__ does not map text to text")
        return found

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """All arrays by name, in the order in which they lie.

        Raises:
            InputError: their places overlap, leave gaps, or are not of their size.
        """
        found = {name: self._entry(name, raw) for name, raw in self._header.items()}
        places = sorted((*raw["data_offsets"], name) for name, raw in self._header.items())
        at = 0
        for begin, end, name in places:
            if begin != at or end - begin != found[name].n_bytes:
                raise self._wrong(f"{name!r} of {found[name].n_bytes} bytes lies at {begin}:{end}")
            at = end
        if self._data_at + at != self._size:
            raise InputError(
                f"{self.path} is truncated or damaged: its header tells of"
                f" {self._data_at + at} bytes, and it has {self._size}"
            )
        return {name: found[name] for _begin, _end, name in places}

    def _entry(self, name: str, raw: Any) -> Entry:
        def sizes(value: object) -> bool:
            return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)

        good = isinstance(raw, dict) and sizes(raw.get("shape")) and sizes(raw.get("data_offsets"))
        if not good or len(raw["data_offsets"]) != 2:
            raise self._wrong(f"{name!r} has no shape or no place")
        if raw.get("dtype") not in _DTYPES:
            raise self._wrong(f"{name!r} is {raw.get('dtype')!r}, which is not read")
        return Entry(raw["dtype"], tuple(raw["shape"]))

    @cached_property
    def _begin(self) -> dict[str, int]:
        return {name: self._header[name]["data_offsets"][0] for name in self.entries}

    def read(self, name: str, i: int) -> NDArray[Any]:
        """The i-th item along an array's first axis, and nothing else, is read.

        Raises:
            KeyError: there is no such array.
            InputError: the file became shorter.
        """
        part = self.entries[name].part
        if part.n_bytes == 0:
            return np.empty(part.shape, part.numpy_dtype)
        data = self._bytes(self._data_at + self._begin[name] + i * part.n_bytes, part.n_bytes)
        return np.frombuffer(data, part.numpy_dtype).reshape(part.shape)


def _open(path: str) -> BinaryIO:
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise InputError(f"cannot open {path}: {error.strerror}") from None
