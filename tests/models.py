"""Small GGUF models with random weights, written with gguf-py, and ways to damage them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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


def _write(
    path: Path, arch: str, s: Shape, tensors: Tensors, extra: Callable[[gguf.GGUFWriter], None]
) -> Path:
    w = gguf.GGUFWriter(path, arch)
    w.add_context_length(s.n_ctx)
    w.add_embedding_length(s.n_embd)
    w.add_block_count(s.n_layer)
    w.add_feed_forward_length(s.n_ff)
    w.add_head_count(s.n_head)
    w.add_head_count_kv(s.n_head_kv)
    w.add_rope_dimension_count(s.head_dim)
    w.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    extra(w)
    add_vocabulary(w, s.n_vocab)
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


def edited(
    source: Path,
    target: Path,
    tensors: dict[str, Callable[[np.ndarray], np.ndarray]] | None = None,
    floats: dict[str, float] | None = None,
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


def noise(level: float, seed: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    """Adds Gaussian noise of ``level`` times the RMS of a floating tensor."""

    def change(w: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(seed)
        wide = w.astype(np.float32)
        return (wide + level * np.sqrt(np.mean(wide**2)) * rng.standard_normal(w.shape)).astype(
            w.dtype
        )

    return change
