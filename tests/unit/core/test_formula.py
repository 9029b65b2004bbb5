"""The search for the formula that turns one array into another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufnorm.core.formula import OFFSETS, Formula, best_formula
from ggufnorm.core.norms import group_norm, l2_norm, layer_norm, rms_norm
from ggufnorm.core.tolerances import FLOAT32_ROUNDING

N = 96
EXPECTED = Formula("rms", 1e-5)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Four hidden states: a small one, which tells epsilons apart, up to a large one."""
    rng = np.random.default_rng(3)
    x = rng.normal(0.3, 1, (4, N)) * np.array([[0.003], [0.05], [1], [20]])
    return x.astype(np.float32)


@pytest.fixture(scope="module")
def weight() -> np.ndarray:
    return np.random.default_rng(4).lognormal(0, 0.3, N).astype(np.float32)


@pytest.fixture(scope="module")
def bias() -> np.ndarray:
    return np.random.default_rng(5).normal(0, 0.2, N).astype(np.float32)


def test_formulae_are_those_of_core_norms(
    rows: np.ndarray, weight: np.ndarray, bias: np.ndarray
) -> None:
    for formula, exact in (
        (Formula("rms", 1e-6), rms_norm(rows, weight, epsilon=1e-6, bias=bias)),
        (Formula("layer", 1e-5), layer_norm(rows, weight, epsilon=1e-5, bias=bias)),
        (Formula("group", 1e-5, 7), group_norm(rows, weight, groups=7, epsilon=1e-5, bias=bias)),
        (Formula("l2", 1e-3), l2_norm(rows, epsilon=1e-3) * weight + bias),
    ):
        np.testing.assert_allclose(formula.apply(rows, weight, bias), exact, rtol=2e-6, atol=1e-7)


FORMULAE = [
    Formula("rms", 1e-5),
    Formula("rms", 1e-6),
    Formula("rms", 1e-8),
    Formula("rms", 1e-5, offset=1.0),
    Formula("rms", 1e-5, offset=-1.0),
    Formula("rms", 1e-5, offset=2.0),
    Formula("rms", 1e-5, weight=False),
    Formula("rms", 1e-5, bias=False),
    Formula("rms", 1e-6, weight=False, bias=False),
    Formula("rms", 1e-5, divisor="outside"),
    Formula("rms", 1e-5, divisor="root"),
    Formula("rms", 1e-5, divisor="unbiased"),
    Formula("rms", 1e-5, divisor="no-root"),
    Formula("layer", 1e-5),
    Formula("layer", 1e-6, offset=1.0),
    Formula("layer", 1e-5, divisor="unbiased"),
    Formula("l2", 1e-5, divisor="under-root"),
    *(Formula("group", 1e-5, groups) for groups in (2, 3, 4, 6, 8, 16, 32, 48)),
    Formula("group", 1e-6, 4, offset=1.0),
]
INDISTINCT = [
    # Below 1e-10, an epsilon is lost in the rounding of these rows; the size of an L2 norm's
    # does not matter, as long as it is smaller than the row.
    Formula("rms", 0.0),
    Formula("rms", 1e-5, divisor="squared"),
    Formula("l2", 1e-6),
]


@pytest.mark.parametrize("formula", [*FORMULAE, *INDISTINCT], ids=str)
def test_each_formula_is_recognized_from_its_float32_result(
    formula: Formula, rows: np.ndarray, weight: np.ndarray, bias: np.ndarray
) -> None:
    y = formula.apply(rows, weight, bias).astype(np.float32)
    fit = best_formula(rows, y, weight, bias, expected=EXPECTED)
    assert fit.residual < FLOAT32_ROUNDING
    if formula in INDISTINCT:
        np.testing.assert_allclose(fit.formula.apply(rows, weight, bias), y, rtol=2e-5, atol=1e-6)
        assert fit.formula.kind == formula.kind
    else:
        assert fit.formula == formula


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["rms", "layer"]),
    epsilon=st.floats(2e-7, 1e-2),
    offset=st.sampled_from(OFFSETS),
)
def test_an_unusual_epsilon_is_computed_from_the_result(
    seed: int, kind: str, epsilon: float, offset: float
) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.normal(0, 1, (3, 64)) * np.array([[0.002], [0.05], [1]])).astype(np.float32)
    w = rng.lognormal(0, 0.3, 64).astype(np.float32)
    true = Formula("rms" if kind == "rms" else "layer", epsilon, offset=offset)
    y = true.apply(x, w).astype(np.float32)
    fit = best_formula(x, y, w, expected=EXPECTED)
    assert fit.residual < FLOAT32_ROUNDING
    assert (fit.formula.kind, fit.formula.offset) == (true.kind, offset)
    assert fit.formula.epsilon == pytest.approx(epsilon, rel=1e-3)


def test_what_is_expected_wins_where_nothing_tells_formulae_apart(weight: np.ndarray) -> None:
    """Large rows without a mean: epsilon and the mean change nothing."""
    x = np.random.default_rng(1).normal(0, 1000, (4, N))
    x -= x.mean(axis=1, keepdims=True)
    for expected in (Formula("rms", 1e-12), Formula("layer", 1e-6), Formula("rms", 3e-7)):
        y = Formula("rms", 1e-6).apply(x, weight)
        assert best_formula(x, y, weight, expected=expected).formula == expected


def test_noise_fits_nothing(rows: np.ndarray, weight: np.ndarray) -> None:
    y = np.random.default_rng(9).normal(size=rows.shape)
    assert best_formula(rows, y, weight, expected=EXPECTED).residual > 0.5


def test_weights_of_each_row_are_taken_as_they_are(rows: np.ndarray) -> None:
    """Norms over heads have another weight in each row."""
    weight = np.random.default_rng(8).lognormal(0, 0.3, rows.shape)
    y = Formula("layer", 1e-5, offset=1.0).apply(rows, weight)
    assert best_formula(rows, y, weight, expected=EXPECTED).formula.offset == 1.0


def test_rows_that_are_not_finite_are_passed_over(rows: np.ndarray, weight: np.ndarray) -> None:
    y = EXPECTED.apply(rows, weight)
    x = rows.copy()
    x[1, 2], y[2, 5] = np.inf, np.nan
    fit = best_formula(x, y, weight, expected=EXPECTED)
    assert fit.formula == EXPECTED
    assert fit.residual < FLOAT32_ROUNDING


def test_what_tells_nothing_is_refused(rows: np.ndarray) -> None:
    for y, problem in (
        (np.zeros_like(rows), "not all zero"),
        (np.full_like(rows, np.nan), "finite"),
        (rows[:, :5], "one shape"),
    ):
        with pytest.raises(ValueError, match=problem):
            best_formula(rows, y, expected=EXPECTED)


def test_a_formula_is_put_into_words() -> None:
    assert str(Formula("rms", 1e-6, offset=1.0)) == "RMSNorm with epsilon 1e-06, weight + 1"
    assert str(Formula("group", 1e-5, 8, offset=-1.0, bias=False)) == (
        "GroupNorm of 8 groups with epsilon 1e-05, weight - 1, without the bias"
    )
    assert str(Formula("layer", 1e-5, divisor="outside", weight=False)) == (
        "LayerNorm with epsilon 1e-05 added outside the root, without the weight"
    )
