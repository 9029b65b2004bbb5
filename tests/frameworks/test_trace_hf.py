"""Traces that Transformers makes: what they hold, and how they compare."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file

import ggufnorm
from ggufnorm.analysis.trace.hf import trace_checkpoint
from ggufnorm.cli.main import cli
from ggufnorm.engines.hf.model import HFModel
from ggufnorm.engines.trace.reader import Trace
from ggufnorm.errors import InputError, MismatchError, TextError
from tests import framework_models as made

TEXT = "the rain in spain stays mainly in the plain and so it is said to be in the end " * 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trace") / "qwen3"
    return made.with_tokenizer(TEXT, made.save(made.build(made.NETWORKS["qwen3"]), folder))


@pytest.fixture(scope="module")
def trace(checkpoint: Path) -> Path:
    path = checkpoint.parent / "run.safetensors"
    trace_checkpoint(str(checkpoint), path, text=TEXT, n_ctx=16, n_threads=1)
    return path


def test_a_trace_holds_norms_residual_stream_and_logits(checkpoint: Path, trace: Path) -> None:
    with Trace(trace) as t:
        facts = t.facts
        (batch,) = facts.batches
        assert [n.key for n in batch.norms][:3] == [
            "model.layers.0.input_layernorm.weight",
            "model.layers.0.self_attn.q_norm.weight",
            "model.layers.0.self_attn.k_norm.weight",
        ]
        residual = [s.key for s in batch.stops if s.role == "residual"]
        assert residual == [f"model.layers.{i}" for i in range(made.LAYERS)]
        assert (facts.n_chunks, facts.n_ctx, facts.predicts) == (4, 16, True)
        assert (batch.first_scored, batch.n_scored) == (8, 7)
        tokens = t.tokens
    values = load_file(trace)
    ids = torch.from_numpy(tokens[16:32].astype(np.int64))[None]
    model = made.build(made.NETWORKS["qwen3"])
    with torch.inference_mode():
        expected = model(ids, output_hidden_states=True)
    second = {name: v[1] for name, v in values.items()}
    # Transformers' last hidden state is the one behind the final norm.
    for i in range(1, made.LAYERS):
        hidden = expected.hidden_states[i][0].numpy()
        np.testing.assert_allclose(second[f"0/model.layers.{i - 1}"][:, 0], hidden, rtol=1e-5)
        np.testing.assert_array_equal(
            second[f"0/model.layers.{i - 1}"],
            second[f"0/model.layers.{i}.input_layernorm (input)"],
        )
    final = expected.hidden_states[-1][0].numpy()
    np.testing.assert_allclose(second["0/model.norm"][:, 0], final, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        second["logits/0"], expected.logits[0, 8:15].numpy(), rtol=1e-4, atol=1e-5
    )


def test_a_trace_compares_with_another_of_transformers(
    checkpoint: Path, trace: Path, tmp_path: Path
) -> None:
    again = ggufnorm.compare(trace, trace)
    assert max(n.output.rel_l2 for n in again.norms) == 0.0
    model = made.build(made.NETWORKS["qwen3"])
    with torch.no_grad():
        model.model.layers[1].post_attention_layernorm.weight.mul_(1.5)
    changed = made.with_tokenizer(TEXT, made.save(model, tmp_path / "changed"))
    trace_checkpoint(str(changed), tmp_path / "b.safetensors", text=TEXT, n_ctx=16, n_threads=1)
    report = ggufnorm.compare(trace, tmp_path / "b.safetensors")
    drifting = [n.node for n in report.norms if n.output.rel_l2 > 1e-6]
    assert drifting[0] == "model.layers.1.post_attention_layernorm"
    assert report.logits is not None
    assert report.logits.mean_kld > 1e-6


def test_a_budget_and_half_precision_are_kept(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.safetensors"
    facts = trace_checkpoint(
        str(checkpoint), out, text=TEXT, n_ctx=16, n_threads=1, budget=120_000, dtype="f16"
    )
    assert out.stat().st_size <= 120_000
    assert facts.stride > 1
    with Trace(out) as t:
        assert t.facts == facts


def test_the_command_writes_a_trace_and_refuses_llama_s_options(
    checkpoint: Path, trace: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    words = ["trace", f"hf:{checkpoint}", "-o", str(tmp_path / "t.safetensors"), "-c", "16"]
    words += ["-f", str(tmp_path / "text.txt"), "-t", "1"]
    done = CliRunner().invoke(cli, words, standalone_mode=False)
    assert done.exception is None
    assert load_file(tmp_path / "t.safetensors").keys() == load_file(trace).keys()
    refused = CliRunner().invoke(cli, [*words, "-ctk", "q8_0"], standalone_mode=False)
    assert "--cache-type-k does not go with hf:FOLDER" in str(refused.exception)
    words[1] = "model.gguf"
    refused = CliRunner().invoke(cli, [*words, "--trust-remote-code"], standalone_mode=False)
    assert "goes with hf:FOLDER only" in str(refused.exception)


def test_bad_input_is_an_error_in_a_line(checkpoint: Path, trace: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(checkpoint, bare)
    (bare / "tokenizer.json").unlink()
    out = tmp_path / "out.safetensors"
    with pytest.raises(InputError, match="no tokenizer that loads"):
        trace_checkpoint(str(bare), out, text=TEXT)
    with pytest.raises(TextError, match="fewer than one chunk"):
        trace_checkpoint(str(checkpoint), out, text="the rain")
    with pytest.raises(InputError, match="cannot write"):
        trace_checkpoint(str(checkpoint), tmp_path / "no" / "out", text=TEXT, n_ctx=16)
    file = made.write(
        tmp_path / "m.gguf",
        made.NETWORKS["qwen3"],
        made.converted(made.build(made.NETWORKS["qwen3"]), made.NETWORKS["qwen3"]),
    )
    with pytest.raises(MismatchError):
        ggufnorm.compare(trace, file)
    assert not out.exists()
    assert HFModel(bare).tokenizer is None
