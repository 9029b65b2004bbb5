"""The types that are really inside a file, and what its label says of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from ggufnorm.core.model import TypesInside
from ggufnorm.formats.file_type import label_of, mislabelled, types_inside
from ggufnorm.formats.gguf_tensors import Tensor


def tensor(name: str, dtype: str, *shape: int) -> Tensor:
    kind = GGMLQuantizationType[dtype]
    block, n_bytes = GGML_QUANT_SIZES[kind]
    n = 1
    for size in shape:
        n *= size
    return Tensor(name, shape, dtype, int(kind), 0, n // block * n_bytes)


def inside(label: LlamaFileType | int | None, *tensors: Tensor) -> TypesInside:
    file: Any = SimpleNamespace(
        tensors={t.name: t for t in tensors},
        metadata=SimpleNamespace(integer=lambda key: None if label is None else int(label)),
    )
    return types_inside(file)


def layers(n: int, **roles: tuple[str, int]) -> list[Tensor]:
    return [
        tensor(f"blk.{i}.{role}.weight", dtype, row, 512)
        for i in range(n)
        for role, (dtype, row) in roles.items()
    ]


NORM = tensor("output_norm.weight", "F32", 640)


def test_matrices_and_vectors_are_counted_apart() -> None:
    found = inside(LlamaFileType.MOSTLY_Q8_0, *layers(3, ffn_up=("Q8_0", 256)), NORM)
    assert [(c.dtype, c.n_tensors, c.n_weights) for c in found.matrices] == [("Q8_0", 3, 393_216)]
    assert [(c.dtype, c.n_tensors) for c in found.vectors] == [("F32", 1)]
    assert found.bits_per_weight == pytest.approx((393_216 * 8.5 + 640 * 32) / (393_216 + 640))
    assert found.label == "Q8_0"
    assert not found.note


def test_short_rows_explain_the_types_of_a_mix() -> None:
    tensors = layers(9, attn_q=("Q5_0", 640), ffn_down=("Q4_K", 2048))
    found = inside(LlamaFileType.MOSTLY_Q4_K_M, *tensors, NORM)
    assert found.note == (
        "called Q4_K_M, but not throughout: rows of 640 do not divide by 256, so 9 of 18 matrices"
        " are Q5_0"
    )
    assert not found.mislabelled


@pytest.mark.parametrize(
    ("label", "instead", "own"),
    [("Q2_K", "Q4_0", "Q2_K"), ("IQ3_S", "IQ4_NL", "IQ3_S"), ("Q6_K", "Q8_0", "Q6_K"),
     ("Q5_K_S", "Q5_1", "Q5_K"), ("TQ1_0", "Q4_0", "TQ1_0"), ("IQ4_XS", "IQ4_NL", "IQ4_XS")],
)  # fmt: skip
def test_a_label_whose_type_is_nowhere_inside(label: str, instead: str, own: str) -> None:
    tensors = layers(4, attn_q=(instead, 640), ffn_down=(instead, 96))
    found = inside(LlamaFileType[f"MOSTLY_{label}"], *tensors)
    assert f"but holds no {own}: rows of 96 and 640 do not divide by 256" in found.note
    assert not found.mislabelled


@pytest.mark.parametrize("label", ["F16", "BF16", "Q8_0", "Q4_0", "IQ4_NL"])
def test_types_of_small_blocks_need_no_explanation(label: str) -> None:
    found = inside(LlamaFileType[f"MOSTLY_{label}"], *layers(2, attn_q=(label, 640)))
    assert not found.note


def test_a_label_that_is_not_borne_out_is_told_by_the_words_of_the_rule() -> None:
    tensors = layers(4, attn_q=("Q4_0", 512))
    found = inside(LlamaFileType.MOSTLY_Q8_0, *tensors)
    assert found.mislabelled
    assert found.note == mislabelled("Q8_0", tensors)
    assert found.note == "general.file_type says Q8_0, but 100 % of the matrices' weights are Q4_0"


def test_a_file_that_does_not_say_or_says_what_nobody_knows() -> None:
    tensors = layers(2, attn_q=("Q4_K", 512))
    for label in (None, 9999):
        found = inside(label, *tensors)
        assert found.label is None
        assert not found.note
        assert not found.mislabelled
    assert label_of(1024 + 7) == "Q8_0", "guessed by llama.cpp"


def test_a_file_without_tensors() -> None:
    found = inside(LlamaFileType.MOSTLY_Q8_0)
    assert found.bits_per_weight is None
    assert found.matrices == ()
