"""Which nodes of a graph bear on a result: the others are computed for nothing, or not at all.

llama.cpp builds graphs that do not change with the batch. Of several sources of one value it
computes one (``ggml_build_forward_select`` in ggml.c leaves the flag COMPUTE off the others),
and of some inputs it builds look-ups that no result reads. What such nodes hold is left over
from other runs, and says nothing of a model.
"""

from __future__ import annotations

from collections.abc import Sequence

from ggufnorm.engines.base import Node
from ggufnorm.engines.llama.binding import NodeView

_OUTPUT, _COMPUTE = 2, 16
"""``GGML_TENSOR_FLAG_OUTPUT`` and ``GGML_TENSOR_FLAG_COMPUTE``, ggml.h."""
_RESULT = "result_"
"""How the labels of a forward pass's results begin: ``result_output``, ``result_norm``,
``result_embd``, ``result_embd_pooled`` (src/llama-graph.cpp and src/models)."""


def idle_nodes(views: Sequence[NodeView], nodes: Sequence[Node]) -> frozenset[int]:
    """Indices of nodes that are not computed, or whose value reaches no result.

    What is written into a tensor that is no node (a cache, a recurrent state) is a result
    too. A graph without a node that is called a result is not judged.

    Args:
        views: of the nodes, before they are computed.
        nodes: the same, in the same order.
    """
    flagged = any(v.flags & _COMPUTE for v in views)  # older ggml has no such flag
    idle = {i for i, v in enumerate(views) if flagged and not v.flags & _COMPUTE}
    named = [n.index for n in nodes if n.name.startswith(_RESULT)]
    named += [i for i, v in enumerate(views) if v.flags & _OUTPUT]
    if not named:
        return frozenset(idle)
    addresses = {v.address for v in views}
    writes = [i for i, v in enumerate(views) if v.target and v.target not in addresses]
    alive: set[int] = set()
    to_see = [i for i in (*named, *writes) if i not in idle]
    while to_see:
        i = to_see.pop()
        if i not in alive:
            alive.add(i)
            to_see += [s for s in nodes[i].sources if isinstance(s, int) and s not in idle]
    return frozenset(range(len(nodes))) - alive
