"""Activation functions of feed-forward networks, to tell which one made a result."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_erf = np.frompyfunc(math.erf, 1, 1)


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def _gelu(x: Array) -> Array:
    return 0.5 * x * (1.0 + np.asarray(_erf(x / math.sqrt(2.0)), np.float64))


def _gelu_tanh(x: Array) -> Array:
    return np.asarray(0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))))


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "SiLU": lambda x: x * _sigmoid(x),
    "GELU (tanh)": _gelu_tanh,
    "GELU (erf)": _gelu,
    "GELU (quick)": lambda x: x * _sigmoid(1.702 * x),
    "ReLU": lambda x: np.maximum(x, 0.0),
    "squared ReLU": lambda x: np.maximum(x, 0.0) ** 2,
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "no activation": lambda x: x,
}
"""By name; the ones that ggml has (``ggml_unary_op`` in ``ggml/include/ggml.h``) and none."""
