"""The operations of an ONNX graph that read a stored matrix, and what comes of them.

A product may end in a bias, an activation or a rounding, each a node of its own or a part of the
product's: two graphs are compared behind the same of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ggufnorm.engines.onnx.model import OnnxModel
from ggufnorm.engines.onnx.quantized import WEIGHT_INPUTS, dequantizer

ROUNDS = ("Cast", "Identity", "QuantizeLinear", "DequantizeLinear")
"""Operations that give their first input, rounded."""


_SCALES = ("Cast", "Mul")
"""What turns an integer product into real numbers."""


_WEIGHTED: Mapping[str, tuple[int, ...]] = {
    "MatMul": (1, 0), "Gemm": (1,), "Conv": (1,), "ConvTranspose": (1,), "Gather": (0,),
    "FusedMatMul": (1, 0), "FusedGemm": (1,), "FusedConv": (1,), "Attention": (1,),
    **{op: (at.weight,) for op, at in WEIGHT_INPUTS.items() if op != "DequantizeLinear"},
}  # fmt: skip
"""Where an operation's matrix stands among its inputs."""


_ADDS_BIAS: Mapping[str, int] = {
    "Gemm": 2, "FusedGemm": 2, "DynamicQuantizeMatMul": 4, "MatMulIntegerToFloat": 6,
    "Conv": 2, "ConvTranspose": 2, "FusedConv": 2, "QLinearConv": 8, "QGemm": 6,
}  # fmt: skip
"""Products that may add a bias, and which input that is."""


CLIPS = ("Relu", "Clip")


def graph_inputs(model: OnnxModel) -> list[Any]:
    """Inputs of a graph that are no initializers."""
    return [i for i in model.proto.graph.input if model.dtype(i.name) is None]


@dataclass(frozen=True)
class Product:
    """An operation that reads a stored matrix.

    Attributes:
        weight: the reference's initializer, by name, with the how manieth reader of it this is.
        node: the operation.
        end: the value in real numbers that comes of it.
        bias: whether the operation adds a bias.
    """

    weight: tuple[str, int]
    node: Any
    end: str
    bias: bool


def products_of(
    model: OnnxModel, weight_of: Callable[[str], str | None] | None = None
) -> Iterator[Product]:
    """All operations with a stored matrix, in order.

    Args:
        model: the graph.
        weight_of: says which matrix of the reference one is; None for the reference itself.
    """
    readers: dict[str, int] = defaultdict(int)
    for node in model.nodes:
        name = matrix_of(model, node)
        key = name if name is None or weight_of is None else weight_of(name)
        end = _end(model, node)
        if key is not None and not _is_integer(model, end):
            number = _ADDS_BIAS.get(node.op_type, len(node.input))
            bias = number < len(node.input) and bool(node.input[number])
            yield Product((key, readers[key]), node, end, bias)
            readers[key] += 1


def matrix_of(model: OnnxModel, node: Any) -> str | None:
    """The initializer that an operation reads as its matrix, None if it reads none."""
    for i in _WEIGHTED.get(node.op_type, ()):
        if i < len(node.input) and is_constant(model, node.input[i]):
            name = model.source(node.input[i])
            if name is not None and len(model.shape(name)) > 1:
                return name
    return None


def is_constant(model: OnnxModel, value: str) -> bool:
    """Whether a value depends on no input of the graph."""
    waiting, seen = [value], set()
    inputs = {i.name for i in graph_inputs(model)}
    while waiting:
        name = waiting.pop()
        if name in inputs:
            return False
        if name in seen:
            continue
        seen.add(name)
        node = model.producers.get(name)
        if node is not None:
            if node.op_type not in _OF_CONSTANTS:
                return False
            waiting += [i for i in node.input if i]
    return True


def captured(node: Any) -> set[str]:
    """Names that the graphs inside a node (``If``, ``Loop``, ``Scan``) take from outside."""
    found: set[str] = set()
    for a in node.attribute:
        for graph in (a.g, *a.graphs):
            for inner in graph.node:
                found.update(inner.input)
                found |= captured(inner)
            found.update(o.name for o in graph.output)
    return found


def on_input(model: OnnxModel) -> set[str]:
    """All values that depend on an input of the graph."""
    found = {i.name for i in graph_inputs(model)}
    for node in model.nodes:
        if any(name in found for name in (*node.input, *captured(node))):
            found.update(node.output)
    return found


_OF_CONSTANTS = (
    *ROUNDS, "Constant", "Transpose", "Reshape", "Unsqueeze", "Squeeze", "Add", "Mul", "Sub",
    "Div",
)  # fmt: skip


def _end(model: OnnxModel, node: Any) -> str:
    """The real number that becomes of an integer product."""
    value = str(node.output[0])
    if node.op_type in ("Gather", "QLinearMatMul", "QLinearConv", "QGemm"):
        user = dequantizer(model, value)
        return value if user is None else str(user.output[0])
    if node.op_type not in ("MatMulInteger", "ConvInteger"):
        return value
    while True:
        users = model.consumers.get(value, [])
        if len(users) != 1 or users[0].op_type not in _SCALES:
            return value
        value = str(users[0].output[0])


def _is_integer(model: OnnxModel, value: str) -> bool:
    """Whether a value stays in integers."""
    op = model.producers[value].op_type
    return op.startswith("QLinear") or (op == "QGemm" and len(model.producers[value].input) > 7)


def ends_of_products(
    ref: OnnxModel, quant: OnnxModel, theirs: Product, mine: Product
) -> tuple[str, str]:
    """Results of the same product, both with the bias if either operation adds it."""
    ends = [mine.end, theirs.end]
    if mine.bias and not theirs.bias:
        ends[1] = _with_bias(ref, theirs.end)
    elif theirs.bias and not mine.bias:
        ends[0] = _with_bias(quant, mine.end)
    return _with_activation(ref, quant, mine, ends[0], ends[1])


def _with_activation(
    ref: OnnxModel, quant: OnnxModel, mine: Product, end: str, end_ref: str
) -> tuple[str, str]:
    """Results behind an activation that the graph under test has no node for.

    It may be fused into the product, or left to the rounding behind it, which clips as well.
    """
    users = ref.consumers.get(end_ref, [])
    if len(users) != 1 or users[0].op_type not in CLIPS:
        return end, end_ref
    behind = str(users[0].output[0])
    fused = any(a.name == "activation" and a.s for a in mine.node.attribute)
    if fused or quant.producers[end].op_type == "DequantizeLinear":
        return end, behind
    rounded = rounded_to(quant, end)
    return (end, end_ref) if rounded is None else (rounded, behind)


def rounded_to(model: OnnxModel, value: str) -> str | None:
    """What a value is rounded to, if nothing else becomes of it."""
    users = model.consumers.get(value, [])
    if not users or any(user.op_type != "QuantizeLinear" for user in users):
        return None
    last = dequantizer(model, str(users[0].output[0]))
    return None if last is None else str(last.output[0])


def _with_bias(model: OnnxModel, value: str) -> str:
    """What a constant is added to, if that is all that becomes of a value."""
    users = model.consumers.get(value, [])
    if len(users) != 1 or users[0].op_type != "Add":
        return value
    added = any(is_constant(model, name) for name in users[0].input)
    return str(users[0].output[0]) if added else value
