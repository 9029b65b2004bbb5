"""Family K: every key that changes what the model computes, beside the source's configs.

A key that llama.cpp does not read for the architecture is not called one that counts. Where
the right value is known it stands in the evidence: ``key``, ``type``, ``expected``,
``actual``.
"""

from __future__ import annotations

from ggufnorm.analysis.audit.registry import Rule
from ggufnorm.analysis.audit.rules.keys import network, tokens

RULES: tuple[Rule, ...] = (*network.RULES, *tokens.RULES)
