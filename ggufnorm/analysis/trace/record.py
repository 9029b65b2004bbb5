"""The child's part of ``trace``: run a model once and write down what its stops show."""

from __future__ import annotations

import math
import shutil
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.drift.assemble import stated_norm, tensor_types
from ggufnorm.analysis.drift.measure import (
    chunk_batches,
    count_chunks,
    first_scored,
    predicts,
    side_facts,
)
from ggufnorm.analysis.drift.observe import Rows, token_rows, tokens_of
from ggufnorm.analysis.drift.run import network_facts
from ggufnorm.analysis.trace import layout
from ggufnorm.analysis.trace.thin import thin_logits, thin_rows
from ggufnorm.core.drift import ModelFacts
from ggufnorm.core.model import Skipped
from ggufnorm.core.plain import from_plain, to_plain
from ggufnorm.core.trace import BatchFacts, NormFacts, StopFacts, TraceFacts
from ggufnorm.engines.child import Emit
from ggufnorm.engines.llama.binding import engine_version, read_node
from ggufnorm.engines.llama.graph import Graph, NormPlan, Stop, layer_of_node
from ggufnorm.engines.llama.session import Batch, EngineOptions, LlamaModel
from ggufnorm.engines.llama.tokens import tokens_of_job
from ggufnorm.engines.llama.walk import Lane
from ggufnorm.errors import InputError
from ggufnorm.formats.location import open_model
from ggufnorm.formats.naming import layer_of
from ggufnorm.formats.safetensors import SafetensorsWriter


def record(job: dict[str, Any], emit: Emit, stop: threading.Event) -> dict[str, Any]:
    """Run the job of :func:`ggufnorm.analysis.trace.run.trace`.

    Returns:
        ``facts``: a plain TraceFacts; None if the run was stopped before its end.
    """
    with ExitStack() as stack:
        run = _Recording(job, stack, emit)
        done = run.execute(stop)
        return {"facts": to_plain(run.facts) if done else None}


class _Recording:
    """One run of one model, written down."""

    def __init__(self, job: dict[str, Any], stack: ExitStack, emit: Emit) -> None:
        self.job, self.emit = job, emit
        self.options = from_plain(EngineOptions, job["options"])
        self.file = stack.enter_context(open_model(job["model"]["path"]))
        emit({"type": "phase", "text": "loading the model"})
        self.model = stack.enter_context(LlamaModel(self.file.path, self.options))
        tokens = tokens_of_job(job, self.model)
        self.n_ctx = self.options.n_ctx
        self.n_chunks = count_chunks(len(tokens), self.n_ctx, job["chunks"])
        self.n_text_tokens = len(tokens)
        self.tokens = tokens[: self.n_chunks * self.n_ctx]
        self.lane = Lane(self.model, self.options, frozenset(self.file.tensors), pin=False)
        stack.enter_context(self.lane.context)
        emit({"type": "phase", "text": "learning the graph"})
        self.lane.plan(self.batches(0))
        self.stops = [self._stops(graph) for graph in self.lane.graphs]
        facts = self._describe()
        self.facts = facts if job["budget"] is None else layout.thinned(facts, job["budget"])

    def _stops(self, graph: Graph) -> list[Stop]:
        """The stops to be written: without logits, not what is as wide as they are either."""
        wide = () if self.job["logits"] else (layout.LOGITS,)
        return [s for s in graph.stops if not s.key.startswith(wide)]

    def batches(self, i: int) -> list[Batch]:
        """The i-th chunk, as the model wants it."""
        return chunk_batches(self.lane, self.tokens, i, self.n_ctx)

    def execute(self, stop: threading.Event) -> bool:
        """Write all chunks; False if it was stopped before."""
        self._announce()
        path = Path(self.job["unfinished"])
        started = time.monotonic()
        try:
            with SafetensorsWriter(
                path, layout.entries(self.facts), layout.metadata(self.facts)
            ) as writer:
                for i in range(self.n_chunks):
                    if stop.is_set():
                        return False
                    self._chunk(i, writer)
                    self._progress(i + 1, started)
                writer.finish()
        except OSError as error:
            raise InputError(
                f"cannot write {self.job['out']}: {error.strerror}: give another folder, or a"
                " --budget"
            ) from None
        return True

    def _progress(self, done: int, started: float) -> None:
        self.emit({"type": "progress", "done": done, "total": self.n_chunks, "run": done,
                   "tokens": self.n_ctx, "seconds": time.monotonic() - started})  # fmt: skip

    def _announce(self) -> None:
        """Say what the file will take, or that there is no room for it.

        Raises:
            InputError: there is none.
        """
        f, n, out = self.facts, layout.file_size(self.facts), self.job["out"]
        free = shutil.disk_usage(Path(self.job["unfinished"]).parent).free
        if n > free:
            raise InputError(
                f"{out} takes {n / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free there: give"
                " another folder, a --budget, or fewer --chunks"
            )
        which = "every token" if f.stride == 1 else f"1 of {f.stride} tokens"
        stops = sum(len(b.stops) for b in f.batches)
        what = f"{stops} operations{' and the logits' if f.logits else ''}"
        text = f"{out} takes {n / 1e6:,.1f} MB: {which} of {f.n_chunks} chunks at {what}"
        self.emit({"type": "note", "text": text})

    def _chunk(self, i: int, writer: SafetensorsWriter) -> None:
        writer.write(layout.TOKENS, i, self.tokens[i * self.n_ctx : (i + 1) * self.n_ctx])
        self.lane.context.clear()
        for k, batch in enumerate(self.batches(i)):
            self._batch(i, k, batch, writer)

    def _batch(self, i: int, k: int, batch: Batch, writer: SafetensorsWriter) -> None:
        stops, start = self.stops[k], i * self.n_ctx

        def on_stop(n: int, address: int) -> bool:
            rows = thin_rows(Rows.of(read_node(address), batch), start, self.facts.stride)
            key = stops[n].key
            self._check_range(key, rows.values)
            writer.write(layout.stop_name(k, key), i, rows.values)
            return True

        self.lane.walk(self.lane.graphs[k], [s.index for s in stops], batch, on_stop)
        if self.facts.batches[k].n_scored and layout.logits_stop(self.facts, k) is None:
            logits = self.lane.context.logits(batch.n_outputs)
            writer.write(layout.logits_name(k), i, thin_logits(logits, self.facts, k))

    def _check_range(self, key: str, values: NDArray[np.float32]) -> None:
        if self.facts.dtype == "f16" and values.size and not key.startswith(layout.LOGITS):
            finite = np.abs(values, where=np.isfinite(values), out=np.zeros_like(values))
            if finite.max() > np.finfo(np.float16).max:
                raise InputError(
                    f"{key} reaches {finite.max():.3g}, more than half precision holds: use"
                    " --dtype f32"
                )

    # -- what the file says of itself ------------------------------------------------------

    def _describe(self) -> TraceFacts:
        """All facts, with every token kept."""
        graphs, model = self.lane.graphs, self.model
        predicting = predicts(graphs[-1])
        logits = predicting and self.job["logits"]
        skipped: dict[Skipped, None] = dict.fromkeys(s for g in graphs for s in g.skipped)
        ids = np.unique(self.tokens).tolist()
        return TraceFacts(
            model=from_plain(ModelFacts, self.job["model"]),
            network=network_facts(self.file),
            engine=engine_version(),
            options=side_facts(self.options),
            n_threads=self.options.n_threads,
            n_gpu_layers=self.options.n_gpu_layers,
            text=self.job["text_name"],
            n_text_tokens=self.n_text_tokens,
            n_ctx=self.n_ctx,
            n_chunks=self.n_chunks,
            start=start_token(model),
            stride=1,
            dtype=self.job["dtype"],
            n_vocab=model.n_vocab,
            predicts=predicting,
            logits=logits,
            batches=tuple(
                self._describe_batch(i, batch, logits) for i, batch in enumerate(self.batches(0))
            ),
            skipped=tuple(skipped),
            pieces={str(i): model.piece(i) for i in ids},
        )

    def _describe_batch(self, i: int, batch: Batch, logits: bool) -> BatchFacts:
        graph, stops, types = self.lane.graphs[i], self.stops[i], tensor_types(self.file)
        keys = {s.index: s.key for s in stops}
        n_scored = len(batch.following) if logits else 0
        return BatchFacts(
            first_scored=first_scored(self.model, batch) if n_scored else 0,
            n_scored=n_scored,
            stops=tuple(describe_stop(graph, s, batch, types) for s in stops),
            norms=tuple(
                self._describe_norm(n, keys[n.input], keys[n.output])
                for n in graph.norms
                if n.input in keys and n.output in keys
            ),
        )

    def _describe_norm(self, norm: NormPlan, input_key: str, output_key: str) -> NormFacts:
        stated = stated_norm(self.file, norm, output_key)
        return NormFacts(
            key=norm.key,
            kind=norm.kind,
            epsilon=norm.epsilon if math.isfinite(norm.epsilon) else None,
            epsilon_metadata=stated.epsilon,
            layer=stated.layer,
            role=stated.role,
            groups=norm.groups,
            weight=norm.weight,
            bias=norm.bias,
            input=input_key,
            output=output_key,
        )


def describe_stop(graph: Graph, stop: Stop, batch: Batch, types: dict[str, str]) -> StopFacts:
    """What a trace says of a stop, all tokens kept.

    Args:
        graph: that the stop belongs to.
        stop: to be described.
        batch: of the first chunk.
        types: of the file's tensors by name.
    """
    ne = graph.nodes[stop.index].shape
    shape = (*(1,) * (4 - len(ne)), *ne[::-1])
    n_tokens, first = tokens_of(shape, batch)
    n_rows, channels = token_rows(np.broadcast_to(np.float32(0), shape), n_tokens).shape
    return StopFacts(
        key=stop.key,
        op=stop.op,
        role=stop.role,
        tensor=stop.tensor,
        dtype=types.get(stop.tensor) if stop.tensor else None,
        layer=layer_of(stop.tensor) if stop.tensor else layer_of_node(stop.key),
        shape=ne,
        first=batch.first + first,
        n_tokens=n_tokens,
        rows=n_rows // n_tokens,
        channels=channels,
    )


def start_token(model: LlamaModel) -> int | None:
    """The token that a chunk starts with whatever the text says, None for none."""
    if model.is_embedding:
        return None
    return model.decoder_start if model.has_encoder else model.bos
