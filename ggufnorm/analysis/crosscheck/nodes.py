"""What llama.cpp computes between two norms, operation by operation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ggufnorm.analysis.crosscheck.llama import Planned, RunJob, Tokens, planned
from ggufnorm.analysis.crosscheck.pinned import pins_of, run_pinned
from ggufnorm.core.operations import Operation
from ggufnorm.engines import worker
from ggufnorm.engines.base import Activation, Array, Graph, Node
from ggufnorm.engines.llama.binding import is_readable
from ggufnorm.engines.llama.graph import COPY_OPS, VIEW_OPS
from ggufnorm.engines.worker import Channel
from ggufnorm.formats.location import local_path
from ggufnorm.runs.options import EXACT, on_servers

_COPIES = VIEW_OPS | COPY_OPS | {"SET_ROWS"}


@dataclass(frozen=True)
class SegmentJob:
    """A model to run, and between which norms its nodes are kept.

    Attributes:
        pins: the source's input of each norm, which the norm is given; by the norm's key.
    """

    run: RunJob
    start: str | None
    end: str | None
    pins: dict[str, Array]


@dataclass(frozen=True)
class SegmentNode:
    """A node between two norms.

    Attributes:
        inputs: numbers of other nodes of the segment.
        tensor: of the file, that it reads.
        params: the raw bytes of ``op_params``.
        value: None where its type is not read.
    """

    key: str
    op: str
    inputs: tuple[int, ...]
    tensor: str | None
    params: bytes
    value: Array | None


@dataclass(frozen=True)
class Segment:
    """All nodes between two norms, in graph order."""

    nodes: tuple[SegmentNode, ...]


def watch_nodes(
    location: str,
    tokens: Tokens,
    start: str | None,
    end: str | None,
    *,
    pins: Mapping[str, Array],
    n_threads: int | None = None,
) -> list[Operation]:
    """Run token ids and keep every result between two norms.

    Args:
        location: of a model on this machine.
        tokens: ids.
        start: key of the norm at whose input it begins; None for the graph's beginning.
        end: key of the norm at whose input it ends; None for the graph's end.
        pins: the source's input of each norm, which it is given; by the norm's key.
        n_threads: CPU threads; None for all.

    Returns:
        In the order of the graph.

    Raises:
        EngineError: llama.cpp fails or crashes.
    """
    options = on_servers(EXACT).engine(len(tokens), n_threads)
    job = RunJob(os.fspath(local_path(location)), options, None, tokens)
    segment = worker.call(observe_nodes, SegmentJob(job, start, end, dict(pins)))
    return [
        Operation(
            name=node.key,
            op=node.op,
            inputs=node.inputs,
            value=node.value,
            tensor=node.tensor,
            params=node.params,
            computes=node.op not in _COPIES,
        )
        for node in segment.nodes
    ]


def observe_nodes(job: SegmentJob, _channel: Channel) -> Segment:
    """The child's part of :func:`watch_nodes`."""
    with planned(job.run) as run:
        nodes = _between(run.graph, job.start, job.end)
        readable = [n.index for n in nodes if is_readable(n.dtype)]
        values = _values(run, job, readable, nodes[-1].index)

        def tensors(node: Node) -> list[str]:
            return [s for s in node.sources if isinstance(s, str)]

        place: dict[int | str, int] = {n.index: i for i, n in enumerate(nodes)}
        written = _written(nodes)
        return Segment(
            tuple(
                SegmentNode(
                    key=n.key,
                    op=n.op,
                    inputs=_inputs(n, place, written),
                    tensor=next((s for s in tensors(n) if s in run.file.tensors), None),
                    params=n.params,
                    value=values.get(n.index),
                )
                for n in nodes
            )
        )


def _values(run: Planned, job: SegmentJob, at: Sequence[int], last: int) -> dict[int, Array]:
    """What the nodes hold: the source's values where norms get those, but for the last one."""
    pins = pins_of(run.runner, job.pins, len(run.batch.tokens))
    values: dict[int, Array] = {}

    def keep(index: int, value: Activation) -> None:
        own = index == last or index not in pins
        values[index] = value.value.copy() if own else pins[index]

    run_pinned(run.runner, run.batch, pins, at, keep)
    return values


def _written(nodes: Sequence[Node]) -> dict[str, int]:
    """Place of the last node that writes into each cache, by the cache's name."""
    return {
        source.partition(" ")[0]: i
        for i, n in enumerate(nodes)
        if n.op in ("SET_ROWS", "CPY")
        for source in (*n.sources, n.name)
        if isinstance(source, str) and source.startswith("cache_")
    }


def _inputs(
    node: Node, place: Mapping[int | str, int], written: Mapping[str, int]
) -> tuple[int, ...]:
    """Places of the nodes that a node reads, and of what was written into the caches it reads."""
    found = [place[s] for s in node.sources if s in place]
    at = place[node.index]
    for source in node.sources:
        last = written.get(source.partition(" ")[0]) if isinstance(source, str) else None
        if last is not None and last < at:
            found.append(last)
    return tuple(found)


def _between(graph: Graph, start: str | None, end: str | None) -> tuple[Node, ...]:
    inputs = {norm.key: norm.input for norm in graph.norms}
    first = 0 if start is None else inputs[start]
    last = len(graph.nodes) - 1 if end is None else inputs[end]
    return graph.nodes[first : last + 1]
