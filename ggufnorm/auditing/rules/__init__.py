"""All rules, family by family, in the order of their ids."""

from __future__ import annotations

from ggufnorm.auditing.registry import Rule
from ggufnorm.auditing.rules import capture, epsilon, norms, source, vision

RULES: tuple[Rule, ...] = (
    *capture.RULES, *epsilon.RULES, *norms.RULES, *source.RULES, *vision.RULES,
)  # fmt: skip
