"""The public norm functions against exact arithmetic (fractions and math.sqrt)."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import ggufnorm

finite = st.floats(-1e4, 1e4, width=32)
inputs = arrays(np.float32, array_shapes(min_dims=1, max_dims=3, max_side=9), elements=finite)
epsilons = st.sampled_from([1e-12, 1e-6, 1e-5, 1e-3, 1.0])


def exact_rms(row: list[float], epsilon: float) -> list[float]:
    mean = sum(Fraction(v) ** 2 for v in row) / len(row)
    return [v / math.sqrt(mean + Fraction(epsilon)) for v in row]


def exact_layer(row: list[float], epsilon: float) -> list[float]:
    mean = sum(map(Fraction, row)) / len(row)
    var = sum((Fraction(v) - mean) ** 2 for v in row) / len(row)
    return [float(Fraction(v) - mean) / math.sqrt(var + Fraction(epsilon)) for v in row]


def rows(x: np.ndarray) -> list[list[float]]:
    return [[float(v) for v in row] for row in x.reshape(-1, x.shape[-1])]


@given(inputs, epsilons)
def test_rms_norm_is_exact_to_float32(x: np.ndarray, epsilon: float) -> None:
    expected = [exact_rms(row, epsilon) for row in rows(x)]
    got = ggufnorm.rms_norm(x, epsilon=epsilon)
    assert got.dtype == np.float32
    assert got.shape == x.shape
    np.testing.assert_allclose(got.reshape(-1, x.shape[-1]), expected, rtol=2e-7, atol=1e-30)


@given(inputs, epsilons)
def test_layer_norm_is_exact_to_float32(x: np.ndarray, epsilon: float) -> None:
    expected = [exact_layer(row, epsilon) for row in rows(x)]
    got = ggufnorm.layer_norm(x, epsilon=epsilon).reshape(-1, x.shape[-1])
    # The mean is rounded to float64 before it is taken off: 1e4 · 2^-52 / sqrt(1e-12).
    np.testing.assert_allclose(got, expected, rtol=3e-7, atol=5e-6)


@given(inputs, st.integers(1, 4))
def test_group_norm_is_layer_norm_of_each_group(x: np.ndarray, groups: int) -> None:
    x = np.concatenate([x] * groups, axis=-1)
    run = x.shape[-1] // groups
    expected = [
        [v for i in range(groups) for v in exact_layer(row[i * run : (i + 1) * run], 1e-3)]
        for row in rows(x)
    ]
    got = ggufnorm.group_norm(x, groups=groups, epsilon=1e-3).reshape(-1, x.shape[-1])
    np.testing.assert_allclose(got, expected, rtol=3e-7, atol=1e-9)


def test_group_norm_has_a_short_last_group() -> None:
    x = np.array([1, 2, 3, 4, 5], np.float32)
    got = ggufnorm.group_norm(x, groups=2, epsilon=0.5)
    expected = exact_layer([1, 2, 3], 0.5) + exact_layer([4, 5], 0.5)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@given(inputs, st.sampled_from([1e-6, 1.0]))
def test_l2_norm_divides_by_the_larger_of_length_and_epsilon(x: np.ndarray, epsilon: float) -> None:
    expected = [
        [v / max(math.sqrt(sum(Fraction(u) ** 2 for u in row)), epsilon) for v in row]
        for row in rows(x)
    ]
    got = ggufnorm.l2_norm(x, epsilon=epsilon).reshape(-1, x.shape[-1])
    np.testing.assert_allclose(got, expected, rtol=2e-7, atol=1e-30)


def test_weight_and_bias_are_applied_after_the_norm() -> None:
    x = np.array([[3.0, 4.0], [1.0, -1.0]], np.float32)
    weight, bias = [2.0, 10.0], [0.5, -0.5]
    got = ggufnorm.rms_norm(x, weight, epsilon=0.0, bias=bias)
    expected = [[v * w + b for v, w, b in zip(exact_rms(row, 0), weight, bias)] for row in rows(x)]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("x", [np.float32(1), np.empty((3, 0), np.float32)])
def test_input_without_channels_is_refused(x: np.ndarray) -> None:
    with pytest.raises(ValueError, match="channels"):
        ggufnorm.rms_norm(x, epsilon=1e-5)


def test_weight_that_would_grow_the_result_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        ggufnorm.rms_norm(np.ones(4, np.float32), np.ones((2, 4)), epsilon=1e-5)


@pytest.mark.parametrize("groups", [0, 5])
def test_group_count_out_of_range_is_refused(groups: int) -> None:
    with pytest.raises(ValueError, match="groups must be from 1 to 4"):
        ggufnorm.group_norm(np.ones(4, np.float32), groups=groups, epsilon=1e-5)
