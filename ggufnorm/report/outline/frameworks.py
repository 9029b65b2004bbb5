"""The outlines of a comparison across frameworks: one for each engine."""

from __future__ import annotations

from collections.abc import Iterator

from ggufnorm.core.frameworks import EngineComparison, FirstWrong, FrameworksReport
from ggufnorm.report.frameworks import (
    COLUMNS,
    FOLD_COLUMNS,
    FOLD_LEFT,
    LEFT,
    OPERATION_COLUMNS,
    OPERATION_LEFT,
    fold_row,
    followed,
    frameworks_title,
    notes,
    operation_row,
    site_row,
)
from ggufnorm.report.outline.drift import predictions_section
from ggufnorm.report.outline.parts import Figure, Outline, Section, Table, skipped_section
from ggufnorm.report.text import number, printable


def frameworks_outlines(report: FrameworksReport) -> tuple[Outline, ...]:
    """What each engine does otherwise than the source, and where that begins."""
    return tuple(_outline(report, comparison) for comparison in report.comparisons)


def _outline(report: FrameworksReport, comparison: EngineComparison) -> Outline:
    wrong = comparison.first_wrong
    skipped = tuple(printable(f"{s.what}: {s.reason}") for s in comparison.skipped)
    return Outline(
        frameworks_title(report, comparison),
        headline=_headline(wrong),
        verdict=printable(comparison.verdict),
        mood="wrong" if wrong else "sound",
        figures=tuple(_figures(comparison)),
        sections=(
            *_notes(comparison),
            *_tables(comparison),
            *predictions_section(comparison.logits),
            *skipped_section(skipped),
        ),
    )


def _headline(wrong: FirstWrong | None) -> str:
    if wrong is None:
        return "No mistake"
    if wrong.operation is not None:
        return printable(f"First wrong: {wrong.operation.op} {wrong.operation.name}")
    return printable(f"First wrong at {wrong.key}")


def _figures(comparison: EngineComparison) -> Iterator[Figure]:
    sites = comparison.sites
    largest = max((s.output.rel_l2 or 0.0 for s in sites), default=None)
    yield Figure("Largest difference", number(largest, 2), "of a norm's result, relative L2")
    statuses: list[str] = [*(s.status for s in sites), *(f.status for f in comparison.folds)]
    wrong = statuses.count("mistake")
    yield Figure("Norms that are wrong", f"{wrong} of {len(statuses)}")
    if comparison.logits is not None:
        value = f"{number(comparison.logits.mean_kld)} nats"
        yield Figure("KL divergence", value, f"{comparison.logits.n_tokens:,} positions")


def _notes(comparison: EngineComparison) -> tuple[Section, ...]:
    lines = tuple(notes(comparison))
    return (Section("What differs", lines=lines),) if lines else ()


def _tables(comparison: EngineComparison) -> Iterator[Section]:
    if comparison.sites:
        rows = tuple(dict(zip(COLUMNS, site_row(s), strict=True)) for s in comparison.sites)
        wrong = [i for i, s in enumerate(comparison.sites) if s.status in ("mistake", "before")]
        yield Section("Norms", table=Table(rows, left=LEFT, marked=frozenset(wrong)))
    if operations := followed(comparison):
        rows = tuple(
            dict(zip(OPERATION_COLUMNS, operation_row(o), strict=True)) for o in operations
        )
        table = Table(rows, left=OPERATION_LEFT, marked=frozenset({len(rows) - 1}))
        yield Section("Operations up to the first wrong one", table=table)
    if comparison.folds:
        rows = tuple(dict(zip(FOLD_COLUMNS, fold_row(f), strict=True)) for f in comparison.folds)
        wrong = [i for i, f in enumerate(comparison.folds) if f.status == "mistake"]
        yield Section("Batch norms", table=Table(rows, left=FOLD_LEFT, marked=frozenset(wrong)))
