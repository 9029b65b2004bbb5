"""Small ONNX graphs, each with the norms in one of the ways in which exporters write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ggufnorm.core.model import NormKind

WIDTH, TOKENS, EPSILON = 32, 7, 1e-3
OPSETS = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]

RNG = np.random.default_rng(0)
WEIGHT = np.exp(RNG.normal(0, 0.3, WIDTH)).astype(np.float32)
BIAS = RNG.normal(0, 0.2, WIDTH).astype(np.float32)


@dataclass(frozen=True)
class Graph:
    """One norm between an input ``x`` and an output ``y``, and what it is."""

    name: str
    nodes: list[Any]
    kind: NormKind | None
    constants: Mapping[str, np.ndarray] = field(
        default_factory=lambda: {"norm.weight": WEIGHT, "norm.bias": BIAS}
    )
    shape: tuple[int, ...] = (1, TOKENS, WIDTH)
    inputs: Mapping[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    bias: bool = True
    offset: float = 0.0
    groups: int | None = None
    opset: int = 21

    def proto(self) -> Any:
        inputs = self.inputs or {"x": (TensorProto.FLOAT, self.shape)}
        graph = helper.make_graph(
            self.nodes,
            self.name,
            [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, self.shape)],
            [numpy_helper.from_array(v, n) for n, v in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def save(self, path: Path) -> Path:
        onnx.save(self.proto(), str(path))
        return path


def node(op: str, inputs: list[str], outputs: list[str], **more: Any) -> Any:
    return helper.make_node(op, inputs, outputs, **more)


_BOTH = {"norm.weight": WEIGHT, "norm.bias": BIAS}
_ONE = {"norm.weight": WEIGHT}
_SHORT = {
    "x": (TensorProto.FLOAT, (1, TOKENS, WIDTH)),
    "s": (TensorProto.FLOAT, (1, TOKENS, WIDTH)),
}


def _scalars(**values: float) -> dict[str, np.ndarray]:
    return {k: np.array(v, np.float32) for k, v in values.items()}


def _channels(kind: str) -> dict[str, np.ndarray]:
    n = 8
    found = {"norm.weight": WEIGHT[:n], "norm.bias": BIAS[:n]}
    if kind == "batch":
        found |= {"mean": BIAS[8 : 8 + n], "var": WEIGHT[8 : 8 + n]}
    return found


_AXES = {"axes": np.array([-1], np.int64)}


def _rms(*tail: Any, **constants: np.ndarray) -> tuple[list[Any], dict[str, np.ndarray]]:
    """Mean of squares and what a tail makes of it."""
    head = [
        node("Pow", ["x", "two"], ["square"]),
        node("ReduceMean", ["square", "axes"], ["mean"], keepdims=1),
    ]
    return [*head, *tail], {
        **_scalars(two=2, eps=EPSILON, one=1, half=-0.5),
        **_AXES,
        **_ONE,
        **constants,
    }


_ADD = node("Add", ["mean", "eps"], ["shifted"])
_SQRT = node("Sqrt", ["shifted"], ["root"])
_WEIGH = node("Mul", ["norm.weight", "n"], ["y"])


def _decomposed(name: str, *tail: Any, offset: float = 0.0, **constants: np.ndarray) -> Graph:
    nodes, values = _rms(*tail, **constants)
    return Graph(f"rms {name}", nodes, "rms", values, bias=False, offset=offset)


_LAYER_HEAD = [
    node("ReduceMean", ["x", "axes"], ["mu"], keepdims=1),
    node("Sub", ["x", "mu"], ["d"]),
    node("Pow", ["d", "two"], ["square"]),
    node("ReduceMean", ["square", "axes"], ["mean"], keepdims=1),
]
_LAYER_TAIL = [node("Mul", ["n", "norm.weight"], ["w"]), node("Add", ["w", "norm.bias"], ["y"])]
_LAYER = {**_scalars(two=2, eps=EPSILON, half=-0.5), **_AXES, **_BOTH}

GRAPHS: tuple[Graph, ...] = (
    Graph("LayerNormalization",
          [node("LayerNormalization", ["x", "norm.weight", "norm.bias"], ["y"], axis=-1,
                epsilon=EPSILON)], "layer"),
    Graph("LayerNormalization without bias",
          [node("LayerNormalization", ["x", "norm.weight"], ["y"], epsilon=EPSILON)], "layer",
          _ONE, bias=False),
    Graph("SimplifiedLayerNormalization",
          [node("SimplifiedLayerNormalization", ["x", "norm.weight"], ["y"], axis=-1,
                epsilon=EPSILON)], "rms", _ONE, bias=False),
    Graph("RMSNormalization",
          [node("RMSNormalization", ["x", "norm.weight"], ["y"], axis=-1, epsilon=EPSILON)],
          "rms", _ONE, bias=False, opset=23),
    Graph("SkipLayerNormalization",
          [node("SkipLayerNormalization", ["x", "s", "norm.weight", "norm.bias"], ["y"],
                domain="com.microsoft", epsilon=EPSILON)], "layer", inputs=_SHORT),
    Graph("SkipSimplifiedLayerNormalization",
          [node("SkipSimplifiedLayerNormalization", ["x", "s", "norm.weight"], ["y"],
                domain="com.microsoft", epsilon=EPSILON)], "rms", _ONE, inputs=_SHORT, bias=False),
    Graph("EmbedLayerNormalization",
          [node("EmbedLayerNormalization",
                ["input_ids", "", "words", "positions", "", "norm.weight", "norm.bias"],
                ["y", "mask_index"], domain="com.microsoft", epsilon=EPSILON)], "layer",
          {**_BOTH, "words": RNG.standard_normal((50, WIDTH)).astype(np.float32),
           "positions": RNG.standard_normal((TOKENS, WIDTH)).astype(np.float32)},
          inputs={"input_ids": (TensorProto.INT32, (1, TOKENS))}),
    Graph("GroupNormalization",
          [node("GroupNormalization", ["x", "norm.weight", "norm.bias"], ["y"], num_groups=4,
                epsilon=EPSILON)], "group", _channels("group"), (2, 8, 5), groups=4),
    Graph("InstanceNormalization",
          [node("InstanceNormalization", ["x", "norm.weight", "norm.bias"], ["y"],
                epsilon=EPSILON)], "group", _channels("group"), (2, 8, 5)),
    Graph("BatchNormalization",
          [node("BatchNormalization", ["x", "norm.weight", "norm.bias", "mean", "var"], ["y"],
                epsilon=EPSILON)], None, _channels("batch"), (2, 8, 5)),
    _decomposed("Sqrt, Reciprocal, Mul", _ADD, _SQRT, node("Reciprocal", ["root"], ["r"]),
                node("Mul", ["x", "r"], ["n"]), _WEIGH),
    _decomposed("Sqrt, Div", _ADD, _SQRT, node("Div", ["x", "root"], ["n"]), _WEIGH),
    _decomposed("Sqrt, 1/root, Mul", _ADD, _SQRT, node("Div", ["one", "root"], ["r"]),
                node("Mul", ["r", "x"], ["n"]), _WEIGH),
    _decomposed("Pow of -0.5", _ADD, node("Pow", ["shifted", "half"], ["r"]),
                node("Mul", ["x", "r"], ["n"]), _WEIGH),
    _decomposed("an offset of 1", _ADD, _SQRT, node("Div", ["x", "root"], ["n"]),
                node("Add", ["norm.weight", "one"], ["w1"]), node("Mul", ["n", "w1"], ["y"]),
                offset=1.0),
    _decomposed("casts between", _ADD, _SQRT,
                node("Cast", ["root"], ["wide"], to=TensorProto.FLOAT),
                node("Div", ["x", "wide"], ["n"]), _WEIGH),
    Graph("layer Div", [*_LAYER_HEAD, _ADD, _SQRT, node("Div", ["d", "root"], ["n"]), *_LAYER_TAIL],
          "layer", _LAYER),
    Graph("layer with two Subs",
          [*_LAYER_HEAD, _ADD, _SQRT, node("Sub", ["x", "mu"], ["d2"]),
           node("Div", ["d2", "root"], ["n"]), *_LAYER_TAIL], "layer", _LAYER),
    Graph("layer Pow of -0.5",
          [*_LAYER_HEAD, _ADD, node("Pow", ["shifted", "half"], ["r"]),
           node("Mul", ["d", "r"], ["n"]), *_LAYER_TAIL], "layer", _LAYER),
    Graph("layer square by Mul",
          [*_LAYER_HEAD[:2], node("Mul", ["d", "d"], ["square"]), _LAYER_HEAD[3], _ADD, _SQRT,
           node("Div", ["d", "root"], ["n"]), *_LAYER_TAIL], "layer", _LAYER),
)  # fmt: skip


# -- a network of several norms ----------------------------------------------------------------

LAYERS, WORDS = 3, 40
Weights = dict[str, np.ndarray]


def weights(seed: int = 0) -> Weights:
    """A stack of LayerNorm, matrix, tanh, and sum; then logits."""
    rng = np.random.default_rng(seed)
    found: Weights = {"words": rng.standard_normal((WORDS, WIDTH)).astype(np.float32)}
    for i in range(LAYERS):
        w = np.exp(rng.normal(0, 0.3, WIDTH)).astype(np.float32)
        found[f"layers.{i}.norm.weight"] = w
        found[f"layers.{i}.norm.bias"] = rng.normal(0, 0.1, WIDTH).astype(np.float32)
        matrix = rng.standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH)
        found[f"layers.{i}.matrix"] = matrix.astype(np.float32)
    found["norm.weight"] = np.exp(rng.normal(0, 0.3, WIDTH)).astype(np.float32)
    found["norm.bias"] = rng.normal(0, 0.1, WIDTH).astype(np.float32)
    found["head"] = rng.standard_normal((WIDTH, WORDS)).astype(np.float32)
    return found


def network(
    values: Weights,
    *,
    epsilon: Callable[[int], float] = lambda _i: 1e-5,
    op: str = "LayerNormalization",
) -> Any:
    """The network of such weights.

    Args:
        values: see :func:`weights`.
        epsilon: of the i-th norm.
        op: of the second norm.
    """
    nodes = [node("Gather", ["words", "input_ids"], ["h0"], name="embed")]

    def norm(i: int, name: str, x: str, y: str) -> Any:
        kind = op if i == 1 else "LayerNormalization"
        inputs = [x, f"{name}.weight", f"{name}.bias"]
        return node(kind, inputs[: 3 if kind == "LayerNormalization" else 2], [y],
                    name=f"/{name}", epsilon=epsilon(i), axis=-1)  # fmt: skip

    for i in range(LAYERS):
        nodes += [
            norm(i, f"layers.{i}.norm", f"h{i}", f"n{i}"),
            node("MatMul", [f"n{i}", f"layers.{i}.matrix"], [f"m{i}"], name=f"mm{i}"),
            node("Tanh", [f"m{i}"], [f"t{i}"], name=f"tanh{i}"),
            node("Add", [f"h{i}", f"t{i}"], [f"h{i + 1}"], name=f"add{i}"),
        ]
    nodes += [
        norm(LAYERS, "norm", f"h{LAYERS}", "last"),
        node("MatMul", ["last", "head"], ["logits"], name="lm"),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "tokens"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "tokens", WORDS])],
        [numpy_helper.from_array(v, n) for n, v in values.items()],
    )
    return helper.make_model(graph, opset_imports=OPSETS, ir_version=10)


def save(proto: Any, path: Path) -> Path:
    onnx.save(proto, str(path))
    return path
