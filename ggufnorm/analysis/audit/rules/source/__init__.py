"""Family S: the file beside the checkpoint that it was converted from.

S101 comes first: where the source is another checkpoint, nothing that differs from it is
wrong, and the other rules that compare values are not run.
"""

from __future__ import annotations

from ggufnorm.analysis.audit.registry import Rule
from ggufnorm.analysis.audit.rules.source import checkpoint, epsilon, values

RULES: tuple[Rule, ...] = (*checkpoint.RULES, *values.RULES, *epsilon.RULES)
