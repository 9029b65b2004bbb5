"""How much watching costs: lockstep runs against plain decodes, in one process and one run.

    python -m benchmarks.bench_drift [--layers 16] [--width 1536] [--ff 4096] [--vocab 16384]

Writes a Llama of about half a billion random weights (F16, and its Q4_K_M) into a temporary
folder, then times, on the same tokens:

- plain decodes of both models, nobody watching;
- predictions alone (``--watch none``): both models, their logits compared;
- the free run over norms (``--watch norms``): reference and model under test in step, the inputs
  and outputs of all norms compared;
- the free run: the same at every hook point;
- the pinned run: the same with the third replica.

Prints a Markdown table of seconds and ratios, of the clock and of the processors: where others
use the machine, the second is the one to look at. With two cores and the default sizes it takes
some five minutes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gguf
import numpy as np

from ggufnorm.core.progress import Progress
from ggufnorm.engines import worker
from ggufnorm.engines.base import Batch
from ggufnorm.engines.llama.quantize import quantize
from ggufnorm.engines.llama.runner import LlamaRunner, cut_chunk
from ggufnorm.engines.llama.session import EngineOptions, LlamaContext, LlamaModel
from ggufnorm.engines.worker import Channel, peak_memory
from ggufnorm.formats.gguf import GGUFFile
from ggufnorm.runs.lockstep import Lockstep, Replica, Unwatched
from ggufnorm.runs.probes.drift import FREE, PINNED, REFERENCE, DriftSums
from ggufnorm.runs.probes.logits import LogitSums
from ggufnorm.runs.watch import Watch, nodes_of

N_CTX, N_VOCAB = 512, 16384


def write_model(
    path: Path, n_layer: int, n_embd: int = 1536, n_ff: int = 4096, n_vocab: int = N_VOCAB
) -> int:
    """Write a random F16 Llama and return its number of weights."""
    rng = np.random.default_rng(0)
    head_dim, n_head, n_head_kv = 128, n_embd // 128, n_embd // 256
    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(N_CTX)
    w.add_embedding_length(n_embd)
    w.add_block_count(n_layer)
    w.add_feed_forward_length(n_ff)
    w.add_head_count(n_head)
    w.add_head_count_kv(n_head_kv)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(head_dim)
    w.add_vocab_size(n_vocab)
    w.add_tokenizer_model("none")
    n_weights = 0

    def matrix(name: str, rows: int, columns: int) -> None:
        nonlocal n_weights
        n_weights += rows * columns
        # One block of noise, rolled: drawing half a billion normals would take a minute.
        block = rng.standard_normal((64, columns), np.float32) / np.sqrt(columns)
        data = np.concatenate([np.roll(block, i, axis=1) for i in range(-(-rows // 64))])[:rows]
        w.add_tensor(name, data.astype(np.float16))

    def norm(name: str) -> None:
        w.add_tensor(name, np.exp(rng.normal(0, 0.2, n_embd)).astype(np.float32))

    matrix("token_embd.weight", n_vocab, n_embd)
    for i in range(n_layer):
        b = f"blk.{i}."
        norm(b + "attn_norm.weight")
        matrix(b + "attn_q.weight", n_embd, n_embd)
        matrix(b + "attn_k.weight", n_head_kv * head_dim, n_embd)
        matrix(b + "attn_v.weight", n_head_kv * head_dim, n_embd)
        matrix(b + "attn_output.weight", n_embd, n_embd)
        norm(b + "ffn_norm.weight")
        matrix(b + "ffn_gate.weight", n_ff, n_embd)
        matrix(b + "ffn_up.weight", n_ff, n_embd)
        matrix(b + "ffn_down.weight", n_embd, n_ff)
    norm("output_norm.weight")
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return n_weights


@dataclass(frozen=True)
class BenchJob:
    """Two models, and how they are run."""

    reference: str
    quant: str
    chunks: int
    threads: int
    n_vocab: int


@dataclass(frozen=True)
class Timings:
    """Seconds by the name of the run, and bytes."""

    seconds: dict[str, float]
    cpu: dict[str, float]
    n_hooks: int
    loaded: int
    peak: int


def measure(job: BenchJob, channel: Channel) -> Timings:
    """In the child: time plain decodes and lockstep runs of the same chunks."""
    options = EngineOptions(n_ctx=N_CTX, n_threads=job.threads)
    rng = np.random.default_rng(1)
    chunks = rng.integers(0, job.n_vocab, (job.chunks, N_CTX)).astype(np.int32)
    with ExitStack() as stack:
        files = {
            REFERENCE: stack.enter_context(GGUFFile(job.reference)),
            FREE: stack.enter_context(GGUFFile(job.quant)),
        }
        models = [stack.enter_context(LlamaModel(files[i].path, options)) for i in (0, 1)]
        cut = [cut_chunk(models[0], c, i * N_CTX, N_CTX) for i, c in enumerate(chunks)]
        plain = [stack.enter_context(LlamaContext(m, options, None)) for m in models]
        runners = [
            stack.enter_context(LlamaRunner(models[i], options, files[i]))
            for i in (REFERENCE, FREE, FREE)
        ]
        for runner in runners[:PINNED]:
            runner.plan(cut[0])
        runners[PINNED].graphs = runners[FREE].graphs
        for context in plain:
            decode(context, cut[0])
        loaded = peak_memory() or 0
        graphs = list(zip(runners[0].graphs, runners[1].graphs, strict=True))
        replicas = [Replica(r, pinned=i == PINNED) for i, r in enumerate(runners)]

        def walk(replicas: list[Replica], watch: Watch = "all") -> Callable[[list[Batch]], None]:
            lockstep = Lockstep(replicas, nodes_of(watch))
            sums = DriftSums(graphs, files)

            def run(chunk: list[Batch]) -> None:
                for replica in replicas:
                    replica.runner.begin_chunk()
                for k, batch in enumerate(chunk):
                    lockstep.run(k, batch, sums.observe)
                    sums.settle()

            return run

        runs: dict[str, Callable[[list[Batch]], None]] = {
            "plain_ref": lambda chunk: decode(plain[0], chunk),
            "plain_quant": lambda chunk: decode(plain[1], chunk),
            "none": lambda chunk: predictions(runners[:PINNED], chunk),
            "norms": walk(replicas[:PINNED], "norms"),
            "free": walk(replicas[:PINNED]),
            "pinned": walk(replicas),
        }
        # In turns, chunk by chunk: what else the machine does then weighs on all alike.
        seconds, cpu = dict.fromkeys(runs, 0.0), dict.fromkeys(runs, 0.0)
        for i, chunk in enumerate([cut[0], *cut]):
            for name, run in runs.items():
                took, busy = timed(partial(run, chunk))
                if i:  # the first time, pages are faulted in
                    seconds[name] += took
                    cpu[name] += busy
            channel.emit(Progress(f"chunk {i} of {len(cut)}"))
        return Timings(seconds, cpu, len(runners[0].graphs[0].hooks), loaded, peak_memory() or 0)


def predictions(runners: list[LlamaRunner], chunk: list[Batch]) -> None:
    """What ``--watch none`` does with a chunk."""
    session = Unwatched([Replica(runner) for runner in runners])
    sums = LogitSums([FREE])
    for runner in runners:
        runner.begin_chunk()
    for k, batch in enumerate(chunk):
        session.run(k, batch, lambda *_: None)
        sums.end_batch(k, batch, runners)


def decode(context: LlamaContext, chunk: list[Batch]) -> None:
    context.clear()
    for batch in chunk:
        context.decode(batch)


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds that passed, and those that all threads of this process computed."""
    started, busy = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - started, time.process_time() - busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--ff", type=int, default=4096)
    parser.add_argument("--vocab", type=int, default=N_VOCAB)
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ggufnorm-bench-") as name:
        reference, quant = Path(name) / "f16.gguf", Path(name) / "q4.gguf"
        n = write_model(reference, args.layers, args.width, args.ff, args.vocab)
        quantize(reference, quant, "Q4_K_M")
        size = (reference.stat().st_size + quant.stat().st_size) / 1e6
        # The child imports the task by its module's name, which is not __main__ there.
        from benchmarks import bench_drift as here

        job = here.BenchJob(str(reference), str(quant), args.chunks, args.threads, args.vocab)
        found = worker.call(here.measure, job)
    print(
        f"{n / 1e6:,.0f} M weights, {args.chunks} × {N_CTX} tokens, {found.n_hooks} hook points\n"
    )
    print("| | seconds | ratio to plain decodes | ratio of processor time |")
    print("|---|---|---|---|")
    clock, cpu = found.seconds, found.cpu
    for name, label in (("plain_ref", "F16"), ("plain_quant", "Q4_K_M")):
        print(f"| plain decode, {label} | {clock[name]:.1f} | | |")
    for name, label, n_quant in (
        ("none", "predictions alone (`--watch none`)", 1),
        ("norms", "free run over norms (`--watch norms --no-local`)", 1),
        ("free", "free run (`--no-local`)", 1),
        ("pinned", "with the pinned replica", 2),
    ):
        ratio, busy = (
            t[name] / (t["plain_ref"] + n_quant * t["plain_quant"]) for t in (clock, cpu)
        )
        print(f"| {label} | {clock[name]:.1f} | {ratio:.2f} | {busy:.2f} |")
    peak, loaded = found.peak / 1e6, found.loaded / 1e6
    print(
        f"\nPeak memory {peak:,.0f} MB: {peak - loaded:,.0f} MB above that of the models and five"
        f" contexts after plain decodes; the two files are {size:,.0f} MB."
    )


if __name__ == "__main__":
    main()
