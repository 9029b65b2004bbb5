"""The outline of a comparison of pixels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ggufnorm.core.pixel_report import PixelReport
from ggufnorm.report.outline.parts import (
    Figure,
    Outline,
    Section,
    Table,
    findings_section,
    gallery,
    mood_of,
)
from ggufnorm.report.pixels import (
    PAIR_COLUMNS,
    PAIR_LEFT,
    PIPELINE_COLUMNS,
    PIPELINE_LEFT,
    done_line,
    expected_line,
    model_line,
    pair_rows,
    pipeline_rows,
)
from ggufnorm.report.text import number


def pixel_outline(report: PixelReport) -> Outline:
    """Whether pixels are normalized as expected, and what each pipeline feeds."""
    mood = mood_of(report.findings)
    heads = {
        "wrong": "Pixels are not as expected",
        "neutral": "Normalized as expected",
        "sound": "As expected",
    }
    source = report.image or next((p.source for p in report.pipelines), "nothing")
    return Outline(
        f"Pixels of {Path(source).name}",
        headline=heads[mood],
        verdict=report.verdict,
        mood=mood,
        figures=tuple(_figures(report)),
        sections=tuple(_sections(report)),
    )


def _figures(report: PixelReport) -> Iterator[Figure]:
    for c in report.comparisons:
        if c.rel_l2 is not None:
            note = f"{number(c.residual)} if normalized alike"
            yield Figure(f"{c.a} to {c.b}", number(c.rel_l2), f"relative L2, {note}")


def _sections(report: PixelReport) -> Iterator[Section]:
    yield from findings_section(report.findings)
    model = model_line(report)
    lines = (f"expected: {expected_line(report.expected)}", *map(done_line, report.pipelines))
    pipelines = tuple(
        dict(zip(PIPELINE_COLUMNS, row, strict=True))
        for p in report.pipelines
        for row in pipeline_rows(p)
    )
    yield Section(
        "What each pipeline feeds",
        lines=(*lines, *([model] if model else [])),
        gallery=gallery(
            "As the model sees it",
            ((p.name, p.thumbnail) for p in report.pipelines),
            "What each pipeline feeds, turned back into levels by the expected normalization:"
            " a wrong pipeline looks wrong.",
        ),
        charts=("values",),
        table=Table(pipelines, left=PIPELINE_LEFT) if pipelines else None,
    )
    pairs = tuple(dict(zip(PAIR_COLUMNS, row, strict=True)) for row in pair_rows(report))
    if pairs:
        yield Section("Differences", table=Table(pairs, left=PAIR_LEFT))
