"""The answer comes first, and says before all else what it does not rest on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ggufnorm.core.attribution import AttributionReport
from ggufnorm.core.audit import AuditSet, AuditSummary
from ggufnorm.core.drift import DriftReport, DriftSet
from ggufnorm.core.model import InspectionSet, Skipped
from ggufnorm.core.severity import severity
from ggufnorm.report.formats import render
from ggufnorm.report.kinds import BY_NAME, reports_of
from tests.processes import ggufnorm as run
from tests.results import audit_report, drift_report, inspection, one_of_each


def headline(result: object) -> str:
    return reports_of(result)[0].headline  # type: ignore[arg-type]


def scored(n: int, **more: object) -> DriftReport:
    report = drift_report()
    assert report.logits is not None
    return replace(report, logits=replace(report.logits, n_tokens=n, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", BY_NAME)
def test_text_begins_with_the_headline_or_the_verdict(kind: str) -> None:
    result = one_of_each()[kind]
    (first, *_) = reports_of(result)
    lines = render(result, width=1000).splitlines()
    assert lines[0] == first.title
    assert lines[1] == (first.headline or first.verdict[0].text)


def test_the_first_lines_of_a_drift_hold_all_that_is_asked_for() -> None:
    lines = render(drift_report()).splitlines()
    assert [line.split("  ")[0] for line in lines[1:6]] == [
        "Nothing is out of line", "Severity", "KL divergence", "Same top token", "Perplexity",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kld", "word"),
    [(0.0, "none"), (0.001, "negligible"), (0.004, "slight"), (0.02, "moderate"),
     (0.2, "large"), (0.9, "severe")],
)  # fmt: skip
def test_severity_is_a_word(kld: float, word: str) -> None:
    assert severity(kld) == word
    assert f"Severity           {word}" in render(scored(2040, mean_kld=kld))


def test_the_yardstick_is_the_type_that_the_file_claims() -> None:
    report = drift_report()
    assert "Q4_K_M costs Llama 3 8B 0.0313; for this model none is known" in render(report)
    large = replace(report, reference=replace(report.reference, n_bytes=16_000_000_000))
    assert "Q4_K_M costs Llama 2 7B 0.0127 and Llama 3 8B 0.0313" in render(large)
    odd = replace(report, quant=replace(report.quant, file_type="MOSTLY_IQ4_NL"))
    assert "more than Q8_0 costs Llama 3 8B" in render(odd)


# -- nothing is concluded from nothing ---------------------------------------------------------


def test_few_positions_are_told_first_and_called_neither_fine_nor_bad() -> None:
    for n, said in ((1, "Only 1 scored position"), (99, "Only 99 scored positions")):
        report = scored(n, mean_kld=0.9)
        (view,) = reports_of(report)
        assert view.headline == f"{said}. Nothing is out of line"
        assert view.status == "warning"
        assert "Severity           not known" in render(report)
        assert "-f FILE" in view.next_step
    assert headline(scored(100)) == "Nothing is out of line"


def test_a_run_that_was_cut_short_says_so_first() -> None:
    report = drift_report()
    cut = replace(report, run=replace(report.run, n_chunks=1, cut="the budget of 5 s was spent"))
    said = "Only 1 of 8 chunks were run (the budget of 5 s was spent). "
    assert headline(cut) == f"{said}Nothing is out of line"
    assert headline(DriftSet((report, cut))).startswith("1 of 2 were not compared in full. ")
    faulty = drift_report(faulty=True)
    cut = replace(faulty, run=replace(faulty.run, n_chunks=1))
    assert headline(cut).startswith("Out of line: blk.1.ffn_down.weight, layer 1. Only 1 of 8 ")


def test_what_was_not_compared_at_all_is_told_first() -> None:
    blind = replace(drift_report(), logits=None, embedding=None)
    assert headline(blind).startswith("Neither predictions nor an embedding were compared. ")
    assert headline(replace(blind, operations=())).startswith("No operation was compared; ")
    nan = scored(0, non_finite_tokens=510, mean_kld=None)
    assert headline(nan).startswith(
        "Only 0 scored positions; 510 positions with NaN or infinite logits were left out. "
    )


def attribution(**changes: object) -> AttributionReport:
    report = one_of_each()["ggufnorm/attribute"]
    assert isinstance(report, AttributionReport)
    return replace(report, **changes)  # type: ignore[arg-type]


def test_an_attribution_without_shares_does_not_say_that_nothing_costs_anything() -> None:
    whole = attribution()
    full = replace(whole.run, n_chunks=whole.run.n_chunks_planned)
    whole = attribution(run=full, n_tokens=2040, interrupted=False)
    none = replace(whole, shares=())
    assert whole.unmeasured
    assert headline(none) == "No tensor's share was measured"
    same = replace(none, unmeasured=(), total_kld=0.0)
    assert headline(same) == "No tensor differs: there is nothing to attribute"
    assert headline(replace(none, total_kld=None)).startswith("Nothing was measured")
    assert headline(replace(whole, n_tokens=1)).startswith("Only 1 scored position. ")
    assert headline(replace(whole, interrupted=True)).startswith("The run was interrupted. ")


def test_a_set_says_first_which_members_were_not_read() -> None:
    lost = (Skipped("bad.gguf", "bad.gguf: is no model"),)
    assert headline(AuditSet((audit_report(),), lost)).startswith("1 of 2 models were not read; ")
    both = InspectionSet((inspection(), inspection()), lost)
    assert headline(both) == "1 of 3 models were not read"
    assert render(both, "html").count("✗ 1 of 3") == 1


def test_rules_that_were_not_run_are_counted_in_the_headline() -> None:
    found = audit_report()
    quiet = replace(found, findings=(), summary=AuditSummary(0, 0, 0, 0, 7, ("N302",)))
    assert found.not_run
    n = len(found.not_run)
    assert headline(quiet) == f"Nothing is wrong in what 1 rule looked at; {n} were not run"
    nothing = replace(quiet, summary=AuditSummary(0, 0, 0, 0, 7, ()))
    (view,) = reports_of(nothing)
    assert (view.headline, view.status) == ("Nothing was looked at: no rule was run", "warning")


# -- beside a file -----------------------------------------------------------------------------


@pytest.mark.slow
def test_with_a_file_the_answer_goes_to_standard_error(tmp_path: Path) -> None:
    saved, out = tmp_path / "x.json", tmp_path / "x.md"
    drift_report(faulty=True).save(saved)
    done = run("report", saved, "-o", out)
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "blk-Q4_K_M.gguf against blk-f16.gguf: Out of line: blk.1.ffn_down.weight, layer 1",
        "Severity slight, KL divergence 0.0042 nats, Same top token 94.70 %, Perplexity × 1.0019",
        "Next: `ggufnorm diff blk-f16.gguf blk-Q4_K_M.gguf` shows the tensor beside the others;"
        " convert or quantize it again",
        f"written to {out}",
    ]
    drift_report().save(tmp_path / "y.json")
    done = run("report", saved, tmp_path / "y.json", "-o", out)
    assert len(done.stderr.splitlines()) == 4
