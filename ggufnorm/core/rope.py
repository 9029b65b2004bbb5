"""Rotary position embedding, as ggml computes it."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

Pairs = Literal["neighbours", "halves"]
"""Which two channels are turned together: ggml's modes NORMAL and NEOX."""

_MODES: dict[int, Pairs] = {0: "neighbours", 2: "halves"}


@dataclass(frozen=True)
class Rope:
    """How channels are turned.

    Attributes:
        pairs: which two go together.
        n_dims: channels that are turned, from the first.
        base: of the frequencies.
        scale: factor of the positions.
    """

    pairs: Pairs
    n_dims: int
    base: float
    scale: float

    @classmethod
    def of_params(cls, params: bytes) -> Rope | None:
        """Read ``op_params`` (``ggml_rope_impl`` in ``ggml/src/ggml.c``); None if unknown."""
        _, n_dims, mode, _, _, base, scale = struct.unpack_from("5i2f", params)
        pairs = _MODES.get(mode)
        return None if pairs is None else cls(pairs, n_dims, base, scale)

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
        rates = self.base ** (-np.arange(half) / half) * self.scale
        angles = np.arange(n)[:, None, None] * rates
        cos, sin = np.cos(angles), np.sin(angles)
        at = np.arange(half)
        i, k = (2 * at, 2 * at + 1) if self.pairs == "neighbours" else (at, at + half)
        out = x.copy()
        out[..., i] = x[..., i] * cos - x[..., k] * sin
        out[..., k] = x[..., i] * sin + x[..., k] * cos
        return out

    def __str__(self) -> str:
        scale = "" if self.scale == 1.0 else f", positions times {self.scale:.6g}"
        return f"{self.pairs}, {self.n_dims} channels, base {self.base:.6g}{scale}"
