"""From the finished sums to the parts of a DriftReport."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ggufnorm.analysis.drift.observe import (
    FREE,
    REFERENCE,
    Comparison,
    NormSum,
    StopSum,
    WeightCache,
)
from ggufnorm.core.drift import NormDrift, NormSplit, OperationDrift
from ggufnorm.core.floats import finite_float32
from ggufnorm.core.metrics import Difference, difference
from ggufnorm.engines.llama.graph import NormPlan, layer_of_node
from ggufnorm.engines.llama.walk import Match
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.naming import NormName, layer_of, norm_parameters, parse_norm_name


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


def tensor_types(file: ModelFile) -> dict[str, str]:
    """The types of a file's tensors by name."""
    return {name: tensor.dtype for name, tensor in file.tensors.items()}


@dataclass(frozen=True)
class StatedNorm:
    """What a file says of a norm that llama.cpp runs.

    Attributes:
        layer: block number, None outside the blocks.
        role: as in :class:`~ggufnorm.core.model.NormSite`.
        epsilon: by the metadata, None if they say nothing.
    """

    layer: int | None
    role: str
    epsilon: float | None


def stated_norm(file: ModelFile, plan: NormPlan, output_key: str) -> StatedNorm:
    """What a file says of a norm.

    Args:
        file: that is run.
        plan: the norm in its graph.
        output_key: of the node that holds the norm's result.
    """
    name = _place(plan, output_key, file)
    has_bias = plan.bias is not None
    stated = norm_parameters(file.metadata, file.architecture, name, has_bias=has_bias)
    epsilon = stated.epsilon if stated.kind == plan.kind else None
    return StatedNorm(name.layer, name.role, finite_float32(epsilon))


def norms(
    comparison: Comparison,
    files: Mapping[int, ModelFile],
    stated: Callable[[NormPlan, str], StatedNorm],
) -> tuple[NormDrift, ...]:
    """Every norm that both graphs have, in graph order.

    Args:
        comparison: that observed them.
        files: of the lanes that have one; without both, weights are not compared.
        stated: what the file under test says of a norm, by its plan and its result's key.
    """
    weights = {lane: WeightCache(file) for lane, file in files.items()}
    return tuple(_norm(norm, comparison, weights, stated) for norm in comparison.norms.values())


def _norm(
    norm: NormSum,
    comparison: Comparison,
    weights: Mapping[int, WeightCache],
    stated: Callable[[NormPlan, str], StatedNorm],
) -> NormDrift:
    plan = norm.plan
    said = stated(plan, norm.output_key)
    into = comparison.stops.get(norm.input_key, StopSum())
    out = comparison.stops.get(norm.output_key, StopSum())
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


# What llama.cpp's graphs call the results of norms without weights (cb() in src/models).
_ROLE_OF_LABEL = {
    "result": "output",
    "embd": "token_embd",
    "Qcur": "q",
    "Kcur": "k",
    "Vcur": "v",
}


def _place(plan: NormPlan, output_key: str, file: ModelFile) -> NormName:
    """Layer and role, from the weight's name or, without one, from llama.cpp's label."""
    if plan.weight:
        name = parse_norm_name(plan.weight, file.architecture, file.tensors)
        if name is not None:
            return name
    label = output_key.partition("@")[0].rpartition("-")[0] or output_key
    label = label.removesuffix("_normed").removesuffix("_norm")
    role = _ROLE_OF_LABEL.get(label, label)
    return NormName(layer_of_node(output_key), role)


def _tensor_drift(name: str | None, weights: Mapping[int, WeightCache]) -> Difference | None:
    """Drift of a norm's weight or bias between the files."""
    if name is None or len(weights) < 2:
        return None
    ref, quant = (weights[lane].get(name) for lane in (REFERENCE, FREE))
    return difference(ref.ravel(), quant.ravel()) if ref.shape == quant.shape else None
