"""safetensors: a JSON header with names, types, shapes and places, then the raw values.

The format is described in the README of https://github.com/huggingface/safetensors, whose
own library writes only what is held in memory as a whole, and reads BF16 only with torch.
Here the header comes first (:mod:`~ggufnorm.formats.safetensors_header`), and values are
then written, and read, a part at a time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ggufnorm.errors import InputError
from ggufnorm.formats.files import open_regular
from ggufnorm.formats.safetensors_header import (
    DTYPES,
    Entry,
    Place,
    malformed,
    pack_header,
    quoted,
    read_header,
)
from ggufnorm.formats.storage import Extent, Scratch, Storage

_FLOATS = ("F64", "F32", "F16", "BF16")

_RAW: dict[str, np.dtype[Any]] = {
    **DTYPES,
    **{name: np.dtype("<u2") for name in ("BF16", "U16")},
    **{name: np.dtype("u1") for name in ("U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0")},
    "I8": np.dtype("i1"), "I16": np.dtype("<i2"), "U32": np.dtype("<u4"), "I64": np.dtype("<i8"),
}  # fmt: skip
"""How values of each type are shown as they are stored."""


class SafetensorsFile:
    """One open file of a checkpoint.

    Attributes:
        name: as messages call it.
        places: of its tensors, by name.

    Raises:
        InputError: it is not well-formed.
    """

    def __init__(self, storage: Storage) -> None:
        self.name = storage.name
        self._storage = storage
        self.places = read_header(storage.name, storage.size, storage.read).places

    def read(self, name: str, rows: int | None = None) -> NDArray[np.floating]:
        """A tensor's values: float64 of F64, float32 of F32, F16 and BF16, which are exact.

        Args:
            name: the tensor's.
            rows: only so many, from the first on; None for all. A row is what the first
                dimension counts.

        Raises:
            KeyError: there is no such tensor.
            InputError: its dtype is not one of these, or its bytes cannot be had.
        """
        place = self._readable_place(name)
        shape, n = place.shape, place.end - place.offset
        if rows is not None and shape and rows < shape[0]:
            shape, n = (rows, *shape[1:]), n // shape[0] * rows
        return _floats(place.dtype, shape, self._storage.read(place.offset, n))

    def read_many(self, names: Iterable[str]) -> dict[str, NDArray[np.floating]]:
        """Several tensors' values, fetched together; see :meth:`read`."""
        places = {name: self._readable_place(name) for name in names}
        ranges = [(p.offset, p.end - p.offset) for p in places.values()]
        parts = self._storage.read_many(ranges)
        return {
            name: _floats(place.dtype, place.shape, raw)
            for (name, place), raw in zip(places.items(), parts, strict=True)
        }

    def read_stored(self, name: str) -> NDArray[Any]:
        """A tensor as it is stored, in its own shape; of a local file a view, nothing is copied.

        BF16 comes as ``uint16``: its upper half of a float32.

        Raises:
            KeyError: there is no such tensor.
            InputError: its dtype is not a float's, or its bytes cannot be had.
        """
        place = self._readable_place(name)
        raw = np.frombuffer(self._storage.read(place.offset, place.end - place.offset), np.uint8)
        kind = "<u2" if place.dtype == "BF16" else DTYPES[place.dtype]
        return raw.view(kind).reshape(place.shape)

    def read_rows(
        self, name: str, start: int, stop: int, scratch: Scratch | None = None
    ) -> NDArray[Any]:
        """Some rows as they are stored, all dimensions but the last counted through.

        Returns:
            ``(stop - start, length of a row)``; see :meth:`read_stored`.

        Raises:
            KeyError: there is no such tensor.
            InputError: its dtype is not a float's, or its bytes cannot be had.
        """
        shape = self._readable_place(name).shape
        columns = shape[-1] if shape else 1
        found = self.read_flat(name, start * columns, stop * columns, scratch)
        return found.reshape(stop - start, columns)

    def read_flat(
        self, name: str, start: int, stop: int, scratch: Scratch | None = None
    ) -> NDArray[Any]:
        """Some values as they are stored, all dimensions counted through; see :meth:`read_stored`.

        Args:
            name: of the tensor.
            start: first value.
            stop: the value after the last.
            scratch: where to read them, until the next that is read there.

        Raises:
            KeyError: there is no such tensor.
            InputError: its dtype is not a float's, or its bytes cannot be had.
        """
        self._readable_place(name)
        return self.raw_flat(name, start, stop, scratch)

    def extent(self, name: str) -> Extent:
        """Where a tensor's bytes are.

        Raises:
            KeyError: there is no such tensor.
        """
        place = self.places[name]
        return Extent(self._storage, place.offset, place.end - place.offset)

    def raw_flat(
        self, name: str, start: int, stop: int, scratch: Scratch | None = None
    ) -> NDArray[Any]:
        """The same of any type whose values have whole bytes; FP8 comes as ``uint8``.

        Raises:
            KeyError: there is no such tensor.
            InputError: its type has no such values, or its bytes cannot be had.
        """
        place = self.places[name]
        kind = _RAW.get(place.dtype)
        if kind is None:
            raise InputError(f"{self.name}: {quoted(name)} is {quoted(place.dtype)}: not read")
        offset = place.offset + start * kind.itemsize
        n = (stop - start) * kind.itemsize
        raw = self._storage.read(offset, n, None if scratch is None else scratch.of(n))
        return np.frombuffer(raw, np.uint8).view(kind)

    def why_unreadable(self, name: str) -> str | None:
        """Why a tensor cannot be read; None if it can."""
        dtype = self.places[name].dtype
        if dtype in _FLOATS:
            return None
        return (
            f"{self.name}: {quoted(name)} is {quoted(dtype)}: only {', '.join(_FLOATS)} are"
            " read; give the unquantized checkpoint"
        )

    def _readable_place(self, name: str) -> Place:
        why = self.why_unreadable(name)
        if why is not None:
            raise InputError(why)
        return self.places[name]

    def close(self) -> None:
        """Give back what is held open."""
        self._storage.close()


@dataclass(frozen=True)
class Stored:
    """One tensor of a file, as it is stored."""

    file: SafetensorsFile
    name: str

    @property
    def entry(self) -> Entry:
        """Its type and shape."""
        return self.file.places[self.name]

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Some rows, all dimensions but the last counted through.

        Raises:
            InputError: its type is not read, or its bytes cannot be had.
        """
        shape = self.entry.shape
        columns = shape[-1] if shape else 1
        found = self.file.raw_flat(self.name, start * columns, stop * columns)
        return found.reshape(stop - start, columns)


class SafetensorsWriter:
    """A file whose header is written at once, and whose values in any order. A context manager.

    Args:
        path: the file; what it held is lost.
        again: keep what the file holds: this writer goes on for one of the same arrays.
        entries: all arrays, in the order in which they are to lie.
        metadata: text to go with them.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        entries: Mapping[str, Entry],
        metadata: Mapping[str, str],
        *,
        again: bool = False,
    ) -> None:
        header = pack_header(entries, metadata)
        self._entries = dict(entries)
        self._begin: dict[str, int] = {}
        at = len(header)
        for name, entry in entries.items():
            self._begin[name] = at
            at += entry.n_bytes
        self._file = path.open("r+b" if again else "wb")
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
            self._header = read_header(self.path, self._size, self._bytes)
            self.metadata = self._header.metadata
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

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """All arrays by name, in the order in which they lie.

        Raises:
            InputError: their places leave gaps, or one is of a type that is not read.
        """
        places = sorted(self._header.places.items(), key=lambda item: item[1].offset)
        at = self._header.end
        for name, place in places:
            if place.dtype not in DTYPES:
                raise malformed(
                    self.path, f"{quoted(name)} is {quoted(place.dtype)}, which is not read"
                )
            if place.offset != at:
                raise malformed(self.path, f"{quoted(name)} lies at {place.offset}, not at {at}")
            at = place.end
        if at != self._size:
            raise InputError(
                f"{self.path} is truncated or damaged: its header tells of {at} bytes,"
                f" and it has {self._size}"
            )
        return {name: Entry(place.dtype, place.shape) for name, place in places}

    def read(self, name: str, i: int) -> NDArray[Any]:
        """The i-th item along an array's first axis, and nothing else, is read.

        Raises:
            KeyError: there is no such array.
            InputError: the file became shorter.
        """
        part = self.entries[name].part
        if part.n_bytes == 0:
            return np.empty(part.shape, part.numpy_dtype)
        offset = self._header.places[name].offset + i * part.n_bytes
        return np.frombuffer(self._bytes(offset, part.n_bytes), part.numpy_dtype).reshape(
            part.shape
        )


def _floats(dtype: str, shape: tuple[int, ...], raw: bytes | memoryview) -> NDArray[np.floating]:
    flat = np.frombuffer(raw, np.uint8)
    if dtype == "BF16":
        wide = flat.view("<u2").astype(np.uint32) << 16
        return wide.view(np.float32).reshape(shape)
    values = flat.view(DTYPES[dtype])
    if dtype == "F64":
        return values.astype(np.float64).reshape(shape)
    return values.astype(np.float32).reshape(shape)


def _open(path: str) -> BinaryIO:
    try:
        return open_regular(path)
    except OSError as error:
        raise InputError(f"cannot open {path}: {error.strerror}") from None
