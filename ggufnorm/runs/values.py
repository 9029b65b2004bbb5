"""Copies of values of one forward pass, and facts about norms, for another process."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ggufnorm.core.trace import NormFacts
from ggufnorm.engines.base import Activation, Array, Batch, NormPlan, Runner


def node_values(runner: Runner, batch: Batch, nodes: Iterable[int]) -> dict[int, Array]:
    """Run a planned model's one batch, and copy the values of some nodes, by index."""
    at = sorted(set(nodes))
    values: dict[int, Array] = {}

    def keep(n: int, value: Activation) -> bool:
        values[at[n]] = value.value.copy()
        return True

    runner.begin_chunk()
    runner.forward(0, batch, at, keep)
    return values


def norm_facts(runner: Runner, norm: NormPlan, input_key: str, output_key: str) -> NormFacts:
    """What the graph and the file say of a norm."""
    stated = runner.stated(norm, output_key)
    return NormFacts(
        key=norm.key,
        kind=norm.kind,
        epsilon=norm.epsilon if math.isfinite(norm.epsilon) else None,
        epsilon_metadata=stated.epsilon,
        layer=stated.layer,
        role=stated.role,
        groups=norm.groups,
        weight=norm.weight,
        bias=norm.bias,
        input=input_key,
        output=output_key,
    )
