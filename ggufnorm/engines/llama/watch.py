"""Learn the graph of a run, and call back at chosen nodes of the next one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ggufnorm.engines.base import Graph
from ggufnorm.engines.llama.binding import NodeView, buffer_names, set_op, weights_by_buffer
from ggufnorm.engines.llama.graph import build_graph
from ggufnorm.engines.llama.stretch import Layers, Stretch, cut
from ggufnorm.errors import EngineError

Run = Callable[[], None]
"""Computes one graph, under the eyes of :meth:`GraphWatch.on_eval`."""


@dataclass(frozen=True)
class _Range:
    """A range of layers in a planned graph.

    Attributes:
        stretch: what of it is computed.
        operations: ggml's number of each node's operation, 0 for those that are not.
    """

    stretch: Stretch
    operations: Sequence[int]


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
        layers: the range that is computed from the next plan on, and how many layers there are;
            None for the whole model.
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
        self._computes = True
        self._next = 0
        self._wanted: dict[int, int] = {}
        self._graph: Graph | None = None
        self.devices: tuple[str, ...] = ()
        self.alone = False
        self.layers: tuple[Layers, int] | None = None
        self._ranges: dict[int, _Range] = {}
        self._range: _Range | None = None
        self.weights: tuple[tuple[str, int], ...] = ()
        self._on_node_done: Callable[[int, int], bool] = lambda _k, _address: True

    def plan(self, run: Run, prefix: str = "", *, compute: bool = False) -> Graph:
        """Run once and learn the graph.

        Args:
            run: what to run.
            prefix: put before each node's key.
            compute: compute its nodes, so that the run has results; otherwise they are empty
                (:mod:`~ggufnorm.engines.llama.stretch`), and it takes no time.
        """
        self._views, self._computes = [], compute
        run()
        self._raise()
        for view in () if compute else self._views:  # llama.cpp may use the graph again
            set_op(view.address, view.number)
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
        views, self._views = self._views, None
        return graph if self.layers is None else self._cut(graph, views)

    def _cut(self, graph: Graph, views: Sequence[NodeView]) -> Graph:
        assert self.layers is not None
        stretch = cut(graph, self.layers[0], self._tensors, self.layers[1])
        operations = [0 if v in stretch.empty else view.number for v, view in enumerate(views)]
        # The graph is kept, so that its id stays its own.
        self._ranges[id(stretch.graph)] = _Range(stretch, operations)
        return stretch.graph

    @property
    def ends_early(self) -> bool:
        """Whether layers are behind the range that is computed."""
        return any(not found.stretch.is_last for found in self._ranges.values())

    def entry_of(self, graph: Graph) -> int | None:
        """The node of a range's graph that is to be set to what the range before ended with."""
        found = self._ranges.get(id(graph))
        return None if found is None else found.stretch.entry

    def forward(
        self, graph: Graph, at: Sequence[int], run: Run, on_done: Callable[[int, int], bool]
    ) -> None:
        """Run and call ``on_done(k, address)`` at the k-th of the given nodes.

        Raises:
            EngineError: the run failed, or the graph is not the one that was planned.
        """
        self._graph, self._next, self._range = graph, 0, self._ranges.get(id(graph))
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
                if not self._computes:
                    set_op(address, 0)
                return False
            if ask:
                if self._range is not None and self._next < len(self._range.operations):
                    set_op(address, self._range.operations[self._next])
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
        op = node.op if self._range is None or self._range.operations[index] else now.op
        if (node.name, op, node.shape) != (now.name, now.op, now.shape):
            raise self._changed(f"node {index} was {node.name} and now is {now.name}")
        return self._on_node_done(self._wanted[index], address)
