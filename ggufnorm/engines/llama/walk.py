"""Several contexts walk the same graph together and meet at every watched node.

A lane is a context with its own thread. Lanes take turns: lane 0, the reference,
computes up to the next stop and hands on; each other lane then computes up to the same
stop, and when the last has come all values are compared where they lie. So only one stop's
values are held, however long the text and deep the model, and every lane has all threads
to itself while it computes.

A pinned lane goes on with the reference's value instead of its own: what it shows at the
next stop is the error that the operations in between make by themselves.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.model import Skipped
from ggufnorm.engines.llama.binding import is_contiguous, view_node, write_node
from ggufnorm.engines.llama.graph import Graph, Stop
from ggufnorm.engines.llama.session import Batch, EngineOptions, LlamaContext, LlamaModel
from ggufnorm.engines.llama.watch import GraphWatch

Array = NDArray[np.float32]


def cut_chunk(
    model: LlamaModel, tokens: NDArray[np.int32], first: int, max_batch: int
) -> list[Batch]:
    """Cut a chunk into the batches that its model wants.

    - A decoder gets the chunk in batches, its first token replaced by BOS if the model
      wants one, and gives logits for the second half, as llama-perplexity does.
    - An encoder-decoder reads the first half and predicts the second.
    - An embedding model gets all at once and gives no logits.

    Args:
        model: that is going to run it.
        tokens: of the chunk.
        first: number of the chunk's first token in the whole text.
        max_batch: most tokens in one batch.
    """
    half = len(tokens) // 2
    nothing = tokens[:0]
    if model.is_embedding:
        return [Batch(tokens, 0, len(tokens), nothing, first)]
    if model.has_encoder:
        start = np.array([model.decoder_start], np.int32)
        inner = np.concatenate([start, tokens[half:-1]])
        return [
            Batch(tokens[:half], 0, half, nothing, first, encode=True),
            Batch(inner, 0, len(inner), tokens[half:], first + half),
        ]
    if model.bos is not None:
        tokens = np.concatenate([np.array([model.bos], np.int32), tokens[1:]])
    cut = []
    for at in range(0, len(tokens), max_batch):
        part = tokens[at : at + max_batch]
        end = at + len(part)
        n_outputs = max(0, min(len(part), end - half))
        following = tokens[end - n_outputs + 1 : end + 1]
        cut.append(Batch(part, at, n_outputs, following, first + at))
    return cut


class Lane:
    """A context with the plan of its graph, walked stop by stop.

    Attributes:
        graphs: one per batch of a chunk (a later batch may build another graph).
    """

    def __init__(
        self,
        model: LlamaModel,
        options: EngineOptions,
        tensors: frozenset[str],
        *,
        pin: bool,
        n_seq: int = 1,
    ) -> None:
        self.pin = pin
        self.graphs: list[Graph] = []
        self._watch = GraphWatch(model.path, tensors, unfused_norms=options.unfused_norms)
        self.context = LlamaContext(model, options, self._watch.on_eval, n_seq)

    def plan(self, chunk: list[Batch]) -> None:
        """Decode a chunk once and learn the graph of each of its batches."""
        self.context.clear()
        for batch in chunk:
            prefix = "enc." if batch.encode else ""
            decode = functools.partial(self.context.decode, batch)
            self.graphs.append(self._watch.plan(decode, prefix))

    def walk(
        self, graph: Graph, stops: Sequence[int], batch: Batch, on_stop: Callable[[int, int], bool]
    ) -> None:
        """Decode a batch and call ``on_stop(k, address)`` at the k-th of the given nodes.

        Raises:
            EngineError: the decode failed, or the graph is not the one that was planned.
        """
        self._watch.walk(graph, stops, functools.partial(self.context.decode, batch), on_stop)


Observer = Callable[[Stop, Batch, Sequence[Array]], None]
"""Sees the values of all lanes at a stop, each ``(ne[3], ne[2], ne[1], ne[0])``.

Stops come in graph order. Values are good until the call returns: copy what is kept. All
lanes wait meanwhile: who computed beside them would take the cores on which their threads
wait for each other.
"""


class Lockstep:
    """Walks all lanes through one batch after another."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.lanes = lanes
        self.matches = [
            match_stops([lane.graphs[i] for lane in lanes]) for i in range(len(lanes[0].graphs))
        ]

    def run(self, index: int, batch: Batch, observe: Observer) -> None:
        """Decode the chunk's ``index``-th batch in all lanes.

        Raises:
            EngineError: a lane failed.
        """
        match = self.matches[index]
        turns = [threading.Semaphore(1 if i == 0 else 0) for i in range(len(self.lanes))]
        failed: list[BaseException] = []
        addresses = [0] * len(self.lanes)

        def hand_on(i: int) -> None:
            turns[(i + 1) % len(turns)].release()

        def meet(stop: Stop) -> None:
            values = [view_node(address) for address in addresses]
            observe(stop, batch, values)
            for lane, address in zip(self.lanes, addresses, strict=True):
                if lane.pin and stop.pin and is_contiguous(address):
                    write_node(address, values[0])

        def on_stop(i: int, k: int, address: int) -> bool:
            if failed:
                return False
            addresses[i] = address
            if i + 1 == len(addresses):
                meet(match.stops[k])
            hand_on(i)
            turns[i].acquire()
            return not failed

        def work(i: int) -> None:
            turns[i].acquire()
            lane = self.lanes[i]
            try:
                if not failed:
                    lane.walk(
                        lane.graphs[index],
                        match.indices[i],
                        batch,
                        lambda k, address: on_stop(i, k, address),
                    )
            except BaseException as error:
                failed.append(error)
            for turn in turns if failed else ():
                turn.release()
            hand_on(i)

        threads = [
            threading.Thread(target=work, args=(i,), name=f"lane {i}")
            for i in range(len(self.lanes))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]


@dataclass(frozen=True)
class Match:
    """The stops that all lanes share.

    Attributes:
        stops: lane 0's, in graph order.
        indices: for each lane the nodes' indices of those stops.
        skipped: stops that some lane lacks, or has in another place.
    """

    stops: tuple[Stop, ...]
    indices: tuple[tuple[int, ...], ...]
    skipped: tuple[Skipped, ...]


def match_stops(graphs: Sequence[Graph]) -> Match:
    """Pair the stops of several graphs by their keys, in an order that all share."""
    reference = graphs[0]
    kept = list(reference.stops)
    skipped: list[Skipped] = []
    at: list[dict[str, int]] = []
    for graph in graphs[1:]:
        where = {s.key: s.index for s in graph.stops}
        at.append(where)
        shapes = {s.key: graph.nodes[s.index].shape for s in graph.stops}
        found, last = [], -1
        for stop in kept:
            index = where.get(stop.key)
            if index is None:
                skipped.append(Skipped(stop.key, "has no partner in the other graph"))
            elif index <= last:
                skipped.append(Skipped(stop.key, "stands elsewhere in the other graph"))
            elif shapes[stop.key] != reference.nodes[stop.index].shape:
                skipped.append(Skipped(stop.key, "has another shape in the other graph"))
            else:
                found.append(stop)
                last = index
        known = {s.key for s in reference.stops}
        skipped += [
            Skipped(s.key, "has no partner in the reference's graph")
            for s in graph.stops
            if s.key not in known
        ]
        kept = found
    indices = [tuple(s.index for s in kept)]
    indices += [tuple(where[s.key] for s in kept) for where in at]
    return Match(tuple(kept), tuple(indices), tuple(dict.fromkeys(skipped)))
