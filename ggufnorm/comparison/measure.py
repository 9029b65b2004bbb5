"""The child's part of ``drift``: run both models in lockstep and gather what they show."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.comparison.observe import FREE, PINNED, REFERENCE, Comparison, WeightCache
from ggufnorm.comparison.verdict import judge
from ggufnorm.comparison.weights import weight_error
from ggufnorm.core.drift import DriftReport, ModelFacts, NormDrift, OperationDrift, RunFacts
from ggufnorm.core.metrics import Difference, DifferenceSum, LogitSum, difference
from ggufnorm.core.model import Skipped
from ggufnorm.core.plain import from_plain, to_plain
from ggufnorm.engines.child import Emit, peak_memory
from ggufnorm.engines.llama.binding import engine_version, llama
from ggufnorm.engines.llama.graph import NormPlan, layer_of_node
from ggufnorm.engines.llama.session import EngineOptions, LlamaModel
from ggufnorm.engines.llama.walk import Batch, Lane, Lockstep, batches
from ggufnorm.errors import EngineError, InputError, TextError
from ggufnorm.formats.location import open_model
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.naming import layer_of, norm_parameters, parse_norm_name
from ggufnorm.inspection import shortest_float32


def measure(job: dict[str, Any], emit: Emit, stop: threading.Event) -> dict[str, Any]:
    """Run the job of :func:`ggufnorm.comparison.run.drift`; the result is a plain DriftReport."""
    options = from_plain(EngineOptions, job["options"])
    with ExitStack() as stack:
        files = {
            REFERENCE: stack.enter_context(open_model(job["reference"]["path"])),
            FREE: stack.enter_context(open_model(job["quant"]["path"])),
        }
        llama()
        emit({"type": "phase", "text": "loading the reference"})
        reference = stack.enter_context(LlamaModel(files[REFERENCE].path, options))
        emit({"type": "phase", "text": "loading the model under test"})
        quant = stack.enter_context(LlamaModel(files[FREE].path, options))
        for model in (reference, quant):
            if not model.is_decoder_only:
                raise EngineError(
                    f"{model.path}: drift needs a decoder-only model as yet;"
                    " this one is an encoder or an encoder-decoder"
                )
        run = _Run(job, options, files, reference, quant, stack)
        return to_plain(run.execute(emit, stop))  # type: ignore[no-any-return]


class _Run:
    """One drift run, from the loaded models on."""

    def __init__(
        self,
        job: dict[str, Any],
        options: EngineOptions,
        files: dict[int, ModelFile],
        reference: LlamaModel,
        quant: LlamaModel,
        stack: ExitStack,
    ) -> None:
        self.job, self.options, self.files = job, options, files
        self.model = reference
        self.tokens = reference.tokenize(job["text"])
        if not np.array_equal(self.tokens, quant.tokenize(job["text"])):
            raise InputError("the two models cut the text into different tokens")
        self.n_chunks = self._count_chunks(job["chunks"])
        names = {lane: frozenset(file.tensors) for lane, file in files.items()}
        self.lanes = [
            Lane(reference, options, names[REFERENCE], pin=False),
            Lane(quant, options, names[FREE], pin=False),
            Lane(quant, options, names[FREE], pin=True),
        ]
        for lane in self.lanes:
            stack.enter_context(lane.context)
        self.logits = LogitSum()

    def _count_chunks(self, wanted: int | None) -> int:
        n_ctx, n = self.options.n_ctx, len(self.tokens)
        if n < n_ctx:
            raise TextError(
                f"the text has {n} tokens, fewer than one chunk of {n_ctx}:"
                f" give a longer text (-f) or a smaller chunk (-c {max(8, n // 8 * 8)})"
            )
        return min(n // n_ctx, wanted) if wanted else n // n_ctx

    def chunk(self, i: int) -> NDArray[np.int32]:
        """The i-th chunk, its first token replaced by BOS as llama-perplexity does."""
        n_ctx = self.options.n_ctx
        tokens = self.tokens[i * n_ctx : (i + 1) * n_ctx].copy()
        if self.model.bos is not None:
            tokens[0] = self.model.bos
        return tokens

    @property
    def has_logits(self) -> bool:
        """Whether the graph ends in next-token logits (llm_graph_result::t_logits)."""
        return any(n.name == "result_output" for n in self.lanes[REFERENCE].graphs[-1].nodes)

    @property
    def first_output(self) -> int:
        """First position that gives logits: llama-perplexity scores a chunk's second half."""
        return self.options.n_ctx // 2

    def execute(self, emit: Emit, stop: threading.Event) -> DriftReport:
        emit({"type": "phase", "text": "learning the graphs"})
        first = batches(self.chunk(0), self.first_output)
        for lane in self.lanes[:PINNED]:
            lane.plan(first)
        self.lanes[PINNED].graphs = self.lanes[FREE].graphs
        lockstep = Lockstep(self.lanes)
        graphs = list(zip(self.lanes[REFERENCE].graphs, self.lanes[FREE].graphs, strict=True))
        comparison = Comparison(graphs, self.files)
        started, done = time.monotonic(), 0
        for i in range(self.n_chunks):
            self._run_chunk(i, lockstep, comparison)
            done = i + 1
            seconds = time.monotonic() - started
            emit(
                {
                    "type": "progress",
                    "done": done,
                    "total": self.n_chunks,
                    "tokens": done * self.options.n_ctx,
                    "seconds": seconds,
                }
            )
            if stop.is_set():
                break
        return self._report(lockstep, comparison, done, time.monotonic() - started)

    def _run_chunk(self, i: int, lockstep: Lockstep, comparison: Comparison) -> None:
        tokens = self.chunk(i)
        comparison.first_token = i * self.options.n_ctx
        for lane in self.lanes:
            lane.context.clear()
        for k, batch in enumerate(batches(tokens, self.first_output)):
            lockstep.run(k, batch, comparison)
            self._score(tokens, batch)

    def _score(self, tokens: NDArray[np.int32], batch: Batch) -> None:
        """Compare the logits of a batch with each other and with the tokens that follow."""
        begin = batch.position + len(batch.tokens) - batch.n_outputs
        following = tokens[begin + 1 : begin + 1 + batch.n_outputs]
        if len(following) == 0 or not self.has_logits:
            return
        ref, quant = (
            lane.context.logits(batch.n_outputs)[: len(following)] for lane in self.lanes[:PINNED]
        )
        self.logits.add(ref, quant, following)

    def _report(
        self, lockstep: Lockstep, comparison: Comparison, done: int, seconds: float
    ) -> DriftReport:
        operations = self._operations(lockstep, comparison)
        norms = self._norms(comparison)
        logits = self.logits.result() if self.has_logits else None
        culprit, verdict = judge(
            norms,
            operations,
            logits,
            lambda name: weight_error(self.files[REFERENCE], self.files[FREE], name),
        )
        skipped: dict[Skipped, None] = dict.fromkeys(comparison.skipped.values())
        for lane in self.lanes[:PINNED]:
            for graph in lane.graphs:
                skipped.update(dict.fromkeys(graph.skipped))
        for match in lockstep.matches:
            skipped.update(dict.fromkeys(match.skipped))
        if logits is None:
            skipped[Skipped("logits", "the model makes no next-token predictions")] = None
        return DriftReport(
            reference=from_plain(ModelFacts, self.job["reference"]),
            quant=from_plain(ModelFacts, self.job["quant"]),
            norms=norms,
            operations=operations,
            logits=logits,
            culprit=culprit,
            verdict=verdict,
            skipped=tuple(skipped),
            run=RunFacts(
                engine=engine_version(),
                text=self.job["text_name"],
                n_text_tokens=len(self.tokens),
                n_ctx=self.options.n_ctx,
                n_chunks=done,
                n_chunks_planned=self.n_chunks,
                n_threads=self.options.n_threads,
                n_gpu_layers=self.options.n_gpu_layers,
                seconds=seconds,
                peak_memory=peak_memory(),
            ),
        )

    def _operations(self, lockstep: Lockstep, comparison: Comparison) -> tuple[OperationDrift, ...]:
        found: dict[str, OperationDrift] = {}
        for match in lockstep.matches:
            for s in match.stops:
                found[s.key] = OperationDrift(
                    node=s.key,
                    op=s.op,
                    role=s.role,
                    tensor=s.tensor,
                    layer=layer_of(s.tensor) if s.tensor else layer_of_node(s.key),
                    dtype=self._dtype(FREE, s.tensor),
                    dtype_ref=self._dtype(REFERENCE, s.tensor),
                    cumulative=_result(comparison.free, s.key),
                    local=_result(comparison.pinned, s.key),
                )
        return tuple(found.values())

    def _dtype(self, lane: int, tensor: str | None) -> str | None:
        found = self.files[lane].tensors.get(tensor) if tensor else None
        return found.dtype if found else None

    def _norms(self, comparison: Comparison) -> tuple[NormDrift, ...]:
        weights = {lane: WeightCache(file) for lane, file in self.files.items()}
        norms = []
        for norm in comparison.norms.values():
            plan = norm.plan
            layer, role = _place(plan, norm.output_key)
            has_bias = plan.bias is not None
            file = self.files[FREE]
            stated = norm_parameters(file.metadata, file.architecture, has_bias=has_bias)
            epsilon = stated.epsilon if stated.kind == plan.kind else None
            norms.append(
                NormDrift(
                    tensor=plan.weight,
                    node=norm.output_key,
                    layer=layer,
                    role=role,
                    kind=plan.kind,
                    epsilon_metadata=shortest_float32(epsilon),
                    epsilon_used=shortest_float32(plan.epsilon) or 0.0,
                    epsilon_used_ref=shortest_float32(norm.ref_plan.epsilon) or 0.0,
                    input=_result(comparison.free, norm.input_key),
                    output=_result(comparison.free, norm.output_key),
                    local=_result(comparison.pinned, norm.output_key),
                    weight=_weight_drift(plan, weights),
                    recompute_residual=norm.residual[FREE].result().rel_l2,
                    recompute_residual_ref=norm.residual[REFERENCE].result().rel_l2,
                )
            )
        return tuple(norms)


def _result(sums: dict[str, DifferenceSum], key: str) -> Difference:
    return sums.get(key, DifferenceSum()).result()


def _place(plan: NormPlan, output_key: str) -> tuple[int | None, str]:
    """Layer and role, from the weight's name or, without one, from llama.cpp's label."""
    name = parse_norm_name(plan.weight) if plan.weight else None
    if name is not None:
        return name.layer, name.role
    label = output_key.partition("@")[0].rpartition("-")[0] or output_key
    role = {"result_norm": "output"}.get(label, label.removesuffix("_norm"))
    return layer_of_node(output_key), role


def _weight_drift(plan: NormPlan, weights: dict[int, WeightCache]) -> Difference | None:
    """Drift of weight and bias as one vector."""
    names = [n for n in (plan.weight, plan.bias) if n]
    if not names:
        return None
    ref, quant = (
        np.concatenate([weights[lane].get(n).ravel() for n in names]) for lane in (REFERENCE, FREE)
    )
    return difference(ref, quant) if ref.shape == quant.shape else None
