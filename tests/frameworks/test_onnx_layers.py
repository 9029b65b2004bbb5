"""ONNX graphs without a norm to look at: their layers and results are compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import ggufnorm
from ggufnorm.analysis.crosscheck.run import compare_frameworks
from ggufnorm.core.frameworks import EngineComparison
from tests import onnx_graphs
from tests.onnx_convs import Params, fold, folded, network, params, save

Change = Callable[[Any], None]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(network(params()), tmp_path_factory.mktemp("layers") / "trained.onnx")


@pytest.fixture(scope="module")
def without_norms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(folded(), tmp_path_factory.mktemp("layers") / "folded.onnx")


def compared(source: Path, engine: Path) -> EngineComparison:
    (found,) = compare_frameworks(str(source), [str(engine)], n_threads=1).comparisons
    return found


def changed(path: Path, out: Path, change: Change) -> Path:
    proto = onnx.load(str(path))
    change(proto)
    return save(proto, out)


def values(proto: Any, name: str, how: Callable[[np.ndarray], np.ndarray]) -> None:
    (tensor,) = [t for t in proto.graph.initializer if t.name == name]
    found = np.ascontiguousarray(how(numpy_helper.to_array(tensor)), np.float32)
    tensor.CopyFrom(numpy_helper.from_array(found, name))


def of(name: str, how: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda proto: values(proto, name, how)


def gemm(**more: float) -> Change:
    def change(proto: Any) -> None:
        (node,) = [n for n in proto.graph.node if n.op_type == "Gemm"]
        node.attribute.extend(helper.make_attribute(k, v) for k, v in more.items())

    return change


def activation(proto: Any) -> None:
    next(n for n in proto.graph.node if n.op_type == "Relu").op_type = "Sigmoid"


WRONG: dict[str, tuple[Change, str, str]] = {
    "scaled": (of("conv2.weight", lambda w: 2 * w), "conv2.weight", "2"),
    "reversed": (of("fc.weight", lambda w: w[::-1]), "fc.weight", "weight"),
    "bias": (of("conv1.bias", lambda b: b + 1), "conv1.weight", "bias"),
    "bias lost": (of("conv1.bias", lambda b: 0 * b), "conv1.weight", "its bias is missing"),
    "alpha": (gemm(alpha=0.5), "fc.weight", "its alpha is 0.5, in the source 1"),
    "beta": (gemm(beta=2.0), "fc.weight", "its beta is 2, in the source 1"),
    "activation": (activation, "conv2.weight", "something else after conv1.weight"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_first_wrong_layer_is_named(without_norms: Path, tmp_path: Path, name: str) -> None:
    change, key, says = WRONG[name]
    found = compared(without_norms, changed(without_norms, tmp_path / "wrong.onnx", change))
    assert found.first_wrong is not None
    assert (found.first_wrong.key, found.first_wrong.where) == (key, "layer")
    assert says in found.verdict


def test_layers_that_agree_are_told(without_norms: Path) -> None:
    found = compared(without_norms, without_norms)
    assert found.first_wrong is None
    assert {s.status for s in found.layers} == {"agrees"}
    assert found.verdict == (
        "Weights and biases of all 4 layers agree. Compared: 4 layers, the model's first output."
    )


def test_folded_and_kept_norms_agree_either_way(trained: Path, without_norms: Path) -> None:
    for a, b in ((trained, without_norms), (without_norms, trained)):
        assert compared(a, b).first_wrong is None


def train(proto: Any) -> None:
    for norm in proto.graph.node:
        if norm.op_type == "BatchNormalization":
            norm.attribute.append(helper.make_attribute("training_mode", 1))
            norm.output.extend([f"{norm.output[0]}/mean", f"{norm.output[0]}/var"])


def without_statistics(proto: Any) -> None:
    """As torch exports a norm of ``track_running_stats=False``."""
    nodes = list(proto.graph.node)
    i = next(i for i, n in enumerate(nodes) if n.output[0] == "bn1")
    x = nodes[i].input[0]
    made = [
        helper.make_node("ReduceMean", [x], ["own/mu"], axes=[0, 2, 3], keepdims=1),
        helper.make_node("Sub", [x, "own/mu"], ["own/d"]),
        helper.make_node("Mul", ["own/d", "own/d"], ["own/dd"]),
        helper.make_node("ReduceMean", ["own/dd"], ["own/var"], axes=[0, 2, 3], keepdims=0),
        helper.make_node("ReduceMean", [x], ["own/mean"], axes=[0, 2, 3], keepdims=0),
    ]
    nodes[i].input[3:] = ["own/mean", "own/var"]
    nodes[i].attribute.append(helper.make_attribute("training_mode", 1))
    nodes[i].output.extend(["own/m", "own/v"])
    del proto.graph.node[:]
    proto.graph.node.extend([*nodes[:i], *made, *nodes[i:]])


@pytest.mark.parametrize(
    ("change", "says"),
    [(train, "training_mode is 1"), (without_statistics, "it has no running statistics")],
)
def test_norms_with_statistics_of_their_own_are_named(
    trained: Path, without_norms: Path, tmp_path: Path, change: Change, says: str
) -> None:
    path = changed(trained, tmp_path / "own.onnx", change)
    note = ggufnorm.inspect(path).norms[0].note
    assert says in note
    assert "fixed" not in note
    for source in (trained, without_norms):
        found = compared(source, path)
        assert found.first_wrong is not None
        assert found.first_wrong.key == "bn1.gamma"
        assert found.first_wrong.causes == ("statistics",)
        assert says in found.verdict
    itself = compared(path, path)
    assert itself.first_wrong is None


def test_a_norm_folded_and_kept_is_applied_twice(trained: Path, tmp_path: Path) -> None:
    p: Params = params()
    fold(p, "bn2")
    path = save(network({n: v.astype(np.float32) for n, v in p.items()}), tmp_path / "twice.onnx")
    found = compared(trained, path)
    assert found.first_wrong is not None
    assert (found.first_wrong.key, found.first_wrong.causes) == ("bn2.gamma", ("twice",))


def test_statistics_that_were_never_taken_are_named(trained: Path, tmp_path: Path) -> None:
    p = params()
    p["bn1.mean"], p["bn1.var"] = np.zeros_like(p["bn1.mean"]), np.ones_like(p["bn1.var"])
    found = compared(trained, save(network(p), tmp_path / "fresh.onnx"))
    assert found.first_wrong is not None
    assert (found.first_wrong.key, found.first_wrong.causes) == ("bn1.gamma", ("statistics",))
    assert "mean 0 and variance 1" in found.verdict


def test_a_scale_moved_between_layers_is_no_mistake(trained: Path, tmp_path: Path) -> None:
    p = params()
    # Relu passes a positive factor on.
    for name in ("bn1.gamma", "bn1.beta"):
        p[name] = p[name] * np.float32(4)
    p["conv2.weight"] = p["conv2.weight"] / np.float32(4)
    found = compared(trained, save(network(p), tmp_path / "moved.onnx"))
    assert found.first_wrong is None
    assert {f.norm: f.status for f in found.folds}["bn1.gamma"] == "harmless"
    assert "nothing of it shows" in found.verdict


def test_all_results_are_compared(tmp_path: Path) -> None:
    def two(factor: float) -> Any:
        nodes = [
            helper.make_node("Relu", ["x"], ["first"]),
            helper.make_node("Mul", ["first", "k"], ["second"]),
            helper.make_node("Softmax", ["second"], ["third"]),
        ]
        shape = [1, 5, 7]
        made = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape)
                for n in ("x", "first", "second", "third")]  # fmt: skip
        graph = helper.make_graph(nodes, "two", made[:1], made[1:],
                                  [numpy_helper.from_array(np.float32(factor), "k")])  # fmt: skip
        return helper.make_model(graph, opset_imports=onnx_graphs.OPSETS, ir_version=10)

    a, b = (save(two(k), tmp_path / f"{k}.onnx") for k in (1.0, 1.5))
    assert compared(a, a).verdict == "Compared: all 3 outputs."
    found = compared(a, b)
    assert found.first_wrong is not None
    assert (found.first_wrong.key, found.first_wrong.where) == ("second", "output")


def test_what_rounding_may_turn_over_is_not_compared(tmp_path: Path) -> None:
    def best(factor: float) -> Any:
        nodes = [
            helper.make_node("Mul", ["x", "k"], ["h"]),
            helper.make_node("TopK", ["h", "n"], ["y", "at"]),
        ]
        graph = helper.make_graph(
            nodes, "best",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 40])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
            [numpy_helper.from_array(np.float32(factor), "k"),
             numpy_helper.from_array(np.array([3]), "n")],
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=onnx_graphs.OPSETS, ir_version=10)

    a, b = (save(best(k), tmp_path / f"{k}.onnx") for k in (1.0, 1.5))
    found = compared(a, b)
    assert found.first_wrong is None
    assert [(s.what, s.reason) for s in found.not_compared] == [
        ("y", "rounding may turn over its TopK")
    ]


def test_files_are_named_not_the_engine_of_both(tmp_path: Path) -> None:
    a = onnx_graphs.save(onnx_graphs.network(onnx_graphs.weights()), tmp_path / "a.onnx")
    wrong = onnx_graphs.network(onnx_graphs.weights(), op="SimplifiedLayerNormalization")
    found = compared(a, onnx_graphs.save(wrong, tmp_path / "b.onnx"))
    assert "b.onnx runs RMSNorm, a.onnx LayerNorm" in found.verdict
    assert "ONNX Runtime" not in found.verdict


@pytest.mark.parametrize(
    ("epsilon", "half", "cause"), [(1e-8, 0.0, "epsilon"), (1e-6, 1.0132789611816406e-06, None)]
)
def test_an_epsilon_in_half_precision(
    tmp_path: Path, epsilon: float, half: float, cause: str | None
) -> None:
    files = [
        onnx_graphs.save(
            onnx_graphs.network(onnx_graphs.weights(), epsilon=lambda _i, e=e: e),
            tmp_path / f"{e}.onnx",
        )
        for e in (epsilon, half)
    ]
    found = compared(*files)
    causes = {c.kind for s in found.sites for c in s.causes}
    assert causes == {cause or "rounding"}
    if cause:
        assert "half precision rounds to 0" in str(found.sites[0].causes[0].message)
    assert found.first_wrong is None  # no row is so small here


def test_a_kernel_s_rounding_of_large_groups_is_no_mistake(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["x", "k"], ["h"]),
        helper.make_node("InstanceNormalization", ["h", "w", "b"], ["y"], epsilon=1e-5),
    ]
    shape = [1, 2, 160000]
    graph = helper.make_graph(
        nodes, "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.full(2, v, np.float32), n) for n, v in (("w", 1), ("b", 0))]
        + [numpy_helper.from_array(np.float32(3), "k")],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=onnx_graphs.OPSETS, ir_version=10)
    a = save(proto, tmp_path / "a.onnx")
    proto.graph.node[1].attribute[0].f = 1.1e-5
    found = compared(a, save(proto, tmp_path / "b.onnx"))
    assert found.first_wrong is None
    assert not [c for s in found.sites for c in s.causes if c.kind == "formula"]
