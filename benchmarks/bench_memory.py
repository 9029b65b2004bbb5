"""Whether the memory of a drift run grows with the text.

    python -m benchmarks.bench_memory [--chunks 391]

The bundled sample against its own Q4_K_M, in chunks of 512 tokens: four of them, and by
default as many as 200,000 tokens take. Beside it a process that loads both models, makes
three contexts and decodes one chunk in each, nobody watching. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import ggufnorm
from ggufnorm.engines import worker
from ggufnorm.engines.llama.quantize import quantize
from ggufnorm.engines.llama.runner import cut_chunk
from ggufnorm.engines.llama.session import EngineOptions, LlamaContext, LlamaModel
from ggufnorm.engines.worker import Channel, peak_memory
from ggufnorm.samples import default_text, sample_model

N_CTX = 512


@dataclass(frozen=True)
class Pair:
    """Paths of a reference and a quantized model."""

    ref: str
    quant: str


def load_and_decode(job: Pair, _channel: Channel) -> int:
    """In a child: the models and contexts of a drift run, and one chunk in each context."""
    options = EngineOptions(n_ctx=N_CTX, n_threads=2)
    with ExitStack() as stack:
        models = [stack.enter_context(LlamaModel(path, options)) for path in (job.ref, job.quant)]
        tokens = models[0].tokenize(default_text())[:N_CTX]
        for model in (models[0], models[1], models[1]):
            context = stack.enter_context(LlamaContext(model, options, None))
            for batch in cut_chunk(model, tokens, 0, N_CTX):
                context.decode(batch)
        return peak_memory() or 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=391)
    args = parser.parse_args()
    ref = sample_model()
    with tempfile.TemporaryDirectory() as folder:
        quant = Path(folder) / "q4.gguf"
        quantize(ref, quant, "Q4_K_M")
        # The child imports the task by its module's name, which is not __main__ there.
        from benchmarks import bench_memory as here

        plain = worker.call(here.load_and_decode, here.Pair(str(ref), str(quant)))
        text = default_text()
        print("| process | tokens | peak memory | above plain decodes |")
        print("|---|---:|---:|---:|")
        print(f"| plain decodes | {3 * N_CTX:,} | {plain / 1e6:.1f} MB | |")
        for chunks in (4, args.chunks):
            longer = text * (1 + chunks // 16)
            report = ggufnorm.drift(ref, quant, text=longer, n_ctx=N_CTX, chunks=chunks)
            assert report.cost
            peak, n = report.cost.peak_memory or 0, report.run.n_chunks * N_CTX
            print(f"| `drift` | {n:,} | {peak / 1e6:.1f} MB | {(peak - plain) / 1e6:.1f} MB |")


if __name__ == "__main__":
    main()
