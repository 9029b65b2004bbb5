"""The distance of logits, whole or a few positions at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ggufnorm.analysis.crosscheck import logits
from ggufnorm.core.metrics import relative_l2


@pytest.fixture(params=[1 << 22, 64])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "_BLOCK", request.param)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("theirs", [1.0, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("own", [1.0, math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_as_far_off_in_blocks_as_in_a_whole(
    theirs: float, own: float
) -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((8, 32)).astype(np.float32)
    b = a + rng.standard_normal(a.shape).astype(np.float32) / 8
    a[5, 3], b[5, 3] = theirs, own

    found = logits.logits_off(a, b)

    assert found == pytest.approx(relative_l2(a, b), nan_ok=False)
    assert found is not None
    assert (found == math.inf) == (not math.isfinite(theirs) or not math.isfinite(own))
