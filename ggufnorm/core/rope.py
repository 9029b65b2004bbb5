"""Rotary position embedding, as ggml computes it."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

Pairs = Literal["neighbours", "halves"]
"""Which two channels are turned together: ggml's modes NORMAL and NEOX."""

_MODES: dict[int, Pairs] = {0: "neighbours", 2: "halves"}


@dataclass(frozen=True)
class Yarn:
    """How YaRN mixes the frequencies as they are with scaled ones.

    Attributes:
        n_ctx: of the training before.
        mix: share of the mixture, ``ext_factor``.
        fast: turns within ``n_ctx`` above which a frequency stays.
        slow: turns below which it is scaled.
        truncate: whether the range between is cut to whole channels, as ggml always does.
    """

    n_ctx: int
    mix: float
    fast: float
    slow: float
    truncate: bool = True

    def rates(self, rates: NDArray[np.float64], n_dims: int, base: float, scale: float) -> Any:
        """Frequencies of the pairs of channels.

        Source: ``rope_yarn`` in ``ggml/src/ggml-cpu/ops.cpp`` and ``ggml_rope_yarn_corr_dims``
        in ``ggml/src/ggml.c``; without truncation ``_compute_yarn_parameters`` in transformers.
        """
        low, high = (
            n_dims * math.log(self.n_ctx / (turns * 2 * math.pi)) / (2 * math.log(base))
            for turns in (self.fast, self.slow)
        )
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(0.0, low), min(n_dims - 1.0, high)
        ramp = np.clip((np.arange(len(rates)) - low) / max(0.001, high - low), 0, 1)
        mix = (1 - ramp) * self.mix
        return rates * scale * (1 - mix) + rates * mix


@dataclass(frozen=True)
class Rope:
    """How channels are turned.

    Attributes:
        pairs: which two go together.
        n_dims: channels that are turned, from the first.
        base: of the frequencies.
        scale: factor of the positions.
        size: factor of what comes out.
        yarn: the mixture of frequencies; None for none.
    """

    pairs: Pairs
    n_dims: int
    base: float
    scale: float
    size: float = 1.0
    yarn: Yarn | None = None

    @classmethod
    def of_params(cls, params: bytes) -> Rope | None:
        """Read ``op_params`` (``ggml_rope_impl`` in ``ggml/src/ggml.c``); None if unknown."""
        _, n_dims, mode, _, n_ctx, base, scale, mix, size, fast, slow = struct.unpack_from(
            "5i6f", params
        )
        pairs = _MODES.get(mode)
        if pairs is None:
            return None
        if not mix:
            return cls(pairs, n_dims, base, scale, size)
        if scale > 0:
            size *= 1 + 0.1 * math.log(1 / scale)
        return cls(pairs, n_dims, base, scale, size, Yarn(n_ctx, mix, fast, slow))

    @classmethod
    def swaps_rows(cls, params: bytes) -> bool:
        """Whether matrices before it have other rows than in Transformers, which turns halves."""
        used = cls.of_params(params)
        return used is not None and used.pairs == "neighbours"

    def apply(self, x: Array) -> Array:
        """Turn ``(…, tokens, heads, channels)`` of tokens at positions 0, 1, ….

        Source: ``ggml_compute_forward_rope_f32`` in ``ggml/src/ggml-cpu/ops.cpp``.
        """
        n, half = x.shape[-3], self.n_dims // 2
        rates = self.base ** (-np.arange(half) / half)
        if self.yarn is None:
            rates = rates * self.scale
        else:
            rates = self.yarn.rates(rates, self.n_dims, self.base, self.scale)
        angles = np.arange(n)[:, None, None] * rates
        cos, sin = np.cos(angles) * self.size, np.sin(angles) * self.size
        at = np.arange(half)
        i, k = (2 * at, 2 * at + 1) if self.pairs == "neighbours" else (at, at + half)
        out = x.copy()
        out[..., i] = x[..., i] * cos - x[..., k] * sin
        out[..., k] = x[..., i] * sin + x[..., k] * cos
        return out

    def __str__(self) -> str:
        scale = "" if self.scale == 1.0 else f", positions times {self.scale:.6g}"
        yarn = "" if self.yarn is None else " (YaRN)"
        return f"{self.pairs}, {self.n_dims} channels, base {self.base:.6g}{scale}{yarn}"


def as_halves(x: Array) -> Array:
    """Channels that lie as neighbours where Transformers has them: in two halves."""
    return np.concatenate([x[..., 0::2], x[..., 1::2]], axis=-1)
