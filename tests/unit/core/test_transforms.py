"""How a norm's values come from its source's, whatever they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ggufnorm.core.tolerances import SAME_ELEMENT
from ggufnorm.core.transforms import Transform, explain, same
from ggufnorm.formats.conversion import Origin, transform_of, with_rescale
from ggufnorm.formats.gguf import GGUFFile
from tests.architectures import write_model

TRANSFORMS = (
    Transform(),
    Transform(offset=1.0),
    Transform(offset=1 / 5**1.5),
    Transform(scale=3.0),
    Transform(unpermute=True),
)
FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)
ROWS = arrays.arrays(
    np.float32, arrays.array_shapes(min_dims=0, max_dims=2, min_side=0), elements=FLOATS
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(ROWS, ROWS, st.sampled_from(TRANSFORMS), st.booleans())
def test_any_values_are_explained_in_one_way(
    found: np.ndarray, source: np.ndarray, transform: Transform, half: bool
) -> None:
    explanation = explain(found, source, transform, half=half, others={"o": source.reshape(-1)})

    expected = transform.apply(source)
    assert (explanation.kind == "equal") == same(found.reshape(-1), expected)
    assert (explanation.kind == "size") == (found.size != expected.size)
    assert (explanation.message == "") == (explanation.kind == "equal")


@settings(max_examples=200, deadline=None)
@given(ROWS, st.sampled_from(TRANSFORMS))
def test_what_the_conversion_gives_is_equal(source: np.ndarray, transform: Transform) -> None:
    assert explain(transform.apply(source), source, transform).kind == "equal"


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    arrays.arrays(np.float32, (2, 24), elements=st.floats(0.125, 8, width=32), unique=True),
    st.integers(0, 23),
    st.sampled_from(TRANSFORMS[:4]),
)
def test_one_other_element_is_never_equal(
    source: np.ndarray, at: int, transform: Transform
) -> None:
    found = transform.apply(source[0])
    found[at] *= np.float32(1 + 8 * SAME_ELEMENT)

    assert explain(found, source[0], transform).kind != "equal"


@pytest.mark.parametrize("values", [np.inf, -np.inf, np.nan, np.finfo(np.float32).max])
def test_one_element_that_is_out_of_range_is_named(values: float) -> None:
    source = np.linspace(0.5, 2, 32, dtype=np.float32)
    found = source.copy()
    found[7] = values

    explanation = explain(found, source, Transform())

    assert explanation.kind == "partial"
    assert (explanation.evidence["n_different"], explanation.evidence["first"]) == (1, 7)
    assert isinstance(explanation.evidence["value"], float if np.isfinite(values) else str)


@pytest.mark.parametrize(
    ("change", "order"),
    [
        (lambda v: v[::-1], "reversed"),
        (lambda v: v.reshape(2, -1).T.reshape(-1), "halves interleaved"),
        (lambda v: v.reshape(-1, 2).T.reshape(-1), "interleaving undone"),
        (lambda v: np.roll(v, v.size // 2), "halves exchanged"),
        (lambda v: np.roll(v, 1), "rolled by 1"),
    ],
)
def test_a_usual_order_is_named(change: object, order: str) -> None:
    source = np.random.default_rng(0).lognormal(0, 0.3, 32).astype(np.float32)
    assert callable(change)

    explanation = explain(change(source), source, Transform())

    assert (explanation.kind, explanation.evidence["order"]) == ("permutation", order)


@pytest.mark.parametrize(
    ("architecture", "source", "flag", "scale"),
    [
        ("dots3note", "model.layers.0.self_attn.q_a_layernorm.weight", True, 4.0),
        ("dots3note", "model.layers.0.self_attn.kv_a_layernorm.weight", True, 4.0),
        ("dots3note", "model.layers.0.input_layernorm.weight", True, 1.0),
        ("dots3note", "model.layers.0.self_attn.q_a_layernorm.weight", False, 1.0),
        ("dots3note", "model.layers.0.self_attn.q_a_layernorm.weight", None, 1.0),
        ("deepseek2", "model.layers.0.self_attn.q_a_layernorm.weight", True, 1.0),
    ],
)
def test_the_latents_rescale_is_folded_into_their_norms(
    tmp_path: Path, architecture: str, source: str, flag: bool | None, scale: float
) -> None:
    metadata = {f"{architecture}.embedding_length": 64}
    path = write_model(tmp_path / "m.gguf", architecture, metadata, ["output_norm.weight"])
    with GGUFFile(path) as file:
        origin = Origin("t", (source,), transform_of(file, source))
        found = with_rescale(origin, file, {"apply_mla_qkv_lora_rescale": flag}, 4)

    assert found.transform == Transform(scale=scale)


@pytest.mark.parametrize(
    ("architecture", "source", "offset"),
    [
        ("qwen4exp", "model.layers.0.input_layernorm.weight", 1.0),
        ("qwen4exp", "model.layers.0.linear_attn.norm.weight", 0.0),
        ("qwen4exp", "model.layers.0.ple.norm_key.weight", 1.0),
        ("minimax-m3", "model.layers.0.self_attn.q_norm.weight", 1.0),
        ("muse-glimmer", "model.layers.0.input_layernorm.weight", 1.0),
        ("muse-glimmer", "model.norm.weight", 0.0),
    ],
)
def test_architectures_that_gguf_py_may_not_know_yet_have_their_offsets(
    tmp_path: Path, architecture: str, source: str, offset: float
) -> None:
    path = write_model(tmp_path / "m.gguf", architecture, {}, ["output_norm.weight"])
    with GGUFFile(path) as file:
        assert transform_of(file, source) == Transform(offset=offset)
