"""Compares a trace with another trace, or with a model that is run beside it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.drift import assemble
from ggufnorm.analysis.drift.assemble import StatedNorm
from ggufnorm.analysis.drift.localise import localise
from ggufnorm.analysis.drift.measure import POOLED, chunk_batches, predicts, side_facts
from ggufnorm.analysis.drift.observe import FREE, REFERENCE, Comparison, Rows
from ggufnorm.analysis.drift.run import require_same_network
from ggufnorm.analysis.drift.verdict import ROUNDING, judge_cumulative
from ggufnorm.analysis.trace import layout
from ggufnorm.analysis.trace.reader import Trace
from ggufnorm.analysis.trace.record import start_token
from ggufnorm.analysis.trace.thin import thin_logits, thin_rows
from ggufnorm.core.drift import DriftReport, ModelFacts, RunCost, RunFacts, SideFacts
from ggufnorm.core.logits import LogitSum
from ggufnorm.core.model import Skipped
from ggufnorm.core.plain import from_plain, to_plain
from ggufnorm.engines.child import Emit, peak_memory
from ggufnorm.engines.llama.binding import engine_version, read_node
from ggufnorm.engines.llama.graph import Graph, NormPlan, Stop
from ggufnorm.engines.llama.session import Batch, EngineOptions, LlamaModel
from ggufnorm.engines.llama.walk import Lane, Match, match_stops
from ggufnorm.errors import MismatchError
from ggufnorm.formats.location import open_model
from ggufnorm.formats.model_file import ModelFile

_NAMES = {REFERENCE: "the reference", FREE: "the side under test"}


HALF_ROUNDING = 5e-4
"""Relative L2 below which two half-precision values cannot be told apart (2 to the -11)."""


@dataclass(frozen=True)
class Side:
    """What a report says of one side, and the graphs that are compared.

    Attributes:
        model: which file was run.
        options: how.
        engine: by which llama.cpp.
        n_threads: CPU threads.
        n_gpu_layers: as asked for.
        graphs: of each batch of a chunk.
        dtypes: of the file's tensors by name.
        stated: what the file says of a norm, by its plan and its result's key.
        skipped: what was not watched.
        predicts: whether the model makes next-token predictions.
        logits: whether they are there to be compared.
        half: whether its values are held in half precision.
    """

    model: ModelFacts
    options: SideFacts
    engine: str
    n_threads: int
    n_gpu_layers: int
    graphs: tuple[Graph, ...]
    dtypes: Mapping[str, str]
    stated: Callable[[NormPlan, str], StatedNorm]
    skipped: tuple[Skipped, ...]
    predicts: bool
    logits: bool
    half: bool


def trace_side(trace: Trace) -> Side:
    """A trace as a side."""
    f = trace.facts
    stated = {
        n.key: StatedNorm(n.layer, n.role, n.epsilon_metadata) for b in f.batches for n in b.norms
    }
    skipped = list(f.skipped)
    if f.dtype == "f16":
        reason = f"{trace.path} holds half precision: below {HALF_ROUNDING:.0e} drift is rounding"
        skipped.append(Skipped("digits", reason))
    if f.predicts and not f.logits:
        skipped.append(Skipped("logits", f"{trace.path} was made without them"))
    return Side(
        model=f.model,
        options=f.options,
        engine=f.engine,
        n_threads=f.n_threads,
        n_gpu_layers=f.n_gpu_layers,
        graphs=trace.graphs,
        dtypes={s.tensor: s.dtype for b in f.batches for s in b.stops if s.tensor and s.dtype},
        stated=lambda plan, _key: stated[plan.key],
        skipped=tuple(skipped),
        predicts=f.predicts,
        logits=f.logits,
        half=f.dtype == "f16",
    )


class Replay(Comparison):
    """Sums of a comparison in which nothing is pinned and weights are had of one side at most.

    Attributes:
        matches: the stops that both sides share, for each batch of a chunk.
        logits: of the positions that both sides keep.
        stride: 1 of how many tokens is compared.
        half: whether values are compared in half precision, because a trace holds no more.
    """

    def __init__(self, sides: dict[int, Side], files: dict[int, ModelFile], stride: int) -> None:
        pairs = list(zip(sides[REFERENCE].graphs, sides[FREE].graphs, strict=True))
        super().__init__(pairs, files)
        self.sides, self.files, self.stride = sides, files, stride
        self.half = any(side.half for side in sides.values())
        self.matches: list[Match] = [match_stops(pair) for pair in pairs]
        self.logits = LogitSum()

    def add(self, stop: Stop, reference: Rows, observed: Rows) -> None:
        """Both sides at a stop, the same tokens of each."""
        if self.half:
            reference, observed = _in_half(reference), _in_half(observed)
        self._add(stop, reference, observed)

    def recompute_live(
        self, lane: int, stop: Stop, batch: Batch, value: NDArray[np.float32]
    ) -> None:
        """Compare a running model's norms, all tokens of them, with NumPy's."""
        self._hold(lane, stop, value)
        for norm in self._by_output.get(stop.key, ()):
            plan, total = norm.plan, norm.kernel
            if lane == REFERENCE:
                plan, total = norm.ref_plan, norm.kernel_ref
            x = self._inputs[lane].get(norm.input_key)
            expected = self._recompute(plan, x, value.shape, lane)
            if expected is not None:
                Rows.of(expected, batch).compare((total, Rows.of(value, batch)))
        self._release(stop)

    def report(self, trace: Trace, n_chunks: int, seconds: float) -> DriftReport:
        """What was found in so many chunks.

        Args:
            trace: that was compared; of two, either.
            n_chunks: how many chunks of it were.
            seconds: that took.
        """
        ref, quant = self.sides[REFERENCE], self.sides[FREE]
        types = {lane: side.dtypes for lane, side in self.sides.items()}
        operations = assemble.operations(self.matches, self, types)
        norms = assemble.norms(self, self.files, quant.stated)
        logits = self.logits.result() if ref.logits and quant.logits else None
        rounding = HALF_ROUNDING if self.half else ROUNDING
        culprit, verdict = judge_cumulative(norms, operations, logits, rounding)
        pooled = self.stops.get(POOLED)
        speed = n_chunks * trace.facts.n_ctx / max(seconds, 1e-9)
        engines = dict.fromkeys((ref.engine, quant.engine))
        return DriftReport(
            reference=ref.model,
            quant=quant.model,
            norms=norms,
            operations=operations,
            logits=logits,
            floor=None,
            embedding=pooled.free.result() if pooled else None,
            localisation=localise(operations, self.stops, self.logits, trace.piece),
            culprit=culprit,
            verdict=verdict,
            skipped=self._all_skipped(),
            run=RunFacts(
                engine=" and ".join(engines),
                text=trace.facts.text,
                n_text_tokens=trace.facts.n_text_tokens,
                n_ctx=trace.facts.n_ctx,
                n_chunks=n_chunks,
                n_chunks_planned=trace.facts.n_chunks,
                n_threads=quant.n_threads,
                n_gpu_layers=quant.n_gpu_layers,
                reference=ref.options,
                quant=quant.options,
            ),
            cost=RunCost(seconds, speed, peak_memory()),
        )

    def _all_skipped(self) -> tuple[Skipped, ...]:
        found = [Skipped("local errors", "they are told only by `drift`, from both models")]
        found += [
            Skipped(f"recompute of norms of {_NAMES[lane]}", "a trace holds no weights")
            for lane in self.sides
            if lane not in self.files
        ]
        if self.stride > 1:
            found.append(Skipped("tokens", f"1 of {self.stride} is compared: no more were kept"))
        found += self.skipped.values()
        found += [s for side in self.sides.values() for s in side.skipped]
        found += [s for match in self.matches for s in match.skipped]
        if not all(side.predicts for side in self.sides.values()):
            found.append(Skipped("logits", "the model makes no next-token predictions"))
        return tuple(dict.fromkeys(found))


def _in_half(rows: Rows) -> Rows:
    """Rounded as a half-precision trace rounds; what is too large becomes the largest."""
    v, most = rows.values, np.finfo(np.float16).max
    fitting = np.where(np.isfinite(v), np.clip(v, -most, most), v)
    return replace(rows, values=fitting.astype(np.float16).astype(np.float32))


# -- two traces ------------------------------------------------------------------------------


def compare_traces(ref: Trace, quant: Trace, on_chunk: Callable[[int, float], None]) -> DriftReport:
    """Compare two traces; llama.cpp is not needed.

    Args:
        ref: the run that is right by definition.
        quant: the run under test.
        on_chunk: called with how many chunks are done and the seconds that took.

    Raises:
        MismatchError: they are not runs of one network on the same tokens.
        InputError: a trace cannot be read to its end.
    """
    _require_same_run(ref, quant)
    stride = _common_stride(ref, quant)
    replay = Replay({REFERENCE: trace_side(ref), FREE: trace_side(quant)}, {}, stride)
    started = time.monotonic()
    for chunk in range(ref.facts.n_chunks):
        for k, match in enumerate(replay.matches):
            for stop, i, j in zip(match.stops, *match.indices, strict=True):
                replay.add(stop, ref.rows(k, i, chunk, stride), quant.rows(k, j, chunk, stride))
            if ref.facts.logits and quant.facts.logits and ref.facts.batches[k].n_scored:
                logits = [t.logits(k, chunk, stride) for t in (ref, quant)]
                _score(replay.logits, ref, k, chunk, stride, logits[0], logits[1])
        on_chunk(chunk + 1, time.monotonic() - started)
    return replay.report(ref, ref.facts.n_chunks, time.monotonic() - started)


def _require_same_run(ref: Trace, quant: Trace) -> None:
    a, b = ref.facts, quant.facts
    require_same_network(a.network, b.network, ref.path, quant.path)
    start = f"{quant.path} cannot be compared with {ref.path}:"
    for what, left, right in (
        ("chunks have {} tokens and not {}", a.n_ctx, b.n_ctx),
        ("it has {} chunks and not {}", a.n_chunks, b.n_chunks),
        ("chunks start with the token {} and not {}", a.start, b.start),
        ("a chunk took {} decodes and not {}", len(a.batches), len(b.batches)),
        ("a position has {} logits and not {}", a.n_vocab, b.n_vocab),
    ):
        if left != right:
            raise MismatchError(f"{start} {what.format(right, left)}")
    if not np.array_equal(ref.tokens, quant.tokens):
        i = int(np.argmax(ref.tokens != quant.tokens))
        raise MismatchError(
            f"{start} they ran different texts (the first other token is number {i}): trace"
            " both with the same text (-f)"
        )
    scored = [[(x.first_scored, x.n_scored) for x in f.batches] for f in (a, b)]
    if a.logits and b.logits and scored[0] != scored[1]:
        raise MismatchError(f"{start} other positions are scored")


def _common_stride(ref: Trace, quant: Trace) -> int:
    stride = math.lcm(ref.facts.stride, quant.facts.stride)
    if stride > ref.facts.n_ctx:
        raise MismatchError(
            f"{quant.path} and {ref.path} keep no token in common (1 of {quant.facts.stride} and"
            f" 1 of {ref.facts.stride}): trace both with the same --budget"
        )
    return stride


def _score(
    total: LogitSum,
    trace: Trace,
    batch: int,
    chunk: int,
    stride: int,
    ref: NDArray[np.float32],
    quant: NDArray[np.float32],
) -> None:
    positions = layout.scored(trace.facts, batch, stride)
    first = chunk * trace.facts.n_ctx
    following = trace.tokens[first + np.array(positions, np.intp) + 1]
    total.add(ref, quant, following, first + positions.start, positions.step)


# -- a trace and a model ---------------------------------------------------------------------


def compare_with_model(job: dict[str, Any], emit: Emit, stop: threading.Event) -> dict[str, Any]:
    """Run the job of :func:`ggufnorm.compare`; the result is a plain DriftReport."""
    with ExitStack() as stack:
        plain: dict[str, Any] = to_plain(_Beside(job, stack, emit).execute(stop))
        return plain


class _Beside:
    """One run of a model beside a trace."""

    def __init__(self, job: dict[str, Any], stack: ExitStack, emit: Emit) -> None:
        self.job, self.emit = job, emit
        self.options = from_plain(EngineOptions, job["options"])
        self.trace = stack.enter_context(Trace(job["trace"]))
        self.file = stack.enter_context(open_model(job["model"]["path"]))
        is_reference = job["model_is_reference"]
        self.mine, self.theirs = (REFERENCE, FREE) if is_reference else (FREE, REFERENCE)
        emit({"type": "phase", "text": "loading the model"})
        self.model = stack.enter_context(LlamaModel(self.file.path, self.options))
        self._require_same_start()
        self.lane = Lane(self.model, self.options, frozenset(self.file.tensors), pin=False)
        stack.enter_context(self.lane.context)
        emit({"type": "phase", "text": "learning the graph"})
        self.lane.plan(self.batches(0))
        sides = {self.mine: self._side(), self.theirs: trace_side(self.trace)}
        self.replay = Replay(sides, {self.mine: self.file}, self.trace.facts.stride)
        self.scores = all(side.logits for side in sides.values())

    def _require_same_start(self) -> None:
        f, model = self.trace.facts, self.model
        start = f"{self.file.path} cannot be compared with {self.trace.path}:"
        if model.n_vocab != f.n_vocab:
            raise MismatchError(f"{start} it gives {model.n_vocab} logits and not {f.n_vocab}")
        if start_token(model) != f.start:
            raise MismatchError(
                f"{start} it starts a chunk with the token {start_token(model)} and not {f.start}"
            )

    def batches(self, i: int) -> list[Batch]:
        """The i-th chunk of the trace, as the model wants it."""
        return chunk_batches(self.lane, self.trace.tokens, i, self.trace.facts.n_ctx)

    def _side(self) -> Side:
        graphs = tuple(self.lane.graphs)
        if len(graphs) != len(self.trace.graphs):
            raise MismatchError(
                f"{self.file.path} takes {len(graphs)} decodes for a chunk, and"
                f" {self.trace.path} took {len(self.trace.graphs)}"
            )
        predicting = predicts(graphs[-1])
        return Side(
            model=from_plain(ModelFacts, self.job["model"]),
            options=side_facts(self.options),
            engine=engine_version(),
            n_threads=self.options.n_threads,
            n_gpu_layers=self.options.n_gpu_layers,
            graphs=graphs,
            dtypes=assemble.tensor_types(self.file),
            stated=partial(assemble.stated_norm, self.file),
            skipped=tuple(s for graph in graphs for s in graph.skipped),
            predicts=predicting,
            logits=predicting,
            half=False,
        )

    def execute(self, stop: threading.Event) -> DriftReport:
        """Walk all chunks, or as many as there is time for, and report."""
        f = self.trace.facts
        started, done, seconds = time.monotonic(), 0, 0.0
        for done in self._chunks():
            seconds = time.monotonic() - started
            self.emit({"type": "progress", "done": done, "total": f.n_chunks, "run": done,
                       "tokens": f.n_ctx, "seconds": seconds})  # fmt: skip
            if stop.is_set():
                break
        return self.replay.report(self.trace, done, seconds)

    def _chunks(self) -> Iterator[int]:
        for i in range(self.trace.facts.n_chunks):
            self.lane.context.clear()
            for k, batch in enumerate(self.batches(i)):
                self._batch(i, k, batch)
            yield i + 1

    def _batch(self, chunk: int, k: int, batch: Batch) -> None:
        trace, match = self.trace, self.replay.matches[k]
        stride, start = trace.facts.stride, chunk * trace.facts.n_ctx

        def on_stop(n: int, address: int) -> bool:
            stop, value = match.stops[n], read_node(address)
            rows = {
                self.mine: thin_rows(Rows.of(value, batch), start, stride),
                self.theirs: trace.rows(k, match.indices[self.theirs][n], chunk, stride),
            }
            self.replay.add(stop, rows[REFERENCE], rows[FREE])
            self.replay.recompute_live(self.mine, stop, batch, value)
            return True

        self.lane.walk(self.lane.graphs[k], match.indices[self.mine], batch, on_stop)
        if self.scores and trace.facts.batches[k].n_scored:
            logits = {
                self.mine: thin_logits(self.lane.context.logits(batch.n_outputs), trace.facts, k),
                self.theirs: trace.logits(k, chunk, stride),
            }
            _score(self.replay.logits, trace, k, chunk, stride, logits[REFERENCE], logits[FREE])
