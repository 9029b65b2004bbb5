"""From the finished sums to the parts of a DriftReport."""

from __future__ import annotations

from collections.abc import Sequence

from ggufnorm.comparison.observe import (
    FREE,
    REFERENCE,
    Comparison,
    NormSum,
    StopSum,
    WeightCache,
)
from ggufnorm.core.drift import NormDrift, NormSplit, OperationDrift
from ggufnorm.core.floats import shortest_float32
from ggufnorm.core.metrics import Difference, difference
from ggufnorm.engines.llama.graph import NormPlan, layer_of_node
from ggufnorm.engines.llama.walk import Match
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.naming import NormName, layer_of, norm_parameters, parse_norm_name


def operations(
    matches: Sequence[Match], comparison: Comparison, files: dict[int, ModelFile]
) -> tuple[OperationDrift, ...]:
    """Every stop that all lanes share, in graph order."""

    def dtype(lane: int, tensor: str | None) -> str | None:
        found = files[lane].tensors.get(tensor) if tensor else None
        return found.dtype if found else None

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


def norms(comparison: Comparison, files: dict[int, ModelFile]) -> tuple[NormDrift, ...]:
    """Every norm that both graphs have, in graph order."""
    weights = {lane: WeightCache(file) for lane, file in files.items()}
    return tuple(
        _norm(norm, comparison, files[FREE], weights) for norm in comparison.norms.values()
    )


def _norm(
    norm: NormSum, comparison: Comparison, file: ModelFile, weights: dict[int, WeightCache]
) -> NormDrift:
    plan = norm.plan
    name = place(plan, norm.output_key, file)
    has_bias = plan.bias is not None
    stated = norm_parameters(file.metadata, file.architecture, name, has_bias=has_bias)
    epsilon = stated.epsilon if stated.kind == plan.kind else None
    into = comparison.stops.get(norm.input_key, StopSum())
    out = comparison.stops.get(norm.output_key, StopSum())
    kernel = norm.kernel.result().rel_l2
    return NormDrift(
        tensor=plan.weight,
        node=norm.output_key,
        layer=name.layer,
        role=name.role,
        kind=plan.kind,
        epsilon_metadata=shortest_float32(epsilon),
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


# What llama.cpp's graphs call the results of norms without weights (cb() in src/models).
_ROLE_OF_LABEL = {
    "result": "output",
    "embd": "token_embd",
    "Qcur": "q",
    "Kcur": "k",
    "Vcur": "v",
}


def place(plan: NormPlan, output_key: str, file: ModelFile) -> NormName:
    """Layer and role, from the weight's name or, without one, from llama.cpp's label."""
    if plan.weight:
        name = parse_norm_name(plan.weight, file.architecture, file.tensors)
        if name is not None:
            return name
    label = output_key.partition("@")[0].rpartition("-")[0] or output_key
    label = label.removesuffix("_normed").removesuffix("_norm")
    role = _ROLE_OF_LABEL.get(label, label)
    return NormName(layer_of_node(output_key), role)


def _tensor_drift(name: str | None, weights: dict[int, WeightCache]) -> Difference | None:
    """Drift of a norm's weight or bias between the files."""
    if name is None:
        return None
    ref, quant = (weights[lane].get(name) for lane in (REFERENCE, FREE))
    return difference(ref.ravel(), quant.ravel()) if ref.shape == quant.shape else None
