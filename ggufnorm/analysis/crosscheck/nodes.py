"""What llama.cpp computes between two norms, operation by operation."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

from ggufnorm.analysis.crosscheck.llama import Tokens, plain_job, planned
from ggufnorm.core.operations import Operation
from ggufnorm.engines.child import Emit, run_in_child
from ggufnorm.engines.llama.binding import is_readable
from ggufnorm.engines.llama.graph import COPY_OPS, VIEW_OPS, Graph, Node
from ggufnorm.formats.location import local_path

_COPIES = VIEW_OPS | COPY_OPS | {"SET_ROWS"}


def watch_nodes(
    location: str,
    tokens: Tokens,
    start: str | None,
    end: str | None,
    *,
    n_threads: int | None = None,
) -> list[Operation]:
    """Run token ids and keep every result between two norms.

    Args:
        location: of a model on this machine.
        tokens: ids.
        start: key of the norm at whose input it begins; None for the graph's beginning.
        end: key of the norm at whose input it ends; None for the graph's end.
        n_threads: CPU threads; None for all.

    Returns:
        In the order of the graph.

    Raises:
        EngineError: llama.cpp fails or crashes.
    """
    with tempfile.TemporaryDirectory(prefix="ggufnorm-") as folder:
        rows = Path(folder) / "rows.npz"
        job = plain_job(local_path(location), len(tokens), n_threads, tokens, rows)
        job |= {"start": start, "end": end}
        nodes = run_in_child(observe_nodes, job, lambda _message: None)["nodes"]
        with np.load(rows, allow_pickle=False) as values:
            return [
                Operation(
                    name=node["key"],
                    op=node["op"],
                    inputs=tuple(node["inputs"]),
                    value=values.get(f"node{node['index']}"),
                    tensor=node["tensor"],
                    params=bytes.fromhex(node["params"]),
                    computes=node["op"] not in _COPIES,
                )
                for node in nodes
            ]


def observe_nodes(job: dict[str, Any], _emit: Emit, _stop: threading.Event) -> dict[str, Any]:
    """The child's part of :func:`watch_nodes`."""
    with planned(job) as run:
        nodes = _between(run.graph, job["start"], job["end"])
        values = run.values(n.index for n in nodes if is_readable(n.dtype))
        np.savez(job["rows"], allow_pickle=False, **values)
        place = {n.index: i for i, n in enumerate(nodes)}
        return {
            "nodes": [
                {
                    "index": n.index,
                    "key": n.key,
                    "op": n.op,
                    "inputs": [place[s] for s in n.sources if s in place],
                    "tensor": next((s for s in n.sources if s in run.file.tensors), None),
                    "params": n.params.hex(),
                }
                for n in nodes
            ]
        }


def _between(graph: Graph, start: str | None, end: str | None) -> tuple[Node, ...]:
    inputs = {norm.key: norm.input for norm in graph.norms}
    first = 0 if start is None else inputs[start]
    last = len(graph.nodes) - 1 if end is None else inputs[end]
    return graph.nodes[first : last + 1]
