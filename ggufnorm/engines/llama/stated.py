"""What a GGUF file says of the tensors and norms that llama.cpp runs."""

from __future__ import annotations

from ggufnorm.core.floats import finite_float32
from ggufnorm.engines.base import NormPlan, StatedNorm
from ggufnorm.engines.llama.graph import layer_of_node
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.naming import NormName, norm_parameters, parse_norm_name


def tensor_types(file: ModelFile) -> dict[str, str]:
    """The types of a file's tensors by name."""
    return {name: tensor.dtype for name, tensor in file.tensors.items()}


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
