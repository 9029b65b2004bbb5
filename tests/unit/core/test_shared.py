"""What several features share: relative L2, tokens first, names, and what results can do."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from ggufnorm.core.capture import NormCapture
from ggufnorm.core.formula import Formula
from ggufnorm.core.metrics import finite_relative_l2, relative_l2
from ggufnorm.core.tokens import token_rows, tokens_first
from ggufnorm.formats.naming.join import match_names

ZEROS, ONES = np.zeros(3, np.float32), np.ones(3, np.float32)
NAN = np.array([1, np.nan, 1], np.float32)


@pytest.mark.parametrize(
    ("expected", "observed", "distance", "finite"),
    [
        (ONES, 1.5 * ONES, 0.5, 0.5),
        (ONES, ONES, 0.0, 0.0),
        (ZEROS, ZEROS, 0.0, None),
        (ZEROS, ONES, np.inf, None),
        (ONES, NAN, np.inf, None),
        (NAN, NAN, np.inf, None),
        (ONES, np.full(3, np.inf), np.inf, None),
    ],
)
def test_relative_l2(
    expected: np.ndarray, observed: np.ndarray, distance: float, finite: float | None
) -> None:
    assert relative_l2(expected, observed) == distance
    assert finite_relative_l2(expected, observed) == finite


def test_relative_l2_does_not_lose_float32_values_beside_large_ones() -> None:
    large = np.full(1 << 20, 2.0**66, np.float32)
    assert relative_l2(large, large * np.float32(1 + 2**-10)) == 2**-10


def test_tokens_come_first_from_whichever_axis_they_are_on() -> None:
    value = np.arange(2 * 5 * 3, dtype=np.float32).reshape(2, 5, 3)
    first = tokens_first(value, 5)
    assert first is not None
    assert first.shape == (5, 2, 3)
    assert tokens_first(value, 3) is None  # the channels are no tokens
    assert tokens_first(value, 3, channels_last=False) is not None
    rows = token_rows(value, 5)
    assert rows.shape == (10, 3)
    assert np.array_equal(rows[:2], value[:, 0])
    assert np.array_equal(token_rows(value, 4), value.reshape(10, 3))
    assert token_rows(np.empty((0, 3), np.float32), 4).shape == (0, 3)


def test_recomputing_refuses_weights_that_make_a_result_larger() -> None:
    x = np.ones((4, 1, 3), np.float32)
    formula = Formula("rms", 1e-6)
    assert formula.recompute(x, np.ones(3)).shape == x.shape
    with pytest.raises(ValueError, match="do not fit"):
        formula.recompute(x, np.ones((2, 3)))


def test_group_norms_take_any_leading_axes() -> None:
    x = np.random.default_rng(0).normal(size=(4, 2, 6))
    formula = Formula("group", 1e-5, 3)
    flat = formula.apply(x.reshape(8, 6))
    assert np.array_equal(formula.apply(x), flat.reshape(x.shape))


def test_a_capture_without_an_epsilon_states_an_infinite_one() -> None:
    norm = NormCapture(
        None, None, "norm-0", 0, "attn", "rms", None, None, 1, 0, 0, None, None, None
    )
    assert norm.formula == Formula("rms", np.inf)


def test_the_longest_common_ending_joins_names() -> None:
    source = [("norm.weight", 1), ("layers.0.norm.weight", 1), (None, 2)]
    engine = [("model.layers.0.norm.weight", 1), ("model.norm.weight", 1), (None, 2)]
    assert match_names(source, engine) == {0: 1, 1: 0, 2: 2}


def test_results_show_themselves_although_only_core_was_imported() -> None:
    code = (
        "import sys; from ggufnorm.core.model import InspectionSet;"
        "result = InspectionSet((), ());"
        "assert 'ggufnorm.report' not in sys.modules;"
        "assert isinstance(result._repr_html_(), str);"
        "assert 'ggufnorm.report' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
