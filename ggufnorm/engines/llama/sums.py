"""Sums over a hook point's values where they lie: small ggml graphs on the values' own device.

Of a value on a GPU, or in another machine's memory, sums travel and not activations. The graphs
read the replicas' buffers: each starts at leaves that alias the values' bytes. llama.cpp lays a
batch's values where the last one's were, so that a graph is built once and run for every chunk.

Values in this computer's memory are summed by NumPy (:mod:`ggufnorm.core.metrics`), which is what
these sums are tested against: block by block in a core's cache it is faster than ggml's operations,
each of which passes over the whole value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.engines.llama import binding
from ggufnorm.engines.llama.binding import ggml
from ggufnorm.engines.llama.places import F32, Place, Readback, Region, place_of

_NODES = 80
_MOST = 1 << 30
"""Bytes of values beside a graph's own; larger ones are fetched and summed here."""


@dataclass(frozen=True)
class Largest:
    """The value of largest magnitude of an array, with its sign, and its index when flat.

    Of several as large ggml's argmax tells any.
    """

    value: float
    at: int


@dataclass(frozen=True)
class OtherSums:
    """Another array beside the reference, ``d = q - r``; all per row, float32.

    Attributes:
        dd: ``Σ d²``.
        dr: ``Σ d·r``.
        qq: ``Σ q²``.
        qr: ``Σ q·r``.
        largest: of ``d``.
    """

    dd: NDArray[np.float32]
    dr: NDArray[np.float32]
    qq: NDArray[np.float32]
    qr: NDArray[np.float32]
    largest: Largest


@dataclass(frozen=True)
class ValueSums:
    """What is told of one hook point.

    Attributes:
        rr: ``Σ r²`` per row.
        others: one for each array beside the reference.
        peaks: largest magnitude of the reference and of the first other.
        channels: ``Σ r²`` and ``Σ d²`` per channel of the array asked for; None if none was.
    """

    rr: NDArray[np.float32]
    others: tuple[OtherSums, ...]
    peaks: tuple[Largest, Largest]
    channels: tuple[NDArray[np.float32], NDArray[np.float32]] | None


class DeviceSums:
    """Sums over values of replicas that share a device.

    Args:
        readback: reads the sums.
    """

    def __init__(self, readback: Readback) -> None:
        self._readback = readback
        self._graphs: dict[tuple[object, ...], _SumGraph | None] = {}

    def sums(
        self, addresses: Sequence[int], channels_of: int | None = None
    ) -> Callable[[], ValueSums] | None:
        """Sum one hook point's values.

        Args:
            addresses: of just-computed nodes: the reference's first.
            channels_of: number of the node, among all, whose error is wanted per channel.

        Returns:
            What gives the sums once they have been read. None where it must be done here: another
            type than F32, two devices, or a device that lacks an operation.

        Raises:
            EngineError: the device failed, or has no memory left.
        """
        found = [Region.of(a) for a in addresses]
        values = tuple(v for v in found if v is not None and v.dtype == F32)
        if len(values) < len(found):
            return None
        # Another hook point's value may have lain at the same place, in another form.
        key = (channels_of, *values)
        if key not in self._graphs:
            self._graphs[key] = self._built(values, channels_of)
        graph = self._graphs[key]
        if graph is None:
            return None
        read = self._readback.keep(graph.compute())
        return None if read is None else lambda: graph.told(read())

    def _built(self, values: Sequence[Region], channels_of: int | None) -> _SumGraph | None:
        place = place_of(*(v.buffer for v in values))
        if place is None or values[0].n_bytes > _MOST or len({v.ne for v in values}) != 1:
            return None
        graph = _SumGraph(place, values, channels_of)
        return graph if graph.is_supported() else None


class _SumGraph:
    """The graph of one hook point, and where its results lie."""

    def __init__(self, place: Place, values: Sequence[Region], channels_of: int | None) -> None:
        lib = ggml()
        self._place, self._channels_of, self._n_others = place, channels_of, len(values) - 1
        self._ne = values[0].ne
        self._n, self._rows = math.prod(self._ne), math.prod(self._ne[1:])
        overhead = lib.ggml_graph_overhead_custom(_NODES, False)
        self._context = binding.tensor_context(overhead + 2 * _NODES * lib.ggml_tensor_overhead())
        self._graph = lib.ggml_new_graph_custom(self._context, _NODES, False)
        self._nodes: list[int] = []
        self._slots: list[tuple[int, int, type[Any]]] = []
        self._size = 0
        self._step = place.aligned(4 * self._n)
        with_gaps = sum(not v.is_contiguous for v in values)
        self._scratch = place.memory("intermediate", (3 + with_gaps) * self._step)
        self._low = lib.ggml_backend_buffer_get_base(self._scratch)
        # Results first need a size: every row of every array, and what is single.
        n_results = (4 + 4 * len(values)) * place.aligned(4 * max(self._rows, self._ne[0]))
        self._out = place.memory("results", n_results + 32 * place.alignment)
        self._base = lib.ggml_backend_buffer_get_base(self._out)
        self._build(self._leaves(values))

    def _leaves(self, values: Sequence[Region]) -> list[int]:
        """The values; of those with gaps a copy without."""
        leaves, place = [], 3
        for value in values:
            leaf = value.leaf(self._context)
            if not value.is_contiguous:
                leaf = self._node(ggml().ggml_cont(self._context, leaf), place)
                place += 1
            leaves.append(leaf)
        return leaves

    def _build(self, leaves: Sequence[int]) -> None:
        lib, c = ggml(), self._context
        reference, *others = leaves
        self._rows_of(lib.ggml_sqr(c, reference))
        if self._channels_of is not None:
            self._channels(lib.ggml_sqr(c, reference))
        for i, other in enumerate(others, 1):
            d = self._node(lib.ggml_sub(c, other, reference), 0)
            self._rows_of(lib.ggml_sqr(c, d))
            if i == self._channels_of:
                self._channels(lib.ggml_sqr(c, d))
            self._rows_of(lib.ggml_mul(c, d, reference))
            self._rows_of(lib.ggml_sqr(c, other))
            self._rows_of(lib.ggml_mul(c, other, reference))
            self._largest(d)
        for value in leaves[:2]:
            self._largest(value)

    def _node(self, tensor: int, place: int) -> int:
        """Compute a value into one of the places for intermediate ones."""
        low = self._low + place * self._step
        ggml().ggml_backend_tensor_alloc(self._scratch, tensor, low)
        return self._view(tensor)

    def _view(self, tensor: int) -> int:
        ggml().ggml_build_forward_expand(self._graph, tensor)
        self._nodes.append(tensor)
        return tensor

    def _result(self, tensor: int, n: int, dtype: type[Any]) -> int:
        """Compute a value into the results."""
        ggml().ggml_backend_tensor_alloc(self._out, tensor, self._base + self._size)
        self._slots.append((self._size, n, dtype))
        self._size += self._place.aligned(4 * n)
        return self._view(tensor)

    def _rows_of(self, values: int) -> None:
        found = ggml().ggml_sum_rows(self._context, self._node(values, 1))
        self._result(found, self._rows, np.float32)

    def _channels(self, values: int) -> None:
        lib, c = ggml(), self._context
        table = self._flat(self._node(values, 1), self._ne[0], self._rows)
        turned = lib.ggml_transpose(c, table)
        lib.ggml_backend_view_init(turned)
        found = lib.ggml_sum_rows(c, self._node(lib.ggml_cont(c, self._view(turned)), 2))
        self._result(found, self._ne[0], np.float32)

    def _largest(self, values: int) -> None:
        lib, c = ggml(), self._context
        magnitudes = self._flat(self._node(lib.ggml_abs(c, values), 1), self._n, 1)
        at = self._result(lib.ggml_argmax(c, magnitudes), 1, np.int32)
        self._result(lib.ggml_get_rows(c, self._flat(values, 1, self._n), at), 1, np.float32)

    def _flat(self, tensor: int, *shape: int) -> int:
        view: int = ggml().ggml_reshape_2d(self._context, tensor, *shape)
        ggml().ggml_backend_view_init(view)  # an RPC server would read address 0 and die
        return self._view(view)

    def is_supported(self) -> bool:
        """Whether the device has every operation."""
        return all(map(self._place.supports, self._nodes))

    def compute(self) -> Region:
        """Run it, and say where the results lie until it or another one runs again.

        Raises:
            EngineError: the device failed.
        """
        self._place.compute(self._graph)
        return Region.at(self._out, self._base, (self._size // 4, 1, 1, 1))

    def told(self, raw: NDArray[np.uint8]) -> ValueSums:
        """The results, read."""
        found = iter([raw[at : at + 4 * n].view(dtype) for at, n, dtype in self._slots])
        return self._told(lambda: next(found))

    def _told(self, take: Callable[[], NDArray[Any]]) -> ValueSums:
        """The results in the order in which they were built."""

        def largest() -> Largest:
            at = int(take()[0])
            return Largest(float(take()[0]), at)

        rr, wanted = take(), self._channels_of
        channels = [] if wanted is None else [take()]
        others = []
        for i in range(1, self._n_others + 1):
            dd = take()
            if i == wanted:
                channels.append(take())
            others.append(OtherSums(dd, take(), take(), take(), largest()))
        peaks = (largest(), largest())
        return ValueSums(rr, tuple(others), peaks, (channels[0], channels[1]) if channels else None)
