"""A trace made in parts, one range of layers after the other, is the trace of the whole model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import ggufnorm
from ggufnorm.analysis.trace import run as trace_run
from ggufnorm.core.drift import DriftReport
from ggufnorm.core.trace import TraceFacts
from ggufnorm.engines.base import Graph
from ggufnorm.engines.llama.runner import LlamaRunner
from ggufnorm.engines.llama.session import EngineOptions, LlamaModel
from ggufnorm.engines.llama.stretch import cut
from ggufnorm.errors import ConfigError, MismatchError, RefusedError
from ggufnorm.formats.location import open_model
from ggufnorm.formats.naming import layer_of
from ggufnorm.runs.options import SideOptions
from tests import models
from tests.in_process import engine
from tests.models import edited, noise
from tests.processes import ggufnorm as run
from tests.processes import one_line_error

MODELS: dict[str, Callable[[Path], Path]] = {
    "llama": models.llama, "gpt2": models.gpt2, "qwen3moe": models.qwen3moe,
    "gemma2": models.gemma2, "gemma3": models.gemma3, "deepseek2": models.deepseek2,
    "olmo": models.olmo, "stablelm": models.stablelm, "phi2": models.phi2, "mamba": models.mamba,
    "jamba": models.jamba, "bert": models.bert,
}  # fmt: skip
TEXT = "the rain in spain stays mainly in the plain and so it is said to be in the end " * 8


def trace(model: Path, out: Path, text: str, **more: Any) -> TraceFacts:
    options = SideOptions(n_ubatch=16)  # two batches a chunk
    return ggufnorm.trace(
        model, out, **{"text": text, "n_ctx": 32, "chunks": 2, "n_threads": 1, "options": options}
        | more,
    )  # fmt: skip


def poisoned(model: Path, target: Path, spared: range) -> Path:
    """A copy with no number in the layers outside a range."""
    with open_model(model) as file:
        outside = [n for n in file.tensors if (at := layer_of(n)) is not None and at not in spared]
    return edited(model, target, dict.fromkeys(outside, lambda w: np.full_like(w, np.nan)))


@pytest.mark.parametrize("arch", MODELS)
def test_parts_joined_are_the_whole_to_the_bit(
    tmp_path: Path, text: str, arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = trace_run.model_facts
    monkeypatch.setattr(
        trace_run, "model_facts", lambda file: replace(facts(file), fingerprint="the same")
    )
    model = MODELS[arch](tmp_path / "model.gguf")
    with open_model(model) as file:
        n = file.metadata.integer(f"{arch}.block_count")
    assert n
    whole, part, joined = (tmp_path / f"{name}.safetensors" for name in ("whole", "part", "joined"))
    first = poisoned(model, tmp_path / "first.gguf", range(n // 2))
    second = poisoned(model, tmp_path / "second.gguf", range(n // 2, n))
    with engine():
        trace(model, whole, text)
        assert trace(first, part, text, layers=(0, n // 2 - 1)).layers == n // 2
        assert trace(second, joined, text, layers=(n // 2, n - 1), after=part).layers is None
    a, b = load_file(whole), load_file(joined)
    assert a.keys() == b.keys()
    assert not [name for name in a if not np.array_equal(a[name], b[name], equal_nan=True)]
    assert not any(np.isnan(v).any() for v in b.values() if v.dtype != np.int32)


def test_what_crosses_the_border_beside_the_residual_stream_is_refused(
    tmp_path: Path, text: str
) -> None:
    model = models.rwkv7(tmp_path / "model.gguf")
    with pytest.raises(
        RefusedError, match=r"cannot end before layer 1: it also takes what \w+_l0 gives"
    ):
        trace(model, tmp_path / "part.safetensors", text, layers=(0, 0))


def test_two_stacks_of_layers_are_refused(tmp_path: Path, text: str) -> None:
    model = models.t5(tmp_path / "model.gguf")
    with engine(), pytest.raises(RefusedError, match="in an encoder and in a decoder"):
        trace(model, tmp_path / "part.safetensors", text, layers=(0, 0))


def test_layers_that_a_file_has_and_nothing_runs_are_not_waited_for(
    tmp_path: Path, text: str
) -> None:
    model = models.llama(tmp_path / "model.gguf")
    nodes = plan_of(model)
    tensors = frozenset(
        name for node in nodes.nodes for name in node.sources if isinstance(name, str)
    )
    found = cut(nodes, (1, 2), tensors, n_layers=4)
    assert found.is_last
    assert found.graph.hooks[-1].key == nodes.hooks[-1].key
    assert not cut(nodes, (0, 1), tensors, n_layers=4).is_last


def plan_of(model: Path) -> Graph:
    options = EngineOptions(32, 1)
    with (
        engine(),
        open_model(model) as file,
        LlamaModel(str(model), options) as loaded,
        LlamaRunner(loaded, options, file) as runner,
    ):
        runner.plan(runner.batches(np.arange(32, dtype=np.int32) + 5, 0))
        return runner.graphs[0]


def test_part_by_part_by_command(tiny: dict[str, Path], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    names = ("whole", "a", "b")
    whole, a, b = (tmp_path / f"{name}.safetensors" for name in names)
    command = ["trace", tiny["llama"], "-c", "32", "--chunks", "2", "-t", "1", "-f", text]
    for more in (
        ["-o", whole],
        ["-o", a, "--layers", "0-0"],
        ["-o", b, "--layers", "1-2", "--after", a],
    ):
        assert run(*command, *more).returncode == 0
    assert whole.read_bytes() == b.read_bytes()
    refused = [*command, "-o", tmp_path / "c.safetensors", "--layers"]
    one_line_error(run(*refused, "1-2"), 2, "--after")
    one_line_error(run(*refused, "1-9"), 2, "the model has layers 0-2")


def test_a_part_is_compared_with_a_model_on_its_layers_and_says_so(
    tiny: dict[str, Path], tmp_path: Path, text: str
) -> None:
    part = tmp_path / "part.safetensors"
    trace(tiny["llama"], part, text, layers=(0, 1))
    other = edited(tiny["llama"], tmp_path / "b.gguf", {"blk.1.ffn_up.weight": noise(0.05)})
    options = SideOptions(n_ubatch=16)
    same, report = (
        ggufnorm.compare(part, m, n_threads=1, options=options) for m in (tiny["llama"], other)
    )
    assert isinstance(same, DriftReport)
    assert isinstance(report, DriftReport)
    assert all(o.cumulative.rel_l2 == 0 for o in same.operations)
    assert {o.layer for o in report.operations} == {None, 0, 1}
    drifting = [o.tensor or o.node for o in report.operations if o.cumulative.rel_l2]
    assert drifting[0] == "blk.1.ffn_up.weight"
    for r in (same, report):
        assert "layers" in [s.what for s in r.skipped]
        assert "the first 2 alone" in r.verdict or "not compared" in r.verdict


def test_parts_of_other_runs_are_refused(tiny: dict[str, Path], tmp_path: Path, text: str) -> None:
    part, out = tmp_path / "part.safetensors", tmp_path / "out.safetensors"
    model = tiny["llama"]
    with engine():
        trace(model, part, text, layers=(0, 0))
        other = edited(model, tmp_path / "b.gguf", {"blk.1.ffn_up.weight": noise(0.05)})
        for source, more, said in (
            (model, {"layers": (2, 2)}, "ends with layer 0, and not 1"),
            (other, {"layers": (1, 2)}, "is of another file"),
            (model, {"layers": (1, 2), "chunks": 1}, "2 chunks of 32 tokens"),
            (model, {"layers": (1, 2), "text": "in the end " + text}, "another text"),
        ):
            with pytest.raises(MismatchError, match=said):
                trace(source, out, **{"text": text, "after": part} | more)
        with pytest.raises(ConfigError, match="start from the text"):
            trace(model, out, text, layers=(0, 1), after=part)
        half = tmp_path / "half.safetensors"
        trace(model, half, text, layers=(0, 0), dtype="f16")
        with pytest.raises(MismatchError, match="every token in f32"):
            trace(model, out, text, layers=(1, 2), after=half)
    assert not out.exists()
