"""The files of docs/symptoms: each has the fault that its page is about.

    python -m tests.docs.symptoms FOLDER

They are made of the bundled sample, or are networks of random weights with the checkpoint that they
were converted from.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

import ggufnorm
from ggufnorm.cli.demo import damage
from ggufnorm.engines.llama.quantize import quantize
from ggufnorm.formats.gguf import GGUFFile
from ggufnorm.samples import sample_model
from tests import models
from tests.pairs import whole


def write(folder: Path) -> None:
    """Write all of them."""
    sample = sample_model()
    (folder / "original-f16.gguf").write_bytes(sample.read_bytes())
    quantize(sample, folder / "mine-Q4_K_M.gguf", "Q4_K_M")
    damage(folder / "mine-Q4_K_M.gguf", folder / "theirs-Q4_K_M.gguf", "blk.2.ffn_down.weight")
    infinite_scale(folder / "mine-Q4_K_M.gguf", folder / "gggg-Q4_K_M.gguf")
    overflown = {"blk.3.ffn_up.weight": _too_large}
    models.rewritten(sample, folder / "nan-f16.gguf", tensors=overflown)
    converted("llama", folder / "repeats", {"llama.rope.freq_base": 10000.0})
    broken_kernel(sample, folder / "gpu.safetensors")
    converted("bert", folder / "embeddings", {"bert.pooling_type": 2})


def infinite_scale(source: Path, target: Path, tensor: str = "blk.1.attn_q.weight") -> None:
    """A copy in which the first block of a tensor in Q4_K has an infinite scale."""
    with GGUFFile(source) as file:
        at = file.tensors[tensor].offset
    data = bytearray(source.read_bytes())
    data[at : at + 2] = np.float16(np.inf).tobytes()
    target.write_bytes(data)


def broken_kernel(source: Path, target: Path) -> None:
    """A trace of a run with a wrong product: here by its weight, on a GPU by its kernel."""
    lost = models.rewritten(
        source, target.with_suffix(".gguf"), tensors={"blk.2.ffn_down.weight": _every_16th_row_lost}
    )
    ggufnorm.trace(lost, target, n_ctx=128, chunks=2)
    lost.unlink()


def _every_16th_row_lost(w: np.ndarray) -> np.ndarray:
    w = w.copy()
    w[::16] = 0
    return w


def _too_large(w: np.ndarray) -> np.ndarray:
    """A weight of 70,000, as half precision has it."""
    w = w.copy()
    w[5, 7] = np.inf
    return w


def converted(name: str, stem: Path, keys: dict[str, float | int | None]) -> None:
    """``STEM.gguf`` with other keys than its checkpoint ``STEM-hf`` asks for."""
    folder = stem.with_name(f"{stem.name}-hf")
    model, checkpoint = whole(name).write(_made(stem.with_name(f"{stem.name}-made")))
    models.rewritten(model, stem.with_suffix(".gguf"), keys)
    checkpoint.rename(folder)
    if name == "bert" and not (folder / "1_Pooling").exists():
        (folder / "1_Pooling").mkdir()
        pooling = {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    model.unlink()
    model.parent.rmdir()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    write(Path(sys.argv[1]))
