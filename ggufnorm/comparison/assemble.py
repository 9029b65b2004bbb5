"""From the finished sums to the parts of a DriftReport."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ggufnorm.comparison.observe import (
    FREE,
    REFERENCE,
    Comparison,
    NormSum,
    StopSum,
    WeightCache,
)
from ggufnorm.core.drift import NormDrift, NormSplit, OperationDrift
from ggufnorm.core.metrics import Difference, difference
from ggufnorm.engines.llama.graph import NormPlan, layer_of_node
from ggufnorm.engines.llama.walk import Match
from ggufnorm.formats.gguf import GGUFFile
from ggufnorm.formats.naming import layer_of, norm_parameters, parse_norm_name
from ggufnorm.inspection import shortest_float32


def operations(
    matches: Sequence[Match], comparison: Comparison, dtypes: Mapping[int, Mapping[str, str]]
) -> tuple[OperationDrift, ...]:
    """Every stop that all lanes share, in graph order.

    Args:
        matches: the stops of each batch of a chunk.
        comparison: that observed them.
        dtypes: for each lane, the types of its file's tensors by name.
    """

    def dtype(lane: int, tensor: str | None) -> str | None:
        return dtypes[lane].get(tensor) if tensor else None

    found: dict[str, OperationDrift] = {}
    for match in matches:
        for s in match.stops:
            total = comparison.stops.get(s.key, StopSum())
            found[s.key] = OperationDrift(
                node=s.key,
                op=s.op,
                role=s.role,
                tensor=s.tensor,
                layer=layer_of(s.tensor) if s.tensor else layer_of_node(s.key),
                dtype=dtype(FREE, s.tensor),
                dtype_ref=dtype(REFERENCE, s.tensor),
                cumulative=total.free.result(),
                local=total.pinned.result(),
                peak=total.peak.peak,
                peak_ref=total.peak_ref.peak,
            )
    return tuple(found.values())


def tensor_types(file: GGUFFile) -> dict[str, str]:
    """The types of a file's tensors by name."""
    return {name: tensor.dtype for name, tensor in file.tensors.items()}


def stated_epsilon(file: GGUFFile, plan: NormPlan) -> float | None:
    """What a file's metadata says of a norm's epsilon, None if it says nothing."""
    stated = norm_parameters(file.metadata, file.architecture, has_bias=plan.bias is not None)
    return shortest_float32(stated.epsilon if stated.kind == plan.kind else None)


def norms(
    comparison: Comparison,
    files: Mapping[int, GGUFFile],
    epsilon: Callable[[NormPlan], float | None],
) -> tuple[NormDrift, ...]:
    """Every norm that both graphs have, in graph order.

    Args:
        comparison: that observed them.
        files: of the lanes that have one; without both, weights are not compared.
        epsilon: what the metadata of the model under test says of a norm.
    """
    weights = {lane: WeightCache(file) for lane, file in files.items()}
    return tuple(_norm(norm, comparison, weights, epsilon) for norm in comparison.norms.values())


def _norm(
    norm: NormSum,
    comparison: Comparison,
    weights: Mapping[int, WeightCache],
    epsilon: Callable[[NormPlan], float | None],
) -> NormDrift:
    plan = norm.plan
    layer, role = _place(plan, norm.output_key)
    into = comparison.stops.get(norm.input_key, StopSum())
    out = comparison.stops.get(norm.output_key, StopSum())
    kernel = norm.kernel.result().rel_l2
    return NormDrift(
        tensor=plan.weight,
        node=norm.output_key,
        layer=layer,
        role=role,
        kind=plan.kind,
        epsilon_metadata=epsilon(plan),
        epsilon_used=shortest_float32(plan.epsilon) or 0.0,
        epsilon_used_ref=shortest_float32(norm.ref_plan.epsilon) or 0.0,
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


def _place(plan: NormPlan, output_key: str) -> tuple[int | None, str]:
    """Layer and role, from the weight's name or, without one, from llama.cpp's label."""
    name = parse_norm_name(plan.weight) if plan.weight else None
    if name is not None:
        return name.layer, name.role
    label = output_key.partition("@")[0].rpartition("-")[0] or output_key
    role = {"result_norm": "output"}.get(label, label.removesuffix("_norm"))
    return layer_of_node(output_key), role


def _tensor_drift(name: str | None, weights: Mapping[int, WeightCache]) -> Difference | None:
    """Drift of a norm's weight or bias between the files."""
    if name is None or len(weights) < 2:
        return None
    ref, quant = (weights[lane].get(name) for lane in (REFERENCE, FREE))
    return difference(ref.ravel(), quant.ravel()) if ref.shape == quant.shape else None
