"""An ONNX file: its graph, and the values in it that do not depend on the input."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.model import TensorFacts
from ggufnorm.engines.onnx_input import MOST_ONNX
from ggufnorm.errors import EngineMissingError, InputError
from ggufnorm.formats.files import require_regular

Array = NDArray[np.float32]

_LEAST_MOST = 1 << 20
"""To how many elements a constant is expanded, at most, where the file has fewer bytes than
that; else to as many as it has bytes. A damaged shape may ask for any number."""
_MAX_NAME = 4096
_MOST_WEIGHTS = 1 << 18
_DEPTH = 8
"""Operations between an initializer and the place where it is used, at most."""


def require_onnx() -> Any:
    """The module onnx.

    Raises:
        EngineMissingError: it is not installed.
    """
    try:
        import onnx
        import onnx.external_data_helper
        import onnx.numpy_helper
    except ImportError as error:
        raise EngineMissingError(
            f'reading ONNX needs onnx and onnxruntime ({error}): pip install "ggufnorm[onnx]"'
        ) from None
    return onnx


class OnnxModel:
    """An ONNX file whose weights are read when they are asked for.

    Attributes:
        path: as given.
        proto: the parsed model; weights outside the file are not loaded into it.
        nodes: of the main graph, in order.
        producers: by the name of a value, the node that computes it.
        consumers: by the name of a value, the nodes that take it.
        index: place of each node in ``nodes``, by its ``id()``.

    Raises:
        EngineMissingError: onnx is not installed.
        InputError: the file cannot be opened or is not ONNX.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._onnx = require_onnx()
        self.path = os.fspath(path)
        self._folder = Path(path).parent
        try:
            require_regular(self.path, MOST_ONNX)
            self._most_elements = max(_LEAST_MOST, Path(path).stat().st_size)
            self.proto = self._onnx.load(self.path, load_external_data=False)
        except OSError as error:
            raise InputError(f"cannot open {self.path}: {error.strerror}") from None
        except Exception:  # protobuf's DecodeError and what onnx makes of it
            raise InputError(f"{self.path}: not an ONNX model, or a damaged one") from None
        if not self.proto.graph.node:
            raise InputError(f"{self.path}: not an ONNX model, or one without a graph")
        self.look_through()

    def look_through(self) -> None:
        """Look through the graph, also after a change of it in memory.

        Raises:
            InputError: its nodes cannot be put in the order of their inputs.
        """
        graph = self.proto.graph
        self._initializers = {t.name: t for t in graph.initializer}
        self.nodes: list[Any] = self._in_order()
        self.producers = {out: n for n in self.nodes for out in n.output if out}
        self.index = {id(node): i for i, node in enumerate(self.nodes)}
        self._small: dict[str, NDArray[Any] | None] = {}
        self.consumers: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)

    def _in_order(self) -> list[Any]:
        """The nodes, each behind those that it takes values of, in the file's order otherwise.

        Converters append what they add, and ONNX Runtime takes that. A graph with a cycle is
        refused: to follow it may never end.
        """
        graph = self.proto.graph
        self._require_names(graph.node)
        waiting = {name for node in graph.node for name in node.output}
        found: list[Any] = []
        left = list(graph.node)
        while left:
            later = []
            for node in left:
                if any(name in waiting for name in node.input):
                    later.append(node)
                else:
                    found.append(node)
                    waiting.difference_update(node.output)
            if len(later) == len(left):
                raise InputError(f"{self.path}: its nodes are not in the order of their inputs")
            left = later
        if any(a is not b for a, b in zip(found, graph.node, strict=True)):
            ordered = [type(node).FromString(node.SerializeToString()) for node in found]
            del graph.node[:]
            graph.node.extend(ordered)
        return list(graph.node)

    def _require_names(self, nodes: Sequence[Any]) -> None:
        named = [n for node in nodes for n in (*node.input, *node.output)] + [*self._initializers]
        if not all(isinstance(name, str) for name in named):  # what is no UTF-8 comes as bytes
            raise InputError(f"{self.path}: not an ONNX model, or a damaged one")
        if any(len(name) > _MAX_NAME for name in named):
            raise InputError(f"{self.path}: a name in it has more than {_MAX_NAME} characters")

    def type_name(self, data_type: int) -> str:
        """ONNX's name of an element type, for example ``FLOAT16``."""
        try:
            return str(self._onnx.TensorProto.DataType.Name(data_type))
        except ValueError:  # of a later version, or damaged
            return f"type {data_type}"

    def _item_size(self, data_type: int) -> int:
        try:
            return int(self._onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)
        except KeyError:
            return 0

    def files(self) -> Iterator[Path]:
        """The file itself, and those in its folder that hold weights of it."""
        yield Path(self.path)
        entries = (e for t in self._initializers.values() for e in t.external_data)
        names = sorted({e.value for e in entries if e.key == "location"})
        yield from (path for n in names if (path := self._folder / Path(n).name).is_file())

    def matrices(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """Name, element type and shape of all initializers of two dimensions or more."""
        for name, t in self._initializers.items():
            if len(t.dims) > 1:
                yield name, self.type_name(t.data_type), tuple(t.dims)

    def tensors(self) -> Iterator[TensorFacts]:
        """All initializers, in ggml's order of dimensions; their offsets are not told."""
        for name, t in self._initializers.items():
            n_bytes = math.prod(t.dims) * self._item_size(t.data_type)
            shape = tuple(int(d) for d in reversed(t.dims))
            yield TensorFacts(name, self.type_name(t.data_type), shape, n_bytes, 0)

    def dtype(self, name: str) -> str | None:
        """Element type of an initializer, None if there is none of that name."""
        t = self._initializers.get(name)
        return None if t is None else self.type_name(t.data_type)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an initializer, empty if there is none of that name."""
        t = self._initializers.get(name)
        return () if t is None else tuple(t.dims)

    def n_bytes(self, name: str) -> int:
        """Size of an initializer, 0 if there is none of that name."""
        t = self._initializers.get(name)
        return 0 if t is None else math.prod(t.dims) * self._item_size(t.data_type)

    def source(self, value: str, depth: int = _DEPTH) -> str | None:
        """The initializer that a constant value is made of; None if it is none."""
        if value in self._initializers:
            return value
        node = self.producers.get(value)
        if node is None or depth == 0:
            return None
        found = (self.source(name, depth - 1) for name in node.input if name)
        # Of several the largest: beside a weight stands the 1 that is added, or a scale.
        names = [name for name in found if name is not None]
        return max(names, key=lambda n: math.prod(self.shape(n)), default=None)

    def leads_to(self, value: str, ops: Collection[str]) -> str | None:
        """One of some operations that a value depends on, the nearest; None for none."""
        seen, waiting = {value}, deque([value])
        while waiting:
            node = self.producers.get(waiting.popleft())
            if node is None:
                continue
            if node.op_type in ops:
                return str(node.op_type)
            waiting += [name for name in node.input if name not in seen]
            seen.update(node.input)
        return None

    def constant(self, value: str, depth: int = _DEPTH) -> NDArray[Any] | None:
        """A value that does not depend on the input; None if it does or is not understood.

        Raises:
            InputError: its data lies in another file and cannot be had.
        """
        if value in self._initializers:
            return self._read(self._initializers[value])
        node = self.producers.get(value)
        if node is None or depth == 0:
            return None
        if node.op_type == "Constant":
            return self._constant_node(node)
        if node.op_type not in _FOLDED:
            return None
        # CastLike's second input gives its type alone.
        names = node.input[:1] if node.op_type == "CastLike" else node.input
        found = [self.constant(name, depth - 1) for name in names if name]
        parts = [p for p in found if p is not None]
        if len(parts) < len(found):
            return None
        try:
            if node.op_type == "Expand":
                self._check_size(parts[0].shape, tuple(int(n) for n in parts[1].reshape(-1)))
            elif node.op_type in _BROADCAST:
                self._check_size(*(p.shape for p in parts))
            return np.asarray(_FOLDED[node.op_type](node, *parts))
        except (TypeError, ValueError, IndexError, MemoryError):  # someone else's sizes
            return None

    def small_constant(self, value: str) -> NDArray[Any] | None:
        """As :meth:`constant`, of at most as many elements as a norm has weights; kept.

        Matrices are not read for it.
        """
        if value not in self._small:
            stored = self.source(value)
            large = stored is not None and math.prod(self.shape(stored)) > _MOST_WEIGHTS
            self._small[value] = None if large else self.constant(value)
        return self._small[value]

    def _check_size(self, *shapes: tuple[int, ...]) -> None:
        if math.prod(np.broadcast_shapes(*shapes)) > self._most_elements:
            raise ValueError("too large")

    def _constant_node(self, node: Any) -> NDArray[Any] | None:
        for a in node.attribute:
            if a.name == "value":
                return self._read(a.t)
            if a.name in ("value_float", "value_int"):
                return np.asarray(a.f if a.name == "value_float" else a.i)
            if a.name in ("value_floats", "value_ints"):
                return np.asarray(a.floats if a.name == "value_floats" else a.ints)
        return None

    def _read(self, tensor: Any) -> NDArray[Any]:
        try:
            for entry in tensor.external_data:
                if entry.key == "location":
                    require_regular(self._folder / entry.value)
            array = self._onnx.numpy_helper.to_array(tensor, base_dir=str(self._folder))
        except Exception as error:  # whatever is wrong with someone else's data
            text = str(error).splitlines() or [type(error).__name__]
            raise InputError(f"{self.path}: cannot read {tensor.name}: {text[0][:200]}") from None
        if array.dtype.kind in "OSUc":
            raise InputError(f"{self.path}: {tensor.name[:64]} holds no real numbers")
        return np.asarray(array)


def _dequantize(
    node: Any, values: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any] | None = None
) -> NDArray[Any]:
    axis = int(attribute(node, "axis", 1))
    wide = values.astype(np.float32)
    if zero is not None:
        wide = wide - along(zero.astype(np.float32), values.ndim, axis)
    return np.asarray(wide * along(scale, values.ndim, axis))


def along(scale: NDArray[Any], n_axes: int, axis: int) -> NDArray[Any]:
    """A quantization's scale, or its zero point, as it is broadcast to the values.

    Args:
        scale: one, or one for each index along an axis.
        n_axes: of the values.
        axis: along which there are several.
    """
    if scale.size == 1 or n_axes == 1:
        return scale.reshape(-1)
    shape = [1] * n_axes
    shape[axis] = scale.size
    return scale.reshape(shape)


def _reshaped(_node: Any, x: NDArray[Any], shape: NDArray[Any]) -> NDArray[Any]:
    return x.reshape([x.shape[i] if n == 0 else int(n) for i, n in enumerate(shape)])


def _unsqueezed(node: Any, x: NDArray[Any], axes: NDArray[Any] | None = None) -> NDArray[Any]:
    given = integers(node, "axes") if axes is None else tuple(int(a) for a in axes.reshape(-1))
    return np.expand_dims(x, given)


def _squeezed(node: Any, x: NDArray[Any], axes: NDArray[Any] | None = None) -> NDArray[Any]:
    given = integers(node, "axes") if axes is None else tuple(int(a) for a in axes.reshape(-1))
    return np.squeeze(x, given or None)


def _transposed(node: Any, x: NDArray[Any]) -> NDArray[Any]:
    return np.transpose(x, integers(node, "perm") or None)


def _expanded(_node: Any, x: NDArray[Any], shape: NDArray[Any]) -> NDArray[Any]:
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(int(n) for n in shape)))


def _shape_of(node: Any, x: NDArray[Any]) -> NDArray[Any]:
    start, end = attribute(node, "start", 0), attribute(node, "end", x.ndim)
    return np.array(x.shape[int(start) : int(end)], np.int64)


def integers(node: Any, name: str) -> tuple[int, ...]:
    """Whole numbers among a node's attributes, empty for none."""
    return next((tuple(a.ints) for a in node.attribute if a.name == name), ())


_FOLDED: dict[str, Any] = {
    "Identity": lambda _n, x: x,
    "Cast": lambda _n, x: x,
    "CastLike": lambda _n, x: x,
    "Add": lambda _n, a, b: a + b,
    "Sub": lambda _n, a, b: a - b,
    "Mul": lambda _n, a, b: a * b,
    "Div": lambda _n, a, b: a / b,
    "Pow": lambda _n, a, b: np.power(a, b),
    "Neg": lambda _n, x: -x,
    "Reciprocal": lambda _n, x: 1 / x,
    "Sqrt": lambda _n, x: np.sqrt(x),
    "Unsqueeze": _unsqueezed,
    "Squeeze": _squeezed,
    "Reshape": _reshaped,
    "Transpose": _transposed,
    "Shape": _shape_of,
    "Expand": _expanded,
    "DequantizeLinear": _dequantize,
}
"""Operations on constants that stand between what is stored and a norm or a layer."""

_BROADCAST = ("Add", "Sub", "Mul", "Div", "Pow")
"""Of these, the ones whose result may be larger than both operands."""


def attribute(node: Any, name: str, default: float) -> float:
    """A number among a node's attributes."""
    for a in node.attribute:
        if a.name == name:
            return float(a.f) if a.type == a.FLOAT else float(a.i)
    return default


def plain_attributes(node: Any) -> dict[str, Any]:
    """A node's attributes that are numbers, tuples of them or words; ONNX's defaults included."""
    try:
        schema = require_onnx().defs.get_schema(node.op_type, domain=node.domain)
        given = [d.default_value for d in schema.attributes.values() if d.default_value.name]
    except Exception:  # ONNX Runtime's own operations have no schema there
        given = []
    found: dict[str, Any] = {}
    for a in (*given, *node.attribute):
        if a.type == a.FLOAT:
            found[a.name] = float(a.f)
        elif a.type == a.INT:
            found[a.name] = int(a.i)
        elif a.type == a.STRING:
            found[a.name] = a.s.decode(errors="replace")
        elif a.type in (a.INTS, a.FLOATS):
            found[a.name] = tuple(a.ints or a.floats)
    return found
