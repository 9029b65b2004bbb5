"""How the memory of ``compare hf:`` grows with the tokens of a text.

    python -m benchmarks.bench_compare

A random BERT (12 layers of width 768) in Transformers, its norms observed, in a process for each
length of text. Prints a Markdown table: what is above the model in memory at its peak, and how
much of that are the rows of norms and blocks that a comparison keeps.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

TOKENS = (128, 256, 512, 1024)
MB = 1e6


def write_model(folder: Path) -> None:
    """Write the checkpoint."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(intermediate_size=1536, vocab_size=2000, max_position_embeddings=2048)
    BertModel(config).save_pretrained(folder)


def observe(folder: str, n_tokens: int) -> None:
    """In a process of its own: run once, and print what it took."""
    from ggufnorm.engines.hf.model import HFModel

    def peak() -> float:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MB

    model = HFModel(folder, n_threads=2)
    model.run(np.arange(8, dtype=np.int32))
    before = peak()
    run = model.run((np.arange(n_tokens) % 2000).astype(np.int32))
    kept = sum(n.x.nbytes + n.y.nbytes for n in run.norms)
    kept += sum(r.value.nbytes for r in run.residuals)
    print(f"| {n_tokens:,} | {peak() - before:,.0f} MB | {kept / MB:,.0f} MB |")


def main() -> None:
    if len(sys.argv) == 3:
        observe(sys.argv[1], int(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        print("| tokens | peak above the model | rows kept |\n|---:|---:|---:|")
        for n in TOKENS:
            command = [sys.executable, "-m", "benchmarks.bench_compare", folder, str(n)]
            done = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            print(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
