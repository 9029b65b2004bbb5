"""The layers of an ONNX graph that batch norms can be folded into, with what stands beside them.

Operations, their inputs and attributes: ONNX's ``docs/Operators.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ggufnorm.core.floats import shortest_float32
from ggufnorm.core.folding import ALONE, BatchNorm, Layer, Step, Wide, alone
from ggufnorm.engines.onnx.model import OnnxModel, attribute
from ggufnorm.engines.onnx.norms import plain_name, takes_own_statistics
from ggufnorm.engines.onnx.stored import (
    ARRANGED,
    Stored,
    by_channel,
    dequantized,
    optional_input,
    stored,
)
from ggufnorm.errors import InputError

_PASSED = (
    "Cast", "Dropout", "Identity", "QuantizeLinear", "DynamicQuantizeLinear", "DequantizeLinear",
)  # fmt: skip
"""Operations on activations that leave their values as they are but for rounding."""


@dataclass(frozen=True)
class PlacedLayer:
    """A layer and where it stands.

    Attributes:
        layer: with the steps beside it.
        weight_name: None where an exporter has only numbered it.
        label: its weight's name or else its node's, by which it is joined; None for neither.
        node: index of its node.
        norms: index of the node of each batch norm beside it, by the norm's name.
        follows: node of the layer whose last step leads to this layer and to nothing else;
            None where something else is between.
        end: name of the value behind its last step.
    """

    layer: Layer
    weight_name: str | None
    node: int
    norms: dict[str, int]
    follows: int | None
    end: str
    label: str | None = None


@np.errstate(divide="ignore", over="ignore", invalid="ignore")
def read_layers(model: OnnxModel) -> tuple[PlacedLayer, ...]:
    """Every layer with a constant weight, in the order of the nodes.

    Of a step between two layers the first has it. A batch norm beside no layer stands for a
    layer of its own, whose weight is 1.

    Raises:
        InputError: a node lacks an input, or a weight cannot be read.
    """
    try:
        return _Reader(model).layers()
    except IndexError:
        raise InputError(f"{model.path}: a node of its graph lacks an input") from None


@dataclass(frozen=True)
class _Bare:
    """A layer without its steps, the axes behind its channels, and the value behind it."""

    layer: Layer
    axes: int
    end: str


@dataclass(frozen=True)
class _Beside:
    """A step, its node, and the value that it takes."""

    step: Step
    node: Any
    x: str


class _Reader:
    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        self._index = {id(node): i for i, node in enumerate(model.nodes)}
        self._outputs = {o.name for o in model.proto.graph.output}
        self._owners: dict[int, int] = {}
        self._follows: dict[int, int] = {}
        norms = [self._name(node) for node in model.nodes if node.op_type == ALONE]
        self._shared = {name for name in norms if norms.count(name) > 1}

    def layers(self) -> tuple[PlacedLayer, ...]:
        known = [node for node in self._model.nodes if node.op_type in ARRANGED]
        bare = [(node, found) for node in known if (found := self._bare(node)) is not None]
        # All that stands behind a layer is its own before another looks for what precedes it.
        after = [list(self._after(node, found)) for node, found in bare]
        placed = [
            self._placed(node, one, self._before(node, one), behind)
            for (node, one), behind in zip(bare, after, strict=True)
        ]
        for node in self._model.nodes:
            if node.op_type == ALONE and id(node) not in self._owners:
                placed += self._alone(node)
        return tuple(sorted(placed, key=lambda p: p.node))

    def _placed(
        self, node: Any, bare: _Bare, before: list[_Beside], after: list[_Beside]
    ) -> PlacedLayer:
        steps = [*before, *after]
        whole = replace(
            bare.layer,
            before=tuple(s.step for s in before),
            after=tuple(s.step for s in after),
        )
        norms = {s.step.norm.name: self._index[id(s.node)] for s in steps if s.step.norm}
        i = self._index[id(node)]
        end = str(after[-1].node.output[0]) if after else bare.end
        name = self._weight_name(node)
        label = _module(name, str(node.name).removesuffix("_quant"))
        return PlacedLayer(whole, name, i, norms, self._follows.get(i), end, label)

    def _alone(self, node: Any) -> Iterator[PlacedLayer]:
        gamma = stored(self._model, node.input[1])
        step = None if gamma is None else self._step(node, gamma.values.size, 0)
        if step is not None and step.step.norm is not None:
            layer = alone(step.step.norm, step.step)
            norms, i = {layer.name: self._index[id(node)]}, self._index[id(node)]
            end = str(node.output[0])
            name = self._weight_name(node)
            yield PlacedLayer(layer, name, i, norms, None, end, name)

    def _weight_name(self, node: Any) -> str | None:
        return plain_name(self._model.source(node.input[1]))

    def _name(self, node: Any) -> str:
        return self._weight_name(node) or node.name or str(node.output[0])

    # -- a layer by itself ---------------------------------------------------------------------

    def _bare(self, node: Any) -> _Bare | None:
        """None where the weight depends on the input, or has other dimensions than usual."""
        if node.op_type.endswith("Integer"):
            (weight, end), given = self._integer(node), ""
        else:
            weight, end = stored(self._model, node.input[1]), str(node.output[0])
            given = optional_input(node, 2)
        if weight is None:
            return None
        try:
            arranged = ARRANGED[node.op_type](node, weight.values)
        except ValueError:
            return None
        n = arranged.shape[0] * arranged.shape[1]
        bias = stored(self._model, given) if given else Stored(np.zeros(n), np.zeros(n))
        if bias is None or bias.values.size not in (1, n):
            return None
        alpha, beta = (attribute(node, name, 1.0) for name in ("alpha", "beta"))
        layer = Layer(
            name=self._name(node),
            op=node.op_type,
            weight=arranged * alpha,
            bias=np.broadcast_to(bias.values.reshape(-1), n) * beta,
            padded=_is_padded(node),
            rounding=weight.rounding,
            lost=np.broadcast_to(bias.lost.reshape(-1), n),
            alpha=alpha,
            beta=beta,
        )
        return _Bare(layer, weight.values.ndim - 2, end)

    def _integer(self, node: Any) -> tuple[Stored | None, str]:
        """An integer layer's weight, and the value behind the product with both scales."""
        values = self._model.constant(node.input[1])
        zero_name = optional_input(node, 3)
        zero = self._model.constant(zero_name) if zero_name else np.zeros(1)
        product = self._only_user(node.output[0])
        if product is not None:
            scales = [self._model.producers.get(name) for name in product.input]
            names = [n for s in scales if s is not None and s.op_type == "Mul" for n in s.input]
            known = [k for n in names if (k := self._model.constant(n)) is not None]
            if values is not None and zero is not None and known:
                axis = 0 if node.op_type == "ConvInteger" else -1
                return dequantized(values, zero, known[0], axis), str(product.output[0])
        return None, ""

    # -- what stands beside it -----------------------------------------------------------------

    def _after(self, layer: Any, bare: _Bare) -> Iterator[_Beside]:
        """The steps behind a layer, as long as each is all that is made of the value."""
        value, n = bare.end, bare.layer.bias.size
        while (node := self._only_user(value)) is not None and bare.layer.op != "FusedConv":
            step = self._step(node, n, bare.axes)
            if step is None:
                return
            self._owners[id(node)] = self._index[id(layer)]
            yield step
            value = node.output[0]

    def _before(self, node: Any, bare: _Bare) -> list[_Beside]:
        """The steps that lead to a layer and to nothing else."""
        found: list[_Beside] = []
        groups, _out, channels, _taps = bare.layer.weight.shape
        value = self._through(node.input[0])
        while (made := self._model.producers.get(value)) is not None:
            if self._only_user(value) is None:
                break
            if id(made) in self._owners:
                self._follows[self._index[id(node)]] = self._owners[id(made)]
                break
            step = self._step(made, groups * channels, bare.axes)
            if step is None:
                break
            self._owners[id(made)] = self._index[id(node)]
            found.insert(0, step)
            value = self._through(step.x)
        return found

    def _only_user(self, value: str) -> Any | None:
        users = list(self._users(value))
        return users[0] if len(users) == 1 and users[0] is not None else None

    def _users(self, value: str) -> Iterator[Any | None]:
        """Who takes a value, seen through casts; None for the graph's own output."""
        if value in self._outputs:
            yield None
        for node in self._model.consumers.get(value, ()):
            if self._passes(node):
                yield from self._users(node.output[0])
            else:
                yield node

    def _through(self, value: str) -> str:
        """The value before casts."""
        node = self._model.producers.get(value)
        while node is not None and self._passes(node):
            value = node.input[0]
            node = self._model.producers.get(value)
        return value

    def _passes(self, node: Any) -> bool:
        if node.op_type != "QuantizeLinear":
            return node.op_type in _PASSED
        zero_name = optional_input(node, 2)
        zero = self._model.constant(zero_name) if zero_name else None
        # A zero point at the type's end cuts negative values off: a quantizer's ReLU.
        return zero is not None and bool((zero != np.iinfo(zero.dtype).min).all())

    def _step(self, node: Any, channels: int, axes: int) -> _Beside | None:
        """A node as a scale and a shift of each channel, None if it is another.

        Args:
            node: to be read.
            channels: how many there are.
            axes: that stand behind them.
        """
        if node.op_type == ALONE:
            found = self._batch_norm(node)
        else:
            found = self._arithmetic(node, channels, axes)
        return found if found is not None and found.step.scale.size == channels else None

    def _batch_norm(self, node: Any) -> _Beside | None:
        given = [stored(self._model, name) for name in node.input[1:5]]
        parts = [s for s in given if s is not None]
        if len(parts) < 4 or takes_own_statistics(self._model, node):
            return None
        gamma, beta, mean, variance = (p.values.reshape(-1) for p in parts)
        of_gamma, of_beta, of_mean, of_variance = parts
        if len({v.size for v in (gamma, beta, mean, variance)}) > 1:
            return None
        epsilon = shortest_float32(attribute(node, "epsilon", 1e-5)) or 0.0
        name = self._name(node)
        if name in self._shared:  # optimizers store equal weights once
            name = node.name or str(node.output[0])
        norm = BatchNorm(name, gamma, beta, mean, variance, epsilon)
        step = replace(
            norm.step,
            rounding=of_gamma.rounding + of_variance.rounding,
            lost=of_beta.lost + np.abs(norm.scale) * of_mean.lost,
        )
        return _Beside(step, node, node.input[0])

    def _arithmetic(self, node: Any, channels: int, axes: int) -> _Beside | None:
        if node.op_type not in _ARITHMETIC:
            return None
        constant, x = stored(self._model, node.input[1]), node.input[0]
        if constant is None and node.op_type in ("Add", "Mul"):
            constant, x = stored(self._model, node.input[0]), node.input[1]
        values = None if constant is None else by_channel(constant.values, channels, axes)
        if constant is None or values is None:
            return None
        scale, shift = _ARITHMETIC[node.op_type](values)
        if node.op_type in ("Add", "Sub"):
            step = Step(scale, shift, lost=np.broadcast_to(constant.lost.reshape(-1), channels))
        else:
            step = Step(scale, shift, rounding=constant.rounding)
        return _Beside(step, node, x)


def _module(weight: str | None, node: str) -> str | None:
    """The module that a layer was: a weight's name without its last word, or a node's path.

    torch calls the weight ``net.conv.weight`` and the node ``/net/conv/Conv``, and numbers what
    it folds.
    """
    if weight is not None:
        stem, _, last = weight.rpartition(".")
        return stem if stem and last in ("kernel", "weight") else weight
    if not node.startswith("/"):
        return node or None
    return node[1:].rpartition("/")[0].replace("/", ".") or None


def _is_padded(node: Any) -> bool:
    return any(
        any(a.ints) if a.name == "pads" else a.s.startswith(b"SAME")
        for a in node.attribute
        if a.name in ("pads", "auto_pad")
    )


_ARITHMETIC: dict[str, Callable[[Wide], tuple[Wide, ...]]] = {
    "Mul": lambda c: (c, np.zeros_like(c)),
    "Div": lambda c: (1 / c, np.zeros_like(c)),
    "Add": lambda c: (np.ones_like(c), c),
    "Sub": lambda c: (np.ones_like(c), -c),
}
"""Scale and shift of an operation with a constant."""
