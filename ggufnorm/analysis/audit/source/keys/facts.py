"""What a key should be, by the source, and what it is, by the file or llama.cpp's default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from ggufnorm.analysis.audit.source.network import Network, text_config
from ggufnorm.formats.hf import Source
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.read_keys import reads

Value = bool | int | float | str | list[Any]
Type = Literal["u32", "f32", "bool", "str", "arr[bool]", "arr[u32]", "arr[i32]"]
"""GGUF's type of a value, as ``--override-kv`` and gguf-py call it."""


class _Unknown:
    def __repr__(self) -> str:
        return "unknown"


UNKNOWN = _Unknown()
"""A default that nobody has read of llama.cpp."""


@dataclass(frozen=True)
class Expected:
    """What a key should be.

    Attributes:
        key: whole, with the architecture before it.
        value: what the converter makes of the config.
        type: of the value.
        origin: where the config says so: ``rope_theta 500000``.
        does: what the key is about, in words that follow "it is".
        default: what llama.cpp takes where the key is missing; UNKNOWN if that was not read.
        also: other values that mean the same.
        warn: whether a difference changes little.
    """

    key: str
    value: Value
    type: Type
    origin: str
    does: str
    default: Value | _Unknown | None = UNKNOWN
    also: tuple[Value, ...] = ()
    warn: bool = False


@dataclass(frozen=True)
class KeyDifference:
    """A key that is not what the source says.

    Attributes:
        expected: what it should be.
        actual: what the file has; None if it lacks the key.
        effective: what llama.cpp takes then; None if that is not known.
    """

    expected: Expected
    actual: Value | None
    effective: Value | None


class Configs:
    """The source's configs and the file's metadata, for those who derive keys of them.

    Args:
        file: the file.
        source: its checkpoint.
    """

    def __init__(self, file: ModelFile, source: Source) -> None:
        self.file, self.source = file, source
        self.architecture = file.architecture
        self.config = text_config(source.config)
        self.network = Network(self.config, file, file.architecture)

    def key(self, suffix: str) -> str:
        """A key with the architecture before it."""
        return f"{self.architecture}.{suffix}"

    def reads(self, suffix: str) -> bool:
        """Whether llama.cpp reads a key of this architecture; of an unknown one it may."""
        return reads(self.architecture, suffix) is not False

    def first(self, *names: str) -> tuple[str, Any] | None:
        """The first of some names that the config has, and its value; None is no value."""
        found = ((n, self.config[n]) for n in names if self.config.get(n) is not None)
        return next(found, None)

    def flag(self, name: str) -> bool | None:
        """A switch of the config; None if it has none of the name."""
        value = self.config.get(name)
        return value if isinstance(value, bool) else None

    @cached_property
    def model_type(self) -> str:
        """``model_type`` of the language model's part."""
        return str(self.config.get("model_type", ""))

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """``architectures`` of the config."""
        found = self.source.config.get("architectures")
        return tuple(map(str, found)) if isinstance(found, list) else ()

    @cached_property
    def layer_types(self) -> list[str] | None:
        """The kind of each layer, where the config lists them."""
        found = self.config.get("layer_types")
        return found if isinstance(found, list) else None

    @cached_property
    def rope(self) -> dict[str, Any]:
        """Rotary parameters of the layers with full attention (TextModel of base.py)."""
        found = self._rope_parameters
        full = found.get("full_attention", found)
        full = dict(full) if isinstance(full, dict) else {}
        for name, others in _ROPE_NAMES.items():
            for other in others:
                if full.get(name) is None and self.config.get(other) is not None:
                    full[name] = self.config[other]
        if full.get("rope_type") is None and full.get("type") is not None:
            full["rope_type"] = full["type"]
        return full

    @cached_property
    def rope_swa(self) -> dict[str, Any]:
        """The same of the layers with a sliding window."""
        found = self._rope_parameters.get("sliding_attention")
        if isinstance(found, dict):
            return dict(found)
        local = self.first(
            "local_rope_theta", "rope_local_theta", "rope_theta_local", "swa_rope_theta",
            "rope_local_base_freq",
        )  # fmt: skip
        return {"rope_theta": local[1]} if local else {}

    @cached_property
    def _rope_parameters(self) -> Mapping[str, Any]:
        for name in ("rope_parameters", "rope_scaling"):
            found = self.config.get(name)
            if isinstance(found, dict):
                return found
        return {}


_ROPE_NAMES = {
    "rope_theta": (
        "global_rope_theta", "rope_global_theta", "rope_theta_global", "rope_theta",
        "rotary_emb_base",
    ),
    "partial_rotary_factor": ("partial_rotary_factor", "rope_pct", "rope_percent", "rotary_pct"),
    "original_max_position_embeddings": ("original_max_position_embeddings",),
}  # fmt: skip


def difference(expected: Expected, file: ModelFile) -> KeyDifference | None:
    """What is wrong with a key; None if nothing is, or if nothing can be told."""
    actual = file.metadata.get(expected.key)
    if actual is not None:
        if any(same(actual, v) for v in (expected.value, *expected.also)):
            return None
        return KeyDifference(expected, actual, actual)
    if isinstance(expected.default, _Unknown):
        return None
    if expected.default is not None and any(
        same(expected.default, v) for v in (expected.value, *expected.also)
    ):
        return None
    return KeyDifference(expected, None, expected.default)


def same(a: Value, b: Value) -> bool:
    """Whether two values are one as GGUF stores them; one number means the same for all layers."""
    if isinstance(a, list) or isinstance(b, list):
        return _same_lists(a, b)
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    with np.errstate(over="ignore"):
        x, y = float(a), float(b)
        return x == y or abs(x - y) <= 2.0**-22 * max(abs(x), abs(y))


def _same_lists(a: Value, b: Value) -> bool:
    xs: Sequence[Any] = a if isinstance(a, list) else ()
    ys: Sequence[Any] = b if isinstance(b, list) else ()
    if not isinstance(a, list):
        return bool(ys) and all(same(a, y) for y in ys)
    if not isinstance(b, list):
        return bool(xs) and all(same(x, b) for x in xs)
    return len(xs) == len(ys) and all(same(x, y) for x, y in zip(xs, ys, strict=True))
