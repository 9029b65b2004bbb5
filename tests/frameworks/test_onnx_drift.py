"""``drift`` of two ONNX files: faults planted where converters make them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper

import ggufnorm
from ggufnorm.analysis.drift.onnx.run import drift_onnx
from ggufnorm.analysis.drift.onnx.verdict import judge
from ggufnorm.cli.main import cli
from ggufnorm.core.onnx_drift import OnnxDriftReport
from ggufnorm.engines.onnx.model import OnnxModel
from ggufnorm.engines.onnx.session import optimize
from ggufnorm.errors import InputError
from tests.onnx_exports import (
    OUTLIERS,
    TOKENS,
    Convolutions,
    Encoder,
    change,
    dynamic,
    edited,
    export,
    four_bits,
    fused,
    half,
    matrices,
    node,
    opset,
    set_attribute,
    static,
)

Edit = Callable[[Any], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Exports and what becomes of them, each made when it is first asked for."""
    folder = tmp_path_factory.mktemp("onnx")

    def make(name: str) -> Path:
        path = folder / f"{name}.onnx"
        if not path.exists():
            torch.manual_seed(0)
            MAKERS[name](path, make)
        return path

    return make


def _qoperator(ref: Path, path: Path) -> Path:
    from onnxruntime.quantization import QuantFormat

    return static(ref, path, quant_format=QuantFormat.QOperator)


def _unsigned(ref: Path, path: Path) -> Path:
    from onnxruntime.quantization import QuantType

    return dynamic(ref, path, weight_type=QuantType.QUInt8)


MAKERS: dict[str, Callable[[Path, Callable[[str], Path]], Path]] = {
    "float": lambda p, _m: export(Encoder(), p),
    "outliers": lambda p, _m: export(Encoder(outlier=60.0), p),
    "opset-14": lambda p, _m: export(Encoder(), p, opset=14),
    "dynamo": lambda p, _m: export(Encoder(), p, dynamo=True, opset=18),
    "opset-21": lambda p, m: opset(m("float"), p, 21),
    "dynamic": lambda p, m: dynamic(m("float"), p),
    "dynamic-channels": lambda p, m: dynamic(m("float"), p, per_channel=True),
    "dynamic-reduced": lambda p, m: dynamic(m("float"), p, reduce_range=True),
    "dynamic-unsigned": lambda p, m: _unsigned(m("float"), p),
    "static": lambda p, m: static(m("float"), p),
    "qoperator": lambda p, m: _qoperator(m("float"), p),
    "dynamic-optimized": lambda p, m: optimize(OnnxModel(m("dynamic")), p),
    "static-optimized": lambda p, m: optimize(OnnxModel(m("static")), p),
    "fused-dynamic": lambda p, m: dynamic(
        m("fused"), p, extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT}
    ),
    "four-bits": lambda p, m: four_bits(m("float"), p),
    "half": lambda p, m: half(m("float"), p),
    "fused": lambda p, m: fused(m("float"), p),
    "convolutions": lambda p, _m: export(Convolutions(), p),
    "convolutions-dynamic": lambda p, m: _unsigned(m("convolutions"), p),
    "convolutions-static": lambda p, m: static(m("convolutions"), p, per_channel=True),
    "convolutions-half": lambda p, m: half(m("convolutions"), p),
    "convolutions-qoperator": lambda p, m: _qoperator(m("convolutions"), p),
    "outliers-dynamic": lambda p, m: dynamic(m("outliers"), p),
    "outliers-channels": lambda p, m: dynamic(m("outliers"), p, per_channel=True),
}


def drift(ref: Path, quant: Path, **options: Any) -> OnnxDriftReport:
    return drift_onnx(ref, quant, n_threads=1, **options)


# -- right files stay quiet ------------------------------------------------------------------

_SAME = ("float", "opset-21", "opset-14", "dynamo", "fused", "half")
_QUANTIZED = (
    "dynamic", "dynamic-channels", "dynamic-reduced", "dynamic-unsigned", "static", "qoperator",
    "four-bits", "dynamic-optimized", "static-optimized", "fused-dynamic",
)  # fmt: skip


@pytest.mark.parametrize("name", [*_SAME, *_QUANTIZED])
def test_a_right_conversion_has_no_culprit(name: str, made: Callable[[str], Path]) -> None:
    report = drift(made("float"), made(name))
    assert report.culprit is None, report.verdict
    if name in _QUANTIZED or name == "half":
        assert report.verdict.startswith("Drift enters gradually")
    else:
        assert report.verdict.startswith("No drift")
    assert {o.name for o in report.outputs} == {"hidden", "pooled"}


@pytest.mark.parametrize("kind", ["dynamic", "static", "half", "qoperator"])
def test_right_convolutions_have_no_culprit(kind: str, made: Callable[[str], Path]) -> None:
    report = drift(made("convolutions"), made(f"convolutions-{kind}"))
    assert report.culprit is None, report.verdict
    assert max(o.local.rel_l2 or 0 for o in report.operations) < 0.03


# -- planted faults --------------------------------------------------------------------------


def _scale_of(model: Any, name: str) -> str:
    return str(node(model, f"{name}_quant").input[1]).replace("_quantized", "_scale")


def _bad_scale(model: Any) -> None:
    change(model, _scale_of(model, "/layers.1/o/MatMul"), lambda s: 1.5 * s)


def _bad_zero(model: Any) -> None:
    change(model, node(model, "/layers.1/up/MatMul_quant").input[3], lambda z: z + 9)


def _small_range(model: Any) -> None:
    change(model, "/layers.1/down/Add_output_0_scale", lambda s: s / 6)


def _large_range(model: Any) -> None:
    change(model, "/layers.1/norm1/LayerNormalization_output_0_scale", lambda s: s * 20)


def _scaled_norm(model: Any) -> None:
    change(model, node(model, "/layers.0/norm2/LayerNormalization").input[1], lambda w: w + 1)


def _scaled_bias(model: Any) -> None:
    change(model, "layers.1.up.bias", lambda b: -b)


def _epsilon(model: Any) -> None:
    set_attribute(model, "/layers.1/norm1/LayerNormalization", "epsilon", 0.1)


def _fused_epsilon(model: Any) -> None:
    norms = [n for n in model.graph.node if n.op_type == "SkipLayerNormalization"]
    set_attribute(model, norms[2].name, "epsilon", 0.1)


def _axis(model: Any) -> None:
    set_attribute(model, "/layers.0/Softmax", "axis", 2)


def _pooling_axis(model: Any) -> None:
    set_attribute(model, "/ReduceMean", "axes", [2])


def _swapped(model: Any) -> None:
    where = next(n for n in model.graph.node if n.name == "/layers.1/norm2/Sub")
    where.input[:] = reversed(where.input)


def _swapped_weights(model: Any) -> None:
    a, b = (node(model, f"/layers.0/{n}/MatMul") for n in "qk")
    a.input[1], b.input[1] = b.input[1], a.input[1]


def _other_weights(model: Any) -> None:
    rng = np.random.default_rng(1)
    for name in matrices(model):
        change(model, name, lambda w: w + 0.2 * w.std() * rng.standard_normal(w.shape))


def _bad_blocks(model: Any) -> None:
    """The scales of some blocks of 4 bits."""
    products = [n for n in model.graph.node if n.op_type == "MatMulNBits"]
    where = next(n for n in products if "layers.1/v" in n.name)
    change(model, where.input[2], lambda s: s * np.where(np.arange(len(s)) % 8 == 3, 3, 1)[:, None])


def _bad_table(model: Any) -> None:
    change(model, "emb.weight_scale", lambda s: 1.4 * s)


def _bad_kernel(model: Any) -> None:
    kernel = str(node(model, "/f/f.3/Conv_quant").input[1])
    change(model, kernel.replace("_quantized", "_scale"), lambda s: 1.5 * s)


def _one_bad_channel(model: Any) -> None:
    """The scale of one output channel of a QDQ kernel."""
    kernel = str(model.graph.node[_conv(model)].input[1])
    scale = next(n for n in model.graph.node if n.output[0] == kernel).input[1]
    change(model, scale, lambda s: np.where(np.arange(s.size) == 3, 30 * s, s))


def _conv(model: Any) -> int:
    return next(i for i, n in enumerate(model.graph.node) if n.name == "/f/f.3/Conv")


def _strides(model: Any) -> None:
    set_attribute(model, "/f/f.6/Conv", "dilations", [2, 2])
    set_attribute(model, "/f/f.6/Conv", "pads", [2, 2, 2, 2])


def _numbered_epsilon(model: Any) -> None:
    norms = [n for n in model.graph.node if n.op_type == "LayerNormalization"]
    set_attribute(model, norms[1].name, "epsilon", 0.1)


def _written_epsilon(model: Any) -> None:
    value = node(model, "/layers.1/norm1/Add").input[1]
    constant = next(n for n in model.graph.node if value in n.output)
    constant.attribute[0].t.CopyFrom(numpy_helper.from_array(np.array(0.1, np.float32)))


FAULTS = [
    # file, fault, the node that is named, what the verdict says
    ("dynamic", _bad_scale, "/layers.1/o/MatMul", "scale, zero point or integers are wrong"),
    ("dynamic-channels", _bad_scale, "/layers.1/o/MatMul", "scale, zero point or integers"),
    ("dynamic", _bad_zero, "/layers.1/up/MatMul", "scale, zero point or integers are wrong"),
    ("static", _small_range, "/layers.1/Add_2", "its input /layers.1/down/Add_output_0, rounded"),
    ("static", _large_range, "/layers.1/up/MatMul", "the range of these inputs costs"),
    ("float", _scaled_norm, "/layers.0/norm2/LayerNormalization", "is off by"),
    ("half", _scaled_norm, "/layers.0/norm2/LayerNormalization", "is off by"),
    ("dynamic", _scaled_bias, "/layers.1/up/Add", "no integers take part: layers.1.up.bias"),
    ("half", _scaled_bias, "/layers.1/up/Add", "layers.1.up.bias is off by 2"),
    ("float", _epsilon, "/layers.1/norm1/LayerNormalization", "is 0.1, the reference's 1e-05"),
    ("dynamic", _epsilon, "/layers.1/norm1/LayerNormalization", "is 0.1, the reference's 1e-05"),
    ("fused", _fused_epsilon, "/layers.1/norm1/LayerNormalization",
     "epsilon of SkipLayerNormalization is 0.1, the reference's 1e-05"),
    ("float", _axis, "/layers.0/Softmax", "axis of Softmax is 2, the reference's -1"),
    ("static", _axis, "/layers.0/Softmax", "axis of Softmax is 2, the reference's -1"),
    ("float", _swapped_weights, "/layers.0/q/MatMul", "so is one other"),
    ("four-bits", _bad_blocks, "/layers.1/v/MatMul", "scale, zero point or integers are wrong"),
    ("dynamic", _bad_table, "/emb/Gather", "scale, zero point or integers are wrong"),
    ("dynamo", _numbered_epsilon, "/layers.0/norm2/LayerNormalization", "epsilon of LayerNorm"),
    ("opset-14", _written_epsilon, "/layers.1/norm1/LayerNormalization",
     "epsilon of Add is 0.1, the reference's 1e-05"),
    ("float", _other_weights, "/emb/Gather", "not two versions of the same weights"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "fault", "culprit", "says"), FAULTS)
def test_a_planted_fault_is_named(
    name: str, fault: Edit, culprit: str, says: str, made: Callable[[str], Path], tmp_path: Path
) -> None:
    report = drift(made("float"), edited(made(name), tmp_path / "fault.onnx", fault))
    assert report.culprit is not None, report.verdict
    assert says in report.verdict
    nodes = {report.culprit.node}
    assert culprit in nodes or says.startswith("the range"), report.verdict


@pytest.mark.parametrize(
    ("name", "fault", "culprit", "says"),
    [
        ("dynamic", _bad_kernel, "/f/f.3/Conv", "scale, zero point or integers are wrong"),
        ("qoperator", _bad_kernel, "/f/f.3/Conv", "off by"),
        ("static", _one_bad_channel, "/f/f.3/Conv", "scale, zero point or integers are wrong"),
        ("half", _strides, "/f/f.6/Conv", "dilations of Conv is [2, 2], the reference's [1, 1]"),
    ],
)
def test_a_fault_of_a_convolution_is_named(
    name: str, fault: Edit, culprit: str, says: str, made: Callable[[str], Path], tmp_path: Path
) -> None:
    wrong = edited(made(f"convolutions-{name}"), tmp_path / "fault.onnx", fault)
    report = drift(made("convolutions"), wrong)
    assert report.culprit is not None, report.verdict
    assert report.culprit.node == culprit, report.verdict
    assert says in report.verdict


def test_a_result_of_another_shape_is_named(made: Callable[[str], Path], tmp_path: Path) -> None:
    wrong = edited(made("float"), tmp_path / "fault.onnx", _pooling_axis)
    report = drift(made("float"), wrong)
    assert report.culprit is not None
    assert report.culprit.node == "/ReduceMean"
    assert f"its result is 1×{TOKENS}, the reference's 1×32" in report.verdict


def test_arguments_in_another_order_are_named(made: Callable[[str], Path], tmp_path: Path) -> None:
    wrong = edited(made("opset-14"), tmp_path / "fault.onnx", _swapped)
    report = drift(made("opset-14"), wrong)
    assert report.culprit is not None
    assert report.culprit.node == "/layers.1/norm2/Sub"
    assert "Sub takes its inputs in another order" in report.verdict


def test_an_overflow_of_half_precision_is_named(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    def loud(model: Any) -> None:
        change(model, node(model, "/layers.1/up/MatMul").input[1], lambda w: 3e5 * w)

    ref = edited(made("float"), tmp_path / "ref.onnx", loud)
    report = drift(ref, half(ref, tmp_path / "half.onnx"))
    assert report.culprit is not None
    assert report.culprit.node == "/layers.1/up/MatMul"
    assert "half precision ends at 65504" in report.verdict
    assert report.scheme == "half"


# -- the scheme at fault, not the file ---------------------------------------------------------


def test_one_matrix_with_outliers_makes_most_of_the_error(made: Callable[[str], Path]) -> None:
    report = drift(made("outliers"), made("outliers-dynamic"))
    assert report.culprit is not None, report.verdict
    assert report.culprit.node == "/layers.0/down/MatMul"
    assert "% of the error of pooled" in report.verdict
    worst = max(report.operations, key=lambda o: o.share or 0)
    assert worst.node == report.culprit.node
    assert (worst.share or 0) > 0.5
    assert worst.local.rel_l2 == pytest.approx(worst.expected, rel=1e-3)
    assert {c.channel for c in worst.outliers if c.of == "input"} == set(OUTLIERS)
    assert "nodes_to_exclude=['/layers.0/down/MatMul']" in report.verdict


def test_settings_are_measured_as_the_quantizer_makes_them(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    ref = made("outliers")
    report = drift(ref, made("outliers-dynamic"))
    tried = {r.setting: r for r in report.remedies}
    left_out = "/layers.0/down/MatMul"
    real = {
        "per_channel=True": dynamic(ref, tmp_path / "channels.onnx", per_channel=True),
        f"nodes_to_exclude=['{left_out}']": dynamic(
            ref, tmp_path / "but-one.onnx", nodes_to_exclude=[left_out]
        ),
    }
    for setting, path in real.items():
        again = drift(ref, path)
        main = next(o for o in again.outputs if o.main)
        assert tried[setting].rel_l2 == pytest.approx(main.difference.rel_l2, rel=0.02)
        grown = path.stat().st_size - made("outliers-dynamic").stat().st_size
        assert tried[setting].bytes == pytest.approx(grown, abs=4000)


# -- how it is run ---------------------------------------------------------------------------


def test_less_memory_takes_more_passes_and_gives_the_same(made: Callable[[str], Path]) -> None:
    once, often = (
        drift(made("float"), made("dynamic"), held_bytes=size) for size in (1 << 28, 1 << 16)
    )
    assert often.run.n_groups > once.run.n_groups == 1
    assert often.operations == once.operations
    assert often.outputs == once.outputs


def test_shares_of_operations_add_up_to_the_error(made: Callable[[str], Path]) -> None:
    report = drift(made("float"), made("dynamic"))
    total = sum(o.share or 0 for o in report.operations)
    assert 0.5 < total < 2


def test_kernels_that_saturate_are_told(made: Callable[[str], Path]) -> None:
    report = drift(made("float"), made("dynamic"))
    main = next(o for o in report.outputs if o.main)
    assert main.optimized is not None
    fast = replace(main.optimized, rel_l2=0.7)
    outputs = [replace(main, optimized=fast)]
    _culprit, verdict = judge("dynamic", report.operations, [], outputs, [])
    assert "reduce_range=True" in verdict


def test_products_that_saturate_without_vnni_are_told(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    def extreme(model: Any) -> None:
        name = node(model, "/layers.1/down/MatMul").input[1]
        change(model, name, lambda w: np.where(w > 0, 0.08, -0.08))

    ref = edited(made("float"), tmp_path / "ref.onnx", extreme)
    full = drift(ref, dynamic(ref, tmp_path / "full.onnx"))
    reduced = drift(ref, dynamic(ref, tmp_path / "reduced.onnx", reduce_range=True))
    down = next(o for o in full.operations if o.node == "/layers.1/down/MatMul")
    assert (down.saturated or 0) > 0.05
    assert "products of 8 bits saturate" in full.verdict
    assert "reduce_range=True" in full.verdict
    assert "saturate" not in reduced.verdict
    assert all(not o.saturated for o in reduced.operations)


def test_inputs_may_be_given(made: Callable[[str], Path], tmp_path: Path) -> None:
    ids = np.arange(TOKENS)[None]
    np.savez(tmp_path / "ids.npz", input_ids=ids)
    np.save(tmp_path / "ids.npy", ids)
    reports = [
        drift(made("float"), made("dynamic"), inputs=tmp_path / name)
        for name in ("ids.npz", "ids.npy")
    ]
    assert reports[0].operations == reports[1].operations
    assert reports[0].run.n_runs == 1
    np.savez(tmp_path / "other.npz", other=ids)
    with pytest.raises(InputError, match="no array input_ids"):
        drift(made("float"), made("dynamic"), inputs=tmp_path / "other.npz")
    (tmp_path / "bad.npz").write_text("no archive")
    with pytest.raises(InputError, match=r"is no \.npz file"):
        drift(made("float"), made("dynamic"), inputs=tmp_path / "bad.npz")


def test_the_same_file_shows_the_optimizer(made: Callable[[str], Path]) -> None:
    report = drift(made("float"), made("float"))
    assert report.quant.n_nodes < report.reference.n_nodes
    assert any({"Gelu", "BiasGelu", "Gemm"} & {*o.op_quant} for o in report.operations)


def test_a_last_bit_that_turns_a_step_over_is_no_drift(made: Callable[[str], Path]) -> None:
    report = drift(made("dynamic"), made("dynamic"))
    assert report.culprit is None
    assert report.verdict.startswith("No drift beyond rounding")


def test_what_is_compared_together_is_said(made: Callable[[str], Path]) -> None:
    report = drift(made("float"), made("fused"))
    assert any("compared together with" in s.reason for s in report.skipped)


# -- the command -----------------------------------------------------------------------------


def test_the_command_shows_and_saves_it(made: Callable[[str], Path], tmp_path: Path) -> None:
    models = [str(made("float")), str(made("dynamic"))]
    arguments = ["drift", *models, "--max-rel", "1e-4", "-t", "1"]
    done = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert done.return_value == 1
    assert "Drift enters gradually" in done.output
    out = tmp_path / "drift.json"
    assert CliRunner().invoke(cli, ["drift", *models, "-o", str(out), "-t", "1"]).exit_code == 0
    assert json.loads(out.read_text())["schema"] == "ggufnorm/drift-onnx"
    loaded = ggufnorm.load(out)
    assert isinstance(loaded, OnnxDriftReport)
    assert loaded.verdict in done.output.replace("\n", " ").replace("  ", " ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--floor"], "--floor does not go with .onnx"),
        (["--max-kld", "1"], "--max-kld does not go with .onnx"),
        (["--ref-flash-attn", "on"], "--ref-flash-attn does not go with .onnx"),
    ],
)
def test_options_of_llama_cpp_are_refused(
    arguments: list[str], says: str, made: Callable[[str], Path]
) -> None:
    model = str(made("float"))
    done = CliRunner().invoke(cli, ["drift", model, model, *arguments])
    assert done.exit_code == 2
    assert says in done.output


def test_python_is_sent_on(made: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match=r"use ggufnorm\.drift_onnx"):
        ggufnorm.drift(made("float"), made("float"))


def test_compare_sends_on_to_drift(made: Callable[[str], Path]) -> None:
    files = [str(made(name)) for name in ("float", "dynamic")]
    verdict = ggufnorm.compare(*files, n_tokens=TOKENS).comparisons[0].verdict
    assert verdict.endswith(f"What each operation adds: ggufnorm drift {files[0]} {files[1]}")
    same = ggufnorm.compare(files[0], str(made("opset-21")), n_tokens=TOKENS).comparisons[0]
    assert "ggufnorm drift" not in same.verdict


def test_another_network_is_an_error_of_one_line(made: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match="no operation of"):
        drift(made("float"), made("convolutions"))


def test_onnx_is_checked(made: Callable[[str], Path]) -> None:
    onnx.checker.check_model(str(made("float")))
