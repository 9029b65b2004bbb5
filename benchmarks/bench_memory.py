"""Whether the memory of a drift run grows with the text.

    python -m benchmarks.bench_memory [--chunks 391]

The bundled sample against its own Q4_K_M, in chunks of 512 tokens: four of them, and by
default as many as 200,000 tokens take. Beside it a process that loads both models, makes
three contexts and decodes one chunk in each, nobody watching. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path

from ggufnorm.engines.child import Emit, peak_memory, run_in_child
from ggufnorm.engines.llama.walk import cut_chunk

import ggufnorm
from ggufnorm.engines.llama.quantize import quantize
from ggufnorm.engines.llama.session import EngineOptions, LlamaContext, LlamaModel
from ggufnorm.samples import default_text, sample_model

N_CTX = 512


def load_and_decode(job: dict[str, str], _emit: Emit, _stop: threading.Event) -> dict[str, object]:
    """In a child: the models and contexts of a drift run, and one chunk in each context."""
    options = EngineOptions(n_ctx=N_CTX, n_threads=2)
    with ExitStack() as stack:
        models = [stack.enter_context(LlamaModel(job[i], options)) for i in ("ref", "quant")]
        tokens = models[0].tokenize(default_text())[:N_CTX]
        for model in (models[0], models[1], models[1]):
            context = stack.enter_context(LlamaContext(model, options, None))
            for batch in cut_chunk(model, tokens, 0, N_CTX):
                context.decode(batch)
        return {"peak": peak_memory()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=391)
    args = parser.parse_args()
    ref = sample_model()
    with tempfile.TemporaryDirectory() as folder:
        quant = Path(folder) / "q4.gguf"
        quantize(ref, quant, "Q4_K_M")
        # The child imports the task by its module's name, which is not __main__ there.
        from benchmarks.bench_memory import load_and_decode as task

        job = {"ref": str(ref), "quant": str(quant)}
        plain = run_in_child(task, job, lambda _message: None)["peak"]
        text = default_text()
        print("| process | tokens | peak memory | above plain decodes |")
        print("|---|---:|---:|---:|")
        print(f"| plain decodes | {3 * N_CTX:,} | {plain / 1e6:.1f} MB | |")
        for chunks in (4, args.chunks):
            longer = text * (1 + chunks // 16)
            report = ggufnorm.drift(ref, quant, text=longer, n_ctx=N_CTX, chunks=chunks)
            peak, n = report.cost.peak_memory or 0, report.run.n_chunks * N_CTX
            print(f"| `drift` | {n:,} | {peak / 1e6:.1f} MB | {(peak - plain) / 1e6:.1f} MB |")


if __name__ == "__main__":
    main()
