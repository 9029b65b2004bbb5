"""The child's part of ``quants``: decode the reference once, and each file beside it.

The reference's logits of a block of passages are kept, and every file decodes the block. Where
all models fit into memory together a block is one passage. Where they do not, the files are
loaded one after the other, and a block is as many passages as there is room for logits.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.quants.passages import Passages, Scored
from ggufnorm.core.drift import ModelFacts, RunCost, SideFacts
from ggufnorm.core.engine import Engine
from ggufnorm.core.logits import LogitStatistics, LogitSum
from ggufnorm.core.plain import to_plain
from ggufnorm.core.progress import Progress, duration
from ggufnorm.core.quants import Contrast, Speed, contrast
from ggufnorm.engines.base import Batch, EngineInfo
from ggufnorm.engines.llama.binding import build
from ggufnorm.engines.llama.library import choose_build
from ggufnorm.engines.llama.runner import engine_of, side_facts
from ggufnorm.engines.llama.session import EngineOptions, LlamaContext, LlamaModel
from ggufnorm.engines.worker import Channel, peak_memory
from ggufnorm.errors import InputError
from ggufnorm.runs.identity import identify
from ggufnorm.runs.loop import Loop, Policy

_ONE_BY_ONE = 16
"""Tokens that are decoded singly to measure the speed of generation."""


@dataclass(frozen=True)
class QuantsJob:
    """What :func:`ggufnorm.quants` asks of its child.

    Attributes:
        models: the reference, then the files under test.
        passages: what they run.
        options: how; ``n_ctx`` is the longest passage.
        together: whether all models fit into memory together.
        block: passages whose logits are kept at once, where they do not.
        policy: how long the work is done.
    """

    models: tuple[ModelFacts, ...]
    passages: Passages
    options: EngineOptions
    together: bool
    block: int
    policy: Policy


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        logits: of each file under test.
        n_bad: positions at which the reference itself has a NaN or infinite logit.
        speeds: of each model, the reference first.
        contrasts: of each two files under test without a logit that is not finite.
        n_passages: that were run.
        cut: why they are fewer than planned, None if they are not.
        engine: which llama.cpp.
        build: the same in full.
        side: how the models were run.
        n_threads: CPU threads.
        cost: what it took.
    """

    logits: tuple[LogitStatistics, ...]
    n_bad: int
    speeds: tuple[Speed, ...]
    contrasts: tuple[Contrast, ...]
    n_passages: int
    cut: str | None
    engine: str
    build: Engine
    side: SideFacts
    n_threads: int
    cost: RunCost


def run_quants(job: QuantsJob, channel: Channel) -> Measured:
    """Run all passages, or as many as there is time for."""
    choose_build(job.options.llama_cpp)
    with ExitStack() as stack:
        return _Run(job, stack, channel).execute()


@dataclass
class _Timing:
    """Seconds that one model took.

    Attributes:
        prompt: tokens a second of each passage.
        generation: seconds of each single token.
    """

    prompt: list[float] = field(default_factory=list)
    generation: list[float] = field(default_factory=list)

    def speed(self) -> Speed:
        one = statistics.median(self.generation) if self.generation else 0.0
        # The first passage also reads the file.
        prompt = self.prompt[1:] or self.prompt
        return Speed(statistics.median(prompt) if prompt else 0.0, 1 / one if one else None)


Kept = list[list[NDArray[np.float32]]]
"""The reference's logits: of each passage of a block, of each of its batches."""


class _Run:
    """One run: blocks of passages, each in all models."""

    def __init__(self, job: QuantsJob, stack: ExitStack, channel: Channel) -> None:
        self.job, self.channel, self._stack = job, channel, stack
        self.n_files = len(job.models) - 1
        self.totals = [LogitSum() for _ in range(self.n_files)]
        self.timings = [_Timing() for _ in job.models]
        self._loaded: dict[int, LlamaContext] = {}
        self._bad = 0
        self._ends: list[int] = []  # of blocks that are done, the passages up to there
        self._decoded = 0
        self._started = time.monotonic()

    # -- the state that a checkpoint keeps -----------------------------------------------

    def state(self) -> Any:
        """See :class:`~ggufnorm.runs.loop.Keeps`."""
        timings = [[t.prompt, t.generation] for t in self.timings]
        totals = [t.state() for t in self.totals]
        return {"totals": totals, "timings": timings, "ends": self._ends, "bad": self._bad}

    def restore(self, state: Any) -> None:
        """See :class:`~ggufnorm.runs.loop.Keeps`."""
        pairs = zip(self.totals, state["totals"], strict=True)
        self.totals = [LogitSum.from_state(data) for _, data in pairs]
        both = zip(self.timings, state["timings"], strict=True)
        self.timings = [_Timing(list(prompt), list(one)) for _, (prompt, one) in both]
        self._ends, self._bad = [int(end) for end in state["ends"]], int(state["bad"])

    # -- the run ---------------------------------------------------------------------------

    def execute(self) -> Measured:
        """Run block by block, and sum up."""
        plain = to_plain(self.job, leave_out=("policy", "together", "block"))
        o = self.job.options
        info = EngineInfo(build().name, side_facts(o), o.n_threads, o.n_gpu_layers, engine_of(o))
        job = identify(info, **plain)
        self.loop = Loop(self.channel, self.job.policy, job, {"sums": self}, 1, quiet=True)
        blocks = list(self._blocks())
        for i in self.loop.units(len(blocks)):
            if not self._block(blocks[i], first=self.loop.done == self.loop.begun):
                break
        return self._measured()

    def _blocks(self) -> Iterator[range]:
        """Those that are done; the first passage alone, which tells the speed; the others."""
        ends = [*self._ends] or [1]
        size = 1 if self.job.together else self.job.block
        n = len(self.job.passages)
        ends += [min(n, end + size) for end in range(ends[-1], n, size)]
        for start, end in zip([0, *ends], ends, strict=False):
            yield range(start, end)

    def _block(self, block: range, *, first: bool) -> bool:
        """Run a block in all models; False if it was left in the middle."""
        before = time.monotonic()
        found = [LogitSum() for _ in range(self.n_files)]
        kept: Kept = []
        with self._context(0) as context:
            for i in block:
                kept.append([logits.copy() for _, logits in self._scored(0, i, context)])
            self._one_by_one(0, block, context)
        for k, total in enumerate(found, 1):
            with self._context(k) as context:
                for i, reference in zip(block, kept, strict=True):
                    if not first and self.loop.ends():
                        return False
                    self._compare(k, i, context, reference, total)
                self._one_by_one(k, block, context)
        for total, more in zip(self.totals, found, strict=True):
            total.merge(more)
        self._bad += sum(_n_bad(logits) for of_passage in kept for logits in of_passage)
        self._ends.append(block.stop)
        if block.start == 0:
            self._tell(time.monotonic() - before)
        return True

    def _compare(
        self, k: int, i: int, context: LlamaContext, reference: list[Any], total: LogitSum
    ) -> None:
        """Run the i-th passage in the k-th model, and compare its logits."""
        for (scored, logits), ref in zip(self._scored(k, i, context), reference, strict=True):
            total.add_at(ref, logits, scored.following, scored.positions)

    def _scored(
        self, k: int, i: int, context: LlamaContext
    ) -> Iterator[tuple[Scored, NDArray[np.float32]]]:
        """The logits of the i-th passage's scored positions, batch by batch: views."""
        context.clear()
        n, seconds = 0, 0.0
        for scored in self.job.passages.batches(i, context.model, context.max_batch):
            begun = time.monotonic()
            context.decode(scored.batch)
            logits = context.logits(scored.batch.n_outputs) if scored.batch.n_outputs else None
            seconds += time.monotonic() - begun
            n += len(scored.batch.tokens)
            if logits is not None and len(scored.rows):
                yield scored, logits[scored.rows]
        self.timings[k].prompt.append(n / max(seconds, 1e-9))
        self._decoded += n
        total = len(self.job.passages) * len(self.job.models)
        done = sum(len(t.prompt) for t in self.timings)
        speed = self._decoded / max(time.monotonic() - self._started, 1e-9)
        self.channel.emit(Progress("running", done, total, speed))

    def _one_by_one(self, k: int, block: range, context: LlamaContext) -> None:
        """Decode the first tokens of the text singly: the speed of generation."""
        if block.start or context.model.has_encoder:
            return
        context.clear()
        start, end = self.job.passages.bounds(0)
        tokens = self.job.passages.tokens[start:end][: _ONE_BY_ONE + 1]
        for at in range(len(tokens)):
            one = tokens[at : at + 1]
            begun = time.monotonic()
            context.decode(Batch(one, at, 1, one[:0], at, 0, at))
            context.logits(1)
            self.timings[k].generation.append(time.monotonic() - begun)
        del self.timings[k].generation[0]  # it allocates

    @contextmanager
    def _context(self, k: int) -> Iterator[LlamaContext]:
        """The k-th model, loaded for this block or for all."""
        if self.job.together:
            if k not in self._loaded:
                self._loaded[k] = self._load(k, self._stack)
            yield self._loaded[k]
            return
        with ExitStack() as stack:
            yield self._load(k, stack)

    def _load(self, k: int, stack: ExitStack) -> LlamaContext:
        path = self.job.models[k].path
        self.channel.emit(Progress(f"loading {path}"))
        model = stack.enter_context(LlamaModel(path, self.job.options))
        if model.is_embedding:
            raise InputError(f"{path} predicts no tokens: use ggufnorm drift")
        return stack.enter_context(LlamaContext(model, self.job.options, None))

    def _tell(self, seconds: float) -> None:
        """Say what the rest takes, after the first block, which loaded the models."""
        left = len(self.job.passages) - 1
        if left:
            text = (
                f"{len(self.job.models)} models over {len(self.job.passages)} passages of up to"
                f" {self.job.passages.longest} tokens: about {duration(left * seconds)} at most"
            )
            self.channel.emit(Progress(text, note=True))

    # -- sums ------------------------------------------------------------------------------

    def _measured(self) -> Measured:
        o = self.job.options
        seconds = time.monotonic() - self._started
        return Measured(
            logits=tuple(total.result() for total in self.totals),
            n_bad=self._bad,
            speeds=tuple(t.speed() for t in self.timings),
            contrasts=tuple(self._contrasts()),
            n_passages=self._ends[-1],
            cut=self.loop.cut,
            engine=build().name,
            build=engine_of(o),
            side=side_facts(o),
            n_threads=o.n_threads,
            cost=RunCost(seconds, self._decoded / max(seconds, 1e-9), peak_memory()),
        )

    def _contrasts(self) -> Iterator[Contrast]:
        columns = [total.columns() for total in self.totals]
        n = max(len(c["position"]) for c in columns)
        whole = [k for k, c in enumerate(columns) if len(c["position"]) == n]
        for i, a in enumerate(whole):
            for b in whole[i + 1 :]:
                names = self.job.models[a + 1].path, self.job.models[b + 1].path
                values = columns[a]["kld"], columns[b]["kld"]
                yield contrast(names, values, self.job.passages.of(columns[a]["position"]))


def _n_bad(logits: NDArray[np.float32]) -> int:
    """Positions with a logit that is NaN or infinite."""
    return int((~np.isfinite(logits).all(axis=1)).sum())
