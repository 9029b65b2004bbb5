"""The first wrong operation between two norms is named, and why it is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import transformers

from ggufnorm.analysis.crosscheck.llama import exactly
from ggufnorm.analysis.crosscheck.operations import match_operations
from ggufnorm.analysis.crosscheck.run import compare_frameworks
from ggufnorm.analysis.crosscheck.segment import record_segment
from ggufnorm.core.frameworks import EngineComparison, FirstWrong
from ggufnorm.core.matrices import explain_matrix
from ggufnorm.core.operations import Operation, Results, TokenRows, leads_back
from ggufnorm.engines.hf.model import HFModel
from ggufnorm.runs.options import RunSettings
from tests import framework_models as made
from tests import in_process

TEXT = "the rain in spain stays mainly in the plain and so it is said to be in the end " * 3
N_TOKENS = 31
ALL = {**made.NETWORKS, **made.SPECIAL, "mixtral": made.MIXTRAL}
TOLERANCES = {"F32": 2e-3, "F16": 2e-3, "BF16": 1.6e-2}
"""As ``compare`` has them for these types, with llama.cpp's own rounding."""

Change = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module", autouse=True)
def _engine() -> Iterator[None]:
    with in_process.engine():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("operations")


def with_options(name: str, **options: Any) -> made.Network:
    network = ALL[name]
    return replace(network, options={**network.options, **options})


def granite(**options: float) -> made.Network:
    """Granite, which is Llama with four more factors."""
    plain = {
        "embedding_multiplier": 1.0, "attention_multiplier": made.HEAD**-0.5,
        "residual_multiplier": 1.0, "logits_scaling": 1.0,
    }  # fmt: skip
    return replace(
        with_options("llama", **plain | options), name="granite", config=transformers.GraniteConfig,
        model=transformers.GraniteForCausalLM,
    )  # fmt: skip


@cache
def model(name: str) -> Any:
    return made.build(ALL[name])


def compared(
    folder: Path, network: made.Network, source: Any = None, tensors: made.Tensors | None = None
) -> EngineComparison:
    source = made.build(network) if source is None else source
    tensors = made.converted(source, network) if tensors is None else tensors
    checkpoint = made.save(source, folder / "checkpoint")
    file = made.write(folder / "model.gguf", network, tensors)
    report = compare_frameworks(
        f"hf:{checkpoint}", [str(file)], text=TEXT, n_tokens=N_TOKENS, n_threads=1
    )
    return report.comparisons[0]


def changed(folder: Path, name: str, tensor: str, change: Change) -> EngineComparison:
    """A network whose file has one tensor changed."""
    tensors = made.converted(model(name), ALL[name])
    tensors[tensor] = np.ascontiguousarray(change(tensors[tensor]))
    return compared(folder, ALL[name], model(name), tensors)


# -- all is well ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", ALL)
def test_every_operation_of_a_right_conversion_is_found_in_the_source(
    folder: Path, name: str, dtype: str
) -> None:
    checkpoint = made.save(model(name), folder / "checkpoint")
    file = made.write(
        folder / "model.gguf", ALL[name], made.converted(model(name), ALL[name]),
        dtype=gguf.GGMLQuantizationType[dtype],
    )  # fmt: skip
    tokens = np.random.default_rng(0).integers(3, made.WORDS, N_TOKENS).astype(np.int32)
    everything = FirstWrong("logits", None, "before", None, "", ())
    segment = record_segment(
        HFModel(checkpoint),
        str(file),
        (),
        everything,
        tokens,
        TOLERANCES[dtype],
        exactly(RunSettings(n_threads=1)),
    )
    found = match_operations(segment, "Transformers")
    assert (found.wrong, found.known) == (None, ())
    operations = found.operations
    statuses = [o.status for o in operations]
    assert set(statuses) <= {"same", "inside"}
    assert statuses.count("same") > statuses.count("inside") >= 0
    alone = [o for o in operations if o.op in ("ROPE", "SOFT_MAX", "GLU", "UNARY")]
    assert len(alone) >= made.LAYERS * 2
    # Experts' results are in another order of tokens: BF16 is too coarse to know them by.
    hidden = ("ffn_moe_swiglu",) if dtype == "BF16" else ()
    assert all(o.status == "same" for o in alone if not o.name.startswith(hidden))


# -- a wrong setting ------------------------------------------------------------------------

ROPE = "it turns neighbours, 16 channels, base 10000; what Transformers has comes of turning "
SETTINGS = {
    "rope base": (
        with_options(
            "llama", rope_parameters={"rope_type": "default", "rope_theta": 500000.0}
        ), "Qcur-0@3", "ROPE", f"{ROPE}neighbours, 16 channels, base 500000",
    ),
    "rope scale": (
        with_options(
            "llama",
            rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        ), "Qcur-0@3", "ROPE", f"{ROPE}neighbours, 16 channels, base 10000, positions times 0.25",
    ),
    "rope channels": (
        with_options("stablelm", partial_rotary_factor=0.5), "Qcur-0@4", "ROPE",
        "it turns halves, 4 channels, base 10000; what Transformers has comes of turning halves,"
        " 8 channels, base 10000",
    ),
    "embedding scale": (
        granite(embedding_multiplier=12.0), "embd", "GET_ROWS",
        "Transformers has 12 (embedding_multiplier) times its result (model: mul)",
    ),
    "attention scale": (
        granite(attention_multiplier=0.0625), "kq_soft_max-0", "SOFT_MAX",
        "it multiplies the scores with 0.25; what Transformers has comes of 0.0625"
        " (attention_multiplier) and a causal mask",
    ),
    "query scale": (
        with_options("gemma2", query_pre_attn_scalar=32), "scale after Qcur-0", "SCALE",
        "it multiplies with 0.25; what Transformers has behind kq-0 comes of 0.1768"
        " (1/√query_pre_attn_scalar)",
    ),
    "residual scale": (
        granite(residual_multiplier=0.22), "ffn_inp-0", "ADD",
        "it adds its two inputs as they are; Transformers adds 0.22 (residual_multiplier) times"
        " the first and 1 times the second",
    ),
    "logit scale": (
        granite(logits_scaling=8.0), "result_output", "MUL_MAT",
        "Transformers has 0.125 (1/logits_scaling) times its result (div)",
    ),
    "window": (
        with_options("mistral", sliding_window=8), "kq_soft_max-0", "SOFT_MAX",
        "it multiplies the scores with 0.25; what Transformers has comes of 0.25 and a causal"
        " mask of 8 tokens",
    ),
    "softcap": (
        with_options("gemma2", attn_logit_softcapping=1.0), "kq_soft_max-0", "SOFT_MAX",
        "Transformers has its result nowhere; with the same input it runs"
        " model.layers.0.self_attn: div",
    ),
    "ReLU": (
        with_options("gpt2", activation_function="relu"), "ffn_gelu-0", "UNARY",
        "it computes GELU (tanh); what Transformers has comes of ReLU",
    ),
    "SiLU": (
        with_options("gpt2", activation_function="silu"), "ffn_gelu-0", "UNARY",
        "it computes GELU (tanh); what Transformers has comes of SiLU",
    ),
    "GELU": (
        with_options("llama", hidden_act="gelu_pytorch_tanh"), "ffn_swiglu-0", "GLU",
        "it computes SiLU of its first input; what Transformers has comes of GELU (tanh) of its"
        " first input",
    ),
}  # fmt: skip
"""What the source does and a file of that architecture cannot say, or does not."""


@pytest.mark.parametrize("case", SETTINGS)
def test_a_setting_that_is_not_the_source_s_is_named(folder: Path, case: str) -> None:
    network, name, op, reason = SETTINGS[case]
    found = compared(folder, network)
    assert found.first_wrong is not None
    operation = found.first_wrong.operation
    assert operation is not None
    assert (operation.name, operation.op, operation.reason) == (name, op, reason)
    assert reason in found.verdict
    statuses = [o.status for o in found.operations]
    assert statuses.count("wrong") == 1
    assert set(statuses[: statuses.index("wrong")]) <= {"same", "inside"}
    assert not any(s.status == "mistake" for s in found.sites)


# -- a wrong tensor -------------------------------------------------------------------------


def _reversed_columns(w: np.ndarray) -> np.ndarray:
    return w[:, ::-1]


def _one_row(w: np.ndarray) -> np.ndarray:
    return np.concatenate([w[:5], w[5:6] * -3, w[6:]])


TENSORS: list[tuple[str, str, Change, str]] = [
    ("llama", "blk.1.attn_q", _reversed_columns,
     "its matrix has the source's columns in another order (model.layers.1.self_attn.q_proj"),
    ("qwen3", "blk.1.ffn_down", _reversed_columns,
     "its matrix has the source's columns in another order (model.layers.1.mlp.down_proj"),
    ("gpt2", "blk.0.attn_output", lambda w: w.T,
     "its matrix is the source's transposed (transformer.h.0.attn.c_proj"),
    ("bert", "blk.1.ffn_up", lambda w: -w,
     "its matrix is -1 times the source's (encoder.layer.1.intermediate.dense"),
    ("llama", "blk.1.attn_v", lambda w: w[::-1],
     "its matrix has the source's rows in another order (model.layers.1.self_attn.v_proj"),
    ("llama", "blk.1.attn_output", lambda w: w * 1.5,
     "its matrix is 1.5 times the source's (model.layers.1.self_attn.o_proj"),
    ("phi", "blk.1.attn_v", _one_row, "from the source's, in 1 of 64 rows from row 5"),
    ("gemma3", "blk.1.attn_v", _one_row, "from the source's, in 1 of 32 rows from row 5"),
    ("mixtral", "blk.1.ffn_gate_inp", lambda w: w[::-1],
     "its matrix has the source's rows in another order (model.layers.1.mlp.gate"),
    ("mixtral", "blk.1.ffn_down_exps", lambda w: w[::-1],
     "its matrix has the source's experts in another order (model.layers.1.mlp.experts"),
    ("llama", "output", lambda w: w[::-1],
     "its matrix has the source's rows in another order (lm_head"),
    ("stablelm", "token_embd", _reversed_columns,
     "what it reads for the text has the source's columns in another order (model.embed_tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "tensor", "change", "reason"), TENSORS)
def test_a_tensor_that_is_not_the_source_s_is_named(
    folder: Path, name: str, tensor: str, change: Change, reason: str
) -> None:
    found = changed(folder, name, f"{tensor}.weight", change)
    assert found.first_wrong is not None
    operation = found.first_wrong.operation
    assert operation is not None
    assert operation.tensor == f"{tensor}.weight"
    assert reason in operation.reason
    assert [o.tensor for o in found.operations if o.status == "wrong"] == [operation.tensor]


PLACES = [
    (name, pair)
    for name in ALL
    for pair in (("attn_k", "attn_v"), ("ffn_gate", "ffn_up"))
    if {f"blk.1.{p}.weight" for p in pair} <= made.converted(model(name), ALL[name]).keys()
]


@pytest.mark.parametrize(("name", "pair"), PLACES, ids=lambda p: p if isinstance(p, str) else p[0])
def test_matrices_in_each_other_s_place_are_named(
    folder: Path, name: str, pair: tuple[str, str]
) -> None:
    tensors = made.converted(model(name), ALL[name])
    for kind in ("weight", "bias"):
        a, b = (f"blk.1.{p}.{kind}" for p in pair)
        if a in tensors:
            tensors[a], tensors[b] = tensors[b], tensors[a]
    found = compared(folder, ALL[name], model(name), tensors)
    assert found.first_wrong is not None
    operation = found.first_wrong.operation
    assert operation is not None
    here, there = pair if operation.tensor.startswith(f"blk.1.{pair[0]}.") else pair[::-1]
    assert operation.tensor.startswith(f"blk.1.{here}.")
    assert operation.reason.endswith(f", which belong in blk.1.{there}")
    assert [o.tensor for o in found.operations if o.status == "wrong"] == [operation.tensor]


def test_a_bias_that_is_not_the_source_s_is_named(folder: Path) -> None:
    found = changed(folder, "gpt2", "blk.1.attn_qkv.bias", lambda b: b * 1.5)
    assert found.first_wrong is not None
    operation = found.first_wrong.operation
    assert operation is not None
    assert (operation.op, operation.tensor) == ("ADD", "blk.1.attn_qkv.bias")
    expected = "its bias differs by 0.5 from the source's (transformer.h.1.attn.c_attn.bias)"
    assert operation.reason == expected


def test_rows_that_were_not_permuted_are_named(folder: Path) -> None:
    network = replace(ALL["llama"], permuted=False)
    found = compared(folder, network)
    assert found.first_wrong is not None
    operation = found.first_wrong.operation
    assert operation is not None
    assert operation.op == "ROPE"
    assert "turning halves" in operation.reason
    assert "the converter has to permute the rows of Q and K" in operation.reason


def test_a_tensor_is_named_in_a_quantized_file(folder: Path) -> None:
    tensors = made.converted(model("llama"), ALL["llama"])
    tensors["token_embd.weight"] = tensors["token_embd.weight"][:, ::-1].copy()
    checkpoint = made.save(model("llama"), folder / "checkpoint")
    file = made.write(
        folder / "model.gguf", ALL["llama"], tensors, dtype=gguf.GGMLQuantizationType.Q4_0
    )
    report = compare_frameworks(
        f"hf:{checkpoint}", [str(file)], text=TEXT, n_tokens=N_TOKENS, n_threads=1
    )
    (found,) = report.comparisons
    assert found.first_wrong is not None
    operation = found.first_wrong.operation
    assert operation is not None
    assert operation.tensor == "token_embd.weight"


# -- telling values apart -------------------------------------------------------------------


def operation(value: np.ndarray, *inputs: int) -> Operation:
    return Operation("x", "ADD", inputs, value.astype(np.float32))


def test_a_result_is_found_in_another_order_and_with_room_behind_it() -> None:
    rng = np.random.default_rng(0)
    heads = rng.standard_normal((2, 7, 5))  # (heads, tokens, channels)
    other = rng.standard_normal((7, 10))
    results = Results([operation(other), operation(heads)], 7)
    by_token = np.moveaxis(heads, 0, 1).reshape(7, 10).astype(np.float32)
    found = results.find(by_token, 1e-6)
    assert found is not None
    assert (found.index, found.in_order) == (1, True)
    turned = results.find(by_token[:, ::-1], 1e-6)
    assert turned is not None
    assert (turned.index, turned.in_order) == (1, False)
    wide = results.find(np.pad(by_token, ((0, 0), (0, 22))), 1e-6)
    assert wide is not None
    assert wide.index == 1
    # The tokens' order counts.
    assert results.find(by_token[::-1], 1e-2) is None
    assert results.find(by_token * np.float32(1.1), 1e-2) is None
    assert TokenRows.of(by_token[:6], 7) is None


def test_what_a_later_result_makes_good_is_inside() -> None:
    value = np.ones((7, 1))
    chain = [operation(value), operation(value, 0), operation(value, 1), operation(value, 2)]
    there = Results(chain, 7).find(np.ones((7, 1), np.float32), 0.0)
    assert leads_back(chain, [there, None, there, None]) == [True, True, False, False]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda w: w * (1 + 1e-7), None),
        (lambda w: w[::-1], "has the source's rows in another order"),
        (lambda w: w[:, ::-1], "has the source's columns in another order"),
        (lambda w: -2 * w, "is -2 times the source's"),
        (lambda w: w.T, "is the source's transposed"),
        (lambda w: np.roll(w, 1) + w, "differs by"),
        (lambda w: w[:3], "is 3×6, the source's another size"),
    ],
)
def test_what_became_of_a_matrix_is_told(change: Change, expected: str | None) -> None:
    w = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)
    found = explain_matrix(change(w).astype(np.float32), w, {}, 1e-5)
    assert found == expected or (expected is not None and found is not None and expected in found)
    other = np.random.default_rng(1).standard_normal((6, 6)).astype(np.float32)
    assert explain_matrix(other, w, {"other": other}, 1e-5) == "holds the values of other"
