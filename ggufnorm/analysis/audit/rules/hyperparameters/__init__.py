"""Family H: does the header contradict the tensors? No source is needed."""

from __future__ import annotations

from ggufnorm.analysis.audit.registry import Rule
from ggufnorm.analysis.audit.rules.hyperparameters import (
    file,
    shapes,
    template,
    types,
    vocabulary,
)

RULES: tuple[Rule, ...] = (
    *shapes.RULES, *file.RULES, *types.RULES, *vocabulary.RULES, *template.RULES,
)  # fmt: skip
