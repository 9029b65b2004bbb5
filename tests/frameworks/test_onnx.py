"""ONNX graphs: their norms are found, and run beside each other, Transformers and llama.cpp."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static

import ggufnorm
from ggufnorm.analysis.crosscheck.run import compare_frameworks
from ggufnorm.cli.main import cli
from ggufnorm.core.frameworks import EngineComparison
from ggufnorm.engines.onnx.session import OnnxSession
from ggufnorm.errors import EngineError, InputError
from tests import framework_models as made
from tests import in_process, onnx_graphs

IDS = np.arange(onnx_graphs.TOKENS, dtype=np.int32)
BY_NAME = {g.name: g for g in onnx_graphs.GRAPHS}


@pytest.mark.parametrize("name", BY_NAME)
def test_a_norm_is_listed_with_kind_epsilon_and_weights(name: str, tmp_path: Path) -> None:
    graph = BY_NAME[name]
    (norm,) = ggufnorm.inspect(graph.save(tmp_path / "one.onnx")).norms
    assert (norm.kind, norm.epsilon, norm.groups) == (graph.kind, 1e-3, graph.groups)
    assert norm.epsilon_key == (graph.nodes[0].op_type if len(graph.nodes) == 1 else "decomposed")
    assert (norm.tensor, norm.bias) == ("norm.weight", "norm.bias" if graph.bias else None)
    assert norm.dtype == "FLOAT"
    assert norm.weight is not None
    stored = graph.constants["norm.weight"] + graph.offset
    assert norm.weight.mean == pytest.approx(float(stored.mean()), rel=1e-6)


@pytest.mark.parametrize("name", BY_NAME)
def test_a_norm_s_ends_are_captured_and_its_formula_explains_them(
    name: str, tmp_path: Path
) -> None:
    graph = BY_NAME[name]
    run = OnnxSession(graph.save(tmp_path / "one.onnx"), n_threads=1).run(IDS)
    if graph.kind is None:
        assert not run.norms
        assert run.skipped[-1].reason.startswith("BatchNormalization has fixed statistics")
        return
    (norm,) = run.norms
    assert norm.residual() < 1e-6
    assert norm.formula.offset == graph.offset
    assert np.linalg.norm(norm.x) > 0


def test_no_norm_is_seen_where_there_is_none(tmp_path: Path) -> None:
    nodes, values = onnx_graphs._rms(
        onnx_graphs.node("Add", ["mean", "eps"], ["shifted"]),
        onnx_graphs.node("Mul", ["x", "shifted"], ["y"]),
    )
    graph = onnx_graphs.Graph("none", nodes, None, values)
    inspection = ggufnorm.inspect(graph.save(tmp_path / "none.onnx"))
    assert not inspection.norms
    assert "no root behind it" in inspection.skipped[0].reason
    found = compared(tmp_path / "none.onnx", tmp_path / "none.onnx")
    assert found.first_wrong is None
    assert found.verdict == "Compared: the model's first output."


def test_epsilon_outside_the_root_is_told(tmp_path: Path) -> None:
    nodes, values = onnx_graphs._rms(
        onnx_graphs.node("Sqrt", ["mean"], ["root"]),
        onnx_graphs.node("Add", ["root", "eps"], ["divisor"]),
        onnx_graphs.node("Div", ["x", "divisor"], ["n"]),
        onnx_graphs.node("Mul", ["n", "norm.weight"], ["y"]),
    )
    path = onnx_graphs.Graph("outside", nodes, "rms", values).save(tmp_path / "o.onnx")
    (norm,) = OnnxSession(path, n_threads=1).run(IDS).norms
    assert (norm.formula.divisor, norm.formula.epsilon) == ("outside", 1e-3)
    assert norm.residual() < 1e-6
    assert "epsilon outside the root" in ggufnorm.inspect(path).norms[0].note


# -- one network and its variants ---------------------------------------------------------------


@pytest.fixture(scope="module")
def float_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    proto = onnx_graphs.network(onnx_graphs.weights())
    return onnx_graphs.save(proto, tmp_path_factory.mktemp("onnx") / "float.onnx")


def compared(source: Path, engine: Path) -> EngineComparison:
    (found,) = compare_frameworks(
        str(source), [str(engine)], text="a", n_tokens=23, n_threads=1
    ).comparisons
    return found


def test_a_model_agrees_with_itself_exactly(float_model: Path) -> None:
    found = compared(float_model, float_model)
    assert [s.key for s in found.sites] == [
        *(f"layers.{i}.norm.weight" for i in range(onnx_graphs.LAYERS)),
        "norm.weight",
    ]
    assert [s.layer for s in found.sites] == [0, 1, 2, None]
    assert {s.status for s in found.sites} == {"agrees"}
    assert max(s.output.rel_l2 for s in found.sites) == 0.0
    assert found.logits is not None
    assert found.logits.mean_kld == 0.0


def test_weights_beside_the_file_are_read(float_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(
        onnx.load(str(float_model)), str(path), save_as_external_data=True,
        location="weights.bin", size_threshold=0,
    )  # fmt: skip
    assert (tmp_path / "weights.bin").exists()
    inside, outside = ggufnorm.inspect(float_model), ggufnorm.inspect(path)
    assert outside.norms == inside.norms
    assert compared(float_model, path).first_wrong is None
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InputError, match="cannot read"):
        ggufnorm.inspect(path)


def test_external_data_do_not_lead_out_of_the_folder(float_model: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    onnx.save(
        onnx.load(str(float_model)), str(tmp_path / "m.onnx"), save_as_external_data=True,
        location="weights.bin", size_threshold=0,
    )  # fmt: skip
    proto = onnx.load(str(tmp_path / "m.onnx"), load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../weights.bin"
    (inner / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match="cannot read"):
        ggufnorm.inspect(inner / "m.onnx")


class _Calibration(CalibrationDataReader):
    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self._left = [{"input_ids": rng.integers(0, onnx_graphs.WORDS, (1, 23))} for _ in range(4)]

    def get_next(self) -> Any:
        return self._left.pop() if self._left else None


def quantized(float_model: Path, path: Path, how: str) -> Path:
    if how == "dynamic":
        quantize_dynamic(float_model, path)
    else:
        quantize_static(float_model, path, _Calibration())
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["dynamic", "qdq"])
def test_quantized_onnx_differs_as_precision_does(
    float_model: Path, tmp_path: Path, how: str
) -> None:
    found = compared(float_model, quantized(float_model, tmp_path / "q.onnx", how))
    assert len(found.sites) == onnx_graphs.LAYERS + 1
    assert found.first_wrong is None, found.verdict
    assert found.verdict.startswith("No mistake")
    assert {s.status for s in found.sites} == {"precision"}
    assert max(s.output.rel_l2 for s in found.sites) > 1e-4


Change = Callable[[onnx_graphs.Weights], None]


@dataclass(frozen=True)
class Mistake:
    name: str
    cause: str
    change: Change


def _set(how: Callable[[np.ndarray], np.ndarray]) -> Change:
    def change(values: onnx_graphs.Weights) -> None:
        name = "layers.1.norm.weight"
        values[name] = np.ascontiguousarray(how(values[name]), np.float32)

    return change


def _swap(values: onnx_graphs.Weights) -> None:
    a, b = "layers.1.norm.weight", "layers.2.norm.weight"
    values[a], values[b] = values[b], values[a]


def _bias(values: onnx_graphs.Weights) -> None:
    values["layers.1.norm.bias"] = values["layers.1.norm.bias"] + 1


MISTAKES = (
    Mistake("offset", "offset", _set(lambda w: w + 1)),
    Mistake("scale", "scale", _set(lambda w: 2 * w)),
    Mistake("permutation", "permutation", _set(lambda w: w[::-1])),
    Mistake("swapped", "elsewhere", _swap),
    Mistake("bias", "bias", _bias),
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["float", "dynamic", "qdq"])
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: m.name)
def test_the_first_wrong_norm_of_onnx_is_named(
    float_model: Path, tmp_path: Path, mistake: Mistake, how: str
) -> None:
    values = onnx_graphs.weights()
    mistake.change(values)
    path = onnx_graphs.save(onnx_graphs.network(values), tmp_path / "wrong.onnx")
    if how != "float":
        path = quantized(path, tmp_path / "q.onnx", how)
    found = compared(float_model, path)
    assert found.first_wrong is not None
    assert found.first_wrong.key == "layers.1.norm.weight"
    assert found.first_wrong.where == "norm"
    assert found.first_wrong.causes == (mistake.cause,)


def test_another_epsilon_in_one_norm_is_named(float_model: Path, tmp_path: Path) -> None:
    proto = onnx_graphs.network(onnx_graphs.weights(), epsilon=lambda i: 1e-2 if i == 2 else 1e-5)
    found = compared(float_model, onnx_graphs.save(proto, tmp_path / "wrong.onnx"))
    assert found.first_wrong is not None
    assert found.first_wrong.key == "layers.2.norm.weight"
    assert found.first_wrong.causes == ("epsilon",)


def test_another_kind_in_one_norm_is_named(float_model: Path, tmp_path: Path) -> None:
    proto = onnx_graphs.network(onnx_graphs.weights(), op="SimplifiedLayerNormalization")
    found = compared(float_model, onnx_graphs.save(proto, tmp_path / "wrong.onnx"))
    assert found.first_wrong is not None
    assert found.first_wrong.key == "layers.1.norm.weight"
    assert set(found.first_wrong.causes) == {"kind", "bias"}


def test_a_wrong_matrix_is_told_from_a_wrong_norm(float_model: Path, tmp_path: Path) -> None:
    values = onnx_graphs.weights()
    values["layers.0.matrix"] = np.ascontiguousarray(values["layers.0.matrix"].T)
    path = onnx_graphs.save(onnx_graphs.network(values), tmp_path / "wrong.onnx")
    found = compared(float_model, path)
    assert found.first_wrong is not None
    assert (found.first_wrong.key, found.first_wrong.where) == ("layers.1.norm.weight", "before")
    assert found.first_wrong.after == "layers.0.norm.weight"


def test_norms_without_names_are_joined_in_order(float_model: Path, tmp_path: Path) -> None:
    values = onnx_graphs.weights()
    names = {n: f"onnx::Norm_{i}" for i, n in enumerate(values) if "norm" in n}
    proto = onnx_graphs.network(values)
    for tensor in proto.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in proto.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)
    found = compared(float_model, onnx_graphs.save(proto, tmp_path / "m.onnx"))
    assert len(found.sites) == onnx_graphs.LAYERS + 1
    assert {s.status for s in found.sites} == {"agrees"}


# -- across frameworks --------------------------------------------------------------------------

EXPORTED = ("llama", "bert", "gemma2")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], list[str]]]:
    """Checkpoint, GGUF file and ONNX file of a network."""
    folder = tmp_path_factory.mktemp("exported")
    done: dict[str, list[str]] = {}

    def export(name: str) -> list[str]:
        if name not in done:
            network = made.NETWORKS[name]
            model = made.build(network)
            source = made.save(model, folder / name)
            file = made.write(folder / f"{name}.gguf", network, made.converted(model, network))
            path = made.export(model, folder / f"{name}.onnx")
            done[name] = [f"hf:{source}", str(file), str(path)]
        return done[name]

    with in_process.engine():
        yield export


@pytest.mark.parametrize("name", EXPORTED)
def test_all_three_agree_at_every_norm(exported: Callable[[str], list[str]], name: str) -> None:
    source, file, graph = exported(name)
    text = "the rain in spain stays mainly in the plain and so it is said to be in the end " * 2
    report = compare_frameworks(source, [file, graph], text=text, n_tokens=31, n_threads=1)
    assert report.n_tokens == 31
    for c in report.comparisons:
        assert c.first_wrong is None, c.verdict
        assert len(c.sites) == report.source.n_norms
        assert not c.unmatched_source
        assert not c.unmatched_engine
        assert max(s.local for s in c.sites) < 1e-6
        assert not any(s.causes for s in c.sites)
    in_onnx = report.comparisons[1]
    assert max(s.output.rel_l2 for s in in_onnx.sites) < 5e-6
    assert (in_onnx.logits is not None) == (name != "bert")
    if in_onnx.logits is not None:
        assert in_onnx.logits.mean_kld < 1e-9


@pytest.mark.parametrize("name", ["llama", "bert"])
@pytest.mark.parametrize("how", ["scaled", "reversed", "shifted"])
def test_a_wrong_export_is_named(
    exported: Callable[[str], list[str]], tmp_path: Path, name: str, how: str
) -> None:
    source, _file, graph = exported(name)
    proto = onnx.load(graph)
    target = "layer.1.output.LayerNorm" if name == "bert" else "layers.1.post_attention_layernorm"
    (tensor,) = [t for t in proto.graph.initializer if t.name.endswith(f"{target}.weight")]
    w = onnx.numpy_helper.to_array(tensor)
    changed = {"scaled": w * 2, "reversed": w[::-1], "shifted": w + 1}[how]
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(changed), tensor.name))
    path = tmp_path / "wrong.onnx"
    onnx.save(proto, str(path))
    (found,) = compare_frameworks(
        source, [str(path)], text="a", n_tokens=31, n_threads=1
    ).comparisons
    assert found.first_wrong is not None
    assert found.first_wrong.key.endswith(target)
    assert found.first_wrong.where == "norm"
    expected = {"scaled": "scale", "reversed": "permutation", "shifted": "offset"}[how]
    assert found.first_wrong.causes == (expected,)


def test_onnx_may_be_the_source_of_a_gguf_file(exported: Callable[[str], list[str]]) -> None:
    _source, file, graph = exported("llama")
    (found,) = compare_frameworks(
        graph, [file], text="the rain in spain", n_tokens=31, n_threads=1
    ).comparisons
    assert len(found.sites) == 7
    assert found.first_wrong is None


# -- the command, and refusals ------------------------------------------------------------------


def test_the_commands_take_onnx(float_model: Path, tmp_path: Path) -> None:
    values = onnx_graphs.weights()
    _swap(values)
    wrong = onnx_graphs.save(onnx_graphs.network(values), tmp_path / "wrong.onnx")
    listed = CliRunner().invoke(
        cli, ["inspect", str(float_model), "--format", "json", "--tensors"], standalone_mode=False
    )
    document = json.loads(listed.stdout)
    assert [n["layer"] for n in document["norms"]] == [0, 1, 2, None]
    assert {t["name"] for t in document["tensors"]} == set(values)
    words = ["compare", str(float_model), str(wrong), "-t", "1", "--max-rel", "0.01"]
    done = CliRunner().invoke(cli, words, standalone_mode=False)
    assert done.return_value == 1
    assert "its weight holds the values of layers.2.norm.weight" in " ".join(done.stdout.split())


def _drop_inputs(graph: Any) -> None:
    for node in graph.node:
        del node.input[1:]


def _make_cycle(graph: Any) -> None:
    graph.node[0].input[0] = graph.node[-1].output[0]


def test_bad_onnx_is_an_error_in_a_line(float_model: Path, tmp_path: Path) -> None:
    (tmp_path / "noise.onnx").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "cut.onnx").write_bytes(float_model.read_bytes()[:3000])
    for name in ("noise", "empty", "cut", "none"):
        with pytest.raises(InputError) as caught:
            ggufnorm.inspect(tmp_path / f"{name}.onnx")
        assert len(str(caught.value).splitlines()) == 1
    for name, spoil in {"short": _drop_inputs, "cycle": _make_cycle}.items():
        proto = BY_NAME["rms Sqrt, Div"].proto()
        spoil(proto.graph)
        onnx.save(proto, str(tmp_path / f"{name}.onnx"))
        with pytest.raises(InputError, match=r"of its graph lacks|not in the order"):
            ggufnorm.inspect(tmp_path / f"{name}.onnx")
    unknown = onnx.load(str(float_model))
    unknown.graph.node[2].op_type = "NoSuchOperation"
    onnx.save(unknown, str(tmp_path / "unknown.onnx"))
    with pytest.raises(EngineError, match="ONNX Runtime does not take it"):
        OnnxSession(tmp_path / "unknown.onnx")


def test_damaged_graphs_are_read_or_refused(tmp_path: Path) -> None:
    rng, path = random.Random(0), tmp_path / "damaged.onnx"
    whole = [graph.proto().SerializeToString() for graph in onnx_graphs.GRAPHS]
    read, refusals = 0, []
    for _ in range(600):
        data = bytearray(rng.choice(whole))
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            read += len(ggufnorm.inspect(path, tensors=True).norms)
        except InputError as error:
            refusals.append(str(error))
    assert read > 100
    assert refusals
    assert all(len(text.splitlines()) == 1 for text in refusals)


@pytest.mark.parametrize("spoil", ["type", "name"])
def test_unknown_types_and_names_that_are_no_text_are_met(tmp_path: Path, spoil: str) -> None:
    proto = BY_NAME["LayerNormalization"].proto()
    if spoil == "type":
        proto.graph.initializer[0].data_type = 117
        data = proto.SerializeToString()
    else:
        data = proto.SerializeToString().replace(b"norm.weight", b"norm.\xffeight")
    (tmp_path / "odd.onnx").write_bytes(data)
    with pytest.raises(InputError):
        ggufnorm.inspect(tmp_path / "odd.onnx", tensors=True)


def test_a_fixed_length_says_what_to_give(tmp_path: Path) -> None:
    path = BY_NAME["EmbedLayerNormalization"].save(tmp_path / "fixed.onnx")
    with pytest.raises(InputError, match="takes 7 tokens, not 9: give --tokens 7"):
        OnnxSession(path).run(np.arange(9, dtype=np.int32))


def test_two_networks_that_share_no_norm_are_refused(float_model: Path, tmp_path: Path) -> None:
    other = BY_NAME["GroupNormalization"].save(tmp_path / "other.onnx")
    proto = onnx.load(str(other))
    for tensor in proto.graph.initializer:
        tensor.name = f"another.{tensor.name.replace('norm', 'n')}"
    for i in (1, 2):
        proto.graph.node[0].input[i] = (
            f"another.{proto.graph.node[0].input[i].replace('norm', 'n')}"
        )
    onnx.save(proto, str(other))
    with pytest.raises(InputError, match="they are not one network"):
        compared(float_model, other)
