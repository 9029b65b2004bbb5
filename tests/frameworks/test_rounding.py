"""The table of rounding holds against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ggufnorm.core.rounding import HALF_ULP, MATRIX_ROUNDING, WEIGHT_ROUNDING

TYPES = {"F16": torch.float16, "BF16": torch.bfloat16}
RNG = np.random.default_rng(0)
N = 1 << 18
VALUES = {
    "normal": RNG.normal(size=N),
    "of one binade": RNG.uniform(1, 2, N),
    "of many binades": np.exp2(RNG.uniform(-8, 8, N)),
    "of a norm": 1 + np.abs(RNG.normal(0, 0.02, N)),
}
RMS = {"normal": 0.426, "of one binade": 7**-0.5, "of many binades": 0.393, "of a norm": 0.568}
"""Relative L2 error of rounding, in multiples of the worst case."""


def errors(values: torch.Tensor, dtype: str) -> torch.Tensor:
    return values.to(TYPES[dtype]).double() - values


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", VALUES)
def test_half_an_ulp_is_the_worst_case_and_it_occurs(dtype: str, name: str) -> None:
    values = torch.from_numpy(VALUES[name])
    values = values[values.abs() > 1e-4]  # F16 has fewer bits below
    worst = float((errors(values, dtype) / values).abs().max())
    assert 0.99 * HALF_ULP[dtype] < worst <= HALF_ULP[dtype]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", VALUES)
def test_the_rms_of_many_values_is_about_half_of_it(dtype: str, name: str) -> None:
    values = torch.from_numpy(VALUES[name])
    rms = float(errors(values, dtype).norm() / values.norm())
    assert rms == pytest.approx(RMS[name] * HALF_ULP[dtype], rel=0.02)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_product_of_two_rounded_matrices_is_within_the_table(dtype: str) -> None:
    a, b = (torch.from_numpy(RNG.normal(size=(256, 256))) for _ in range(2))
    product = a @ b
    rounded = a.to(TYPES[dtype]).double() @ b.to(TYPES[dtype]).double()
    error = float((rounded - product).norm() / product.norm())
    assert 0.5 * MATRIX_ROUNDING[dtype] < error < MATRIX_ROUNDING[dtype]


@pytest.mark.parametrize("steps", [127, 7])
def test_the_table_of_integers_is_that_of_normal_values(steps: int) -> None:
    def rounded(values: np.ndarray) -> np.ndarray:
        step = 5 / steps  # the largest value is five times the RMS
        return np.clip(np.round(values / step), -steps, steps) * step

    a, b = (RNG.normal(size=(256, 256)) for _ in range(2))
    product = a @ b
    error = np.linalg.norm(rounded(a) @ rounded(b) - product) / np.linalg.norm(product)
    assert error == pytest.approx(MATRIX_ROUNDING["INT8" if steps == 127 else "INT4"], rel=0.25)


def test_a_weight_in_bytes_is_off_by_its_table_at_most() -> None:
    weights = np.full(64, 0.25)
    weights[0] = 1.0  # four times the others
    off = weights + np.where(np.arange(64) == 0, 0.0, 0.5 / 127)
    error = np.linalg.norm(off - weights) / np.linalg.norm(weights)
    assert 0.8 * WEIGHT_ROUNDING["INT8"] < error < WEIGHT_ROUNDING["INT8"]


def test_names_of_gguf_and_of_onnx_are_one_type() -> None:
    for ours, theirs in (("F16", "FLOAT16"), ("BF16", "BFLOAT16")):
        for table in (HALF_ULP, WEIGHT_ROUNDING, MATRIX_ROUNDING):
            assert table[ours] == table[theirs]
    assert "F32" not in MATRIX_ROUNDING
