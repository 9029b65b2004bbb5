"""Small GGUF models with random weights, written with gguf-py, and ways to damage them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Shape:
    """Sizes of a test model; rows are multiples of 256 so that K-quants apply."""

    n_layer: int = 3
    n_embd: int = 256
    n_head: int = 4
    n_head_kv: int = 2
    n_ff: int = 256
    n_vocab: int = 320
    n_expert: int = 4
    n_ctx: int = 128

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def n_kv(self) -> int:
        return self.n_head_kv * self.head_dim


def _matrix(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float16)


def _norm(rng: np.random.Generator, n: int) -> np.ndarray:
    """Trained-like: lognormal, with a few large channels."""
    w = np.exp(rng.normal(0, 0.2, n)) * rng.uniform(0.5, 1.5)
    w[rng.integers(n)] *= 4
    return w.astype(np.float32)


def _bias(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(0, 0.1, n).astype(np.float32)


def llama(path: Path, s: Shape = Shape(), seed: int = 0, epsilon: float = 1e-5) -> Path:
    """RMSNorm, rotary positions, SwiGLU."""
    rng = np.random.default_rng(seed)
    t: Tensors = {"token_embd.weight": _matrix(rng, s.n_vocab, s.n_embd)}
    for i in range(s.n_layer):
        b = f"blk.{i}."
        t[b + "attn_norm.weight"] = _norm(rng, s.n_embd)
        t[b + "attn_q.weight"] = _matrix(rng, s.n_embd, s.n_embd)
        t[b + "attn_k.weight"] = _matrix(rng, s.n_head_kv * s.head_dim, s.n_embd)
        t[b + "attn_v.weight"] = _matrix(rng, s.n_head_kv * s.head_dim, s.n_embd)
        t[b + "attn_output.weight"] = _matrix(rng, s.n_embd, s.n_embd)
        t[b + "ffn_norm.weight"] = _norm(rng, s.n_embd)
        t[b + "ffn_gate.weight"] = _matrix(rng, s.n_ff, s.n_embd)
        t[b + "ffn_up.weight"] = _matrix(rng, s.n_ff, s.n_embd)
        t[b + "ffn_down.weight"] = _matrix(rng, s.n_embd, s.n_ff)
    t["output_norm.weight"] = _norm(rng, s.n_embd)
    t["output.weight"] = _matrix(rng, s.n_vocab, s.n_embd)
    return _write(path, "llama", s, t, lambda w: w.add_layer_norm_rms_eps(epsilon))


def gpt2(path: Path, s: Shape = Shape(), seed: int = 0, epsilon: float = 1e-5) -> Path:
    """LayerNorm with bias everywhere, learned positions."""
    rng = np.random.default_rng(seed)
    t: Tensors = {
        "token_embd.weight": _matrix(rng, s.n_vocab, s.n_embd),
        "position_embd.weight": _matrix(rng, s.n_ctx, s.n_embd).astype(np.float32),
    }

    def linear(name: str, rows: int, columns: int) -> None:
        t[name + ".weight"] = _matrix(rng, rows, columns)
        t[name + ".bias"] = _bias(rng, rows)

    def norm(name: str) -> None:
        t[name + ".weight"] = _norm(rng, s.n_embd)
        t[name + ".bias"] = _bias(rng, s.n_embd)

    for i in range(s.n_layer):
        norm(f"blk.{i}.attn_norm")
        linear(f"blk.{i}.attn_qkv", 3 * s.n_embd, s.n_embd)
        linear(f"blk.{i}.attn_output", s.n_embd, s.n_embd)
        norm(f"blk.{i}.ffn_norm")
        linear(f"blk.{i}.ffn_up", s.n_ff, s.n_embd)
        linear(f"blk.{i}.ffn_down", s.n_embd, s.n_ff)
    norm("output_norm")
    t["output.weight"] = _matrix(rng, s.n_vocab, s.n_embd)
    s = Shape(**{**s.__dict__, "n_head_kv": s.n_head})
    return _write(path, "gpt2", s, t, lambda w: w.add_layer_norm_eps(epsilon))


class _Tensors:
    """Names and fills a model's tensors one by one."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.all: Tensors = {}

    def matrix(self, name: str, rows: int, columns: int, *, bias: bool = False) -> None:
        self.all[name + ".weight"] = _matrix(self.rng, rows, columns)
        if bias:
            self.all[name + ".bias"] = _bias(self.rng, rows)

    def norm(self, name: str, n: int, *, bias: bool = False) -> None:
        self.all[name + ".weight"] = _norm(self.rng, n)
        if bias:
            self.all[name + ".bias"] = _bias(self.rng, n)

    def attention(self, block: str, s: Shape, *, bias: bool = False) -> None:
        for part, rows in (("q", s.n_embd), ("k", s.n_kv), ("v", s.n_kv), ("output", s.n_embd)):
            self.matrix(f"{block}attn_{part}", rows, s.n_embd, bias=bias)

    def gated(self, block: str, s: Shape) -> None:
        self.matrix(block + "ffn_gate", s.n_ff, s.n_embd)
        self.matrix(block + "ffn_up", s.n_ff, s.n_embd)
        self.matrix(block + "ffn_down", s.n_embd, s.n_ff)


def qwen3(path: Path, s: Shape = Shape(), seed: int = 0, epsilon: float = 1e-6) -> Path:
    """RMSNorm on Q and K per head."""
    t = _Tensors(seed)
    t.matrix("token_embd", s.n_vocab, s.n_embd)
    for i in range(s.n_layer):
        b = f"blk.{i}."
        t.norm(b + "attn_norm", s.n_embd)
        t.attention(b, s)
        t.norm(b + "attn_q_norm", s.head_dim)
        t.norm(b + "attn_k_norm", s.head_dim)
        t.norm(b + "ffn_norm", s.n_embd)
        t.gated(b, s)
    t.norm("output_norm", s.n_embd)
    t.matrix("output", s.n_vocab, s.n_embd)

    def extra(w: gguf.GGUFWriter) -> None:
        w.add_layer_norm_rms_eps(epsilon)
        w.add_key_length(s.head_dim)
        w.add_value_length(s.head_dim)

    return _write(path, "qwen3", s, t.all, extra)


def qwen3moe(path: Path, s: Shape = Shape(), seed: int = 0, epsilon: float = 1e-6) -> Path:
    """RMSNorm on Q and K per head, and a mixture of experts."""
    rng = np.random.default_rng(seed)
    t: Tensors = {"token_embd.weight": _matrix(rng, s.n_vocab, s.n_embd)}
    for i in range(s.n_layer):
        b = f"blk.{i}."
        t[b + "attn_norm.weight"] = _norm(rng, s.n_embd)
        t[b + "attn_q.weight"] = _matrix(rng, s.n_embd, s.n_embd)
        t[b + "attn_q_norm.weight"] = _norm(rng, s.head_dim)
        t[b + "attn_k.weight"] = _matrix(rng, s.n_head_kv * s.head_dim, s.n_embd)
        t[b + "attn_k_norm.weight"] = _norm(rng, s.head_dim)
        t[b + "attn_v.weight"] = _matrix(rng, s.n_head_kv * s.head_dim, s.n_embd)
        t[b + "attn_output.weight"] = _matrix(rng, s.n_embd, s.n_embd)
        t[b + "ffn_norm.weight"] = _norm(rng, s.n_embd)
        t[b + "ffn_gate_inp.weight"] = _matrix(rng, s.n_expert, s.n_embd).astype(np.float32)
        t[b + "ffn_gate_exps.weight"] = _matrix(rng, s.n_expert, s.n_ff, s.n_embd)
        t[b + "ffn_up_exps.weight"] = _matrix(rng, s.n_expert, s.n_ff, s.n_embd)
        t[b + "ffn_down_exps.weight"] = _matrix(rng, s.n_expert, s.n_embd, s.n_ff)
    t["output_norm.weight"] = _norm(rng, s.n_embd)
    t["output.weight"] = _matrix(rng, s.n_vocab, s.n_embd)

    def extra(w: gguf.GGUFWriter) -> None:
        w.add_layer_norm_rms_eps(epsilon)
        w.add_key_length(s.head_dim)
        w.add_value_length(s.head_dim)
        w.add_expert_count(s.n_expert)
        w.add_expert_used_count(2)
        w.add_expert_feed_forward_length(s.n_ff)

    return _write(path, "qwen3moe", s, t, extra)


def gemma3(path: Path, s: Shape = Shape(n_layer=6), seed: int = 0) -> Path:
    """Norms before and after each branch and on Q and K, sliding window, tied output."""
    t = _Tensors(seed)
    t.matrix("token_embd", s.n_vocab, s.n_embd)
    for i in range(s.n_layer):
        b = f"blk.{i}."
        for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            t.norm(b + name, s.n_embd)
        t.attention(b, s)
        t.norm(b + "attn_q_norm", s.head_dim)
        t.norm(b + "attn_k_norm", s.head_dim)
        t.gated(b, s)
    t.norm("output_norm", s.n_embd)

    def extra(w: gguf.GGUFWriter) -> None:
        w.add_layer_norm_rms_eps(1e-6)
        w.add_key_length(s.head_dim)
        w.add_value_length(s.head_dim)
        w.add_sliding_window(8)

    return _write(path, "gemma3", s, t.all, extra)


def gemma2(path: Path, s: Shape = Shape(n_layer=4), seed: int = 0) -> Path:
    """Norms before and after, a window in every other layer, softcaps of scores and logits."""
    t = _Tensors(seed)
    t.matrix("token_embd", s.n_vocab, s.n_embd)
    for i in range(s.n_layer):
        b = f"blk.{i}."
        for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            t.norm(b + name, s.n_embd)
        t.attention(b, s)
        t.gated(b, s)
    t.norm("output_norm", s.n_embd)

    def extra(w: gguf.GGUFWriter) -> None:
        w.add_layer_norm_rms_eps(1e-6)
        w.add_key_length(s.head_dim)
        w.add_value_length(s.head_dim)
        w.add_sliding_window(16)
        w.add_attn_logit_softcapping(50.0)
        w.add_final_logit_softcapping(30.0)

    return _write(path, "gemma2", s, t.all, extra)


def deepseek2(path: Path, s: Shape = Shape(n_head_kv=4), seed: int = 0) -> Path:
    """Latent attention; experts, one of them shared, behind a dense first layer."""
    rng = np.random.default_rng(seed)
    nope, latent = 32, 256
    key = nope + s.head_dim
    t: Tensors = {"token_embd.weight": _matrix(rng, s.n_vocab, s.n_embd)}
    for i in range(s.n_layer):
        b = f"blk.{i}."
        t[b + "attn_norm.weight"] = _norm(rng, s.n_embd)
        t[b + "attn_q_a.weight"] = _matrix(rng, latent, s.n_embd)
        t[b + "attn_q_a_norm.weight"] = _norm(rng, latent)
        t[b + "attn_q_b.weight"] = _matrix(rng, s.n_head * key, latent)
        t[b + "attn_kv_a_mqa.weight"] = _matrix(rng, latent + s.head_dim, s.n_embd)
        t[b + "attn_kv_a_norm.weight"] = _norm(rng, latent)
        t[b + "attn_k_b.weight"] = _matrix(rng, s.n_head, latent, nope)
        t[b + "attn_v_b.weight"] = _matrix(rng, s.n_head, s.head_dim, latent)
        t[b + "attn_output.weight"] = _matrix(rng, s.n_embd, s.n_head * s.head_dim)
        t[b + "ffn_norm.weight"] = _norm(rng, s.n_embd)
        if i == 0:
            for name in ("gate", "up", "down"):
                t[b + f"ffn_{name}.weight"] = _matrix(rng, s.n_ff, s.n_embd)
            continue
        t[b + "ffn_gate_inp.weight"] = _matrix(rng, s.n_expert, s.n_embd).astype(np.float32)
        for name in ("gate", "up", "down"):
            t[b + f"ffn_{name}_exps.weight"] = _matrix(rng, s.n_expert, s.n_ff, s.n_embd)
            t[b + f"ffn_{name}_shexp.weight"] = _matrix(rng, s.n_ff, s.n_embd)
    t["output_norm.weight"] = _norm(rng, s.n_embd)
    t["output.weight"] = _matrix(rng, s.n_vocab, s.n_embd)

    def extra(w: gguf.GGUFWriter) -> None:
        w.add_layer_norm_rms_eps(1e-6)
        w.add_q_lora_rank(latent)
        w.add_kv_lora_rank(latent)
        w.add_key_length(latent + s.head_dim)
        w.add_value_length(latent)
        w.add_key_length_mla(key)
        w.add_value_length_mla(s.head_dim)
        w.add_leading_dense_block_count(1)
        w.add_expert_count(s.n_expert)
        w.add_expert_used_count(2)
        w.add_expert_shared_count(1)
        w.add_expert_feed_forward_length(s.n_ff)
        w.add_expert_weights_scale(1.0)
        w.add_expert_weights_norm(True)

    return _write(path, "deepseek2", s, t, extra, n_head_kv=1)


def olmo(path: Path, s: Shape = Shape(n_head_kv=4), seed: int = 0) -> Path:
    """LayerNorm without weights, tied output."""
    t = _Tensors(seed)
    t.matrix("token_embd", s.n_vocab, s.n_embd)
    for i in range(s.n_layer):
        t.attention(f"blk.{i}.", s)
        t.gated(f"blk.{i}.", s)
    return _write(path, "olmo", s, t.all, lambda w: w.add_layer_norm_eps(1e-5))


def stablelm(path: Path, s: Shape = Shape(), seed: int = 0) -> Path:
    """LayerNorm; on Q and K a weight of its own for each head; one norm feeds both branches."""
    t = _Tensors(seed)
    t.matrix("token_embd", s.n_vocab, s.n_embd)
    for i in range(s.n_layer):
        b = f"blk.{i}."
        t.norm(b + "attn_norm", s.n_embd, bias=True)
        t.attention(b, s)
        for part, heads in (("q", s.n_head), ("k", s.n_head_kv)):
            name = f"{b}attn_{part}_norm.weight"
            t.all[name] = _norm(t.rng, s.head_dim * heads).reshape(heads, s.head_dim)
        t.gated(b, s)
    t.norm("output_norm", s.n_embd, bias=True)
    t.matrix("output", s.n_vocab, s.n_embd)

    def extra(w: gguf.GGUFWriter) -> None:
        w.add_layer_norm_eps(1e-5)
        w.add_parallel_residual(True)

    return _write(path, "stablelm", s, t.all, extra)


def phi2(path: Path, s: Shape = Shape(n_head_kv=4), seed: int = 0) -> Path:
    """One LayerNorm feeds attention and MLP side by side; bias everywhere, on the output too."""
    t = _Tensors(seed)
    t.matrix("token_embd", s.n_vocab, s.n_embd)
    for i in range(s.n_layer):
        b = f"blk.{i}."
        t.norm(b + "attn_norm", s.n_embd, bias=True)
        t.attention(b, s, bias=True)
        t.matrix(b + "ffn_up", s.n_ff, s.n_embd, bias=True)
        t.matrix(b + "ffn_down", s.n_embd, s.n_ff, bias=True)
    t.norm("output_norm", s.n_embd, bias=True)
    t.matrix("output", s.n_vocab, s.n_embd, bias=True)
    return _write(path, "phi2", s, t.all, lambda w: w.add_layer_norm_eps(1e-5))


@dataclass(frozen=True)
class StateSpace:
    """Sizes of a Mamba block."""

    d_conv: int = 4
    d_inner: int = 512
    d_state: int = 16
    dt_rank: int = 16

    def fill(self, t: _Tensors, block: str, s: Shape) -> None:
        t.matrix(block + "ssm_in", 2 * self.d_inner, s.n_embd)
        t.all[block + "ssm_conv1d.weight"] = _matrix(t.rng, self.d_inner, self.d_conv).astype(
            np.float32
        )
        t.all[block + "ssm_conv1d.bias"] = _bias(t.rng, self.d_inner)
        t.matrix(block + "ssm_x", self.dt_rank + 2 * self.d_state, self.d_inner)
        t.matrix(block + "ssm_dt", self.d_inner, self.dt_rank, bias=True)
        decay = np.arange(1, self.d_state + 1, dtype=np.float32)
        t.all[block + "ssm_a"] = -np.tile(decay, (self.d_inner, 1))
        t.all[block + "ssm_d"] = _norm(t.rng, self.d_inner)
        t.matrix(block + "ssm_out", s.n_embd, self.d_inner)

    def describe(self, w: gguf.GGUFWriter) -> None:
        w.add_layer_norm_rms_eps(1e-5)
        w.add_ssm_conv_kernel(self.d_conv)
        w.add_ssm_inner_size(self.d_inner)
        w.add_ssm_state_size(self.d_state)
        w.add_ssm_time_step_rank(self.dt_rank)


def mamba(path: Path, s: Shape = Shape(), seed: int = 0) -> Path:
    """State space blocks only, tied output."""
    t = _Tensors(seed)
    t.matrix("token_embd", s.n_vocab, s.n_embd)
    for i in range(s.n_layer):
        t.norm(f"blk.{i}.attn_norm", s.n_embd)
        StateSpace().fill(t, f"blk.{i}.", s)
    t.norm("output_norm", s.n_embd)
    return _write(path, "mamba", s, t.all, StateSpace().describe)


def jamba(path: Path, s: Shape = Shape(), seed: int = 0) -> Path:
    """Hybrid: state space and attention blocks in turn, RMSNorm on dt, B and C."""
    t = _Tensors(seed)
    ssm = StateSpace()
    t.matrix("token_embd", s.n_vocab, s.n_embd)
    for i in range(s.n_layer):
        b = f"blk.{i}."
        t.norm(b + "attn_norm", s.n_embd)
        if i % 2:
            t.attention(b, s)
        else:
            ssm.fill(t, b, s)
            for name, n in (("dt", ssm.dt_rank), ("b", ssm.d_state), ("c", ssm.d_state)):
                t.norm(f"{b}ssm_{name}_norm", n)
        t.norm(b + "ffn_norm", s.n_embd)
        t.gated(b, s)
    t.norm("output_norm", s.n_embd)
    t.matrix("output", s.n_vocab, s.n_embd)
    heads = [s.n_head_kv if i % 2 else 0 for i in range(s.n_layer)]
    return _write(path, "jamba", s, t.all, ssm.describe, n_head_kv=heads)


def rwkv7(path: Path, s: Shape = Shape(), seed: int = 0, rank: int = 32) -> Path:
    """Linear attention with token shift; LayerNorm, GroupNorm and L2 norm."""
    t = _Tensors(seed)
    n = s.n_embd

    def vector(name: str) -> None:
        t.all[name + ".weight"] = _bias(t.rng, n)

    t.matrix("token_embd", s.n_vocab, n)
    t.norm("token_embd_norm", n, bias=True)
    for i in range(s.n_layer):
        b = f"blk.{i}."
        t.norm(b + "attn_norm", n, bias=True)
        t.norm(b + "attn_norm_2", n, bias=True)
        for part in "wav":
            vector(f"{b}time_mix_{part}0")
        for part in "wavg":
            t.matrix(f"{b}time_mix_{part}1", rank, n)
            t.matrix(f"{b}time_mix_{part}2", n, rank)
        t.all[b + "time_mix_lerp_fused.weight"] = _bias(t.rng, 6 * n).reshape(6, 1, 1, n)
        for name in ("time_mix_k_k", "time_mix_k_a", "time_mix_r_k"):
            vector(b + name)
        for name in ("key", "value", "receptance", "output"):
            t.matrix(f"{b}time_mix_{name}", n, n)
        t.norm(b + "time_mix_ln", n, bias=True)
        t.all[b + "channel_mix_lerp_k.weight"] = _bias(t.rng, n).reshape(1, 1, n)
        t.matrix(b + "channel_mix_key", s.n_ff, n)
        t.matrix(b + "channel_mix_value", n, s.n_ff)
    t.norm("output_norm", n, bias=True)
    t.matrix("output", s.n_vocab, n)

    def extra(w: gguf.GGUFWriter) -> None:
        w.add_layer_norm_eps(1e-5)
        w.add_wkv_head_size(s.head_dim)
        w.add_decay_lora_rank(rank)
        w.add_iclr_lora_rank(rank)
        w.add_value_residual_mix_lora_rank(rank)
        w.add_gate_lora_rank(rank)
        w.add_token_shift_count(2)

    return _write(path, "rwkv7", s, t.all, extra, n_head_kv=0)


def t5(path: Path, s: Shape = Shape(n_layer=2, n_head_kv=4), seed: int = 0) -> Path:
    """Encoder and decoder with relative positions and cross-attention."""
    t = _Tensors(seed)
    buckets = 8
    t.matrix("token_embd", s.n_vocab, s.n_embd)

    def attention(name: str) -> None:
        for part in "qkvo":
            t.matrix(f"{name}_{part}", s.n_embd, s.n_embd)

    def positions(name: str) -> None:
        t.all[name + ".weight"] = _bias(t.rng, buckets * s.n_head).reshape(buckets, s.n_head)

    for side in ("enc", "dec"):
        for i in range(s.n_layer):
            b = f"{side}.blk.{i}."
            t.norm(b + "attn_norm", s.n_embd)
            attention(b + "attn")
            if i == 0:
                positions(b + "attn_rel_b")
            if side == "dec":
                t.norm(b + "cross_attn_norm", s.n_embd)
                attention(b + "cross_attn")
            t.norm(b + "ffn_norm", s.n_embd)
            t.gated(b, s)
        t.norm(f"{side}.output_norm", s.n_embd)
    t.matrix("output", s.n_vocab, s.n_embd)

    def extra(w: gguf.GGUFWriter) -> None:
        w.add_layer_norm_rms_eps(1e-6)
        w.add_relative_attn_buckets_count(buckets)
        w.add_decoder_start_token_id(0)
        w.add_key_length(s.head_dim)
        w.add_value_length(s.head_dim)

    return _write(path, "t5", s, t.all, extra)


def bert(path: Path, s: Shape = Shape(n_head_kv=4), seed: int = 0) -> Path:
    """Encoder with norms after its branches, WordPiece, and the mean of all as output."""
    t = _Tensors(seed)
    t.matrix("token_embd", s.n_vocab, s.n_embd)
    t.all["token_types.weight"] = _matrix(t.rng, 2, s.n_embd).astype(np.float32)
    t.all["position_embd.weight"] = _matrix(t.rng, s.n_ctx, s.n_embd).astype(np.float32)
    t.norm("token_embd_norm", s.n_embd, bias=True)
    for i in range(s.n_layer):
        b = f"blk.{i}."
        t.attention(b, s, bias=True)
        t.norm(b + "attn_output_norm", s.n_embd, bias=True)
        t.matrix(b + "ffn_up", s.n_ff, s.n_embd, bias=True)
        t.matrix(b + "ffn_down", s.n_embd, s.n_ff, bias=True)
        t.norm(b + "layer_output_norm", s.n_embd, bias=True)

    def extra(w: gguf.GGUFWriter) -> None:
        w.add_layer_norm_eps(1e-12)
        w.add_causal_attention(False)
        w.add_pooling_type(gguf.PoolingType.MEAN)

    return _write(path, "bert", s, t.all, extra, vocabulary=add_wordpiece)


def _write(
    path: Path,
    arch: str,
    s: Shape,
    tensors: Tensors,
    extra: Callable[[gguf.GGUFWriter], None],
    *,
    n_head_kv: int | list[int] | None = None,
    vocabulary: Callable[[gguf.GGUFWriter, int], None] | None = None,
) -> Path:
    w = gguf.GGUFWriter(path, arch)
    w.add_context_length(s.n_ctx)
    w.add_embedding_length(s.n_embd)
    w.add_block_count(s.n_layer)
    w.add_feed_forward_length(s.n_ff)
    w.add_head_count(s.n_head)
    w.add_head_count_kv(s.n_head_kv if n_head_kv is None else n_head_kv)
    w.add_rope_dimension_count(s.head_dim)
    w.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    extra(w)
    (vocabulary or add_vocabulary)(w, s.n_vocab)
    for name, data in tensors.items():
        w.add_tensor(name, data)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def add_vocabulary(w: gguf.GGUFWriter, n_vocab: int) -> None:
    """A SentencePiece vocabulary of three control tokens, all bytes, and two-letter pieces."""
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    types = [gguf.TokenType.UNKNOWN] + [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.BYTE] * 256
    letters = "etaoinsrhldcumfpgwyb"
    pieces = ["▁", *letters, *(a + b for a in letters for b in letters)]
    tokens += pieces[: n_vocab - len(tokens)]
    types += [gguf.TokenType.NORMAL] * (n_vocab - len(types))
    w.add_tokenizer_model("llama")
    w.add_token_list([t.encode() for t in tokens])
    w.add_token_scores([-float(i) for i in range(n_vocab)])
    w.add_token_types(types)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_add_bos_token(True)


def add_wordpiece(w: gguf.GGUFWriter, n_vocab: int, *, types: int = 2) -> None:
    """A WordPiece vocabulary: each letter at the start of a word (``▁``) and inside one."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*("▁" + a for a in letters), *letters, *(a + b for a in letters for b in letters)]
    tokens = [*special, *pieces][:n_vocab]
    w.add_tokenizer_model("bert")
    w.add_token_list([t.encode() for t in tokens])
    w.add_token_types([3] * len(special) + [1] * (n_vocab - len(special)))
    w.add_token_type_count(types)
    w.add_pad_token_id(0)
    w.add_unk_token_id(1)
    w.add_bos_token_id(2)
    w.add_sep_token_id(3)
    w.add_eos_token_id(3)
    w.add_mask_token_id(4)


def edited(
    source: Path,
    target: Path,
    tensors: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None,
    floats: Mapping[str, float] | None = None,
) -> Path:
    """A copy with some tensors (raw values as gguf-py shows them) and float keys changed."""
    shutil.copyfile(source, target)
    target.chmod(0o644)
    reader = gguf.GGUFReader(target, "r+")
    found = {t.name: t for t in reader.tensors}
    for name, change in (tensors or {}).items():
        found[name].data[:] = change(np.array(found[name].data))
    for key, value in (floats or {}).items():
        field = reader.fields[key]
        field.parts[field.data[0]][0] = value
    reader.data.flush()
    return target


def rewritten(
    source: Path,
    target: Path,
    keys: Mapping[str, float | int | str | None] | None = None,
    tensors: Mapping[str, Callable[[np.ndarray], np.ndarray] | np.ndarray | None] | None = None,
    arrays: Mapping[str, list[Any]] | None = None,
) -> Path:
    """A copy with keys set or, for None, left out, and tensors changed, added or left out."""
    keys, tensors, arrays = keys or {}, tensors or {}, arrays or {}
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for key, value in keys.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif value is not None:
            writer.add_float32(key, value)
    for key, values in arrays.items():
        writer.add_array(key, values)
    for name, field in reader.fields.items():
        if (
            name in keys
            or name in arrays
            or name.startswith("GGUF.")
            or name == "general.architecture"
        ):
            continue
        kind = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], kind)
    for t in reader.tensors:
        change = tensors.get(t.name, lambda w: w)
        if callable(change):
            data = change(np.array(t.data))
            writer.add_tensor(t.name, data, raw_dtype=t.tensor_type)
    for name, values in tensors.items():
        if isinstance(values, np.ndarray):
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def noise(level: float, seed: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    """Adds Gaussian noise of ``level`` times the RMS of a floating tensor."""

    def change(w: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(seed)
        wide = w.astype(np.float32)
        return (wide + level * np.sqrt(np.mean(wide**2)) * rng.standard_normal(w.shape)).astype(
            w.dtype
        )

    return change
