"""What every norm of one model does on a text: kinds, epsilons, spreads, residuals, peaks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.capture import Capture, NonFinite, NormCapture, Rows, Sample, Sighting, Spread
from ggufnorm.core.floats import F16_MAX, shortest_float32
from ggufnorm.core.metrics import DifferenceSum, Peak, PeakSum
from ggufnorm.core.model import Skipped
from ggufnorm.core.tokens import token_rows
from ggufnorm.core.tolerances import KERNEL_RESIDUAL
from ggufnorm.engines.base import Activation, Batch, EngineInfo, Graph, HookPoint, NormPlan, rows_of
from ggufnorm.engines.llama.stated import stated_norm
from ggufnorm.errors import InputError
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.naming import layer_of
from ggufnorm.runs.recompute import WeightCache, recompute, repeat
from ggufnorm.runs.session import Probe

Array = NDArray[np.float32]

_SAMPLED_ROWS = 4
_MOST_SAMPLES = 16
"""Norms of which rows are kept, the first that are out of line."""
NARROW = F16_MAX / 4
"""Values above this are noted."""


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


class NormCaptures(Probe):
    """Watches the one replica of a run.

    Args:
        graphs: of each batch of a chunk.
        file: that says what the norms are.
    """

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
        self._peaks: dict[str, tuple[HookPoint, Peak]] = {}

    def observe(self, hook: HookPoint, batch: Batch, values: Sequence[Activation]) -> None:
        """The one replica at a hook point."""
        value = values[0].value
        self._note_peak(hook, batch, value)
        if hook.key in self._last_use:
            self._inputs[hook.key] = value.copy()
        norm = self._norms.get(hook.key)
        if norm is None:
            return
        x = self._inputs.get(norm.input_key)
        if x is None:
            self._skip(norm, "its input was not seen")
        else:
            self._add(norm, batch, x, value)
        if self._last_use[norm.input_key] == hook.key:
            self._inputs.pop(norm.input_key, None)

    def _skip(self, norm: _NormSum, reason: str) -> None:
        self._skipped.setdefault(norm.plan.key, Skipped(norm.plan.key, reason))

    def _note_peak(self, hook: HookPoint, batch: Batch, value: Array) -> None:
        found = rows_of(value, batch)
        rows, first, n_tokens = found.values, found.first_token, found.n_tokens
        if self._non_finite is None and not np.isfinite(rows).all():
            row, channel = divmod(int(np.argmin(np.isfinite(rows))), rows.shape[1])
            token = first + row // max(1, len(rows) // max(1, n_tokens))
            self._non_finite = self._sighting(hook, Peak(float(rows[row, channel]), token, channel))
        seen = PeakSum(self._peaks[hook.key][1] if hook.key in self._peaks else None)
        seen.add(rows, first, n_tokens)
        if seen.peak is not None and abs(seen.peak.value) > NARROW:
            self._peaks[hook.key] = hook, seen.peak

    def _sighting(self, hook: HookPoint, peak: Peak) -> Sighting:
        tensor = self._tensor(hook)
        return Sighting(
            node=hook.key,
            op=hook.op,
            tensor=tensor,
            layer=layer_of(tensor) if tensor else hook.layer,
            token=peak.token,
            channel=peak.channel,
            value=peak.value if np.isfinite(peak.value) else None,
            non_finite=_name(peak.value),
            in_f16=hook.key in self._half,
        )

    def _tensor(self, hook: HookPoint) -> str | None:
        """What a hook point reads; of a norm the weight, unless only the bias is not finite."""
        norm = self._norms.get(hook.key)
        if norm is None or norm.plan.weight is None or norm.plan.bias is None:
            return hook.tensor
        weight, bias = norm.plan.weight, norm.plan.bias
        finite = [bool(np.isfinite(self._weights.get(name)).all()) for name in (weight, bias)]
        return bias if finite == [True, False] else weight

    def _add(self, norm: _NormSum, batch: Batch, x: Array, y: Array) -> None:
        into, out = rows_of(x, batch), rows_of(y, batch)
        rows = into.values
        norm.n_rows += len(rows)
        norm.zero_inputs += int((~rows.any(axis=1)).sum())
        norm.zero_outputs += int((~token_rows(y, into.n_tokens).any(axis=1)).sum())
        spread = _spread(norm.plan, rows)
        tokens = np.arange(len(spread)) * into.n_tokens // max(1, len(spread)) + into.first_token
        seen = np.isfinite(spread) & (spread > 0)
        norm.spreads.append(spread[seen])
        norm.tokens.append(tokens[seen])
        try:
            expected = recompute(norm.plan, x, y.shape, self._weights)
        except (InputError, KeyError, ValueError) as error:
            self._skip(norm, str(error))
            return
        rows_of(expected, batch).compare((norm.residual, out))
        if norm.sample is None:
            norm.sample = _sample(norm.plan, x, y, self._weights)

    def result(self, n_tokens: int, engine: EngineInfo) -> Capture:
        """All that was seen.

        Args:
            n_tokens: of the text.
            engine: that ran it.
        """
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
            peaks=tuple(self._sighting(hook, peak) for hook, peak in self._peaks.values()),
            skipped=tuple(self._skipped.values()),
            n_tokens=n_tokens,
            engine=engine.engine,
            build=engine.build,
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
