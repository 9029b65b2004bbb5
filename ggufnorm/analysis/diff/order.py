"""Were the arguments exchanged? A reference has more bits than what is measured against it."""

from __future__ import annotations

from dataclasses import dataclass

from ggufnorm.formats.gguf_tensors import Tensor
from ggufnorm.formats.model_file import ModelFile

_HALF = 16
"""Bits of a weight that is not quantized, at least."""


@dataclass(frozen=True)
class Coarser:
    """A reference that is quantized more coarsely than the model under test.

    Attributes:
        dtype_ref: the commonest pair of types: the reference's.
        dtype: and the other's.
        n: tensors in which the reference has fewer bits.
    """

    dtype_ref: str
    dtype: str
    n: int

    def __str__(self) -> str:
        return (
            f"The reference is quantized more coarsely than the model under test"
            f" ({self.dtype_ref} against {self.dtype} in most of {self.n} tensors): swapped?"
        )


def coarser(reference: ModelFile, quant: ModelFile) -> Coarser | None:
    """Whether the reference spends fewer bits on its weights; None if it does not."""
    pairs: dict[tuple[str, str], int] = {}
    bits = [0.0, 0.0]
    for name, a in reference.tensors.items():
        b = quant.tensors.get(name)
        if b is None or a.shape != b.shape or a.ggml_type == b.ggml_type:
            continue
        for side, tensor in enumerate((a, b)):
            bits[side] += a.n_elements * _bits(tensor)
        if _bits(a) < min(_bits(b), _HALF):
            pairs[a.dtype, b.dtype] = pairs.get((a.dtype, b.dtype), 0) + 1
    if not pairs or bits[0] >= bits[1]:
        return None
    first, second = max(pairs, key=lambda pair: pairs[pair])
    return Coarser(first, second, sum(pairs.values()))


def _bits(tensor: Tensor) -> float:
    return 8 * tensor.n_bytes / max(1, tensor.n_elements)
