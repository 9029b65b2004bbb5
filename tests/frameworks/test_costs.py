"""What types cost is measured as llama.cpp's kernels lose it; ties and padding are told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers

from ggufnorm.analysis.crosscheck.run import compare_frameworks
from ggufnorm.core.frameworks import EngineComparison
from ggufnorm.engines.hf.stored import _rounded_input
from tests import framework_models as made
from tests import in_process
from tests.blame_networks import ALL

TEXT = "the rain in spain stays mainly in the plain and so it is said to be in the end " * 3


@pytest.fixture(scope="module", autouse=True)
def _engine() -> Iterator[None]:
    with in_process.engine():
        yield


def compared(
    folder: Path, network: made.Network, dtype: str, model: Any, tensors: made.Tensors
) -> EngineComparison:
    checkpoint = made.save(model, folder / "hf")
    kind = gguf.GGMLQuantizationType[dtype]
    file = made.write(folder / "model.gguf", network, tensors, dtype=kind)
    report = compare_frameworks(
        f"hf:{checkpoint}", [str(file)], text=TEXT, n_tokens=31, n_threads=1
    )
    return report.comparisons[0]


@pytest.mark.parametrize("dtype", ["BF16", "Q8_0"])
@pytest.mark.parametrize("name", ["qwen3moe", "jamba", "lfm2", "mamba2", "deepseek2"])
def test_the_cost_of_types_is_what_llama_cpp_loses(tmp_path: Path, name: str, dtype: str) -> None:
    model = made.build(ALL[name])
    found = compared(tmp_path, ALL[name], dtype, model, made.converted(model, ALL[name]))
    assert found.first_wrong is None
    assert "is not distinguishable here (compare a file in F32)" in found.verdict
    least = 4 * 2.0**-11  # what is always allowed
    for site in found.sites:
        assert site.before is not None
        assert site.before_allowed is not None
        assert site.before <= 1.1 * site.before_allowed / 2
        # K of a latent attention is F16 in the file, and in one matrix with V in the source.
        if site.before_allowed > least and name != "deepseek2":
            assert site.before == pytest.approx(site.before_allowed / 2, rel=0.1)


@pytest.mark.parametrize(("dtype", "block"), [("Q8_0", 32), ("Q5_0", 32), ("Q6_K", 256)])
def test_activations_are_rounded_in_the_blocks_of_the_kernel(dtype: str, block: int) -> None:
    x = torch.ones(2, 512)
    x[:, 0] = 1000.0  # all others of its block are nearer to zero than half a step
    rounded = _rounded_input(x, dtype, by_rows=False)
    assert (rounded[:, 1:block] == 0).all()
    assert rounded[:, block:].numpy() == pytest.approx(1.0)
    assert torch.equal(_rounded_input(x.T, dtype, by_rows=True), rounded.T)


def test_tied_experts_are_told_with_their_margin(tmp_path: Path) -> None:
    network = ALL["mixtral"]
    model = made.build(network)
    router = model.model.layers[1].mlp.gate.weight
    with torch.no_grad():
        router[1] = router[0] * (1 + 2e-6)  # the same score but for rounding
    tensors = made.converted(model, network)
    name = "blk.1.ffn_gate_inp.weight"
    tensors[name] = np.array(tensors[name])
    tensors[name][[0, 1]] = tensors[name][[1, 0]]
    found = compared(tmp_path, network, "F32", model, tensors)
    assert found.first_wrong is None, found.verdict
    told = [s.reason for s in found.skipped if s.what == "experts"]
    assert len(told) == 1
    assert "tied with the source's choice: they are" in told[0]
    assert "apart at most, and rounding moves scores by" in told[0]


def test_a_padding_row_that_transformers_sets_to_zero_is_no_mistake(tmp_path: Path) -> None:
    network = replace(
        ALL["deepseek2"], name="youtu", config=transformers.YoutuConfig,
        model=transformers.YoutuForCausalLM,
    )  # fmt: skip
    options = {k: v for k, v in network.options.items() if "expert" not in k}
    network = replace(network, options={**options, "tie_word_embeddings": True})
    model = made.build(network)
    checkpoint = made.save(model, tmp_path / "hf")
    assert model.model.embed_tokens.weight[0].any()
    from ggufnorm.engines.hf.model import HFModel

    loaded = HFModel(checkpoint)
    assert torch.equal(loaded.model.model.embed_tokens.weight, model.model.embed_tokens.weight)
    assert [s.what for s in loaded.skipped] == ["row 0 of model.embed_tokens.weight"]
