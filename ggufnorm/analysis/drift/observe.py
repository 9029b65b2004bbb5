"""Turns the values that the lanes show into sums per operation and per norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.metrics import ChannelSum, DifferenceSum, Peak, PeakSum, compare
from ggufnorm.core.model import Skipped
from ggufnorm.core.norms import normalize
from ggufnorm.engines.llama.graph import Graph, NormPlan, Stop
from ggufnorm.engines.llama.session import Batch
from ggufnorm.errors import InputError
from ggufnorm.formats.dequantize import read_tensor
from ggufnorm.formats.model_file import ModelFile

Array = NDArray[np.float32]

_BLOCK = 1 << 15
"""Elements normalized at a time: few enough to stay in a core's cache in float64."""

REFERENCE, FREE, PINNED, FLOOR = 0, 1, 2, 3
"""The lanes of a drift run; the last is the reference again, if its own noise is asked for."""


class WeightCache:
    """Norm weights of one file as float32, each read once."""

    def __init__(self, file: ModelFile) -> None:
        self.file = file
        self._read: dict[str, Array] = {}

    def get(self, name: str) -> Array:
        """The values, in NumPy's order."""
        if name not in self._read:
            self._read[name] = read_tensor(self.file, name)
        return self._read[name]


@dataclass
class NormSum:
    """What is being gathered of one norm.

    Attributes:
        plan: in the model under test.
        ref_plan: in the reference.
        input_key: of the stop that holds the input.
        output_key: of the stop that holds the result.
        kernel: llama.cpp's result against NumPy's, under test.
        kernel_ref: the same in the reference.
        weight: the reference's recompute with the other weight and bias against itself.
        epsilon: with the other epsilon.
        input: with the other input.
    """

    plan: NormPlan
    ref_plan: NormPlan
    input_key: str
    output_key: str
    kernel: DifferenceSum = field(default_factory=DifferenceSum)
    kernel_ref: DifferenceSum = field(default_factory=DifferenceSum)
    weight: DifferenceSum = field(default_factory=DifferenceSum)
    epsilon: DifferenceSum = field(default_factory=DifferenceSum)
    input: DifferenceSum = field(default_factory=DifferenceSum)

    PARTS = ("kernel", "kernel_ref", "weight", "epsilon", "input")


@dataclass
class StopSum:
    """What is being gathered of one stop.

    Attributes:
        free: drift in the free run.
        pinned: drift with the reference's values upstream.
        peak: largest value in the free run.
        peak_ref: largest value in the reference.
        channels: energies per channel, of residual sums only.
    """

    free: DifferenceSum = field(default_factory=DifferenceSum)
    pinned: DifferenceSum = field(default_factory=DifferenceSum)
    peak: PeakSum = field(default_factory=PeakSum)
    peak_ref: PeakSum = field(default_factory=PeakSum)
    channels: ChannelSum | None = None


@dataclass(frozen=True)
class Rows:
    """A value as ``(rows, channels)``, and which tokens its rows belong to.

    Attributes:
        values: with the rows of one token side by side.
        first_token: counted from 0 over the whole run.
        n_tokens: that the rows are shared out to evenly.
        stride: from the number of one token to that of the next.
    """

    values: Array
    first_token: int
    n_tokens: int
    stride: int = 1

    @classmethod
    def of(cls, value: Array, batch: Batch) -> Rows:
        """All rows of a stop's value."""
        n_tokens, first = tokens_of(value.shape, batch)
        return cls(token_rows(value, n_tokens), batch.first + first, n_tokens)

    @property
    def place(self) -> tuple[int, int, int]:
        """How the sums number the tokens."""
        return self.first_token, self.n_tokens, self.stride

    def compare(self, *observed: tuple[DifferenceSum, Rows], peaks: Sequence[PeakSum] = ()) -> None:
        """Add the distances of other rows of the same tokens to sums; see :func:`compare`."""
        others = [(total, rows.values) for total, rows in observed]
        compare(self.values, others, *self.place, peaks=peaks)


class Comparison:
    """Observes a lockstep walk; see :data:`ggufnorm.engines.llama.walk.Observer`.

    Attributes:
        stops: per stop's key.
        norms: per norm's key, in graph order.
        skipped: norms that could not be recomputed or have no partner, and why.
    """

    def __init__(
        self,
        graphs: Sequence[tuple[Graph, Graph]],
        files: dict[int, ModelFile],
    ) -> None:
        """Prepare for the graphs (reference's and quant's) of each batch of a chunk."""
        self.stops: dict[str, StopSum] = {}
        self.norms: dict[str, NormSum] = {}
        self.skipped: dict[str, Skipped] = {}
        self._weights = {lane: WeightCache(file) for lane, file in files.items()}
        self._inputs: dict[int, dict[str, Array]] = {REFERENCE: {}, FREE: {}}
        for reference, quant in graphs:
            self._pair_norms(reference, quant)

    def _pair_norms(self, reference: Graph, quant: Graph) -> None:
        theirs = {n.key: n for n in quant.norms}
        for ref_plan in reference.norms:
            plan = theirs.pop(ref_plan.key, None)
            if plan is None:
                self._skip(ref_plan.key, "the other model's graph has no such norm")
                continue
            into, out = (reference.nodes[i].key for i in (ref_plan.input, ref_plan.output))
            self.norms.setdefault(ref_plan.key, NormSum(plan, ref_plan, into, out))
        for key in theirs:
            self._skip(key, "the reference's graph has no such norm")

    def _skip(self, what: str, reason: str) -> None:
        self.skipped.setdefault(what, Skipped(what, reason))

    @cached_property
    def _by_output(self) -> dict[str, list[NormSum]]:
        found: dict[str, list[NormSum]] = {}
        for norm in self.norms.values():
            found.setdefault(norm.output_key, []).append(norm)
        return found

    @cached_property
    def _last_use(self) -> dict[str, str]:
        """For each norm input's key, the output's key of the last norm that takes it."""
        return {norm.input_key: norm.output_key for norm in self.norms.values()}

    def meet(self, stop: Stop, batch: Batch, values: Sequence[Array]) -> None:
        """All lanes at a stop; see :data:`ggufnorm.engines.llama.walk.Observer`."""
        reference, free, *pinned = (Rows.of(value, batch) for value in values[:FLOOR])
        self._add(stop, reference, free, *pinned)
        for lane in (REFERENCE, FREE):
            self._hold(lane, stop, values[lane])
        for norm in self._by_output.get(stop.key, ()):
            self._split(norm, batch, values)
        self._release(stop)

    def _add(self, stop: Stop, reference: Rows, free: Rows, *pinned: Rows) -> None:
        """The values at a stop beside the reference's."""
        total = self.stops.setdefault(stop.key, StopSum())
        observed = [(total.free, free), *((total.pinned, rows) for rows in pinned)]
        reference.compare(*observed, peaks=(total.peak_ref, total.peak))
        if stop.role == "residual":
            if total.channels is None:
                total.channels = ChannelSum(free.values.shape[1])
            total.channels.add(reference.values, free.values)

    def _hold(self, lane: int, stop: Stop, value: Array) -> None:
        if stop.key in self._last_use:
            self._inputs[lane][stop.key] = value.copy()

    def _release(self, stop: Stop) -> None:
        for norm in self._by_output.get(stop.key, ()):
            if self._last_use[norm.input_key] == stop.key:
                for held in self._inputs.values():
                    held.pop(norm.input_key, None)

    def _expect(
        self, norm: NormSum, batch: Batch, value: Array, *, x: int, plan: int, weights: int
    ) -> Rows | None:
        """What NumPy makes of a norm, given the lanes of its input, epsilon and weights."""
        held = self._inputs[x].get(norm.input_key)
        chosen = norm.ref_plan if plan == REFERENCE else norm.plan
        y = self._recompute(chosen, held, value.shape, weights)
        return None if y is None else Rows.of(y, batch)

    def _split(self, norm: NormSum, batch: Batch, values: Sequence[Array]) -> None:
        """Add to a norm's kernel residuals and to the parts of its drift."""
        expect = partial(self._expect, norm, batch, values[REFERENCE])
        base = expect(x=REFERENCE, plan=REFERENCE, weights=REFERENCE)
        free = expect(x=FREE, plan=FREE, weights=FREE)
        if free is not None:
            free.compare((norm.kernel, Rows.of(values[FREE], batch)))
        if base is None:
            return
        observed = [(norm.kernel_ref, Rows.of(values[REFERENCE], batch))]
        if free is not None:
            same_weight = self._same_weight(norm)
            same_epsilon = norm.plan.epsilon == norm.ref_plan.epsilon
            parts = {
                "input": free
                if same_weight and same_epsilon
                else expect(x=FREE, plan=REFERENCE, weights=REFERENCE),
                "weight": base
                if same_weight
                else expect(x=REFERENCE, plan=REFERENCE, weights=FREE),
                "epsilon": base
                if same_epsilon
                else expect(x=REFERENCE, plan=FREE, weights=REFERENCE),
            }
            observed += [(getattr(norm, part), rows or base) for part, rows in parts.items()]
        base.compare(*observed)

    def _same_weight(self, norm: NormSum) -> bool:
        names = [n for n in (norm.plan.weight, norm.plan.bias) if n]
        ref, quant = self._weights[REFERENCE], self._weights[FREE]
        return all(np.array_equal(ref.get(n), quant.get(n)) for n in names)

    def _recompute(
        self, plan: NormPlan, x: Array | None, shape: tuple[int, ...], lane: int
    ) -> Array | None:
        if x is None:
            return None
        try:
            return recompute(plan, x, shape, self._weights[lane])
        except (InputError, KeyError, ValueError) as error:
            self._skip(f"recompute of {plan.key}", str(error))
            return None

    def state(self) -> dict[str, Any]:
        """All that was gathered, as plain data that JSON keeps exactly."""
        return {
            "stops": {key: _stop_state(total) for key, total in self.stops.items()},
            "norms": {
                key: {part: getattr(norm, part).state() for part in NormSum.PARTS}
                for key, norm in self.norms.items()
            },
            "skipped": [[s.what, s.reason] for s in self.skipped.values()],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state` of the same job."""
        self.stops = {key: _stop_from_state(data) for key, data in state["stops"].items()}
        for key, parts in state["norms"].items():
            for part, data in parts.items():
                setattr(self.norms[key], part, DifferenceSum.from_state(data))
        for what, reason in state["skipped"]:
            self._skip(what, reason)


def _stop_state(total: StopSum) -> dict[str, Any]:
    peaks = {
        name: None if peak is None else [peak.value, peak.token, peak.channel]
        for name, peak in (("peak", total.peak.peak), ("peak_ref", total.peak_ref.peak))
    }
    channels = total.channels and [
        total.channels.reference.tolist(),
        total.channels.error.tolist(),
    ]
    return {
        "free": total.free.state(),
        "pinned": total.pinned.state(),
        "channels": channels,
        **peaks,
    }


def _stop_from_state(data: dict[str, Any]) -> StopSum:
    channels = None
    if data["channels"]:
        channels = ChannelSum(len(data["channels"][0]))
        channels.reference, channels.error = (np.array(v) for v in data["channels"])
    return StopSum(
        free=DifferenceSum.from_state(data["free"]),
        pinned=DifferenceSum.from_state(data["pinned"]),
        peak=PeakSum(data["peak"] and Peak(*data["peak"])),
        peak_ref=PeakSum(data["peak_ref"] and Peak(*data["peak_ref"])),
        channels=channels,
    )


def recompute(
    plan: NormPlan,
    x: Array,
    shape: tuple[int, ...],
    weights: WeightCache,
) -> Array:
    """A norm's result in NumPy, from its input and the file's own weight and bias.

    Args:
        plan: of the norm, with the epsilon that the graph uses.
        x: the input, ``(ne[3], ne[2], ne[1], ne[0])``.
        shape: of the result, in the same order.
        weights: of the file.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    if x.size == 0:
        return np.empty(shape, np.float32)
    rows = x.reshape(-1, x.shape[-1])
    weight = _as_used(weights, plan.weight, plan.weight_shape, shape, rows.shape)
    bias = _as_used(weights, plan.bias, plan.bias_shape, shape, rows.shape)
    grouped = _group_norm(plan, x).reshape(rows.shape) if plan.kind == "group" else None
    y = np.empty(rows.shape, np.float32)
    step = max(1, _BLOCK // rows.shape[1])
    for block in (slice(i, i + step) for i in range(0, len(rows), step)):
        part = y[block]
        if grouped is None:
            part[:] = normalize(plan.kind, rows[block], epsilon=plan.epsilon)
        else:
            part[:] = grouped[block]
        if weight is not None:
            part *= weight[block]
        if bias is not None:
            part += bias[block]
    return y.reshape(shape)


def _as_used(
    weights: WeightCache,
    name: str | None,
    ne: tuple[int, ...],
    shape: tuple[int, ...],
    rows: tuple[int, ...],
) -> Array | None:
    """A weight as the graph uses it for a result of that shape, cut into the norm's rows."""
    if name is None:
        return None
    return np.broadcast_to(repeat(weights.get(name), ne, shape), shape).reshape(rows)


def _group_norm(plan: NormPlan, x: Array) -> Array:
    # ggml counts channels on ne[2], and each group's statistics reach over ne[0] and
    # ne[1] too (ggml_compute_forward_group_norm_f32): one sample is one flat row.
    groups = plan.groups or 0
    if groups < 1 or x.shape[1] % groups:
        raise ValueError(f"{groups} groups do not divide {x.shape[1]} channels")
    flat = normalize("group", x.reshape(x.shape[0], -1), epsilon=plan.epsilon, groups=groups)
    return flat.reshape(x.shape)


def repeat(values: Array, ne: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """A weight in the shape in which the graph uses it, repeated as ggml repeats it."""
    values = values.reshape((*(1,) * (len(shape) - len(ne)), *ne[::-1]))
    times = [
        1 if have == 1 else want // have for want, have in zip(shape, values.shape, strict=True)
    ]
    return np.tile(values, times) if max(times) > 1 else values


def tokens_of(shape: tuple[int, ...], batch: Batch) -> tuple[int, int]:
    """How many tokens a value covers, and the first of them within its batch.

    After the last layer's attention only the rows that give logits are left; those are
    the batch's last ones.
    """
    n = len(batch.tokens)
    if n in shape[:-1]:
        return n, 0
    if batch.n_outputs and batch.n_outputs in shape[:-1]:
        return batch.n_outputs, n - batch.n_outputs
    return 1, 0


def token_rows(value: Array, n_tokens: int) -> Array:
    """``(rows, channels)`` with the rows of one token side by side."""
    if value.size == 0:
        return value.reshape(0, value.shape[-1])
    axes = value.shape[:-1]
    if n_tokens in axes:
        value = np.moveaxis(value, axes.index(n_tokens), 0)
    return np.ascontiguousarray(value).reshape(-1, value.shape[-1])
