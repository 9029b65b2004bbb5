"""The beginning of an ONNX graph: what it does to pixels before its first layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.pixels import Affine, Three
from ggufnorm.engines.onnx.model import OnnxModel, attribute
from ggufnorm.engines.onnx.norms import takes_own_statistics

Wide = NDArray[np.float64]

_CHANNELS = 3
_PASSED = ("Cast", "Dropout", "Flatten", "Identity", "Squeeze", "Transpose", "Unsqueeze")
"""Operations that leave the values as they are, and at most order or name their axes otherwise."""
_MOST = 16
"""Operations that are followed from the input."""


@dataclass(frozen=True)
class Front:
    """What a graph does to each channel of its pixels before its first layer.

    Attributes:
        input: its name.
        affine: of the values that it is fed; red first where the graph reorders nothing.
        operations: in words, in order: ``Div 255``, ``Sub 0.485, 0.456, 0.406``.
    """

    input: str
    affine: Affine
    operations: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join(self.operations)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether values of a shape are pixels of three channels."""
        return len(shape) in (3, 4) and shape[channel_axis(shape)] == _CHANNELS

    def undo(self, values: NDArray[np.floating]) -> Wide:
        """Values of its input that the graph makes these of, channels second or last."""
        axis = channel_axis(values.shape)
        made = self.affine.undo(np.moveaxis(values, axis, -1))
        return np.asarray(np.moveaxis(made, -1, axis))


def channel_axis(shape: tuple[int, ...]) -> int:
    """Which axis of pixels has the three channels: the second, else the last."""
    return 1 if len(shape) > 1 and shape[1] == _CHANNELS else -1


def read_front(model: OnnxModel) -> Front | None:
    """What a graph does to its pixels; None if it does nothing, or takes none of three channels.

    Constants stand with the operations ``Div``, ``Mul``, ``Sub``, ``Add``, ``Neg`` and in a
    ``BatchNormalization`` of fixed statistics; channels are reordered by ``Gather`` or ``Slice``.

    Raises:
        InputError: a constant cannot be read.
    """
    names = {t.name for t in model.proto.graph.initializer}
    for value in model.proto.graph.input:
        if value.name in names or len(value.type.tensor_type.shape.dim) not in (3, 4):
            continue
        found = _follow(model, value.name)
        if found is not None:
            return found
    return None


def _follow(model: OnnxModel, name: str) -> Front | None:
    gain, offset, order = np.ones(_CHANNELS), np.zeros(_CHANNELS), np.arange(_CHANNELS)
    words: list[str] = []
    for node, x in _chain(model, name):
        if node.op_type in _PASSED:
            continue
        turned = _reordered(model, node)
        if turned is not None:
            gain, offset, order = gain[turned], offset[turned], order[turned]
            words.append("the channels reversed")
            continue
        step = _step(model, node, x)
        if step is None:
            break
        scale, shift, said = step
        gain, offset = gain * scale, offset * scale + shift
        words.append(said)
    if not words or not np.isfinite([*gain, *offset]).all() or not gain.all():
        return None
    a, b, c = order.tolist()
    return Front(name, Affine(_three(gain), _three(offset), (a, b, c)), tuple(words))


def _chain(model: OnnxModel, value: str) -> Iterator[tuple[Any, str]]:
    """The nodes behind an input, as long as each is all that is made of the value."""
    for _ in range(_MOST):
        users = model.consumers.get(value, ())
        if len(users) != 1:
            return
        yield users[0], value
        value = users[0].output[0]


def _step(model: OnnxModel, node: Any, x: str) -> tuple[Wide, Wide, str] | None:
    one, none = np.ones(_CHANNELS), np.zeros(_CHANNELS)
    if node.op_type == "Neg":
        return -one, none, "Neg"
    if node.op_type == "BatchNormalization" and not takes_own_statistics(model, node):
        parts = [model.constant(name) for name in node.input[1:5]]
        if any(p is None or p.size != _CHANNELS for p in parts):
            return None
        gamma, beta, mean, var = (p.astype(np.float64) for p in parts if p is not None)
        scale = gamma / np.sqrt(var + attribute(node, "epsilon", 1e-5))
        return scale, beta - mean * scale, "BatchNormalization"
    if node.op_type not in ("Add", "Div", "Mul", "Sub"):
        return None
    first = node.input[0] == x
    constant = model.constant(node.input[1 if first else 0])
    c = None if constant is None else _by_channel(constant)
    if c is None:
        return None
    said = f"{node.op_type} {', '.join(f'{v:.4g}' for v in (c if np.ptp(c) else c[:1]))}"
    with np.errstate(all="ignore"):
        if node.op_type == "Add":
            return one, c, said
        if node.op_type == "Mul":
            return c, none, said
        if node.op_type == "Div":
            return (1 / c, none, said) if first else None
    return (one, -c, said) if first else (-one, c, f"{said} less the values")


def _by_channel(constant: NDArray[Any]) -> Wide | None:
    """One value for each channel; None where it is broadcast otherwise."""
    if constant.dtype.kind not in "fiu":
        return None
    flat = constant.reshape(-1).astype(np.float64)
    if flat.size == 1:
        return np.full(_CHANNELS, flat[0])
    # Exporters of a fixed size write it out for each pixel.
    if constant.ndim > 2 and flat.size > _CHANNELS:
        axis = channel_axis(constant.shape)
        rows = np.moveaxis(constant, axis, -1).reshape(-1, constant.shape[axis])
        if rows.shape[-1] == _CHANNELS and not np.ptp(rows, axis=0).any():
            return np.asarray(rows[0], np.float64)
    return flat if flat.size == _CHANNELS else None


def _reordered(model: OnnxModel, node: Any) -> NDArray[np.int64] | None:
    """The order into which a node puts three channels; None if it is another."""
    if node.op_type == "Gather":
        at = model.constant(node.input[1])
        if at is not None and sorted(at.reshape(-1).tolist()) == list(range(_CHANNELS)):
            return at.reshape(-1).astype(np.int64)
    if node.op_type == "Slice" and len(node.input) > 4:
        step = model.constant(node.input[4])
        if step is not None and step.reshape(-1).tolist() == [-1]:
            return np.arange(_CHANNELS)[::-1]
    return None


def _three(values: Wide) -> Three:
    a, b, c = values.tolist()
    return a, b, c


def same_front(a: Front | None, b: Front | None) -> bool:
    """Whether two graphs do the same to their pixels, within rounding."""
    nothing = Affine((1.0,) * 3, (0.0,) * 3)
    one, other = (nothing if f is None else f.affine for f in (a, b))
    return one.order == other.order and bool(
        np.allclose(one.gain, other.gain, rtol=1e-5)
        and np.allclose(one.offset, other.offset, rtol=1e-5, atol=1e-6)
    )
