"""Whether values are finite, told by their bits: far faster than converting them.

A block of a quantized type has finite values if its half-precision scales are finite: no
product of theirs with the block's small integers leaves float32. Where a block has them is not
written down here but asked of ggml: a NaN is put into each place of an empty block.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.floats import BF16_INFINITY, F16_INFINITY, F32_INFINITY, below
from ggufnorm.core.kernels import Numbers
from ggufnorm.formats.dequantize import dequantize_rows, extent_of_rows, read_raw_rows
from ggufnorm.formats.gguf_constants import GGML_QUANT_SIZES, GGMLQuantizationType
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.storage import Scratch
from ggufnorm.formats.streaming import scan

_SCALED_BY_HALVES = frozenset(
    (
        "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
        "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ4_NL", "IQ4_XS",
    )
)  # fmt: skip
"""Types whose only floating-point fields are of type ``ggml_half`` (``ggml-common.h``)."""

_VALUES = {
    "F32": Numbers(4, 4, (0,), F32_INFINITY),
    "F16": Numbers(2, 2, (0,), F16_INFINITY),
    "BF16": Numbers(2, 2, (0,), BF16_INFINITY),
}
"""Types whose blocks are values."""

_NAN = np.uint16(0x7E00)

_SCRATCH = Scratch()

_CHUNK = 1 << 21
"""Bytes that are looked at at once: so many that a thread seldom waits for the interpreter."""


def are_finite(raw: NDArray[np.uint8], ggml_type: int) -> bool | None:
    """Whether all values of some rows are finite.

    Args:
        raw: their bytes, in this machine's order, C-contiguous.
        ggml_type: ggml's number of the type.

    Returns:
        None if the values' bits do not tell, for want of knowledge of the type.
    """
    of = numbers(ggml_type)
    if of is None:
        return None
    flat = raw.reshape(-1)
    bits = flat.view(np.uint16) if of.width == 2 else flat.view(np.uint32)
    blocks = bits.reshape(-1, of.block // of.width)
    return all(below(blocks[:, p // of.width], of.infinity) for p in of.places)


def rows_are_finite(file: ModelFile, name: str, start: int, stop: int) -> bool | None:
    """The same of some rows of a tensor, read for it.

    Args:
        file: may be read by several threads.
        name: of the tensor.
        start: first row.
        stop: the row after the last.

    Returns:
        None if the values' bits do not tell.

    Raises:
        InputError: their bytes cannot be had.
    """
    tensor = file.tensors[name]
    of = numbers(tensor.ggml_type) if file.byte_order == "<" else None
    if of is None:
        return None
    extent = extent_of_rows(file, name, start, stop)
    told = scan(extent, of)
    if told is not None:
        return told
    step = max(1, _CHUNK * (stop - start) // max(1, extent.n))
    chunks = ((first, min(stop, first + step)) for first in range(start, stop, step))
    raw = (read_raw_rows(file, tensor, *chunk, _SCRATCH) for chunk in chunks)
    return all(are_finite(some, tensor.ggml_type) for some in raw)


@cache
def numbers(ggml_type: int) -> Numbers | None:
    """The floating-point numbers of a type's blocks; None if it may have something else."""
    kind = GGMLQuantizationType(ggml_type)
    if kind.name not in _SCALED_BY_HALVES:
        return _VALUES.get(kind.name)
    n_bytes = GGML_QUANT_SIZES[kind][1]
    found = []
    for place in range(0, n_bytes - 1, 2):
        block = np.zeros(n_bytes, np.uint8)
        block[place : place + 2] = np.array([_NAN], np.uint16).view(np.uint8)
        try:
            values = dequantize_rows(block[None, :], ggml_type)
        except NotImplementedError:
            return None
        if not np.isfinite(values).all():
            found.append(place)
    # Nothing to look at is not the same as nothing wrong.
    return Numbers(n_bytes, 2, tuple(found), F16_INFINITY) if found else None
