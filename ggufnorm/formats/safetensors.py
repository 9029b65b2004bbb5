"""A bounded reader of safetensors files, without torch.

Layout (the safetensors format's own description): the header's length as a little-endian
u64, the header as JSON, the tensors' bytes. The header names each tensor's dtype, shape
and place; nothing that it says is believed before it is checked against the file.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ggufnorm.errors import InputError
from ggufnorm.formats.storage import Storage

MAX_HEADER = 100_000_000
"""Most bytes of a header, as in the format's reference implementation."""

_MAX_DIMS = 32  # as many as NumPy had for a long time; norms have one or two

# Bits of an element. What is not listed is not read, and its size is not checked.
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip

_PLAIN = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


@dataclass(frozen=True)
class SourceTensor:
    """A tensor of a checkpoint as the header describes it.

    Attributes:
        name: as in the file.
        dtype: the format's name of it: ``BF16``, ``F16``, ``F32`` …
        shape: in NumPy's order, the row's length last.
        offset: of the first byte, from the start of the file.
        n_bytes: size of the data.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


class SafetensorsFile:
    """One open safetensors file.

    Attributes:
        name: as messages call it.
        tensors: by name.

    Raises:
        InputError: it is not well-formed.
    """

    def __init__(self, storage: Storage) -> None:
        self.name = storage.name
        self._storage = storage
        self.tensors = _read_header(storage)

    def read(self, name: str, rows: int | None = None) -> NDArray[np.float64] | NDArray[np.float32]:
        """A tensor's values: float64 of F64, float32 of F32, F16 and BF16, which are exact.

        Args:
            name: the tensor's.
            rows: only so many, from the first on; None for all. A row is what the first
                dimension counts.

        Raises:
            KeyError: there is no such tensor.
            InputError: its dtype is not one of these.
        """
        tensor = self.tensors[name]
        shape, n_bytes = tensor.shape, tensor.n_bytes
        if rows is not None and shape and rows < shape[0]:
            shape, n_bytes = (rows, *shape[1:]), n_bytes // shape[0] * rows
        raw = np.frombuffer(self._storage.read(tensor.offset, n_bytes), np.uint8)
        if tensor.dtype == "BF16":
            wide = raw.view("<u2").astype(np.uint32) << 16
            return wide.view(np.float32).reshape(shape)
        if tensor.dtype not in _PLAIN:
            known = ", ".join([*_PLAIN, "BF16"])
            raise InputError(
                f"{self.name}: {name} is {tensor.dtype}: only {known} are read;"
                " give the unquantized checkpoint"
            )
        values = raw.view(_PLAIN[tensor.dtype]).reshape(shape)
        if tensor.dtype == "F64":
            return values.astype(np.float64)
        return values.astype(np.float32)

    def close(self) -> None:
        """Give back what is held open."""
        self._storage.close()


def parse_json(text: bytes | memoryview, name: str) -> Any:
    """JSON that someone else wrote.

    Raises:
        InputError: it is not JSON, is nested too deeply or names something twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise ValueError(f"{_quoted(twice)} is there twice")
        return found

    try:
        return json.loads(bytes(text).decode("utf-8"), object_pairs_hook=unique)
    except RecursionError:
        raise InputError(f"{name}: not usable as JSON: nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{name}: not usable as JSON: {error}") from None


def _read_header(storage: Storage) -> dict[str, SourceTensor]:
    if storage.size < 8:
        raise _malformed(storage, "too short for a header")
    n = int.from_bytes(storage.read(0, 8), "little")
    if n > min(MAX_HEADER, storage.size - 8):
        raise _malformed(storage, f"the header claims {n:,} bytes of a file of {storage.size:,}")
    header = parse_json(storage.read(8, n), f"{storage.name}: header")
    if not isinstance(header, dict):
        raise _malformed(storage, "the header is not a JSON object")
    header.pop("__metadata__", None)
    found = [_tensor(storage, 8 + n, name, entry) for name, entry in header.items()]
    _check_overlaps(storage, found)
    return {tensor.name: tensor for tensor in found}


def _tensor(storage: Storage, data: int, name: str, entry: object) -> SourceTensor:
    if not isinstance(entry, dict):
        raise _malformed(storage, f"{_quoted(name)} is not described by an object")
    dtype, shape, place = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str):
        raise _malformed(storage, f"{_quoted(name)} has no dtype")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMS:
        raise _malformed(storage, f"{_quoted(name)} has no usable shape")
    if not _are_sizes(place) or len(place) != 2:
        raise _malformed(storage, f"{_quoted(name)} has no usable data_offsets")
    begin, end = place
    if not begin <= end <= storage.size - data:
        raise _malformed(
            storage,
            f"{_quoted(name)} claims bytes {begin:,} to {end:,} of {storage.size - data:,}",
        )
    bits = _BITS.get(dtype)
    if bits is not None and prod(shape) * bits != 8 * (end - begin):
        what = f"{dtype} of shape {'×'.join(map(str, shape)) or 'scalar'}"
        raise _malformed(storage, f"{_quoted(name)}: {what} does not take {end - begin:,} bytes")
    return SourceTensor(name, dtype, tuple(shape), data + begin, end - begin)


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**63 for n in value
    )


def _check_overlaps(storage: Storage, tensors: Iterable[SourceTensor]) -> None:
    placed = sorted((t for t in tensors if t.n_bytes), key=lambda t: t.offset)
    for one, next_one in pairwise(placed):
        if one.offset + one.n_bytes > next_one.offset:
            both = f"{_quoted(one.name)} and {_quoted(next_one.name)}"
            raise _malformed(storage, f"{both} overlap")


def _malformed(storage: Storage, problem: str) -> InputError:
    return InputError(f"{storage.name}: not well-formed safetensors: {problem}")


def _quoted(name: str) -> str:
    return ascii(name if len(name) <= 64 else name[:61] + "...")
