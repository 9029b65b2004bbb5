"""Traces: written, read back by others, and compared with each other and with models."""

from __future__ import annotations

import errno
import json
import os
import resource
import struct
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import ggufnorm
from ggufnorm.analysis.trace import record
from ggufnorm.core.drift import DriftReport
from ggufnorm.core.logits import LogitSum
from ggufnorm.core.trace import TraceFacts
from ggufnorm.engines import worker
from ggufnorm.engines.trace.reader import Trace
from ggufnorm.errors import EngineError, InputError, MismatchError
from ggufnorm.formats.safetensors import SafetensorsReader, SafetensorsWriter
from ggufnorm.formats.safetensors_header import Entry
from ggufnorm.report.document import document
from ggufnorm.report.formats import render
from ggufnorm.samples import default_text
from tests import in_process, models, plain_decode

N_CTX, CHUNKS = 64, 3
ARCHITECTURES = ["llama", "gpt2", "qwen3moe"]


@pytest.fixture(scope="module")
def traces(
    sample: Path, sample_q4: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Of the sample and of its Q4_K_M copy."""
    folder = tmp_path_factory.mktemp("traces")
    paths = folder / "f16.safetensors", folder / "q4.safetensors"
    for model, path in zip((sample, sample_q4), paths):
        ggufnorm.trace(model, path, n_ctx=N_CTX, chunks=CHUNKS)
    return paths


@pytest.fixture(scope="module")
def expected(sample: Path, sample_q4: Path) -> DriftReport:
    return ggufnorm.drift(sample, sample_q4, n_ctx=N_CTX, chunks=CHUNKS)


def small(model: Path, out: Path, text: str, **options: Any) -> TraceFacts:
    return ggufnorm.trace(model, out, text=text, **{"n_ctx": 32, "chunks": 2, **options})


def same_figures(got: DriftReport, want: DriftReport) -> None:
    assert [o.node for o in got.operations] == [o.node for o in want.operations]
    for a, b in zip(got.operations, want.operations):
        assert a.cumulative.rel_l2 == pytest.approx(b.cumulative.rel_l2, rel=1e-6)
        assert (a.cumulative.rows, a.cumulative.max_abs) == (
            b.cumulative.rows,
            b.cumulative.max_abs,
        )
        assert a.cumulative.max_abs_token == b.cumulative.max_abs_token
        assert (a.op, a.role, a.tensor, a.layer) == (b.op, b.role, b.tensor, b.layer)
        assert (a.dtype, a.dtype_ref, a.peak, a.peak_ref) == (
            b.dtype,
            b.dtype_ref,
            b.peak,
            b.peak_ref,
        )
    assert got.logits == want.logits
    assert got.localisation.layers == want.localisation.layers
    assert got.localisation.worst_tokens == want.localisation.worst_tokens
    assert [(n.tensor, n.input, n.output) for n in got.norms] == [
        (n.tensor, n.input, n.output) for n in want.norms
    ]


# -- the same figures as drift ---------------------------------------------------------------


def test_two_traces_give_drifts_figures(traces: tuple[Path, Path], expected: DriftReport) -> None:
    same_figures(ggufnorm.compare(*traces), expected)


@pytest.mark.parametrize("model_is_reference", [False, True])
def test_a_trace_and_a_model_give_drifts_figures(
    traces: tuple[Path, Path],
    sample: Path,
    sample_q4: Path,
    expected: DriftReport,
    model_is_reference: bool,
) -> None:
    pair = (sample, traces[1]) if model_is_reference else (traces[0], sample_q4)
    report = ggufnorm.compare(*pair)
    same_figures(report, expected)
    assert (report.reference, report.quant) == (expected.reference, expected.quant)
    assert (report.run.reference, report.run.quant) == (expected.run.reference, expected.run.quant)
    for n, e in zip(report.norms, expected.norms):
        live, traced = n.recompute_residual, n.recompute_residual_ref
        live_expected = e.recompute_residual
        if model_is_reference:
            live, traced, live_expected = traced, live, e.recompute_residual_ref
        assert live == pytest.approx(live_expected, rel=1e-6)
        assert live_expected is not None
        assert traced is None
    reasons = {s.what: s.reason for s in report.skipped}
    side = "the side under test" if model_is_reference else "the reference"
    assert reasons[f"recompute of norms of {side}"] == "a trace holds no weights"


def test_a_chunk_of_several_batches_gives_drifts_figures(
    sample: Path, sample_q4: Path, tmp_path: Path
) -> None:
    """1,200 tokens take three decodes; some operations of the first show no token at all."""
    options = {"n_ctx": 1200, "chunks": 1}
    ggufnorm.trace(sample, tmp_path / "a", **options)
    ggufnorm.trace(sample_q4, tmp_path / "b", **options)
    want = ggufnorm.drift(sample, sample_q4, **options)
    same_figures(ggufnorm.compare(tmp_path / "a", tmp_path / "b"), want)
    same_figures(ggufnorm.compare(tmp_path / "a", sample_q4), want)


def test_what_only_drift_can_tell_is_left_empty(traces: tuple[Path, Path]) -> None:
    report = ggufnorm.compare(*traces)
    for part in (*report.operations, *report.norms):
        assert (part.local.rel_l2, part.local.rows, part.local.max_abs) == (None, 0, None)
    for n in report.norms:
        assert (n.recompute_residual, n.recompute_residual_ref, n.weight) == (None, None, None)
        assert n.epsilon_metadata == n.epsilon_used == n.epsilon_used_ref == 1e-5
    assert report.culprit is None
    assert "first seen at token_embd.weight" in report.verdict
    assert "cumulative drift alone" in report.verdict
    text = render(report)
    assert "all that is upstream counted in" in text
    assert "each given the reference's input" not in text
    d = json.loads(json.dumps(document(report), allow_nan=False))
    assert (d["schema"], d["version"]) == ("ggufnorm/drift", 1)


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_trace_and_its_own_model_do_not_drift(
    arch: str, dtype: str, tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    out = tmp_path / "trace"
    small(tiny[arch], out, text, dtype=dtype)
    report = ggufnorm.compare(out, tiny[arch])
    assert len(report.operations) > 20
    assert all(o.cumulative.rel_l2 == 0 and o.cumulative.rows for o in report.operations)
    assert report.logits is not None
    assert (report.logits.max_kld, report.logits.same_top1) == (0.0, 1.0)
    assert report.culprit is None
    assert report.verdict.startswith("No drift")


# -- verdicts from cumulative drift ----------------------------------------------------------


def test_a_norm_that_drifts_from_nothing_is_named(
    tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    bad = models.edited(
        tiny["llama"], tmp_path / "bad", {"blk.1.ffn_norm.weight": lambda w: w * np.float32(1.1)}
    )
    small(tiny["llama"], tmp_path / "trace", text)
    culprit = ggufnorm.compare(tmp_path / "trace", bad).culprit
    assert culprit is not None
    assert (culprit.tensor, culprit.layer) == ("blk.1.ffn_norm.weight", 1)
    assert "off by 0.1 " in culprit.reason
    assert "its weight or bias differs" in culprit.reason


def test_another_epsilon_is_told(tiny: dict[str, Path], text: str, tmp_path: Path) -> None:
    key = "llama.attention.layer_norm_rms_epsilon"
    bad = models.edited(tiny["llama"], tmp_path / "bad", floats={key: 0.5})
    small(tiny["llama"], tmp_path / "a", text)
    small(bad, tmp_path / "b", text)
    report = ggufnorm.compare(tmp_path / "a", tmp_path / "b")
    assert report.culprit is not None
    assert report.culprit.tensor == "blk.0.attn_norm.weight"
    assert "epsilon is 0.5 where the reference uses 1e-05" in report.verdict
    assert [n.epsilon_metadata for n in report.norms] == [0.5] * 7


def test_an_infinite_epsilon_is_told(tiny: dict[str, Path], text: str, tmp_path: Path) -> None:
    key = "llama.attention.layer_norm_rms_epsilon"
    bad = models.edited(tiny["llama"], tmp_path / "bad", floats={key: np.inf})
    small(tiny["llama"], tmp_path / "a", text)
    small(bad, tmp_path / "b", text)
    report = ggufnorm.compare(tmp_path / "a", tmp_path / "b")
    assert "epsilon is ∞ where the reference uses 1e-05" in report.verdict
    json.dumps(document(report), allow_nan=False)


def test_a_nan_in_a_trace_is_named_where_it_first_appears(
    tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    def poison(w: np.ndarray) -> np.ndarray:
        w[7] = np.nan
        return w

    bad = models.edited(tiny["llama"], tmp_path / "bad", {"blk.1.attn_output.weight": poison})
    small(bad, tmp_path / "trace", text)
    report = ggufnorm.compare(tiny["llama"], tmp_path / "trace")
    assert report.culprit is not None
    assert report.culprit.tensor == "blk.1.attn_output.weight"
    assert report.logits is not None
    assert report.logits.non_finite_tokens == 2 * 15


# -- the file, read by others ----------------------------------------------------------------


def test_the_safetensors_library_reads_what_llama_cpp_gave(
    traces: tuple[Path, Path], sample: Path
) -> None:
    logits, _ = plain_decode.logits(sample, default_text(), n_ctx=N_CTX, chunks=CHUNKS)
    rows = plain_decode.embedding_rows(sample, default_text(), N_CTX, CHUNKS)
    with safetensors.safe_open(traces[0], "numpy") as file:
        described = file.metadata()
        facts = json.loads(described["trace"])
        got_logits = file.get_tensor("0/result_output")[:, : N_CTX // 2 - 1, 0]
        embedded = file.get_tensor("0/" + facts["batches"][0]["stops"][0]["key"])
        tokens = file.get_tensor("tokens")
        names = set(file.keys())
    assert (described["schema"], described["version"]) == ("ggufnorm/trace", "1")
    np.testing.assert_allclose(got_logits.reshape(logits.shape), logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(embedded.reshape(rows.shape), rows)
    assert (tokens.shape, tokens.dtype) == ((CHUNKS, N_CTX), np.int32)
    assert names == {"tokens", *(f"0/{s['key']}" for s in facts["batches"][0]["stops"])}
    assert facts["batches"][0]["norms"][0] == {
        "key": "blk.0.attn_norm.weight", "kind": "rms", "groups": None, "bias": None,
        "epsilon": pytest.approx(1e-5), "epsilon_metadata": 1e-5,
        "weight": "blk.0.attn_norm.weight", "layer": 0, "role": "attn",
        "input": facts["batches"][0]["stops"][0]["key"], "output": "attn_norm-0",
    }  # fmt: skip


def test_without_logits_nothing_of_the_vocabularys_width_is_stored(
    tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    facts = small(tiny["llama"], tmp_path / "trace", text, logits=False)
    with SafetensorsReader(tmp_path / "trace") as file:
        assert len(file.entries) > 20
        assert all(facts.n_vocab not in entry.shape for entry in file.entries.values())
    report = ggufnorm.compare(tmp_path / "trace", tiny["llama"])
    assert report.logits is None
    assert "logits" in {s.what for s in report.skipped}
    assert report.verdict.startswith("No drift")


def test_the_writer_puts_parts_anywhere_and_the_reader_takes_them_out(tmp_path: Path) -> None:
    entries = {"a": Entry("F32", (2, 3)), "none": Entry("F32", (2, 0, 4)), "b": Entry("I32", (2,))}
    with SafetensorsWriter(tmp_path / "f", entries, {"µ": "“text”"}) as writer:
        writer.write("b", 1, 7)
        writer.write("a", 1, [4, 5, 6])
        writer.write("a", 0, [1, 2, 3])
        with pytest.raises(ValueError, match="do not fill"):
            writer.write("a", 0, [1, 2])
    with safetensors.safe_open(tmp_path / "f", "numpy") as file:
        assert file.metadata() == {"µ": "“text”"}
        assert file.get_tensor("a").tolist() == [[1, 2, 3], [4, 5, 6]]
        assert file.get_tensor("b").tolist() == [0, 7]
    with SafetensorsReader(tmp_path / "f") as reader:
        assert reader.metadata == {"µ": "“text”"}
        assert reader.entries == entries
        assert reader.read("a", 1).tolist() == [4, 5, 6]
        assert reader.read("none", 1).shape == (0, 4)
        assert int(reader.read("b", 1)) == 7


def test_values_too_large_for_half_precision_are_refused(
    tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    loud = models.edited(
        tiny["llama"], tmp_path / "loud", {"blk.0.attn_norm.weight": lambda w: w * np.float32(1e5)}
    )
    with pytest.raises(InputError, match=r"attn_norm-0 reaches .* use --dtype f32"):
        small(loud, tmp_path / "trace", text, dtype="f16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["loud"]


# -- budgets ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thin(
    sample: Path,
    sample_q4: Path,
    traces: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    """As ``traces``, in a third of the room, and in a fifth."""
    folder = tmp_path_factory.mktemp("thin")
    paths = folder / "third", folder / "fifth"
    full = traces[0].stat().st_size
    for model, path, share in zip((sample, sample_q4), paths, (3, 5)):
        ggufnorm.trace(model, path, n_ctx=N_CTX, chunks=CHUNKS, budget=full // share)
        assert 0.5 * full / share < path.stat().st_size <= full // share
    return paths


@pytest.mark.parametrize("which", ["both thin", "one thin", "beside a model"])
def test_figures_of_kept_tokens_are_right(
    which: str, thin: tuple[Path, Path], traces: tuple[Path, Path], sample_q4: Path
) -> None:
    """An independent selection of the same tokens from the full traces, in plain NumPy."""
    with Trace(thin[0]) as a, Trace(thin[1]) as b:
        strides = a.facts.stride, b.facts.stride
    other = {"both thin": thin[1], "one thin": traces[1], "beside a model": sample_q4}[which]
    stride = int(np.lcm(*strides)) if which == "both thin" else strides[0]
    assert min(strides) > 1
    report = ggufnorm.compare(thin[0], other)
    assert any(s.what == "tokens" for s in report.skipped)
    with (
        safetensors.safe_open(traces[0], "numpy") as full_ref,
        safetensors.safe_open(traces[1], "numpy") as full_quant,
    ):
        for o in report.operations:
            r, q = (f.get_tensor(f"0/{o.node}").astype(float) for f in (full_ref, full_quant))
            covered = np.arange(N_CTX)[-r.shape[1] :]
            chosen = [i for i, t in enumerate(covered) if t % stride == stride - 1]
            r, q = r[:, chosen], q[:, chosen]
            want = np.linalg.norm(q - r) / np.linalg.norm(r)
            assert o.cumulative.rel_l2 == pytest.approx(want, rel=1e-6)
            assert o.cumulative.rows == r.shape[0] * r.shape[1] * r.shape[2]
            at = np.unravel_index(np.abs(q - r).argmax(), r.shape)
            assert o.cumulative.max_abs_token == at[0] * N_CTX + covered[chosen[at[1]]]
        scored = [t for t in range(N_CTX // 2, N_CTX - 1) if t % stride == stride - 1]
        tokens = full_ref.get_tensor("tokens")
        total = LogitSum()
        for chunk in range(CHUNKS):
            rows = [t - N_CTX // 2 for t in scored]
            r, q = (f.get_tensor("0/result_output")[chunk, rows, 0] for f in (full_ref, full_quant))
            total.add(r, q, tokens[chunk, np.array(scored) + 1])
    assert report.logits == total.result()
    for worst in report.localisation.worst_tokens:
        assert (worst.token - 1) % N_CTX in scored


def test_a_budget_counts_the_header(tiny: dict[str, Path], text: str, tmp_path: Path) -> None:
    small(tiny["llama"], tmp_path / "full", text)
    size = (tmp_path / "full").stat().st_size
    for budget, stride in ((size, 1), (size - 1, 2)):
        assert small(tiny["llama"], tmp_path / "thin", text, budget=budget).stride == stride
        assert (tmp_path / "thin").stat().st_size <= budget


def test_a_budget_that_is_too_small_is_refused(
    tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"takes at least [\d,]+ bytes, and 5,000 are allowed"):
        small(tiny["llama"], tmp_path / "trace", text, budget=5000)
    assert list(tmp_path.iterdir()) == []


def test_the_smallest_trace_still_scores_a_position(
    tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as refused:
        small(tiny["llama"], tmp_path / "trace", text, budget=1)
    least = int(str(refused.value).split("at least ")[1].split()[0].replace(",", ""))
    small(tiny["llama"], tmp_path / "trace", text, budget=least)
    assert (tmp_path / "trace").stat().st_size == least
    report = ggufnorm.compare(tmp_path / "trace", tiny["llama"])
    assert report.logits is not None
    assert report.logits.n_tokens == 2


# -- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"text": "a different text is here and it goes on for a while, " * 8}, "different texts"),
        ({"n_ctx": 16}, "chunks have 16 tokens and not 32"),
        ({"chunks": 1}, "it has 1 chunks and not 2"),
    ],
)
def test_traces_of_other_tokens_are_refused(
    tiny: dict[str, Path], text: str, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    small(tiny["llama"], tmp_path / "a", text)
    small(tiny["llama"], tmp_path / "b", **{"text": text, **options})
    with pytest.raises(MismatchError, match=words):
        ggufnorm.compare(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (models.gpt2, "the architecture is gpt2 and not llama"),
        (lambda p: models.llama(p, models.Shape(n_layer=4)), "number of layers is 4 and not 3"),
        (lambda p: models.llama(p, models.Shape(n_embd=512)), "is 512 and not 256"),
        (lambda p: models.llama(p, models.Shape(n_vocab=330)), "vocabulary is 330 and not 320"),
    ],
)
def test_other_networks_are_refused(
    other: Callable[[Path], Path], words: str, tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    small(tiny["llama"], tmp_path / "a", text)
    model = other(tmp_path / "other.gguf")
    small(model, tmp_path / "b", text)
    for quant in (model, tmp_path / "b"):
        with pytest.raises(MismatchError, match=words):
            ggufnorm.compare(tmp_path / "a", quant)


def test_two_models_are_drifts(tiny: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="use ggufnorm drift"):
        ggufnorm.compare(tiny["llama"], tiny["llama"])


def test_the_model_itself_is_not_overwritten(tmp_path: Path, text: str) -> None:
    model = models.llama(tmp_path / "m.gguf")
    before = model.read_bytes()
    with pytest.raises(InputError, match="is an input"):
        small(model, model, text)
    assert model.read_bytes() == before


# -- damaged files ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, text: str) -> bytes:
    """The bytes of a small trace."""
    folder = tmp_path_factory.mktemp("sound")
    model = models.llama(folder / "m.gguf", models.Shape(n_layer=1))
    small(model, folder / "trace", text, chunks=1)
    return (folder / "trace").read_bytes()


def with_header(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    n = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + n])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + n :]


def with_facts(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    def change_header(header: dict[str, Any]) -> None:
        facts = json.loads(header["__metadata__"]["trace"])
        change(facts)
        header["__metadata__"]["trace"] = json.dumps(facts)

    return with_header(data, change_header)


def refused(data: bytes, path: Path, words: str) -> None:
    path.write_bytes(data)
    with pytest.raises(InputError, match=words) as error:
        ggufnorm.compare(path, path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_no_traces_are_refused(sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    refused(b"", path, "0 bytes")
    refused(b"Once upon a time", path, "is a text: use ggufnorm check MODEL")
    with pytest.raises(InputError, match="announce a header"):
        Trace(path)
    refused(struct.pack("<Q", 3) + b"[1]", path, "not a JSON object")
    refused(struct.pack("<Q", 8) + b"{nothing", path, "not JSON")
    refused(struct.pack("<Q", 200_000) + b"[" * 200_000, path, "not JSON")
    refused(sound[:100], path, "announce a header")
    refused(sound[:-1], path, "truncated")
    refused(sound + b"x", path, "truncated or damaged")
    save_file({"x": np.ones(3)}, path)
    with pytest.raises(InputError, match="safetensors, but not a trace"):
        Trace(path)
    with pytest.raises(InputError, match="is a checkpoint's safetensors file without its config"):
        ggufnorm.compare(path, path)
    path.write_bytes(sound)
    with pytest.raises(InputError, match="cannot open"):
        ggufnorm.compare(path, tmp_path / "missing")


def test_headers_that_lie_are_refused(sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "trace"

    def entry(key: str, value: object) -> bytes:
        return with_header(sound, lambda h: h["tokens"].update({key: value}))

    refused(entry("shape", [1, 31]), path, "'tokens' of 124 bytes lies at 0:128")
    refused(entry("shape", [-1, -32]), path, "no shape")
    refused(entry("shape", None), path, "no shape")
    refused(entry("data_offsets", [0, 1 << 62]), path, "lies at")
    refused(entry("data_offsets", [128]), path, "no place")
    refused(entry("dtype", "U32"), path, "'tokens' is 'U32', which is not read")
    refused(with_header(sound, lambda h: h.pop("tokens")), path, "lies at")
    refused(
        with_header(sound, lambda h: h["__metadata__"].update(version="2")), path, "version '2'"
    )
    refused(with_header(sound, lambda h: h["__metadata__"].update(trace="{}")), path, "lacks")
    for key, value in (("n_ctx", 31), ("n_chunks", 2), ("stride", 0), ("stride", 2),
                       ("n_vocab", 319), ("batches", []), ("dtype", "f16"), ("dtype", "f8"),
                       ("n_ctx", "32"), ("n_chunks", -1)):  # fmt: skip
        refused(with_facts(sound, lambda f, k=key, v=value: f.update({k: v})), path, "is damaged")

    def stop(key: str, value: object) -> Callable[[dict[str, Any]], None]:
        return lambda f: f["batches"][0]["stops"][0].update({key: value})

    for key, value in (("first", 1), ("first", -1), ("rows", 2), ("channels", 1), ("key", "other"),
                       ("n_tokens", 10**30)):  # fmt: skip
        refused(with_facts(sound, stop(key, value)), path, "is damaged")
    norm = with_facts(sound, lambda f: f["batches"][0]["norms"][0].update(input="nowhere"))
    refused(norm, path, "is damaged")


def test_a_token_outside_the_vocabulary_is_refused(sound: bytes, tmp_path: Path) -> None:
    at = 8 + struct.unpack("<Q", sound[:8])[0]
    refused(sound[:at] + struct.pack("<i", 320) + sound[at + 4 :], tmp_path / "t", "vocabulary")
    refused(sound[:at] + struct.pack("<i", -1) + sound[at + 4 :], tmp_path / "t", "vocabulary")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_header_is_read_or_refused_and_nothing_else(
    data: st.DataObject, sound: bytes, tmp_path: Path
) -> None:
    n = struct.unpack("<Q", sound[:8])[0]
    damaged = bytearray(sound)
    for at in data.draw(st.lists(st.integers(0, 8 + n - 1), min_size=1, max_size=4)):
        damaged[at] = data.draw(st.integers(0, 255) | st.sampled_from(b'0189-"[]{},'))
    path = tmp_path / "trace"
    path.write_bytes(bytes(damaged))
    message = ""
    try:
        with Trace(path) as trace:
            assert len(trace.tokens) == 32
    except InputError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 1000


# -- disks -----------------------------------------------------------------------------------


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Runs the engine in this process, where it can be watched; set, the event stops it."""
    stop = threading.Event()
    monkeypatch.setattr(worker, "call", partial(in_process.call_here, cancel=stop))
    return stop


def test_a_disk_that_fills_up_leaves_nothing(
    here: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    tiny: dict[str, Path],
    text: str,
    tmp_path: Path,
) -> None:
    (tmp_path / "trace").write_text("what was there before")
    write, calls = SafetensorsWriter.write, []

    def full(self: SafetensorsWriter, *arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) > 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, *arguments)

    monkeypatch.setattr(SafetensorsWriter, "write", full)
    with pytest.raises(InputError, match=r"cannot write .*trace: No space left on device"):
        small(tiny["llama"], tmp_path / "trace", text)
    assert len(calls) > 40
    assert [p.name for p in tmp_path.iterdir()] == ["trace"]
    assert (tmp_path / "trace").read_text() == "what was there before"


def test_a_file_that_may_not_grow_leaves_nothing(
    tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    """The whole command, held to files of 1 MB by the system."""
    (tmp_path / "text").write_text(text)
    done = subprocess.run(
        [*COMMAND, "trace", tiny["llama"], "-f", tmp_path / "text", "-c", "64",
         "-o", tmp_path / "trace"],
        capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    )  # fmt: skip
    assert done.returncode == 3
    assert f"error: cannot write {tmp_path / 'trace'}: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["text"]


def test_what_does_not_fit_on_the_disk_is_refused_before_the_run(
    here: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    tiny: dict[str, Path],
    text: str,
    tmp_path: Path,
) -> None:
    usage = record.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(record.shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    with pytest.raises(InputError, match=r"and 0\.1 MB are free there: give another folder"):
        small(tiny["llama"], tmp_path / "trace", text)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_an_error(tiny: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write .*: No such file"):
        ggufnorm.trace(tiny["llama"], tmp_path / "no" / "trace")


def test_an_interrupted_trace_leaves_nothing(
    here: threading.Event, tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    seen: list[int] = []

    def stop_after_one(progress: Any) -> None:
        seen.append(progress.done)
        if progress.done == 1:
            here.set()

    with pytest.raises(KeyboardInterrupt):
        small(tiny["llama"], tmp_path / "trace", text, chunks=4, on_progress=stop_after_one)
    assert max(seen) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_crash_leaves_nothing(tiny: dict[str, Path], text: str, tmp_path: Path) -> None:
    key = "llama.attention.layer_norm_rms_epsilon"
    bad = models.edited(tiny["llama"], tmp_path / "bad.gguf", floats={key: -1.0})
    with pytest.raises(EngineError, match="SIGABRT"):
        small(bad, tmp_path / "trace", text)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.gguf"]


# -- memory ----------------------------------------------------------------------------------


def peak_of(work: Callable[[], object]) -> int:
    """Bytes that Python and NumPy held at most at one time."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_text(
    here: threading.Event, sample: Path, tmp_path: Path
) -> None:
    def trace(chunks: int) -> None:
        ggufnorm.trace(sample, tmp_path / str(chunks), n_ctx=64, chunks=chunks)

    def compare(chunks: int) -> None:
        ggufnorm.compare(tmp_path / str(chunks), tmp_path / str(chunks))

    def beside(chunks: int) -> None:
        ggufnorm.compare(tmp_path / str(chunks), sample)

    trace(2)  # what is made once, at first use, is not counted
    for work in (trace, compare, beside):
        short, long = (peak_of(partial(work, n)) for n in (2, 16))
        assert long - short < 1 << 20
    assert (tmp_path / "16").stat().st_size > 60 << 20


# -- the commands ----------------------------------------------------------------------------

COMMAND = [sys.executable, "-c", "from ggufnorm.cli.main import main; main()"]


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(os.fspath, arguments)], capture_output=True, text=True, check=False
    )


def test_trace_tells_beforehand_what_the_file_takes(
    tiny: dict[str, Path], text: str, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text(text)
    out = tmp_path / "trace"
    done = command("trace", tiny["llama"], "-f", tmp_path / "text", "-c", "32", "--chunks", "2",
                   "--budget", "0.5MB", "-o", out)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")
    assert out.stat().st_size <= 500_000
    megabytes = f"{out.stat().st_size / 1e6:.1f} MB"
    assert f"trace: {out} takes {megabytes}: 1 of " in done.stderr
    assert "of 2 chunks at 42 operations and the logits" in done.stderr


@pytest.mark.parametrize("limit", [("0", 1), ("10", 0)])
def test_compare_keeps_data_on_stdout_and_thresholds_in_its_exit_code(
    traces: tuple[Path, Path], limit: tuple[str, int], expected: DriftReport
) -> None:
    done = command("compare", *traces, "--format", "json", "--max-kld", limit[0])
    assert done.returncode == limit[1]
    found = json.loads(done.stdout)
    assert expected.logits is not None
    assert found["logits"]["mean_kld"] == expected.logits.mean_kld
    assert ("--max-kld 0: crossed" in done.stderr) == bool(limit[1])


@pytest.mark.parametrize(
    "arguments",
    [
        ["trace", "model.gguf"],
        ["trace", "model.gguf", "-o", "x", "--budget", "many"],
        ["compare", "a"],
        ["compare", "{model}", "{model}"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], tiny: dict[str, Path]) -> None:
    done = command(*(a.format(model=tiny["llama"]) for a in arguments))
    assert done.returncode == 2
    assert "Usage:" in done.stderr
    assert "Traceback" not in done.stderr
    assert ("use ggufnorm drift" in done.stderr) == (arguments[1] == "{model}")


def test_two_traces_are_compared_without_the_engine(traces: tuple[Path, Path]) -> None:
    code = """
import sys
sys.modules["llama_cpp"] = None  # as if it were not installed
import ggufnorm
print(ggufnorm.compare(*sys.argv[1:]).verdict)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *traces], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("Drift is first seen at token_embd.weight")
