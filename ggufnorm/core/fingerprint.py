"""Which offset a converter added to a weight, told from the weight alone.

Some models compute ``(1 + w) · x`` and their converter bakes the 1 into the file
(``conversion/gemma.py``, ``nemotron.py``, ``qwen.py`` in llama.cpp). A model trained in
bfloat16 has weights of 8 significant bits; 1 added to them in float32 needs more. So of
the usual offsets k, every ``w - k`` is a bfloat16 only for the k that was baked in.

That can fail to tell, and then it says so: weights that are constant, weights trained in
another format, and values so large that ``w - k`` has the same spacing as ``w``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.floats import is_bf16, is_f16

OFFSETS = (0, 1, 2, -1)
"""The offsets tried, the likeliest first."""

CONCLUSIVE_BITS = 20.0
"""An offset is ruled out if the values would fit by chance with odds of 1 to 2²⁰."""


@dataclass(frozen=True)
class OffsetFingerprint:
    """What the values of a weight tell of the offset baked into them.

    Attributes:
        offset: the k of :data:`OFFSETS` that was added, 0 for none; None if the values
            do not tell.
        bf16: for each k, as text, the fraction of elements whose ``w - k`` is a bfloat16.
        f16: the fraction of elements that are half-precision numbers as they stand.
        note: why ``offset`` is None; empty if it is not.
    """

    offset: int | None
    bf16: dict[str, float]
    f16: float
    note: str = ""

    @property
    def fits(self) -> bool:
        """Whether there is an offset without which all elements are bfloat16s."""
        return 1.0 in self.bf16.values()


def offset_fingerprint(weight: NDArray[np.float32]) -> OffsetFingerprint:
    """Look for the offset that was baked into a weight.

    Args:
        weight: of any shape; NaN and infinities are left out.
    """
    w = weight[np.isfinite(weight)].astype(np.float64)
    if w.size == 0:
        return OffsetFingerprint(None, {str(k): 0.0 for k in OFFSETS}, 0.0, "no finite value")
    bf16 = {k: float(is_bf16(w - k).mean()) for k in OFFSETS}
    f16 = float(is_f16(w).mean())
    offset, note = _judge(w, [k for k in OFFSETS if bf16[k] == 1.0], f16)
    return OffsetFingerprint(offset, {str(k): fraction for k, fraction in bf16.items()}, f16, note)


def _judge(w: NDArray[np.float64], fitting: list[int], f16: float) -> tuple[int | None, str]:
    if not fitting:
        return None, "F16 values and not BF16 ones" if f16 == 1.0 else "not BF16 values"
    if w.min() == w.max():
        return None, "constant values"
    # Where several fit, the finest grid explains the values without a coincidence.
    best = fitting[0]
    if any(_coincidence_bits(w - best, w - k) < CONCLUSIVE_BITS for k in fitting[1:]):
        return None, f"offsets {', '.join(map(str, fitting))} fit alike"
    return best, ""


def _coincidence_bits(values: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Surprise, in bits, that ``other`` would lie on the coarser grid of ``values``.

    Were ``other`` the trained weight, each of its elements would have had 8 significant
    bits to choose from; that they all lie on the grid of ``values`` takes one coin toss
    for each factor of 2 between the spacings. Zeros lie on every grid.
    """
    both = (values != 0) & (other != 0)
    coarser = np.frexp(values[both])[1] - np.frexp(other[both])[1]
    return float(np.maximum(coarser, 0).sum())
