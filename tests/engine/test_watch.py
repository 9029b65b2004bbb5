"""``drift --watch`` and ``--no-local``: less is compared, nothing comes out otherwise."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from unittest import mock

import pytest
from click.testing import CliRunner

import ggufnorm
from ggufnorm.analysis.drift import task
from ggufnorm.cli.main import cli
from ggufnorm.core.behind import Behind
from ggufnorm.core.drift import DriftReport
from ggufnorm.engines.llama import runner
from ggufnorm.engines.llama.quantize import quantize
from ggufnorm.runs.probes import drift
from ggufnorm.runs.probes.drift import DriftSums
from tests import in_process, models

ARCHITECTURES = ["gpt2", "gemma3", "deepseek2", "rwkv7", "t5"]


def run(ref: Path, quant: Path, watch: str = "all", **options: object) -> DriftReport:
    return ggufnorm.drift(ref, quant, n_ctx=32, chunks=2, watch=watch, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp(request.param)
    ref = getattr(models, request.param)(folder / "f16.gguf")
    quantize(ref, folder / "q.gguf", "Q8_0")
    return [ref, folder / "q.gguf"]


@pytest.mark.parametrize("watch", ["norms", "residual", "none"])
def test_what_is_watched_is_what_it_is_in_a_whole_run(pair: list[Path], watch: str) -> None:
    whole, part = run(*pair), run(*pair, watch)
    assert part.logits == whole.logits
    assert part.culprit is None
    cumulative = {o.node: o.cumulative.rel_l2 for o in whole.operations}
    found = {o.node: o.cumulative.rel_l2 for o in part.operations}
    assert len(found) < len(cumulative)
    assert found == pytest.approx({node: cumulative[node] for node in found}, rel=1e-5)
    assert "operations" in {s.what for s in part.skipped}
    if watch == "norms":
        own = {n.node: n.local.rel_l2 for n in whole.norms}
        assert {n.node: n.local.rel_l2 for n in part.norms} == pytest.approx(own, abs=1e-7)
    else:
        assert not part.norms


def test_sums_beside_the_replicas_are_those_of_replicas_that_wait(
    pair: list[Path],
) -> None:
    ran = mock.Mock(wraps=Behind)
    reports = []
    for beside in (False, True):
        sums = partial(DriftSums, beside=beside)
        with (
            in_process.engine(),
            mock.patch.object(task, "DriftSums", sums),
            mock.patch.object(drift, "Behind", ran),
        ):
            reports.append(run(*pair, n_threads=1))
        assert ran.called == beside
    alone, shared = reports
    assert alone.operations == shared.operations
    assert alone.norms == shared.norms
    assert alone.experts == shared.experts


def test_a_norm_at_fault_is_found_among_norms_alone(tmp_path: Path) -> None:
    ref = models.llama(tmp_path / "f16.gguf")
    bad = models.edited(ref, tmp_path / "bad.gguf", {"blk.1.ffn_norm.weight": lambda w: w * 1.2})
    report = run(ref, bad, "norms")
    assert report.culprit is not None
    assert report.culprit.tensor == "blk.1.ffn_norm.weight"
    assert run(ref, bad, "residual").culprit is None


def test_nothing_is_pinned_without_own_errors(sample: Path, sample_q4: Path) -> None:
    whole = run(sample, sample_q4, floor=True)
    free = run(sample, sample_q4, floor=True, local=False)
    assert free.logits == whole.logits
    assert free.floor == whole.floor
    assert [o.cumulative for o in free.operations] == [o.cumulative for o in whole.operations]
    assert not any(o.local.rows for o in free.operations)
    assert "--no-local" in free.verdict


@pytest.mark.parametrize("watch", ["residual", "none"])
def test_every_format_shows_it(sample: Path, sample_q4: Path, tmp_path: Path, watch: str) -> None:
    report = run(sample, sample_q4, watch)
    for suffix in ("html", "md", "json"):
        report.save(tmp_path / f"report.{suffix}")
        assert f"--watch {watch}" in (tmp_path / f"report.{suffix}").read_text()


def test_an_answer_says_what_it_does_not_rest_on(sample: Path, sample_q4: Path) -> None:
    given = ["drift", str(sample), str(sample_q4), "-c", "256", "--chunks", "1", "--watch"]
    nothing = CliRunner().invoke(cli, [*given, "none"]).output
    assert "No operation was compared. Predictions drift by" in nothing.replace("\n", " ")
    assert "out of line" not in nothing
    norms = CliRunner().invoke(cli, [*given, "norms"]).output
    assert "Nothing that was watched is out of line" in norms.replace("\n", " ")
    crossed = CliRunner().invoke(cli, [*given, "none", "--max-local", "1"])
    assert crossed.exit_code == 2
    assert "--max-local needs the own errors" in crossed.output
    nobody = CliRunner().invoke(cli, [*given, "nobody"])
    assert nobody.exit_code == 2


def test_a_large_vocabulary_is_scored_in_parts(sample: Path, sample_q4: Path) -> None:
    options = {"n_ctx": 256, "chunks": 1, "n_threads": 1}
    with in_process.engine():
        whole = ggufnorm.drift(sample, sample_q4, **options)  # type: ignore[arg-type]
        with mock.patch.object(runner, "_MOST_LOGITS", 64 * 2048):
            parts = ggufnorm.drift(sample, sample_q4, **options)  # type: ignore[arg-type]
    assert parts.logits == whole.logits
    by_node = {o.node: o.local.rel_l2 for o in whole.operations}
    assert {o.node: o.local.rel_l2 for o in parts.operations} == pytest.approx(by_node, rel=1e-6)


@pytest.mark.parametrize(
    ("wanted", "n_vocab", "expected"),
    [(256, 32_000, 256), (192, 262_144, 192), (256, 262_144, 128), (512, 262_144, 192), (1, 9, 1)],
)
def test_batches_are_cut_where_attention_cuts(wanted: int, n_vocab: int, expected: int) -> None:
    assert runner.most_outputs(wanted, n_vocab) == expected
