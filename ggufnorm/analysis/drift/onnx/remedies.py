"""Settings of the quantizer that would help, each tried: the file is changed in memory and run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ggufnorm.analysis.drift.onnx.explain import fresh_ranges, fresh_weights
from ggufnorm.analysis.drift.onnx.hooks import Hook, Sides
from ggufnorm.analysis.drift.onnx.measure import HookSums, Outputs
from ggufnorm.core.model import Skipped
from ggufnorm.core.onnx_drift import Remedy, Scheme
from ggufnorm.engines.onnx.cut import Session, grafted, whole
from ggufnorm.errors import EngineError, InputError

_MOST_EXCLUDED = 3
"""Operations that are left out one by one, the costliest first."""
_LEAST_SHARE = 0.05

Build = Callable[[], Any]


def try_remedies(
    sides: Sides,
    scheme: Scheme,
    hooks: Sequence[Hook],
    shares: Mapping[str, float],
    sums: Mapping[str, HookSums],
    outputs: Outputs,
    main: str,
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
    """
    found, skipped = [], []
    for setting, nodes, n_bytes, build in _candidates(sides, scheme, hooks, shares, sums):
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


def _candidates(
    sides: Sides,
    scheme: Scheme,
    hooks: Sequence[Hook],
    shares: Mapping[str, float],
    sums: Mapping[str, HookSums],
) -> Iterator[tuple[str, tuple[str, ...], int, Build]]:
    ranked = sorted(hooks, key=lambda h: -shares.get(h.name, 0.0))
    costly = [h for h in ranked if _is_costly(h, shares, sums)][:_MOST_EXCLUDED]
    exclude, by_type = _WORDS[scheme]
    for hook in costly:
        setting = exclude.format(repr(hook.label))
        yield setting, (hook.label,), _float_bytes(sides, [hook]), _floating(sides, [hook])
    by_tensor = [h for h in hooks if any(not s.per_channel for s in h.sites)]
    change = fresh_weights(sides, by_tensor, per_channel=True)
    if change.constants:
        labels = tuple(h.label for h in by_tensor)
        extra = sum(v.nbytes for v in change.constants.values()) - sum(
            _bytes_of(sides, name) for name in change.constants
        )
        yield "per_channel=True", labels, extra, lambda: whole(sides.quant, change)
    rounded = [h for h in hooks if h.rounded]
    if rounded:
        ranges = fresh_ranges(sides, rounded, sums)
        yield (
            "calibration on these inputs (MinMax)",
            tuple(h.label for h in rounded),
            0,
            lambda: whole(sides.quant, ranges),
        )
    types = list(dict.fromkeys(h.op for h in hooks if h.sites or scheme == "half"))
    for op in types if len(types) > 1 else ():
        of_type = [h for h in hooks if h.op == op]
        if sum(shares.get(h.name, 0.0) for h in of_type) >= _LEAST_SHARE:
            rest = [t for t in types if t != op]
            setting = by_type.format(rest if scheme != "half" else [op])
            labels = tuple(h.label for h in of_type)
            yield setting, labels, _float_bytes(sides, of_type), _floating(sides, of_type)


_WORDS: Mapping[Scheme, tuple[str, str]] = {
    "dynamic": ("nodes_to_exclude=[{}]", "op_types_to_quantize={}"),
    "static": ("nodes_to_exclude=[{}]", "op_types_to_quantize={}"),
    "half": ("node_block_list=[{}]", "op_block_list={}"),
    "float": ("the reference's {}", "the reference's {}"),
}
"""How a scheme's converter is told to leave an operation in float, and a type of operations:
``quantize_dynamic`` and ``quantize_static``, and ``float16.convert_float_to_float16``."""


def _is_costly(hook: Hook, shares: Mapping[str, float], sums: Mapping[str, HookSums]) -> bool:
    broken = sums[hook.name].local.non_finite_rows > 0
    return broken or shares.get(hook.name, 0.0) >= _LEAST_SHARE


def _floating(sides: Sides, hooks: Sequence[Hook]) -> Build:
    grafts = [hook.graft for hook in hooks]
    return lambda: grafted(sides.quant, sides.ref, grafts, sides.by_ref)


def _float_bytes(sides: Sides, hooks: Sequence[Hook]) -> int:
    """What the file grows by if the reference's matrices are put back."""
    total = 0
    for name in dict.fromkeys(h.matrix for h in hooks if h.matrix is not None):
        total += sides.ref.n_bytes(name)
    stored = {s.weight for h in hooks for s in h.sites}
    for hook in hooks:
        if not hook.sites:
            stored |= {
                source
                for node in hook.nodes
                for name in node.input
                if name
                and (source := sides.quant.source(name)) is not None
                and name not in sides.grafts
                and len(sides.quant.shape(source)) > 1
            }
    return total - sum(sides.quant.n_bytes(name) for name in stored)


def _bytes_of(sides: Sides, name: str) -> int:
    value = sides.quant.constant(name)
    return 0 if value is None else value.nbytes
