"""Importance matrices: what llama-imatrix writes and llama-quantize reads.

For each matrix product, the sum of squares of each input channel over all tokens, and how
many tokens there were; of experts, one row and one count each.

GGUF files hold two tensors for each, ``NAME.in_sum2`` and ``NAME.counts``
(``IMatrixCollector::save_imatrix`` in ``tools/imatrix/imatrix.cpp``). Legacy ``.dat`` files
hold means times a number of calls (``save_imatrix_legacy`` there, and
``common_imatrix_load_legacy`` in ``common/imatrix-loader.cpp``).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufnorm.errors import InputError
from ggufnorm.formats.dequantize import read_norms
from ggufnorm.formats.files import open_regular, read_regular
from ggufnorm.formats.gguf import GGUFFile
from ggufnorm.formats.gguf_cursor import quoted
from ggufnorm.formats.output import replacing, reported

Array = NDArray[np.float32]

_SUMS, _COUNTS = ".in_sum2", ".counts"
_MAX_NAME = 4096
_MOST_BYTES = 1 << 31


@dataclass(frozen=True)
class Activations:
    """What a matrix product's inputs were.

    Attributes:
        sums: sums of squares, ``(experts, channels)``; one expert where there are none.
        counts: rows that were summed, ``(experts,)`` or ``(1,)``.
    """

    sums: Array
    counts: Array

    def importance(self) -> Array:
        """Mean squares, ``(experts · channels,)``; 1 where nothing was seen.

        Source: ``load_imatrix`` in ``tools/quantize/quantize.cpp``.
        """
        counts = np.broadcast_to(self.counts[:, np.newaxis], (len(self.sums), 1))
        means = np.where(counts > 0, self.sums / np.maximum(counts, 1), 1.0)
        return means.astype(np.float32).ravel()


def read_imatrix(path: str | os.PathLike[str]) -> dict[str, Array]:
    """An importance matrix in either format.

    Returns:
        Tensor name to one weight for each column (of each expert in turn).

    Raises:
        InputError: the file cannot be read, is in neither format, or holds no finite weights.
    """
    try:
        with open_regular(path) as file:
            is_gguf = file.read(4) == b"GGUF"
        found = _read_gguf(path) if is_gguf else _read_legacy(read_regular(path, _MOST_BYTES), path)
    except OSError as error:
        raise InputError(f"cannot read the importance matrix {path}: {error.strerror}") from None
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise InputError(
                f"{path}: {quoted(name)} holds NaN or infinity: compute the matrix again"
            )
        if values.min(initial=0) < 0:
            raise InputError(
                f"{path}: {quoted(name)} holds weights below 0: compute the matrix again"
            )
    if not found:
        raise InputError(f"{path} holds no importance matrix: it is another kind of GGUF file")
    return found


def write_imatrix(
    path: str | os.PathLike[str],
    activations: Mapping[str, Activations],
    *,
    text_name: str,
    n_chunks: int,
    n_ctx: int,
) -> None:
    """Write what llama-imatrix writes; the file appears only when it is complete.

    Args:
        path: of the file.
        activations: by the matrices' names.
        text_name: what was run.
        n_chunks: how many chunks of it.
        n_ctx: tokens of a chunk.

    Raises:
        OutputError: the file cannot be written.
    """
    from gguf import GGUFWriter

    with replacing(path) as unfinished, reported(path):
        writer = GGUFWriter(unfinished, "")
        writer.kv_data[0].clear()  # an importance matrix has no architecture
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", [text_name])
        writer.add_uint32("imatrix.chunk_count", n_chunks)
        writer.add_uint32("imatrix.chunk_size", n_ctx)
        for name in sorted(activations):
            a = activations[name]
            writer.add_tensor(name + _SUMS, np.ascontiguousarray(a.sums, np.float32))
            counts = np.ascontiguousarray(a.counts, np.float32)
            writer.add_tensor(name + _COUNTS, counts.reshape(-1, 1))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _read_gguf(path: str | os.PathLike[str]) -> dict[str, Array]:
    found = {}
    with GGUFFile(path) as file:
        for tensor in file.tensors:
            name = tensor.removesuffix(_SUMS)
            if name == tensor:
                continue
            if name + _COUNTS not in file.tensors:
                raise InputError(f"{path}: {quoted(tensor)} has no {_COUNTS}: the file is damaged")
            values, unreadable = read_norms(file, (tensor, name + _COUNTS))
            if unreadable:
                raise InputError(next(iter(unreadable.values())))
            sums, counts = values[tensor], values[name + _COUNTS].ravel()
            if counts.size == 0 or sums.size % counts.size:
                raise InputError(
                    f"{path}: {quoted(name)}: {counts.size} counts do not fit {sums.size}"
                )
            with np.errstate(all="ignore"):  # what is not finite is refused
                found[name] = Activations(sums.reshape(counts.size, -1), counts).importance()
    return found


def _read_legacy(raw: bytes, path: str | os.PathLike[str]) -> dict[str, Array]:
    damaged = InputError(
        f"{path} is not an importance matrix: neither llama-imatrix's GGUF nor its .dat format"
    )
    at, found = 4, {}
    try:
        (n_entries,) = struct.unpack_from("<i", raw, 0)
        for _ in range(n_entries):
            (length,) = struct.unpack_from("<i", raw, at)
            if not 0 < length < _MAX_NAME:
                raise damaged
            name = raw[at + 4 : at + 4 + length].decode()
            n_calls, n = struct.unpack_from("<ii", raw, at + 4 + length)
            at += 12 + length
            if n < 1:
                raise damaged
            values = np.frombuffer(raw, "<f4", n, at).astype(np.float32)
            with np.errstate(all="ignore"):  # what is not finite is refused
                found[name] = values / np.float32(n_calls) if n_calls > 0 else values
            at += 4 * n
    except (struct.error, ValueError):
        raise damaged from None
    if not found:
        raise damaged
    return found
