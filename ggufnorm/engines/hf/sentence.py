"""What Sentence Transformers runs behind a network, read from its files beside a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ggufnorm.core.observed import Array, Dense
from ggufnorm.errors import InputError
from ggufnorm.formats.safetensors import SafetensorsFile
from ggufnorm.formats.storage import LocalStorage

_MODES = {
    "pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean by the root of the length",
    "pooling_mode_weightedmean_tokens": "weighted mean", "pooling_mode_lasttoken": "last",
}  # fmt: skip
"""Keys of a Pooling module's ``config.json``, in the order in which several are joined."""
_SHORT = {"lasttoken": "last", "mean_sqrt_len_tokens": "mean by the root of the length",
          "weightedmean": "weighted mean"}  # fmt: skip
"""Its ``pooling_mode`` where that is another word."""
_PLAIN = ("Transformer", "Pooling", "Normalize", "Dense")


@dataclass(frozen=True)
class SentenceModules:
    """The modules behind a network.

    Attributes:
        pooling: ``mean`` …, several joined with `` + ``; None if nothing says.
        dense: linear layers behind the pooling, in order.
        normalizes: whether the result is brought to length 1; None if nothing says.
        others: classes of other modules, and dense layers whose weights cannot be read.
    """

    pooling: str | None
    dense: tuple[Dense, ...]
    normalizes: bool | None
    others: tuple[str, ...]


def sentence_modules(folder: Path) -> SentenceModules:
    """Read ``modules.json`` and what it names; without it, ``1_Pooling/config.json``."""
    stated = _json(folder / "modules.json")
    if not isinstance(stated, list):
        return SentenceModules(_pooling(folder / "1_Pooling"), (), None, ())
    modules = [
        (str(m.get("type", "")).rpartition(".")[2], folder / str(m.get("path", "")))
        for m in stated
        if isinstance(m, dict)
    ]
    inside = [(kind, path) for kind, path in modules if path.resolve().is_relative_to(
        folder.resolve())]  # fmt: skip
    dense = [_dense(path) for kind, path in inside if kind == "Dense"]
    others = [kind for kind, _ in modules if kind and kind not in _PLAIN]
    if None in dense:
        others.append("Dense, whose weights are in no safetensors file")
    return SentenceModules(
        pooling=next((_pooling(path) for kind, path in inside if kind == "Pooling"), None),
        dense=() if None in dense else tuple(d for d in dense if d is not None),
        normalizes=any(kind == "Normalize" for kind, _ in modules),
        others=tuple(others),
    )


def _pooling(folder: Path) -> str | None:
    stated = _json(folder / "config.json")
    if not isinstance(stated, Mapping):
        return None
    mode = stated.get("pooling_mode")
    if isinstance(mode, (str, list)):
        modes = [mode] if isinstance(mode, str) else [str(m) for m in mode]
        return " + ".join(_SHORT.get(m, m) for m in modes)
    return " + ".join(mode for key, mode in _MODES.items() if stated.get(key) is True) or None


def _dense(folder: Path) -> Dense | None:
    stated = _json(folder / "config.json")
    weights = _weights(folder / "model.safetensors")
    weight = weights.get("linear.weight")
    if weight is None or weight.ndim != 2:
        return None
    named = stated.get("activation_function") if isinstance(stated, Mapping) else None
    # Sentence Transformers' own default (models/Dense.py).
    activation = str(named or "Tanh").rpartition(".")[2]
    bias = weights.get("linear.bias")
    return Dense(folder.name, _float(weight), None if bias is None else _float(bias), activation)


def _weights(path: Path) -> Mapping[str, np.ndarray]:
    """All tensors of a file; none of one that cannot be read."""
    try:
        with closing(LocalStorage(path)) as storage:
            file = SafetensorsFile(storage)
            return file.read_many(file.places)
    except InputError:
        return {}


def _float(values: np.ndarray) -> Array:
    return np.asarray(values, np.float32)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
