"""The verdict on one file in two engines: which operation, by llama.cpp's own limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ggufnorm.analysis.drift.kernels import (
    Engines,
    engines_of,
    judge_engines,
    kernel_errors,
)
from ggufnorm.core.drift import OperationDrift, SideFacts
from ggufnorm.core.engine import Build, Engine
from ggufnorm.core.metrics import Difference
from ggufnorm.engines.base import EngineInfo, Graph, HookPoint, Node
from ggufnorm.report.document import from_json, to_json
from ggufnorm.report.formats import render
from ggufnorm.report.kinds import reports_of
from ggufnorm.runs.placement import not_offloaded
from tests.results import drift_report

BUILD = Build("llama.cpp v0.5.0", "/home/me/libllama.so", "--llama-cpp", "ggml 0.25", "a" * 64, "x")
CPU = Engine(BUILD, 0, ("CPU",))
OTHER = Engine(
    replace(BUILD, name="llama.cpp v0.4.0", digest="b" * 64), 0, ("Vulkan_Host", "Vulkan0")
)
PLAIN = SideFacts("auto", "f16", "f16", False, False)
ENGINES = Engines(CPU, OTHER, ("llama.cpp v0.5.0 and llama.cpp v0.4.0",))


def info(engine: Engine | None, options: SideFacts = PLAIN) -> EngineInfo:
    return EngineInfo("llama.cpp", options, 1, 0, engine)


def operation(
    node: str, op: str, error: float | None, role: str = "matmul", dtype: str | None = "Q4_K"
) -> OperationDrift:
    first = drift_report().operations[0]
    local = replace(first.local, rel_l2=error, rows=8, non_finite_rows=int(error is None))
    cumulative: Difference = replace(first.cumulative, rel_l2=0.1)
    return replace(
        first, node=node, op=op, role=role, tensor=None, dtype=dtype, layer=0, local=local,
        cumulative=cumulative,
    )  # fmt: skip


ROUNDED = [
    operation("norm-0", "MUL", 4e-8, "norm", "F32"),
    operation("Qcur-0", "MUL_MAT", 0.02),
    operation("kqv_out-0", "RESHAPE", 0.01, "attention", None),
    operation("ffn_out-0", "MUL_MAT", 0.02),
]


def test_rounding_within_the_limits_of_llama_cpp_accuses_nobody() -> None:
    culprit, verdict = judge_engines(ROUNDED, None, ENGINES, [])
    assert culprit is None
    assert "only engines differ (llama.cpp v0.5.0 and llama.cpp v0.4.0)" in verdict
    assert "No operation's own error is beyond" in verdict


@pytest.mark.parametrize("at", range(len(ROUNDED)))
@pytest.mark.parametrize("error", [0.03, None])
def test_a_wrong_kernel_is_named_first(at: int, error: float | None) -> None:
    operations = list(ROUNDED)
    wrong = operations[at]
    operations[at] = operation(wrong.node, wrong.op, error, wrong.role, wrong.dtype)
    operations[at + 1 :] = [replace(o, local=operations[at].local) for o in operations[at + 1 :]]
    culprit, verdict = judge_engines(operations, None, ENGINES, [])
    assert culprit is not None
    assert culprit.node == wrong.node
    assert wrong.op in culprit.reason
    assert ("NaN or infinity" if error is None else "0.0009 NMSE") in culprit.reason
    assert "GGML_VK_DISABLE_FUSION=1" in verdict
    assert "/home/me" not in verdict


def test_shapes_are_told() -> None:
    node = Node(0, "Qcur-0", "Qcur-0", "MUL_MAT", "F32", (8, 4), b"", (), ((16, 8), (16, 4)))
    hook = HookPoint(0, "Qcur-0", "MUL_MAT", "matmul", None, 0, True)
    graph = Graph((node,), (), (hook,), ())
    operations = [operation("Qcur-0", "MUL_MAT", 0.5)]
    _, verdict = judge_engines(operations, None, ENGINES, [graph])
    assert "(sources [16, 8], [16, 4])" in verdict


def test_kinds_of_operations_stand_beside_their_limits() -> None:
    wrong = operation("ffn_out-1", "MUL_MAT", 0.5)
    found = {(k.op, k.dtype): k for k in kernel_errors([*ROUNDED, wrong])}
    product = found["MUL_MAT", "Q4_K"]
    assert (product.n, product.nmse, product.worst) == (3, 0.25, "ffn_out-1")
    assert (product.limit, product.first) == (5e-4, "ffn_out-1")
    assert found["MUL", "F32"].first is None
    assert found["RESHAPE", None].limit == 5e-4


def test_kinds_of_operations_are_a_table_of_the_report() -> None:
    wrong = operation("ffn_out-1", "MUL_MAT", 0.5)
    report = replace(drift_report(), kernels=kernel_errors([*ROUNDED, wrong]))
    (view,) = reports_of(report)
    assert "kernels" in [table.name for table in view.tables]
    assert "test-backend-ops" in render(report, "markdown")
    assert from_json(to_json(report), "report") == replace(report, cost=None)


def test_the_same_engine_twice_is_no_comparison_of_engines() -> None:
    assert engines_of(info(CPU), info(replace(CPU, build=replace(BUILD, library="/b")))) is None
    assert engines_of(info(None), info(CPU)) is None
    assert engines_of(info(CPU), info(OTHER))
    assert engines_of(info(CPU), info(CPU, replace(PLAIN, use_extra_bufts=True)))
    assert engines_of(info(CPU), info(OTHER, replace(PLAIN, cache_type_k="q4_0"))) is None


def test_layers_that_were_not_offloaded_are_told() -> None:
    assert not_offloaded(info(CPU)) is None
    assert not_offloaded(info(replace(OTHER, n_gpu_layers=99))) is None
    said = not_offloaded(info(replace(CPU, n_gpu_layers=99)))
    assert said is not None
    assert said.startswith("-ngl 99 had no effect: all values were on CPU; llama.cpp v0.5.0")
