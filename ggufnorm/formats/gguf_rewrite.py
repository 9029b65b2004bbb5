"""A GGUF file written once more, with some keys and tensors changed and every other byte kept.

What is not changed is copied as it stands: keys and their order, padding, tensor data, and what
follows the last tensor. Data is copied in pieces, so that memory does not depend on its size.
The layout is that of :mod:`ggufnorm.formats.gguf_header`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ggufnorm.errors import InputError
from ggufnorm.formats.gguf import GGUFFile
from ggufnorm.formats.gguf_constants import GGMLQuantizationType, GGUFValueType
from ggufnorm.formats.gguf_header import ARRAY, ByteOrder
from ggufnorm.formats.storage import checked

_PIECE = 1 << 23
_F32 = int(GGMLQuantizationType.F32)
_NUMBERS = {
    "u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "u64": "Q", "i64": "q",
    "f32": "f", "f64": "d", "bool": "?",
}  # fmt: skip
_TYPES = {
    "u8": GGUFValueType.UINT8, "i8": GGUFValueType.INT8, "u16": GGUFValueType.UINT16,
    "i16": GGUFValueType.INT16, "u32": GGUFValueType.UINT32, "i32": GGUFValueType.INT32,
    "u64": GGUFValueType.UINT64, "i64": GGUFValueType.INT64, "f32": GGUFValueType.FLOAT32,
    "f64": GGUFValueType.FLOAT64, "bool": GGUFValueType.BOOL, "str": GGUFValueType.STRING,
}  # fmt: skip
_NAMES = {int(kind): name for name, kind in _TYPES.items()}


Array = NDArray[np.float32]


@dataclass(frozen=True)
class Stream:
    """A tensor that is made while it is written.

    Attributes:
        shape: ggml's ``ne``.
        ggml_type: ggml's number of its type.
        n_bytes: all of it.
        pieces: gives the bytes, one piece after the other, in a byte order.
    """

    shape: tuple[int, ...]
    ggml_type: int
    n_bytes: int
    pieces: Callable[[ByteOrder], Iterator[bytes]]


@dataclass(frozen=True)
class Changes:
    """What is to be other than in the file.

    Attributes:
        keys: key to type (``u32``, ``arr[bool]``) and value. A key that is there keeps its
            place and, where it can hold the value, its own type.
        renamed: key to the one that takes its place, with the same value.
        tensors: name to values, in NumPy's order, that are stored as F32, or to what makes a
            tensor of any type. What the file does not have goes behind its last tensor.
    """

    keys: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, Array | Stream] = field(default_factory=dict)

    @cached_property
    def streams(self) -> Mapping[str, Stream]:
        """All of ``tensors``."""
        return {n: t if isinstance(t, Stream) else _of_array(t) for n, t in self.tensors.items()}


def _of_array(values: Array) -> Stream:
    def pieces(order: ByteOrder) -> Iterator[bytes]:
        yield np.ascontiguousarray(values).astype(f"{order}f4").tobytes()

    return Stream(values.shape[::-1], _F32, values.nbytes, pieces)


@dataclass(frozen=True)
class _Place:
    """Where a tensor's data goes, from the start of the tensor data."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    offset: int
    n_bytes: int


def rewrite(
    file: GGUFFile,
    target: Path,
    changes: Changes,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> None:
    """Write a file with changes.

    Args:
        file: is only read.
        target: is overwritten; see :func:`ggufnorm.formats.output.replacing`.
        changes: of keys and tensors.
        on_progress: is told the bytes of tensor data that are written, and all of them.

    Raises:
        InputError: a value does not fit its type, or the file cannot be read.
        OSError: the target cannot be written.
    """
    header, places = _header(file, changes)
    with target.open("wb") as out:
        out.write(header)
        if file.size >= _data_start(file):
            out.write(bytes(-len(header) % file.alignment))
        if places is None:
            _copy_in_place(file, changes, out, on_progress)
        else:
            _copy_anew(file, changes, places, out, on_progress)


def _data_start(file: GGUFFile) -> int:
    return -(-file.header_size // file.alignment) * file.alignment


# -- the header --------------------------------------------------------------------------


def _header(file: GGUFFile, changes: Changes) -> tuple[bytes, list[_Place] | None]:
    """The new header, and where tensors go; None if each stays where it is."""
    raw = checked(file.storage.read(0, file.header_size), file.storage, 0, file.header_size)
    old, order = bytes(raw), file.byte_order
    places = _places(file, changes)
    entries = list(_metadata(file, old, changes))
    infos = list(_infos(file, old, changes, places))
    start = struct.pack(order + "QQ", len(infos), len(entries))
    return b"".join([old[:8], start, *entries, *infos]), places


def _metadata(file: GGUFFile, old: bytes, changes: Changes) -> Iterator[bytes]:
    order = file.byte_order
    starts = [at - 4 - len(key.encode()) - 8 for key, (_kind, at) in file.raw_metadata_at.items()]
    ends = [*starts[1:], file.tensors.places[0] if len(file.tensors) else file.header_size]
    for (key, (kind, at)), start, end in zip(
        file.raw_metadata_at.items(), starts, ends, strict=True
    ):
        if key in changes.keys:
            wanted, value = changes.keys[key]
            yield _entry(key, _own_type(kind, wanted, value), value, order)
        elif key in changes.renamed:
            yield _string(changes.renamed[key], order) + old[at - 4 : end]
        else:
            yield old[start:end]
    for key, (wanted, value) in changes.keys.items():
        if key not in file.raw_metadata_at:
            yield _entry(key, wanted, value, order)


def _own_type(kind: int, wanted: str, value: Any) -> str:
    """The type that the key has in the file, if the value is one of it."""
    own = _NAMES.get(kind)
    if kind == ARRAY or own is None or isinstance(value, (list, tuple)):
        return wanted
    is_number = not isinstance(value, (bool, str))
    fits = own not in ("str", "bool") and (own[0] == "f" or float(value).is_integer()) \
        if is_number else own == wanted  # fmt: skip
    return own if fits else wanted


def _entry(key: str, kind: str, value: Any, order: ByteOrder) -> bytes:
    return _string(key, order) + _typed(key, kind, value, order)


def _typed(key: str, kind: str, value: Any, order: ByteOrder) -> bytes:
    if kind.startswith("arr["):
        inner = kind[4:-1]
        head = struct.pack(order + "IIQ", ARRAY, _number(key, inner), len(value))
        return head + b"".join(_scalar(key, inner, v, order) for v in value)
    return struct.pack(order + "I", _number(key, kind)) + _scalar(key, kind, value, order)


def _number(key: str, kind: str) -> int:
    if kind not in _TYPES:
        raise InputError(f"{key}: {kind!r} is no type of a GGUF key")
    return int(_TYPES[kind])


def _scalar(key: str, kind: str, value: Any, order: ByteOrder) -> bytes:
    if kind == "str":
        return _string(str(value), order)
    code = _NUMBERS[kind]
    try:
        return struct.pack(order + code, float(value) if code in "fd" else value)
    except (struct.error, OverflowError, TypeError, ValueError):
        if isinstance(value, float) and value.is_integer() and code not in "fd":
            return _scalar(key, kind, int(value), order)
        raise InputError(f"{key}: {value!r} is no {kind}") from None


def _string(text: str, order: ByteOrder) -> bytes:
    raw = text.encode()
    return struct.pack(order + "Q", len(raw)) + raw


# -- tensors -----------------------------------------------------------------------------


def _places(file: GGUFFile, changes: Changes) -> list[_Place] | None:
    """Where each tensor goes, in the order of the data; None if nothing moves."""
    old = file.tensors
    moved = [
        name for name, made in changes.streams.items()
        if name not in old or old[name].n_bytes != made.n_bytes
    ]  # fmt: skip
    if not moved:
        return None
    found: list[_Place] = []
    at = 0
    in_order = sorted(old.values(), key=lambda t: t.offset)
    new = [name for name in changes.streams if name not in old]
    for name in [*(t.name for t in in_order), *new]:
        source = changes.streams.get(name) or old[name]
        place = _Place(name, source.shape, source.ggml_type, at, source.n_bytes)
        found.append(place)
        at += -(-place.n_bytes // file.alignment) * file.alignment
    return found


def _infos(
    file: GGUFFile, old: bytes, changes: Changes, places: list[_Place] | None
) -> Iterator[bytes]:
    order, starts = file.byte_order, file.tensors.places
    moved = {place.name: place for place in places or ()}
    for i, name in enumerate(file.tensors):
        end = starts[i + 1] if i + 1 < len(starts) else file.header_size
        raw = old[starts[i] : end]
        place, made = moved.get(name), changes.streams.get(name)
        if made is not None:
            offset = raw[-8:] if place is None else struct.pack(order + "Q", place.offset)
            yield _info(name, made.shape, made.ggml_type, order) + offset
        elif place is not None:
            yield raw[:-8] + struct.pack(order + "Q", place.offset)
        else:
            yield raw
    for place in places or ():
        if place.name not in file.tensors:
            offset = struct.pack(order + "Q", place.offset)
            yield _info(place.name, place.shape, place.ggml_type, order) + offset


def _info(name: str, shape: tuple[int, ...], ggml_type: int, order: ByteOrder) -> bytes:
    layout = f"{order}I{len(shape)}QI"
    return _string(name, order) + struct.pack(layout, len(shape), *shape, ggml_type)


def _write(made: Stream, file: GGUFFile, out: BinaryIO, progress: _Counter) -> None:
    for piece in made.pieces(file.byte_order):
        out.write(piece)
        progress.add(len(piece))


def _copy_in_place(
    file: GGUFFile, changes: Changes, out: BinaryIO, on_progress: Callable[[int, int], None]
) -> None:
    """The data as it lies, gaps and what follows it included."""
    at, end = _data_start(file), file.size
    changed = sorted((file.tensors[name].offset, name) for name in changes.tensors)
    total = max(0, end - at)
    progress = _Counter(total, on_progress)
    for offset, name in changed:
        _copy(file, at, offset, out, progress)
        _write(changes.streams[name], file, out, progress)
        at = offset + changes.streams[name].n_bytes
    _copy(file, at, end, out, progress)


def _copy_anew(
    file: GGUFFile,
    changes: Changes,
    places: list[_Place],
    out: BinaryIO,
    on_progress: Callable[[int, int], None],
) -> None:
    """One tensor behind the other, each padded to the alignment; then what follows the last."""
    progress = _Counter(sum(p.n_bytes for p in places), on_progress)
    for place in places:
        made = changes.streams.get(place.name)
        if made is None:
            start = file.tensors[place.name].offset
            _copy(file, start, start + place.n_bytes, out, progress)
        else:
            _write(made, file, out, progress)
        out.write(bytes(-place.n_bytes % file.alignment))
    last = max((t.offset + t.n_bytes for t in file.tensors.values()), default=file.size)
    _copy(file, last + -last % file.alignment, file.size, out, progress)


class _Counter:
    """Bytes that are written, told on the way."""

    def __init__(self, total: int, tell: Callable[[int, int], None]) -> None:
        self._total, self._tell, self._done = total, tell, 0

    def add(self, n: int) -> None:
        self._done += n
        self._tell(min(self._done, self._total), self._total)


def _copy(file: GGUFFile, start: int, end: int, out: BinaryIO, progress: _Counter) -> None:
    while start < end:
        n = min(_PIECE, end - start)
        out.write(checked(file.storage.read(start, n), file.storage, start, n))
        progress.add(n)
        start += n
