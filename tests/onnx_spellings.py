"""Norms as exporters write them: the same norm in many spellings, each with its names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from ggufnorm.core.model import NormKind

TOKENS, WIDTH, EPSILON = 7, 32, 1e-3
IMAGE, CHANNELS, GROUPS = (2, 8, 4, 5), 8, 4
Nodes = list[Any]
Constants = dict[str, np.ndarray]
node = helper.make_node


def f32(value: Any) -> np.ndarray:
    return np.asarray(value, np.float32)


@dataclass(frozen=True)
class Faults:
    """What is spoiled in a norm: nothing by default."""

    epsilon: float = EPSILON
    weight: Callable[[np.ndarray], np.ndarray] = lambda w: w
    bias: Callable[[np.ndarray], np.ndarray] = lambda b: b


@dataclass(frozen=True)
class Spelling:
    """A norm's nodes from ``x`` to ``y``.

    Attributes:
        name: which exporter writes it so.
        kind: what it is.
        nodes: in order.
        constants: besides weight, bias and epsilon.
        image: whether it normalizes pictures, ``(batch, channels, height, width)``.
        bias: whether it has one.
        groups: of a group norm.
        opset: of the default domain.
        half: whether it computes in half precision.
        shaped: the weight's and the bias' shape in the file.
    """

    name: str
    kind: NormKind
    nodes: Nodes
    constants: Constants = field(default_factory=dict)
    image: bool = False
    bias: bool = True
    groups: int | None = None
    opset: int = 17
    half: bool = False
    shaped: tuple[int, ...] = (-1,)

    @property
    def shape(self) -> tuple[int, ...]:
        return IMAGE if self.image else (1, TOKENS, WIDTH)

    def weights(self) -> Constants:
        rng = np.random.default_rng(5)
        n = CHANNELS if self.image else WIDTH
        return {"w": f32(rng.uniform(0.5, 2, n)), "b": f32(rng.normal(0, 1, n))}

    def proto(self, faults: Faults | None = None) -> Any:
        """The model; the norm stands between two products, so that it can be wrong alone."""
        faults = faults or Faults()
        raw = self.weights()
        values: dict[str, np.ndarray] = {
            "norm.weight": f32(faults.weight(raw["w"])).reshape(self.shaped),
            "norm.bias": f32(faults.bias(raw["b"])).reshape(self.shaped),
            "eps": f32(faults.epsilon), "two": f32(2), "half": f32(-0.5), "one": f32(1),
            "n": f32(WIDTH), "1/n": f32(1 / WIDTH), "last": np.array([-1]), "zero": f32(0),
            **self.constants,
        }  # fmt: skip
        dtype = TensorProto.FLOAT
        if self.half:
            dtype = TensorProto.FLOAT16
            values = {k: v.astype(np.float16) if v.dtype == np.float32 else v
                      for k, v in values.items()}  # fmt: skip
        nodes = [_with_epsilon(n, faults.epsilon) for n in self.nodes]
        used = {name for n in nodes for name in n.input}
        graph = helper.make_graph(
            nodes, "norm",
            [helper.make_tensor_value_info("x", dtype, self.shape)],
            [helper.make_tensor_value_info("y", dtype, self.shape)],
            [numpy_helper.from_array(v, k) for k, v in values.items() if k in used],
        )  # fmt: skip
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _with_epsilon(made: Any, epsilon: float) -> Any:
    copy = type(made)()
    copy.CopyFrom(made)
    for attribute in copy.attribute:
        if attribute.name == "epsilon":
            attribute.f = epsilon
    return copy


def mean(x: str, y: str, axes: list[int] | None = None, keep: int = 1) -> Any:
    return node("ReduceMean", [x], [y], axes=axes or [-1], keepdims=keep)


_CENTRED = [mean("x", "mu"), node("Sub", ["x", "mu"], ["d"])]
_WEIGHED = [node("Mul", ["norm.weight", "q"], ["p"]), node("Add", ["p", "norm.bias"], ["y"])]
_SCALED = [node("Mul", ["q", "norm.weight"], ["y"])]
_VARIANCE = [*_CENTRED, node("Pow", ["d", "two"], ["dd"]), mean("dd", "v")]
_ADDED = [node("Add", ["v", "eps"], ["ve"])]
_ROOT = [*_ADDED, node("Sqrt", ["ve"], ["s"])]
_MOMENTS = [
    mean("x", "mu"), node("Mul", ["x", "x"], ["xx"]), mean("xx", "m2"),
    node("Mul", ["mu", "mu"], ["mm"]), node("Sub", ["m2", "mm"], ["v"]),
]  # fmt: skip
_SQUARES = [node("Mul", ["x", "x"], ["xx"]), mean("xx", "v")]
_DIVIDED = [node("Div", ["d", "s"], ["q"])]


def _constant(name: str, value: np.ndarray) -> Any:
    return node("Constant", [], [name], value=numpy_helper.from_array(value))


_LAYER = (
    Spelling("torch legacy, opset 16", "layer", [*_VARIANCE, *_ROOT, *_DIVIDED, *_WEIGHED]),
    Spelling("torch dynamo, Mul and Reciprocal", "layer", [
        *_CENTRED, node("Mul", ["d", "d"], ["dd"]), mean("dd", "v"), *_ROOT,
        node("Reciprocal", ["s"], ["r"]), node("Mul", ["d", "r"], ["q"]), *_WEIGHED]),
    Spelling("onnxscript, E[x²] - E[x]²", "layer", [
        *_MOMENTS, *_ROOT, node("Sub", ["x", "mu"], ["d"]), *_DIVIDED, *_WEIGHED]),
    Spelling("jax, variance kept from being negative", "layer", [
        *_MOMENTS[:-1], node("Sub", ["m2", "mm"], ["v0"]), node("Max", ["v0", "zero"], ["v"]),
        *_ADDED, node("Sqrt", ["ve"], ["s"]), node("Reciprocal", ["s"], ["r"]),
        node("Mul", ["r", "norm.weight"], ["rw"]), node("Sub", ["x", "mu"], ["d"]),
        node("Mul", ["d", "rw"], ["p"]), node("Add", ["p", "norm.bias"], ["y"])]),
    Spelling("tf2onnx, ReduceSum times 1/n", "layer", [
        node("ReduceSum", ["x", "last"], ["sx"], keepdims=1), node("Mul", ["sx", "1/n"], ["mu"]),
        node("Sub", ["x", "mu"], ["d"]), node("Mul", ["d", "d"], ["dd"]),
        node("ReduceSum", ["dd", "last"], ["sd"], keepdims=1), node("Mul", ["sd", "1/n"], ["v"]),
        *_ROOT, *_DIVIDED, *_WEIGHED]),
    Spelling("tf2onnx, batch_normalization's form", "layer", [
        *_VARIANCE, *_ADDED, node("Pow", ["ve", "half"], ["r"]),
        node("Mul", ["r", "norm.weight"], ["i"]), node("Mul", ["x", "i"], ["xi"]),
        node("Mul", ["mu", "i"], ["mi"]), node("Sub", ["norm.bias", "mi"], ["c"]),
        node("Add", ["xi", "c"], ["y"])]),
    Spelling("ReduceSum over a size of the shape", "layer", [
        node("Shape", ["x"], ["sh"]), node("Gather", ["sh", "at"], ["c0"], axis=0),
        node("Cast", ["c0"], ["c"], to=TensorProto.FLOAT),
        node("ReduceSum", ["x", "last"], ["sx"], keepdims=1), node("Div", ["sx", "c"], ["mu"]),
        node("Sub", ["x", "mu"], ["d"]), node("Mul", ["d", "d"], ["dd"]),
        node("ReduceSum", ["dd", "last"], ["sd"], keepdims=1), node("Div", ["sd", "c"], ["v"]),
        *_ROOT, *_DIVIDED, *_WEIGHED], {"at": np.array(-1)}),
    Spelling("Sub of the mean, RMS, Add", "layer", [
        *_CENTRED, node("SimplifiedLayerNormalization", ["d", "norm.weight"], ["p"], axis=-1,
                        epsilon=EPSILON), node("Add", ["p", "norm.bias"], ["y"])]),
    Spelling("weights in Constant nodes, behind Reshape", "layer", [
        _constant("k0", f32(np.random.default_rng(5).uniform(0.5, 2, WIDTH))),
        _constant("k1", np.array([1, 1, WIDTH])), node("Reshape", ["k0", "k1"], ["k"]),
        *_VARIANCE, *_ROOT, *_DIVIDED, node("Mul", ["q", "k"], ["p"]),
        node("Add", ["p", "norm.bias"], ["y"])]),
    Spelling("the weight behind Expand", "layer", [
        node("Expand", ["norm.weight", "wide"], ["k"]), *_VARIANCE, *_ROOT, *_DIVIDED,
        node("Mul", ["q", "k"], ["p"]), node("Add", ["norm.bias", "p"], ["y"])],
        {"wide": np.array([1, 1, WIDTH])}),
    Spelling("means without their axis, Unsqueeze", "layer", [
        mean("x", "m0", keep=0), node("Unsqueeze", ["m0", "last"], ["mu"]),
        node("Sub", ["x", "mu"], ["d"]), node("Mul", ["d", "d"], ["dd"]),
        mean("dd", "v0", keep=0), node("Unsqueeze", ["v0", "last"], ["v"]),
        *_ROOT, *_DIVIDED, *_WEIGHED]),
    Spelling("LayerNormalization of ones, Mul and Add", "layer", [
        node("LayerNormalization", ["x", "ones"], ["q"], epsilon=EPSILON), *_WEIGHED],
        {"ones": np.ones(WIDTH, np.float32)}),
    Spelling("LayerNormalization, opset 17", "layer", [
        node("LayerNormalization", ["x", "norm.weight", "norm.bias"], ["y"], epsilon=EPSILON)]),
    Spelling("half precision", "layer", [*_VARIANCE, *_ROOT, *_DIVIDED, *_WEIGHED], half=True),
    Spelling("half precision, widened in the norm", "layer", [
        node("Cast", ["x"], ["xc"], to=TensorProto.FLOAT), mean("xc", "mu"),
        node("Sub", ["xc", "mu"], ["d"]), node("Mul", ["d", "d"], ["dd"]), mean("dd", "v"),
        node("Cast", ["eps"], ["eps32"], to=TensorProto.FLOAT), node("Add", ["v", "eps32"], ["ve"]),
        node("Sqrt", ["ve"], ["s"]), node("Div", ["d", "s"], ["q32"]),
        node("Cast", ["q32"], ["q"], to=TensorProto.FLOAT16), *_WEIGHED], half=True),
    Spelling("a mean as a product with a column", "layer", [
        node("MatMul", ["x", "column"], ["mu"]), node("Sub", ["x", "mu"], ["d"]),
        node("Mul", ["d", "d"], ["dd"]), node("MatMul", ["dd", "column"], ["v"]),
        *_ROOT, *_DIVIDED, *_WEIGHED], {"column": np.full((WIDTH, 1), 1 / WIDTH, np.float32)}),
    Spelling("the variance of n - 1", "layer", [
        *_CENTRED, node("Mul", ["d", "d"], ["dd"]),
        node("ReduceSum", ["dd", "last"], ["sd"], keepdims=1), node("Div", ["sd", "n-1"], ["v"]),
        *_ROOT, *_DIVIDED, *_WEIGHED], {"n-1": f32(WIDTH - 1)}),
)  # fmt: skip

_RMS = (
    Spelling("torch legacy RMSNorm", "rms", [
        node("Pow", ["x", "two"], ["xx"]), mean("xx", "v"), *_ROOT,
        node("Div", ["one", "s"], ["r"]), node("Mul", ["x", "r"], ["q"]), *_SCALED], bias=False),
    Spelling("dynamo RMSNorm, Reciprocal before Sqrt", "rms", [
        *_SQUARES, *_ADDED, node("Reciprocal", ["ve"], ["iv"]), node("Sqrt", ["iv"], ["r"]),
        node("Mul", ["r", "x"], ["q"]), *_SCALED], bias=False),
    Spelling("jax RMSNorm, Einsum", "rms", [
        node("Einsum", ["x", "x"], ["ss0"], equation="abc,abc->ab"),
        node("Unsqueeze", ["ss0", "last"], ["ss"]), node("Div", ["ss", "n"], ["v"]), *_ADDED,
        node("Pow", ["ve", "half"], ["r"]), node("Mul", ["x", "r"], ["q"]), *_SCALED], bias=False),
    Spelling("ReduceSumSquare times 1/n", "rms", [
        node("ReduceSumSquare", ["x"], ["ss"], axes=[-1], keepdims=1),
        node("Mul", ["ss", "1/n"], ["v"]), *_ROOT, node("Div", ["x", "s"], ["q"]), *_SCALED],
        bias=False),
    Spelling("the weight before the root", "rms", [
        *_SQUARES, *_ADDED, node("Sqrt", ["ve"], ["s"]), node("Reciprocal", ["s"], ["r"]),
        node("Mul", ["r", "norm.weight"], ["rw"]), node("Mul", ["x", "rw"], ["y"])], bias=False),
    Spelling("RMSNormalization, opset 23", "rms", [
        node("RMSNormalization", ["x", "norm.weight"], ["y"], axis=-1, epsilon=EPSILON)],
        bias=False, opset=23),
    Spelling("SimplifiedLayerNormalization", "rms", [
        node("SimplifiedLayerNormalization", ["x", "norm.weight"], ["y"], axis=-1,
             epsilon=EPSILON)], bias=False),
)  # fmt: skip

_HW = [2, 3]
_TO_GROUPS = node("Reshape", ["x", "cut"], ["g"])
_CUT = {"cut": np.array([0, GROUPS, -1]), "whole": np.array(IMAGE)}
_IMAGES = (
    Spelling("InstanceNormalization", "group", [
        node("InstanceNormalization", ["x", "norm.weight", "norm.bias"], ["y"], epsilon=EPSILON)],
        image=True),
    Spelling("instance norm as operations", "group", [
        mean("x", "mu", _HW), node("Sub", ["x", "mu"], ["d"]), node("Mul", ["d", "d"], ["dd"]),
        mean("dd", "v", _HW), *_ROOT, *_DIVIDED, *_WEIGHED], image=True, shaped=(-1, 1, 1)),
    Spelling("instance norm with GlobalAveragePool", "group", [
        node("GlobalAveragePool", ["x"], ["mu"]), node("Sub", ["x", "mu"], ["d"]),
        node("Mul", ["d", "d"], ["dd"]), node("GlobalAveragePool", ["dd"], ["v"]),
        *_ROOT, *_DIVIDED, *_WEIGHED], image=True, shaped=(1, -1, 1, 1)),
    Spelling("torch legacy GroupNorm", "group", [
        _TO_GROUPS, node("InstanceNormalization", ["g", "g1", "g0"], ["gn"], epsilon=EPSILON),
        node("Reshape", ["gn", "whole"], ["q"]), *_WEIGHED],
        {**_CUT, "g1": np.ones(GROUPS, np.float32), "g0": np.zeros(GROUPS, np.float32)},
        image=True, groups=GROUPS, shaped=(-1, 1, 1)),
    Spelling("group norm as operations", "group", [
        _TO_GROUPS, mean("g", "mu"), node("Sub", ["g", "mu"], ["d"]),
        node("Mul", ["d", "d"], ["dd"]), mean("dd", "v"), *_ROOT, node("Div", ["d", "s"], ["gn"]),
        node("Reshape", ["gn", "whole"], ["q"]), *_WEIGHED], _CUT,
        image=True, groups=GROUPS, shaped=(-1, 1, 1)),
    Spelling("GroupNormalization, opset 21", "group", [
        node("GroupNormalization", ["x", "norm.weight", "norm.bias"], ["y"], num_groups=GROUPS,
             epsilon=EPSILON)], image=True, groups=GROUPS, opset=21),
    Spelling("LayerNorm over channels of pictures", "layer", [
        mean("x", "mu", [1]), node("Sub", ["x", "mu"], ["d"]), node("Pow", ["d", "two"], ["dd"]),
        mean("dd", "v", [1]), *_ROOT, *_DIVIDED, *_WEIGHED], image=True, shaped=(1, -1, 1, 1)),
)  # fmt: skip

SPELLINGS: Mapping[str, Spelling] = {s.name: s for s in (*_LAYER, *_RMS, *_IMAGES)}
