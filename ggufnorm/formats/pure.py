"""A model with all its matrices in one type, quantized by ggml alone: ``llama-quantize --pure``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ggufnorm.errors import EngineMissingError
from ggufnorm.formats.dequantize import read_tensor
from ggufnorm.formats.ggml import quantized
from ggufnorm.formats.gguf import GGUFFile
from ggufnorm.formats.gguf_constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
from ggufnorm.formats.gguf_header import ByteOrder
from ggufnorm.formats.gguf_rewrite import Changes, Stream, rewrite
from ggufnorm.formats.output import replacing, reported


def quantize_purely(source: Path, target: Path, dtype: str) -> None:
    """Write a copy whose matrices are of one type; rows that do not hold whole blocks stay.

    Args:
        source: an F32, F16 or BF16 GGUF file.
        target: the file to write; it appears only when it is complete.
        dtype: ggml's name of a type that needs no importance matrix.

    Raises:
        EngineMissingError: there is no ggml here.
        OutputError: the file cannot be written.
    """
    kind = GGMLQuantizationType[dtype]
    block, size = GGML_QUANT_SIZES[kind]
    with GGUFFile(source) as file, replacing(target) as unfinished, reported(target):
        streams = {}
        for name, tensor in file.tensors.items():
            if len(tensor.shape) > 1 and tensor.shape[0] % block == 0:
                n_bytes = int(np.prod(tensor.shape)) // block * size
                streams[name] = Stream(tensor.shape, int(kind), n_bytes, _blocks(file, name, kind))
        number = int(LlamaFileType[f"MOSTLY_{dtype}"])
        keys = {"general.file_type": ("u32", number)}
        rewrite(file, unfinished, Changes(keys=keys, tensors=streams))


def _blocks(
    file: GGUFFile, name: str, kind: GGMLQuantizationType
) -> Callable[[ByteOrder], Iterator[bytes]]:
    def pieces(_order: ByteOrder) -> Iterator[bytes]:
        values = read_tensor(file, name)
        made = quantized(int(kind), values.reshape(-1, values.shape[-1]))
        if made is None:
            raise EngineMissingError("this needs ggml: see ggufnorm doctor")
        yield made.tobytes()

    return pieces
