"""Keys of the forward pass, as ``set_gguf_parameters`` of ``conversion/*.py`` derives them.

Defaults are those of ``src/llama-hparams.h`` and of ``load_arch_hparams`` in
``src/models/*.cpp``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from ggufnorm.analysis.audit.source.keys.facts import UNKNOWN, Configs, Expected
from ggufnorm.analysis.audit.source.network import is_number
from ggufnorm.formats.gguf_constants import ExpertGatingFuncType, PoolingType

_GATING = {"softmax": "SOFTMAX", "sigmoid": "SIGMOID"}

_SIGMOID = frozenset(
    ("afmoe", "cohere2moe", "glm-dsa", "glm4moe", "glm5-next", "hy_v3", "laguna", "step35")
)
"""Architectures that route by sigmoid where the key is missing."""

_SOFTMAX = frozenset(("deepseek2", "deepseek2-ocr"))
"""Architectures that route by softmax then."""

_BY_SIGMOID = ("deepseek_v3", "glm4_moe", "kimi_k2", "dots1", "solar_open", "youtu")
"""Model types whose class in transformers has no other routing and whose config does not say."""

_FIXED_SCALE = ("deepseek", "bailingmoe")
"""Architectures whose converter writes a scale of 1 whatever the config says."""

_UNBOUNDED = 1 << 20
"""The context that converters write of networks whose memory is a state."""

_LATENT = "attention.kv_lora_rank"


def network_keys(c: Configs) -> Iterator[Expected]:
    """All keys of the forward pass but those of rotary positions that the config speaks of."""
    yield from _dimensions(c)
    yield from _experts(c)
    yield from _scales(c)
    yield from _windows(c)
    yield from _attention_kind(c)
    yield from _recurrence(c)
    yield from _decoder(c)


def _decoder(c: Configs) -> Iterator[Expected]:
    """Keys of encoder-decoders (conversion/t5.py)."""
    if c.architecture not in ("t5", "t5encoder"):
        return
    start = c.first("decoder_start_token_id")
    if start and isinstance(start[1], int) and start[1] >= 0 and c.architecture == "t5":
        key, does = c.key("decoder_start_token_id"), "the token that a decoder begins with"
        yield Expected(key, start[1], "u32", _said(start), does)
    buckets = c.first("relative_attention_num_buckets")
    if buckets and _is_count(buckets[1]):
        key, does = c.key("attention.relative_buckets_count"), "the number of relative positions"
        yield Expected(key, buckets[1], "u32", _said(buckets), does)


def _dimensions(c: Configs) -> Iterator[Expected]:
    a = c.architecture
    if (width := c.first("hidden_size", "n_embd", "d_model", "dim")) and _is_count(width[1]):
        yield _count(c, "embedding_length", width, "the width of the residual stream")
    also: tuple[int, ...]
    blocks = c.first("n_layers", "num_hidden_layers", "n_layer", "num_layers")
    extra = c.file.metadata.integer(c.key("nextn_predict_layers")) or 0
    if blocks and _is_count(blocks[1]) and a not in ("t5", "gemma4-assistant"):
        also = (blocks[1] + extra,)
        does = "the number of blocks"
        yield Expected(c.key("block_count"), blocks[1], "u32", _said(blocks), does, None, also)
    context = c.first("max_position_embeddings", "n_ctx", "n_positions", "max_length",
                      "max_sequence_length", "model_max_length")  # fmt: skip
    written = c.file.metadata.integer(c.key("context_length"))
    if context and _is_count(context[1]) and written != _UNBOUNDED:
        does = "the number of positions that the model was trained with"
        positions = c.file.tensors.get("position_embd.weight")
        rows = positions.shape[1:2] if positions is not None else ()
        also = (*rows, *_longer_contexts(c, context[1]))
        key = c.key("context_length")
        yield Expected(key, context[1], "u32", _said(context), does, UNKNOWN, also, warn=True)
    heads = c.first("num_attention_heads", "n_head", "n_heads", "num_heads")
    if c.file.metadata.integer(c.key("attention.head_count")) == 0:
        return  # without attention: heads of a config are those of its states
    if heads and _is_count(heads[1]) and not _is_hybrid(c):
        yield _count(c, "attention.head_count", heads, "the number of query heads")
    kv = c.first("num_key_value_heads", "n_head_kv", "num_kv_heads", "n_kv_heads")
    if kv and _is_count(kv[1]) and not _is_hybrid(c):
        also = (1,) if c.reads(_LATENT) or c.flag("multi_query") else ()
        does = "the number of key and value heads"
        default = heads[1] if heads and _is_count(heads[1]) else None
        key = c.key("attention.head_count_kv")
        yield Expected(key, kv[1], "u32", _said(kv), does, default, also)
    size = c.first("head_dim", "d_kv")
    if size and _is_count(size[1]) and not c.reads(_LATENT) and not a.startswith("gemma4"):
        n = c.network.heads()
        default = c.network.width // n if n else None
        for name, what in (("key_length", "keys"), ("value_length", "values")):
            if name == "value_length" and c.first("v_head_dim"):
                continue
            key = c.key(f"attention.{name}")
            yield Expected(
                key, size[1], "u32", _said(size), f"the size of a head's {what}", default
            )
    for name, suffix in (("q_lora_rank", "q_lora_rank"), ("kv_lora_rank", "kv_lora_rank")):
        rank = c.first(name)
        if rank and _is_count(rank[1]) and c.reads(f"attention.{suffix}"):
            yield _count(c, f"attention.{suffix}", rank, "the rank of the latent attention")


def _longer_contexts(c: Configs, n: int) -> tuple[int, ...]:
    """What a converter writes where the config's positions are those before scaling."""
    factor = c.rope.get("factor")
    return (int(n * factor),) if is_number(factor) and factor > 0 else ()


def _is_hybrid(c: Configs) -> bool:
    """Whether layers differ, so that one number does not tell of all."""
    found = [c.file.metadata.get(c.key(f"attention.{k}")) for k in ("head_count", "head_count_kv")]
    return any(isinstance(v, list) for v in found)


def _experts(c: Configs) -> Iterator[Expected]:
    n = c.first("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    if n is None or not _is_count(n[1]) or n[1] < 2:
        return
    if not any("exps" in name for name in c.file.tensors):
        return
    yield _count(c, "expert_count", n, "the number of experts")
    used = c.first("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_k")
    if used and _is_count(used[1]):
        yield _count(c, "expert_used_count", used, "how many experts each token is routed to")
    shared = c.first("n_shared_experts", "num_shared_experts")
    if shared and _is_count(shared[1]) and c.reads("expert_shared_count"):
        key, does = c.key("expert_shared_count"), "the number of shared experts"
        yield Expected(key, shared[1], "u32", _said(shared), does, 0)
    for name, suffix, does in (
        ("n_group", "expert_group_count", "the number of groups that experts are chosen in"),
        ("topk_group", "expert_group_used_count", "how many of these groups are chosen"),
    ):
        group = c.first(name)
        many = c.first("n_group")
        if group and many and _is_count(group[1]) and many[1] > 1:
            yield Expected(c.key(suffix), group[1], "u32", _said(group), does, 0)
    yield from _routing(c)


def _routing(c: Configs) -> Iterator[Expected]:
    kind = _gating(c)
    if kind is not None and c.reads("expert_gating_func"):
        a = c.architecture
        default = ExpertGatingFuncType.SIGMOID if a in _SIGMOID else None
        default = ExpertGatingFuncType.SOFTMAX if a in _SOFTMAX else default
        value = int(getattr(ExpertGatingFuncType, kind[0]))
        key, does = c.key("expert_gating_func"), "how experts are weighted"
        known = UNKNOWN if default is None else int(default)
        yield Expected(key, value, "u32", kind[1], f"{does} ({kind[0].lower()})", known)
    scale = c.first("routed_scaling_factor", "route_scale", "moe_router_scaling_factor")
    scaled = c.reads("expert_weights_scale") and c.architecture not in _FIXED_SCALE
    if scale and is_number(scale[1]) and scaled:
        key, does = c.key("expert_weights_scale"), "the factor of the experts' weights"
        also = (0.0,) if scale[1] == 1 else ()
        yield Expected(key, float(scale[1]), "f32", _said(scale), does, 1.0, also)
    norm = c.first("norm_topk_prob", "route_norm")
    fixed = ("minimax-m3", "hy_v3", *_FIXED_SCALE)
    normed = c.reads("expert_weights_norm") and c.architecture not in fixed
    if norm and isinstance(norm[1], bool) and normed:
        key, does = c.key("expert_weights_norm"), "whether the chosen experts' weights sum to 1"
        yield Expected(key, norm[1], "bool", _said(norm), does, False)


def _gating(c: Configs) -> tuple[str, str] | None:
    named = c.first("score_function", "scoring_func", "score_func", "moe_router_activation",
                    "moe_router_activation_func", "expert_selection_fn")  # fmt: skip
    if named and str(named[1]) in _GATING:
        return _GATING[str(named[1])], _said(named)
    if c.model_type in (*_BY_SIGMOID, "glm4_moe_lite"):
        return "SIGMOID", f"model_type {c.model_type}"
    return None


def _scales(c: Configs) -> Iterator[Expected]:
    a = c.architecture
    for name, suffix, does in (
        ("attn_logit_softcapping", "attn_logit_softcapping", "the soft cap of attention scores"),
        ("final_logit_softcapping", "final_logit_softcapping", "the soft cap of the logits"),
    ):
        cap = c.first(name)
        if cap and is_number(cap[1]) and c.reads(suffix):
            default = 0.0
            if a == "gemma2":
                default = 50.0 if suffix.startswith("attn") else 30.0
            known = default if a.startswith("gemma") else UNKNOWN
            yield Expected(c.key(suffix), float(cap[1]), "f32", _said(cap), does, known)
    if a.startswith("granite"):
        size = c.network.head_size()
        plain = 1 / math.sqrt(size) if size else None
        for name, suffix, does, assumed in (
            ("attention_multiplier", "attention.scale", "the scale of attention scores", plain),
            ("logits_scaling", "logit_scale", "the divisor of the logits", 1.0),
            ("residual_multiplier", "residual_scale", "the factor of what is added", 1.0),
            ("embedding_multiplier", "embedding_scale", "the factor of the embeddings", 1.0),
        ):
            found = c.first(name)
            if found and is_number(found[1]) and found[1] and c.reads(suffix):
                value = float(found[1])
                yield Expected(c.key(suffix), value, "f32", _said(found), does, assumed)
    scale = c.first("logit_scale") if a in ("command-r", "cohere2", "cohere2moe") else None
    if scale and is_number(scale[1]):
        does = "the factor of the logits"
        yield Expected(c.key("logit_scale"), float(scale[1]), "f32", _said(scale), does, 1.0)
    if a == "minicpm":
        yield from _minicpm(c)
    clip = c.first("clip_qkv")
    attention = c.config.get("attn_config")
    if clip is None and isinstance(attention, dict) and attention.get("clip_qkv"):
        clip = ("attn_config.clip_qkv", attention["clip_qkv"])
    if clip and is_number(clip[1]) and c.reads("attention.clamp_kqv"):
        does = "the bound of queries, keys and values"
        yield Expected(c.key("attention.clamp_kqv"), float(clip[1]), "f32", _said(clip), does, 0.0)
    parallel = c.first("use_parallel_residual")
    if parallel and a in ("gptneox", "stablelm"):
        does = "whether attention and feed-forward run side by side"
        key = c.key("use_parallel_residual")
        yield Expected(key, bool(parallel[1]), "bool", _said(parallel), does)


def _minicpm(c: Configs) -> Iterator[Expected]:
    width, layers = c.network.width, c.network.number("num_hidden_layers")
    facts: dict[str, tuple[str, Callable[[float], float], float, str]] = {
        "embedding_scale": ("scale_emb", lambda v: v, 12.0, "the factor of the embeddings"),
        "residual_scale": (
            "scale_depth", lambda v: v / math.sqrt(layers or 1), 1.4 / math.sqrt(layers or 1),
            "the factor of what is added",
        ),
        "logit_scale": (
            "dim_model_base", lambda v: width / v, 256.0 / width, "the divisor of the logits",
        ),
    }  # fmt: skip
    for suffix, (name, derive, default, does) in facts.items():
        found = c.first(name)
        if found and is_number(found[1]) and found[1]:
            value = float(derive(found[1]))
            yield Expected(c.key(suffix), value, "f32", _said(found), does, default)


def _windows(c: Configs) -> Iterator[Expected]:
    a, kinds = c.architecture, c.layer_types
    window = c.first("sliding_window", "sliding_window_size", "local_attention")
    if window is None or not _is_count(window[1]) or not c.reads("attention.sliding_window"):
        return
    if c.flag("use_sliding_window") is False or (kinds and "sliding_attention" not in kinds):
        return
    if a in ("phi3", "lfm2", "step35", "dflash", "llama4", "gemma-embedding"):
        return
    default: dict[str, int] = {"gemma2": 4096, "exaone-moe": 128, "exaone4": 0}
    does = "the width of the sliding window"
    # Where attention is not causal transformers counts the window on both sides.
    also = (window[1] // 2, window[1] // 2 + 1, 2 * window[1]) if a == "modern-bert" else ()
    key = c.key("attention.sliding_window")
    yield Expected(key, window[1], "u32", _said(window), does, default.get(a, 0), also)
    if kinds and c.reads("attention.sliding_window_pattern"):
        pattern = [k == "sliding_attention" for k in kinds]
        key, does = c.key("attention.sliding_window_pattern"), "which layers have a window"
        if isinstance(c.file.metadata.get(key), list):
            yield Expected(key, pattern, "arr[bool]", "layer_types", does)


def _attention_kind(c: Configs) -> Iterator[Expected]:
    key, does = c.key("attention.causal"), "whether attention is causal"
    a = c.architecture
    by_code = a in ("gemma-embedding", "dream", "llada", "llada-moe", "rnd1")
    if c.flag("is_causal") is False or c.flag("use_bidirectional_attention") is True:
        name = "is_causal" if c.flag("is_causal") is False else "use_bidirectional_attention"
        yield Expected(key, False, "bool", f"{name} {c.flag(name)}".lower(), does, not by_code)
    elif "bert" in a and not c.flag("is_decoder"):
        yield Expected(key, False, "bool", f"model_type {c.model_type}", does, not by_code)
    yield from _pooling(c)


def _pooling(c: Configs) -> Iterator[Expected]:
    key, does = c.key("pooling_type"), "how token states become one embedding"
    pooling = c.source.read_json("1_Pooling/config.json")
    if pooling is None:
        return
    for name, member in (
        ("pooling_mode_mean_tokens", "MEAN"), ("pooling_mode_cls_token", "CLS"),
        ("pooling_mode_lasttoken", "LAST"),
    ):  # fmt: skip
        if pooling.get(name) is True or pooling.get("pooling_mode") == member.lower():
            value = int(getattr(PoolingType, member))
            origin = f"1_Pooling/config.json has {name}"
            also = (int(PoolingType.RANK),) if _ranks(c) else ()
            yield Expected(key, value, "u32", origin, f"{does} ({member.lower()})", 0, also)
            return


def _ranks(c: Configs) -> bool:
    return any("SequenceClassification" in name for name in c.classes)


def _recurrence(c: Configs) -> Iterator[Expected]:
    for suffix, names, does in (
        ("ssm.conv_kernel", ("conv_kernel", "d_conv", "mamba_d_conv", "linear_conv_kernel_dim",
                             "short_conv_kernel_size"), "the width of the convolution"),
        ("ssm.state_size", ("state_size", "d_state", "mamba_d_state", "ssm_state_size",
                            "linear_key_head_dim"), "the size of a state"),
        ("shortconv.l_cache", ("conv_L_cache",), "the width of the short convolution"),
        ("wkv.head_size", ("head_size",), "the size of a head"),
        ("full_attention_interval", ("full_attention_interval",),
         "every how many layers attention is full"),
    ):  # fmt: skip
        found = c.first(*names)
        if found and _is_count(found[1]) and c.reads(suffix):
            yield _count(c, suffix, found, does)


def _count(c: Configs, suffix: str, found: tuple[str, int], does: str) -> Expected:
    return Expected(c.key(suffix), found[1], "u32", _said(found), does, None)


def _said(found: tuple[str, object]) -> str:
    value = f"{found[1]:g}" if isinstance(found[1], float) else str(found[1])
    return f"config.json has {found[0]} {value}"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and is_number(value) and value > 0
