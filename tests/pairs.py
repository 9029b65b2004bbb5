"""Whole checkpoints with the files that a right conversion makes of them, for tests to spoil.

Names, orders and keys were read off transformers' classes and llama.cpp's converter
(``conversion/*.py``); the orders are written down here once more, not taken from the package.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.checkpoints import ROUND, safetensors

WIDTH, FEED, HEADS, KV_HEADS, LAYERS, TOKENS, EXPERTS = 64, 96, 4, 2, 4, 80, 4
HEAD = WIDTH // HEADS
NOPE, ROPE, LATENT = 16, 16, 32
STATES, INNER, RANK = 16, 128, 4

Array = np.ndarray
Make = Callable[[Array], Array]


def permuted(heads: int) -> Make:
    """``permute`` of conversion/llama.py."""
    return lambda w: np.stack(
        [h for head in np.split(w, heads) for pair in zip(*np.split(head, 2), strict=True)
         for h in pair]
    )  # fmt: skip


def turned(w: Array) -> Array:
    return np.ascontiguousarray(np.swapaxes(w, -1, -2))


def from_each_head(w: Array) -> Array:
    """conversion/gptneox.py."""
    heads = [np.split(h, 3) for h in np.split(w, HEADS)]
    return np.concatenate([h[i] for i in range(3) for h in heads])


def keys_of_latent(w: Array) -> Array:
    """conversion/deepseek.py."""
    return np.stack([h[:NOPE].T for h in np.split(w, HEADS)])


def values_of_latent(w: Array) -> Array:
    return np.stack([h[NOPE:] for h in np.split(w, HEADS)])


@dataclass(frozen=True)
class Entry:
    """A tensor of the source, and what becomes of it: ``{}`` stands for the block."""

    source: str
    shape: tuple[int, ...]
    makes: tuple[tuple[str, Make], ...]
    offset: float = 0.0

    @property
    def is_norm(self) -> bool:
        return len(self.shape) == 1 and "norm" in self.makes[0][0]


def one(source: str, target: str, *shape: int, make: Make = lambda w: w, **more: Any) -> Entry:
    return Entry(source, shape, ((target, make),), **more)


@dataclass(frozen=True)
class Network:
    """An architecture: its tensors, its config, and the keys that the converter makes of it."""

    name: str
    entries: tuple[Entry, ...]
    config: Mapping[str, Any]
    keys: Mapping[str, Any]
    stacks: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)


Q, KV = HEADS * HEAD, KV_HEADS * HEAD
_L = "model.layers.{}."
_EPS = {"rms_norm_eps": 1e-6}
_CONFIG = {
    "hidden_size": WIDTH, "intermediate_size": FEED, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "vocab_size": TOKENS,
    "max_position_embeddings": 512, "rope_theta": 500000.0, "head_dim": HEAD, **_EPS,
}  # fmt: skip
_KEYS = {
    "block_count": LAYERS, "embedding_length": WIDTH, "feed_forward_length": FEED,
    "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS, "context_length": 512,
    "rope.freq_base": 500000.0, "attention.layer_norm_rms_epsilon": 1e-6,
    "attention.key_length": HEAD, "attention.value_length": HEAD,
}  # fmt: skip
_LAYER_NORM = {k: v for k, v in _KEYS.items() if "rms" not in k and "rope" not in k} | {
    "attention.layer_norm_epsilon": 1e-5
}


def attention(q: Make = lambda w: w, k: Make = lambda w: w, *, bias: bool = False) -> list[Entry]:
    found = [
        one(_L + "self_attn.q_proj.weight", "blk.{}.attn_q.weight", Q, WIDTH, make=q),
        one(_L + "self_attn.k_proj.weight", "blk.{}.attn_k.weight", KV, WIDTH, make=k),
        one(_L + "self_attn.v_proj.weight", "blk.{}.attn_v.weight", KV, WIDTH),
        one(_L + "self_attn.o_proj.weight", "blk.{}.attn_output.weight", WIDTH, Q),
    ]
    if bias:
        found += [
            one(_L + f"self_attn.{x}_proj.bias", f"blk.{{}}.attn_{x}.bias", n)
            for x, n in (("q", Q), ("k", KV), ("v", KV))
        ]
    return found


def feed_forward() -> list[Entry]:
    return [
        one(_L + "mlp.gate_proj.weight", "blk.{}.ffn_gate.weight", FEED, WIDTH),
        one(_L + "mlp.up_proj.weight", "blk.{}.ffn_up.weight", FEED, WIDTH),
        one(_L + "mlp.down_proj.weight", "blk.{}.ffn_down.weight", WIDTH, FEED),
    ]


def norms(offset: float = 0.0, **names: str) -> list[Entry]:
    pairs = names or {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    return [
        one(_L + f"{s}.weight", f"blk.{{}}.{t}.weight", WIDTH, offset=offset)
        for s, t in pairs.items()
    ]


def ends(*, head: bool = True, offset: float = 0.0) -> list[Entry]:
    found = [
        one("model.embed_tokens.weight", "token_embd.weight", TOKENS, WIDTH),
        one("model.norm.weight", "output_norm.weight", WIDTH, offset=offset),
    ]
    return found + ([one("lm_head.weight", "output.weight", TOKENS, WIDTH)] if head else [])


def head_norms() -> list[Entry]:
    return [
        one(_L + f"self_attn.{x}_norm.weight", f"blk.{{}}.attn_{x}_norm.weight", HEAD)
        for x in ("q", "k")
    ]


_EXPERTS = {
    "blk.{}.ffn_gate_exps.weight": (_L + "mlp.experts.{e}.gate_proj.weight", (32, WIDTH)),
    "blk.{}.ffn_up_exps.weight": (_L + "mlp.experts.{e}.up_proj.weight", (32, WIDTH)),
    "blk.{}.ffn_down_exps.weight": (_L + "mlp.experts.{e}.down_proj.weight", (WIDTH, 32)),
}
_ROUTER = one(_L + "mlp.gate.weight", "blk.{}.ffn_gate_inp.weight", EXPERTS, WIDTH)
_MOE = {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_MOE_KEYS = {"expert_count": EXPERTS, "expert_used_count": 2, "expert_feed_forward_length": 32}
_GPT2 = "h.{}."
_NEOX = "gpt_neox.layers.{}."
_BERT = "encoder.layer.{}."
_MLA = (
    one(_L + "self_attn.q_proj.weight", "blk.{}.attn_q.weight", HEADS * (NOPE + ROPE), WIDTH),
    one(_L + "self_attn.kv_a_proj_with_mqa.weight", "blk.{}.attn_kv_a_mqa.weight",
        LATENT + ROPE, WIDTH),
    one(_L + "self_attn.kv_a_layernorm.weight", "blk.{}.attn_kv_a_norm.weight", LATENT),
    Entry(_L + "self_attn.kv_b_proj.weight", (HEADS * (NOPE + HEAD), LATENT),
          (("blk.{}.attn_k_b.weight", keys_of_latent),
           ("blk.{}.attn_v_b.weight", values_of_latent))),
    one(_L + "self_attn.o_proj.weight", "blk.{}.attn_output.weight", WIDTH, HEADS * HEAD),
)  # fmt: skip


def _biased(source: str, target: str, *shape: int, make: Make = lambda w: w) -> list[Entry]:
    return [
        one(f"{source}.weight", f"{target}.weight", *shape, make=make),
        one(f"{source}.bias", f"{target}.bias", shape[0], make=make if make is from_each_head
            else lambda w: w),
    ]  # fmt: skip


def _transposed(source: str, target: str, n_in: int, n_out: int) -> list[Entry]:
    """GPT-2's Conv1D keeps its matrices transposed."""
    return [
        one(f"{source}.weight", f"{target}.weight", n_in, n_out, make=turned),
        one(f"{source}.bias", f"{target}.bias", n_out),
    ]


def _t5(part: str, blocks: str) -> list[Entry]:
    s, t = f"{part}.block.{{}}.layer.", f"{blocks}.blk.{{}}."
    last = 2 if part == "decoder" else 1
    found = [one(f"{s}0.SelfAttention.{x}.weight", f"{t}attn_{x}.weight", Q, WIDTH) for x in "qkv"]
    found += [
        one(f"{s}0.SelfAttention.o.weight", f"{t}attn_o.weight", WIDTH, Q),
        one(f"{s}0.layer_norm.weight", f"{t}attn_norm.weight", WIDTH),
        one(f"{s}{last}.DenseReluDense.wi.weight", f"{t}ffn_up.weight", FEED, WIDTH),
        one(f"{s}{last}.DenseReluDense.wo.weight", f"{t}ffn_down.weight", WIDTH, FEED),
        one(f"{s}{last}.layer_norm.weight", f"{t}ffn_norm.weight", WIDTH),
        one(f"{part}.final_layer_norm.weight", f"{blocks}.output_norm.weight", WIDTH),
    ]
    if part == "decoder":
        found += [
            one(f"{s}1.EncDecAttention.{x}.weight", f"{t}cross_attn_{x}.weight", *shape)
            for x, shape in (("q", (Q, WIDTH)), ("k", (Q, WIDTH)), ("v", (Q, WIDTH)),
                             ("o", (WIDTH, Q)))
        ] + [one(f"{s}1.layer_norm.weight", f"{t}cross_attn_norm.weight", WIDTH)]  # fmt: skip
    return found


def _mamba(stem: str) -> list[Entry]:
    return [
        one(f"{stem}in_proj.weight", "blk.{}.ssm_in.weight", 2 * INNER, WIDTH),
        one(f"{stem}conv1d.weight", "blk.{}.ssm_conv1d.weight", INNER, 1, 4,
            make=lambda w: w[:, 0]),
        one(f"{stem}conv1d.bias", "blk.{}.ssm_conv1d.bias", INNER),
        one(f"{stem}x_proj.weight", "blk.{}.ssm_x.weight", RANK + 2 * STATES, INNER),
        one(f"{stem}dt_proj.weight", "blk.{}.ssm_dt.weight", INNER, RANK),
        one(f"{stem}dt_proj.bias", "blk.{}.ssm_dt.bias", INNER),
        one(f"{stem}A_log", "blk.{}.ssm_a", INNER, STATES, make=lambda w: -np.exp(w)),
        one(f"{stem}D", "blk.{}.ssm_d", INNER),
        one(f"{stem}out_proj.weight", "blk.{}.ssm_out.weight", WIDTH, INNER),
    ]  # fmt: skip


_SSM = {
    "ssm.conv_kernel": 4, "ssm.inner_size": INNER, "ssm.state_size": STATES,
    "ssm.time_step_rank": RANK,
}  # fmt: skip
_SANDWICH = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip

NETWORKS: dict[str, Network] = {
    n.name: n
    for n in (
        Network("llama", (*attention(permuted(HEADS), permuted(KV_HEADS)), *feed_forward(),
                *norms(), *ends()), {**_CONFIG, "model_type": "llama"}, _KEYS),
        Network("qwen2", (*attention(bias=True), *feed_forward(), *norms(), *ends()),
                {**_CONFIG, "model_type": "qwen2"}, _KEYS),
        Network("qwen3", (*attention(), *head_norms(), *feed_forward(), *norms(), *ends()),
                {**_CONFIG, "model_type": "qwen3"}, _KEYS),
        Network("gemma2", (*attention(), *feed_forward(), *norms(1.0, **_SANDWICH),
                *ends(head=False, offset=1.0)),
                {**{k: v for k, v in _CONFIG.items() if k != "rope_theta"},
                 "model_type": "gemma2", "attn_logit_softcapping": 40.0,
                 "final_logit_softcapping": 20.0, "sliding_window": 128},
                {**{k: v for k, v in _KEYS.items() if "rope" not in k},
                 "attn_logit_softcapping": 40.0, "final_logit_softcapping": 20.0,
                 "attention.sliding_window": 128}),
        Network("granite", (*attention(permuted(HEADS), permuted(KV_HEADS)), *feed_forward(),
                *norms(), *ends()),
                {**_CONFIG, "model_type": "granite", "residual_multiplier": 0.22,
                 "embedding_multiplier": 12.0, "logits_scaling": 8.0,
                 "attention_multiplier": 0.015625},
                {**_KEYS, "residual_scale": 0.22, "embedding_scale": 12.0, "logit_scale": 8.0,
                 "attention.scale": 0.015625}),
        Network("qwen3moe", (*attention(), *head_norms(), _ROUTER, *norms(), *ends()),
                {**_CONFIG, **_MOE, "model_type": "qwen3_moe"}, {**_KEYS, **_MOE_KEYS},
                _EXPERTS),
        Network("deepseek2", (*_MLA, _ROUTER, *norms(), *ends()),
                {**{k: v for k, v in _CONFIG.items() if k not in ("num_key_value_heads",
                                                                   "head_dim")},
                 "num_key_value_heads": HEADS, "qk_nope_head_dim": NOPE,
                 "qk_rope_head_dim": ROPE, "v_head_dim": HEAD, "kv_lora_rank": LATENT,
                 "n_routed_experts": EXPERTS, "num_experts_per_tok": 2,
                 "moe_intermediate_size": 32, "scoring_func": "sigmoid",
                 "routed_scaling_factor": 2.5, "norm_topk_prob": True,
                 "model_type": "deepseek_v3"},
                {**_KEYS, **_MOE_KEYS, "attention.head_count_kv": 1,
                 "attention.kv_lora_rank": LATENT, "attention.key_length": LATENT + ROPE,
                 "attention.value_length": LATENT, "attention.key_length_mla": NOPE + ROPE,
                 "attention.value_length_mla": HEAD, "rope.dimension_count": ROPE,
                 "expert_gating_func": 2, "expert_weights_scale": 2.5,
                 "expert_weights_norm": True}, _EXPERTS),
        Network("gpt2", (*_biased(_GPT2 + "ln_1", "blk.{}.attn_norm", WIDTH),
                *_biased(_GPT2 + "ln_2", "blk.{}.ffn_norm", WIDTH),
                *_transposed(_GPT2 + "attn.c_attn", "blk.{}.attn_qkv", WIDTH, 3 * WIDTH),
                *_transposed(_GPT2 + "attn.c_proj", "blk.{}.attn_output", WIDTH, WIDTH),
                *_transposed(_GPT2 + "mlp.c_fc", "blk.{}.ffn_up", WIDTH, FEED),
                *_transposed(_GPT2 + "mlp.c_proj", "blk.{}.ffn_down", FEED, WIDTH),
                one("wte.weight", "token_embd.weight", TOKENS, WIDTH),
                one("wpe.weight", "position_embd.weight", 512, WIDTH),
                *_biased("ln_f", "output_norm", WIDTH)),
                {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": FEED,
                 "n_positions": 512, "vocab_size": TOKENS, "layer_norm_epsilon": 1e-5,
                 "model_type": "gpt2"},
                {k: v for k, v in _LAYER_NORM.items() if "kv" not in k}),
        Network("gptneox", (*_biased(_NEOX + "input_layernorm", "blk.{}.attn_norm", WIDTH),
                *_biased(_NEOX + "post_attention_layernorm", "blk.{}.ffn_norm", WIDTH),
                *_biased(_NEOX + "attention.query_key_value", "blk.{}.attn_qkv", 3 * WIDTH,
                         WIDTH, make=from_each_head),
                *_biased(_NEOX + "attention.dense", "blk.{}.attn_output", WIDTH, WIDTH),
                *_biased(_NEOX + "mlp.dense_h_to_4h", "blk.{}.ffn_up", FEED, WIDTH),
                *_biased(_NEOX + "mlp.dense_4h_to_h", "blk.{}.ffn_down", WIDTH, FEED),
                one("gpt_neox.embed_in.weight", "token_embd.weight", TOKENS, WIDTH),
                *_biased("gpt_neox.final_layer_norm", "output_norm", WIDTH),
                one("embed_out.weight", "output.weight", TOKENS, WIDTH)),
                {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "rotary_pct": 0.25,
                 "num_attention_heads": HEADS, "intermediate_size": FEED,
                 "max_position_embeddings": 512, "vocab_size": TOKENS, "layer_norm_eps": 1e-5,
                 "rotary_emb_base": 20000, "use_parallel_residual": True,
                 "model_type": "gpt_neox"},
                {**{k: v for k, v in _LAYER_NORM.items() if "kv" not in k},
                 "rope.dimension_count": HEAD // 4, "rope.freq_base": 20000.0,
                 "use_parallel_residual": True}),
        Network("bert", (*(e for x, y in (("query", "q"), ("key", "k"), ("value", "v"))
                           for e in _biased(_BERT + f"attention.self.{x}", f"blk.{{}}.attn_{y}",
                                            Q, WIDTH)),
                *_biased(_BERT + "attention.output.dense", "blk.{}.attn_output", WIDTH, Q),
                *_biased(_BERT + "attention.output.LayerNorm", "blk.{}.attn_output_norm", WIDTH),
                *_biased(_BERT + "intermediate.dense", "blk.{}.ffn_up", FEED, WIDTH),
                *_biased(_BERT + "output.dense", "blk.{}.ffn_down", WIDTH, FEED),
                *_biased(_BERT + "output.LayerNorm", "blk.{}.layer_output_norm", WIDTH),
                one("embeddings.word_embeddings.weight", "token_embd.weight", TOKENS, WIDTH),
                one("embeddings.position_embeddings.weight", "position_embd.weight", 512, WIDTH),
                one("embeddings.token_type_embeddings.weight", "token_types.weight", 2, WIDTH),
                *_biased("embeddings.LayerNorm", "token_embd_norm", WIDTH)),
                {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "vocab_size": TOKENS,
                 "num_attention_heads": HEADS, "intermediate_size": FEED,
                 "max_position_embeddings": 512, "layer_norm_eps": 1e-5, "model_type": "bert",
                 "architectures": ["BertModel"]},
                {**{k: v for k, v in _LAYER_NORM.items() if "kv" not in k},
                 "attention.causal": False, "pooling_type": 1}),
        Network("mamba", (*_mamba("backbone.layers.{}.mixer."),
                one("backbone.layers.{}.norm.weight", "blk.{}.attn_norm.weight", WIDTH),
                one("backbone.embeddings.weight", "token_embd.weight", TOKENS, WIDTH),
                one("backbone.norm_f.weight", "output_norm.weight", WIDTH)),
                {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "vocab_size": TOKENS,
                 "state_size": STATES, "conv_kernel": 4, "layer_norm_epsilon": 1e-6,
                 "model_type": "mamba"},
                {"block_count": LAYERS, "embedding_length": WIDTH, "context_length": 1 << 20,
                 "feed_forward_length": 0, "attention.head_count": 0,
                 "attention.layer_norm_rms_epsilon": 1e-6, **_SSM}),
        Network("jamba", (*_mamba(_L + "mamba."), *attention(),
                one(_L + "feed_forward.gate_proj.weight", "blk.{}.ffn_gate.weight", FEED, WIDTH),
                one(_L + "feed_forward.up_proj.weight", "blk.{}.ffn_up.weight", FEED, WIDTH),
                one(_L + "feed_forward.down_proj.weight", "blk.{}.ffn_down.weight", WIDTH, FEED),
                *(one(_L + f"mamba.{x}_layernorm.weight", f"blk.{{}}.ssm_{x}_norm.weight", n)
                  for x, n in (("dt", RANK), ("b", STATES), ("c", STATES))),
                *norms(input_layernorm="attn_norm", pre_ff_layernorm="ffn_norm"),
                one("model.embed_tokens.weight", "token_embd.weight", TOKENS, WIDTH),
                one("model.final_layernorm.weight", "output_norm.weight", WIDTH),
                one("lm_head.weight", "output.weight", TOKENS, WIDTH)),
                {**{k: v for k, v in _CONFIG.items() if k not in ("rope_theta", "head_dim")},
                 "mamba_d_state": STATES, "mamba_d_conv": 4, "model_type": "jamba"},
                {**{k: v for k, v in _KEYS.items() if "rope" not in k}, **_SSM}),
        Network("t5", (*_t5("encoder", "enc"), *_t5("decoder", "dec"),
                one("shared.weight", "token_embd.weight", TOKENS, WIDTH),
                one("lm_head.weight", "output.weight", TOKENS, WIDTH)),
                {"d_model": WIDTH, "num_layers": LAYERS, "num_heads": HEADS, "d_ff": FEED,
                 "d_kv": HEAD, "layer_norm_epsilon": 1e-6, "vocab_size": TOKENS,
                 "n_positions": 512, "model_type": "t5"},
                {**{k: v for k, v in _KEYS.items() if "rope" not in k and "kv" not in k},
                 "attention.layer_norm_epsilon": 1e-6}),
        Network("newest", (*attention(permuted(HEADS), permuted(KV_HEADS)), *feed_forward(),
                *norms(), *ends()), {**_CONFIG, "model_type": "newest"}, _KEYS, _EXPERTS),
    )
}  # fmt: skip
"""``newest`` is an architecture that neither gguf-py nor llama.cpp knows."""


@dataclass
class Whole:
    """A checkpoint and its file; a test may change either before they are written.

    ``sources`` says which tensors of the checkpoint a tensor of the file was made of, ``types``
    which are of another type than ``file_type``.
    """

    network: Network
    source: dict[str, Array]
    config: dict[str, Any]
    keys: dict[str, Any]
    tensors: dict[str, Array]
    sources: dict[str, list[str]]
    dtype: str = "F32"
    file_type: str = "F32"
    extra: dict[str, str] = field(default_factory=dict)
    trailing: bytes = b""
    swapped: set[str] = field(default_factory=set)
    types: dict[str, str] = field(default_factory=dict)
    binary: dict[str, bytes] = field(default_factory=dict)

    def write(self, folder: Path) -> tuple[Path, Path]:
        checkpoint = folder / "checkpoint"
        checkpoint.mkdir()
        (checkpoint / "config.json").write_text(json.dumps(self.config))
        for name, text in self.extra.items():
            (checkpoint / name).parent.mkdir(exist_ok=True)
            (checkpoint / name).write_text(text)
        for name, data in self.binary.items():
            (checkpoint / name).write_bytes(data)
        stored = {n: (self.dtype, v) for n, v in self.source.items()}
        (checkpoint / "model.safetensors").write_bytes(safetensors(stored))
        return self.write_model(folder / "model.gguf"), checkpoint

    def write_model(self, path: Path, *, big: bool = False, per_shard: int = 0) -> Path:
        """Write the file: in big endian, or in shards of so many tensors, if so asked."""
        arch = self.network.name.partition("/")[0]
        order = gguf.GGUFEndian.BIG if big else gguf.GGUFEndian.LITTLE
        writer = gguf.GGUFWriter(path, arch, endianess=order, split_max_tensors=per_shard)
        for key, value in self.keys.items():
            _add(writer, key if "." in key and key.split(".")[0] in _WHOLE_KEYS
                 else f"{arch}.{key}", value)  # fmt: skip
        for name, values in self.tensors.items():
            self._add_tensor(writer, name, np.ascontiguousarray(values, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        if self.trailing:
            with path.open("ab") as file:
                file.write(self.trailing)
        shards = sorted(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))
        return shards[0] if shards else path

    def _add_tensor(self, writer: gguf.GGUFWriter, name: str, values: Array) -> None:
        kind = gguf.GGMLQuantizationType[self.types.get(name, self.file_type)]
        block = gguf.GGML_QUANT_SIZES[kind][0]
        plain = values.ndim < 2 or "norm" in name or "ssm_" in name or values.shape[-1] % block
        if (plain and name not in self.types) or kind == gguf.GGMLQuantizationType.F32:
            if name in self.swapped:
                values = values.byteswap()
            writer.add_tensor(name, values)
            return
        with np.errstate(over="ignore"):  # a value past half precision is one of the faults
            raw = gguf.quants.quantize(values, kind)
        if name in self.swapped:
            raw = raw.view("<u2").byteswap().view(np.uint8)
        writer.add_tensor(name, raw, raw_dtype=kind)


_WHOLE_KEYS = ("general", "tokenizer")


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def whole(name: str, dtype: str = "F32", file_type: str = "F32", seed: int = 0) -> Whole:
    """A checkpoint of that dtype, and the file of that type that a right conversion makes."""
    return whole_of(NETWORKS[name], dtype, file_type, seed)


def whole_of(network: Network, dtype: str = "F32", file_type: str = "F32", seed: int = 0) -> Whole:
    """The same of any network."""
    name = network.name
    rng = np.random.default_rng([seed, *name.encode()])
    made = Whole(network, {}, dict(network.config), dict(network.keys), {}, {}, dtype, file_type)
    for entry in network.entries:
        for layer in range(LAYERS if "{}" in entry.source else 1):
            if _is_left_out(name, entry, layer):
                continue
            values = ROUND[dtype](_values(rng, entry))
            made.source[entry.source.format(layer)] = values
            for target, make in entry.makes:
                made.tensors[target.format(layer)] = make(values) + np.float32(entry.offset)
                made.sources[target.format(layer)] = [entry.source.format(layer)]
    for target, (source, shape) in network.stacks.items():
        for layer in range(LAYERS):
            names = [source.format(layer, e=e) for e in range(EXPERTS)]
            for n in names:
                made.source[n] = ROUND[dtype](rng.normal(0, 0.05, shape).astype(np.float32))
            made.tensors[target.format(layer)] = np.stack([made.source[n] for n in names])
            made.sources[target.format(layer)] = names
    return made


def _is_left_out(name: str, entry: Entry, layer: int) -> bool:
    """Jamba's layers are recurrent and attentive in turn."""
    if name != "jamba":
        return False
    return ("mamba." in entry.source) != (layer % 2 == 0) and (
        "mamba." in entry.source or "self_attn." in entry.source
    )


def _values(rng: np.random.Generator, entry: Entry) -> Array:
    if entry.is_norm and entry.source.endswith("weight"):
        gains = rng.lognormal(rng.normal(-0.2, 0.3), 0.25, entry.shape)
        return (gains - entry.offset).astype(np.float32)
    if entry.source.endswith("A_log"):
        return rng.uniform(0, 2, entry.shape).astype(np.float32)
    return rng.normal(0, 0.05 * rng.uniform(0.7, 1.4), entry.shape).astype(np.float32)
