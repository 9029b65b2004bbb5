"""From the finished sums to the parts of a DriftReport."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ggufnorm.core.drift import ExpertDrift, NormDrift, NormSplit, OperationDrift
from ggufnorm.core.floats import finite_float32
from ggufnorm.core.metrics import Difference, difference
from ggufnorm.engines.base import NormPlan, StatedNorm
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.runs.lockstep import Match
from ggufnorm.runs.probes.drift import FREE, REFERENCE, DriftSums
from ggufnorm.runs.probes.hook_sums import HookSum, NormSum
from ggufnorm.runs.recompute import WeightCache


def operations(
    matches: Sequence[Match], sums: DriftSums, dtypes: Mapping[int, Mapping[str, str]]
) -> tuple[OperationDrift, ...]:
    """Every hook point that all replicas share, in graph order.

    Args:
        matches: the hook points of each batch of a chunk.
        sums: that observed them.
        dtypes: for each side, the types of its file's tensors by name.
    """

    def dtype(side: int, tensor: str | None) -> str | None:
        return dtypes[side].get(tensor) if tensor else None

    found: dict[str, OperationDrift] = {}
    for match in matches:
        for s in match.hooks:
            total = sums.hooks.get(s.key, HookSum())
            found[s.key] = OperationDrift(
                node=s.key,
                op=s.op,
                role=s.role,
                tensor=s.tensor,
                layer=s.layer,
                dtype=dtype(FREE, s.tensor),
                dtype_ref=dtype(REFERENCE, s.tensor),
                cumulative=total.free.result(),
                local=total.pinned.result(),
                peak=total.peak.peak,
                peak_ref=total.peak_ref.peak,
            )
    return tuple(found.values())


def experts(operations: Sequence[OperationDrift], sums: DriftSums) -> tuple[ExpertDrift, ...]:
    """Every expert of every product with stacked experts.

    Args:
        operations: in graph order.
        sums: that observed them.
    """
    found = []
    for o in operations:
        total = sums.hooks[o.node].experts if o.tensor else None
        if o.tensor is None or total is None:
            continue
        for i, error in enumerate(total.errors()):
            rows = int(total.rows[i])
            found.append(ExpertDrift(o.tensor, o.node, o.layer, i, rows, error))
    return tuple(found)


def norms(
    sums: DriftSums,
    files: Mapping[int, ModelFile],
    stated: Callable[[NormPlan, str], StatedNorm],
) -> tuple[NormDrift, ...]:
    """Every norm that both graphs have, in graph order.

    Args:
        sums: that observed them.
        files: of the sides that have one; without both, weights are not compared.
        stated: what the file under test says of a norm, by its plan and its result's key.
    """
    weights = {side: WeightCache(file) for side, file in files.items()}
    return tuple(_norm(norm, sums, weights, stated) for norm in sums.norms.values())


def _norm(
    norm: NormSum,
    sums: DriftSums,
    weights: Mapping[int, WeightCache],
    stated: Callable[[NormPlan, str], StatedNorm],
) -> NormDrift:
    plan = norm.plan
    said = stated(plan, norm.output_key)
    into = sums.hooks.get(norm.input_key, HookSum())
    out = sums.hooks.get(norm.output_key, HookSum())
    kernel = norm.kernel.result().rel_l2
    return NormDrift(
        tensor=plan.weight,
        node=norm.output_key,
        layer=said.layer,
        role=said.role,
        kind=plan.kind,
        epsilon_metadata=said.epsilon,
        epsilon_used=finite_float32(plan.epsilon),
        epsilon_used_ref=finite_float32(norm.ref_plan.epsilon),
        input=into.free.result(),
        output=out.free.result(),
        local=out.pinned.result(),
        weight=_tensor_drift(plan.weight, weights),
        bias=_tensor_drift(plan.bias, weights),
        split=NormSplit(
            weight=norm.weight.result().rel_l2,
            epsilon=norm.epsilon.result().rel_l2,
            input=norm.input.result().rel_l2,
            kernel=kernel,
        ),
        recompute_residual=kernel,
        recompute_residual_ref=norm.kernel_ref.result().rel_l2,
    )


def _tensor_drift(name: str | None, weights: Mapping[int, WeightCache]) -> Difference | None:
    """Drift of a norm's weight or bias between the files."""
    if name is None or len(weights) < 2:
        return None
    ref, quant = (weights[side].get(name) for side in (REFERENCE, FREE))
    return difference(ref.ravel(), quant.ravel()) if ref.shape == quant.shape else None
