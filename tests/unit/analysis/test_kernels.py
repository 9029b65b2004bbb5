"""The verdict on one file in two engines: which operation, by llama.cpp's own limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ggufnorm.analysis.drift.circumstances import Look
from ggufnorm.analysis.drift.kernels import (
    Engines,
    circumstances_of,
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
from ggufnorm.report.views.kernels import issue_text
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


WRONG = [operation("Qcur-0", "MUL_MAT", 0.5)]
RIGHT = [operation("Qcur-0", "MUL_MAT", 1e-4)]


def look(batch: int, operations: list[OperationDrift], **facts: object) -> Look:
    return replace(Look(batch, False, tuple(operations), ()), **facts)  # type: ignore[arg-type]


def test_it_is_told_what_a_fault_depends_on() -> None:
    looks = [look(32, WRONG), look(8, RIGHT), look(1, RIGHT), look(32, WRONG, alone=True)]
    _, verdict = judge_engines(WRONG, None, ENGINES, [], looks)
    assert "there in batches of 32 tokens, and not in batches of 8 tokens and 1 token" in verdict
    assert "no fault of a fusion" in verdict


def test_a_fault_that_no_large_batch_shows_is_named() -> None:
    looks = [look(32, RIGHT), look(1, WRONG), look(1, RIGHT, alone=True)]
    culprit, verdict = judge_engines(RIGHT, None, ENGINES, [], looks)
    assert culprit is not None
    assert culprit.node == "Qcur-0"
    assert "there in batches of 1 token, and not in batches of 32 tokens" in verdict
    assert "depends on the fusion" in verdict


def test_the_operation_inside_is_named_where_each_was_watched() -> None:
    base = [operation("kqv_out-0", "RESHAPE", 0.3, "attention", None)]
    inside = [operation("Qcur-0@3", "ROPE", 0.3, "other", None), *base]
    culprit, verdict = judge_engines(base, None, ENGINES, [], [look(8, inside, alone=True)])
    assert culprit is not None
    assert culprit.node == "Qcur-0@3"
    assert "test-backend-ops test -o ROPE" in verdict


@pytest.mark.parametrize(
    ("whole", "watched", "accused"),
    [(0.1, 1e-5, True), (0.1, 0.05, False), (1e-5, 0.0, False), (None, None, False)],
)
def test_engines_that_part_only_where_nothing_is_watched(
    whole: float | None, watched: float | None, accused: bool
) -> None:
    looks = [look(32, RIGHT, whole=whole, watched=watched)]
    culprit, verdict = judge_engines(RIGHT, None, ENGINES, [], looks)
    assert (culprit is not None) is accused
    assert ("fusion of operations, which watching prevents" in verdict) is accused


def test_what_was_not_run_is_not_cleared() -> None:
    _, verdict = judge_engines(RIGHT, None, ENGINES, [])
    assert verdict.endswith("Other sizes of batches were not run.")
    _, verdict = judge_engines(RIGHT, None, ENGINES, [], [look(32, RIGHT), look(1, RIGHT)])
    assert verdict.endswith("The same holds in batches of 32 tokens and 1 token.")


def test_an_issue_has_nothing_private() -> None:
    looks = [look(32, WRONG), look(1, RIGHT, alone=True)]
    culprit, verdict = judge_engines(WRONG, None, ENGINES, [], looks)
    plain = drift_report()
    report = replace(
        plain,
        kernels=kernel_errors(WRONG),
        circumstances=circumstances_of(looks),
        culprit=culprit,
        verdict=verdict,
        run=replace(plain.run, engine_ref=CPU, engine_quant=OTHER, text="/home/me/diary.txt"),
        quant=replace(plain.quant, path="/home/me/secret.gguf", name="Secret", fingerprint="f" * 9),
    )
    text = issue_text(report)
    assert "| MUL_MAT | Q4_K | 1 | 0.25 | 0.0005 | Qcur-0 |" in text
    assert "llama.cpp v0.4.0" in text
    private = ("/home", "secret", "Secret", "diary", "fffff", *(
        token.text for token in plain.localisation.worst_tokens))  # fmt: skip
    assert not [word for word in private if word and word in text]
    assert from_json(to_json(report), "report") == replace(report, cost=None)
