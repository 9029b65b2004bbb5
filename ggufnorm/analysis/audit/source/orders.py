"""The order that llama.cpp's converter gives each tensor, where it is not the source's.

Made of ``modify_tensors`` in ``conversion/*.py``, and held against what that converter
writes of tiny models. Architecture and role are shell patterns; all that match count, as
classes that share an architecture may differ.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import lru_cache

from ggufnorm.analysis.audit.source.arrange import Steps

_AS_IS: Steps = ()
_INTERLEAVED: Steps = ("heads interleaved",)
_TRANSPOSED: Steps = ("transposed",)

# Of LlamaModel and the classes that treat queries and keys as it does (``undo_permute``).
_ROTARY = (
    "llama", "llama-embed", "deci", "olmo", "granite", "granite_swa", "granitemoe", "arcee",
    "minicpm", "xverse", "bailingmoe", "deepseek", "llada", "chameleon", "arctic", "nanbeige",
    "mistral3", "muse-glimmer", "nemotron_h*", "smollm3",
)  # fmt: skip

_ORDERS: tuple[tuple[str, str, tuple[Steps, ...]], ...] = (
    *((name, "attn_[qk]*", (_INTERLEAVED,)) for name in _ROTARY),
    # Bamba rotates, Granite 4 does not.
    ("granitehybrid", "attn_[qk]*", (_INTERLEAVED, _AS_IS)),
    ("nemotron_h*", "attn_[qk]*", (_AS_IS,)),
    ("internlm2", "attn_q", (("q of each K head", "heads interleaved"),)),
    ("internlm2", "attn_k", (("k of each K head", "heads interleaved"),)),
    ("internlm2", "attn_v", (("v of each K head",),)),
    ("baichuan", "attn_q", (("q rows", "heads interleaved"),)),
    ("baichuan", "attn_k", (("k rows", "heads interleaved"),)),
    ("baichuan", "attn_v", (("v rows",),)),
    ("gptneox", "attn_qkv*", (("q, k, v regrouped from each head",),)),
    ("bloom", "attn_qkv*", (("q, k, v regrouped from each head",),)),
    ("falcon", "attn_qkv*", (("q, k, v regrouped from each K head",),)),
    ("gpt2", "attn_qkv", (_TRANSPOSED,)),
    ("gpt2", "attn_output", (_TRANSPOSED,)),
    *((a, r, (_TRANSPOSED,)) for a in ("gpt2", "jais") for r in ("ffn_up", "ffn_down")),
    *(("jais", r, (_TRANSPOSED,)) for r in ("attn_qkv", "attn_output", "ffn_gate")),
    ("gpt-oss", "ffn_down_exps", (_TRANSPOSED,)),
    ("gpt-oss", "ffn_gate_exps", (("even columns", "transposed"),)),
    ("gpt-oss", "ffn_up_exps", (("odd columns", "transposed"),)),
    ("gpt-oss", "ffn_gate_exps.bias", (("even columns",),)),
    ("gpt-oss", "ffn_up_exps.bias", (("odd columns",),)),
    ("llama4", "ffn_down_exps", (_TRANSPOSED,)),
    ("llama4", "ffn_gate_exps", (("first half of the columns", "transposed"),)),
    ("llama4", "ffn_up_exps", (("second half of the columns", "transposed"),)),
    ("granite*", "ffn_gate_*exp*", (("first half of the rows",),)),
    ("granite*", "ffn_up_*exp*", (("second half of the rows",),)),
    ("*", "attn_k_b", (("keys of each head, transposed",),)),
    ("*", "attn_v_b", (("values of each head",),)),
    ("qwen3next", "attn_qkv", (("q, k, v of each K head",), _AS_IS)),
    ("qwen3next", "attn_gate", (("z of each K head",), _AS_IS)),
    *(
        (name, role, ((order,),))
        for name in ("qwen35*", "qwen4exp")  # _LinearAttentionVReorderBase of conversion/qwen.py
        for role, order in (
            ("attn_qkv", "V heads tiled behind q and k"),
            ("attn_gate", "V heads tiled"),
            ("ssm_conv1d*", "V heads tiled behind q and k"),
            ("ssm_out", "V heads tiled in the columns"),
            ("ssm_alpha", "V heads tiled"),
            ("ssm_beta", "V heads tiled"),
            ("ssm_a", "V heads tiled"),
            ("ssm_dt*", "V heads tiled"),
        )
    ),
    ("dbrx", "ffn_down_exps", (("transposed within each expert",),)),
    ("glm4", "attn_[qk]*", (_AS_IS, ("rotary part deinterleaved",))),
    ("plamo", "attn_q", (("PLaMo's Q heads",),)),
    ("plamo", "attn_output", (("PLaMo's output heads",),)),
    ("rwkv6", "time_mix_w[12]", (_TRANSPOSED, ("last dimensions exchanged",))),
    ("rwkv6", "time_mix_decay_w[12]", (_TRANSPOSED,)),
    ("*rwkv7", "time_mix_[wavgr]*", (_TRANSPOSED, _AS_IS)),
    ("*", "token_embd", (_AS_IS, ("first rows",), ("padded with zeros",))),
    ("*", "output", (_AS_IS, ("first rows",), ("padded with zeros",))),
    ("*bert*", "position_embd", (_AS_IS, ("last rows",), ("first rows",))),
    ("nomic-bert-moe", "ffn_down_exps", (_TRANSPOSED,)),
    ("clip:pixtral", "v.attn_[qk]", (_INTERLEAVED,)),
    *(
        (f"clip:{p}", f"v.attn_{x}*", (_AS_IS, (f"{x} rows",)))
        for p in ("qwen*", "internvl", "kimivl", "glm4v")
        for x in "qkv"
    ),
    ("clip:qwen*", "v.patch_embd", (("first of two moments",),)),
    ("clip:qwen*", "v.patch_embd.weight.1", (("second of two moments",),)),
)


@lru_cache(maxsize=1024)
def expected_orders(architecture: str, role: str) -> tuple[Steps, ...]:
    """The orders that the converter may give a tensor, the usual one first."""
    found = _of_table(architecture, role)
    return tuple(found) or (_AS_IS,)


def is_known(architecture: str, role: str, steps: Steps) -> bool:
    """Whether one would know of it if the converter gave a tensor this order.

    Roles of the table are known, and so are, in architectures whose conversions were held
    against it and in encoders, of whose classes Pixtral's alone permutes, all others, as far as
    whole tensors are concerned.
    """
    if _of_table(architecture, role):
        return True
    is_verified = architecture in _VERIFIED or architecture.startswith("clip:")
    return is_verified and len(steps) == 1 and steps[0] in _WHOLE


def _of_table(architecture: str, role: str) -> list[Steps]:
    return [
        steps
        for a, r, orders in _ORDERS
        if fnmatchcase(architecture, a) and fnmatchcase(role, r)
        for steps in orders
    ]


_WHOLE = frozenset(("transposed", "heads interleaved", "heads deinterleaved"))

_VERIFIED: frozenset[str] = frozenset(
    (
        "afmoe", "apertus", "arcee", "bert", "bloom", "cohere2", "cohere2moe", "command-r",
        "deepseek2", "dots1", "ernie4_5", "exaone-moe", "falcon-h1", "glm4moe", "gptneox",
        "granite_swa",
        "hy_v3", "laguna", "mamba", "mellum", "modern-bert", "qwen3next", "qwen35", "qwen35moe",
        "ernie4_5-moe", "exaone4", "gemma", "gemma2", "gemma3", "gemma3n", "gpt-oss", "gpt2",
        "granite", "granitehybrid", "granitemoe", "hunyuan-dense", "jais2", "jamba", "lfm2",
        "lfm2moe", "llama", "llama4", "mamba2", "minicpm3", "mistral3", "nemotron",
        "nemotron_h_moe", "olmo", "olmo2", "olmoe", "phi2", "phi3", "qwen2", "qwen2moe", "qwen3",
        "qwen3moe", "seed_oss", "smollm3", "stablelm", "starcoder", "starcoder2",
        "t5",
    )
)  # fmt: skip
"""Architectures of which conversions by llama.cpp were compared, tensor by tensor."""
