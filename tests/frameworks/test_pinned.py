"""Norms that share an input, and norms that run twice, are given the source's values once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ggufnorm.analysis.crosscheck.join import first_calls
from ggufnorm.analysis.crosscheck.pinned import first_runs
from ggufnorm.engines.hf.pinned import NormInputs, distances, norm_inputs

NAMES = ("one", "other", "again")
TOKENS = np.arange(5)


class Block(torch.nn.Module):
    """Two norms of one value, as in GPT-NeoX, and one that runs twice, as in Gemma 3n."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(5, 8)
        self.one, self.other, self.again = (torch.nn.LayerNorm(8) for _ in NAMES)

    def forward(self, input_ids: torch.Tensor) -> Any:
        x = self.embed(input_ids)
        y = self.one(x) + self.other(x) + x
        return SimpleNamespace(logits=self.again(2 * self.again(y)))


def run(model: Block, pins: NormInputs | None = None) -> NormInputs:
    fake: Any = SimpleNamespace(
        model=model, inputs=lambda tokens: {"input_ids": torch.tensor(tokens)[None]}
    )
    return norm_inputs(fake, TOKENS, NAMES, pins)


@pytest.fixture
def plain_and_own() -> tuple[NormInputs, NormInputs]:
    model = Block()
    plain = run(model)
    with torch.no_grad():
        model.embed.weight += 0.1 * torch.randn_like(model.embed.weight)
    return plain, run(model, plain)


def test_norms_of_one_value_cost_the_same(plain_and_own: tuple[NormInputs, NormInputs]) -> None:
    own = distances(*plain_and_own)

    assert own["one"] == own["other"] > 0
    assert own["again"] < 1e-6  # behind the source's values


def test_a_norm_is_pinned_at_its_first_call(plain_and_own: tuple[NormInputs, NormInputs]) -> None:
    plain, _ = plain_and_own
    nothing = np.zeros_like(plain.calls["again"][1]())
    plain.calls["again"][1] = lambda: nothing

    own = run(Block(), plain)

    assert len(own.calls["again"]) == 2
    assert own.logits is not None
    assert np.abs(own.logits()).max() > 0.1


def test_a_norm_that_runs_again_is_compared_at_its_first_run() -> None:
    a, b, again = (SimpleNamespace(name=k, key=k) for k in ("a", "b", "a"))
    norms: Any = [a, b, again]
    graph: Any = SimpleNamespace(norms=norms)

    assert list(first_calls(norms)) == [a, b]
    assert list(first_runs(graph)) == [a, b]
