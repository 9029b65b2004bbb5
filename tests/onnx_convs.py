"""A small network of convolutions and batch norms, as it is trained and with the norms folded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Params = dict[str, np.ndarray]
Change = Callable[[Params], None]

SIDE, EPSILON = 8, 1e-5
NORMS = {"bn1": 8, "bn2": 8, "bn3": 8, "bn4": 10}
BEHIND = {"bn1": "conv1", "bn2": "conv2", "bn4": "fc"}
"""The layer in front of a norm; bn3 stands before conv3."""


def params(seed: int = 0) -> Params:
    """Weights, and statistics of channels from nearly dead to loud."""
    rng = np.random.default_rng(seed)
    found = {
        "conv1.weight": rng.normal(0, 0.3, (8, 3, 3, 3)),
        "conv1.bias": rng.normal(0, 0.3, 8),
        "conv2.weight": rng.normal(0, 0.2, (8, 4, 3, 3)),
        "conv3.weight": rng.normal(0, 0.4, (6, 8, 3, 3)),
        "conv3.bias": rng.normal(0, 0.3, 6),
        "fc.weight": rng.normal(0, 0.4, (10, 6)),
        "fc.bias": rng.normal(0, 0.3, 10),
    }
    for name, n in NORMS.items():
        found[f"{name}.gamma"] = rng.uniform(0.5, 2, n)
        found[f"{name}.beta"] = rng.normal(0, 0.5, n)
        found[f"{name}.mean"] = rng.normal(0, 0.5, n)
        found[f"{name}.var"] = np.exp(rng.uniform(np.log(1e-3), np.log(4), n))
        found[f"{name}.epsilon"] = np.array(EPSILON)
    return {name: values.astype(np.float32) for name, values in found.items()}


def node(op: str, inputs: list[str], output: str, **more: Any) -> Any:
    return helper.make_node(op, inputs, [output], name=f"/{output}/{op}", **more)


def network(p: Mapping[str, np.ndarray], gone: set[str] | frozenset[str] = frozenset(), *,
            padding: int = 0) -> Any:  # fmt: skip
    """The network.

    Args:
        p: see :func:`params`; a layer has a bias if there is one.
        gone: norms that it does without.
        padding: of conv3.
    """
    nodes = []
    value = "x"

    def add(op: str, name: str, inputs: tuple[str, ...] = (), **more: Any) -> None:
        nonlocal value
        there = [f"{name}.{i}" for i in inputs if f"{name}.{i}" in p]
        nodes.append(node(op, [value, *there], name, **more))
        value = name

    def norm(name: str) -> None:
        if name not in gone:
            epsilon = float(p[f"{name}.epsilon"])
            add("BatchNormalization", name, ("gamma", "beta", "mean", "var"), epsilon=epsilon)

    add("Conv", "conv1", ("weight", "bias"), pads=[1] * 4)
    norm("bn1")
    add("Relu", "relu1")
    add("Conv", "conv2", ("weight", "bias"), group=2)
    norm("bn2")
    add("Relu", "relu2")
    norm("bn3")
    add("Conv", "conv3", ("weight", "bias"), pads=[padding] * 4)
    add("GlobalAveragePool", "pool")
    add("Flatten", "flat")
    add("Gemm", "fc", ("weight", "bias"), transB=1)
    norm("bn4")
    used = {name for n in nodes for name in n.input}
    graph = helper.make_graph(
        nodes,
        "convs",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(v, n) for n, v in p.items() if n in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def affine(p: Params, norm: str) -> tuple[np.ndarray, np.ndarray]:
    gamma, beta, mean, var, epsilon = (
        p[f"{norm}.{part}"].astype(np.float64)
        for part in ("gamma", "beta", "mean", "var", "epsilon")
    )
    scale = gamma / np.sqrt(var + epsilon)
    return scale, beta - mean * scale


def fold(p: Params, norm: str) -> None:
    """Put a norm into the layer beside it, in place."""
    scale, shift = affine(p, norm)
    if norm == "bn3":
        w = p["conv3.weight"].astype(np.float64)
        p["conv3.bias"] = p["conv3.bias"] + np.einsum("oihw,i->o", w, shift)
        p["conv3.weight"] = w * scale[:, None, None]
    else:
        into(p, BEHIND[norm], scale, shift)


def into(p: Params, layer: str, scale: np.ndarray, shift: np.ndarray) -> None:
    w = p[f"{layer}.weight"]
    p[f"{layer}.weight"] = w * scale.reshape(-1, *[1] * (w.ndim - 1))
    p[f"{layer}.bias"] = p.get(f"{layer}.bias", 0) * scale + shift


def _nothing(_p: Params) -> None:
    pass


def folded(before: Change = _nothing, after: Change = _nothing, **more: Any) -> Any:
    """The network with all norms folded.

    Args:
        before: spoils the norms' constants before.
        after: spoils the layers' afterwards.
    """
    p = params()
    before(p)
    for name in NORMS:
        fold(p, name)
    after(p)
    return network({n: v.astype(np.float32) for n, v in p.items()}, set(NORMS), **more)


def save(proto: Any, path: Path) -> Path:
    onnx.save(proto, str(path))
    return path
