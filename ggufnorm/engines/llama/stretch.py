"""A range of a model's layers: which nodes of the whole graph are computed, and where it begins.

llama.cpp cannot start in the middle of a graph. So the whole graph is built, and the nodes outside
the range are made empty (``GGML_OP_NONE``) just before their turn: backends pass over them
(``ggml_op_is_empty`` in ggml-cpu.c), and the weights that they would read are never touched. The
residual stream that enters the range is set to what the range before ended with.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace

from ggufnorm.engines.base import Graph, HookPoint, Node
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
    """

    graph: Graph
    empty: frozenset[int]
    entry: int | None


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
    entry = reader.border(first) if first else None
    leave = reader.border(last + 1) if last + 1 < n_layers else None
    begin = -1 if entry is None else entry
    end = len(graph.nodes) - 1 if leave is None else leave
    inside = set(range(begin + 1, end + 1))
    computed = inside | reader.ancestors(inside, {begin})
    ends = {i for i in (entry, leave) if i is not None}
    seen = inside | ends
    hooks = {h.index: h for h in graph.hooks if h.index in seen}
    for index in ends - hooks.keys():
        hooks[index] = _hook(graph.nodes[index])
    kept = tuple(hooks[index] for index in sorted(hooks))
    norms = tuple(n for n in graph.norms if n.output in inside)
    empty = frozenset(range(len(graph.nodes))) - computed
    return Stretch(replace(graph, hooks=kept, norms=norms), empty, entry)


def _hook(node: Node) -> HookPoint:
    layer = re.search(r"-(\d+)$", node.name)
    number = int(layer[1]) if layer else None
    return HookPoint(node.index, node.key, node.op, "residual", None, number, node.dtype == "F32")


class _Reader:
    """Which nodes a node is made of."""

    def __init__(self, nodes: Sequence[Node], tensors: Container[str]) -> None:
        self.nodes, self.tensors = nodes, tensors

    def ancestors(self, of: set[int], without: set[int]) -> set[int]:
        """All nodes that those are made of, not beyond some."""
        seen = of | without
        to_see = list(of)
        while to_see:
            for source in self.nodes[to_see.pop()].sources:
                if isinstance(source, int) and source not in seen:
                    seen.add(source)
                    to_see.append(source)
        return seen - of - without

    def border(self, layer: int) -> int:
        """The one value that all layers from that on take from those before.

        Raises:
            RefusedError: there is more than one.
        """
        start = next((n.index for n in self.nodes if layer in self.layers(n)), None)
        if start is None:
            raise RefusedError(f"no node of the graph reads a tensor of layer {layer}")
        last: str | None = None
        for node in self.candidates(start, layer):
            behind = set(range(node.index + 1, len(self.nodes)))
            needed = behind | self.ancestors(behind, {node.index})
            early = next((n for i in sorted(needed) for n in self.early(i, layer)), None)
            if early is None:
                return node.index
            last = last or early
        raise RefusedError(
            f"a range cannot end before layer {layer}: it also takes {last} from the layers before,"
            " and a trace carries the residual stream alone"
        )

    def candidates(self, start: int, layer: int) -> Iterator[Node]:
        """What could be the border, the last first: values of whole rows, of their own memory."""
        for node in reversed(self.nodes[:start]):
            if node.dtype == "F32" and len(node.shape) <= 2 and node.op not in _VIEWS:
                yield node
            if layer - 2 in self.layers(node):
                return

    def early(self, index: int, layer: int) -> list[str]:
        """What a node reads of earlier layers: tensors, caches."""
        names = [s for s in self.nodes[index].sources if isinstance(s, str)]
        return [name for name in names if (of := self.layer(name)) is not None and of < layer]

    def layers(self, node: Node) -> set[int]:
        found = (self.layer(source) for source in node.sources if isinstance(source, str))
        return {layer for layer in found if layer is not None}

    def layer(self, source: str) -> int | None:
        """The layer of a leaf: of a tensor of the file or of a cache."""
        if source in self.tensors:
            return layer_of(source)
        found = _CACHE.match(source)
        return int(found[1]) if found else None


_VIEWS = frozenset({"RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE"})
