"""What a checkpoint's config.json says of epsilons."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import numpy as np

from ggufnorm.core.model import NormKind

Config = Mapping[str, Any]

# Where a config keeps its language model's part, and its vision encoder's
# (load_hparams and get_vision_config in llama.cpp's conversion/base.py).
_TEXT = ("text_config", "llm_config", "language_config", "lm_config", "thinker_config", "lfm")
_VISION = ("vision_config", "vision_encoder", "vit_config", "thinker_config")

# Names of an epsilon, the usual one of each kind first. Orion keeps a LayerNorm's under
# rms_norm_eps, Refact and T5 an RMSNorm's under layer_norm_epsilon.
_RMS = ("rms_norm_eps", "norm_eps", "layernorm_epsilon", "layer_norm_rms_epsilon")
_LAYER = ("layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon")
_EITHER = ("norm_epsilon", "norm_eps")
_KEYS: dict[NormKind, tuple[str, ...]] = {
    "rms": (*_RMS, *_EITHER, *_LAYER),
    "layer": (*_LAYER, *_EITHER, *_RMS),
    "group": ("group_norm_epsilon", "group_norm_eps"),
}


def text_epsilon(config: Config, kind: NormKind, layer: int | None) -> tuple[str, float] | None:
    """A language model's epsilon: where it stands and what it is, None if nowhere.

    Args:
        config: the whole of ``config.json``.
        kind: of the norm.
        layer: of the norm: some configs have a list.
    """
    return _first([*_parts(config, _TEXT, "text_config"), ("", config)], kind, layer)


def vision_epsilon(config: Config, kind: NormKind) -> tuple[str, float] | None:
    """A vision encoder's epsilon; see :func:`text_epsilon`. The encoder's own part counts."""
    return _first([*_parts(config, _VISION, "vision_config")], kind, None)


def same_float32(a: float, b: float) -> bool:
    """Whether two numbers are one as GGUF stores them."""
    with np.errstate(over="ignore"):
        return bool(np.float32(a) == np.float32(b))


def _parts(config: Config, keys: tuple[str, ...], inner: str) -> Iterator[tuple[str, Config]]:
    """The nested parts, with what stands before their keys."""
    for key in keys:
        part = config.get(key)
        if not isinstance(part, dict):
            continue
        if isinstance(part.get(inner), dict):
            yield f"{key}.{inner}.", part[inner]
        elif key != "thinker_config":
            yield f"{key}.", part


def _first(
    parts: list[tuple[str, Config]], kind: NormKind, layer: int | None
) -> tuple[str, float] | None:
    for prefix, part in parts:
        for key in _KEYS.get(kind, ()):
            value = part.get(key)
            if isinstance(value, list) and layer is not None and layer < len(value):
                value = value[layer]
            if _is_number(value):
                return f"{prefix}{key}", float(value)
    return None


def _is_number(value: object) -> TypeGuard[float]:
    # JSON's integers have no bound, and Python reads NaN and Infinity too.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= sys.float_info.max
