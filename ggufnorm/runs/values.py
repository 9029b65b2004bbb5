"""Copies of values of one forward pass, and what norms are, for another process."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ggufnorm.core.engine import Engine
from ggufnorm.core.model import Skipped
from ggufnorm.core.trace import NormFacts
from ggufnorm.engines.base import Activation, Array, Batch, NormPlan, Runner


@dataclass(frozen=True)
class KeptRun:
    """One run, with every row of every norm.

    Attributes:
        engine: that ran it, with its version.
        norms: in graph order.
        values: of the nodes that are norms' inputs and outputs, ``(ne[3], ne[2], ne[1], ne[0])``,
            by the node's key.
        skipped: norms that were not observed, and why.
        build: which llama.cpp ran it, and where.
    """

    engine: str
    norms: tuple[NormFacts, ...]
    values: dict[str, Array]
    skipped: tuple[Skipped, ...]
    build: Engine | None = None


def keep_norms(runner: Runner, *batches: Batch) -> KeptRun:
    """Run a planned model's batches, and keep the inputs and results of its norms."""
    norms: list[NormFacts] = []
    values: dict[str, Array] = {}
    runner.begin_chunk()
    for k, (graph, batch) in enumerate(zip(runner.graphs, batches, strict=True)):
        keys = {i: graph.nodes[i].key for n in graph.norms for i in (n.input, n.output)}
        norms += [norm_facts(runner, n, keys[n.input], keys[n.output]) for n in graph.norms]
        found = _values(runner, k, batch, keys)
        values |= {keys[i]: value for i, value in found.items()}
    return KeptRun(
        engine=runner.info.engine,
        norms=tuple(norms),
        values=values,
        skipped=tuple(s for graph in runner.graphs for s in graph.skipped),
        build=runner.info.build,
    )


def node_values(runner: Runner, batch: Batch, nodes: Iterable[int]) -> dict[int, Array]:
    """Run a planned model's one batch, and copy the values of some nodes, by index."""
    runner.begin_chunk()
    return _values(runner, 0, batch, nodes)


def _values(runner: Runner, k: int, batch: Batch, nodes: Iterable[int]) -> dict[int, Array]:
    at = sorted(set(nodes))
    values: dict[int, Array] = {}

    def keep(n: int, value: Activation) -> bool:
        values[at[n]] = value.value.copy()
        return True

    runner.forward(k, batch, at, keep)
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
