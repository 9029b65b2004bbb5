"""Family N: the norms of the file and their values.

- :mod:`~ggufnorm.analysis.audit.rules.norms.presence`: N1, which norms there are;
- :mod:`~ggufnorm.analysis.audit.rules.norms.layout`: N2, their types and shapes;
- :mod:`~ggufnorm.analysis.audit.rules.norms.values`: N3, their values, each by itself;
- :mod:`~ggufnorm.analysis.audit.rules.norms.peers`: N4, their values beside each other;
- :mod:`~ggufnorm.analysis.audit.rules.norms.offsets`: N5, the offset baked into them;
- :mod:`~ggufnorm.analysis.audit.rules.norms.data`: N6, the data of all tensors.
"""

from __future__ import annotations

from ggufnorm.analysis.audit.registry import Rule
from ggufnorm.analysis.audit.rules.norms import data, layout, offsets, peers, presence, values

RULES: tuple[Rule, ...] = (
    *presence.RULES,
    *layout.RULES,
    *values.RULES,
    *peers.RULES,
    *offsets.RULES,
    *data.RULES,
)
