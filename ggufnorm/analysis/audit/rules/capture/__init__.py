"""Family C: what llama.cpp really computes, seen in one run of the model on a short text."""

from __future__ import annotations

from ggufnorm.analysis.audit.registry import Rule
from ggufnorm.analysis.audit.rules.capture import epsilon, graph, values

RULES: tuple[Rule, ...] = (*graph.RULES, *values.RULES, *epsilon.RULES)
