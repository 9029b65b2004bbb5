"""A norm is found by what it computes, in whatever operations an exporter writes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ggufnorm
from ggufnorm.engines.onnx.session import OnnxSession
from tests.onnx_convs import save
from tests.onnx_spellings import CHANNELS, EPSILON, SPELLINGS, TOKENS, Spelling

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
