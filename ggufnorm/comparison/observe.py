"""Turns the values that the lanes show into statistics per operation and per norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.metrics import DifferenceSum
from ggufnorm.core.model import Skipped
from ggufnorm.core.norms import normalize
from ggufnorm.engines.llama.graph import Graph, NormPlan, Stop
from ggufnorm.engines.llama.walk import Batch
from ggufnorm.errors import InputError
from ggufnorm.formats.dequantize import read_tensor
from ggufnorm.formats.model_file import ModelFile

Array = NDArray[np.float32]

REFERENCE, FREE, PINNED = 0, 1, 2
"""The lanes of a drift run."""


@dataclass
class _NormSum:
    """What is being gathered of one norm."""

    plan: NormPlan
    ref_plan: NormPlan
    input_key: str
    output_key: str
    residual: dict[int, DifferenceSum] = field(
        default_factory=lambda: {REFERENCE: DifferenceSum(), FREE: DifferenceSum()}
    )


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


class Comparison:
    """Observes a lockstep walk; see :class:`ggufnorm.engines.llama.walk.Observer`.

    Attributes:
        free: per stop's key, drift in the free run.
        pinned: per stop's key, drift with the reference's values upstream.
        norms: per norm's key, in graph order.
        skipped: norms that could not be recomputed, and why.
    """

    def __init__(self, graphs: Sequence[tuple[Graph, Graph]], files: dict[int, ModelFile]) -> None:
        """Prepare for the graphs (reference's and quant's) of each batch of a chunk."""
        self.free: dict[str, DifferenceSum] = {}
        self.pinned: dict[str, DifferenceSum] = {}
        self.norms: dict[str, _NormSum] = {}
        self.skipped: dict[str, Skipped] = {}
        self.first_token = 0
        self._weights = {lane: WeightCache(file) for lane, file in files.items()}
        self._held: dict[int, dict[str, Array]] = {REFERENCE: {}, FREE: {}}
        for reference, quant in graphs:
            self._pair_norms(reference, quant)

    def _pair_norms(self, reference: Graph, quant: Graph) -> None:
        theirs = {n.key: n for n in quant.norms}
        for ref_plan in reference.norms:
            plan = theirs.get(ref_plan.key)
            if plan is None:
                self._skip(ref_plan.key, "the other model's graph has no such norm")
                continue
            self.norms.setdefault(
                ref_plan.key,
                _NormSum(
                    plan,
                    ref_plan,
                    reference.nodes[ref_plan.input].key,
                    reference.nodes[ref_plan.output].key,
                ),
            )
        known = {n.key for n in reference.norms}
        for key in theirs.keys() - known:
            self._skip(key, "the reference's graph has no such norm")

    def _skip(self, what: str, reason: str) -> None:
        self.skipped.setdefault(what, Skipped(what, reason))

    @cached_property
    def _by_output(self) -> dict[str, list[_NormSum]]:
        found: dict[str, list[_NormSum]] = {}
        for norm in self.norms.values():
            found.setdefault(norm.output_key, []).append(norm)
        return found

    @cached_property
    def _last_use(self) -> dict[str, str]:
        """For each norm input's key, the output's key of the last norm that takes it."""
        return {norm.input_key: norm.output_key for norm in self.norms.values()}

    def reference(self, stop: Stop, batch: Batch, value: Array) -> None:
        """Lane 0 at a stop."""
        self._recompute(REFERENCE, stop, batch, value)

    def compare(self, stop: Stop, lane: int, batch: Batch, reference: Array, value: Array) -> None:
        """Another lane at the same stop."""
        if lane == FREE:
            self._recompute(FREE, stop, batch, value)
        totals = self.free if lane == FREE else self.pinned
        self._add(totals.setdefault(stop.key, DifferenceSum()), reference, value, batch)

    def _add(self, total: DifferenceSum, reference: Array, value: Array, batch: Batch) -> None:
        n_tokens, first = rows_of(value.shape, batch)
        total.add(
            token_rows(reference, n_tokens),
            token_rows(value, n_tokens),
            self.first_token + batch.position + first,
            n_tokens,
        )

    def _recompute(self, lane: int, stop: Stop, batch: Batch, value: Array) -> None:
        held = self._held[lane]
        for norm in self._by_output.get(stop.key, ()):
            x = held.get(norm.input_key)
            if x is None:
                continue
            try:
                plan = norm.plan if lane == FREE else norm.ref_plan
                expected = recompute(plan, x, value.shape, self._weights[lane])
            except (InputError, ValueError) as error:
                self._skip(f"recompute of {norm.plan.key}", str(error))
            else:
                self._add(norm.residual[lane], expected, value, batch)
            if self._last_use[norm.input_key] == stop.key:
                held.pop(norm.input_key, None)
        if stop.key in self._last_use:
            held[stop.key] = value


def recompute(plan: NormPlan, x: Array, shape: tuple[int, ...], weights: WeightCache) -> Array:
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
    if plan.kind == "group":
        y = _group_norm(plan, x)
    else:
        y = normalize(plan.kind, x, epsilon=plan.epsilon)
    y = y.reshape(shape)
    if plan.weight is not None:
        y = y * _repeat(weights.get(plan.weight), plan.weight_shape, shape)
    if plan.bias is not None:
        y = y + _repeat(weights.get(plan.bias), plan.bias_shape, shape)
    return y


def _group_norm(plan: NormPlan, x: Array) -> Array:
    # ggml counts channels on ne[2], and each group's statistics reach over ne[0] and
    # ne[1] too (ggml_compute_forward_group_norm_f32): one sample is one flat row.
    groups = plan.groups or 0
    if groups < 1 or x.shape[1] % groups:
        raise ValueError(f"{groups} groups do not divide {x.shape[1]} channels")
    flat = normalize("group", x.reshape(x.shape[0], -1), epsilon=plan.epsilon, groups=groups)
    return flat.reshape(x.shape)


def _repeat(values: Array, ne: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """A weight in the shape in which the graph uses it, repeated as ggml repeats it."""
    values = values.reshape((*(1,) * (len(shape) - len(ne)), *ne[::-1]))
    times = [
        1 if have == 1 else want // have for want, have in zip(shape, values.shape, strict=True)
    ]
    return np.tile(values, times) if max(times) > 1 else values


def rows_of(shape: tuple[int, ...], batch: Batch) -> tuple[int, int]:
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
