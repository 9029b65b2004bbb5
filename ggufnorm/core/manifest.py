"""What a model file holds, as digests: to tell later whether it still does."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

SCHEMA = "ggufnorm/manifest"
VERSION = 1


@dataclass(frozen=True)
class TensorDigest:
    """A tensor.

    Attributes:
        name: in the file.
        dtype: as ggml calls it.
        shape: in NumPy's order.
        digest: SHA-256 of type, shape and bytes, in hexadecimal.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    digest: str


@dataclass(frozen=True)
class Manifest:
    """A model.

    Attributes:
        path: it was made of.
        digest: SHA-256 of the digests of all tensors in their order by digest: names, metadata
            and the order in the file do not count.
        tensors: in file order.
        keys: of the metadata, each with the SHA-256 of its value.
        schema: tells what the document is.
        version: of the document.
    """

    path: str
    digest: str
    tensors: tuple[TensorDigest, ...]
    keys: dict[str, str]
    schema: str = SCHEMA
    version: int = VERSION


def digest_of_all(tensors: tuple[TensorDigest, ...]) -> str:
    """See :attr:`Manifest.digest`."""
    return hashlib.sha256("".join(sorted(t.digest for t in tensors)).encode()).hexdigest()
