"""Both ends of an ONNX graph: pixels normalized inside it, and how states become an embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import ggufnorm
from ggufnorm.analysis.crosscheck.embedding import compare_embedding
from ggufnorm.analysis.crosscheck.run import compare_frameworks
from ggufnorm.core.frameworks import EngineComparison
from ggufnorm.core.observed import SourceOutput
from ggufnorm.core.pixels import KNOWN, Normalization
from ggufnorm.engines.onnx.front import read_front
from ggufnorm.engines.onnx.model import OnnxModel
from ggufnorm.engines.onnx.session import OnnxSession
from ggufnorm.engines.onnx.tail import recognize_tail
from tests.onnx_convs import save
from tests.onnx_graphs import OPSETS

WIDTH, WORDS = 16, 40
IDS = np.random.default_rng(3).integers(0, WORDS, 11).astype(np.int32)
FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64
node = helper.make_node


def compared(source: Path, engine: Path) -> EngineComparison:
    (found,) = compare_frameworks(
        str(source), [str(engine)], text="a", n_tokens=23, n_threads=1
    ).comparisons
    return found


# -- how states become an embedding --------------------------------------------------------------

_M = [node("Cast", ["attention_mask"], ["m0"], to=FLOAT), node("Unsqueeze", ["m0", "last"], ["m"])]
_SUM = [*_M, node("Mul", ["h", "m"], ["hm"]), node("ReduceSum", ["hm", "one"], ["s"], keepdims=0),
        node("ReduceSum", ["m", "one"], ["n"], keepdims=0)]  # fmt: skip
_COUNT = [node("ReduceSum", ["attention_mask", "one"], ["n"], keepdims=1),
          node("Sub", ["n", "one"], ["i"])]  # fmt: skip
TAILS: dict[str, tuple[str, list[Any]]] = {
    "Div": ("mean", [*_SUM, node("Div", ["s", "n"], ["p"])]),
    "Clip and Reciprocal": ("mean", [
        *_SUM, node("Clip", ["n", "tiny"], ["c"]), node("Reciprocal", ["c"], ["r"]),
        node("Mul", ["s", "r"], ["p"])]),
    "MatMul with the mask": ("mean", [
        *_M, node("Transpose", ["m"], ["mt"], perm=[0, 2, 1]), node("MatMul", ["mt", "h"], ["s3"]),
        node("Squeeze", ["s3", "one"], ["s"]), node("ReduceSum", ["m", "one"], ["n"], keepdims=0),
        node("Div", ["s", "n"], ["p"])]),
    "ReduceMean": ("mean of padding too", [node("ReduceMean", ["h", "one"], ["p"], keepdims=0)]),
    "Gather": ("cls", [node("Gather", ["h", "zero"], ["p"], axis=1)]),
    "Slice": ("cls", [node("Slice", ["h", "from", "one", "one"], ["c"]),
                      node("Squeeze", ["c", "one"], ["p"])]),
    "Where and ReduceMax": ("max", [
        *_M, node("Cast", ["m"], ["is"], to=TensorProto.BOOL),
        node("Where", ["is", "h", "low"], ["w"]),
        node("ReduceMax", ["w", "one"], ["p"], keepdims=0)]),
    "ReduceMax": ("max of padding too", [node("ReduceMax", ["h", "one"], ["p"], keepdims=0)]),
    "GatherND": ("last", [*_COUNT, node("GatherND", ["h", "i"], ["p"], batch_dims=1)]),
    "Gather of -1": ("last of padding too", [node("Gather", ["h", "minus"], ["p"], axis=1)]),
    "ReduceSum": ("sum", [*_SUM, node("Identity", ["s"], ["p"])]),
    "all states": ("none", [node("Identity", ["h"], ["p"])]),
}  # fmt: skip
L2: dict[str, list[Any]] = {
    "ReduceL2": [node("ReduceL2", ["p", "last"], ["l"]), node("Div", ["p", "l"], ["y"])],
    "LpNormalization": [node("LpNormalization", ["p"], ["y"], axis=-1, p=2)],
    "no L2": [node("Identity", ["p"], ["y"])],
}


def embedder(tail: list[Any], l2: list[Any]) -> Any:
    rng = np.random.default_rng(0)
    constants = {
        "words": rng.normal(0.4, 1, (WORDS, WIDTH)).astype(np.float32),
        "gamma": rng.uniform(0.5, 2, WIDTH).astype(np.float32),
        "beta": rng.normal(0.3, 1, WIDTH).astype(np.float32),
        "tiny": np.float32(1e-9), "low": np.float32(-1e9),
        "zero": np.array(0), "minus": np.array(-1),
        "one": np.array([1]), "last": np.array([-1]), "from": np.array([0]),
    }  # fmt: skip
    nodes = [node("Gather", ["words", "input_ids"], ["e"]),
             node("LayerNormalization", ["e", "gamma", "beta"], ["h"]), *tail, *l2]  # fmt: skip
    graph = helper.make_graph(
        nodes, "embedder",
        [helper.make_tensor_value_info(n, INT, ["batch", "tokens"])
         for n in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(v, n) for n, v in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=OPSETS, ir_version=10)


@pytest.mark.parametrize("l2", L2)
@pytest.mark.parametrize("name", TAILS)
def test_pooling_is_told_by_what_it_computes(name: str, l2: str, tmp_path: Path) -> None:
    pooling, nodes = TAILS[name]
    tail = recognize_tail(save(embedder(nodes, L2[l2]), tmp_path / "m.onnx"), IDS)
    assert tail is not None
    if pooling == "sum" and l2 != "no L2":
        pooling = "mean"  # of length 1 they are one
    assert (tail.pooling, tail.l2) == (pooling, l2 != "no L2")


WRONG = {
    "Gather": "pools by cls, mean.onnx by mean",
    "ReduceMean": "pools by mean of padding too",
    "Where and ReduceMax": "pools by max, mean.onnx by mean",
    "GatherND": "pools by last, mean.onnx by mean",
    "all states": "does not pool",
}


@pytest.mark.parametrize("name", WRONG)
def test_another_pooling_is_named(name: str, tmp_path: Path) -> None:
    source = save(embedder(TAILS["Div"][1], L2["ReduceL2"]), tmp_path / "mean.onnx")
    found = compared(source, save(embedder(TAILS[name][1], L2["ReduceL2"]), tmp_path / "b.onnx"))
    assert found.first_wrong is not None
    assert (found.first_wrong.key, found.first_wrong.where) == ("y", "output")
    assert WRONG[name] in found.first_wrong.reason


def test_a_missing_l2_is_named_and_other_spellings_are_right(tmp_path: Path) -> None:
    files = {
        (name, l2): save(embedder(TAILS[name][1], L2[l2]), tmp_path / f"{i}{k}.onnx")
        for i, name in enumerate(("Div", "Clip and Reciprocal", "MatMul with the mask"))
        for k, l2 in enumerate(L2)
    }
    source = files["Div", "ReduceL2"]
    for (_name, l2), path in files.items():
        found = compared(source, path)
        if l2 != "no L2":
            assert found.first_wrong is None, found.verdict
        else:
            assert found.first_wrong is not None
            assert "02.onnx is not L2-normalized" in found.verdict or "not L2" in found.verdict


def test_a_mask_that_is_not_used_shows_with_padding_alone(tmp_path: Path) -> None:
    mean = [node("ReduceMean", ["g", "one"], ["q"], keepdims=0), node("Tanh", ["q"], ["p"])]
    used = [*_M, node("Mul", ["h", "m"], ["g"]), *mean]
    source = save(embedder(used, L2["no L2"]), tmp_path / "used.onnx")
    unused = [node("Identity", ["h"], ["g"]), *mean]
    found = compared(source, save(embedder(unused, L2["no L2"]), tmp_path / "unused.onnx"))
    assert found.first_wrong is not None
    assert "it is off by 0 without padding" in found.first_wrong.reason


@pytest.mark.parametrize(
    ("name", "l2", "says"),
    [
        ("Div", "ReduceL2", ""),
        ("Gather", "ReduceL2", "pools by cls, the source by mean (1_Pooling/config.json)"),
        ("ReduceMean", "ReduceL2", "pools by mean of padding too"),
        ("Div", "no L2", "not L2-normalized, and modules.json has a Normalize"),
        ("all states", "no L2", ""),
    ],
)
def test_an_embedding_is_held_against_the_checkpoint_s(
    name: str, l2: str, says: str, tmp_path: Path
) -> None:
    states = save(embedder(TAILS["all states"][1], L2["no L2"]), tmp_path / "states.onnx")
    result = OnnxSession(states).run(IDS).result
    assert result is not None
    source = SourceOutput(result[0], "mean", (), None, None, {}, normalizes=True)
    path = save(embedder(TAILS[name][1], L2[l2]), tmp_path / "m.onnx")
    found = compare_embedding(source, str(path), OnnxSession(path).run(IDS).result, IDS)
    assert found is not None
    assert (found.is_wrong, found.skipped) == (bool(says), None)
    assert says in found.reason
    if not says:
        assert found.off == pytest.approx(0, abs=1e-6)


# -- pixels normalized inside --------------------------------------------------------------------

MEAN, STD = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in KNOWN["ImageNet"])
FRONTS: dict[str, tuple[list[Any], dict[str, np.ndarray]]] = {
    "Div, Sub, Div": (
        [node("Div", ["x", "k"], ["a"]), node("Sub", ["a", "m"], ["b"]),
         node("Div", ["b", "s"], ["n"])],
        {"k": np.float32(255), "m": MEAN, "s": STD}),
    "Mul, Add": (
        [node("Mul", ["x", "k"], ["a"]), node("Add", ["a", "m"], ["n"])],
        {"k": 1 / (255 * STD), "m": -MEAN / STD}),
    "Sub, Mul, of levels": (
        [node("Sub", ["x", "m"], ["a"]), node("Mul", ["k", "a"], ["n"])],
        {"k": 1 / (255 * STD), "m": 255 * MEAN}),
    "Cast, BatchNormalization": (
        [node("Cast", ["x"], ["c"], to=FLOAT),
         node("BatchNormalization", ["c", "g", "z", "m", "v"], ["n"], epsilon=0.0)],
        {"g": np.ones(3, np.float32), "z": np.zeros(3, np.float32), "m": 255 * MEAN.ravel(),
         "v": (255 * STD.ravel()) ** 2}),
}  # fmt: skip


def pixels_model(front: list[Any], constants: dict[str, np.ndarray]) -> Any:
    rng = np.random.default_rng(0)
    if not front:
        front = [node("Identity", ["x"], ["n"])]
    values = {**constants, "w": rng.normal(0, 0.3, (8, 3, 3, 3)), "fc": rng.normal(0, 1, (8, 5))}
    nodes = [*front, node("Conv", ["n", "w"], ["c1"]), node("Relu", ["c1"], ["r"]),
             node("GlobalAveragePool", ["r"], ["g1"]), node("Flatten", ["g1"], ["f"]),
             node("Gemm", ["f", "fc"], ["y"])]  # fmt: skip
    graph = helper.make_graph(
        nodes, "pixels",
        [helper.make_tensor_value_info("x", FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("y", FLOAT, [1, 5])],
        [numpy_helper.from_array(np.asarray(v, np.float32), n) for n, v in values.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=OPSETS, ir_version=10)


@pytest.mark.parametrize("name", FRONTS)
def test_the_normalization_inside_is_read(name: str, tmp_path: Path) -> None:
    front = read_front(OnnxModel(save(pixels_model(*FRONTS[name]), tmp_path / "m.onnx")))
    assert front is not None
    assert Normalization(*KNOWN["ImageNet"]).affine.gain == pytest.approx(front.affine.gain)
    assert front.affine.offset == pytest.approx((-MEAN / STD).ravel().tolist())


@pytest.fixture(scope="module")
def levels() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (1, 3, 16, 16)).astype(np.float32)


@pytest.mark.parametrize("constants", [Normalization(*KNOWN["ImageNet"]), None])
@pytest.mark.parametrize("name", FRONTS)
def test_pixels_knows_what_the_model_does_itself(
    name: str, constants: Normalization | None, levels: np.ndarray, tmp_path: Path
) -> None:
    model = save(pixels_model(*FRONTS[name]), tmp_path / "m.onnx")
    for fed, expected in (
        (levels, ()),
        ((levels / 255 - MEAN) / STD, ("normalized-inside-and-outside",)),
        (levels / 255, ("not-normalized",)),
    ):
        np.save(tmp_path / "fed.npy", fed.astype(np.float32))
        report = ggufnorm.pixels(array=tmp_path / "fed.npy", constants=constants, onnx=model)
        (pipeline,) = report.pipelines
        assert bool(pipeline.mistakes) == bool(expected), report.verdict
        if expected and expected[0] == "normalized-inside-and-outside":
            assert pipeline.mistakes == expected
            assert "though" in pipeline.normalization


def test_what_is_left_to_do_outside_is_expected(levels: np.ndarray, tmp_path: Path) -> None:
    half = [node("Div", ["x", "k"], ["n"])], {"k": np.float32(255)}
    model = save(pixels_model(*half), tmp_path / "m.onnx")
    np.save(tmp_path / "fed.npy", ((levels - 255 * MEAN) / STD).astype(np.float32))
    expected = Normalization(*KNOWN["ImageNet"])
    right = ggufnorm.pixels(array=tmp_path / "fed.npy", constants=expected, onnx=model)
    assert not right.findings
    np.save(tmp_path / "fed.npy", ((levels / 255 - MEAN) / STD).astype(np.float32))
    wrong = ggufnorm.pixels(array=tmp_path / "fed.npy", constants=expected, onnx=model)
    assert wrong.pipelines[0].mistakes == ("normalized-inside-and-outside",)


def test_constants_inside_that_are_another_s_are_named(levels: np.ndarray, tmp_path: Path) -> None:
    model = save(pixels_model(*FRONTS["Mul, Add"]), tmp_path / "m.onnx")
    np.save(tmp_path / "fed.npy", levels)
    expected = Normalization(*KNOWN["CLIP"])
    report = ggufnorm.pixels(array=tmp_path / "fed.npy", constants=expected, onnx=model)
    assert [f.name for f in report.findings if f.severity == "error"] == ["constants-differ"]


@pytest.mark.parametrize("name", FRONTS)
def test_compare_names_a_normalization_on_one_side(name: str, tmp_path: Path) -> None:
    inside = save(pixels_model(*FRONTS[name]), tmp_path / "inside.onnx")
    outside = save(pixels_model([], {}), tmp_path / "outside.onnx")
    for a, b in ((inside, outside), (outside, inside)):
        found = compared(a, b)
        assert found.first_wrong is not None
        assert (found.first_wrong.key, found.first_wrong.where) == ("x", "input")
        assert "Fed so that both normalize to the same, all else agrees." in found.verdict
    assert compared(inside, inside).first_wrong is None
    wrong = onnx.load(str(inside))
    (tensor,) = [t for t in wrong.graph.initializer if t.name == "fc"]
    tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), "fc"))
    found = compared(outside, save(wrong, tmp_path / "wrong.onnx"))
    assert "normalize to the same, fc is wrong" in found.verdict


def test_a_front_that_is_folded_into_the_first_layer_is_no_mistake(tmp_path: Path) -> None:
    inside = pixels_model(*FRONTS["Mul, Add"])
    outside = pixels_model([], {})
    weights = {t.name: numpy_helper.to_array(t) for t in inside.graph.initializer}
    k, m = (weights[n].astype(np.float64).reshape(3) for n in "km")
    (conv,) = [n for n in outside.graph.node if n.op_type == "Conv"]
    (w,) = [t for t in outside.graph.initializer if t.name == "w"]
    w.CopyFrom(numpy_helper.from_array(
        (weights["w"] * k[:, None, None]).astype(np.float32), "w"))  # fmt: skip
    bias = np.einsum("oihw,i->o", weights["w"].astype(np.float64), m).astype(np.float32)
    outside.graph.initializer.append(numpy_helper.from_array(bias, "bias"))
    conv.input.append("bias")
    found = compared(save(inside, tmp_path / "a.onnx"), save(outside, tmp_path / "b.onnx"))
    assert found.first_wrong is None, found.verdict
