"""Keys of vision and audio encoders, as ``MmprojModel`` of ``conversion/base.py`` derives them.

Those that each class derives in its own way (``set_gguf_parameters`` in ``conversion/*.py``) are
here for the projectors named; of others nothing is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from ggufnorm.analysis.audit.source.keys.facts import Configs, Expected
from ggufnorm.analysis.audit.source.network import encoder_config, is_number
from ggufnorm.formats.naming.encoders import projector_type

_PROJECTORS: dict[str, str] = {
    "gemma3": "gemma3", "qwen2_vl": "qwen2vl_merger", "qwen2_5_vl": "qwen2.5vl_merger",
    "qwen3_vl": "qwen3vl_merger", "qwen3_vl_moe": "qwen3vl_merger", "llama4": "llama4",
    "idefics3": "idefics3", "smolvlm": "idefics3", "mistral3": "pixtral",
    "internvl_chat": "internvl", "internvl": "internvl", "kimi_vl": "kimivl",
    "lfm2-vl": "lfm2", "lfm2_vl": "lfm2", "ultravox": "ultravox", "voxtral": "voxtral",
    "qwen2_audio": "qwen2a",
}  # fmt: skip
"""``model_type`` of a checkpoint to ``clip.projector_type``, where a class has one alone."""

_OWN_SIZES = frozenset({"qwen2vl_merger", "qwen2.5vl_merger", "qwen3vl_merger"})
"""Projectors whose class takes width, size of the picture and feed-forward from elsewhere."""

_BY_CONFIG = frozenset({"gemma3", "idefics3", "internvl", "llama4", "lfm2", "kimivl"})
"""Those whose class writes ``clip.use_gelu`` where ``hidden_act`` is a GELU."""

_GELU = ("gelu", "gelu_pytorch_tanh", "gelu_new", "gelu_python")


def encoder_keys(c: Configs) -> Iterator[Expected]:
    """All keys of an encoder's forward pass that the config speaks of."""
    for modality in ("vision", "audio"):
        inner = encoder_config(c.source.config, modality)
        if inner and c.file.metadata.get(f"clip.has_{modality}_encoder") is True:
            yield from _projector(c, modality)
            yield from _dimensions(c, modality, inner)
    vision = encoder_config(c.source.config, "vision")
    if vision and c.file.metadata.get("clip.has_vision_encoder") is True:
        yield from _of_pictures(c, vision)


def _projector(c: Configs, modality: str) -> Iterator[Expected]:
    model_type = str(c.source.config.get("model_type", ""))
    wanted = _PROJECTORS.get(model_type)
    own = f"clip.{modality}.projector_type"
    key = own if own in c.file.metadata else "clip.projector_type"
    if wanted is not None:
        does = "how the encoder's output is put to the language model"
        yield Expected(key, wanted, "str", f"config.json has model_type {model_type}", does)


_NAMES: dict[str, tuple[tuple[str, ...], str]] = {
    "patch_size": (("patch_size",), "the size of a patch"),
    "image_size": (("image_size",), "the size of the picture"),
    "embedding_length": (("hidden_size", "d_model"), "the width of the encoder"),
    "feed_forward_length": (
        ("intermediate_size", "encoder_ffn_dim"), "the width of its feed-forward layers",
    ),
    "block_count": (
        ("num_hidden_layers", "encoder_layers", "depth", "n_layers"), "the number of its blocks",
    ),
    "attention.head_count": (
        ("num_attention_heads", "num_heads", "encoder_attention_heads"), "the number of its heads",
    ),
    "num_mel_bins": (("num_mel_bins",), "the number of bands of the spectrogram"),
}  # fmt: skip


def _dimensions(c: Configs, modality: str, inner: Mapping[str, Any]) -> Iterator[Expected]:
    projector = projector_type(c.file.metadata, "v." if modality == "vision" else "a.")
    for suffix, (names, does) in _NAMES.items():
        if projector in _OWN_SIZES and suffix in _OF_OWN_SIZES:
            continue
        name = next((n for n in names if _is_count(inner.get(n))), None)
        key = f"clip.{modality}.{suffix}"
        if name is None or key not in c.file.metadata:
            continue
        value = int(inner[name])
        origin = f"{modality}_config has {name} {value}"
        # LLaVA's classes leave out the blocks behind the layer whose features are taken.
        also = (value - 1,) if suffix == "block_count" and _takes_inner_layer(c) else ()
        yield Expected(key, value, "u32", origin, does, None, also)
    width = c.first("hidden_size", "n_embd", "d_model")
    key = f"clip.{modality}.projection_dim"
    if width and _is_count(width[1]) and key in c.file.metadata and _has_text(c):
        does = "the width of the language model"
        yield Expected(key, width[1], "u32", f"config.json has {width[0]} {width[1]}", does, None)


_OF_OWN_SIZES = ("image_size", "embedding_length", "feed_forward_length")


def _takes_inner_layer(c: Configs) -> bool:
    return "vision_feature_layer" in c.source.config


def _has_text(c: Configs) -> bool:
    """Whether the width that the config has is the language model's."""
    return isinstance(c.source.config.get("text_config"), dict)


def _of_pictures(c: Configs, vision: Mapping[str, Any]) -> Iterator[Expected]:
    projector = projector_type(c.file.metadata, "v.")
    act = vision.get("hidden_act")
    if projector in _BY_CONFIG and isinstance(act, str):
        origin, does = f"vision_config has hidden_act {act}", "whether the encoder uses GELU"
        yield Expected("clip.use_gelu", act in _GELU, "bool", origin, does, False)
    if projector == "gemma3":
        yield from _pooling_of_gemma(c, vision)
    for name, key, default in _OTHERS.get(projector, ()):
        value = vision.get(name, c.source.config.get(name))
        if _is_count(value):
            does, origin = "how many patches become one", f"config.json has {name} {value}"
            yield Expected(key, int(value), "u32", origin, does, default)


_SCALE = "clip.vision.projector.scale_factor"
_MERGE = "clip.vision.spatial_merge_size"

_OTHERS: dict[str, Sequence[tuple[str, str, int | None]]] = {
    "idefics3": (("scale_factor", _SCALE, None),),
    "pixtral": (("spatial_merge_size", _MERGE, 1),),
    "qwen2vl_merger": (("spatial_merge_size", _MERGE, 2),),
    "qwen2.5vl_merger": (("spatial_merge_size", _MERGE, 2),),
}
"""Numbers of the config and their keys, with what clip.cpp takes without the key."""


def _pooling_of_gemma(c: Configs, vision: Mapping[str, Any]) -> Iterator[Expected]:
    """``Gemma3VisionModel`` of conversion/gemma.py; clip.cpp takes 4 without the key."""
    size, patch = vision.get("image_size"), vision.get("patch_size")
    tokens = c.source.config.get("mm_tokens_per_image")
    if not (_is_count(size) and _is_count(patch) and _is_count(tokens)):
        return
    per_side, side = size // patch, math.isqrt(tokens)
    if per_side % side:
        return
    origin = f"config.json has mm_tokens_per_image {tokens}"
    yield Expected(_SCALE, per_side // side, "u32", origin, "how many patches become one", 4)


def _is_count(value: object) -> TypeGuard[int]:
    return is_number(value) and isinstance(value, int) and value > 0
