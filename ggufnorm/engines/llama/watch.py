"""Learn the graph of a run, and call back at chosen nodes of the next one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ggufnorm.engines.base import Graph
from ggufnorm.engines.llama.binding import NodeView, buffer_names, weights_by_buffer
from ggufnorm.engines.llama.graph import build_graph
from ggufnorm.errors import EngineError

Run = Callable[[], None]
"""Computes one graph, under the eyes of :meth:`GraphWatch.on_eval`."""


class GraphWatch:
    """What a scheduler's ``cb_eval`` is answered, one graph at a time.

    Args:
        path: of the model, for messages.
        tensors: names of the tensors in its file.
        unfused_norms: make each norm operation a hook point of its own.
        on_node: called with each node's address before it is computed.

    Attributes:
        devices: names of the buffers that the planned graph's results are on.
        alone: whether the next plan makes every operation a hook point.
        weights: names of the buffers that its weights are in, and bytes in each.
    """

    def __init__(
        self,
        path: str,
        tensors: frozenset[str],
        *,
        unfused_norms: bool = False,
        on_node: Callable[[int], None] = lambda _address: None,
    ) -> None:
        self._path = path
        self._tensors = tensors
        self._unfused = unfused_norms
        self._on_node = on_node
        self._error: BaseException | None = None
        self._views: list[NodeView] | None = None
        self._next = 0
        self._wanted: dict[int, int] = {}
        self._graph: Graph | None = None
        self.devices: tuple[str, ...] = ()
        self.alone = False
        self.weights: tuple[tuple[str, int], ...] = ()
        self._on_node_done: Callable[[int, int], bool] = lambda _k, _address: True

    def plan(self, run: Run, prefix: str = "") -> Graph:
        """Run once and learn the graph.

        Args:
            run: what to run.
            prefix: put before each node's key.
        """
        self._views = []
        run()
        self._raise()
        # The sources are read while the graph still exists.
        addresses = [view.address for view in self._views]
        self.devices = buffer_names(addresses)
        self.weights = tuple(sorted(weights_by_buffer(addresses, self._tensors).items()))
        graph = build_graph(
            self._views,
            self._tensors,
            prefix=prefix,
            unfused_norms=self._unfused,
            alone=self.alone,
        )
        self._views = None
        return graph

    def forward(
        self, graph: Graph, at: Sequence[int], run: Run, on_done: Callable[[int, int], bool]
    ) -> None:
        """Run and call ``on_done(k, address)`` at the k-th of the given nodes.

        Raises:
            EngineError: the run failed, or the graph is not the one that was planned.
        """
        self._graph, self._next = graph, 0
        self._wanted = {index: k for k, index in enumerate(at)}
        self._on_node_done = on_done
        run()
        self._raise()
        if self._next != len(graph.nodes):
            raise self._changed(f"it had {len(graph.nodes)} nodes and now has {self._next}")

    def on_eval(self, address: int, ask: bool) -> bool:
        """See ``ggml_backend_sched_eval_callback``."""
        # Nothing may be raised through llama.cpp: ctypes would print and swallow it.
        try:
            if ask:
                self._on_node(address)
            if self._views is not None:
                self._views.append(NodeView.at(address))
                return False
            if ask:
                self._next += 1
                return self._next - 1 in self._wanted
            return self._arrive(address)
        except BaseException as error:
            self._error = self._error or error
            return False

    @property
    def failed(self) -> bool:
        """Whether a callback raised something, which the run then raises."""
        return self._error is not None

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _changed(self, how: str) -> EngineError:
        return EngineError(f"{self._path}: llama.cpp's graph changed between two runs: {how}")

    def _arrive(self, address: int) -> bool:
        assert self._graph is not None
        index = self._next - 1
        node, now = self._graph.nodes[index], NodeView.at(address)
        if (node.name, node.op, node.shape) != (now.name, now.op, now.shape):
            raise self._changed(f"node {index} was {node.name} and now is {now.name}")
        return self._on_node_done(self._wanted[index], address)
