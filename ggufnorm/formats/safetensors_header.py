"""The header of safetensors files: JSON with names, types, shapes and places.

Nothing that a header says is believed before it is checked against the file.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeGuard

import numpy as np

from ggufnorm.errors import InputError

MAX_HEADER = 100_000_000
"""Bytes of a header at most: ``MAX_HEADER_SIZE`` in the library's ``tensor.rs``."""

_MAX_NAME = 4096
_MAX_ELEMENTS = 2**60 - 1  # as many float64 can still be addressed
_MAX_DIMS = 32  # as many as NumPy had for a long time; norms have one or two

# Bits of an element. The size of what is not listed is not checked, and it is not read.
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I32": np.dtype("<i4"),
}
"""Types that NumPy knows."""

_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Entry:
    """Type and shape of one array: ``F32``, ``BF16`` …, the slowest axis first."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """As NumPy knows it.

        Raises:
            KeyError: it does not.
        """
        return DTYPES[self.dtype]

    @property
    def n_bytes(self) -> int:
        """Of all values."""
        return math.prod(self.shape) * self.numpy_dtype.itemsize

    @property
    def part(self) -> Entry:
        """One item along the first axis."""
        return Entry(self.dtype, self.shape[1:])


@dataclass(frozen=True)
class Place(Entry):
    """An array with the place of its values.

    Attributes:
        offset: of the first byte, from the start of the file.
        end: of the byte after the last.
    """

    offset: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a file's header says, checked against the file.

    Attributes:
        metadata: text that goes with the arrays.
        places: of the arrays, by name.
        end: of the header: where the values begin.
    """

    metadata: Mapping[str, str]
    places: Mapping[str, Place]
    end: int


def read_header(name: str, size: int, read: Callable[[int, int], bytes | memoryview]) -> Header:
    """The header of a file.

    Args:
        name: the file's, as messages call it.
        size: the file's, in bytes.
        read: gives ``n`` bytes from an offset.

    Raises:
        InputError: it is not well-formed, or places lie outside the file or overlap.
    """
    if size < _LENGTH.size:
        raise malformed(name, f"it has {size} bytes")
    n = _LENGTH.unpack(read(0, _LENGTH.size))[0]
    if n > min(MAX_HEADER, size - _LENGTH.size):
        raise malformed(name, f"its first 8 bytes announce a header of {n} bytes")
    header = parse_json(read(_LENGTH.size, n), f"{name}: its header")
    if not isinstance(header, dict):
        raise malformed(name, "its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise malformed(name, "its __metadata__ does not map text to text")
    data = _LENGTH.size + n
    places = {key: _place(name, key, raw, data, size) for key, raw in header.items()}
    longest = max(header, key=len, default="")
    if len(longest) > _MAX_NAME:
        raise malformed(name, f"{quoted(longest)} has more than {_MAX_NAME} characters")
    _check_overlaps(name, places)
    return Header(metadata, places, data)


def parse_json(text: bytes | memoryview, name: str) -> Any:
    """JSON that someone else wrote.

    Raises:
        InputError: it is not JSON, is nested too deeply or names something twice.
    """

    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise ValueError(f"{quoted(twice)} is there twice")
        return found

    try:
        return json.loads(bytes(text).decode("utf-8"), object_pairs_hook=unique)
    except RecursionError:
        raise InputError(f"{name} is not JSON that can be used: nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{name} is not JSON that can be used: {error}") from None


def quoted(name: str) -> str:
    """A name that someone else gave, for a message: one short line of ASCII."""
    return ascii(name if len(name) <= 64 else name[:61] + "...")


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


def malformed(file: str, problem: str) -> InputError:
    """The error of a file whose header is not as it should be."""
    return InputError(f"{file} is not a well-formed safetensors file: {problem}")


def _place(file: str, name: str, raw: object, data: int, size: int) -> Place:
    if not isinstance(raw, dict):
        raise malformed(file, f"{quoted(name)} is not described by an object")
    dtype, shape, place = (raw.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str):
        raise malformed(file, f"{quoted(name)} has no type")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMS:
        raise malformed(file, f"{quoted(name)} has no shape")
    if not _are_sizes(place) or len(place) != 2:
        raise malformed(file, f"{quoted(name)} has no place")
    begin, end = place
    bits = _BITS.get(dtype)
    n_bytes = None if bits is None else math.prod(shape) * bits // 8
    if begin > end or n_bytes not in (None, end - begin):
        what = f"{quoted(name)} of {n_bytes} bytes" if n_bytes else quoted(name)
        raise malformed(file, f"{what} lies at {begin}:{end}")
    if math.prod(n or 1 for n in shape) > _MAX_ELEMENTS:
        # A zero does not excuse the other dimensions: no array could have them.
        raise malformed(file, f"{quoted(name)} has a shape that is too large")
    if end > size - data:
        raise InputError(
            f"{file} is truncated or damaged: {quoted(name)} ends at byte {data + end},"
            f" and it has {size}"
        )
    return Place(dtype, tuple(shape), data + begin, data + end)


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _check_overlaps(file: str, places: Mapping[str, Place]) -> None:
    taken = sorted(
        ((p.offset, p.end, name) for name, p in places.items() if p.offset < p.end),
    )
    for (_, end, one), (begin, _, other) in pairwise(taken):
        if end > begin:
            raise malformed(file, f"{quoted(one)} and {quoted(other)} overlap")
