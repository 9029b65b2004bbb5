"""Traces that ONNX Runtime makes, how they compare, and what quantization did to them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnxruntime.quantization import quantize_dynamic
from safetensors.numpy import load_file

import ggufnorm
from ggufnorm.analysis.trace.onnx import compare_with_onnx, trace_onnx
from ggufnorm.cli.main import cli
from ggufnorm.engines.trace.reader import Trace
from ggufnorm.errors import EngineMissingError, InputError, MismatchError, TextError
from tests import framework_models as made
from tests import onnx_convs, onnx_graphs

TEXT = "the rain in spain stays mainly in the plain and so it is said to be in the end " * 4
NORMS = [*(f"layers.{i}.norm.weight" for i in range(onnx_graphs.LAYERS)), "norm.weight"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float model with a tokenizer beside it."""
    folder = tmp_path_factory.mktemp("onnx")
    made.with_tokenizer(TEXT, folder)
    proto = onnx_graphs.network(onnx_graphs.weights())
    return onnx_graphs.save(proto, folder / "model.onnx")


@pytest.fixture(scope="module")
def trace(model: Path) -> Path:
    path = model.parent / "run.safetensors"
    trace_onnx(str(model), path, text=TEXT, n_ctx=16, n_threads=1)
    return path


def ran(*words: str) -> Any:
    return CliRunner().invoke(cli, list(words), standalone_mode=False)


def test_a_trace_holds_what_onnxruntime_computes(model: Path, trace: Path) -> None:
    with Trace(trace) as t:
        (batch,) = t.facts.batches
        assert [n.key for n in batch.norms] == NORMS
        assert [n.layer for n in batch.norms] == [0, 1, 2, None]
        assert {n.epsilon for n in batch.norms} == {1e-5}
        assert (t.facts.n_chunks, t.facts.n_ctx, t.facts.predicts) == (4, 16, True)
        assert t.facts.pieces[str(int(t.tokens[0]))] == "the"
        tokens = t.tokens[16:32].astype(np.int64)[None]
    proto = onnx.load(str(model))
    for name in ("h1", "n1"):
        proto.graph.output.add().name = name
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    x, y, logits = session.run(["h1", "n1", "logits"], {"input_ids": tokens})
    second = {name: values[1] for name, values in load_file(trace).items()}
    np.testing.assert_allclose(second["0/layers.1.norm.weight (input)"][:, 0], x[0], rtol=1e-5)
    np.testing.assert_allclose(second["0/layers.1.norm.weight"][:, 0], y[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(second["logits/0"], logits[0, 8:15], rtol=1e-4, atol=1e-5)


def quantized(model: Path, folder: Path) -> Path:
    quantize_dynamic(model, folder / "quantized.onnx")
    return folder / "quantized.onnx"


@pytest.mark.filterwarnings("ignore")
def test_a_trace_of_bytes_compares_with_one_of_floats(
    model: Path, trace: Path, tmp_path: Path
) -> None:
    assert max(n.output.rel_l2 for n in ggufnorm.compare(trace, trace).norms) == 0.0
    bytes_of = quantized(model, tmp_path)
    made.with_tokenizer(TEXT, tmp_path)
    trace_onnx(str(bytes_of), tmp_path / "q.safetensors", text=TEXT, n_ctx=16, n_threads=1)
    report = ggufnorm.compare(trace, tmp_path / "q.safetensors")
    assert [n.tensor for n in report.norms] == NORMS
    drift = [n.output.rel_l2 for n in report.norms]
    assert 1e-4 < min(drift) < max(drift) < 0.1
    assert all(n.output.cosine < 1 for n in report.norms)
    assert report.logits is not None
    assert 0 < report.logits.mean_kld < 0.1
    # The same again, run on the trace's tokens, without a tokenizer.
    lone = tmp_path / "lone" / "below"
    lone.mkdir(parents=True)
    bytes_of.rename(lone / "q.onnx")
    live = compare_with_onnx(str(trace), str(lone / "q.onnx"), n_threads=1)
    assert [n.output.rel_l2 for n in live.norms] == pytest.approx(drift, rel=1e-3)
    assert live.logits is not None
    assert live.logits.mean_kld == pytest.approx(report.logits.mean_kld, rel=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_a_comparison_of_floats_and_bytes_has_drift_s_statistics(
    model: Path, tmp_path: Path
) -> None:
    words = ["compare", str(model), str(quantized(model, tmp_path)), "-t", "1", "--tokens", "23"]
    (tmp_path / "text.txt").write_text(TEXT)
    words += ["-f", str(tmp_path / "text.txt")]
    (comparison,) = json.loads(ran(*words, "--format", "json").stdout)["comparisons"]
    assert [s["key"] for s in comparison["sites"]] == NORMS
    for site in comparison["sites"]:
        assert 1e-4 < site["output"]["rel_l2"] < 0.1
        assert 0.99 < site["output"]["cosine"] < 1
        assert site["output"]["rms_ratio"] == pytest.approx(1, abs=0.05)
        assert site["local"] < 1e-6
    logits = comparison["logits"]
    assert logits["n_tokens"] == 22
    assert 0 < logits["kld_percentiles"]["50"] < logits["max_kld"] < 0.1
    assert comparison["result"]["rel_l2"] > 1e-4
    for face in ("text", "markdown"):
        shown = ran(*words, "--format", face).stdout
        assert "Predictions at 22 positions" in shown
        assert "text.txt" in " ".join(shown.split()).replace(" ", "")
    assert ran(*words, "--max-kld", "1e-9").return_value == 1
    assert ran(*words, "--max-rel", "1e-5").return_value == 1
    assert not ran(*words, "--max-rel", "0.1", "--max-kld", "0.1").return_value


def test_a_comparison_says_when_its_ids_are_random(model: Path, tmp_path: Path) -> None:
    alone = tmp_path / "a" / "b" / "model.onnx"
    alone.parent.mkdir(parents=True)
    alone.write_bytes(model.read_bytes())
    done = ran("compare", str(alone), str(alone), "-t", "1", "--format", "json")
    assert json.loads(done.stdout)["text"] == "random token ids"


def test_a_changed_norm_is_the_first_to_drift(trace: Path, tmp_path: Path) -> None:
    values = onnx_graphs.weights()
    values["layers.1.norm.weight"] *= np.float32(1.5)
    wrong = onnx_graphs.save(onnx_graphs.network(values), tmp_path / "wrong.onnx")
    done = ran("compare", str(trace), str(wrong), "-t", "1", "--format", "json")
    assert done.exception is None, done.exception
    norms = json.loads(done.stdout)["norms"]
    off = [n["tensor"] for n in norms if n["output"]["rel_l2"] > 1e-6]
    assert off[0] == "layers.1.norm.weight"
    assert "layers.0.norm.weight" not in off
    assert ran("compare", str(trace), str(wrong), "-t", "1", "--max-kld", "1e-9").return_value == 1
    # Either side may be the trace.
    assert ran("compare", str(wrong), str(trace), "-t", "1").exception is None


def test_without_a_tokenizer_random_ids_or_given_ones_are_run(
    model: Path, trace: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "a" / "b" / "model.onnx"
    alone.parent.mkdir(parents=True)
    alone.write_bytes(model.read_bytes())
    out = tmp_path / "out.safetensors"
    words = ["trace", str(alone), "-o", str(out), "-c", "16", "-t", "1"]
    assert ran(*words, "--chunks", "2").exception is None
    with Trace(out) as first:
        assert (first.facts.text, first.facts.n_chunks) == ("random token ids", 2)
        ids = first.tokens
    again = trace_onnx(str(alone), tmp_path / "again.safetensors", n_ctx=16, chunks=2)
    assert again.text == "random token ids"
    with Trace(tmp_path / "again.safetensors") as second:
        np.testing.assert_array_equal(ids, second.tokens)
    assert ran(*words, "--ids", str(trace)).exception is None
    assert max(n.output.rel_l2 for n in ggufnorm.compare(trace, out).norms) == 0.0
    listed = tmp_path / "ids.txt"
    listed.write_text(" ".join(str(i % onnx_graphs.WORDS) for i in range(20)))
    assert ran(*words, "--ids", str(listed)).exception is None
    with Trace(out) as third:
        assert third.tokens.tolist() == list(range(16))


def test_a_tokenizer_that_cannot_be_run_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EngineMissingError, match="needs transformers"):
        trace_onnx(str(model), tmp_path / "out.safetensors", n_ctx=8)
    done = ran("compare", str(model), str(model), "-t", "1", "--format", "json")
    assert json.loads(done.stdout)["text"] == "random token ids"


def test_norms_of_one_weight_stay_apart(tmp_path: Path) -> None:
    proto = onnx_graphs.network(onnx_graphs.weights())
    for node in proto.graph.node:
        node.input[:] = [i.replace("layers.2.norm", "layers.1.norm") for i in node.input]
    path = onnx_graphs.save(proto, tmp_path / "shared.onnx")
    trace_onnx(str(path), tmp_path / "t.safetensors", n_ctx=8, chunks=1, n_threads=1)
    with Trace(tmp_path / "t.safetensors") as t:
        outputs = [n.output for n in t.facts.batches[0].norms]
    assert outputs[1:3] == ["layers.1.norm.weight", "layers.1.norm.weight@1"]


def test_bad_input_is_an_error_in_a_line(model: Path, trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    alone = tmp_path / "a" / "b" / "model.onnx"
    alone.parent.mkdir(parents=True)
    alone.write_bytes(model.read_bytes())
    with pytest.raises(InputError, match="no tokenizer beside it to run a text"):
        trace_onnx(str(alone), out, text=TEXT)
    with pytest.raises(TextError, match="fewer than one chunk"):
        trace_onnx(str(model), out, text="the rain")
    images = onnx_convs.save(onnx_convs.network(onnx_convs.params()), tmp_path / "images.onnx")
    with pytest.raises(InputError, match="takes no token ids"):
        trace_onnx(str(images), out)
    none = onnx_convs.save(onnx_convs.folded(), tmp_path / "none.onnx")
    with pytest.raises(InputError, match="has no norm"):
        trace_onnx(str(none), out)
    gguf = made.NETWORKS["llama"]
    file = made.write(tmp_path / "m.gguf", gguf, made.converted(made.build(gguf), gguf))
    with pytest.raises(MismatchError):
        ggufnorm.compare(trace, file)
    for text, problem in (("1 -2", "below 0"), ("", "no ids"), ("the rain", "a list of ids")):
        (tmp_path / "ids.txt").write_text(text)
        done = ran("trace", str(model), "-o", str(out), "--ids", str(tmp_path / "ids.txt"))
        assert problem in str(done.exception)
    (tmp_path / "ids.txt").write_text("1 2 3 999 " * 8)
    done = ran("trace", str(model), "-o", str(out), "--ids", str(tmp_path / "ids.txt"), "-c", "8")
    assert done.exception is not None
    for words, problem in (
        (["-ctk", "q8_0"], "--cache-type-k does not go with ONNX"),
        (["--trust-remote-code"], "goes with hf:FOLDER only"),
        (["--ids", "x", "-f", "y"], "--ids does not go with -f"),
    ):
        assert problem in str(ran("trace", str(model), "-o", str(out), *words).exception)
    assert "--ids does not go with a GGUF" in str(
        ran("trace", str(file), "-o", str(out), "--ids", "x").exception
    )
    assert "does not go with traces" in str(
        ran("compare", str(trace), str(model), "--max-rel", "1").exception
    )
    assert not out.exists()
