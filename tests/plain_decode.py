"""An independent witness: llama.cpp run without callbacks, figures by their definitions.

It shares nothing with ggufnorm but llama-cpp-python and the convention of
llama-perplexity (BOS at the start of each chunk, second half scored), and runs in a
child process so that a crash cannot take the tests with it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

_SCRIPT = """
import ctypes, sys
import numpy as np
import llama_cpp as L

path, text, out, (n_ctx, chunks, pooled) = *sys.argv[1:4], map(int, sys.argv[4:])
L.llama_backend_init()
params = L.llama_model_default_params()
params.use_extra_bufts = False
model = L.llama_model_load_from_file(path.encode(), params)
vocab = L.llama_model_get_vocab(model)
n_vocab = L.llama_vocab_n_tokens(vocab)
raw = open(text, "rb").read()
buffer = (ctypes.c_int32 * (len(raw) + 8))()
tokens = buffer[: L.llama_tokenize(vocab, raw, len(raw), buffer, len(buffer), True, False)]
params = L.llama_context_default_params()
params.n_ctx = params.n_batch = params.n_ubatch = n_ctx
params.embeddings = bool(pooled)
ctx = L.llama_init_from_model(model, params)
batch = L.llama_batch_init(n_ctx, 0, 1)
rows, following, vectors = [], [], []

def run(function, ids):
    batch.n_tokens = len(ids)
    for i, t in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = t, i, 1
        batch.seq_id[i][0], batch.logits[i] = 0, 1
    assert function(ctx, batch) == 0

for c in range(chunks):
    chunk = tokens[c * n_ctx : (c + 1) * n_ctx]
    if not pooled:
        L.llama_memory_clear(L.llama_get_memory(ctx), True)
    if pooled:
        run(L.llama_encode, chunk)
        width = L.llama_model_n_embd(model)
        vectors.append(np.array(L.llama_get_embeddings_seq(ctx, 0)[:width], np.float32))
        continue
    if L.llama_model_has_encoder(model):
        run(L.llama_encode, chunk[: n_ctx // 2])
        chunk = [L.llama_model_decoder_start_token(model), *chunk[n_ctx // 2 :]]
        run(L.llama_decode, chunk[:-1])
        scored = range(len(chunk) - 1)
    else:
        chunk[0] = L.llama_vocab_bos(vocab)
        run(L.llama_decode, chunk)
        scored = range(n_ctx // 2, n_ctx - 1)
    for i in scored:
        rows.append(np.array(L.llama_get_logits_ith(ctx, i)[:n_vocab], np.float32))
        following.append(chunk[i + 1])
np.savez(out, logits=rows, following=following, tokens=tokens, vectors=vectors)
"""


def _run(
    model: Path, text: str, n_ctx: int, chunks: int, *, pooled: bool = False
) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "text", Path(folder) / "out.npz"
        file.write_text(text, encoding="utf-8")
        numbers = map(str, (n_ctx, chunks, int(pooled)))
        command = [sys.executable, "-c", _SCRIPT, model, file, out, *numbers]
        subprocess.run(command, check=True, capture_output=True)
        with np.load(out) as data:
            return dict(data)


def logits(model: Path, text: str, n_ctx: int, chunks: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the scored positions, and the tokens that follow them."""
    data = _run(model, text, n_ctx, chunks)
    return data["logits"], data["following"]


def embeddings(model: Path, text: str, n_ctx: int, chunks: int) -> np.ndarray:
    """An embedding model's pooled vector for each chunk."""
    return _run(model, text, n_ctx, chunks, pooled=True)["vectors"]


def embedding_rows(model: Path, text: str, n_ctx: int, chunks: int) -> np.ndarray:
    """The embeddings of all tokens run, dequantized by gguf-py."""
    ids = _run(model, text, n_ctx, 1)["tokens"][: n_ctx * chunks].reshape(chunks, n_ctx)
    ids[:, 0] = 1  # BOS
    tensor = next(t for t in gguf.GGUFReader(model).tensors if t.name == "token_embd.weight")
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)[ids].astype(np.float64)


def statistics(ref: np.ndarray, quant: np.ndarray, following: np.ndarray) -> dict[str, float]:
    p, q = (m.astype(np.float64) for m in (ref, quant))
    p -= np.log(np.exp(p).sum(axis=1, keepdims=True))
    q -= np.log(np.exp(q).sum(axis=1, keepdims=True))
    kld = (np.exp(p) * (p - q)).sum(axis=1)
    at = np.arange(len(p)), following
    return {
        "mean_kld": kld.mean(),
        "max_kld": kld.max(),
        "same_top1": float((p.argmax(axis=1) == q.argmax(axis=1)).mean()),
        "ppl_ref": np.exp(-p[at].mean()),
        "ppl_quant": np.exp(-q[at].mean()),
    }
