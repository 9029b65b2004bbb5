"""An importance matrix from the inputs that the reference's matrix products see.

The definition is llama-imatrix's (``IMatrixCollector::collect_imatrix`` in
``tools/imatrix/imatrix.cpp``): products with a block's weight and 16 rows or more; every
token of a chunk counts.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.drift.measure import chunk_batches, count_chunks
from ggufnorm.core.plain import from_plain
from ggufnorm.engines.child import Emit
from ggufnorm.engines.llama.binding import NodeView, read_integers, read_node
from ggufnorm.engines.llama.graph import Graph, Stop
from ggufnorm.engines.llama.session import EngineOptions, LlamaModel
from ggufnorm.engines.llama.tokens import tokens_of_job
from ggufnorm.engines.llama.walk import Lane
from ggufnorm.formats.imatrix import Activations, write_imatrix
from ggufnorm.formats.location import open_model

Array = NDArray[np.float64]

_FEWEST_ROWS = 16
"""llama-imatrix passes over smaller products."""


def collect_here(job: dict[str, Any], emit: Emit, stop: threading.Event) -> dict[str, Any]:
    """Run a model on a text and write its importance matrix to the job's ``out``."""
    options = from_plain(EngineOptions, job["options"])
    with ExitStack() as stack:
        file = stack.enter_context(open_model(job["model"]))
        model = stack.enter_context(LlamaModel(file.path, options))
        lane = Lane(model, options, frozenset(file.tensors), pin=False)
        stack.enter_context(lane.context)
        tokens = tokens_of_job(job, model)
        n_chunks = count_chunks(len(tokens), options.n_ctx, job["chunks"])
        emit({"type": "phase", "text": "computing the importance matrix"})
        sums = ImportanceSum()
        for i in range(n_chunks):
            # Every token must pass through the last layer, too.
            batches = [
                replace(b, n_outputs=len(b.tokens))
                for b in chunk_batches(lane, tokens, i, options.n_ctx)
            ]
            if not lane.graphs:
                lane.plan(batches)
            lane.context.clear()
            for graph, batch in zip(lane.graphs, batches, strict=True):
                stops = products(graph)
                lane.walk(graph, [s.index for s in stops], batch, partial(sums.add, stops))
            if stop.is_set():
                return {"n_chunks": 0}
        write_imatrix(
            job["out"],
            sums.result(),
            text_name=job["text_name"],
            n_chunks=n_chunks,
            n_ctx=options.n_ctx,
        )
        return {"n_chunks": n_chunks}


def products(graph: Graph) -> list[Stop]:
    """The matrix products with a weight of a block."""
    return [
        s
        for s in graph.stops
        if s.op in ("MUL_MAT", "MUL_MAT_ID") and s.tensor and s.tensor.startswith("blk.")
    ]


class ImportanceSum:
    """Sums of squares of inputs, by weight."""

    def __init__(self) -> None:
        self._sums: dict[str, Array] = {}
        self._counts: dict[str, Array] = {}

    def add(self, stops: Sequence[Stop], k: int, address: int) -> bool:
        """Count in the inputs of a product that was just computed, the k-th of the stops."""
        stop = stops[k]
        assert stop.tensor
        weight, x, *ids = NodeView.at(address).sources
        shape = NodeView.at(weight).shape
        n = shape[2] if len(shape) > 2 else 1
        if ids:
            self.add_experts(stop.tensor, read_node(x)[0], read_integers(ids[0])[0, 0], n)
        else:
            self.add_rows(stop.tensor, read_node(x), n)
        return True

    def add_rows(self, name: str, x: NDArray[np.float32], n: int) -> None:
        """Inputs of a product with ``n`` matrices.

        Args:
            name: of the weight.
            x: ``(ne[3], ne[2], rows, channels)``; the matrices take turns on the second.
            n: matrices.
        """
        if x.shape[2] < _FEWEST_ROWS:
            return
        squares = np.einsum("abrc,abrc->abc", x, x, dtype=np.float64)
        rows = x.shape[0] * x.shape[1] * x.shape[2] // n
        self._accumulate(name, squares.reshape(-1, n, x.shape[3]).sum(axis=0), np.full(1, rows))

    def add_experts(
        self, name: str, x: NDArray[np.float32], ids: NDArray[np.int32], n: int
    ) -> None:
        """Inputs of a product with those of ``n`` experts that were chosen for each token.

        Args:
            name: of the weight.
            x: ``(tokens, one or used, channels)``.
            ids: ``(tokens, used)``.
            n: experts.
        """
        sums, counts = np.zeros((n, x.shape[2])), np.zeros(n)
        for k in range(ids.shape[1]):
            np.add.at(sums, ids[:, k], x[:, k % x.shape[1]].astype(np.float64) ** 2)
            counts += np.bincount(ids[:, k], minlength=n)
        self._accumulate(name, sums, counts)

    def _accumulate(self, name: str, sums: Array, counts: NDArray[Any]) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + sums
        self._counts[name] = self._counts.get(name, 0.0) + counts

    def result(self) -> dict[str, Activations]:
        """What was seen of each weight."""
        return {
            name: Activations(sums.astype(np.float32), self._counts[name].astype(np.float32))
            for name, sums in self._sums.items()
        }
