"""All rules, family by family, in the order of their ids."""

from __future__ import annotations

from ggufnorm.analysis.audit.registry import Rule
from ggufnorm.analysis.audit.rules import (
    capture,
    epsilon,
    hyperparameters,
    keys,
    norms,
    source,
    tensors,
    vision,
)
from ggufnorm.analysis.audit.rules.norms.data import tensor_data

__all__ = ["BY_ID", "FAMILIES", "RULES", "TENSOR_DATA"]

TENSOR_DATA = tensor_data
"""The rule of files whose tensors' data is not all there: none of the others can run then."""

FAMILIES: dict[str, str] = {
    "N": "Norms of the file and their values",
    "E": "Epsilons",
    "H": "Hyperparameters beside the tensors",
    "S": "The file beside its source (`--source`)",
    "T": "All tensors beside their source (`--source`)",
    "K": "Keys beside the source's configs (`--source`)",
    "V": "Vision encoders",
    "C": "What llama.cpp really computes (`--run`)",
}
"""What each letter stands for, in the order in which families are shown."""

RULES: tuple[Rule, ...] = (
    *norms.RULES, *epsilon.RULES, *hyperparameters.RULES, *source.RULES, *tensors.RULES,
    *keys.RULES, *vision.RULES, *capture.RULES,
)  # fmt: skip

BY_ID: dict[str, Rule] = {r.id: r for r in RULES}
