"""Tiny checkpoints of every text network that Transformers and llama.cpp's converter share.

The classes are Transformers' own, their configs' defaults are kept, and sizes are set by the names
that configs use for them: wide enough for K quants, deep enough for every kind of layer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto as auto

from tests.right_tokenizers import BOS, EOS, KINDS, N_TOKENS, PAD

WIDTH, FEED, HEADS, KV_HEADS, HEAD, LAYERS, CONTEXT, EXPERTS = 256, 512, 4, 2, 64, 4, 512, 4

SIZES: Mapping[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "attention_hidden_size"), WIDTH),
    **dict.fromkeys(("intermediate_size", "n_inner", "d_ff", "ffn_dim", "ffn_hidden_size"), FEED),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_key_value_groups"), KV_HEADS),
    **dict.fromkeys(("head_dim", "d_kv", "head_size", "global_head_dim"), HEAD),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), CONTEXT),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
                    EXPERTS),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size",
                     "shared_intermediate_size", "moe_shared_expert_intermediate_size",
                     "q_lora_rank", "kv_lora_rank"), WIDTH),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "decoder_sparse_step",
                     "first_k_dense_replace", "mamba_n_groups", "n_groups"), 1),
    **dict.fromkeys(("qk_nope_head_dim", "v_head_dim"), HEAD), "qk_rope_head_dim": HEAD // 2,
    "vocab_size": N_TOKENS, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS,
    "type_vocab_size": 2,
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size", "time_step_rank",
                     "mamba_dt_rank"), 16),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), HEAD), "mamba_d_ssm": 8 * HEAD,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "conv_dim": WIDTH,
    "linear_key_head_dim": HEAD, "linear_value_head_dim": HEAD, "expand": 2,
    "hidden_size_per_layer_input": HEAD, "vocab_size_per_layer_input": N_TOKENS,
    "laurel_rank": HEAD, "num_kv_shared_layers": 2, "query_pre_attn_scalar": HEAD,
    "num_global_key_value_heads": 1,
}  # fmt: skip
"""By the names of configs."""

_MOST_WEIGHTS = 40_000_000

_WINDOW = {"sliding_window": 16}
_HALF = {"layer_types": ["linear_attention", "full_attention"] * 2}
_MAMBA = {"layer_types": ["mamba", "attention"] * 2, "mamba_expand": 2}
_TURNS = {**_WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2}
_MOST = {**_WINDOW, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]}
_FIRST = {**_WINDOW, "layer_types": ["full_attention"] + ["sliding_attention"] * 3}
_CONVOLVED = {"layer_types": ["conv", "full_attention"] * 2}
_FULL = {"layer_types": ["full_attention"] * LAYERS, "sliding_window": None}
_SIGMOID = {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
_LATENT = {"num_key_value_heads": HEADS}
_DECODER = {"num_decoder_layers": 3, "decoder_start_token_id": PAD, "eos_token_id": 1}
_ROBERTA = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "afmoe": {"num_dense_layers": 1, "mup_enabled": True, "sliding_window": 24, "route_norm": True},
    "bamba": {"attn_layer_indices": [1, 3], "mamba_expand": 2, "attn_rotary_emb": HEAD // 2},
    "camembert": _ROBERTA, "cohere2": {**_MOST, "rotary_pct": 1.0}, "cohere2_moe": _MOST,
    "dbrx": {"attn_config": {"kv_n_heads": KV_HEADS, "rope_theta": 10000.0, "clip_qkv": 8.0},
             "ffn_config": {"hidden_size": WIDTH, "ffn_hidden_size": FEED,
                            "moe_num_experts": EXPERTS, "moe_top_k": 2}},
    "deepseek_v2": {**_LATENT, "topk_method": "greedy"},
    "deepseek_v3": {**_LATENT, **_SIGMOID}, "deepseek_v32": {**_LATENT, **_SIGMOID},
    "dots1": {**_LATENT, **_SIGMOID}, "ernie4_5_moe": {"moe_num_shared_experts": 1},
    "eurobert": {"classifier_pooling": "mean", "mask_token_id": 3},
    "exaone4": _FULL,  # those of llama.cpp have windows in networks of 64 layers
    "exaone_moe": {**_MOST, "scoring_func": "sigmoid"}, "falcon": {"num_kv_heads": 1},
    "falcon_h1": {"head_dim": HEAD}, "gemma2": _TURNS,
    "gemma3_text": {**_WINDOW, "num_hidden_layers": 6,
                    "layer_types": ["sliding_attention"] * 5 + ["full_attention"]},
    "gemma3n_text": {**_WINDOW, "num_hidden_layers": 5, "altup_num_inputs": 4,
                     "layer_types": ["sliding_attention"] * 4 + ["full_attention"],
                     "activation_sparsity_pattern": [0.95] * 5, "intermediate_size": [4 * FEED] * 5,
                     "hidden_size_per_layer_input": 256, "num_kv_shared_layers": 0},
    "gemma4_text": {**_TURNS, "head_dim": HEAD, "global_head_dim": 2 * HEAD,
                    "final_logit_softcapping": 30.0},
    "glm4_moe_lite": {**_LATENT, **_SIGMOID, "first_k_dense_replace": 1},
    "glm_moe_dsa": _LATENT,
    "gpt-sw3": {"n_ctx": CONTEXT, "n_inner": None}, "gpt2": {"n_inner": None, "n_ctx": CONTEXT},
    "gpt_bigcode": {"n_inner": None}, "gpt_neox": {"rotary_pct": 0.25}, "gpt_oss": _TURNS,
    "granite_swa": _MOST, "granitemoe_swa": _MOST, "granitemoehybrid": _MAMBA,
    "hunyuan_v1_moe": {"moe_intermediate_size": [FEED] * LAYERS,
                       "num_shared_expert": [1] * LAYERS, "moe_topk": [2] * LAYERS},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
              "expert_layer_offset": 1, "use_mamba_kernels": False},
    "laguna": _FIRST, "lfm2": {**_CONVOLVED, "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {**_CONVOLVED, "num_dense_layers": 1},
    "llama4_text": {"intermediate_size_mlp": FEED, "no_rope_layers": [1, 1, 1, 0],
                    "moe_layers": [1, 3], "interleave_moe_layer_step": 2},
    "mamba2": {"num_heads": 8, "head_dim": HEAD},
    "mellum": {**_MOST, "rope_parameters": {k: {"rope_type": "default", "rope_theta": 500000.0}
               for k in ("full_attention", "sliding_attention")}},
    "mimo_v2_flash": {**_MOST, "swa_head_dim": HEAD, "swa_v_head_dim": HEAD,
                      "swa_num_attention_heads": HEADS, "topk_method": "noaux_tc",
                      "swa_num_key_value_heads": KV_HEADS, "hybrid_layer_pattern": [1, 1, 1, 0],
                      "partial_rotary_factor": 0.5},
    "minicpm3": _LATENT, "minimax_m2": {"rotary_dim": HEAD // 2, "scoring_func": "sigmoid"},
    "modernbert": {**_ROBERTA, "local_attention": 16, "layer_norm_eps": 1e-5, "cls_token_id": 0,
                   "sep_token_id": 2}, "mt5": _DECODER,
    "nemotron_h": {"layer_types": ["linear_attention", "moe", "linear_attention",
                                   "full_attention"]},
    "nomic_bert": {"n_positions": 8192, "max_trained_positions": 2048, "causal": False,
                   "activation_function": "swiglu", "prenorm": False, "rotary_emb_fraction": 1.0,
                   "rotary_emb_interleaved": False, "rotary_emb_scale_base": None,
                   **dict.fromkeys(("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"), False)},
    "olmo3": _MOST, "olmoe": _LATENT, "phi": {**_LATENT, "intermediate_size": 4 * WIDTH},
    "phi3": {"original_max_position_embeddings": CONTEXT}, "qwen3_5_moe_text": _HALF,
    "qwen3_5_text": _HALF, "qwen3_next": _HALF,
    "qwen4_exp_text": {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": HEAD,
                       "indexer_budget": 64, "indexer_compress_ratio": 4,
                       "output_gate_type": "sigmoid"},  # llama.cpp knows no other
    "qwen3_moe": {"norm_topk_prob": True}, "roberta": _ROBERTA,
    "sarvam_mla": {**_LATENT, **_SIGMOID}, "smollm3": {"no_rope_layers": [1, 1, 1, 0]},
    "solar_open": {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0,
                                       "partial_rotary_factor": 1.0}},
    "t5": _DECODER, "umt5": _DECODER, "xlm-roberta": {**_ROBERTA, "vocab_size": 116},
    "youtu": _LATENT,
}  # fmt: skip
"""What one network needs besides."""

DIFFERENT: Mapping[str, str] = {
    "bamba": "half of each head turns, and the converter orders rows as if all of it did",
    "camembert": "the converter keeps the positions of padding, and takes the tokens for BERT's",
    "glm": "the converter writes 1e-5 for 1.5625e-7, and the width for the context",
    "glm4_moe_lite": "Transformers' code has 1e-6 for the norms of a latent attention",
    "minicpm3": "Transformers' code has 1e-6 for the norms of a latent attention",
    "qwen4_exp_text": "the predictions differ by 0.0006 nats, and why is not known",
}
"""Networks whose files do not compute what their sources compute, however right the steps were."""

_KEPT: Mapping[str, tuple[str, ...]] = {
    "dbrx": ("rope_theta",), "falcon": ("head_dim", "num_key_value_heads", "ffn_hidden_size",
                                         "max_position_embeddings"),
    "gemma4_text": ("head_dim", "global_head_dim", "num_experts"),
    "hunyuan_v1_moe": ("num_experts_per_tok",),
    **dict.fromkeys(("deepseek_v3", "deepseek_v32", "youtu"), ("head_dim",)),
    "gpt_neox": ("num_key_value_heads",), "mamba": ("intermediate_size",),
    "falcon_mamba": ("intermediate_size",),
    **dict.fromkeys(("bert", "distilbert", "nomic_bert"), ("bos_token_id", "eos_token_id")),
}  # fmt: skip
"""Sizes that a config makes itself, and ids that its tokenizer has not."""

_SENTENCES = ("llama", "mistral", "mixtral", "gemma", "phi3", "minicpm", "jamba", "nemotron",
              "ernie4_5", "internlm", "bitnet")  # fmt: skip
_GLM = ("glm", "solar_open")
_WORD_PIECES = ("bert", "distilbert", "nomic_bert", "electra")


_T5 = ("t5", "mt5", "umt5")


def tokenizer_of(name: str) -> str:
    """Which tokenizer a network comes with."""
    others = {
        "t5": _T5, "word pieces": _WORD_PIECES, "xlm-roberta": ("xlm-roberta", "camembert"),
        "roberta": ("roberta", "modernbert"), "qwen2": ("qwen2", "qwen2_moe", "qwen3_5_moe_text"),
        "no prefix": ("gemma", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text"),
        "begun": ("deepseek_v2", "deepseek_v3", "deepseek_v32"),
    }  # fmt: skip
    for kind, its in others.items():
        if name in its:
            return kind
    if name.startswith(_GLM):
        return "glm"
    spelled = name.startswith(_SENTENCES) and name not in ("nemotron_h", "llama4_text")
    return "sentences" if spelled else "byte pairs"


def networks(known: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names of configs and the classes of models.

    Args:
        known: names of classes that the converter knows.
    """
    mappings = (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
                auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
                auto.MODEL_MAPPING_NAMES)  # fmt: skip
    for name in CONFIG_MAPPING:
        # The same network behind an encoder; and one that is published under another class.
        if f"{name}_text" in CONFIG_MAPPING or name == "sarvam_moe":
            continue
        found = [m[name] for m in mappings if name in m]
        classes = [c for f in found for c in ([f] if isinstance(f, str) else f) if c in known]
        if classes and (name in _T5 or not classes[0].endswith("ForConditionalGeneration")):
            yield name, classes[0]


def config_of(name: str) -> Any:
    """A small config."""
    kind = CONFIG_MAPPING[name]
    usual, kept, more = kind(), _KEPT.get(name, ()), OPTIONS.get(name, {})
    sizes = {k: v for k, v in SIZES.items() if k not in kept and _takes(usual, k)}
    lists = dict.fromkeys(k for k in ("layer_types", "mlp_layer_types") if _takes(usual, k))
    try:  # layer types of the usual number of layers, or none that may be set
        return kind(**{**sizes, **lists, **more})
    except (AttributeError, TypeError, ValueError):
        return kind(**{**sizes, **more})


def _takes(config: Any, key: str) -> bool:
    try:
        return hasattr(config, key)
    except Exception:  # one that layers differ in
        return True


def fill(model: Any, seed: int = 0) -> None:
    """Values as training leaves them: norms spread about their first value, matrices in scale."""
    g = torch.Generator().manual_seed(seed)

    def normal(p: torch.Tensor) -> torch.Tensor:
        return torch.randn(p.shape, generator=g)

    with torch.no_grad():
        for name, p in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("e_score_correction_bias"):
                p.copy_(normal(p) * 0.1)
            elif not isinstance(p, torch.nn.Parameter) or name.endswith("A_log"):
                continue
            elif p.ndim == 1:
                about = p.abs().max() == 0
                p.copy_(normal(p) * 0.1 if about else p * torch.exp(0.2 * normal(p)))
            elif "emb" in name or "wte" in name or "wpe" in name or name == "shared.weight":
                p.copy_(normal(p) * 0.1)
            else:
                small = 0.3 if name.endswith(".q.weight") else 1.0  # T5 does not divide its scores
                p.copy_(normal(p) * small / math.sqrt(p.shape[-1]))


def make(name: str, model_class: str, folder: Path) -> None:
    """Save a checkpoint with its tokenizer."""
    config = config_of(name)
    kind = getattr(transformers, model_class)
    with torch.device("meta"):
        n = sum(p.numel() for p in kind(config).parameters())
    if n > _MOST_WEIGHTS:
        raise ValueError(f"{n:,} weights: one of its sizes is not set")
    torch.manual_seed(0)
    model = kind(config)
    fill(model)
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    written.update(OPTIONS.get(name, {}))  # as published: Transformers has other names by now
    (folder / "config.json").write_text(json.dumps(written, indent=1), encoding="utf-8")
    KINDS[tokenizer_of(name)](folder)
