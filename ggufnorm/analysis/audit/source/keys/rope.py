"""Keys of rotary positions: base, dimensions, and every kind of scaling.

Made of ``set_gguf_parameters`` and ``generate_extra_tensors`` in ``conversion/base.py``,
``llama.py``, ``phi.py`` and ``hunyuan.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ggufnorm.analysis.audit.source.keys.facts import UNKNOWN, Configs, Expected
from ggufnorm.analysis.audit.source.network import is_number

_NO_ROPE = """
clip gpt2 gptj mpt refact bloom mamba mamba2 jamba jina-bert-v2 t5 t5encoder jais rwkv6
rwkv6qwen2 rwkv7 arwkv7 wavtokenizer-dec nemotron_h nemotron_h_moe kimi-linear kimi-k3
glm5-next bert starcoder
"""

NO_ROPE = frozenset(_NO_ROPE.split())
"""Architectures without rotary positions (``llama_model_rope_type`` in llama-model.cpp)."""

_OWN_BASE = ("neo-bert", "codeshell", "openelm", "dbrx", "gemma4", "gemma4-assistant")
"""Architectures whose base stands elsewhere than in the config's usual places."""

_OWN_DIMENSIONS = (
    "gemma4", "gemma4-assistant", "step35", "chatglm", "hy_v3", "hy_v4", "qwen3tts", "lfm2",
    "lfm2moe", "laguna", "granitehybrid", "spark2_5", "mimo2", "minimax-m2", "minimax-m3",
)  # fmt: skip
"""Architectures whose rotated dimensions differ by layer or follow a rule of their own."""

_UNSCALED = ("command-r", "cohere2", "cohere2moe", "modern-bert", "eurobert", "neo-bert")
"""Architectures whose converter writes that nothing is scaled."""


_MOST_CHANNELS = 1 << 16
"""More channels than any head has."""


def rope_keys(c: Configs) -> Iterator[Expected]:
    """What the config says of rotary positions."""
    if c.architecture in NO_ROPE or not _rotates(c):
        return
    yield from _base(c)
    yield from _dimensions(c)
    yield from _sections(c)
    yield from _scaling(c)


def _rotates(c: Configs) -> bool:
    return c.config.get("position_embedding_type", "rope") in ("rope", "rotary", None)


def _base(c: Configs) -> Iterator[Expected]:
    theta = _base_of(c)
    if theta is not None and c.architecture not in _OWN_BASE:
        value, origin = theta
        does = "the base of rotary positions"
        yield Expected(c.key("rope.freq_base"), value, "f32", origin, does, 10000.0)
    local = c.rope_swa.get("rope_theta")
    if is_number(local) and c.reads("rope.freq_base_swa") and c.architecture not in _OWN_BASE:
        does = "the base of rotary positions in layers with a window"
        # gemma3.cpp leaves the default of llama-hparams.h, most others take the base.
        default: Any = theta[0] if theta else UNKNOWN
        if c.architecture in ("gemma3", "gemma3n", "gemma-embedding", "modern-bert"):
            default = 10000.0
        origin = f"config.json has rope_theta {local:g} for sliding attention"
        yield Expected(c.key("rope.freq_base_swa"), float(local), "f32", origin, does, default)


def _base_of(c: Configs) -> tuple[float, str] | None:
    theta = c.rope.get("rope_theta")
    if not is_number(theta):
        return None
    alpha, size = c.rope.get("alpha"), c.network.head_size()
    if c.rope.get("rope_type") == "dynamic" and is_number(alpha) and size > 2:
        value = theta * alpha ** (size / (size - 2))  # conversion/hunyuan.py
        return float(value), f"config.json has rope_theta {theta:g} and alpha {alpha:g}"
    return float(theta), f"config.json has rope_theta {theta:g}"


def _dimensions(c: Configs) -> Iterator[Expected]:
    if c.architecture in _OWN_DIMENSIONS:
        return
    key, does = c.key("rope.dimension_count"), "how many channels of a head are rotated"
    latent = c.first("qk_rope_head_dim")
    if latent and isinstance(latent[1], int) and latent[1] > 0:
        origin = f"config.json has qk_rope_head_dim {latent[1]}"
        yield Expected(key, latent[1], "u32", origin, does, None)
        return
    size, part = c.network.head_size(), c.rope.get("partial_rotary_factor")
    if not size or not is_number(part) or not 0 < part <= 1:
        return
    heads = c.network.heads()
    also = [round(size * part)]
    if heads:
        also.append(int(part * c.network.width) // heads)
    origin = f"config.json has partial_rotary_factor {part:g}, and heads of {size}"
    default = c.file.metadata.integer(c.key("attention.key_length")) or size
    yield Expected(key, int(size * part), "u32", origin, does, default, tuple(also))


def _scaling(c: Configs) -> Iterator[Expected]:
    kind, factor = c.rope.get("rope_type"), c.rope.get("factor")
    if kind in ("su", "longrope"):
        yield from _longrope(c)
    if not c.rope.get("factor") and kind in (None, "default"):
        yield from _not_scaled(c)
    if c.architecture in _UNSCALED or not is_number(factor):
        return
    said = f"config.json has {kind} scaling by {factor:g}"
    if kind in ("linear", "yarn"):
        does = "the kind of scaling of rotary positions"
        yield Expected(c.key("rope.scaling.type"), str(kind), "str", said, does, "linear")
        does = "the factor that rotary positions are scaled by"
        key = c.key("rope.scaling.factor")
        yield Expected(key, float(factor), "f32", said, does, 1.0)
    if kind == "yarn":
        yield from _yarn(c, said)


def _not_scaled(c: Configs) -> Iterator[Expected]:
    """A file that scales positions where the config does not: made for longer texts, or wrong."""
    stated = c.file.metadata.get(c.key("rope.scaling.factor"))
    if c.rope_swa.get("factor") or not is_number(stated) or stated == 1:
        return
    does = "the factor that rotary positions are scaled by"
    said = "config.json asks for no scaling"
    yield Expected(c.key("rope.scaling.factor"), 1.0, "f32", said, does, 1.0, (), warn=True)


def _sections(c: Configs) -> Iterator[Expected]:
    sections = c.rope.get("mrope_section")
    key = "rope.dimension_sections"
    if not isinstance(sections, list) or not 0 < len(sections) <= 4 or not c.reads(key):
        return
    if not all(isinstance(n, int) and 0 <= n < _MOST_CHANNELS for n in sections):
        return
    value = [*sections, *[0] * (4 - len(sections))]
    does = "how many channels turn with time, height and width"
    origin = f"config.json has mrope_section {sections}"
    also = (value[:3], sections)
    yield Expected(c.key(key), value, "arr[i32]", origin, does, None, also)


def _longrope(c: Configs) -> Iterator[Expected]:
    context = c.first("n_positions", "max_position_embeddings")
    original = c.rope.get("original_max_position_embeddings")
    if not context or not is_number(context[1]) or not is_number(original) or original < 2:
        return
    if c.architecture not in ("phi3", "phimoe") or not isinstance(c.rope.get("long_factor"), list):
        return
    scale = context[1] / original
    value = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    key, does = c.key("rope.scaling.attn_factor"), "the factor of attention that longrope asks for"
    origin = f"config.json has longrope from {original} to {context[1]} positions"
    yield Expected(key, value, "f32", origin, does, 1.0)


def _yarn(c: Configs, said: str) -> Iterator[Expected]:
    original = c.rope.get("original_max_position_embeddings")
    if isinstance(original, int):
        key = c.key("rope.scaling.original_context_length")
        does = "the context before scaling"
        default = c.file.metadata.integer(c.key("context_length"))
        yield Expected(key, original, "u32", said, does, default)
    factors: tuple[tuple[str, str, Any], ...] = (
        ("beta_fast", "yarn_beta_fast", 32.0),
        ("beta_slow", "yarn_beta_slow", 1.0),
        ("extrapolation_factor", "yarn_ext_factor", UNKNOWN),
    )
    for name, suffix, assumed in factors:
        value = c.rope.get(name)
        if is_number(value) and c.reads(f"rope.scaling.{suffix}"):
            origin = f"config.json has {name} {value:g}"
            key = c.key(f"rope.scaling.{suffix}")
            yield Expected(key, float(value), "f32", origin, f"YaRN's {name}", assumed)
    scale = c.rope.get("mscale_all_dim")
    if is_number(scale) and scale and c.architecture in ("deepseek2", "deepseek32"):
        origin = f"config.json has mscale_all_dim {scale:g}"
        key, does = c.key("rope.scaling.yarn_log_multiplier"), "YaRN's scale of attention"
        yield Expected(key, 0.1 * scale, "f32", origin, does, 0.0)


def frequency_factors(c: Configs) -> dict[str, list[float]]:
    """The tensors of factors that the converter makes of the config, by their names.

    Llama 3's kind is one tensor (``generate_extra_tensors`` in conversion/llama.py), longrope
    two (conversion/phi.py).
    """
    kind = str(c.rope.get("rope_type", "")).lower()
    if kind == "llama3":
        found = _llama3(c)
        return {"rope_freqs.weight": found} if found else {}
    if kind in ("su", "longrope"):
        return {
            f"rope_factors_{name}.weight": list(map(float, c.rope[f"{name}_factor"]))
            for name in ("long", "short")
            if isinstance(c.rope.get(f"{name}_factor"), list)
            and all(map(is_number, c.rope[f"{name}_factor"]))
        }
    return {}


def _llama3(c: Configs) -> list[float] | None:
    def number(name: str, default: float) -> float:
        value = c.rope.get(name)
        return float(value) if is_number(value) else default

    base, factor = number("rope_theta", 10000.0), number("factor", 8.0)
    low, high = number("low_freq_factor", 1.0), number("high_freq_factor", 4.0)
    original = number("original_max_position_embeddings", 8192)
    size = int(c.network.head_size() * number("partial_rotary_factor", 1.0))
    if min(size, base, original, low, high, factor) <= 0 or low == high or size > _MOST_CHANNELS:
        return None
    factors = []
    for i in range(0, size, 2):
        length = 2 * math.pi * base ** (i / size)
        if length < original / high:
            factors.append(1.0)
        elif length > original / low:
            factors.append(factor)
        else:
            smooth = (original / length - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors
