"""A norm is found by what it computes, in whatever operations an exporter writes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ggufnorm
from ggufnorm.analysis.crosscheck.run import compare_frameworks
from ggufnorm.core.frameworks import EngineComparison
from ggufnorm.engines.onnx.norms import find_layer
from ggufnorm.engines.onnx.session import OnnxSession
from tests.onnx_convs import save
from tests.onnx_spellings import CHANNELS, EPSILON, SPELLINGS, TOKENS, Faults, Spelling, node

DOCS = Path(__file__).parents[2] / "docs"

IDS = np.arange(TOKENS, dtype=np.int32)


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_norm_is_found_in_any_spelling(name: str, tmp_path: Path) -> None:
    s: Spelling = SPELLINGS[name]
    path = save(s.proto(), tmp_path / "m.onnx")
    found = ggufnorm.inspect(path)
    (listed,) = found.norms
    tolerance = 1e-3 if s.half else 1e-6
    assert (listed.kind, listed.epsilon) == (s.kind, pytest.approx(EPSILON, rel=tolerance))
    assert not found.skipped
    run = OnnxSession(path, n_threads=1).run(IDS)
    (norm,) = run.norms
    assert norm.formula.kind == s.kind
    assert norm.formula.epsilon == pytest.approx(EPSILON, rel=tolerance)
    assert norm.formula.groups == (None if s.kind != "group" else s.groups or CHANNELS)
    assert norm.residual() < (5e-3 if s.half else 1e-6)
    assert norm.formula.divisor == ("unbiased" if "n - 1" in name else "standard")
    weights = s.weights()
    assert norm.weight is not None
    assert sorted(set(norm.weight.tolist())) == pytest.approx(sorted(weights["w"]), rel=1e-3)
    assert (norm.bias is not None) == s.bias
    if "Constant" not in name:
        assert norm.weight_name == "norm.weight"


# -- faults --------------------------------------------------------------------------------------

PLAIN = {
    ("layer", False): "LayerNormalization, opset 17",
    ("layer", True): "LayerNorm over channels of pictures",
    ("rms", False): "SimplifiedLayerNormalization",
    ("group", True): "group norm as operations",
}
"""The spelling of the source, by kind and by what is normalized."""
INSTANCE = "InstanceNormalization"

FAULTS: dict[str, tuple[str, Faults]] = {
    "weight + 1": ("offset", Faults(weight=lambda w: w + 1)),
    "weight × 2": ("scale", Faults(weight=lambda w: 2 * w)),
    "weight reversed": ("permutation", Faults(weight=lambda w: w[::-1])),
    "epsilon × 100": ("epsilon", Faults(epsilon=100 * EPSILON)),
    "bias + 1": ("bias", Faults(bias=lambda b: b + 1)),
}


def source_of(s: Spelling) -> Spelling:
    if s.kind == "group" and s.groups is None:
        return SPELLINGS[INSTANCE]
    return SPELLINGS[PLAIN[s.kind, s.image]]


def planted(s: Spelling) -> Iterator[tuple[str, str, Faults]]:
    """The faults that a spelling can have: what is written into its nodes is not changed."""
    for name, (cause, faults) in FAULTS.items():
        if (cause == "bias" and not s.bias) or ("weight" in name and "Constant" in s.name):
            continue
        yield name, cause, faults


def compared(source: Path, engine: Path) -> EngineComparison:
    (found,) = compare_frameworks(str(source), [str(engine)], n_threads=1).comparisons
    return found


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_right_spelling_is_no_mistake_and_a_wrong_one_is_named(name: str, tmp_path: Path) -> None:
    s = SPELLINGS[name]
    source = save(source_of(s).proto(), tmp_path / "source.onnx")
    if "n - 1" not in name:
        right = compared(source, save(s.proto(), tmp_path / "right.onnx"))
        assert right.first_wrong is None, right.verdict
        assert not [c for site in right.sites for c in site.causes if c.is_mistake]
    else:
        source = save(s.proto(), tmp_path / "source.onnx")
    for fault, cause, faults in planted(s):
        found = compared(source, save(s.proto(faults), tmp_path / "wrong.onnx"))
        assert found.first_wrong is not None, fault
        assert (found.first_wrong.where, found.first_wrong.causes) == ("norm", (cause,)), fault


def test_the_table_in_the_documentation_counts_them() -> None:
    table = (DOCS / "detection.md").read_text("utf-8")
    for name, (_cause, _faults) in FAULTS.items():
        n = sum(name == fault for s in SPELLINGS.values() for fault, _c, _f in planted(s))
        assert f"| {name} | {n} | {n} | 0 | 0 |" in table


def test_another_variance_is_named(tmp_path: Path) -> None:
    source = save(SPELLINGS["LayerNormalization, opset 17"].proto(), tmp_path / "a.onnx")
    found = compared(source, save(SPELLINGS["the variance of n - 1"].proto(), tmp_path / "b.onnx"))
    assert found.first_wrong is not None
    assert found.first_wrong.causes == ("formula",)
    assert "the variance of n - 1" in found.verdict


@pytest.mark.parametrize("half", [False, True])
def test_what_only_looks_like_a_norm_is_none(tmp_path: Path, *, half: bool) -> None:
    """A root of other rows' squares divides these."""
    s = SPELLINGS["torch legacy RMSNorm"]
    other = [node("Mul", ["x", "one"], ["z"]), node("Tanh", ["z"], ["other"])]
    nodes = [*other, *s.nodes]
    for i, n in enumerate(nodes[2:], 2):
        copy = type(n)()
        copy.CopyFrom(n)
        if n.op_type == "Pow":
            copy.input[0] = "other"
        nodes[i] = copy
    path = save(replace(s, nodes=nodes, half=half).proto(), tmp_path / "m.onnx")
    assert not OnnxSession(path, n_threads=1).run(IDS).norms


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.0.auto_model.encoder.layer.3.output.LayerNorm.weight", 3),
        ("0.auto_model.encoder.layer.11.attention.output.LayerNorm.weight", 11),
        ("/model/layers.7/input_layernorm/Mul_1", 7),
        ("transformer.h.4.ln_1.weight", 4),
        ("vision.blocks.2.norm1.weight", 2),
        ("encoder.layers.5.ln.weight", 5),
        ("tf_bert/bert/encoder/layer_._6/output/LayerNorm/gamma", 6),
        ("params/layers_9/ln/scale", 9),
        ("encoderblock_3/LayerNorm_0/scale", 3),
        ("stages.1.layers.0.norm.weight", 1),
        ("norm.weight", None),
    ],
)
def test_layers_are_numbered_by_the_word_before(name: str, layer: int | None) -> None:
    found = find_layer(name)
    assert (None if found is None else int(found[1])) == layer
