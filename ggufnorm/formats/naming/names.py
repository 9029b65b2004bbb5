"""Tensor names to layer and role.

Every norm among gguf-py's tensors has a role here, by the name of its ``MODEL_TENSOR``
member; the name that it has in a file is gguf-py's (``TENSOR_NAMES``). A member that an
older gguf-py lacks may stand here already: a file with it is then read by the shape of
its name.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass
from functools import cache
from typing import Literal

from ggufnorm.formats.gguf_constants import TENSOR_NAMES

ROLES: dict[str, str] = {
    # language models
    "TOKEN_EMBD_NORM": "token_embd",
    "OUTPUT_NORM": "output",
    "HC_HEAD_NORM": "output_hc",
    "CLS_NORM": "cls",
    "ATTN_NORM": "attn",
    "ATTN_NORM_2": "attn_2",
    "ATTN_Q_NORM": "q",
    "ATTN_K_NORM": "k",
    "ATTN_Q_A_NORM": "q_a",
    "ATTN_KV_A_NORM": "kv_a",
    "ATTN_KV_NORM": "kv_a",
    "ATTN_SUB_NORM": "attn_sub",
    "ATTN_OUT_NORM": "attn_output",
    "ATTN_POST_NORM": "post_attn",
    "ATTN_COMPRESSOR_NORM": "attn_compressor",
    "INDEXER_Q_NORM": "indexer.q",
    "INDEXER_K_NORM": "indexer.k",
    "INDEXER_COMPRESSOR_NORM": "indexer.compressor",
    "HC_ATTN_NORM": "hc_attn",
    "HC_FFN_NORM": "hc_ffn",
    "FFN_NORM": "ffn",
    "FFN_PRE_NORM": "ffn",
    "FFN_PRE_NORM_2": "ffn_2",
    "FFN_NORM_EXP": "ffn_exps",
    "FFN_ROUTED_NORM": "ffn_routed",
    "FFN_SUB_NORM": "ffn_sub",
    "FFN_POST_NORM": "post_ffn",
    "FFN_POST_NORM_1": "post_ffn_1",
    "FFN_POST_NORM_2": "post_ffn_2",
    "LAYER_OUT_NORM": "layer_output",
    "PER_LAYER_PROJ_NORM": "per_layer_proj",
    "PER_LAYER_POST_NORM": "per_layer_post",
    "PLE_NORM_KEY": "ple_key",
    "PLE_NORM_QUERY": "ple_query",
    "PLE_NORM_CONV": "ple_conv",
    "ALTUP_ROUTER_NORM": "altup_router",
    "LAUREL_POST_NORM": "laurel_post",
    "SSM_NORM": "ssm",
    "SSM_DT_NORM": "ssm_dt",
    "SSM_B_NORM": "ssm_b",
    "SSM_C_NORM": "ssm_c",
    "TIME_MIX_LN": "time_mix",
    "NEXTN_ENORM": "nextn.embd",
    "NEXTN_HNORM": "nextn.hidden",
    "NEXTN_SHARED_HEAD_NORM": "nextn.shared_head",
    # encoder and decoder
    "ENC_ATTN_NORM": "enc.attn",
    "ENC_FFN_NORM": "enc.ffn",
    "ENC_OUTPUT_NORM": "enc.output",
    "DEC_ATTN_NORM": "dec.attn",
    "DEC_CROSS_ATTN_NORM": "dec.cross_attn",
    "DEC_FFN_NORM": "dec.ffn",
    "DEC_OUTPUT_NORM": "dec.output",
    # WavTokenizer
    "POSNET_NORM": "posnet.output",
    "POSNET_NORM1": "posnet.conv1",
    "POSNET_NORM2": "posnet.conv2",
    "POSNET_ATTN_NORM": "posnet.attn",
    "CONVNEXT_NORM": "convnext",
    # vision
    "V_ENC_EMBD_NORM": "v.embd",
    "V_ENC_EMBD_PATCH_NORM": "v.patch",
    "V_ENC_INPUT_NORM": "v.attn",
    "V_ENC_ATTN_Q_NORM": "v.q",
    "V_ENC_ATTN_K_NORM": "v.k",
    "V_ENC_ATTN_O_NORM": "v.attn_output",
    "V_ENC_POST_ATTN_NORM": "v.ffn",
    "V_ENC_ATTN_POST_NORM": "v.post_attn",
    "V_ENC_FFN_POST_NORM": "v.post_ffn",
    "V_PRE_NORM": "v.pre",
    "V_POST_NORM": "v.post",
    "V_ENC_CONV_STEM_NORM": "v.conv_stem",
    "V_ENC_MSFA_EXP_NORM": "v.msfa.exp",
    "V_ENC_MSFA_PROJ_NORM": "v.msfa.proj",
    "V_ENC_MSFA_NORM": "v.msfa",
    "V_DS_NORM": "v.deepstack",
    "V_SAM_PRE_NORM": "v.sam.attn",
    "V_SAM_POST_NORM": "v.sam.ffn",
    "V_MERGER_LN1": "v.merger.attn",
    "V_MERGER_DS_LN": "v.merger.downsample",
    "V_QF_PROJ_NORM": "v.proj",
    "V_QF_SELF_ATTN_NORM": "v.proj.self_attn",
    "V_QF_CROSS_ATTN_NORM": "v.proj.cross_attn",
    "V_QF_FFN_NORM": "v.proj.ffn",
    "V_PROJ_NORM": "v.proj",
    "V_MULTI_PROJ_NORM": "v.proj.input",
    "V_MULTI_PROJ_POST_NORM": "v.proj.query",
    "V_RESMPL_Q_NORM": "mm.resampler.q",
    "V_RESMPL_KV_NORM": "mm.resampler.kv",
    "V_RESMPL_POST_NORM": "mm.resampler.post",
    "V_MM_PRE_NORM": "mm.pre",
    "V_MM_POST_NORM": "mm.post",
    "V_MM_POST_FC_NORM": "mm.post_fc",
    "V_MM_INP_NORM": "mm.input",
    "V_MM_SOFT_EMB_NORM": "mm.soft_emb",
    "V_MM_HARD_EMB_NORM": "mm.hard_emb",
    # audio
    "A_ENC_EMBD_NORM": "a.position_embd",
    "A_ENC_CONV1D_NORM": "a.conv1d",
    "A_PRE_NORM": "a.pre",
    "A_POST_NORM": "a.post",
    "A_ENC_LAYER_PRE_NORM": "a.layer_pre",
    "A_ENC_ATTN_PRE_NORM": "a.pre_attn",
    "A_ENC_ATTN_POST_NORM": "a.post_attn",
    "A_ENC_INPUT_NORM": "a.attn",
    "A_ENC_OUTPUT_NORM": "a.ln2",
    "A_ENC_FFN_NORM": "a.ffn",
    "A_ENC_FFN_NORM_1": "a.ffn_1",
    "A_ENC_FFN_POST_NORM": "a.post_ffn",
    "A_ENC_FFN_POST_NORM_1": "a.post_ffn_1",
    "A_ENC_NORM_CONV": "a.norm_conv",
    "A_ENC_CONV_NORM": "a.conv_norm",
    "A_ENC_DOWNSAMPLE_NORM": "a.downsample",
    "A_QF_PROJ_NORM": "a.proj",
    "A_QF_SELF_ATTN_NORM": "a.proj.self_attn",
    "A_QF_CROSS_ATTN_NORM": "a.proj.cross_attn",
    "A_QF_FFN_NORM": "a.proj.ffn",
    "A_MM_NORM_PRE": "mm.a.pre",
    "A_MM_NORM_MID": "mm.a.mid",
    "A_MM_SOFT_EMB_NORM": "mm.a.soft_emb",
    "A_MM_HARD_EMB_NORM": "mm.a.hard_emb",
    "A_MM_LOCAL_LN1": "mm.a.local.attn",
    "A_MM_LOCAL_LN2": "mm.a.local.ffn",
    "A_MM_LOCAL_NORM": "mm.a.local",
    # generated audio
    "A_GEN_CODE_ATTN_NORM": "a.gen.code.attn",
    "A_GEN_CODE_ATTN_Q_NORM": "a.gen.code.q",
    "A_GEN_CODE_ATTN_K_NORM": "a.gen.code.k",
    "A_GEN_CODE_FFN_NORM": "a.gen.code.ffn",
    "A_GEN_CODE_OUTPUT_NORM": "a.gen.code.output",
    "A_GEN_WAV_TFM_ATTN_NORM": "a.gen.wav.attn",
    "A_GEN_WAV_TFM_FFN_NORM": "a.gen.wav.ffn",
    "A_GEN_WAV_TFM_OUTPUT_NORM": "a.gen.wav.output",
    "A_GEN_WAV_UP_NORM": "a.gen.wav.up",
    "A_GEN_FLOW_TIME_NORM": "a.gen.flow.time",
    "A_GEN_FLOW_BLK_NORM": "a.gen.flow",
}
"""``MODEL_TENSOR`` member to the role of the norm that its weight belongs to."""

_STATISTICS = "running statistics of a batch norm, which normalizes nothing at run time"

EXCLUDED: dict[str, str] = {
    "A_ENC_CONV_NORM_MEAN": _STATISTICS,
    "A_ENC_CONV_NORM_VAR": _STATISTICS,
}
"""Norm-like members that are no norm's weight, and why (tools/mtmd/models/parakeet.cpp)."""


# Architectures that give a name to another norm than it says (src/models/*.cpp).
_OTHER_ROLES: dict[tuple[str, str], str] = {
    ("dbrx", "attn_output"): "ffn",
    ("lfm2", "token_embd"): "output",  # LLM_TENSOR_OUTPUT_NORM_LFM2 in src/llama-arch.cpp
    ("lfm2moe", "token_embd"): "output",
    ("minimax-01", "attn_2"): "attn_output",
    ("rwkv6", "attn_2"): "ffn",
    ("rwkv7", "attn_2"): "ffn",
}


@dataclass(frozen=True)
class NormName:
    """A norm's tensor name, taken apart.

    Attributes:
        layer: block number, None outside the blocks.
        role: what the norm normalizes.
        inferred: gguf-py does not know the name; it was read by its shape.
    """

    layer: int | None
    role: str
    inferred: bool = False


_NUMBER = re.compile(r"(?<=\.)\d{1,9}(?=\.|$)")
_NORM_WORD = re.compile(r"(layer|group|batch|rms|[ehqkv])?norm\d*|ln\d*|bn\d*")
_WORD_ROLES = {"ln1": "attn", "ln2": "ffn", "enorm": "embd", "hnorm": "hidden"}


def parse_norm_name(
    tensor: str, architecture: str = "", beside: Container[str] | None = None
) -> NormName | None:
    """Layer and role of a norm's weight or bias, None if it is not a norm's name.

    A name that gguf-py does not know is taken for a norm's if a word of its last part is
    ``norm``, ``ln``, ``bn`` or the like: newer architectures are read too.

    Args:
        tensor: its name.
        architecture: ``general.architecture``: some call a norm by another's name.
        beside: the names of the file's tensors; they tell the two meanings of
            ``post_attention_norm`` apart. Without them it is the attention's.
    """
    stem, weight_or_bias = _stem(tensor)
    layer = layer_of(stem)
    template = _NUMBER.sub("{bid}", stem, count=1)
    role = _known().get(template)
    if role is not None:
        if role == "post_attn" and beside is not None and _is_before_ffn(stem, beside):
            role = "ffn"
        return NormName(layer, _OTHER_ROLES.get((architecture, role), role))
    if weight_or_bias and is_norm_like(stem):
        return NormName(layer, _guess_role(stem), inferred=True)
    return None


def part_of(role: str) -> Literal["encoder", "decoder"] | None:
    """Which half of an encoder-decoder a norm of that role stands in; None for other networks."""
    part = role.partition(".")[0]
    if part == "enc":
        return "encoder"
    return "decoder" if part == "dec" else None


def excluded(tensor: str) -> str | None:
    """Why a norm-like tensor is no norm's weight; None if nothing is known against it."""
    stem, _ = _stem(tensor)
    reason = _excluded_templates().get(_NUMBER.sub("{bid}", stem, count=1))
    if reason is None and is_norm_like(stem) and stem.endswith(("_mean", "_var")):
        return _STATISTICS
    return reason


def layer_of(name: str) -> int | None:
    """Block number in a tensor name such as ``blk.7.ffn_down.weight``; None without one."""
    number = _NUMBER.search(name)
    return int(number[0]) if number else None


def is_norm_like(stem: str) -> bool:
    """Whether a name without ``.weight`` looks like a norm's."""
    last = _NUMBER.sub("", stem).rstrip(".").rpartition(".")[2]
    return any(_NORM_WORD.fullmatch(word) for word in last.split("_"))


def _stem(tensor: str) -> tuple[str, bool]:
    """The name without ``.weight`` or ``.bias``, and whether it had one of them."""
    stem, _, suffix = tensor.rpartition(".")
    return (stem, True) if stem and suffix in ("weight", "bias") else (tensor, False)


def _is_before_ffn(stem: str, beside: Container[str]) -> bool:
    # glm4moe, gpt-oss, qwen3next, qwen35(moe), seed_oss and the MTP block of nemotron_h_moe
    # normalize the input of the FFN with it and have no other norm there. Where it
    # normalizes the attention's output there is an ffn_norm (gemma2 and later, glm4,
    # plamo2, afmoe) or a norm of the FFN's output (olmo2, exaone4): src/models/*.cpp.
    block = stem.rpartition(".")[0]
    others = ("ffn_norm", "post_ffw_norm")
    return not any(f"{block}.{other}.weight" in beside for other in others)


@cache
def _known() -> dict[str, str]:
    """File name of every norm that gguf-py knows, ``{bid}`` in it, to its role."""
    names = {m.name: t for m, t in TENSOR_NAMES.items() if m.name in ROLES}
    return {names[member]: role for member, role in ROLES.items() if member in names}


@cache
def _excluded_templates() -> dict[str, str]:
    return {t: EXCLUDED[m.name] for m, t in TENSOR_NAMES.items() if m.name in EXCLUDED}


def _guess_role(stem: str) -> str:
    """``v.blk.3.1.attn.key.norm`` to ``v.1.attn.key``: the name without blocks and norms."""
    parts = _NUMBER.sub("", stem, count=1).split(".")
    parts = [p for p in parts if p not in ("", "blk")]
    last = _WORD_ROLES.get(parts[-1]) or "_".join(
        w for w in parts[-1].split("_") if not re.fullmatch(r"norm|ln|bn", w)
    )
    return ".".join([*parts[:-1], last] if last else parts[:-1]) or parts[-1]
