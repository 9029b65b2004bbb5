"""A range of a model's layers: which nodes of the whole graph are computed, and where it begins.

llama.cpp cannot start in the middle of a graph. So the whole graph is built, and the nodes outside
the range are made empty (``GGML_OP_NONE``) just before their turn: backends pass over them
(``ggml_op_is_empty`` in ggml-cpu.c), and the weights that they would read are never touched. The
residual stream that enters the range is set to what the range before ended with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, replace

from ggufnorm.engines.base import Graph, HookPoint, Node
from ggufnorm.engines.llama.graph import VIEW_OPS
from ggufnorm.errors import RefusedError
from ggufnorm.formats.naming import layer_of

Layers = tuple[int, int]
"""The first and the last layer of a range."""

_CACHE = re.compile(r"^cache_\w*_l(\d+)(?: |$)")
"""Labels of a layer's K, V and recurrent states: src/llama-kv-cache.cpp, llama-memory-recurrent."""


@dataclass(frozen=True)
class Stretch:
    """What is computed of a graph.

    Attributes:
        graph: with the hook points and norms of the range.
        empty: indices of nodes that are not computed.
        entry: index of the node that is set to what the range before ended with; None where the
            range begins with the tokens.
        is_last: whether no layers are behind the range, so that it ends with the model's result.
    """

    graph: Graph
    empty: frozenset[int]
    entry: int | None
    is_last: bool


def cut(graph: Graph, layers: Layers, tensors: Container[str], n_layers: int) -> Stretch:
    """A range of layers in a graph.

    Args:
        graph: of the whole model.
        layers: that are run.
        tensors: names of the tensors in the model's file.
        n_layers: of the model.

    Raises:
        RefusedError: what crosses the border is not one value, so that a trace cannot carry it.
    """
    first, last = layers
    reader = _Reader(graph.nodes, tensors)
    inside, entry, leave = set(range(len(graph.nodes))), None, None
    if first:
        entry, inside = reader.border(first)
    # A file may have layers that are not run (for predicting several tokens).
    if last + 1 < n_layers and reader.own(last + 1):
        leave, behind = reader.border(last + 1)
        inside = inside - behind
    without = set() if entry is None else {entry}
    computed = inside | reader.ancestors(inside, without)
    ends = {i for i in (entry, leave) if i is not None}
    seen = inside | ends
    hooks = {h.index: h for h in graph.hooks if h.index in seen}
    for index in ends - hooks.keys():
        hooks[index] = _hook(graph.nodes[index])
    kept = tuple(hooks[index] for index in sorted(hooks))
    norms = tuple(n for n in graph.norms if n.output in inside)
    empty = frozenset(range(len(graph.nodes))) - computed
    return Stretch(replace(graph, hooks=kept, norms=norms), empty, entry, leave is None)


def _hook(node: Node) -> HookPoint:
    layer = re.search(r"-(\d+)$", node.name)
    number = int(layer[1]) if layer else None
    return HookPoint(node.index, node.key, node.op, "residual", None, number, node.dtype == "F32")


class _Reader:
    """Which nodes a node is made of, and which of it."""

    def __init__(self, nodes: Sequence[Node], tensors: Container[str]) -> None:
        self.nodes, self.tensors = nodes, tensors
        self.users: dict[int, list[int]] = {}
        for node in nodes:
            for source in node.sources:
                if isinstance(source, int):
                    self.users.setdefault(source, []).append(node.index)

    def sources(self, index: int) -> list[int]:
        """The nodes that a node reads."""
        return [s for s in self.nodes[index].sources if isinstance(s, int)]

    def ancestors(self, of: set[int], without: set[int]) -> set[int]:
        """All nodes that those are made of, not beyond some."""
        return _reached(of, self.sources, without) - of

    def own(self, layer: int) -> set[int]:
        """The nodes that read tensors or caches of that layer and of those behind."""
        return {n.index for n in self.nodes if any(of >= layer for of in self.layers(n.index))}

    def border(self, layer: int) -> tuple[int, set[int]]:
        """Where the layers from that on begin.

        Returns:
            The one value that they take from those before; and the nodes behind it.

        Raises:
            RefusedError: they take more than one value.
        """
        own = self.own(layer)
        if not own:
            raise RefusedError(f"no node of the graph reads a tensor of layer {layer}")
        also: str | None = None
        for index in self.candidates(own, layer):
            behind = _reached(own | {index}, lambda i: self.users.get(i, ()), set()) - {index}
            needed = behind | self.ancestors(behind, {index})
            early = next((n for i in sorted(needed) for n in self.early(i, layer)), None)
            if early is None:
                return index, behind
            also = also or early
        raise RefusedError(
            f"a range cannot end before layer {layer}: it also takes what {also} gives from the"
            " layers before, and a trace carries the residual stream alone"
        )

    def candidates(self, own: set[int], layer: int) -> list[int]:
        """What could be the border, the last first: whole rows, in memory of their own."""
        before = self.ancestors(own, set()) - own
        of_early = _reached(
            {i for i in before if self.early(i, layer)}, lambda i: self.users.get(i, ()), set()
        )
        fit = [
            i for i in before & of_early
            if (n := self.nodes[i]).dtype == "F32" and len(n.shape) <= 2 and n.op not in VIEW_OPS
        ]  # fmt: skip
        return sorted(fit, reverse=True)[:_MOST]

    def early(self, index: int, layer: int) -> list[str]:
        """What a node reads of earlier layers: tensors, caches."""
        names = [s for s in self.nodes[index].sources if isinstance(s, str)]
        return [name for name in names if (of := self.layer(name)) is not None and of < layer]

    def layers(self, index: int) -> list[int]:
        """Of which layers a node reads tensors or caches."""
        names = (s for s in self.nodes[index].sources if isinstance(s, str))
        return [layer for layer in map(self.layer, names) if layer is not None]

    def layer(self, source: str) -> int | None:
        """The layer of a leaf: of a tensor of the file or of a cache."""
        if source in self.tensors:
            return layer_of(source)
        found = _CACHE.match(source)
        return int(found[1]) if found else None


def _reached(start: set[int], steps: Callable[[int], Iterable[int]], without: set[int]) -> set[int]:
    """All that can be reached, the start among it."""
    seen, to_see = start | without, list(start)
    while to_see:
        for index in steps(to_see.pop()):
            if index not in seen:
                seen.add(index)
                to_see.append(index)
    return seen - without


_MOST = 64
"""How many values are tried as a border: it is among the last of a layer."""
