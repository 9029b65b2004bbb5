"""A comparison holds the rows of one norm at a time, however many norms and tokens there are."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from ggufnorm.analysis.crosscheck.diagnose import Diagnoser
from ggufnorm.analysis.crosscheck.join import Pair
from ggufnorm.analysis.crosscheck.llama import run_llama
from ggufnorm.core.observed import ObservedNorm
from ggufnorm.engines.hf.norms import watch_norms
from ggufnorm.samples import default_text, sample_model
from tests import in_process

N_NORMS, N_TOKENS, WIDTH = 24, 700, 96
ROWS = 4 * N_TOKENS * WIDTH
"""Bytes of one norm's input."""


@pytest.fixture
def held() -> Iterator[Callable[[], tuple[int, int]]]:
    """Bytes of NumPy and Python that are held, and were at most."""
    tracemalloc.start()
    yield tracemalloc.get_traced_memory
    tracemalloc.stop()


def observed() -> tuple[ObservedNorm, ...]:
    torch.manual_seed(0)
    net = torch.nn.Sequential(*(torch.nn.LayerNorm(WIDTH) for _ in range(N_NORMS)))
    x = torch.randn(1, N_TOKENS, WIDTH)
    return watch_norms(net, lambda: net(x), N_TOKENS)[1]


def test_watching_a_checkpoint_holds_one_norm(held: Any) -> None:
    observed()
    tracemalloc.reset_peak()
    before, _ = held()

    norms = observed()

    now, peak = held()
    assert len(norms) == N_NORMS
    assert now - before < ROWS
    assert peak - before < 10 * ROWS < 2 * N_NORMS * ROWS


def test_diagnosing_norms_holds_one(held: Any) -> None:
    pairs = [Pair(n.name, n, n) for n in observed()]
    diagnoser = Diagnoser("a", "b", 0.0, {})
    diagnoser.sites(pairs)
    tracemalloc.reset_peak()
    before, _ = held()

    sites = diagnoser.sites(pairs)

    now, peak = held()
    assert len(sites) == N_NORMS
    assert now - before < ROWS
    assert peak - before < 16 * ROWS < 4 * N_NORMS * ROWS


def test_a_run_of_llama_cpp_holds_no_rows(held: Any) -> None:
    with in_process.engine():
        found = run_llama(sample_model(), text=default_text(), n_tokens=16).run
        before, _ = held()
        found = run_llama(sample_model(), text=default_text(), n_tokens=256).run
        now, _ = held()

    kept = sum(n.x.nbytes + n.y.nbytes for n in found.norms)
    assert kept > 2e6
    assert now - before < kept / 4
    assert np.isfinite(found.norms[-1].y).all()
