"""Nodes that llama.cpp computes and nothing reads.

Since b11739 a graph has a second embedding look-up for batches that mix tokens and embeddings
(``inp_mixed_tokens`` in llm_graph_context::build_inp_embd, src/llama-graph.cpp). A batch of tokens
leaves its ids unset, so its rows are those of the last batch, or garbage.
"""

from __future__ import annotations

from collections.abc import Sequence

from ggufnorm.engines.base import Node

_WRITES = {"SET_ROWS": 2, "CPY": 1}
"""Operations that write into another tensor, and which of their sources that is (ggml.c)."""
_VIEWS = frozenset(("VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE"))


def inert_nodes(nodes: Sequence[Node]) -> frozenset[int]:
    """Indices of nodes that reach nothing but a write into a value that nobody reads.

    A write into a leaf is a cache's or a state's, which a later batch reads.
    """
    readers: dict[int, set[int]] = {node.index: set() for node in nodes}
    for node in nodes:
        for source in node.sources:
            if isinstance(source, int) and source != node.index:
                readers[source].add(node.index)
    inert: set[int] = set()
    for node in reversed(nodes):
        own = readers[node.index]
        if _is_lost_write(node, nodes) if not own else own <= inert:
            inert.add(node.index)
    return frozenset(inert)


def _is_lost_write(node: Node, nodes: Sequence[Node]) -> bool:
    at = _WRITES.get(node.op)
    if at is None or len(node.sources) <= at:
        return False
    target = node.sources[at]
    while isinstance(target, int) and nodes[target].op in _VIEWS:
        target = nodes[target].sources[0]
    # With another reader the written value may be read after all.
    return isinstance(target, int) and all(
        target not in other.sources for other in nodes if other.index != node.index
    )
