"""``attribute``: does it name what costs, and do the shares mean what they say?"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import ggufnorm
from ggufnorm.analysis.attribution import patch, run, task
from ggufnorm.analysis.attribution.patch import Patcher, most_side_by_side, side_by_side
from ggufnorm.analysis.attribution.tensors import block_of, role_of
from ggufnorm.core.attribution import AttributionReport, KldSum, Share, costly, mean_kld
from ggufnorm.core.logits import LogitSum, kl_divergences
from ggufnorm.core.progress import OnProgress, Progress
from ggufnorm.engines import worker
from ggufnorm.engines.llama import binding, session
from ggufnorm.engines.llama.quantize import quantize
from ggufnorm.engines.llama.runner import cut_chunk
from ggufnorm.engines.llama.session import EngineOptions
from ggufnorm.errors import InputError, MemoryLimitError, MismatchError, TextError
from ggufnorm.report.document import document
from ggufnorm.report.formats import render
from ggufnorm.runs.placement import Side
from ggufnorm.samples import default_text
from tests import in_process, models
from tests.processes import interrupt, interruptible

TEXT = "the rain in spain stays mainly in the plain and so it is said to be in the end " * 4


def attribute(ref: Path, quant: Path, **options: Any) -> AttributionReport:
    """On the tiny models, unless told otherwise; everything is measured."""
    given = {"text": TEXT, "n_ctx": 32, "chunks": 2, "rest": 0.0, "n_threads": 1, **options}
    with in_process.engine():
        return ggufnorm.attribute(ref, quant, **given)


def on_sample(ref: Path, quant: Path, **options: Any) -> AttributionReport:
    return attribute(ref, quant, **{"text": None, "n_ctx": 128, "chunks": 4, **options})


def of(report: AttributionReport, tensor: str) -> Share:
    (found,) = (s for s in report.shares if s.tensor == tensor)
    return found


@pytest.fixture(scope="module")
def tiny_q4(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("attribute") / "llama-q4.gguf"
    quantize(tiny["llama"], path, "Q4_K_M", n_threads=1)
    return path


@pytest.fixture(scope="module")
def tiny_report(tiny: dict[str, Path], tiny_q4: Path) -> AttributionReport:
    return attribute(tiny["llama"], tiny_q4)


@pytest.fixture(scope="module")
def sample_report(sample: Path, sample_q4: Path) -> AttributionReport:
    return on_sample(sample, sample_q4)


# -- what the shares mean ------------------------------------------------------------------


def test_planted_damage_gets_almost_all(sample: Path, tmp_path: Path) -> None:
    name = "blk.1.attn_output.weight"
    noisy = models.edited(sample, tmp_path / "noisy.gguf", {name: models.noise(4.0)})
    quantize(noisy, tmp_path / "noisy-q4.gguf", "Q4_K_M")
    report = on_sample(sample, tmp_path / "noisy-q4.gguf", chunks=2)
    assert report.shares[0].tensor == name
    assert 0.9 < (report.shares[0].share or 0) < 1.25
    assert name in report.verdict


def test_shares_of_a_trained_model_add_up(sample_report: AttributionReport) -> None:
    assert len(sample_report.shares) == 36
    assert sample_report.unmeasured == ()
    assert 0.8 < (sample_report.sum_of_shares or 0) < 1.25
    assert 0.8 < (sample_report.sum_of_layers or 0) < 1.25
    assert "add up" in sample_report.verdict


def test_shares_of_a_coarse_quantization_add_up(sample: Path, tmp_path: Path) -> None:
    quantize(sample, tmp_path / "q2.gguf", "Q2_K")
    report = on_sample(sample, tmp_path / "q2.gguf", norms=False)
    assert 0.8 < (report.sum_of_shares or 0) < 1.25
    assert report.restorations == ()


def test_the_total_is_what_drift_measures(
    sample: Path, sample_q4: Path, sample_report: AttributionReport
) -> None:
    with in_process.engine():
        logits = ggufnorm.drift(sample, sample_q4, n_ctx=128, chunks=4, n_threads=1).logits
    assert logits is not None
    assert sample_report.n_tokens == logits.n_tokens
    assert sample_report.total_kld == pytest.approx(logits.mean_kld, rel=1e-9)
    assert sample_report.total_kld_se == pytest.approx(logits.mean_kld_se, rel=1e-9)


@pytest.mark.parametrize(
    "tensor", ["token_embd.weight", "blk.0.attn_q.weight", "blk.1.ffn_down.weight", "output.weight"]
)
def test_a_share_is_what_the_tensor_costs_in_a_real_file(
    tiny: dict[str, Path],
    tiny_q4: Path,
    tiny_report: AttributionReport,
    tensor: str,
    tmp_path: Path,
) -> None:
    """The reference's file with this one tensor quantized, run free."""
    share = of(tiny_report, tensor)
    swap(tiny["llama"], tmp_path / "one.gguf", tensor, share.dtype or "")
    alone = attribute(tiny["llama"], tmp_path / "one.gguf")
    assert alone.total_kld == pytest.approx(share.kld, rel=1e-5)
    assert [s.tensor for s in alone.shares] == [tensor]
    assert alone.sum_of_shares == pytest.approx(1.0, rel=1e-5)


def swap(ref: Path, target: Path, tensor: str, dtype: str) -> None:
    """Write the reference with one tensor in another type."""
    types = {f"^{tensor.replace('.', '[.]')}$": dtype, ".": "f16"}
    quantize(ref, target, "Q4_K_M", tensor_types=types, n_threads=1)


def test_the_ranking_is_that_of_brute_force(
    sample: Path, sample_report: AttributionReport, tmp_path: Path
) -> None:
    """Every tensor swapped one at a time in a real file, which is run free."""
    expected = free_run(sample)
    found = []
    for share in sample_report.shares:
        with in_process.engine():
            swap(sample, tmp_path / "one.gguf", share.tensor or "", share.dtype or "")
        found.append((share.kld, kl_divergences(expected, free_run(tmp_path / "one.gguf")).mean()))
    measured, brute = np.array(found).T
    once = [s.tensor != "token_embd.weight" for s in sample_report.shares]  # read twice: tied
    assert measured[once] == pytest.approx(brute[once], rel=2e-3)
    assert spearman(measured, brute) >= 0.98


def free_run(path: Path) -> np.ndarray:
    """Logits of what ``on_sample`` scores, of a run that nobody watches."""
    options, found = session.EngineOptions(128, 1), []
    with (
        in_process.engine(),
        session.LlamaModel(str(path), options) as model,
        session.LlamaContext(model, options, None) as context,
    ):
        tokens = model.tokenize(default_text())
        for i in range(4):
            context.clear()
            (batch,) = cut_chunk(model, tokens[128 * i : 128 * (i + 1)], 128 * i, 128)
            context.decode(batch)
            found.append(context.logits(batch.n_outputs)[: len(batch.following)].copy())
    return np.concatenate(found)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    ranks = [x.argsort().argsort() for x in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def test_by_role_and_by_layer_list_groups(tiny: dict[str, Path], tiny_q4: Path) -> None:
    roles = attribute(tiny["llama"], tiny_q4, by="role", norms=False)
    (downs,) = (s for s in roles.shares if s.role == "ffn_down")
    assert downs.tensors == tuple(f"blk.{i}.ffn_down.weight" for i in range(3))
    assert (downs.tensor, downs.layer) == (None, None)
    layers = attribute(tiny["llama"], tiny_q4, by="layer", norms=False)
    assert sorted(s.layer for s in layers.shares if s.layer is not None) == [0, 1, 2]
    assert layers.layers == ()
    assert layers.unmeasured == ()
    one = next(s for s in layers.shares if s.layer == 1)
    assert (len(one.tensors), one.role) == (7, None)


def test_bytes_are_those_of_the_files(tiny_report: AttributionReport) -> None:
    share = of(tiny_report, "blk.0.attn_q.weight")
    assert (share.dtype_ref, share.dtype) == ("F16", "Q4_K")
    assert (share.bytes_ref, share.bytes) == (256 * 256 * 2, 256 * 144)
    assert share.kld_per_mb == pytest.approx(share.kld / (256 * 256 * 2 - 256 * 144) * 1e6)
    assert (share.layer, share.role, share.n_tokens) == (0, "attn_q", 30)


def test_the_local_error_is_drifts(
    tiny: dict[str, Path], tiny_q4: Path, tiny_report: AttributionReport
) -> None:
    with in_process.engine():
        drift = ggufnorm.drift(tiny["llama"], tiny_q4, text=TEXT, n_ctx=32, chunks=2, n_threads=1)
    local = {o.tensor: o.local.rel_l2 for o in drift.operations if o.tensor}
    for share in tiny_report.shares:
        assert share.local_rel_l2 == pytest.approx(local[share.tensor], rel=1e-6)


# -- restoration ---------------------------------------------------------------------------


def test_restoring_the_last_norm_leaves_the_output_matrix(tiny_report: AttributionReport) -> None:
    last = tiny_report.restorations[-1]
    assert (last.tensor, last.role, last.layer) == ("output_norm.weight", "output", None)
    assert last.kld == pytest.approx(of(tiny_report, "output.weight").kld, rel=1e-5)


def test_less_is_left_the_later_the_state_is_restored(sample_report: AttributionReport) -> None:
    left = [r.share for r in sample_report.restorations]
    assert len(left) == 11
    assert all(a > b for a, b in pairwise(left))
    assert 0.8 < left[0] < 1.1  # the embedding costs little, and may even cancel the rest


# -- batches -------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen3moe"])
def test_side_by_side_gives_the_same_as_alone(
    arch: str, tiny: dict[str, Path], tmp_path: Path
) -> None:
    quantize(tiny[arch], tmp_path / "q4.gguf", "Q4_K_M", n_threads=1)
    together = attribute(tiny[arch], tmp_path / "q4.gguf", n_ctx=64, chunks=1)
    with mock.patch.object(run, "most_side_by_side", return_value=1):
        alone = attribute(tiny[arch], tmp_path / "q4.gguf", n_ctx=64, chunks=1)
    assert len(together.shares) == len(alone.shares) > 10
    for a, b in zip(together.shares, alone.shares):
        assert a.tensor == b.tensor
        assert a.kld == pytest.approx(b.kld, rel=1e-6, abs=1e-12)
    for c, d in zip(together.restorations, alone.restorations):
        assert c.kld == pytest.approx(d.kld, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("build", [models.rwkv7, models.t5, models.jamba])
def test_models_with_a_state_or_an_encoder_are_run_one_by_one(
    build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = spy(monkeypatch)
    ref = build(tmp_path / "ref.gguf")
    quantize(ref, tmp_path / "q8.gguf", "Q8_0", n_threads=1)
    report = attribute(ref, tmp_path / "q8.gguf", norms=False)
    assert len(report.shares) > 20
    assert set(at_once) == {1}
    costliest = report.shares[0]
    swap(ref, tmp_path / "one.gguf", costliest.tensor or "", "Q8_0")
    alone = attribute(ref, tmp_path / "one.gguf", norms=False)
    assert alone.total_kld == pytest.approx(costliest.kld, rel=1e-5)


def spy(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many runs each context makes at once."""
    seen: list[int] = []

    class Spy(Patcher):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            seen.append(self.n_seq)

    monkeypatch.setattr(task, "Patcher", Spy)
    return seen


def test_copies_that_do_not_agree_are_given_up(
    tiny: dict[str, Path],
    tiny_q4: Path,
    tiny_report: AttributionReport,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_once = spy(monkeypatch)
    assert attribute(tiny["llama"], tiny_q4).shares == tiny_report.shares
    assert min(at_once[1:]) > 1  # the free run has its context to itself
    at_once.clear()
    monkeypatch.setattr(patch, "_NOISE", -1.0)
    assert attribute(tiny["llama"], tiny_q4).shares == tiny_report.shares
    assert set(at_once) == {1}


def test_a_chunk_of_several_batches_is_measured_whole(
    tiny: dict[str, Path], tiny_q4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "MAX_BATCH", 16)
    report = attribute(tiny["llama"], tiny_q4, n_ctx=64)
    with in_process.engine():
        drift = ggufnorm.drift(tiny["llama"], tiny_q4, text=TEXT, n_ctx=64, chunks=2, n_threads=1)
    assert report.total_kld == pytest.approx(drift.logits.mean_kld, rel=1e-9)
    share = of(report, "blk.1.attn_k.weight")
    swap(tiny["llama"], tmp_path / "one.gguf", "blk.1.attn_k.weight", "Q4_K")
    alone = attribute(tiny["llama"], tmp_path / "one.gguf", n_ctx=64)
    assert alone.total_kld == pytest.approx(share.kld, rel=1e-5)
    assert alone.n_tokens == share.n_tokens == 2 * 31


def test_values_that_are_not_in_host_memory_are_changed_through_the_backend(
    tiny: dict[str, Path],
    tiny_q4: Path,
    tiny_report: AttributionReport,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(binding, "_is_host", lambda _tensor: False)
    report = attribute(tiny["llama"], tiny_q4)
    assert report.shares == tiny_report.shares
    assert report.restorations == tiny_report.restorations


def test_patches_that_do_not_fit_into_memory_take_turns(
    tiny: dict[str, Path],
    tiny_q4: Path,
    tiny_report: AttributionReport,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(task, "_MOST_VALUES", 30_000)
    report = attribute(tiny["llama"], tiny_q4)
    assert report.shares == tiny_report.shares
    assert report.restorations == tiny_report.restorations


def test_few_places_stay_empty() -> None:
    assert [side_by_side(n, 4) for n in (1, 2, 3, 4, 5, 8, 12)] == [1, 2, 3, 4, 3, 4, 4]
    assert side_by_side(0, 4) == 1
    assert most_side_by_side(512, 32_000) == 4
    assert most_side_by_side(32, 320) == 8
    assert most_side_by_side(512, 256_000) == 2
    assert most_side_by_side(8192, 32_000) == 1


# -- nothing to find, or not enough time ---------------------------------------------------


def test_identical_files_have_nothing_to_attribute(tiny: dict[str, Path], tmp_path: Path) -> None:
    copy = models.edited(tiny["llama"], tmp_path / "copy.gguf")
    for other in (tiny["llama"], copy):
        report = attribute(tiny["llama"], other)
        assert report.total_kld == 0
        assert (report.shares, report.layers, report.unmeasured) == ((), (), ())
        assert all(r.kld == 0 for r in report.restorations)
        assert "nothing to attribute" in report.verdict


def test_an_epsilon_is_the_norms(tiny: dict[str, Path], tmp_path: Path) -> None:
    key = "llama.attention.layer_norm_rms_epsilon"
    other = models.edited(tiny["llama"], tmp_path / "eps.gguf", floats={key: 0.1})
    report = attribute(tiny["llama"], other)
    assert {s.role for s in report.shares} == {"attn_norm", "ffn_norm", "output_norm"}
    assert len(report.shares) == 7


def test_what_costs_little_is_left_and_listed(tiny: dict[str, Path], tiny_q4: Path) -> None:
    report = attribute(tiny["llama"], tiny_q4, rest=0.5)
    assert 0 < len(report.unmeasured) < 23
    assert len(report.unmeasured) + len(report.shares) == 23
    assert {u.tensor for u in report.unmeasured}.isdisjoint(s.tensor for s in report.shares)
    assert all("50 % that cost least" in u.reason for u in report.unmeasured)
    assert all((u.local_rel_l2 or 0) > 0 for u in report.unmeasured)
    assert 0 < (report.unmeasured_share or 0) <= 0.5 * (report.sum_of_layers or 0)


def test_a_spent_budget_is_told(tiny: dict[str, Path], tiny_q4: Path) -> None:
    report = attribute(tiny["llama"], tiny_q4, budget=1e-3)
    assert report.run.n_chunks == 1
    assert report.total_kld is not None
    assert report.unmeasured
    assert all("budget of 0 s was spent" in u.reason for u in report.unmeasured)
    assert not report.interrupted


def test_tensors_come_before_norms_where_time_is_short(
    tiny: dict[str, Path], tiny_q4: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        task._Attribution, "_affordable_decodes", property(lambda _self: 0.0), raising=True
    )
    report = attribute(tiny["llama"], tiny_q4, by="layer", budget=600.0)
    assert report.shares
    assert not report.restorations
    assert [s.reason for s in report.skipped if s.what == "inputs of norms"] == [
        "the budget of 600 s allowed no run of them"
    ]


def test_less_text_is_run_where_a_chunk_takes_longer_than_estimated(
    tiny: dict[str, Path], tiny_q4: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task._Attribution, "seconds_for_groups", 1e-3, raising=True)
    monkeypatch.setattr(task._Attribution, "_fit_chunks", lambda *_: 2)
    report = attribute(tiny["llama"], tiny_q4)
    assert report.run.n_chunks == 1
    assert len(report.shares) == 23
    assert {s.n_tokens for s in report.shares} == {report.n_tokens}


@pytest.mark.parametrize("after", [1, 4, 40])
def test_a_stop_keeps_what_was_measured(
    after: int, tiny: dict[str, Path], tiny_q4: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_until(task: Any, job: Any, on_progress: OnProgress, **_how: Any) -> Any:
        cancel, seen = threading.Event(), []

        def emit(progress: Progress) -> None:
            seen.append(progress)
            if sum(p.total > 0 for p in seen) >= after:
                cancel.set()

        return in_process.call_here(task, job, emit, cancel=cancel)

    with in_process.engine(), mock.patch.object(worker, "call", run_until):
        options = {"text": TEXT, "n_ctx": 32, "rest": 0.0, "n_threads": 1}
        report = ggufnorm.attribute(tiny["llama"], tiny_q4, **options)
    assert report.interrupted
    assert report.total_kld is not None
    assert {u.reason for u in report.unmeasured} <= {"interrupted"}
    assert len(report.unmeasured) + len(report.shares) == 23
    assert all(s.n_tokens > 0 for s in report.shares)


def test_interrupting_the_command_reports_what_was_done(
    sample: Path, sample_q4: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report.json"
    with interruptible("attribute", sample, sample_q4, "-o", out, "-t", "1") as process:
        assert process.stderr
        while b"runs over" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(1)
        assert "interrupted" in interrupt(process)
    report = json.loads(out.read_text())
    assert report["interrupted"]
    assert report["total_kld"] > 0
    assert report["unmeasured"]


# -- bad input -----------------------------------------------------------------------------


def test_what_predicts_nothing_is_refused(tmp_path: Path) -> None:
    bert = models.bert(tmp_path / "bert.gguf")
    with pytest.raises(InputError, match="no next-token predictions"):
        attribute(bert, bert)


def test_another_network_is_refused(tiny: dict[str, Path]) -> None:
    with pytest.raises(MismatchError, match="architecture"):
        attribute(tiny["llama"], tiny["gpt2"])


def test_a_short_text_is_refused(tiny: dict[str, Path], tiny_q4: Path) -> None:
    with pytest.raises(TextError, match="fewer than one chunk"):
        attribute(tiny["llama"], tiny_q4, text="short")
    with pytest.raises(TextError, match="empty"):
        attribute(tiny["llama"], tiny_q4, text="  ")


@pytest.mark.parametrize(
    "wrong", [{"rest": 1.5}, {"rest": -0.1}, {"budget": 0}, {"budget": float("nan")}, {"n_ctx": 4},
              {"chunks": 0}]
)  # fmt: skip
def test_arguments_out_of_range_are_refused(tiny: dict[str, Path], wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        attribute(tiny["llama"], tiny["llama"], **wrong)


def test_too_little_memory_is_told_or_fewer_runs_are_made_at_once(
    tiny: dict[str, Path], tiny_q4: Path
) -> None:
    asked: list[int] = []
    original = run.settle

    def settle(sides: Sequence[Side], **more: Any) -> list[EngineOptions]:
        n_lanes = sum(side.n_replicas for side in sides)
        asked.append(n_lanes)
        if n_lanes > 6:
            raise MemoryLimitError("too large")
        return original(sides, **more)

    with mock.patch.object(run, "settle", settle):
        assert attribute(tiny["llama"], tiny_q4, by="layer").shares
    assert asked == [18, 10, 6]


def test_a_nan_is_told_and_nothing_is_claimed(tiny: dict[str, Path], tmp_path: Path) -> None:
    name = "output_norm.weight"
    bad = models.edited(tiny["llama"], tmp_path / "nan.gguf", {name: lambda w: w * np.nan})
    report = attribute(tiny["llama"], bad)
    assert (report.total_kld, report.n_tokens) == (None, 0)
    assert "NaN" in report.verdict


# -- the report ----------------------------------------------------------------------------


def test_text_fits_100_columns(sample_report: AttributionReport) -> None:
    text = render(sample_report)
    assert max(map(len, text.splitlines())) <= 100
    assert "and 16 more" in text
    assert "output" in text.split("What is left")[1]


def test_the_document_has_the_promised_names(
    sample: Path, sample_q4: Path, sample_report: AttributionReport
) -> None:
    found = document(sample_report)
    assert (found["schema"], found["version"]) == ("ggufnorm/attribute", 1)
    assert {"total_kld", "shares", "sum_of_shares", "unmeasured", "restorations"} <= set(found)
    assert {"tensor", "layer", "kld", "kld_se", "share", "local_rel_l2", "bytes"} <= set(
        found["shares"][0]
    )
    again = document(on_sample(sample, sample_q4))
    assert again == found


def test_the_command_writes_json_and_tells_the_cost_before(
    tiny: dict[str, Path], tiny_q4: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    code = "from ggufnorm.cli.main import main; main()"
    command = [sys.executable, "-c", code, "attribute", tiny["llama"], tiny_q4, "--budget", "2m"]
    command += ["-f", tmp_path / "text.txt", "-c", "32", "--chunks", "1", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(done.stdout)["shares"]
    assert "13 runs over 1 of 1 chunks of 32 tokens" in done.stderr
    assert "the budget is 120 s" in done.stderr


@pytest.mark.parametrize("budget", ["0", "soon", "-3s"])
def test_a_budget_that_is_no_time_is_a_usage_error(budget: str) -> None:
    code = "from ggufnorm.cli.main import main; main()"
    command = [sys.executable, "-c", code, "attribute", "a", "b", f"--budget={budget}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "is not a time such as" in done.stderr


# -- pure parts ----------------------------------------------------------------------------


def test_costly_leaves_at_most_the_rest() -> None:
    klds = {"a": 5.0, "b": 3.0, "c": 1.5, "d": 0.5, "e": 0.0}
    assert costly(klds, 0.05) == ["a", "b", "c"]
    assert costly(klds, 0.0) == ["a", "b", "c", "d"]
    assert costly(klds, 1.0) == []
    assert costly({}, 0.0) == []


def test_a_mean_covers_the_positions_that_are_finite_in_both() -> None:
    free, one = KldSum(), KldSum()
    free.add(0, np.array([1.0, 2.0, np.nan]))
    free.add(1, np.array([9.0, 9.0, 9.0]))
    one.add(0, np.array([0.5, 0.5, 0.5]))
    found = mean_kld(one, free)
    assert (found.kld, found.se, found.n_tokens) == (0.5, 0.0, 2)
    assert found.share == pytest.approx(1 / 3)


def test_divergences_are_those_of_the_statistics() -> None:
    rng = np.random.default_rng(0)
    ref, quant = (rng.standard_normal((7, 50)).astype(np.float32) for _ in range(2))
    quant[3, 5] = np.inf
    statistics = LogitSum()
    statistics.add(ref, quant, np.zeros(7, np.int32))
    found = kl_divergences(ref, quant)
    assert np.isnan(found[3])
    assert found[~np.isnan(found)] == pytest.approx(statistics.columns()["kld"])


def test_names_are_cut_at_the_block() -> None:
    assert block_of("enc.blk.12.attn_q.weight") == "enc.blk.12"
    assert block_of("token_embd.weight") == "token_embd.weight"
    assert role_of("blk.3.attn_q.bias") == "attn_q.bias"
    assert role_of("blk.3.ffn_down_exps.weight") == "ffn_down_exps"
    assert role_of("output.weight") == "output"
