"""Sums over a hook point's values where they lie: small ggml graphs on the values' own device.

Of a value on a GPU, or in another machine's memory, sums travel and not activations. The graphs
read the replicas' buffers: each starts at leaves that alias the values' bytes. llama.cpp lays a
batch's values where the last one's were, so that a graph is built once and run for every chunk.

Values in this computer's memory are summed by NumPy (:mod:`ggufnorm.core.metrics`), which is what
these sums are tested against: block by block in a core's cache it is faster than ggml's operations,
each of which passes over the whole value.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.engines.llama import binding
from ggufnorm.engines.llama.binding import TensorStruct, buffer_of, ggml
from ggufnorm.errors import EngineError

_F32, _I8 = 0, 24  # enum ggml_type in ggml/include/ggml.h
_NODES = 64
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
        largest: of ``d``.
    """

    dd: NDArray[np.float32]
    dr: NDArray[np.float32]
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
    """Sums over values of replicas that share a device, whose memory ends with this process.

    Args:
        n_threads: of a device that is a CPU.
    """

    def __init__(self, n_threads: int) -> None:
        self._n_threads = n_threads
        self._places: dict[int, _Place] = {}
        self._graphs: dict[tuple[object, ...], _SumGraph | None] = {}

    def sums(self, addresses: Sequence[int], channels_of: int | None = None) -> ValueSums | None:
        """Sum one hook point's values.

        Args:
            addresses: of just-computed nodes: the reference's first.
            channels_of: number of the node, among all, whose error is wanted per channel.

        Returns:
            None where it must be done here: another type than F32, gaps in memory, two
            devices, or a device that lacks an operation.
        """
        tensors = [TensorStruct.from_address(a) for a in addresses]
        # Another hook point's value may have lain at the same place, in another form.
        places = [(t.data, buffer_of(t), tuple(t.nb), t.type) for t in tensors]
        key = (channels_of, tuple(tensors[0].ne), *places)
        if key not in self._graphs:
            self._graphs[key] = self._built(addresses, tensors, channels_of)
        graph = self._graphs[key]
        return None if graph is None else graph.compute()

    def _built(
        self, addresses: Sequence[int], tensors: Sequence[TensorStruct], channels_of: int | None
    ) -> _SumGraph | None:
        buffers = [buffer_of(t) for t in tensors]
        if any(t.type != _F32 for t in tensors) or 0 in tensors[0].ne or None in buffers:
            return None
        if not all(map(binding.is_contiguous, addresses)):
            return None
        types = {ggml().ggml_backend_buffer_get_type(b) for b in buffers}
        if len(types) != 1 or 4 * math.prod(tensors[0].ne) > _MOST:
            return None
        place = self._place(types.pop())
        graph = _SumGraph(place, tensors, [b for b in buffers if b is not None], channels_of)
        return graph if graph.is_supported() else None

    def _place(self, buffer_type: int) -> _Place:
        if buffer_type not in self._places:
            self._places[buffer_type] = _Place(buffer_type, self._n_threads)
        return self._places[buffer_type]


class _Place:
    """A device, and memory on it for intermediate values and for results."""

    def __init__(self, buffer_type: int, n_threads: int) -> None:
        lib = ggml()
        self.buffer_type = buffer_type
        # Buffer types of the CPU name no device.
        self.device = lib.ggml_backend_buft_get_device(buffer_type) or lib.ggml_backend_dev_by_name(
            b"CPU"
        )
        self.backend = lib.ggml_backend_dev_init(self.device, None)
        if not self.backend:
            raise EngineError("ggml cannot start a second backend on the values' device")
        self.alignment = max(128, int(lib.ggml_backend_buft_get_alignment(buffer_type)))
        self._buffers: dict[str, tuple[int, int]] = {}
        registry = lib.ggml_backend_dev_backend_reg(self.device)
        setter = lib.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_set_n_threads")
        if setter:
            ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)(setter)(self.backend, n_threads)

    def aligned(self, n_bytes: int) -> int:
        """So many bytes, and what is left of the last unit."""
        return -(-n_bytes // self.alignment) * self.alignment

    def memory(self, what: str, n_bytes: int) -> int:
        """A buffer of at least that size; larger ones do not move what smaller ones hold."""
        held, size = self._buffers.get(what, (0, 0))
        if size < n_bytes:
            held = ggml().ggml_backend_buft_alloc_buffer(self.buffer_type, n_bytes)
            if not held:
                raise EngineError(f"the device has no {n_bytes:,} bytes left for sums")
            self._buffers[what] = (held, n_bytes)  # graphs still point into the old one
        return held


class _SumGraph:
    """The graph of one hook point, and where its results lie."""

    def __init__(
        self,
        place: _Place,
        tensors: Sequence[TensorStruct],
        buffers: Sequence[int],
        channels_of: int | None,
    ) -> None:
        lib = ggml()
        self._place, self._channels_of, self._n_others = place, channels_of, len(tensors) - 1
        self._ne = [int(n) for n in tensors[0].ne]
        self._n, self._rows = math.prod(self._ne), math.prod(self._ne[1:])
        overhead = lib.ggml_graph_overhead_custom(_NODES, False)
        self._context = binding.tensor_context(overhead + 2 * _NODES * lib.ggml_tensor_overhead())
        self._graph = lib.ggml_new_graph_custom(self._context, _NODES, False)
        self._nodes: list[int] = []
        self._slots: list[tuple[int, int, type[Any]]] = []
        self._size = 0
        step = place.aligned(4 * self._n)
        self._scratch = place.memory("intermediate", 3 * step)
        self._low = lib.ggml_backend_buffer_get_base(self._scratch)
        self._step = step
        # Results first need a size: every row of every array, and what is single.
        n_results = (4 + 2 * len(tensors)) * place.aligned(4 * max(self._rows, self._ne[0]))
        self._out = place.memory("results", n_results + 32 * place.alignment)
        self._base = lib.ggml_backend_buffer_get_base(self._out)
        leaves = [self._leaf(t, b) for t, b in zip(tensors, buffers, strict=True)]
        self._build(leaves)
        self._blob = lib.ggml_new_tensor_4d(self._context, _I8, self._size, 1, 1, 1)
        lib.ggml_backend_tensor_alloc(self._out, self._blob, self._base)

    def _leaf(self, tensor: TensorStruct, buffer: int) -> int:
        leaf: int = ggml().ggml_new_tensor_4d(self._context, _F32, *self._ne)
        ggml().ggml_backend_tensor_alloc(buffer, leaf, tensor.data)
        return leaf

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
        supports = ggml().ggml_backend_dev_supports_op
        return all(supports(self._place.device, node) for node in self._nodes)

    def compute(self) -> ValueSums:
        """Run it and read all results at once.

        Raises:
            EngineError: the device failed.
        """
        lib = ggml()
        if lib.ggml_backend_graph_compute(self._place.backend, self._graph) != 0:
            raise EngineError("the device failed to sum a hook point's values")
        raw = np.empty(self._size, np.uint8)
        lib.ggml_backend_tensor_get(self._blob, raw.ctypes.data, 0, self._size)
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
            others.append(OtherSums(dd, take(), largest()))
        peaks = (largest(), largest())
        return ValueSums(rr, tuple(others), peaks, (channels[0], channels[1]) if channels else None)
