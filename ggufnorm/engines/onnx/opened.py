"""Integer graphs with the real numbers shown between their operations.

In the format that ONNX Runtime calls ``QOperator`` integers go from one operation to the next. What
they stand for is shown by a ``DequantizeLinear`` and a ``QuantizeLinear`` with the operation's own
scale behind it, which together change nothing: every integer comes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ggufnorm.engines.onnx.model import OnnxModel, require_onnx

_RAW = "ggufnorm/integers/"
_SUFFIX = "_quantized"
"""What ONNX Runtime's quantizer appends to the name of a result."""

_SCALE_OF_RESULT: Mapping[str, int] = {
    "QLinearMatMul": 6, "QLinearConv": 6, "QLinearAdd": 6, "QLinearMul": 6, "QGemm": 7,
    "QLinearSigmoid": 3, "QLinearLeakyRelu": 3, "QLinearSoftmax": 3, "QLinearAveragePool": 3,
    "QLinearGlobalAveragePool": 3, "QLinearReduceMean": 3, "QLinearConcat": 0,
}  # fmt: skip
"""Which input is the scale of the result; the zero point is the next
(ONNX's ``docs/Operators.md``, ONNX Runtime's ``docs/ContribOperators.md``)."""


def open_integers(model: OnnxModel) -> None:
    """Show what the integers between operations stand for, in memory."""
    if not any(node.op_type in _SCALE_OF_RESULT for node in model.nodes):
        return
    helper = require_onnx().helper
    graph = model.proto.graph
    outputs = {o.name for o in graph.output}
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        ends = _scale_and_zero(node)
        out = str(node.output[0])
        if ends is None or out in outputs:
            graph.node.append(node)
            continue
        real = out.removesuffix(_SUFFIX)
        if real == out or real in model.producers:
            real = f"{out}/real"
        node.output[0] = _RAW + out
        graph.node.append(node)
        graph.node.append(helper.make_node("DequantizeLinear", [_RAW + out, *ends], [real]))
        graph.node.append(helper.make_node("QuantizeLinear", [real, *ends], [out]))
    model.look_through()


def _scale_and_zero(node: Any) -> list[str] | None:
    at = _SCALE_OF_RESULT.get(node.op_type)
    if at is None or len(node.input) < at + 2 or not node.input[at + 1]:
        return None  # without a scale QGemm gives real numbers
    return [str(name) for name in node.input[at : at + 2]]
