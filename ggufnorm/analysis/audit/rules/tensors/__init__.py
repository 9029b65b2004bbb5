"""Family T: every tensor of the file beside the source's tensors that it was made of.

Norms that family S compares are left to it. A pattern that many tensors share is one finding.
"""

from __future__ import annotations

from ggufnorm.analysis.audit.registry import Rule
from ggufnorm.analysis.audit.rules.tensors import coverage, differences

RULES: tuple[Rule, ...] = (*coverage.RULES, *differences.RULES)
