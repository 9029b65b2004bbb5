"""Settings of the quantizer that would help, each tried: the file is changed in memory and run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ggufnorm.analysis.drift.onnx.culprits import LEAST_SHARE, MOST_CULPRITS
from ggufnorm.analysis.drift.onnx.explain import (
    fresh_ranges,
    fresh_weights,
    may_be_by_channel,
    merged,
)
from ggufnorm.analysis.drift.onnx.hooks import Hook, Sides
from ggufnorm.analysis.drift.onnx.measure import HookSums, Outputs
from ggufnorm.core.model import Skipped
from ggufnorm.core.onnx_drift import Remedy, Scheme
from ggufnorm.engines.onnx.cut import Change, Session, whole
from ggufnorm.engines.onnx.graft import grafted
from ggufnorm.errors import EngineError, InputError

Build = Callable[[], Any]


def try_remedies(
    sides: Sides,
    scheme: Scheme,
    hooks: Sequence[Hook],
    shares: Mapping[str, float],
    sums: Mapping[str, HookSums],
    outputs: Outputs,
    main: str,
    damaged: Sequence[Hook] = (),
) -> tuple[list[Remedy], list[Skipped]]:
    """Measure what settings make of the main output's error, the best first.

    Args:
        sides: both graphs.
        scheme: how the file under test was made.
        hooks: whose results differ by more than rounding.
        shares: of the output's error, by hook.
        sums: ranges of the reference's values.
        outputs: of the reference.
        main: the output whose error is measured.
        damaged: whose integers or scales are not what the same settings give.
    """
    found, skipped = [], []
    candidates = [
        *_again(sides, damaged, sums),
        *_candidates(sides, scheme, hooks, shares, sums),
    ]
    for setting, nodes, n_bytes, build in candidates:
        try:
            session = Session(build(), sides.quant, sides.n_threads)
            difference = outputs.of(session)[main].result()
        except (EngineError, InputError) as error:
            skipped.append(Skipped(setting, str(error)))
            continue
        distance = None if difference.cosine is None else 1 - difference.cosine
        finite = None if difference.non_finite_rows else difference.rel_l2
        found.append(Remedy(setting, nodes, finite, distance, n_bytes))
    found.sort(key=lambda r: np.inf if r.rel_l2 is None else r.rel_l2)
    return found, skipped


def _again(
    sides: Sides, damaged: Sequence[Hook], sums: Mapping[str, HookSums]
) -> Iterator[tuple[str, tuple[str, ...], int, Build]]:
    """The same settings once more, for operations whose integers or scales are wrong."""
    for hook in damaged[:MOST_CULPRITS]:
        change = merged(fresh_weights(sides, [hook]), fresh_ranges(sides, [hook], sums))
        if change.constants:
            yield "the same settings, quantized again", (hook.label,), 0, _changed(sides, change)


def _changed(sides: Sides, change: Change) -> Build:
    return lambda: whole(sides.quant, change)


def _candidates(
    sides: Sides,
    scheme: Scheme,
    hooks: Sequence[Hook],
    shares: Mapping[str, float],
    sums: Mapping[str, HookSums],
) -> Iterator[tuple[str, tuple[str, ...], int, Build]]:
    ranked = sorted(hooks, key=lambda h: -shares.get(h.name, 0.0))
    costly = [h for h in ranked if _is_costly(h, shares, sums)][:MOST_CULPRITS]
    exclude, by_type = _WORDS[scheme]
    for hook in costly:
        setting = exclude.format(repr(hook.label))
        yield setting, (hook.label,), _float_bytes(sides, [hook]), _floating(sides, [hook])
    if len(costly) > 1:
        setting = exclude.format(", ".join(repr(h.label) for h in costly))
        labels = tuple(h.label for h in costly)
        yield setting, labels, _float_bytes(sides, costly), _floating(sides, costly)
    by_tensor = [h for h in hooks if any(may_be_by_channel(sides, site) for site in h.sites)]
    change = fresh_weights(sides, by_tensor, per_channel=True)
    if change.constants:
        labels = tuple(h.label for h in by_tensor)
        extra = sum(v.nbytes for v in change.constants.values()) - sum(
            _bytes_of(sides, name) for name in change.constants
        )
        yield "per_channel=True", labels, extra, _changed(sides, change)
    rounded = [h for h in hooks if h.rounded]
    if rounded:
        ranges = fresh_ranges(sides, rounded, sums)
        yield (
            "calibration on these inputs (MinMax)",
            tuple(h.label for h in rounded),
            0,
            _changed(sides, ranges),
        )
    made = [h for h in sides.hooks if h.is_quantized or scheme == "half"]
    types = dict.fromkeys(h.op for h in made)
    for op in types if len(types) > 1 and by_type else ():
        of_type = [h for h in made if h.op == op]
        if len(of_type) > 1 and sum(shares.get(h.name, 0.0) for h in of_type) >= LEAST_SHARE:
            labels = tuple(h.label for h in of_type)
            setting = by_type.format(repr(op))
            yield setting, labels, _float_bytes(sides, of_type), _floating(sides, of_type)


_WORDS: Mapping[Scheme, tuple[str, str]] = {
    "dynamic": ("nodes_to_exclude=[{}]", "op_types_to_quantize without {}"),
    "static": ("nodes_to_exclude=[{}]", "op_types_to_quantize without {}"),
    "weights": ("nodes_to_exclude=[{}]", ""),
    "half": ("node_block_list=[{}]", "op_block_list=[{}]"),
    "float": ("the reference's operation in place of {}", ""),
}
"""How a scheme's converter is told to leave an operation in float, and a type of operations:
``quantize_dynamic``, ``quantize_static`` and ``MatMulNBitsQuantizer``, and
``float16.convert_float_to_float16``."""


def _is_costly(hook: Hook, shares: Mapping[str, float], sums: Mapping[str, HookSums]) -> bool:
    broken = sums[hook.name].local.non_finite_rows > 0
    return broken or shares.get(hook.name, 0.0) >= LEAST_SHARE


def _floating(sides: Sides, hooks: Sequence[Hook]) -> Build:
    grafts = [hook.graft for hook in hooks]
    return lambda: grafted(sides.quant, sides.ref, grafts, sides.by_ref)


def _float_bytes(sides: Sides, hooks: Sequence[Hook]) -> int:
    """What the file grows by if the reference's matrices are put back."""
    matrices = {h.matrix for h in hooks if h.matrix is not None}
    weights = sides.pairing.weights
    stored = [n for n, _dtype, _shape in sides.quant.matrices() if weights.of(n) in matrices]
    return sum(map(sides.ref.n_bytes, matrices)) - sum(map(sides.quant.n_bytes, stored))


def _bytes_of(sides: Sides, name: str) -> int:
    value = sides.quant.constant(name)
    return 0 if value is None else value.nbytes
