"""Which keys llama.cpp reads for which architecture.

Facts of ``load_arch_hparams`` in ``src/models/*.cpp``, llama.cpp as llama-cpp-python 0.3.36
brings it; what ``llama_model_base::load_hparams`` (``src/llama-model.cpp``) reads of all
architectures stands under ``COMMON``. A key that is not read changes nothing.
"""

from __future__ import annotations

_COMMON = """
attention.causal attention.head_count attention.head_count_kv attention.key_length
attention.key_length_swa attention.value_length attention.value_length_swa block_count
classifier.output_labels classifier.pooling_type context_length embedding_length
embedding_length_out expert_count expert_group_count expert_group_used_count
expert_used_count feed_forward_length nextn_predict_layers pooling_type
rope.dimension_count rope.dimension_count_swa rope.freq_base rope.scale_linear
rope.scaling.alpha rope.scaling.attn_factor rope.scaling.factor rope.scaling.finetuned
rope.scaling.original_context_length rope.scaling.type
"""

COMMON: frozenset[str] = frozenset(_COMMON.split())
"""Keys that are read of every language model, without the architecture before them."""

_READ: dict[str, str] = {
    "rope.freq_base_swa": (
        "afmoe cohere2 cohere2moe dots3note exaone-moe exaone4 gemma-embedding gemma2 "
        "gemma3 gemma3n gemma4 gemma4-assistant gpt-oss laguna llama4 maple mellum mimo2 "
        "modern-bert muse-glimmer olmo2 plamo3 smallthinker spark2_5 step35"
    ),
    "rope.dimension_sections": (
        "bailingmoe3 deepseek32 dflash ernie4_5 ernie4_5-moe glm-dsa glm4 glm4moe "
        "hunyuan-dense hunyuan_vl paddleocr qwen2vl qwen35 qwen35moe qwen3tts qwen3vl "
        "qwen3vlmoe qwen4exp"
    ),
    "rope.scaling.yarn_log_multiplier": "deepseek2 deepseek32 mistral3 mistral4",
    "rope.scaling.yarn_beta_fast": "grok mistral3",
    "rope.scaling.yarn_beta_slow": "grok mistral3",
    "rope.scaling.yarn_ext_factor": "grok",
    "rope.scaling.yarn_attn_factor": "grok",
    "attn_logit_softcapping": "gemma2 grok",
    "final_logit_softcapping": "dflash gemma2 gemma3 gemma4 grok muse-glimmer",
    "router_logit_softcapping": "grok",
    "attention.scale": "dflash granite granite_swa granitehybrid granitemoe graniteswitch",
    "logit_scale": (
        "cohere2 cohere2moe command-r dflash granite granite_swa granitehybrid granitemoe "
        "graniteswitch grok minicpm muse-glimmer talkie"
    ),
    "residual_scale": (
        "granite granite_swa granitehybrid granitemoe graniteswitch minicpm minimax-01"
    ),
    "embedding_scale": (
        "dflash granite granite_swa granitehybrid granitemoe graniteswitch grok hrm_text minicpm"
    ),
    "attention.clamp_kqv": "dbrx mpt olmo",
    "attention.max_alibi_bias": "jais mpt",
    "use_parallel_residual": "gptneox",
    "expert_gating_func": (
        "afmoe bailingmoe2 bailingmoe3 cohere2moe deepseek2 deepseek2-ocr deepseek32 "
        "deepseek4 dflash dots1 dots3note exaone-moe glm-dsa glm4moe glm5-next hy_v3 "
        "hy_v4 kimi-k3 kimi-linear laguna lfm2moe minimax-m2 minimax-m3 mistral4 "
        "smallthinker step35"
    ),
    "expert_weights_scale": (
        "afmoe bailingmoe bailingmoe2 bailingmoe3 cohere2moe deepseek deepseek2 "
        "deepseek2-ocr deepseek32 deepseek4 dflash dots1 dots3note exaone-moe glm-dsa "
        "glm4moe glm5-next hy_v3 hy_v4 kimi-k3 kimi-linear laguna minimax-m3 mistral4 "
        "nemotron_h nemotron_h_moe step35"
    ),
    "expert_weights_norm": (
        "afmoe bailingmoe bailingmoe2 bailingmoe3 cohere2moe deepseek2 deepseek2-ocr "
        "deepseek32 deepseek4 dflash dots1 dots3note exaone-moe glm-dsa glm4moe glm5-next "
        "hy_v3 hy_v4 kimi-k3 laguna minimax-m3 mistral4 nemotron_h nemotron_h_moe step35"
    ),
    "expert_shared_count": (
        "afmoe bailingmoe bailingmoe2 bailingmoe3 cohere2moe deepseek deepseek2 "
        "deepseek2-ocr deepseek32 deepseek4 dflash dots1 dots3note exaone-moe glm-dsa "
        "glm4moe glm5-next hy_v4 kimi-k3 kimi-linear laguna minimax-m3 mistral4 "
        "nemotron_h nemotron_h_moe"
    ),
    "expert_feed_forward_length": (
        "afmoe bailingmoe bailingmoe2 bailingmoe3 cohere2moe deepseek deepseek2 "
        "deepseek2-ocr deepseek32 deepseek4 dflash dots1 dots3note ernie4_5 ernie4_5-moe "
        "exaone-moe gemma4 glm-dsa glm4moe glm5-next gpt-oss grok grovemoe hunyuan-moe "
        "hy_v3 hy_v4 kimi-k3 kimi-linear laguna lfm2moe llada-moe llama4 maple mellum "
        "mimo2 minimax-m2 minimax-m3 mistral4 nemotron_h nemotron_h_moe paddleocr "
        "qwen2moe qwen35moe qwen3moe qwen3next qwen3vlmoe qwen4exp rnd1 smallthinker "
        "step35"
    ),
    "expert_shared_feed_forward_length": (
        "bailingmoe2 bailingmoe3 cohere2moe ernie4_5 ernie4_5-moe exaone-moe granite "
        "granite_swa granitehybrid granitemoe graniteswitch hunyuan-moe hy_v3 laguna "
        "nemotron_h nemotron_h_moe paddleocr qwen2moe qwen35moe qwen3next qwen4exp step35"
    ),
    "leading_dense_block_count": (
        "afmoe bailingmoe bailingmoe2 bailingmoe3 cohere2moe deepseek deepseek2 "
        "deepseek2-ocr deepseek32 dots1 dots3note ernie4_5 ernie4_5-moe exaone-moe "
        "glm-dsa glm4moe glm5-next hy_v4 kimi-k3 kimi-linear laguna lfm2moe minimax-m3 "
        "mistral4 paddleocr"
    ),
    "interleave_moe_layer_step": "ernie4_5 ernie4_5-moe llama4 paddleocr",
    "attention.sliding_window": (
        "afmoe cohere2 cohere2moe deepseek4 dflash dots3note exaone-moe exaone4 "
        "gemma-embedding gemma2 gemma3 gemma3n gemma4 gemma4-assistant gpt-oss "
        "granite_swa laguna lfm2 llama4 maple mellum mimo2 modern-bert muse-glimmer olmo2 "
        "phi3 plamo3 smallthinker spark2_5 step35"
    ),
    "attention.sliding_window_pattern": (
        "dflash dots3note gemma4 gemma4-assistant granite_swa maple mimo2 spark2_5 step35"
    ),
    "attention.q_lora_rank": (
        "bailingmoe3 deepseek2 deepseek32 deepseek4 dflash dots3note glm-dsa glm5-next "
        "hy_v4 kimi-k3 minicpm3 mistral4"
    ),
    "attention.kv_lora_rank": (
        "bailingmoe3 deepseek2 deepseek32 dots3note glm-dsa glm5-next hy_v4 kimi-k3 "
        "kimi-linear minicpm3 mistral4 plm"
    ),
    "attention.key_length_mla": (
        "bailingmoe3 deepseek2 deepseek32 dots3note glm-dsa glm5-next hy_v4 kimi-k3 "
        "kimi-linear mistral4"
    ),
    "attention.value_length_mla": (
        "bailingmoe3 deepseek2 deepseek32 dots3note glm-dsa glm5-next hy_v4 kimi-k3 "
        "kimi-linear mistral4"
    ),
    "full_attention_interval": "minimax-01 qwen35 qwen35moe qwen3next qwen4exp",
    "ssm.conv_kernel": (
        "bailingmoe3 falcon-h1 glm5-next granitehybrid jamba kimi-k3 kimi-linear mamba "
        "mamba2 nemotron_h nemotron_h_moe plamo2 qwen35 qwen35moe qwen3next qwen4exp"
    ),
    "ssm.inner_size": (
        "falcon-h1 granitehybrid jamba mamba mamba2 nemotron_h nemotron_h_moe plamo2 "
        "qwen35 qwen35moe qwen3next qwen4exp"
    ),
    "ssm.state_size": (
        "falcon-h1 granitehybrid jamba mamba mamba2 nemotron_h nemotron_h_moe plamo2 "
        "qwen35 qwen35moe qwen3next qwen4exp"
    ),
    "ssm.time_step_rank": (
        "falcon-h1 granitehybrid jamba mamba mamba2 nemotron_h nemotron_h_moe plamo2 "
        "qwen35 qwen35moe qwen3next qwen4exp"
    ),
    "ssm.group_count": (
        "falcon-h1 granitehybrid mamba2 nemotron_h nemotron_h_moe plamo2 qwen35 qwen35moe "
        "qwen3next qwen4exp"
    ),
    "shortconv.l_cache": "lfm2 lfm2moe",
    "wkv.head_size": "arwkv7 rwkv6 rwkv6qwen2 rwkv7",
    "attention.temperature_scale": "deepseek2 mistral3 mistral4",
    "attention.temperature_length": "deepseek2 grok mistral4",
    "attention.relative_buckets_count": "t5 t5encoder",
    "vocab_size": "deepseek2 llama llama-embed mistral4",
    "swiglu_clamp_exp": "bailingmoe3 deepseek4 dflash glm5-next hy_v4 maple step35",
}

_KNOWN = """
afmoe apertus arcee arctic arwkv7 baichuan bailingmoe bailingmoe2 bailingmoe3 bert
bitnet bloom chameleon chatglm clip codeshell cogvlm cohere2 cohere2moe command-r dbrx
deci deepseek deepseek2 deepseek2-ocr deepseek32 deepseek4 dflash dots1 dots3note dream
eagle3 ernie4_5 ernie4_5-moe eurobert exaone exaone-moe exaone4 falcon falcon-h1 gemma
gemma-embedding gemma2 gemma3 gemma3n gemma4 gemma4-assistant glm-dsa glm4 glm4moe
glm5-next gpt-oss gpt2 gptneox granite granite_swa granitehybrid granitemoe
graniteswitch grok grovemoe hrm_text hunyuan-dense hunyuan-moe hunyuan_vl hy_v3 hy_v4
internlm2 jais jais2 jamba jina-bert-v2 jina-bert-v3 kimi-k3 kimi-linear laguna lfm2
lfm2moe llada llada-moe llama llama-embed llama4 maincoder mamba mamba2 maple mellum
mimo2 minicpm minicpm3 minimax-01 minimax-m2 minimax-m3 mistral3 mistral4 modern-bert
mpt muse-glimmer nanbeige nemotron nemotron_h nemotron_h_moe neo-bert nomic-bert
nomic-bert-moe olmo olmo2 olmoe openelm orion paddleocr pangu-embedded phi2 phi3 phimoe
plamo plamo2 plamo3 plm pockettts qwen qwen2 qwen2moe qwen2vl qwen3 qwen35 qwen35moe
qwen3moe qwen3next qwen3tts qwen3vl qwen3vlmoe qwen4exp refact rnd1 rwkv6 rwkv6qwen2
rwkv7 seed_oss smallthinker smollm3 spark2_5 stablelm starcoder starcoder2 step35 t5
t5encoder talkie wavtokenizer-dec xverse
"""

KNOWN: frozenset[str] = frozenset(_KNOWN.split())
"""Architectures that this llama.cpp runs."""


def reads(architecture: str, key: str) -> bool | None:
    """Whether a key of an architecture is read; None if the architecture is not known.

    Args:
        architecture: ``general.architecture``.
        key: without the architecture before it.
    """
    if architecture not in KNOWN:
        return None
    return key in COMMON or architecture in _READ.get(key, "").split()
