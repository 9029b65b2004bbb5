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
from ggufnorm.engines.llama.runner import operand
from ggufnorm.engines.row_file import Place, RowFile
from ggufnorm.engines.worker import Channel
from ggufnorm.formats.location import local_path
from ggufnorm.runs.options import RunSettings

_COPIES = VIEW_OPS | COPY_OPS | {"SET_ROWS"}


@dataclass(frozen=True)
class SegmentJob:
    """A model to run, and between which norms its nodes are kept.

    Attributes:
        rows: name of the file that holds the source's rows.
        pins: the source's input of each norm, which the norm is given; by the norm's key.
    """

    run: RunJob
    start: str | None
    end: str | None
    rows: str
    pins: dict[str, Place]


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
    rows: RowFile,
    pins: Mapping[str, Place],
    how: RunSettings,
) -> list[Operation]:
    """Run token ids and keep every result between two norms.

    Args:
        location: of a model on this machine.
        tokens: ids.
        start: key of the norm at whose input it begins; None for the graph's beginning.
        end: key of the norm at whose input it ends; None for the graph's end.
        rows: the file that holds the source's rows.
        pins: the source's input of each norm, which it is given; by the norm's key.
        how: it is run.

    Returns:
        In the order of the graph.

    Raises:
        EngineError: llama.cpp fails or crashes.
    """
    options = how.engine(len(tokens))
    job = RunJob(os.fspath(local_path(location)), options, None, tokens)
    segment = worker.call(
        observe_nodes,
        SegmentJob(job, start, end, rows.name, dict(pins)),
        descriptors=rows.descriptors,
    )
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
        part = _part(run, job.end)
        nodes = _between(run.runner.graphs[part], job.start, job.end)
        values, given = _values(run, job, part, nodes)
        place: dict[int | str, int] = {name: i for i, name in enumerate(given)}
        place |= {n.index: len(given) + i for i, n in enumerate(nodes)}
        written = {name: len(given) + i for name, i in _written(nodes).items()}
        leaves = [SegmentNode(name, "INPUT", (), None, b"", given[name]) for name in given]
        return Segment((*leaves, *(_segment_node(run, n, place, written, values) for n in nodes)))


def _segment_node(
    run: Planned,
    node: Node,
    place: Mapping[int | str, int],
    written: Mapping[str, int],
    values: Mapping[int, Array],
) -> SegmentNode:
    return SegmentNode(
        key=node.key,
        op=node.op,
        inputs=_inputs(node, place, written),
        tensor=next(
            (s for s in node.sources if isinstance(s, str) and s in run.file.tensors), None
        ),
        params=node.params,
        value=values.get(node.index),
    )


def _part(run: Planned, end: str | None) -> int:
    """Number of the batch in which a stretch ends: where a norm is, or else the last one."""
    held = (k for k, (g, _) in enumerate(run.parts) if any(n.key == end for n in g.norms))
    return next(held, len(run.parts) - 1)


def _values(
    run: Planned, job: SegmentJob, part: int, nodes: Sequence[Node]
) -> tuple[dict[int, Array], dict[str, Array]]:
    """What nodes hold, and what is given to products from outside, by the leaf's name.

    Norms hold the source's values where they get those, but for the last node.
    """
    rows = RowFile(job.rows)
    pins = [pins_of(graph, rows, job.pins, run.n_rows) for graph, _ in run.parts]
    known = {n.index: n for n in nodes if is_readable(n.dtype)}
    values: dict[int, Array] = {}
    given: dict[str, Array] = {}

    def keep(_part: int, index: int, value: Activation) -> None:
        own = index == nodes[-1].index or index not in pins[part]
        values[index] = value.value.copy() if own else pins[part][index]()
        leaf = _leaf(run, known[index])
        if leaf is not None and leaf not in given:
            given[leaf] = operand(value).product()[1]

    watched = [list(known) if k == part else [] for k in range(len(run.parts))]
    run_pinned(run.runner, run.batches, pins, watched, keep)
    return values, given


def _leaf(run: Planned, node: Node) -> str | None:
    """What a product with a matrix of the file gets from outside the graph: an encoder's states."""
    if node.op != "MUL_MAT" or node.sources[0] not in run.file.tensors:
        return None
    x = node.sources[1]
    return x if isinstance(x, str) and x not in run.file.tensors else None


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
    # A stretch that begins in the encoder begins with the decoder's first node.
    first = inputs.get(start or "", 0)
    last = len(graph.nodes) - 1 if end is None else inputs[end]
    return graph.nodes[first : last + 1]
