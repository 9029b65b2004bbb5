"""Train the bundled sample model and write it as an F16 GGUF file.

    python samples/train.py --text FOLDER --out samples

FOLDER holds plain-text files (samples/README.md says which ones were used and
under which licence). Needs torch==2.13.0, sentencepiece, numpy and gguf; takes
about ten minutes on two CPU cores. The model is an ordinary small Llama: RMSNorm
before attention and before a SwiGLU feed-forward, rotary positions over
interleaved pairs (so that the Q and K rows need no permutation on the way to
GGUF), tied input and output embeddings.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import sentencepiece as spm
import torch
import torch.nn.functional as F
from torch import nn

HELD_OUT = ("1961_john_f_kennedy_d.txt", "1982_ronald_reagan_r.txt", "1863_abraham_lincoln_r.txt")
"""Files that the model never sees; samples/heldout.txt is cut from them."""
HELD_OUT_CHARS = 20_000
"""How much of each held-out file goes into samples/heldout.txt."""


@dataclass(frozen=True)
class Config:
    vocab: int = 2048
    n_layer: int = 5
    n_embd: int = 256
    n_head: int = 8
    n_head_kv: int = 4
    n_ff: int = 512
    n_ctx: int = 512
    eps: float = 1e-5
    rope_base: float = 10000.0

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head


class RMSNorm(nn.Module):
    def __init__(self, n: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class Block(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        kv = c.n_head_kv * c.head_dim
        self.attn_norm = RMSNorm(c.n_embd, c.eps)
        self.attn_q = nn.Linear(c.n_embd, c.n_embd, bias=False)
        self.attn_k = nn.Linear(c.n_embd, kv, bias=False)
        self.attn_v = nn.Linear(c.n_embd, kv, bias=False)
        self.attn_output = nn.Linear(c.n_embd, c.n_embd, bias=False)
        self.ffn_norm = RMSNorm(c.n_embd, c.eps)
        self.ffn_gate = nn.Linear(c.n_embd, c.n_ff, bias=False)
        self.ffn_up = nn.Linear(c.n_embd, c.n_ff, bias=False)
        self.ffn_down = nn.Linear(c.n_ff, c.n_embd, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        h = self.attn_norm(x)

        def heads(t: torch.Tensor) -> torch.Tensor:
            return t.view(batch, length, -1, self.c.head_dim).transpose(1, 2)

        q = rope(heads(self.attn_q(h)), cos, sin)
        k = rope(heads(self.attn_k(h)), cos, sin)
        a = F.scaled_dot_product_attention(
            q, k, heads(self.attn_v(h)), is_causal=True, enable_gqa=True
        )
        x = x + self.attn_output(a.transpose(1, 2).reshape(batch, length, -1))
        h = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))


class Llama(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.token_embd = nn.Embedding(c.vocab, c.n_embd)
        self.blk = nn.ModuleList(Block(c) for _ in range(c.n_layer))
        self.output_norm = RMSNorm(c.n_embd, c.eps)
        angle = torch.outer(
            torch.arange(c.n_ctx),
            c.rope_base ** (-torch.arange(0, c.head_dim, 2) / c.head_dim),
        )
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.token_embd(tokens)
        n = tokens.shape[1]
        for block in self.blk:
            x = block(x, self.cos[:n], self.sin[:n])
        return F.linear(self.output_norm(x), self.token_embd.weight)


def read_texts(folder: Path) -> tuple[str, str]:
    """Return (training text, held-out text) of the plain-text files in ``folder``."""
    files = sorted(folder.glob("*.txt"))
    missing = [name for name in HELD_OUT if not (folder / name).is_file()]
    if missing:
        sys.exit(f"{folder} lacks {', '.join(missing)}: see samples/README.md for the text used")
    read = {f.name: f.read_text(encoding="utf-8", errors="ignore").replace("\0", "") for f in files}
    train = "\n\n".join(text for name, text in read.items() if name not in HELD_OUT)
    held = "\n\n".join(read[name][:HELD_OUT_CHARS].rsplit(". ", 1)[0] + "." for name in HELD_OUT)
    return train, held


def train_tokenizer(text: str, vocab: int) -> spm.SentencePieceProcessor:
    model = io.BytesIO()
    # Speeches are single lines of up to 200 kB: cut them so that SentencePiece keeps all.
    lines = (text[i : i + 2000] for i in range(0, len(text), 2000))
    spm.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=model,
        vocab_size=vocab,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=1,
    )
    return spm.SentencePieceProcessor(model_proto=model.getvalue())


@torch.no_grad()
def evaluate(model: Llama, tokens: torch.Tensor, length: int) -> float:
    """Mean cross-entropy in nats per token over non-overlapping windows."""
    windows = tokens[: len(tokens) // length * length].view(-1, length)
    logits = model(windows)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten()).item()


def train(
    model: Llama, tokens: torch.Tensor, held: torch.Tensor, steps: int, batch: int, length: int
) -> None:
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    peak = 3e-3
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
    )
    generator = torch.Generator().manual_seed(1)
    started = time.monotonic()
    for step in range(steps + 1):
        if step % 100 == 0 or step == steps:
            loss = evaluate(model, held, length)
            print(
                f"step {step:5d}  held-out loss {loss:.4f} nats/token"
                f"  {time.monotonic() - started:.0f} s",
                flush=True,
            )
        if step == steps:
            return
        warm = min(1.0, (step + 1) / 50)
        lr = peak * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = lr
        start = torch.randint(len(tokens) - length - 1, (batch,), generator=generator)
        window = torch.stack([tokens[i : i + length + 1] for i in start.tolist()])
        loss = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def write_gguf(path: Path, model: Llama, c: Config, sp: spm.SentencePieceProcessor) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("ggufnorm sample: State of the Union")
    writer.add_license("mit")
    writer.add_description("A small Llama trained on State of the Union addresses (public domain)")
    writer.add_vocab_size(c.vocab)
    writer.add_context_length(c.n_ctx)
    writer.add_embedding_length(c.n_embd)
    writer.add_block_count(c.n_layer)
    writer.add_feed_forward_length(c.n_ff)
    writer.add_head_count(c.n_head)
    writer.add_head_count_kv(c.n_head_kv)
    writer.add_layer_norm_rms_eps(c.eps)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_rope_freq_base(c.rope_base)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([sp.id_to_piece(i).encode() for i in range(c.vocab)])
    writer.add_token_scores([sp.get_score(i) for i in range(c.vocab)])
    writer.add_token_types([token_type(sp, i) for i in range(c.vocab)])
    writer.add_bos_token_id(sp.bos_id())
    writer.add_eos_token_id(sp.eos_id())
    writer.add_unk_token_id(sp.unk_id())
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(True)
    for name, parameter in model.named_parameters():
        data = parameter.detach().numpy().astype(np.float32)
        # As llama.cpp's converter: one-dimensional tensors (the norms) stay F32.
        writer.add_tensor(name, data.astype(np.float16) if data.ndim > 1 else data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def token_type(sp: spm.SentencePieceProcessor, i: int) -> gguf.TokenType:
    if sp.is_unknown(i):
        return gguf.TokenType.UNKNOWN
    if sp.is_control(i):
        return gguf.TokenType.CONTROL
    return gguf.TokenType.BYTE if sp.is_byte(i) else gguf.TokenType.NORMAL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="folder of plain-text files")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and text")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    args = parser.parse_args()

    torch.manual_seed(1)
    c = Config()
    train_text, held_text = read_texts(args.text)
    sp = train_tokenizer(train_text, c.vocab)
    tokens, held = (torch.tensor(sp.encode(t)) for t in (train_text, held_text))
    model = Llama(c)
    size = sum(p.numel() for p in model.parameters())
    print(f"{size:,} parameters, {len(tokens):,} training and {len(held):,} held-out tokens")
    train(model, tokens, held, args.steps, args.batch, args.length)
    write_gguf(args.out / "sotu-f16.gguf", model, c, sp)
    (args.out / "heldout.txt").write_text(held_text, encoding="utf-8")


if __name__ == "__main__":
    main()
