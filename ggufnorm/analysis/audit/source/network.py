"""The dimensions of a network, as its config.json states them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from ggufnorm.formats.model_file import ModelFile

# Where a config keeps its language model's part (load_hparams in conversion/base.py).
TEXT_PARTS = ("text_config", "llm_config", "language_config", "lm_config", "lfm")


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config whose language model's part stands at its top, as the converter reads it."""
    found = dict(config)
    thinker = config.get("thinker_config")
    if isinstance(thinker, dict):
        found |= thinker
    for part in TEXT_PARTS:
        inner = found.get(part)
        if isinstance(inner, dict):
            found |= inner
    return found


ENCODER_PARTS: Mapping[str, tuple[str, ...]] = {
    "vision": ("vision_config", "vision_encoder", "vit_config"),
    "audio": ("audio_config", "audio_encoder", "encoder_config"),
}
"""Where a config keeps its encoders (get_vision_config and get_audio_config there)."""


def encoder_config(config: Mapping[str, Any], modality: str) -> dict[str, Any]:
    """An encoder's part of a config; empty if it has none.

    Args:
        config: the whole of ``config.json``.
        modality: ``vision`` or ``audio``.
    """
    thinker = config.get("thinker_config")
    for whole in (config, thinker if isinstance(thinker, dict) else {}):
        for part in ENCODER_PARTS[modality]:
            inner = whole.get(part)
            if isinstance(inner, dict):
                return dict(inner)
    return {}


_LARGEST = 1e30
"""JSON's numbers have no bound; no hyperparameter is larger."""


def is_number(value: object) -> TypeGuard[float]:
    """Whether a config's value is a number that one can compute with."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= _LARGEST


@dataclass(frozen=True)
class Network:
    """Numbers of heads and the like; 0 where neither config nor file tells.

    Attributes:
        config: the language model's part of ``config.json``.
        architecture: of the file.
        n_layers: blocks.
    """

    config: Mapping[str, Any]
    file: ModelFile
    architecture: str

    def number(self, *names: str, layer: int | None = None) -> int:
        """The first of some names that the config has as an integer, or a list of them."""
        for name in names:
            value = self.config.get(name)
            if isinstance(value, list) and layer is not None and layer < len(value):
                value = value[layer]
            if is_number(value) and isinstance(value, int):
                return int(value)
        return 0

    def of_file(self, key: str, layer: int | None = None) -> int:
        """An integer of the file's metadata, of one layer where it has a list."""
        value = self.file.metadata.get(f"{self.architecture}.{key}")
        if isinstance(value, list) and layer is not None and layer < len(value):
            value = value[layer]
        return value if isinstance(value, int) and not isinstance(value, bool) else 0

    @property
    def width(self) -> int:
        """Of the residual stream."""
        return self.number("hidden_size", "n_embd", "d_model", "dim") or self.of_file(
            "embedding_length"
        )

    def heads(self, layer: int | None = None) -> int:
        """Query heads."""
        names = ("num_attention_heads", "n_head", "n_heads", "num_heads")
        return self.number(*names, layer=layer) or self.of_file("attention.head_count", layer)

    def kv_heads(self, layer: int | None = None) -> int:
        """Key and value heads."""
        if self.config.get("multi_query") and not self.config.get("new_decoder_architecture"):
            return 1
        names = (
            "num_key_value_heads", "n_head_kv", "num_kv_heads", "n_kv_heads",
            "multi_query_group_num", "attention_num_kv_heads",
        )  # fmt: skip
        attention = self.config.get("attn_config")
        nested = attention.get("kv_n_heads") if isinstance(attention, dict) else None
        found = self.number(*names, layer=layer) or (nested if isinstance(nested, int) else 0)
        return found or self.of_file("attention.head_count_kv", layer) or self.heads(layer)

    def head_size(self, layer: int | None = None) -> int:
        """Channels of one head."""
        found = self.number("head_dim", "attention_head_dim", "d_kv", "kv_channels")
        heads = self.heads(layer)
        return found or (self.width // heads if heads else 0)
