"""Whether two GGUF files hold the same keys and tensors, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ggufnorm.formats.location import open_model

Content = tuple[dict[str, tuple[int, Any]], dict[str, tuple[str, tuple[int, ...], bytes]]]


def content(path: Path) -> Content:
    """Types and values of all keys; types, shapes and bytes of all tensors."""
    with open_model(path) as file:
        first = file.shards[0]
        keys = {key: (first.raw_metadata_at[key][0], file.metadata[key]) for key in file.metadata}
        tensors = {
            name: (t.dtype, t.shape, bytes(file.read_bytes(name)))
            for name, t in file.tensors.items()
        }
    return keys, tensors


def differences(a: Path, b: Path) -> list[str]:
    """Names of the keys and tensors that are not the same."""
    return [
        name
        for one, other in zip(content(a), content(b), strict=True)
        for name in one.keys() | other.keys()
        if one.get(name) != other.get(name)
    ]
