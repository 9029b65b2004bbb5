"""Batch norms folded into layers: right folds are told as right, wrong ones are named."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static

import ggufnorm
from ggufnorm.analysis.crosscheck.folds import find_folds
from ggufnorm.analysis.crosscheck.run import compare_frameworks
from ggufnorm.cli.main import cli
from ggufnorm.core.frameworks import EngineComparison, FoldedNorm
from ggufnorm.errors import InputError
from tests import onnx_convs
from tests.onnx_convs import Change, Params, affine, folded, into, network, params, save


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(network(params()), tmp_path_factory.mktemp("folded") / "trained.onnx")


def compared(source: Path, engine: Path) -> EngineComparison:
    (found,) = compare_frameworks(str(source), [str(engine)], n_threads=1).comparisons
    return found


def by_norm(found: EngineComparison) -> dict[str, FoldedNorm]:
    return {fold.norm.partition(".")[0]: fold for fold in found.folds}


def test_a_right_fold_is_told_as_right(source: Path, tmp_path: Path) -> None:
    found = compared(source, save(folded(), tmp_path / "folded.onnx"))
    folds = by_norm(found)
    assert {n: (f.status, f.layer, f.side) for n, f in folds.items()} == {
        "bn1": ("folded", "conv1.weight", "after"),
        "bn2": ("folded", "conv2.weight", "after"),
        "bn3": ("folded", "conv3.weight", "before"),
        "bn4": ("folded", "fc.weight", "after"),
    }
    assert max(max(f.weight_error, f.bias_error) for f in found.folds) < 1e-6
    assert found.first_wrong is None
    right = "4 of 4 batch norms are folded, and right."
    assert found.verdict == f"{right} Compared: the model's first output."
    assert found.result is not None
    assert found.result.rel_l2 < 1e-5


def test_a_graph_that_keeps_its_norms_is_told_so(source: Path) -> None:
    found = compared(source, source)
    assert {f.status for f in found.folds} == {"kept"}
    assert max(f.weight_error for f in found.folds) == 0.0
    kept = "All 4 batch norms are kept as they are."
    assert found.verdict == f"{kept} Compared: the model's first output."


# -- others' folds -------------------------------------------------------------------------------


def test_what_onnxruntime_s_optimizer_folds_is_right(source: Path, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    found = compared(source, tmp_path / "optimized.onnx")
    statuses = {n: f.status for n, f in by_norm(found).items()}
    assert statuses == {"bn1": "folded", "bn2": "folded", "bn3": "kept", "bn4": "kept"}
    assert max(f.weight_error for f in found.folds) < 1e-6
    assert found.first_wrong is None


class _Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.bn = torch.nn.BatchNorm2d(8)
        self.up = torch.nn.ConvTranspose2d(8, 4, 2, stride=2, bias=False)
        self.bn_up = torch.nn.BatchNorm2d(4, eps=1e-3)
        self.fc = torch.nn.Linear(4, 6)
        self.bn_fc = torch.nn.BatchNorm1d(6)

    def forward(self, x: Any) -> Any:
        x = self.bn_up(self.up(torch.relu(self.bn(self.conv(x)))))
        return self.bn_fc(self.fc(x.mean((2, 3))))


@pytest.mark.filterwarnings("ignore")
def test_what_torch_s_exporter_folds_is_right(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = _Net().eval(), torch.randn(1, 3, 8, 8)
    for name, values in net.state_dict().items():
        if "bn" in name and values.dim():
            values.uniform_(0.2, 2)
    for name, optimize in (("plain", False), ("folded", True)):
        path = str(tmp_path / f"{name}.onnx")
        torch.onnx.export(net, (x,), path, verbose=False, optimize=optimize)
    left = [n.op_type for n in onnx.load(str(tmp_path / "folded.onnx")).graph.node]
    assert "BatchNormalization" not in left
    found = compared(tmp_path / "plain.onnx", tmp_path / "folded.onnx")
    assert [f.status for f in found.folds] == ["folded"] * 3
    assert [f.op for f in found.folds] == ["Conv", "ConvTranspose", "Gemm"]
    assert [f.epsilon for f in found.folds] == [1e-5, 1e-3, 1e-5]
    assert found.result is not None
    assert found.result.rel_l2 < 1e-5


# -- mistakes ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wrong:
    """A fold with one mistake: what it is done to before and after folding, and its name."""

    name: str
    norm: str
    cause: str
    before: Change = onnx_convs._nothing
    after: Change = onnx_convs._nothing
    says: str = ""


def _set(name: str, value: float) -> Change:
    def change(p: Params) -> None:
        p[name] = np.full_like(p[name], value)

    return change


def _negate(name: str) -> Change:
    def change(p: Params) -> None:
        p[name] = -p[name]

    return change


def _epsilon_as_variance(p: Params) -> None:
    p["bn2.var"] = (p["bn2.var"] + p["bn2.epsilon"]) ** 2 - p["bn2.epsilon"]


def _reverse(p: Params) -> None:
    for part in ("gamma", "beta", "mean", "var"):
        p[f"bn1.{part}"] = p[f"bn1.{part}"][::-1].copy()


def _exchange(p: Params) -> None:
    for part in ("gamma", "beta", "mean", "var"):
        p[f"bn1.{part}"], p[f"bn2.{part}"] = p[f"bn2.{part}"], p[f"bn1.{part}"]


def _statistics(p: Params) -> None:
    for part in ("mean", "var"):
        p[f"bn2.{part}"] = p[f"bn1.{part}"]


def _plain(*names: str) -> Change:
    """Give a layer its values before folding."""

    def change(p: Params) -> None:
        for name in names:
            p[name] = params().get(name, np.zeros_like(p[name]))

    return change


def _bias_lost(p: Params) -> None:
    p["conv1.bias"] = affine(params(), "bn1")[1]


def _bias_not_scaled(p: Params) -> None:
    p["conv1.bias"] = params()["conv1.bias"] + affine(params(), "bn1")[1]


def _into_another(p: Params) -> None:
    _plain("conv1.weight", "conv1.bias")(p)
    into(p, "conv2", *affine(params(), "bn1"))


def _two_parts(p: Params) -> None:
    _set("bn4.gamma", 1)(p)
    _set("bn4.mean", 0)(p)


def _scramble(p: Params) -> None:
    p["conv1.weight"] = p["conv1.weight"] * np.random.default_rng(1).uniform(0.5, 2, (8, 3, 3, 3))


WRONG = (
    Wrong("epsilon", "bn1", "epsilon", _set("bn1.epsilon", 1e-3), says="epsilon of 0.001"),
    Wrong("no epsilon", "bn2", "epsilon", _set("bn2.epsilon", 0), says="epsilon of 0, in the"),
    Wrong("epsilon before", "bn3", "epsilon", _set("bn3.epsilon", 1e-2), says="epsilon of 0.01,"),
    Wrong("epsilon of a matrix", "bn4", "epsilon", _set("bn4.epsilon", 1e-4)),
    Wrong("gamma", "bn1", "gamma", _set("bn1.gamma", 1), says="without its gamma"),
    Wrong("gamma before", "bn3", "gamma", _set("bn3.gamma", 1)),
    Wrong("beta", "bn2", "beta", _set("bn2.beta", 0), says="without its beta"),
    Wrong("mean", "bn1", "mean", _set("bn1.mean", 0), says="without its mean"),
    Wrong("mean before", "bn3", "mean", _set("bn3.mean", 0)),
    Wrong("mean added", "bn4", "mean", _negate("bn4.mean"), says="with its mean added"),
    Wrong("gamma and mean", "bn4", "gamma", _two_parts, says="without its gamma and its mean"),
    Wrong("no root", "bn2", "variance", _epsilon_as_variance, says="standard deviation"),
    Wrong("reversed", "bn1", "order", _reverse),
    Wrong("exchanged", "bn1", "elsewhere", _exchange, says="which holds bn2.gamma"),
    Wrong("statistics", "bn2", "elsewhere", _statistics, says="the variance of bn1.gamma"),
    Wrong("another layer", "bn1", "elsewhere", after=_into_another, says="into conv2.weight"),
    Wrong("lost", "bn1", "lost", after=_plain("conv1.weight", "conv1.bias"), says="is gone"),
    Wrong("lost before", "bn3", "lost", after=_plain("conv3.weight", "conv3.bias")),
    Wrong("weight alone", "bn2", "bias", after=_plain("conv2.bias"), says="not to the bias"),
    Wrong("bias alone", "bn1", "bias", after=_plain("conv1.weight"), says="not to the weight"),
    Wrong("bias lost", "bn1", "bias", after=_bias_lost, says="own bias is lost"),
    Wrong("bias not scaled", "bn1", "bias", after=_bias_not_scaled, says="is not scaled"),
    Wrong("unknown", "bn1", "values", after=_scramble),
)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda w: w.name)
def test_a_wrong_fold_is_named(source: Path, tmp_path: Path, wrong: Wrong) -> None:
    path = save(folded(wrong.before, wrong.after), tmp_path / "wrong.onnx")
    found = compared(source, path)
    assert found.first_wrong is not None
    assert found.first_wrong.key == f"{wrong.norm}.gamma"
    assert (found.first_wrong.where, found.first_wrong.causes) == ("fold", (wrong.cause,))
    assert wrong.says in found.first_wrong.reason
    assert found.verdict.startswith(f"First wrong at {wrong.norm}.gamma: it ")
    others = {n for n, f in by_norm(found).items() if f.status == "mistake"} - {wrong.norm}
    # What is exchanged with, or put upon, another norm's layer is wrong there too.
    assert others == ({"bn2"} if wrong.name in ("exchanged", "another layer") else set())
    assert found.result is not None
    assert found.result.rel_l2 > 1e-5


def test_a_norm_that_is_kept_is_compared_too(source: Path, tmp_path: Path) -> None:
    p = params()
    _set("bn2.epsilon", 1e-3)(p)
    found = compared(source, save(network(p), tmp_path / "kept.onnx"))
    assert {n: f.status for n, f in by_norm(found).items() if f.status != "kept"} == {
        "bn2": "mistake"
    }
    assert by_norm(found)["bn2"].epsilon_applied == 1e-3


def test_a_shift_before_padding_cannot_be_folded(tmp_path: Path) -> None:
    source = save(network(params(), padding=1), tmp_path / "trained.onnx")
    found = compared(source, save(folded(padding=1), tmp_path / "folded.onnx"))
    assert found.first_wrong is not None
    assert (found.first_wrong.key, found.first_wrong.causes) == ("bn3.gamma", ("padding",))
    assert found.result is not None
    assert found.result.rel_l2 > 1e-3


def _with_layer_norm(proto: Any, value: str, weight: float) -> Any:
    """The network with a LayerNorm on a value's last axis."""
    nodes = proto.graph.node
    for n in nodes:
        n.input[:] = [f"{value}.normed" if i == value else i for i in n.input]
    at = next((i + 1 for i, n in enumerate(nodes) if n.output[0] == value), 0)
    inputs, output = [value, "ln.weight"], f"{value}.normed"
    nodes.insert(at, onnx.helper.make_node("LayerNormalization", inputs, [output], name="ln"))
    values = np.full(onnx_convs.SIDE, weight, np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(values, "ln.weight"))
    return proto


@pytest.mark.parametrize(("value", "first"), [("x", "ln.weight"), ("relu1", "bn1.gamma")])
def test_of_a_wrong_norm_and_a_wrong_fold_the_first_is_named(
    tmp_path: Path, value: str, first: str
) -> None:
    source = save(_with_layer_norm(network(params()), value, 1), tmp_path / "trained.onnx")
    wrong = folded(_set("bn1.mean", 0))
    engine = save(_with_layer_norm(wrong, value, 2), tmp_path / "wrong.onnx")
    found = compared(source, engine)
    assert found.sites[0].status == "mistake"
    assert by_norm(found)["bn1"].status == "mistake"
    assert found.first_wrong is not None
    assert found.first_wrong.key == first
    assert "1 more of" in found.verdict


# -- rounded, and written otherwise --------------------------------------------------------------


class _Calibration(CalibrationDataReader):
    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        shape = (1, 3, onnx_convs.SIDE, onnx_convs.SIDE)
        self._left = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(4)]

    def get_next(self) -> Any:
        return self._left.pop() if self._left else None


def rounded(path: Path, how: str) -> Path:
    out = path.with_name(f"{how}.onnx")
    if how == "dynamic":
        quantize_dynamic(path, out)
    elif how == "f16":
        proto = onnx.load(str(path))
        for tensor in proto.graph.initializer:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
            cast = onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT)
            proto.graph.node.insert(0, cast)
        onnx.save(proto, str(out))
    else:
        quantize_static(path, out, _Calibration(), per_channel=how == "qdq by channel")
    return out


ROUNDED = ("f16", "dynamic", "qdq", "qdq by channel")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ROUNDED)
def test_rounding_is_no_mistake(source: Path, tmp_path: Path, how: str) -> None:
    found = compared(source, rounded(save(folded(), tmp_path / "folded.onnx"), how))
    assert {n: f.status for n, f in by_norm(found).items()} == dict.fromkeys(
        onnx_convs.NORMS, "rounded"
    )
    assert found.first_wrong is None, found.verdict
    least = 1e-5 if how == "f16" else 1e-3
    assert min(f.weight_error for f in found.folds) > least


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ROUNDED)
@pytest.mark.parametrize("name", ["gamma", "mean", "exchanged", "lost", "lost before", "no root"])
def test_a_wrong_fold_is_named_behind_rounding(
    source: Path, tmp_path: Path, name: str, how: str
) -> None:
    wrong = next(w for w in WRONG if w.name == name)
    path = save(folded(wrong.before, wrong.after), tmp_path / "wrong.onnx")
    found = compared(source, rounded(path, how))
    assert found.first_wrong is not None
    assert found.first_wrong.key == f"{wrong.norm}.gamma"
    assert found.first_wrong.causes == (wrong.cause,)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["dynamic", "qdq"])
def test_a_quantized_graph_that_keeps_its_norms_is_right(
    source: Path, tmp_path: Path, how: str
) -> None:
    path = tmp_path / "copy.onnx"
    path.write_bytes(source.read_bytes())
    found = compared(source, rounded(path, how))
    assert {f.status for f in found.folds} == {"kept"}


@pytest.mark.parametrize("gamma", [1.0, 3.0])
def test_a_norm_written_as_product_and_sum_is_read(
    source: Path, tmp_path: Path, gamma: float
) -> None:
    p = params()
    _scale = {n: v * np.float32(gamma) if n == "bn1.gamma" else v for n, v in p.items()}
    scale, shift = (v.astype(np.float32).reshape(1, 8, 1, 1) for v in affine(_scale, "bn1"))
    proto = network(p)
    at = next(i for i, n in enumerate(proto.graph.node) if n.output[0] == "bn1")
    del proto.graph.node[at]
    proto.graph.node.insert(at, onnx_convs.node("Add", ["scaled", "shift"], "bn1"))
    proto.graph.node.insert(at, onnx_convs.node("Mul", ["scale", "conv1"], "scaled"))
    for name, values in (("scale", scale), ("shift", shift)):
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    found = compared(source, save(proto, tmp_path / "written.onnx"))
    assert by_norm(found)["bn1"].status == ("kept" if gamma == 1 else "mistake")


def _row(p: Params, *names: str) -> Any:
    """Layers and norms in a row, nothing between; a layer has a bias if there is one."""
    x, nodes = "x", []
    for name in names:
        parts = ("weight", "bias") if name.startswith("conv") else ("gamma", "beta", "mean", "var")
        inputs = [x, *(f"{name}.{part}" for part in parts if f"{name}.{part}" in p)]
        op = "Conv" if name.startswith("conv") else "BatchNormalization"
        nodes.append(onnx_convs.node(op, inputs, name))
        x = name
    used = {i for n in nodes for i in n.input}
    graph = onnx.helper.make_graph(
        nodes,
        "row",
        [
            onnx.helper.make_tensor_value_info(
                "x", TensorProto.FLOAT, [1, 3 if names[0] == "conv1" else 8, 8, 8]
            )
        ],
        [onnx.helper.make_tensor_value_info(x, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in p.items() if n in used],
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize(("spoilt", "status"), [(1.0, "folded"), (0.0, "mistake")])
def test_a_norm_between_two_layers_may_be_in_the_second(
    tmp_path: Path, spoilt: float, status: str
) -> None:
    p = params()
    p["conv4.weight"] = np.random.default_rng(5).normal(0, 0.2, (8, 8, 3, 3)).astype(np.float32)
    source = save(_row(p, "conv1", "bn1", "conv4"), tmp_path / "trained.onnx")
    scale, shift = affine(p | {"bn1.mean": p["bn1.mean"] * np.float32(spoilt)}, "bn1")
    wide = p["conv4.weight"].astype(np.float64)
    p["conv4.bias"] = np.einsum("oihw,i->o", wide, shift)
    p["conv4.weight"] = wide * scale[:, None, None]
    engine = save(_row(p, "conv1", "conv4"), tmp_path / "folded.onnx")
    (fold,) = compared(source, engine).folds
    assert (fold.status, fold.layer, fold.side) == (status, "conv4.weight", "before")
    assert fold.cause == (None if status == "folded" else "mean")


def test_of_two_norms_in_one_layer_the_wrong_one_is_blamed(tmp_path: Path) -> None:
    p = params()
    p["conv4.weight"] = np.random.default_rng(5).normal(0, 0.2, (8, 8, 3, 3)).astype(np.float32)
    source = save(_row(p, "bn1", "conv4", "bn2"), tmp_path / "trained.onnx")
    scale, shift = affine(p, "bn1")
    wide = p["conv4.weight"].astype(np.float64)
    p["conv4.bias"] = np.einsum("oihw,i->o", wide, shift)
    p["conv4.weight"] = wide * scale[:, None, None]
    into(p, "conv4", *affine(p | {"bn2.mean": 0 * p["bn2.mean"]}, "bn2"))
    folds = by_norm(compared(source, save(_row(p, "conv4"), tmp_path / "folded.onnx")))
    assert {n: (f.status, f.cause) for n, f in folds.items()} == {
        "bn1": ("folded", None),
        "bn2": ("mistake", "mean"),
    }


# -- what cannot be told, and the command --------------------------------------------------------


def test_a_layer_that_is_not_there_is_told(source: Path, tmp_path: Path) -> None:
    p = params()
    rng = np.random.default_rng(2)
    p["conv1.weight"] = rng.normal(0, 1, (8, 3, 1, 1)).astype(np.float32)
    found = compared(source, save(network(p), tmp_path / "other.onnx"))
    assert "bn1" not in by_norm(found)
    assert any(s.what == "bn1.gamma" and "no layer" in s.reason for s in found.skipped)


def test_damaged_graphs_are_judged_or_refused(source: Path, tmp_path: Path) -> None:
    rng, path, whole = random.Random(0), tmp_path / "damaged.onnx", source.read_bytes()
    judged, refusals = 0, []
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 40)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            judged += len(find_folds(str(source), str(path)).found)
        except InputError as error:
            refusals.append(str(error))
    assert judged > 100
    assert refusals
    assert all(len(text.splitlines()) == 1 for text in refusals)


def test_the_command_shows_folds_in_every_face(source: Path, tmp_path: Path) -> None:
    wrong = save(folded(_set("bn1.epsilon", 1e-3)), tmp_path / "wrong.onnx")
    words = ["compare", str(source), str(wrong), "-t", "1"]
    faces = {}
    for face in ("text", "markdown", "json", "html"):
        done = CliRunner().invoke(cli, [*words, "--format", face], standalone_mode=False)
        assert done.exception is None, done.exception
        faces[face] = " ".join(done.stdout.split())
    for face in ("text", "markdown", "html"):
        assert "an epsilon of 0.001, in the source 1e-05" in faces[face]
        assert "Batch norm" in faces[face]
    (comparison,) = json.loads(faces["json"])["comparisons"]
    fold = comparison["folds"][0]
    assert (fold["norm"], fold["cause"], fold["epsilon_applied"]) == ("bn1.gamma", "epsilon", 1e-3)
    crossed = CliRunner().invoke(cli, [*words, "--max-rel", "1e-4"], standalone_mode=False)
    assert crossed.return_value == 1
    right = save(folded(), tmp_path / "right.onnx")
    words[2] = str(right)
    passed = CliRunner().invoke(cli, [*words, "--max-rel", "1e-4"], standalone_mode=False)
    assert not passed.return_value


def test_a_norm_in_training_mode_is_named(source: Path, tmp_path: Path) -> None:
    proto = onnx.load(source)
    norm = next(n for n in proto.graph.node if n.op_type == "BatchNormalization")
    norm.attribute.append(onnx.helper.make_attribute("training_mode", 1))
    norm.output.extend(["running_mean", "running_var"])
    path = tmp_path / "training.onnx"
    onnx.save(proto, path)
    assert "training_mode" in str(ggufnorm.inspect(path).norms[0].note)
    found = compared(source, path)
    assert "training_mode" in found.verdict
