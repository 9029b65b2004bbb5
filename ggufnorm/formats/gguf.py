"""A bounded, lazy reader of GGUF headers; tensor data on demand.

The header is walked once. Strings and arrays are skipped by their lengths and decoded
when they are asked for, so a vocabulary of 262,144 tokens costs the walk and nothing
more. Every count, length and offset is checked against the file's size before it is used.

What ``gguf_init_from_file`` (``ggml/src/gguf.cpp``) reads is read here too, with the same
result: tensors without dimensions or with a dimension of zero, names without a letter.
Refused here and read there are

- keys and tensor names that are not UTF-8, keys longer than 65,535 bytes and names longer than
  4,096, and those that hold a NUL, where llama.cpp would cut them;
- headers of more than 256 MiB;
- tensors whose data is not in the file (``src/llama-model-loader.cpp`` refuses them) and
  empty ones whose other dimensions no array could have;
- tensor types that gguf-py does not know.

Read here and refused there are big endian on a little-endian machine, tensor names of 64
bytes and more, arrays of arrays, and tensors in any order, with gaps between them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from types import TracebackType

import numpy as np

from ggufnorm.formats.gguf_header import ARRAY, Value, Values, read_header, value_of
from ggufnorm.formats.storage import Extent, LocalStorage, Storage, checked

_MAX_STRING = 1024
"""Characters of a name that is shown: a file may give itself one of 20 MB."""


class Metadata(Mapping[str, Value]):
    """The metadata of a file, decoded key by key when asked for.

    Asking for a value whose strings are not UTF-8 raises a :class:`GGUFError`. An array
    becomes a list, whose elements take up to 40 bytes each.

    Args:
        at: key to (value type, byte offset of the value).
        values_at: a cursor at a byte offset.
    """

    def __init__(self, at: dict[str, tuple[int, int]], values_at: Callable[[int], Values]) -> None:
        self._at = at
        self._values_at = values_at

    def __getitem__(self, key: str) -> Value:
        kind, at = self._at[key]
        return self._values_at(at).value(kind, value_of(key))

    def __contains__(self, key: object) -> bool:
        return key in self._at

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)

    def n_elements(self, key: str) -> int | None:
        """How many elements the value has, if it is there and is an array; none is decoded."""
        kind, at = self._at.get(key, (None, 0))
        return self._values_at(at).array_head(value_of(key), 0)[1] if kind == ARRAY else None

    def raw(self, key: str) -> tuple[int, bytes] | None:
        """The value's type and its bytes, if it is there."""
        if key not in self._at:
            return None
        kind, at = self._at[key]
        return kind, self._values_at(at).raw(kind, value_of(key))

    def string(self, key: str) -> str | None:
        """The value, if it is there and is a string; cut where no name goes on for so long."""
        value = self._not_array(key)
        if not isinstance(value, str):
            return None
        return value if len(value) <= _MAX_STRING else value[: _MAX_STRING - 1] + "…"

    def text(self, key: str) -> str | None:
        """The value in full, if it is there and is a string: to be run, and never to be shown."""
        value = self._not_array(key)
        return value if isinstance(value, str) else None

    def integer(self, key: str) -> int | None:
        """The value, if it is there and is an integer."""
        value = self._not_array(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def number(self, key: str) -> float | None:
        """The value, if it is there and is a number (float32 values stay float32's)."""
        value = self._not_array(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return float(value)

    def _not_array(self, key: str) -> Value | None:
        return None if key not in self or self._at[key][0] == ARRAY else self[key]


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
        InputError: the file cannot be opened or read.
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
            header = read_header(self.storage)
        except BaseException:
            self.close()
            raise
        self.version = header.version
        self.byte_order = header.byte_order
        self.alignment = header.alignment
        self.header_size = header.n_bytes
        self.raw_metadata_at = header.metadata_at
        self.metadata = Metadata(header.metadata_at, header.values_at)
        self.tensors = header.tensors

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
    def n_trailing(self) -> int:
        """Bytes behind the last tensor and its padding; 0 for a file without tensors."""
        end = max((t.offset + t.n_bytes for t in self.tensors.values()), default=0)
        padded = end + -end % self.alignment
        return max(0, self.size - padded) if end else 0

    @property
    def shards(self) -> tuple[GGUFFile, ...]:
        """The files that the model is in: this one."""
        return (self,)

    @cached_property
    def architecture(self) -> str:
        """``general.architecture``, or the empty string."""
        return self.metadata.string("general.architecture") or ""

    def read_bytes(self, name: str) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """The raw bytes of a tensor, as a copy in native memory.

        Raises:
            KeyError: there is no such tensor.
            InputError: the bytes cannot be had.
        """
        return self.read_many([name])[name]

    def read_part(
        self, name: str, start: int, n: int, into: memoryview | None = None
    ) -> bytes | memoryview:
        """``n`` bytes of a tensor from its byte ``start`` on, in the memory given if possible.

        Raises:
            KeyError: there is no such tensor.
            InputError: they cannot be had.
        """
        at = self.tensors[name].offset + start
        return checked(self.storage.read(at, n, into), self.storage, at, n)

    def extent(self, name: str) -> Extent:
        """Where a tensor's bytes are.

        Raises:
            KeyError: there is no such tensor.
        """
        tensor = self.tensors[name]
        return Extent(self.storage, tensor.offset, tensor.n_bytes)

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
        found: dict[str, np.ndarray[tuple[int], np.dtype[np.uint8]]] = {}
        for t, part in zip(wanted, parts, strict=True):
            whole = checked(part, self.storage, t.offset, t.n_bytes)
            values = np.frombuffer(whole, np.uint8)
            found[t.name] = values if values.flags.writeable else values.copy()
        return found
