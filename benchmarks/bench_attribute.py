"""What a measured share costs: patched runs against one plain decode of the same tokens.

    python -m benchmarks.bench_attribute [--layers 16] [--width 1536] [--ff 4096] [--patches 8]

Makes the models of :mod:`benchmarks.bench_drift`, takes local errors from one lockstep run, and
times, chunk by chunk in turns, a plain decode of the reference and ``attribute``'s patched runs,
several at once, with their KL divergences. Prints a Markdown table, per share.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.bench_drift import N_CTX, N_VOCAB, decode, timed, write_model
from ggufnorm.analysis.attribution.patch import Patcher, most_side_by_side, side_by_side
from ggufnorm.core.logits import kl_divergences
from ggufnorm.engines import worker
from ggufnorm.engines.llama.binding import add_to_node
from ggufnorm.engines.llama.quantize import quantize
from ggufnorm.engines.llama.runner import LlamaRunner
from ggufnorm.engines.llama.session import EngineOptions, LlamaContext, LlamaModel
from ggufnorm.engines.worker import Channel
from ggufnorm.formats.gguf import GGUFFile
from ggufnorm.runs.lockstep import Replica
from ggufnorm.runs.probes.patches import PatchValues
from ggufnorm.runs.session import Session


@dataclass(frozen=True)
class AttributeJob:
    """Two models, and how they are run."""

    reference: str
    quant: str
    patches: int
    rounds: int
    threads: int


@dataclass(frozen=True)
class Shares:
    """Seconds of the clock and of the processors; of decodes, and of shares."""

    decode: tuple[float, float]
    share: tuple[float, float]
    at_once: int


def measure(job: AttributeJob, _channel: Channel) -> Shares:
    """In the child: decode and patch in turns."""
    options = EngineOptions(n_ctx=N_CTX, n_threads=job.threads)
    tokens = np.random.default_rng(1).integers(0, N_VOCAB, N_CTX).astype(np.int32)
    with ExitStack() as stack:
        files = [stack.enter_context(GGUFFile(path)) for path in (job.reference, job.quant)]
        models = [stack.enter_context(LlamaModel(f.path, options)) for f in files]
        runners = [
            stack.enter_context(LlamaRunner(m, options, f))
            for m, f in zip(models, files, strict=True)
        ]
        chunk = runners[0].batches(tokens, 0)
        for runner in runners:
            runner.plan(chunk)
        keys = [h.key for h in runners[0].graphs[0].hooks if h.role == "matmul" and h.pin]
        keys = keys[:: max(1, len(keys) // job.patches)][: job.patches]
        values = PatchValues({}, keys, ())
        replicas = [Replica(runners[0]), Replica(runners[1], pinned=True)]
        Session(replicas, [values], tokens, N_CTX).chunk(0)
        patches = [[{key: batch[key]} for batch in values.errors] for key in keys]
        n_seq = side_by_side(len(keys), most_side_by_side(N_CTX, N_VOCAB))
        patcher = Patcher(runners[0], chunk, n_seq, stack, add_to_node)
        plain = stack.enter_context(LlamaContext(models[0], options, None))
        expected = values.logits[-1]

        def shares() -> None:
            for i in range(0, len(patches), patcher.n_seq):
                for found in patcher.run(chunk, patches[i : i + patcher.n_seq]):
                    kl_divergences(expected, found[-1])

        totals = np.zeros((2, 2))
        for i in range(job.rounds + 1):
            took = [timed(lambda: decode(plain, chunk)), timed(shares)]
            totals += np.array(took) if i else 0  # the first time, pages are faulted in
        totals[1] /= len(patches)
        decoded, share = (totals / job.rounds).tolist()
        return Shares((decoded[0], decoded[1]), (share[0], share[1]), patcher.n_seq)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--ff", type=int, default=4096)
    parser.add_argument("--patches", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ggufnorm-bench-") as name:
        reference, quant = Path(name) / "f16.gguf", Path(name) / "q4.gguf"
        n = write_model(reference, args.layers, args.width, args.ff)
        quantize(reference, quant, "Q4_K_M")
        # The child imports the task by its module's name, which is not __main__ there.
        from benchmarks import bench_attribute as here

        paths = str(reference), str(quant)
        found = worker.call(
            here.measure, here.AttributeJob(*paths, args.patches, args.rounds, args.threads)
        )
    clock, cpu = (s / d for s, d in zip(found.share, found.decode, strict=True))
    print(f"{n / 1e6:,.0f} M weights, {N_CTX} tokens, {found.at_once} patches at once\n")
    print("| | seconds | ratio to a plain decode | ratio of processor time |")
    print("|---|---|---|---|")
    print(f"| plain decode, F16 | {found.decode[0]:.2f} | | |")
    print(f"| a share | {found.share[0]:.2f} | {clock:.2f} | {cpu:.2f} |")


if __name__ == "__main__":
    main()
