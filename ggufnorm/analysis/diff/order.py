"""Were the arguments exchanged? A reference has more bits than what is measured against it."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass

from ggufnorm.errors import InputError
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
        reference: the file.
        quant: the other.
    """

    dtype_ref: str
    dtype: str
    n: int
    reference: str
    quant: str

    def asked(self, verb: str) -> str:
        """The question whether they were exchanged, and the command where they are not."""
        return f"{self._words()}: swapped? (ggufnorm {self._exchanged(verb)})."

    def refusal(self, verb: str) -> str:
        """The same, by a verb that takes no such reference."""
        return f"{self._words()}: use ggufnorm {self._exchanged(verb)}"

    def _exchanged(self, verb: str) -> str:
        between = "--from" if verb == "verify" else ""
        first, second = map(shlex.quote, (self.quant, self.reference))
        if verb == "verify":  # which takes the model under test first
            first, second = second, first
        return " ".join(filter(None, (verb, first, between, second)))

    def _words(self) -> str:
        return (
            f"The reference is quantized more coarsely than the model under test"
            f" ({self.dtype_ref} against {self.dtype} in most of {self.n} tensors)"
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
    return Coarser(first, second, sum(pairs.values()), reference.path, quant.path)


def require_finer(verb: str, reference: ModelFile, quant: ModelFile) -> None:
    """Make sure that a reference may be one.

    Args:
        verb: for the command that was meant.
        reference: the model that is right by definition.
        quant: the model under test.

    Raises:
        InputError: it is quantized more coarsely than the model under test.
    """
    found = coarser(reference, quant)
    if found is not None:
        raise InputError(found.refusal(verb))


def quantized(file: ModelFile) -> str | None:
    """The commonest type of the weights that are quantized, and how many have it."""
    types = Counter(t.dtype for t in file.tensors.values() if _bits(t) < _HALF)
    return "{1} {0}".format(*types.most_common(1)[0]) if types else None


def _bits(tensor: Tensor) -> float:
    return 8 * tensor.n_bytes / max(1, tensor.n_elements)
