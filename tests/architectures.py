"""Tiny GGUF files of any architecture that gguf-py knows: all its norms, little else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import gguf
import numpy as np
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES, MODEL_TENSOR, MODEL_TENSORS, TENSOR_NAMES

N_EMBD = 8
N_LAYERS = 2

NORM_WORDS = ("NORM", "LN", "BN", "ENORM", "HNORM")


def is_norm_member(member: MODEL_TENSOR) -> bool:
    """Whether a word of the member's name begins like a norm's: NORM, NORM1, LN …"""
    return any(word.rstrip("0123456789") in NORM_WORDS for word in member.name.split("_"))


def architecture(name: str) -> MODEL_ARCH:
    return next(a for a in MODEL_ARCH if MODEL_ARCH_NAMES[a] == name)


def norm_tensors(name: str) -> list[str]:
    """Every norm tensor of an architecture, in N_LAYERS blocks, without ``.weight``."""
    members = filter(is_norm_member, MODEL_TENSORS[architecture(name)])
    templates = dict.fromkeys(TENSOR_NAMES[m] for m in members)
    stems = [t.format(bid=i) for t in templates for i in range(N_LAYERS)]
    return list(dict.fromkeys(stems))


def write_model(
    path: Path,
    name: str,
    metadata: Mapping[str, object],
    tensors: Iterable[str] | Mapping[str, np.ndarray],
) -> Path:
    """A file of that architecture; tensors given by name alone are rows of N_EMBD values.

    Floats are stored as float32, integers as uint32, lists as arrays.
    """
    writer = gguf.GGUFWriter(path, name)
    sizes = {f"{name}.block_count": N_LAYERS, f"{name}.embedding_length": N_EMBD}
    for key, value in {**sizes, **metadata}.items():
        if isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            raise TypeError(f"{key}: {value!r}")
    values = np.random.default_rng(0).normal(1, 0.1, N_EMBD).astype(np.float32)
    named = tensors if isinstance(tensors, Mapping) else dict.fromkeys(tensors, values)
    for tensor, data in named.items():
        writer.add_tensor(tensor, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
