"""Family N: the norms of the file and their values."""

from __future__ import annotations

from ggufnorm.auditing.registry import Rule

RULES: tuple[Rule, ...] = ()
