"""Graphs are learned without computing them; a run afterwards is that of a fresh context."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ggufnorm.engines.base import Batch
from ggufnorm.engines.llama.binding import NodeView
from ggufnorm.engines.llama.runner import LlamaActivation, LlamaRunner
from ggufnorm.engines.llama.session import EngineOptions, LlamaModel
from ggufnorm.formats.location import open_model
from tests import models
from tests.in_process import engine

MODELS: dict[str, Callable[[Path], Path]] = {
    "llama": models.llama, "qwen3moe": models.qwen3moe, "deepseek2": models.deepseek2,
    "mamba": models.mamba, "jamba": models.jamba, "t5": models.t5,
}  # fmt: skip


@pytest.mark.parametrize("arch", MODELS)
def test_a_plan_computes_nothing_and_leaves_nothing_behind(tmp_path: Path, arch: str) -> None:
    model = MODELS[arch](tmp_path / "model.gguf")
    options = EngineOptions(32, 1, n_ubatch=16)
    tokens = np.arange(32, dtype=np.int32) + 5
    with (
        engine(),
        open_model(model) as file,
        LlamaModel(str(model), options) as loaded,
        LlamaRunner(loaded, options, file) as planned,
        LlamaRunner(loaded, options, file) as fresh,
    ):
        chunk = planned.batches(tokens, 0)
        fresh.decode(chunk)  # learns its graphs on the way, and has to compute them
        right = logits(fresh, chunk[-1])
        planned.plan(chunk)
        assert [g.hooks for g in planned.graphs] == [g.hooks for g in fresh.graphs]
        assert not np.array_equal(planned.all_logits(chunk[-1]), right)

        seen: list[str] = []

        def see(_n: int, value: LlamaActivation) -> bool:
            seen.append(NodeView.at(value.address).op)
            return True

        planned.begin_chunk()
        for k, batch in enumerate(chunk):
            planned.forward(k, batch, [h.index for h in planned.graphs[k].hooks], see)
        assert seen == [h.op for graph in planned.graphs for h in graph.hooks]

        assert np.array_equal(logits(planned, chunk[-1]), right)
        planned.plan(chunk)
        planned.decode(chunk)
        assert np.array_equal(logits(planned, chunk[-1]), right)


def logits(runner: LlamaRunner, batch: Batch) -> np.ndarray:
    found = runner.all_logits(batch)
    assert np.isfinite(found).all()
    assert found.std() > 0
    return found.copy()
