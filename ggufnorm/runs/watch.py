"""Which of a graph's hook points a run stops at: a user pays for what is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from ggufnorm.engines.base import Graph, NormPlan
from ggufnorm.engines.llama.graph import VIEW_OPS

Watch = Literal["all", "norms", "residual", "none"]
"""Every hook point; inputs and results of norms; the residual stream; nothing but predictions."""

WATCHES: tuple[Watch, ...] = get_args(Watch)


def nodes_of(watch: Watch) -> Callable[[Graph], frozenset[int]] | None:
    """Tells the nodes of a graph to stop at; None for every hook point."""
    of_graph: dict[Watch, Callable[[Graph], frozenset[int]]] = {
        "norms": _around_norms,
        "residual": _residual,
        "none": lambda _graph: frozenset(),
    }
    return of_graph.get(watch)


def _around_norms(graph: Graph) -> frozenset[int]:
    """What norms take and give; of a view also what it shows, because that can be pinned."""
    return frozenset(i for n in graph.norms for i in (_owner_of_input(graph, n), n.input, n.output))


def _residual(graph: Graph) -> frozenset[int]:
    return frozenset(h.index for h in graph.hooks if h.role in ("embedding", "residual"))


def _owner_of_input(graph: Graph, norm: NormPlan) -> int:
    """The node whose memory holds a norm's input."""
    at = norm.input
    while graph.nodes[at].op in VIEW_OPS and isinstance(source := graph.nodes[at].sources[0], int):
        at = source
    return at


def given_its_input(graph: Graph) -> frozenset[str]:
    """Keys of the norms that a pinned replica gives the reference's input."""
    pinned = {h.index for h in graph.hooks if h.pin}
    return frozenset(n.key for n in graph.norms if pinned & {n.input, _owner_of_input(graph, n)})
