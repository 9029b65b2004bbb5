"""Tensor data to float32."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ggufnorm.errors import InputError
from ggufnorm.formats.model_file import ModelFile


def read_tensor(
    file: ModelFile, name: str, raw: NDArray[np.uint8] | None = None
) -> NDArray[np.float32]:
    """A tensor's values as float32, whatever its type.

    Args:
        file: the model.
        name: the tensor's.
        raw: its bytes, if they have been read already.

    Returns:
        The values in NumPy's order: the reverse of ggml's ``ne``, rows on the last axis.

    Raises:
        KeyError: there is no such tensor.
        InputError: gguf-py cannot dequantize its type.
    """
    tensor = file.tensors[name]
    raw = file.read_bytes(name) if raw is None else raw
    shape = tensor.shape[::-1]
    if tensor.n_bytes == 0:
        return np.empty(shape, np.float32)
    plain = {"F32": "f4", "F16": "f2", "F64": "f8"}.get(tensor.dtype)
    if plain:
        return raw.view(file.byte_order + plain).astype(np.float32).reshape(shape)
    if file.byte_order == ">":
        raise InputError(f"{file.path}: {name}: big-endian {tensor.dtype} cannot be read yet")
    try:
        return dequantize_rows(raw.reshape(*shape[:-1], -1), tensor.ggml_type).reshape(shape)
    except NotImplementedError:
        raise InputError(f"{file.path}: {name}: gguf-py cannot read {tensor.dtype}") from None


def dequantize_rows(raw: NDArray[np.uint8], ggml_type: int) -> NDArray[np.float32]:
    """Rows of raw bytes to rows of values.

    Args:
        raw: ``(…, bytes of a row)``.
        ggml_type: ggml's number of the type.

    Raises:
        NotImplementedError: gguf-py does not know how.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    return np.asarray(dequantize(raw, GGMLQuantizationType(ggml_type)), dtype=np.float32)
