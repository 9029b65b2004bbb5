"""Devices that hold values: graphs of our own run there, and what they give is read together.

On another machine's memory a read waits for an answer, as does a copy; a graph does not
(``ggml_backend_rpc_graph_compute``, ``_buffer_get_tensor`` and ``_buffer_cpy_tensor`` in
ggml/src/ggml-rpc/ggml-rpc.cpp). So graphs copy what is wanted of a batch's values to one buffer
beside them, and that buffer is read once for all.
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.engines.llama import binding, rpc
from ggufnorm.engines.llama.binding import TensorStruct, buffer_of, ggml
from ggufnorm.errors import EngineError

F32, I8, I32 = 0, 24, 26
"""``enum ggml_type`` in ggml/include/ggml.h."""
KEPT_BYTES = 32 << 20
"""Of a device's memory, for what waits to be read: at 1 Gbit/s they take 0.3 s, and the round
trip that reads them is a small part of that."""

_FIRST, _SECONDS = 32, 10.0
"""Results that are kept before the first read, which tells how long others take; seconds that
they may take later: servers that compute longer without an answer could be taken for hung."""

Read = Callable[[], NDArray[np.uint8]]
"""Gives bytes that were kept, once they have been read."""


@dataclass(frozen=True)
class Region:
    """Values of four bytes each in a device's memory.

    Attributes:
        buffer: of ggml's that holds them.
        address: of the first, as the device counts.
        dtype: ggml's number, F32 or I32.
        ne: as in ``struct ggml_tensor``.
        nb: the same.
    """

    buffer: int
    address: int
    dtype: int
    ne: tuple[int, ...]
    nb: tuple[int, ...]

    @classmethod
    def at(cls, buffer: int, address: int, ne: tuple[int, ...], dtype: int = I32) -> Region:
        """Values without gaps."""
        nb = tuple(4 * math.prod(ne[:i]) for i in range(4))
        return cls(buffer, address, dtype, ne, nb)

    @classmethod
    def of(cls, address: int) -> Region | None:
        """A node's values; None where they are of another type, or in no buffer."""
        t = TensorStruct.from_address(address)
        buffer = buffer_of(t)
        if t.type not in (F32, I32) or 0 in t.ne or buffer is None:
            return None
        return cls(buffer, t.data, t.type, tuple(map(int, t.ne)), tuple(map(int, t.nb)))

    @property
    def n_bytes(self) -> int:
        """Without gaps."""
        return 4 * math.prod(self.ne)

    @property
    def is_contiguous(self) -> bool:
        """Whether there are none."""
        packed = Region.at(self.buffer, self.address, self.ne).nb
        return all(n == 1 or a == b for n, a, b in zip(self.ne, self.nb, packed, strict=True))

    def part(self, axis: int, first: int, n: int) -> Region:
        """``n`` of its positions on one of ``ne``'s axes."""
        ne = (*self.ne[:axis], n, *self.ne[axis + 1 :])
        return replace(self, address=self.address + first * self.nb[axis], ne=ne)

    def leaf(self, context: int) -> int:
        """A tensor of those values."""
        leaf: int = ggml().ggml_new_tensor_4d(context, self.dtype, *self.ne)
        for i, stride in enumerate(self.nb):
            TensorStruct.from_address(leaf).nb[i] = stride
        ggml().ggml_backend_tensor_alloc(self.buffer, leaf, self.address)
        return leaf


class Place:
    """A device with a second backend on it, and memory for what that computes.

    Its memory ends with this process.
    """

    def __init__(self, buffer_type: int) -> None:
        lib = ggml()
        self._buffer_type = buffer_type
        # Buffer types of the CPU name no device.
        self._device = lib.ggml_backend_buft_get_device(
            buffer_type
        ) or lib.ggml_backend_dev_by_name(b"CPU")
        self._backend = lib.ggml_backend_dev_init(self._device, None)
        if not self._backend:
            raise EngineError("ggml cannot start a second backend on the values' device")
        self.alignment = max(128, int(lib.ggml_backend_buft_get_alignment(buffer_type)))
        self._buffers: dict[str, tuple[int, int]] = {}
        self._use_one_thread()

    def _use_one_thread(self) -> None:
        """Of a device that is a CPU: threads of the replicas' spin meanwhile."""
        registry = ggml().ggml_backend_dev_backend_reg(self._device)
        name = b"ggml_backend_set_n_threads"
        setter = ggml().ggml_backend_reg_get_proc_address(registry, name)
        if setter:
            ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)(setter)(self._backend, 1)

    def aligned(self, n_bytes: int) -> int:
        """So many bytes, and what is left of the last unit."""
        return -(-n_bytes // self.alignment) * self.alignment

    def memory(self, what: str, n_bytes: int) -> int:
        """A buffer of at least that size; larger ones do not move what smaller ones hold.

        Raises:
            EngineError: the device has no such memory left.
        """
        held, size = self._buffers.get(what, (0, 0))
        if size < n_bytes:
            held = ggml().ggml_backend_buft_alloc_buffer(self._buffer_type, n_bytes)
            if not held:
                raise EngineError(f"the device has no {n_bytes:,} bytes left for sums")
            self._buffers[what] = (held, n_bytes)  # graphs still point into the old one
        return held

    def supports(self, node: int) -> bool:
        """Whether the device has a node's operation; of servers that is not told."""
        return bool(ggml().ggml_backend_dev_supports_op(self._device, node))

    def compute(self, graph: int) -> None:
        """Run a graph on values of this device.

        Raises:
            EngineError: the device failed.
        """
        if ggml().ggml_backend_graph_compute(self._backend, graph) != 0:
            raise EngineError("the device failed to sum or to copy values")

    def copy(self, source: Region, target: Region) -> bool:
        """Copy values within this device; False where it cannot."""
        lib = ggml()
        n = lib.ggml_graph_overhead_custom(4, False) + 4 * lib.ggml_tensor_overhead()
        context = binding.tensor_context(n)
        try:
            node = lib.ggml_cpy(context, source.leaf(context), target.leaf(context))
            lib.ggml_backend_view_init(node)  # an RPC server would write to address 0 and die
            if not self.supports(node):
                return False
            graph = lib.ggml_new_graph_custom(context, 4, False)
            lib.ggml_build_forward_expand(graph, node)
            self.compute(graph)
        finally:
            lib.ggml_free(context)
        return True


_PLACES: dict[int, Place] = {}


def place_of(*buffers: int) -> Place | None:
    """The device of some buffers; None where they lie on several."""
    types = {ggml().ggml_backend_buffer_get_type(buffer) for buffer in buffers}
    if len(types) != 1:
        return None
    (of_device,) = types
    if of_device not in _PLACES:
        _PLACES[of_device] = Place(of_device)
    return _PLACES[of_device]


def copy_there(source: int, target: int) -> bool:
    """Copy a node's values over another's of its shape, on the device of both.

    Returns:
        False where they lie on two devices, or their device cannot.
    """
    a, b = Region.of(source), Region.of(target)
    if a is None or b is None or (a.dtype, a.ne) != (b.dtype, b.ne):
        return False
    place = place_of(a.buffer, b.buffer)
    return place is not None and place.copy(a, b)


class _Later:
    """Bytes that are read later."""

    def __init__(self, start: int, n: int) -> None:
        self.span = slice(start, start + n)
        self._found: NDArray[np.uint8] | None = None

    def arrive(self, whole: NDArray[np.uint8]) -> None:
        self._found = whole[self.span]

    def __call__(self) -> NDArray[np.uint8]:
        assert self._found is not None, "not read yet"
        return self._found


class _Shelf:
    """The memory of one device where results wait to be read."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._buffer = place.memory("kept", KEPT_BYTES)
        self._base = int(ggml().ggml_backend_buffer_get_base(self._buffer))
        self._waiting: list[_Later] = []
        self._used = 0

    def has_room(self, n_bytes: int) -> bool:
        return self._used + n_bytes <= KEPT_BYTES

    def put(self, source: Region) -> _Later | None:
        target = Region.at(self._buffer, self._base + self._used, source.ne, source.dtype)
        if not self.place.copy(source, target):
            return None
        later = _Later(self._used, source.n_bytes)
        self._waiting.append(later)
        self._used += self.place.aligned(source.n_bytes)
        return later

    def read(self) -> None:
        if self._used == 0:
            return
        lib, whole = ggml(), np.empty(self._used, np.uint8)
        context = binding.tensor_context(lib.ggml_tensor_overhead())
        try:
            blob = lib.ggml_new_tensor_4d(context, I8, self._used, 1, 1, 1)
            lib.ggml_backend_tensor_alloc(self._buffer, blob, self._base)
            lib.ggml_backend_tensor_get(blob, whole.ctypes.data, 0, self._used)
        finally:
            lib.ggml_free(context)
        for later in self._waiting:
            later.arrive(whole)
        self._waiting, self._used = [], 0


class Readback:
    """Keeps results on the devices that computed them, and reads all of a device's at once."""

    def __init__(self) -> None:
        self._shelves: dict[Place, _Shelf] = {}
        self._due: list[Callable[[], None]] = []
        self._n, self._most, self._since = 0, _FIRST, time.monotonic()

    def keep(self, source: Region) -> Read | None:
        """Copy values to where they wait to be read.

        What waits there is read first where there is no room left, or where reading it has been
        put off for long.

        Returns:
            None where they cannot be kept: the device cannot copy them, or they are too large.
        """
        place = place_of(source.buffer)
        if place is None or source.n_bytes > KEPT_BYTES:
            return None
        if place not in self._shelves:
            self._shelves[place] = _Shelf(place)
        shelf = self._shelves[place]
        if self._n >= self._most or not shelf.has_room(source.n_bytes):
            self.settle()
        self._n += 1
        return shelf.put(source)

    def then(self, what: Callable[[], Any]) -> None:
        """Do something as soon as all that is kept now has been read."""
        self._due.append(what)

    def settle(self) -> None:
        """Read all that is kept, and do what waits for it."""
        with rpc.watched("reading sums"):
            for shelf in self._shelves.values():
                shelf.read()
        due, self._due = self._due, []
        for what in due:
            what()
        now = time.monotonic()
        if self._n:
            affordable = int(self._n * _SECONDS / max(now - self._since, 1e-3))
            self._most = max(1, min(affordable, 8 * self._most))  # a few may have been quick
        self._n, self._since = 0, now
