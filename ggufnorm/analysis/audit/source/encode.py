"""The bytes of a tensor as its source gives it, made piece by piece in the file's type."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from ggufnorm.analysis.audit.source.cost import TYPICAL, quantizer
from ggufnorm.analysis.audit.source.layout import Layout, Values
from ggufnorm.analysis.audit.source.plan import role_of
from ggufnorm.core.floats import round_to_bf16
from ggufnorm.errors import InputError
from ggufnorm.formats.conversion import EMBEDDING
from ggufnorm.formats.gguf_constants import GGML_QUANT_SIZES, GGMLQuantizationType
from ggufnorm.formats.gguf_header import ByteOrder
from ggufnorm.formats.gguf_rewrite import Stream
from ggufnorm.formats.gguf_tensors import Tensor
from ggufnorm.formats.model_file import ModelFile

_PIECE = 1 << 20
"""Values that are encoded at a time."""


def why_not(dtype: str, byte_order: ByteOrder) -> str | None:
    """Why no tensor of a type can be written here; None if it can."""
    if dtype in ("F32", "F16", "BF16"):
        return None
    if byte_order == ">":
        return f"{dtype} is not written in big endian"
    if dtype in TYPICAL:
        return f"{dtype} needs an importance matrix: quantize the tensor again"
    return None


def stored_alike(file: ModelFile, name: str) -> Tensor | None:
    """A tensor of the file that is stored as one that it lacks would be."""
    if name == "output.weight":
        return file.tensors.get(EMBEDDING)
    role = role_of(name)
    return next((file.tensors[n] for n in file.tensors if role_of(n) == role), None)


def added(name: str, like: Tensor | None, layout: Layout) -> Tensor | None:
    """A tensor that a file lacks, as one of the same role is stored; None if that cannot be.

    Args:
        name: its name.
        like: one of the same role, or of a role that is stored alike; None if there is none.
        layout: what it should have.
    """
    is_vector = layout.n_rows == 1
    shape: tuple[int, ...] = (layout.n_columns, layout.n_rows)[: 1 if is_vector else 2]
    if like is not None and prod(like.shape) == prod(shape):
        shape = like.shape
    dtype = "F32" if is_vector else like.dtype if like is not None else "F16"
    kind = GGMLQuantizationType[dtype]
    block, n_bytes = GGML_QUANT_SIZES[kind]
    if shape[0] % block:
        return None
    return Tensor(name, shape, dtype, int(kind), 0, prod(shape) // block * n_bytes)


def stream(tensor: Tensor, layout: Layout) -> Stream:
    """A tensor of the file's shape and type with a layout's values, read as it is written.

    Quantized types are made by ggml, all columns of the same importance.
    """

    def pieces(order: ByteOrder) -> Iterator[bytes]:
        step = max(1, _PIECE // max(1, layout.n_columns))
        for start in range(0, layout.n_rows, step):
            values = layout.read(start, min(layout.n_rows, start + step))
            yield _encoded(tensor, values, order)

    return Stream(tensor.shape, tensor.ggml_type, tensor.n_bytes, pieces)


def _encoded(tensor: Tensor, values: Values, order: ByteOrder) -> bytes:
    if tensor.dtype == "F32":
        return values.astype(f"{order}f4").tobytes()
    if tensor.dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(f"{order}f2").tobytes()
    if tensor.dtype == "BF16":
        bits = round_to_bf16(values).view(np.uint32) >> 16
        return bits.astype(f"{order}u2").tobytes()
    quantize = quantizer(tensor.ggml_type)
    try:
        if quantize is not None:
            return quantize(values).tobytes()
    except (ValueError, NotImplementedError) as error:
        raise InputError(f"{tensor.name}: {tensor.dtype}: {error}") from None
    raise InputError(f"{tensor.name}: {tensor.dtype} cannot be made here")


def fits(tensor: Tensor, layout: Layout) -> bool:
    """Whether a layout has a tensor's values."""
    return layout.n_rows * layout.n_columns == prod(tensor.shape)
