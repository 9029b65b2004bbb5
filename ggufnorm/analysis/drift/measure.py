"""The child's part of ``drift``: run both models in lockstep and gather what they show."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.drift import assemble
from ggufnorm.analysis.drift.checkpoint import Checkpoint, job_digest
from ggufnorm.analysis.drift.localise import localise
from ggufnorm.analysis.drift.observe import FLOOR, FREE, PINNED, REFERENCE, Comparison
from ggufnorm.analysis.drift.verdict import judge
from ggufnorm.analysis.drift.weights import weight_error
from ggufnorm.core.drift import DriftReport, ModelFacts, RunCost, RunFacts, SideFacts
from ggufnorm.core.logits import LogitSum
from ggufnorm.core.model import Skipped
from ggufnorm.core.plain import from_plain, to_plain
from ggufnorm.engines.child import Emit, peak_memory
from ggufnorm.engines.llama.binding import engine_version
from ggufnorm.engines.llama.graph import Graph
from ggufnorm.engines.llama.session import Batch, EngineOptions, LlamaModel
from ggufnorm.engines.llama.tokens import tokens_of_job
from ggufnorm.engines.llama.walk import Lane, Lockstep, cut_chunk
from ggufnorm.errors import OutputError, TextError
from ggufnorm.formats.location import open_model

POOLED = "result_embd_pooled"
"""Label of an embedding model's output (llm_graph_context::build_pooling, llama-graph.cpp)."""


def measure(job: dict[str, Any], emit: Emit, stop: threading.Event) -> dict[str, Any]:
    """Run the job of :func:`ggufnorm.drift`; the result is a plain DriftReport."""
    with ExitStack() as stack:
        plain: dict[str, Any] = to_plain(_Run(job, stack, emit).execute(stop))
        return plain


class _Run:
    """One drift run: loaded, walked, reported."""

    def __init__(self, job: dict[str, Any], stack: ExitStack, emit: Emit) -> None:
        self.job, self.emit = job, emit
        self.options = {
            REFERENCE: from_plain(EngineOptions, job["options_ref"]),
            FREE: from_plain(EngineOptions, job["options"]),
        }
        self.files = {
            REFERENCE: stack.enter_context(open_model(job["reference"]["path"])),
            FREE: stack.enter_context(open_model(job["quant"]["path"])),
        }
        self.models = self._load(stack)
        self.n_ctx = self.options[FREE].n_ctx
        self.tokens = tokens_of_job(job, *self.models.values())
        self.n_chunks = count_chunks(len(self.tokens), self.n_ctx, job["chunks"])
        sides = [(REFERENCE, False), (FREE, False), (FREE, True)]
        sides += [(REFERENCE, False)] if job["floor"] else []
        self.lanes = [
            Lane(self.models[i], self.options[i], frozenset(self.files[i].tensors), pin=pin)
            for i, pin in sides
        ]
        for lane in self.lanes:
            stack.enter_context(lane.context)
        self.logits = [LogitSum() for _ in (REFERENCE, *sides[PINNED + 1 :])]
        """Of the model under test, and of the reference against itself if asked for."""

    def _load(self, stack: ExitStack) -> dict[int, LlamaModel]:
        self.emit({"type": "phase", "text": "loading the reference"})
        options, path = self.options, self.files[REFERENCE].path
        reference = stack.enter_context(LlamaModel(path, options[REFERENCE]))
        same = options[FREE].use_extra_bufts == options[REFERENCE].use_extra_bufts
        if same and self.job["reference"]["path"] == self.job["quant"]["path"]:
            return {REFERENCE: reference, FREE: reference}
        self.emit({"type": "phase", "text": "loading the model under test"})
        quant = stack.enter_context(LlamaModel(self.files[FREE].path, options[FREE]))
        return {REFERENCE: reference, FREE: quant}

    def batches(self, i: int) -> list[Batch]:
        """The i-th chunk, as the model wants it."""
        return chunk_batches(self.lanes[REFERENCE], self.tokens, i, self.n_ctx)

    def execute(self, stop: threading.Event) -> DriftReport:
        """Walk all chunks, or as many as there is time for, and report."""
        self.emit({"type": "phase", "text": "learning the graphs"})
        first = self.batches(0)
        for lane in self.lanes[:PINNED]:
            lane.plan(first)
        self.lanes[PINNED].graphs = self.lanes[FREE].graphs
        for lane in self.lanes[FLOOR:]:
            lane.graphs = self.lanes[REFERENCE].graphs
        lockstep = Lockstep(self.lanes)
        graphs = list(zip(self.lanes[REFERENCE].graphs, self.lanes[FREE].graphs, strict=True))
        comparison = Comparison(graphs, self.files)
        path = self.job["checkpoint"]
        checkpoint = Checkpoint(path, job_digest(self.job)) if path else None
        done = begun = checkpoint.load(comparison, self.logits) if checkpoint else 0
        started, seconds = time.monotonic(), 0.0
        for done in self._chunks(begun, lockstep, comparison, checkpoint, stop):
            seconds = time.monotonic() - started
            self.emit({"type": "progress", "done": done, "total": self.n_chunks,
                       "run": done - begun, "tokens": self.n_ctx, "seconds": seconds})  # fmt: skip
        speed = (done - begun) * self.n_ctx / max(seconds, 1e-9)
        cost = RunCost(seconds, speed, peak_memory())
        return self._report(lockstep, comparison, done, cost)

    def _chunks(
        self,
        begun: int,
        lockstep: Lockstep,
        comparison: Comparison,
        checkpoint: Checkpoint | None,
        stop: threading.Event,
    ) -> Iterator[int]:
        """Walk chunk by chunk until the end or a stop; yields how many are done."""
        saved = time.monotonic()
        for i in range(begun, self.n_chunks):
            for lane in self.lanes:
                lane.context.clear()
            for k, batch in enumerate(self.batches(i)):
                lockstep.run(k, batch, comparison.meet)
                self._score(batch)
            last = i + 1 == self.n_chunks or stop.is_set()
            if checkpoint and (last or time.monotonic() - saved > self.job["save_every"]):
                try:
                    checkpoint.save(i + 1, comparison, self.logits)
                except OutputError as error:
                    text = f"no checkpoint is kept: {error}; going on without it"
                    self.emit({"type": "warning", "text": text})
                    checkpoint = None
                saved = time.monotonic()
            yield i + 1
            if last:
                return

    @property
    def has_logits(self) -> bool:
        """Whether the reference predicts."""
        return predicts(self.lanes[REFERENCE].graphs[-1])

    def _score(self, batch: Batch) -> None:
        """Compare the logits of a batch with each other and with the tokens that follow."""
        n = len(batch.following)
        if n == 0 or not self.has_logits:
            return
        first = first_scored(self.models[REFERENCE], batch)
        lanes = [lane.context.logits(batch.n_outputs)[:n] for lane in self.lanes]
        self.logits[0].add(lanes[REFERENCE], lanes[FREE], batch.following, first)
        for total, observed in zip(self.logits[1:], lanes[FLOOR:], strict=True):
            total.add(lanes[REFERENCE], observed, batch.following, first)

    def _text(self, token: int) -> str:
        return self.models[REFERENCE].piece(int(self.tokens[token]))

    def _report(
        self, lockstep: Lockstep, comparison: Comparison, done: int, cost: RunCost
    ) -> DriftReport:
        types = {lane: assemble.tensor_types(file) for lane, file in self.files.items()}
        operations = assemble.operations(lockstep.matches, comparison, types)
        norms = assemble.norms(
            comparison, self.files, partial(assemble.stated_norm, self.files[FREE])
        )
        logits, *floor = (total.result() for total in self.logits)
        culprit, verdict = judge(
            norms,
            operations,
            logits if self.has_logits else None,
            lambda name: weight_error(self.files[REFERENCE], self.files[FREE], name),
        )
        pooled = comparison.stops.get(POOLED)
        return DriftReport(
            reference=from_plain(ModelFacts, self.job["reference"]),
            quant=from_plain(ModelFacts, self.job["quant"]),
            norms=norms,
            operations=operations,
            logits=logits if self.has_logits else None,
            floor=floor[0] if floor and self.has_logits else None,
            embedding=pooled.free.result() if pooled else None,
            localisation=localise(operations, comparison.stops, self.logits[0], self._text),
            culprit=culprit,
            verdict=verdict,
            skipped=self._skipped(lockstep, comparison),
            run=RunFacts(
                engine=engine_version(),
                text=self.job["text_name"],
                n_text_tokens=len(self.tokens),
                n_ctx=self.n_ctx,
                n_chunks=done,
                n_chunks_planned=self.n_chunks,
                n_threads=self.options[FREE].n_threads,
                n_gpu_layers=self.options[FREE].n_gpu_layers,
                reference=side_facts(self.options[REFERENCE]),
                quant=side_facts(self.options[FREE]),
            ),
            cost=cost,
        )

    def _skipped(self, lockstep: Lockstep, comparison: Comparison) -> tuple[Skipped, ...]:
        found = list(comparison.skipped.values())
        for lane in self.lanes[:PINNED]:
            found += [s for graph in lane.graphs for s in graph.skipped]
        found += [s for match in lockstep.matches for s in match.skipped]
        if not self.has_logits:
            found.append(Skipped("logits", "the model makes no next-token predictions"))
        return tuple(dict.fromkeys(found))


def count_chunks(n_tokens: int, n_ctx: int, wanted: int | None) -> int:
    """How many chunks a text gives, at most as many as wanted.

    Raises:
        TextError: not even one.
    """
    if n_tokens < n_ctx:
        raise TextError(
            f"the text has {n_tokens} tokens, fewer than one chunk of {n_ctx}:"
            f" give a longer text (-f) or a smaller chunk (-c {max(8, n_tokens // 8 * 8)})"
        )
    return min(n_tokens // n_ctx, wanted) if wanted else n_tokens // n_ctx


def chunk_batches(lane: Lane, tokens: NDArray[np.int32], i: int, n_ctx: int) -> list[Batch]:
    """The i-th chunk of a text's tokens, as the lane's model wants it."""
    first = i * n_ctx
    context = lane.context
    return cut_chunk(context.model, tokens[first : first + n_ctx], first, context.max_batch)


def predicts(graph: Graph) -> bool:
    """Whether a graph ends in next-token logits (llm_graph_result::t_logits)."""
    return any(n.name == "result_output" for n in graph.nodes)


def first_scored(model: LlamaModel, batch: Batch) -> int:
    """Number of the token whose logits are the batch's first."""
    # An encoder-decoder's decoder starts with an extra token.
    return batch.first + len(batch.tokens) - batch.n_outputs - model.has_encoder


def side_facts(options: EngineOptions) -> SideFacts:
    """What a report says of one side's options."""
    return SideFacts(
        flash_attention=options.flash_attention,
        cache_type_k=options.cache_type_k,
        cache_type_v=options.cache_type_v,
        use_extra_bufts=options.use_extra_bufts,
        unfused_norms=options.unfused_norms,
    )
