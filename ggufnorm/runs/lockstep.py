"""Several replicas run the same graph together and meet at every hook point.

Each replica has its own thread, and they take turns: the first, the reference, computes up to
the next hook point and hands on; each other one then computes up to the same point, and when
the last has come, all values are observed where they lie. So only one hook point's values are
held, however long the text and deep the model, and every replica has all threads to itself
while it computes.

A pinned replica goes on with the reference's value instead of its own: what it shows at the
next hook point is the error that the operations in between make by themselves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from ggufnorm.core.model import Skipped
from ggufnorm.engines.base import Activation, Batch, Graph, HookPoint, Runner
from ggufnorm.engines.llama.runner import pin

OnHook = Callable[[HookPoint, Batch, Sequence[Activation]], None]
"""Sees the values of all replicas at a hook point.

Hook points come in graph order, and all replicas wait until the call returns.
"""


@dataclass(frozen=True)
class Replica:
    """A runner in a lockstep.

    Attributes:
        pinned: whether it goes on with the first replica's values.
    """

    runner: Runner
    pinned: bool = False


@dataclass(frozen=True)
class Match:
    """The hook points that several graphs share.

    Attributes:
        hooks: the first graph's, in its order.
        indices: for each graph the nodes' indices of those hook points.
        skipped: hook points that some graph lacks, or has in another place.
    """

    hooks: tuple[HookPoint, ...]
    indices: tuple[tuple[int, ...], ...]
    skipped: tuple[Skipped, ...]

    def only(self, nodes: Container[int]) -> Match:
        """The same with the hook points at some of the first graph's nodes."""
        kept = [k for k, hook in enumerate(self.hooks) if hook.index in nodes]
        hooks = tuple(self.hooks[k] for k in kept)
        indices = tuple(tuple(of_graph[k] for k in kept) for of_graph in self.indices)
        return Match(hooks, indices, self.skipped)


class Unwatched:
    """Runs all replicas through one batch after another, and shows nothing of it.

    Without a hook point there is nothing to learn a graph for, and none to wait at.

    Attributes:
        matches: none.
    """

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.replicas = replicas
        self.matches: list[Match] = []

    def run(self, k: int, batch: Batch, _on_hook: OnHook) -> None:
        """Run the chunk's k-th batch in all replicas.

        Raises:
            EngineError: a replica failed.
        """
        for replica in self.replicas:
            replica.runner.forward(k, batch, (), lambda _n, _value: True)


class Lockstep:
    """Runs all replicas through one batch after another.

    Args:
        replicas: of which each has learned its graphs.
        watch: which nodes of the first one's graph to stop at, if they are hook points; None
            for every hook point.

    Attributes:
        matches: for each batch of a chunk, the hook points that all replicas share.
    """

    def __init__(
        self, replicas: Sequence[Replica], watch: Callable[[Graph], Container[int]] | None = None
    ) -> None:
        self.replicas = replicas
        graphs = [replica.runner.graphs for replica in replicas]
        self.matches = [match_hooks(of_batch) for of_batch in zip(*graphs, strict=True)]
        if watch is not None:
            pairs = zip(self.matches, graphs[0], strict=True)
            self.matches = [match.only(watch(graph)) for match, graph in pairs]

    def run(self, k: int, batch: Batch, on_hook: OnHook) -> None:
        """Run the chunk's k-th batch in all replicas.

        Raises:
            EngineError: a replica failed.
        """
        match = self.matches[k]
        if len(self.replicas) == 1:

            def alone(n: int, value: Activation) -> bool:
                on_hook(match.hooks[n], batch, (value,))
                return True

            self.replicas[0].runner.forward(k, batch, match.indices[0], alone)
            return
        _Turns(self.replicas, match, k, batch, on_hook).run()


class _Turns:
    """One batch in several replicas, which take turns from one hook point to the next."""

    def __init__(
        self,
        replicas: Sequence[Replica],
        match: Match,
        k: int,
        batch: Batch,
        on_hook: OnHook,
    ) -> None:
        self.replicas, self.match, self.k, self.batch = replicas, match, k, batch
        self.on_hook = on_hook
        # Written in C: threading's semaphores wake a thread twice.
        self.turns: list[SimpleQueue[None]] = [SimpleQueue() for _ in replicas]
        self.turns[0].put(None)
        self.failed: list[BaseException] = []
        self.values: list[Activation] = []

    def run(self) -> None:
        threads = [
            threading.Thread(target=self._work, args=(i,), name=f"replica {i}")
            for i in range(len(self.replicas))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.failed:
            raise self.failed[0]

    def _work(self, i: int) -> None:
        self.turns[i].get()
        try:
            if not self.failed:
                self.replicas[i].runner.forward(
                    self.k,
                    self.batch,
                    self.match.indices[i],
                    lambda n, value: self._on_activation(i, n, value),
                )
        except BaseException as error:
            self.failed.append(error)
        for turn in self.turns if self.failed else ():
            turn.put(None)
        self._hand_on(i)

    def _hand_on(self, i: int) -> None:
        self.turns[(i + 1) % len(self.turns)].put(None)

    def _on_activation(self, i: int, n: int, value: Activation) -> bool:
        if self.failed:
            return False
        self.values.append(value)
        if i + 1 == len(self.replicas):
            self._meet(self.match.hooks[n])
        self._hand_on(i)
        self.turns[i].get()
        return not self.failed

    def _meet(self, hook: HookPoint) -> None:
        values, self.values = self.values, []
        self.on_hook(hook, self.batch, values)
        for replica, value in zip(self.replicas, values, strict=True):
            if replica.pinned and hook.pin:
                pin(value, values[0])


def match_hooks(graphs: Sequence[Graph]) -> Match:
    """Pair the hook points of several graphs by their keys, in an order that all share."""
    reference = graphs[0]
    kept = list(reference.hooks)
    skipped: list[Skipped] = []
    at: list[dict[str, int]] = []
    for graph in graphs[1:]:
        where = {h.key: h.index for h in graph.hooks}
        at.append(where)
        shapes = {h.key: graph.nodes[h.index].shape for h in graph.hooks}
        found, last = [], -1
        for hook in kept:
            index = where.get(hook.key)
            if index is None:
                skipped.append(Skipped(hook.key, "has no partner in the other graph"))
            elif index <= last:
                skipped.append(Skipped(hook.key, "stands elsewhere in the other graph"))
            elif shapes[hook.key] != reference.nodes[hook.index].shape:
                skipped.append(Skipped(hook.key, "has another shape in the other graph"))
            else:
                found.append(hook)
                last = index
        known = {h.key for h in reference.hooks}
        skipped += [
            Skipped(h.key, "has no partner in the reference's graph")
            for h in graph.hooks
            if h.key not in known
        ]
        kept = found
    indices = [tuple(h.index for h in kept)]
    indices += [tuple(where[h.key] for h in kept) for where in at]
    return Match(tuple(kept), tuple(indices), tuple(dict.fromkeys(skipped)))
