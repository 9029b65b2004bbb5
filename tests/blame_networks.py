"""More tiny networks for ``compare``: experts, latent attention, hybrid and recurrent ones.

What a converter does to each was read off llama.cpp's ``conversion/*.py``, as in
:mod:`tests.framework_models`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import gguf
import numpy as np
import transformers
from gguf.tensor_mapping import get_tensor_name_map

from tests.framework_models import (
    EXPERTS,
    HEAD,
    HEADS,
    KV_HEADS,
    LAYERS,
    MIXTRAL,
    NETWORKS,
    SPECIAL,
    WIDTH,
    Network,
    Tensors,
)

logging.getLogger("gguf.gguf_writer").setLevel(logging.ERROR)  # keys that are set once more
_ARCH = gguf.MODEL_ARCH
_LLAMA = NETWORKS["llama"].options
_FEW, _STATE = 32, 16
"""Width of an expert, or of what a latent attention keeps; of a recurrent state."""


def _named(
    model: Any, network: Network, change: Callable[[str, np.ndarray], np.ndarray]
) -> Tensors:
    """All tensors that gguf-py has a name for, changed given the source's name."""
    names = get_tensor_name_map(network.architecture, LAYERS)
    found: Tensors = {}
    for source, p in model.state_dict().items():
        stem = source.replace("e_score_correction_bias", "e_score_correction.bias")
        stem = stem.replace(".dt_bias", ".dt_proj.bias")
        name = names.get_name(stem, try_suffixes=(".weight", ".bias"))
        if name is not None and ".experts." not in source:
            values = change(source, p.detach().numpy().astype(np.float32))
            found[name] = np.ascontiguousarray(values)
    return found


def _experts(model: Any, inside: str) -> Tensors:
    found: Tensors = {}
    for source, p in model.state_dict().items():
        if f"{inside}.experts." in source:
            layer, values = source.split(".")[2], p.detach().numpy().astype(np.float32)
            if source.endswith("down_proj"):
                found[f"blk.{layer}.ffn_down_exps.weight"] = values
            else:
                for part, half in zip(("gate", "up"), np.split(values, 2, axis=1), strict=True):
                    found[f"blk.{layer}.ffn_{part}_exps.weight"] = np.ascontiguousarray(half)
    return found


# -- experts, latent attention --------------------------------------------------------------


def _qwen3_moe(w: gguf.GGUFWriter) -> None:
    w.add_key_length(HEAD)
    w.add_value_length(HEAD)
    w.add_expert_count(EXPERTS)
    w.add_expert_used_count(2)
    w.add_expert_feed_forward_length(_FEW)


def _deepseek(w: gguf.GGUFWriter) -> None:
    w.add_head_count_kv(1)
    w.add_vocab_size(320)
    w.add_leading_dense_block_count(1)
    w.add_q_lora_rank(_FEW)
    w.add_kv_lora_rank(_FEW)
    w.add_key_length(_FEW + HEAD)
    w.add_value_length(_FEW)
    w.add_key_length_mla(2 * HEAD)
    w.add_value_length_mla(HEAD)
    w.add_rope_dimension_count(HEAD)
    w.add_expert_feed_forward_length(_FEW)
    w.add_expert_count(EXPERTS)
    w.add_expert_used_count(2)
    w.add_expert_shared_count(1)
    w.add_expert_weights_scale(2.5)
    w.add_expert_weights_norm(True)
    w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def _of_deepseek(model: Any, network: Network) -> Tensors:
    """K and V taken out of one matrix, K transposed (``DeepseekV2Model.modify_tensors``)."""
    found = _named(model, network, lambda _n, w: w) | _experts(model, "mlp")
    for i in range(LAYERS):
        both = found.pop(f"blk.{i}.attn_kv_b.weight").reshape(HEADS, 2 * HEAD, _FEW)
        found[f"blk.{i}.attn_k_b.weight"] = np.ascontiguousarray(both[:, :HEAD].swapaxes(1, 2))
        found[f"blk.{i}.attn_v_b.weight"] = np.ascontiguousarray(both[:, HEAD:])
    return found


# -- recurrent and hybrid -------------------------------------------------------------------


def _ssm(w: gguf.GGUFWriter, rank: int) -> None:
    w.add_ssm_conv_kernel(4)
    w.add_ssm_inner_size(2 * WIDTH)
    w.add_ssm_state_size(_STATE)
    w.add_ssm_time_step_rank(rank)


def _mamba2(w: gguf.GGUFWriter) -> None:
    w.add_feed_forward_length(0)
    w.add_head_count(0)
    w.add_head_count_kv(0)
    w.add_ssm_group_count(1)
    _ssm(w, 2 * WIDTH // HEAD)


def _recurrent(name: str, w: np.ndarray) -> np.ndarray:
    if name.endswith("A_log"):
        w = -np.exp(w)
    if name.endswith("conv.weight") or ".conv1d.weight" in name:
        w = w.squeeze()
    return w


def _of_mamba2(model: Any, network: Network) -> Tensors:
    def change(name: str, w: np.ndarray) -> np.ndarray:
        w = _recurrent(name, w)
        if name.endswith((".A_log", ".D")):
            return w.reshape(-1, 1)
        return w.reshape(1, -1) if name.endswith("mixer.norm.weight") else w

    return _named(model, network, change)


def _jamba(w: gguf.GGUFWriter) -> None:
    w.add_head_count_kv([0, KV_HEADS, 0])
    w.add_expert_count(EXPERTS)
    w.add_expert_used_count(2)
    _ssm(w, HEADS)


def _lfm2(w: gguf.GGUFWriter) -> None:
    w.add_head_count_kv([0, KV_HEADS, 0])
    w.add_shortconv_l_cache(3)
    w.add_vocab_size(320)


# -- dense ------------------------------------------------------------------------------------


def _granite(w: gguf.GGUFWriter) -> None:
    w.add_embedding_scale(6.0)
    w.add_residual_scale(0.3)
    w.add_attention_scale(0.2)
    w.add_logit_scale(4.0)


def _cohere2(w: gguf.GGUFWriter) -> None:
    w.add_logit_scale(0.25)
    w.add_sliding_window(8)


_MORE = (
    Network("qwen3moe", transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM,
            _ARCH.QWEN3MOE,
            {**NETWORKS["qwen3"].options, "num_experts": EXPERTS, "num_experts_per_tok": 2,
             "moe_intermediate_size": _FEW, "norm_topk_prob": True},
            epsilon=1e-6, extra=_qwen3_moe),
    Network("deepseek2", transformers.DeepseekV3Config, transformers.DeepseekV3ForCausalLM,
            _ARCH.DEEPSEEK2,
            {**_LLAMA, "num_key_value_heads": HEADS, "q_lora_rank": _FEW, "kv_lora_rank": _FEW,
             "qk_nope_head_dim": HEAD, "qk_rope_head_dim": HEAD, "v_head_dim": HEAD,
             "n_routed_experts": EXPERTS, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
             "first_k_dense_replace": 1, "n_shared_experts": 1, "moe_intermediate_size": _FEW,
             "routed_scaling_factor": 2.5, "norm_topk_prob": True},
            epsilon=1e-6, extra=_deepseek, convert=_of_deepseek),
    Network("mamba2", transformers.Mamba2Config, transformers.Mamba2ForCausalLM, _ARCH.MAMBA2,
            {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "vocab_size": 320,
             "state_size": _STATE, "num_heads": 2 * WIDTH // HEAD, "head_dim": HEAD,
             "n_groups": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
             "tie_word_embeddings": False},
            epsilon_name="layer_norm_epsilon", extra=_mamba2, convert=_of_mamba2),
    Network("jamba", transformers.JambaConfig, transformers.JambaForCausalLM, _ARCH.JAMBA,
            {**_LLAMA, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
             "expert_layer_offset": 1, "num_experts": EXPERTS, "num_experts_per_tok": 2,
             "mamba_d_state": _STATE, "mamba_dt_rank": HEADS, "use_mamba_kernels": False},
            epsilon=1e-6, extra=_jamba,
            convert=lambda m, n: _named(m, n, _recurrent) | _experts(m, "feed_forward")),
    Network("lfm2", transformers.Lfm2Config, transformers.Lfm2ForCausalLM, _ARCH.LFM2,
            {**_LLAMA, "layer_types": ["conv", "full_attention", "conv"],
             "block_auto_adjust_ff_dim": False, "tie_word_embeddings": True},
            epsilon_name="norm_eps", extra=_lfm2,
            convert=lambda m, n: {k: w for k, w in _named(m, n, _recurrent).items()
                                  if k != "output.weight"}),
    Network("granite", transformers.GraniteConfig, transformers.GraniteForCausalLM, _ARCH.GRANITE,
            {**_LLAMA, "embedding_multiplier": 6.0, "residual_multiplier": 0.3,
             "attention_multiplier": 0.2, "logits_scaling": 4.0},
            permuted=True, extra=_granite),
    Network("cohere2", transformers.Cohere2Config, transformers.Cohere2ForCausalLM, _ARCH.COHERE2,
            {**NETWORKS["qwen3"].options, "tie_word_embeddings": True, "logit_scale": 0.25,
             "sliding_window": 8, "layer_types": ["sliding_attention"] * LAYERS},
            layer_norm=True, epsilon_name="layer_norm_eps", extra=_cohere2),
)  # fmt: skip

ALL = {**NETWORKS, **SPECIAL, "mixtral": MIXTRAL, **{n.name: n for n in _MORE}}
"""Dense, with experts, with latent attention, hybrid, recurrent, an encoder; by name."""
