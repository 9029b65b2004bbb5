"""``capture``: run one model on one short text and see what every norm does."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.drift.assemble import stated_norm
from ggufnorm.analysis.drift.localise import F16_MAX
from ggufnorm.analysis.drift.observe import WeightCache, recompute, repeat, token_rows, tokens_of
from ggufnorm.analysis.drift.run import require_memory
from ggufnorm.analysis.drift.verdict import KERNEL_RESIDUAL
from ggufnorm.core.capture import Capture, NonFinite, NormCapture, Rows, Sample, Sighting, Spread
from ggufnorm.core.floats import shortest_float32
from ggufnorm.core.metrics import DifferenceSum, Peak, PeakSum
from ggufnorm.core.model import Skipped
from ggufnorm.core.plain import from_plain, to_plain
from ggufnorm.engines.child import Emit, run_in_child
from ggufnorm.engines.llama.binding import engine_version
from ggufnorm.engines.llama.graph import Graph, NormPlan, Stop, layer_of_node
from ggufnorm.engines.llama.session import Batch, EngineOptions, LlamaModel
from ggufnorm.engines.llama.walk import Lane, Lockstep, cut_chunk
from ggufnorm.errors import EngineError, InputError
from ggufnorm.formats.location import local_path, open_model
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.naming import layer_of
from ggufnorm.samples import default_text

Array = NDArray[np.float32]

N_TOKENS = 128
"""Length of the text, where the model's context is not shorter."""
_LETTERS = 64
"""Letters of the text to a token, more than enough."""
_SAMPLED_ROWS = 4
_MOST_SAMPLES = 16
"""Norms of which rows are kept, the first that are out of line."""
NARROW = F16_MAX / 4
"""Values above this are noted."""


def capture(
    location: str | os.PathLike[str],
    *,
    text: str | None = None,
    n_tokens: int = N_TOKENS,
    n_threads: int | None = None,
) -> Capture:
    """Run a model once and note what its norms do.

    Args:
        location: of the model; it must be on this machine
            (:mod:`ggufnorm.formats.location`).
        text: what to run; None for the bundled text.
        n_tokens: of the text, fewer where the model's context is shorter.
        n_threads: CPU threads; None for all.

    Raises:
        InputError: the model cannot be opened, or is not on this machine.
        EngineMissingError: llama-cpp-python is not installed.
        MemoryLimitError: the model does not fit into the memory.
        EngineError: llama.cpp does not load the model, or fails or crashes with it.
    """
    path = local_path(location)
    with open_model(path) as file:
        n_ctx = min(
            n_tokens, file.metadata.integer(f"{file.architecture}.context_length") or n_tokens
        )
        require_memory([file], n_ctx, 1)
    job = {
        "file": os.fspath(path),
        "model": os.fspath(path),
        "text": (text or default_text())[: _LETTERS * n_ctx],
        "options": to_plain(EngineOptions(n_ctx, n_threads or os.cpu_count() or 1)),
    }
    return run_capture(job)


def run_capture(job: dict[str, Any]) -> Capture:
    """Do the job of :func:`watch` in a child process."""
    return from_plain(Capture, run_in_child(watch, job, lambda _message: None))


def watch(job: dict[str, Any], _emit: Emit, _stop: threading.Event) -> dict[str, Any]:
    """The child's part of :func:`capture`; the result is a plain Capture.

    Args:
        job: ``model`` is run with ``options`` on ``text``, ``file`` says what its norms are.
    """
    options = from_plain(EngineOptions, job["options"])
    with ExitStack() as stack:
        file = stack.enter_context(open_model(job["file"]))
        model = stack.enter_context(LlamaModel(job["model"], options))
        lane = Lane(model, options, frozenset(file.tensors), pin=False)
        stack.enter_context(lane.context)
        tokens = model.tokenize(job["text"])[: options.n_ctx]
        if len(tokens) == 0:
            raise EngineError(f"{file.path}: llama.cpp cuts the text into no tokens")
        batches = cut_chunk(model, tokens, 0, lane.context.max_batch)
        lane.plan(batches)
        watcher = Watcher(lane.graphs, file)
        lockstep = Lockstep([lane])
        lane.context.clear()
        for i, batch in enumerate(batches):
            lockstep.run(i, batch, watcher.meet)
        plain: dict[str, Any] = to_plain(watcher.result(len(tokens)))
        return plain


@dataclass
class _NormSum:
    """What is being gathered of one norm; ``rows`` are of the sample, the smallest first."""

    plan: NormPlan
    input_key: str
    output_key: str
    n_rows: int = 0
    zero_inputs: int = 0
    zero_outputs: int = 0
    spreads: list[NDArray[np.float64]] = field(default_factory=list)
    tokens: list[NDArray[np.int64]] = field(default_factory=list)
    residual: DifferenceSum = field(default_factory=DifferenceSum)
    sample: Sample | None = None


class Watcher:
    """Observes a walk of one lane; see :data:`ggufnorm.engines.llama.walk.Observer`."""

    def __init__(self, graphs: Sequence[Graph], file: ModelFile) -> None:
        self._file, self._weights = file, WeightCache(file)
        self._graphs = graphs
        self._half = {key for graph in graphs for key in _kept_in_f16(graph, file)}
        self._norms: dict[str, _NormSum] = {}
        for graph in graphs:
            for plan in graph.norms:
                into, out = (graph.nodes[i].key for i in (plan.input, plan.output))
                self._norms.setdefault(out, _NormSum(plan, into, out))
        self._last_use = {norm.input_key: out for out, norm in self._norms.items()}
        self._inputs: dict[str, Array] = {}
        self._skipped = {s.what: s for graph in graphs for s in graph.skipped}
        self._non_finite: Sighting | None = None
        self._peaks: dict[str, tuple[Stop, Peak]] = {}

    def meet(self, stop: Stop, batch: Batch, values: Sequence[Array]) -> None:
        """The one lane at a stop."""
        (value,) = values
        self._look(stop, batch, value)
        if stop.key in self._last_use:
            self._inputs[stop.key] = value.copy()
        norm = self._norms.get(stop.key)
        if norm is None:
            return
        x = self._inputs.get(norm.input_key)
        if x is None:
            self._skip(norm, "its input was not seen")
        else:
            self._add(norm, batch, x, value)
        if self._last_use[norm.input_key] == stop.key:
            self._inputs.pop(norm.input_key, None)

    def _skip(self, norm: _NormSum, reason: str) -> None:
        self._skipped.setdefault(norm.plan.key, Skipped(norm.plan.key, reason))

    def _look(self, stop: Stop, batch: Batch, value: Array) -> None:
        n_tokens, first = tokens_of(value.shape, batch)
        rows, first = token_rows(value, n_tokens), batch.first + first
        if self._non_finite is None and not np.isfinite(rows).all():
            row, channel = divmod(int(np.argmin(np.isfinite(rows))), rows.shape[1])
            token = first + row // max(1, len(rows) // max(1, n_tokens))
            found = float(rows[row, channel])
            self._non_finite = self._sighting(stop, Peak(found, token, channel))
        seen = PeakSum(self._peaks[stop.key][1] if stop.key in self._peaks else None)
        seen.add(rows, first, n_tokens)
        if seen.peak is not None and abs(seen.peak.value) > NARROW:
            self._peaks[stop.key] = stop, seen.peak

    def _sighting(self, stop: Stop, peak: Peak) -> Sighting:
        tensor = self._tensor(stop)
        return Sighting(
            node=stop.key,
            op=stop.op,
            tensor=tensor,
            layer=layer_of(tensor) if tensor else layer_of_node(stop.key),
            token=peak.token,
            channel=peak.channel,
            value=peak.value if np.isfinite(peak.value) else None,
            non_finite=_name(peak.value),
            in_f16=stop.key in self._half,
        )

    def _tensor(self, stop: Stop) -> str | None:
        """What a stop reads; of a norm the weight, unless only the bias is not finite."""
        norm = self._norms.get(stop.key)
        if norm is None or norm.plan.weight is None or norm.plan.bias is None:
            return stop.tensor
        weight, bias = norm.plan.weight, norm.plan.bias
        finite = [bool(np.isfinite(self._weights.get(name)).all()) for name in (weight, bias)]
        return bias if finite == [True, False] else weight

    def _add(self, norm: _NormSum, batch: Batch, x: Array, y: Array) -> None:
        n_tokens, first = tokens_of(x.shape, batch)
        rows = token_rows(x, n_tokens)
        norm.n_rows += len(rows)
        norm.zero_inputs += int((~rows.any(axis=1)).sum())
        norm.zero_outputs += int((~token_rows(y, n_tokens).any(axis=1)).sum())
        spread = _spread(norm.plan, rows)
        of_token = np.arange(len(spread)) * n_tokens // max(1, len(spread)) + batch.first + first
        seen = np.isfinite(spread) & (spread > 0)
        norm.spreads.append(spread[seen])
        norm.tokens.append(of_token[seen])
        try:
            expected = recompute(norm.plan, x, y.shape, self._weights)
        except (InputError, KeyError, ValueError) as error:
            self._skip(norm, str(error))
            return
        n_out, first_out = tokens_of(y.shape, batch)
        out, again = token_rows(y, n_out), token_rows(expected, n_out)
        norm.residual.add(again, out, batch.first + first_out, n_out)
        if norm.sample is None:
            norm.sample = _sample(norm.plan, x, y, self._weights)

    def result(self, n_tokens: int) -> Capture:
        """All that was seen."""
        n_samples = 0
        norms = []
        for norm in self._norms.values():
            residual = norm.residual.result().rel_l2
            odd = residual is not None and residual > KERNEL_RESIDUAL and n_samples < _MOST_SAMPLES
            n_samples += odd
            norms.append(self._norm(norm, residual, norm.sample if odd else None))
        return Capture(
            norms=tuple(norms),
            tensors=tuple(sorted(_read_tensors(self._graphs, self._file))),
            first_non_finite=self._non_finite,
            peaks=tuple(self._sighting(stop, peak) for stop, peak in self._peaks.values()),
            skipped=tuple(self._skipped.values()),
            n_tokens=n_tokens,
            engine=engine_version(),
        )

    def _norm(self, norm: _NormSum, residual: float | None, sample: Sample | None) -> NormCapture:
        plan, name = norm.plan, stated_norm(self._file, norm.plan, norm.output_key)
        return NormCapture(
            tensor=plan.weight,
            bias=plan.bias,
            node=norm.output_key,
            layer=name.layer,
            role=name.role,
            kind=plan.kind,
            epsilon=shortest_float32(plan.epsilon) if np.isfinite(plan.epsilon) else None,
            groups=plan.groups,
            n_rows=norm.n_rows,
            zero_inputs=norm.zero_inputs,
            zero_outputs=norm.zero_outputs,
            spread=_summary(norm),
            residual=residual,
            sample=sample,
        )


def _name(value: float) -> NonFinite | None:
    if np.isfinite(value):
        return None
    return "NaN" if np.isnan(value) else "infinity" if value > 0 else "-infinity"


def _spread(plan: NormPlan, rows: Array) -> NDArray[np.float64]:
    """What each row's epsilon is added to; empty for norms that have no one such number."""
    wide = rows.astype(np.float64)
    if plan.kind in ("l2", "group"):
        return np.empty(0)
    if plan.kind == "rms":
        return np.asarray(np.mean(wide**2, axis=1))
    return np.asarray(np.var(wide, axis=1))


def _summary(norm: _NormSum) -> Spread | None:
    if not any(part.size for part in norm.spreads):
        return None
    spreads, tokens = np.concatenate(norm.spreads), np.concatenate(norm.tokens)
    at = int(np.argmin(spreads))
    return Spread(float(spreads[at]), int(tokens[at]), float(np.median(spreads)))


def _sample(plan: NormPlan, x: Array, y: Array, weights: WeightCache) -> Sample | None:
    """Some rows from the smallest to the largest, as long as the longer of input and output."""
    width = x[0].size if plan.kind == "group" else max(x.shape[-1], y.shape[-1])
    if x.size == 0 or x.size % width:
        return None
    rows, out = x.reshape(-1, width), y.reshape(-1, width)
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.flatnonzero(np.isfinite(rows).all(axis=1) & np.isfinite(out).all(axis=1))
        by_size = finite[np.argsort((rows[finite] ** 2).sum(axis=1), kind="stable")]
    if by_size.size == 0:
        return None
    chosen = by_size[np.unique(np.linspace(0, by_size.size - 1, _SAMPLED_ROWS).astype(int))]

    def rows_of(name: str | None, shape: tuple[int, ...]) -> Rows | None:
        if name is None:
            return None
        full = np.broadcast_to(repeat(weights.get(name), shape, y.shape), y.shape)
        return _plain_rows(full.reshape(-1, width)[chosen])

    return Sample(
        input=_plain_rows(rows[chosen]),
        output=_plain_rows(out[chosen]),
        weight=rows_of(plan.weight, plan.weight_shape),
        bias=rows_of(plan.bias, plan.bias_shape),
    )


def _plain_rows(rows: Array) -> Rows:
    return tuple(tuple(row) for row in rows.astype(np.float64).tolist())


def _read_tensors(graphs: Iterable[Graph], file: ModelFile) -> set[str]:
    sources = (s for graph in graphs for node in graph.nodes for s in node.sources)
    return {s for s in sources if isinstance(s, str) and s in file.tensors}


_PRODUCTS = frozenset({"MUL_MAT", "MUL_MAT_ID", "FLASH_ATTN_EXT"})
_STORES = frozenset({"CPY", "SET_ROWS", "CAST", "DUP", "CONT"})
_SEEN_THROUGH = frozenset({"RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE", "CONT", "ROPE", "DUP"})


def _kept_in_f16(graph: Graph, file: ModelFile) -> Iterator[str]:
    """Keys of the nodes whose values llama.cpp turns into half precision somewhere.

    An F16 operand of a product wants the other in F16 too (``vec_dot_type`` of
    ``ggml_get_type_traits_cpu`` in ``ggml/src/ggml-cpu/ggml-cpu.c``).
    """

    def origins(source: int | str) -> Iterator[str]:
        while not isinstance(source, str):
            node = graph.nodes[source]
            yield node.key
            if node.op not in _SEEN_THROUGH:
                return
            source = node.sources[0]

    def dtype(source: int | str) -> str | None:
        if isinstance(source, int):
            return graph.nodes[source].dtype
        return file.tensors[source].dtype if source in file.tensors else None

    for node in graph.nodes:
        if node.dtype == "F16":
            yield node.key
            if node.op in _STORES and node.sources:
                yield from origins(node.sources[0])
        if node.op in _PRODUCTS:
            half = [dtype(source) == "F16" for source in node.sources[:3]]
            if any(half):
                for source, already in zip(node.sources[:3], half, strict=False):
                    if not already:
                        yield from origins(source)
