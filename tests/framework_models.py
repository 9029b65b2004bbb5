"""Tiny models built by Transformers, and the GGUF files that a right conversion makes of them.

What a converter does to each architecture was read off llama.cpp's ``conversion/*.py``; names
come from gguf-py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf.tensor_mapping import get_tensor_name_map
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from ggufnorm.engines.pretrained import quiet
from tests.models import add_vocabulary, add_wordpiece

Tensors = dict[str, np.ndarray]

WIDTH, FEED, HEADS, KV_HEADS, LAYERS, WORDS, CONTEXT = 64, 96, 4, 2, 3, 320, 128
HEAD = WIDTH // HEADS
EXPERTS = 4
PLAIN = ("position", "token_types", "_norm", "ffn_gate_inp", "ssm_a", "ssm_d", "conv")
"""In the names of tensors that stay F32 (``prepare_tensors`` of conversion/base.py)."""


@dataclass(frozen=True)
class Network:
    """One architecture: how Transformers builds it, and what its converter does.

    ``offset`` is what the converter adds to a norm's weight: the module adds it too;
    ``convert`` makes the file's tensors where names alone do not.
    """

    name: str
    config: type
    model: type
    architecture: gguf.MODEL_ARCH
    options: Mapping[str, Any] = field(default_factory=dict)
    offset: float = 0.0
    permuted: bool = False
    transposed: bool = False
    layer_norm: bool = False
    epsilon: float = 1e-5
    epsilon_name: str = "rms_norm_eps"
    prefix: str = ""
    extra: Callable[[gguf.GGUFWriter], None] = lambda _w: None
    vocabulary: Callable[[gguf.GGUFWriter, int], None] = add_vocabulary
    convert: Callable[[Any, Network], Tensors] | None = None

    @property
    def kv_heads(self) -> int:
        has_fewer = self.name not in ("gpt2", "bert")
        return self.options.get("num_key_value_heads", HEADS) if has_fewer else HEADS


_COMMON = {
    "hidden_size": WIDTH, "intermediate_size": FEED, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "vocab_size": WORDS,
    "max_position_embeddings": CONTEXT, "tie_word_embeddings": False,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_HEADED = {**_COMMON, "head_dim": HEAD}
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}


def _head_size(w: gguf.GGUFWriter) -> None:
    w.add_key_length(HEAD)
    w.add_value_length(HEAD)


def _gemma2(w: gguf.GGUFWriter) -> None:
    _head_size(w)
    w.add_attn_logit_softcapping(50.0)
    w.add_final_logit_softcapping(30.0)
    w.add_sliding_window(64)


def _gemma3(w: gguf.GGUFWriter) -> None:
    _head_size(w)
    w.add_sliding_window(64)


def _stablelm(w: gguf.GGUFWriter) -> None:
    w.add_parallel_residual(False)


def _mixtral(w: gguf.GGUFWriter) -> None:
    w.add_expert_count(EXPERTS)
    w.add_expert_used_count(2)


def _bert(w: gguf.GGUFWriter) -> None:
    w.add_causal_attention(False)
    w.add_pooling_type(gguf.PoolingType.MEAN)


_GEMMA = {
    **_HEADED, "tie_word_embeddings": True, "query_pre_attn_scalar": HEAD, "sliding_window": 64,
}  # fmt: skip
_GPT2 = {
    "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": CONTEXT, "n_inner": FEED,
    "vocab_size": WORDS, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_ARCH = gguf.MODEL_ARCH
NETWORKS = {
    n.name: n
    for n in (
        Network("llama", transformers.LlamaConfig, transformers.LlamaForCausalLM, _ARCH.LLAMA,
                {**_COMMON, **_ROPE}, permuted=True),
        Network("mistral", transformers.MistralConfig, transformers.MistralForCausalLM,
                _ARCH.LLAMA, {**_HEADED, **_ROPE, "sliding_window": None}, permuted=True),
        Network("qwen3", transformers.Qwen3Config, transformers.Qwen3ForCausalLM, _ARCH.QWEN3,
                {**_HEADED, **_ROPE}, epsilon=1e-6, extra=_head_size),
        Network("gemma2", transformers.Gemma2Config, transformers.Gemma2ForCausalLM, _ARCH.GEMMA2,
                _GEMMA, offset=1.0, epsilon=1e-6, extra=_gemma2),
        Network("gemma3", transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM,
                _ARCH.GEMMA3, _GEMMA, offset=1.0, epsilon=1e-6, extra=_gemma3),
        Network("stablelm", transformers.StableLmConfig, transformers.StableLmForCausalLM,
                _ARCH.STABLELM, {**_COMMON, "use_qkv_bias": True}, layer_norm=True,
                epsilon_name="layer_norm_eps", extra=_stablelm),
        Network("phi", transformers.PhiConfig, transformers.PhiForCausalLM, _ARCH.PHI2,
                {**_COMMON, "num_key_value_heads": HEADS, "partial_rotary_factor": 1.0},
                layer_norm=True, epsilon_name="layer_norm_eps"),
        Network("gpt2", transformers.GPT2Config, transformers.GPT2LMHeadModel, _ARCH.GPT2, _GPT2,
                transposed=True, layer_norm=True, epsilon_name="layer_norm_epsilon"),
        Network("bert", transformers.BertConfig, transformers.BertModel, _ARCH.BERT,
                {**_COMMON, "type_vocab_size": 2}, layer_norm=True, epsilon=1e-12,
                epsilon_name="layer_norm_eps", extra=_bert, vocabulary=add_wordpiece),
    )
}  # fmt: skip

SPECIAL = {
    n.name: n
    for n in (
        Network("olmo", transformers.OlmoConfig, transformers.OlmoForCausalLM, _ARCH.OLMO,
                {**_COMMON, **_ROPE, "num_key_value_heads": HEADS}, permuted=True,
                layer_norm=True, epsilon_name="layer_norm_eps"),
        Network("stablelm per head", transformers.StableLmConfig, transformers.StableLmForCausalLM,
                _ARCH.STABLELM, {**_COMMON, "qk_layernorm": True, "use_parallel_residual": True},
                layer_norm=True, epsilon_name="layer_norm_eps"),
    )
}  # fmt: skip
"""OLMo's norms have no weights; StableLM's on Q and K have a weight of its own for each head."""


MIXTRAL = Network(
    "mixtral", transformers.MixtralConfig, transformers.MixtralForCausalLM, _ARCH.LLAMA,
    {**_COMMON, **_ROPE, "num_local_experts": EXPERTS, "num_experts_per_tok": 2}, permuted=True,
    extra=_mixtral,
)  # fmt: skip


def build(network: Network, seed: int = 0) -> Any:
    """The model with trained-like values: lognormal norm weights with a few large channels."""
    torch.manual_seed(seed)
    stated = {} if network.name == "olmo" else {network.epsilon_name: network.epsilon}
    config = network.config(**network.options, **stated)
    config._attn_implementation = "eager"
    model = network.model(config).eval()
    rng = np.random.default_rng([seed, *network.name.encode()])
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.from_numpy(trained_like(name, tuple(p.shape), rng, network.offset)))
        for name, b in model.named_buffers():
            if name.endswith("e_score_correction_bias"):  # zero, as it is not trained
                b.copy_(torch.from_numpy(rng.normal(0, 0.3, tuple(b.shape)).astype(np.float32)))
    return model


def trained_like(
    name: str, shape: tuple[int, ...], rng: np.random.Generator, offset: float
) -> np.ndarray:
    if len(shape) == 1 and name.endswith(".bias"):
        return rng.normal(0, 0.1, shape).astype(np.float32)
    if len(shape) == 1:
        w = np.exp(rng.normal(0, 0.2, shape)) * rng.uniform(0.6, 1.4)
        w[rng.integers(shape[0])] *= 4
        return (w - offset).astype(np.float32)
    return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


class _Plain(torch.nn.Module):
    """A model that takes ids and gives one array, as an exporter wants it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model

    def forward(self, input_ids: Any) -> Any:
        found = self.inner(input_ids=input_ids, use_cache=False)
        return found.logits if hasattr(found, "logits") else found.last_hidden_state


def export(model: Any, path: Path) -> Path:
    """The model as ONNX, by torch's exporter."""
    output = "logits" if hasattr(model, "lm_head") else "hidden"
    with quiet():
        torch.onnx.export(
            _Plain(model).eval(), (torch.arange(9)[None] + 3,), str(path), verbose=False,
            input_names=["input_ids"], output_names=[output],
            dynamic_shapes={"input_ids": {1: torch.export.Dim("tokens", min=2, max=100)}},
        )  # fmt: skip
    return path


def save(model: Any, folder: Path) -> Path:
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    return folder


def with_tokenizer(text: str, folder: Path) -> Path:
    """The folder with a tokenizer that knows the words of a text."""
    words = dict.fromkeys(text.split())
    vocabulary = {"[UNK]": 0, **{word: i + 1 for i, word in enumerate(words)}}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def converted(model: Any, network: Network) -> Tensors:
    """The tensors of the GGUF file, named and changed as the converter does."""
    if network.convert is not None:
        return network.convert(model, network)
    return by_names(model, network)


def by_names(model: Any, network: Network) -> Tensors:
    """The tensors that need no more than another name, rows permuted, or a transposition."""
    names = get_tensor_name_map(network.architecture, LAYERS)
    found: Tensors = {}
    for source, p in model.state_dict().items():
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        name = name or names.get_name(f"bert.{source}", try_suffixes=(".weight", ".bias"))
        if name is None or "pooler" in source or ".experts." in source:
            continue
        if source == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        values = p.detach().numpy().astype(np.float32)
        if values.ndim == 1 and source.endswith("norm.weight"):
            values = values + np.float32(network.offset)
        if network.permuted and source.endswith(("q_proj.weight", "k_proj.weight")):
            values = permuted(values, HEADS if "q_proj" in source else network.kv_heads)
        if network.transposed and ".c_" in source and values.ndim == 2:
            values = values.T
        found[name] = np.ascontiguousarray(values)
    return found | _per_head(model) | _of_experts(model)


def _per_head(model: Any) -> Tensors:
    """StableLM's norms of each head as one tensor (conversion/stablelm.py)."""
    state = model.state_dict()
    return {
        f"blk.{i}.attn_{part}_norm.weight": np.stack(
            [state[f"{module}.norms.{k}.weight"].numpy() for k in range(heads)]
        )
        for i in range(LAYERS)
        for part, heads in (("q", HEADS), ("k", KV_HEADS))
        if f"{(module := f'model.layers.{i}.self_attn.{part}_layernorm')}.norms.0.weight" in state
    }


def _of_experts(model: Any) -> Tensors:
    """Matrices of all experts as one tensor; Transformers has gate and up in one."""
    found: Tensors = {}
    for source, p in model.state_dict().items():
        values = p.detach().numpy().astype(np.float32)
        layer = f"blk.{source.split('.')[2]}" if ".mlp." in source else ""
        if source.endswith("mlp.gate.weight"):
            found[f"{layer}.ffn_gate_inp.weight"] = values
        elif source.endswith("experts.down_proj"):
            found[f"{layer}.ffn_down_exps.weight"] = values
        elif source.endswith("experts.gate_up_proj"):
            parts = np.split(values, 2, axis=1)
            for part, half in zip(("gate", "up"), parts, strict=True):
                found[f"{layer}.ffn_{part}_exps.weight"] = np.ascontiguousarray(half)
    return found


def permuted(w: np.ndarray, heads: int) -> np.ndarray:
    """``LlamaModel.permute`` of llama.cpp's conversion/llama.py."""
    return (
        w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)
    )


def write(
    path: Path,
    network: Network,
    tensors: Tensors,
    *,
    epsilon: float | None = None,
    dtype: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    keys: Mapping[str, Any] | None = None,
) -> Path:
    """A GGUF file of such tensors; matrices in ``dtype``.

    ``keys`` are set in the end, without the architecture before them; None takes one out.
    """
    w = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[network.architecture])
    w.add_context_length(CONTEXT)
    w.add_embedding_length(WIDTH)
    w.add_block_count(LAYERS)
    w.add_feed_forward_length(FEED)
    w.add_head_count(HEADS)
    w.add_head_count_kv(network.kv_heads)
    w.add_rope_dimension_count(HEAD // 4 if network.name.startswith("stablelm") else HEAD)
    w.add_rope_freq_base(10000.0)
    add = w.add_layer_norm_eps if network.layer_norm else w.add_layer_norm_rms_eps
    add(network.epsilon if epsilon is None else epsilon)
    network.extra(w)
    network.vocabulary(w, WORDS)
    for key, value in (keys or {}).items():
        name = f"{gguf.MODEL_ARCH_NAMES[network.architecture]}.{key}"
        w.kv_data[0].pop(name, None)
        if value is not None:
            add_key = {bool: w.add_bool, int: w.add_uint32, float: w.add_float32}
            add_key.get(type(value), w.add_string)(name, value)
    for name, values in tensors.items():
        plain = values.ndim == 1 or any(n in name for n in PLAIN)
        kind = gguf.GGMLQuantizationType.F32 if plain else dtype
        if values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:  # as the converter does
            kind = gguf.GGMLQuantizationType.F16
        w.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path
