"""The outline of a comparison of spectrograms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ggufnorm.core.audio_report import AudioReport
from ggufnorm.report.audio import (
    PAIR_COLUMNS,
    PAIR_LEFT,
    PIPELINE_COLUMNS,
    PIPELINE_LEFT,
    done_line,
    expected_line,
    pair_rows,
    pipeline_rows,
    sound_line,
)
from ggufnorm.report.outline.parts import (
    Figure,
    Outline,
    Section,
    Table,
    findings_section,
    gallery,
    mood_of,
)
from ggufnorm.report.text import number


def audio_outline(report: AudioReport) -> Outline:
    """Whether spectrograms are normalized as expected, and what each pipeline feeds."""
    mood = mood_of(report.findings)
    heads = {
        "wrong": "Spectrograms are not as expected",
        "neutral": "Normalized as expected, but not the same",
        "sound": "As expected",
    }
    return Outline(
        f"Spectrograms of {Path(report.sound.path).name}",
        headline=heads[mood],
        verdict=report.verdict,
        mood=mood,
        figures=tuple(_figures(report)),
        sections=tuple(_sections(report)),
    )


def _figures(report: AudioReport) -> Iterator[Figure]:
    for c in report.comparisons:
        if c.rel_l2 is not None:
            note = f"relative L2, {number(c.residual)} if scaled alike"
            yield Figure(f"{c.a} to {c.b}", number(c.rel_l2), note)


def _sections(report: AudioReport) -> Iterator[Section]:
    yield from findings_section(report.findings)
    sound = f"sound: {sound_line(report)}"
    expected = f"expected: {expected_line(report)}"
    rows = tuple(dict(zip(PIPELINE_COLUMNS, row, strict=True)) for row in pipeline_rows(report))
    yield Section(
        "What each pipeline feeds",
        lines=(sound, expected, *map(done_line, report.pipelines)),
        charts=("values",),
        table=Table(rows, left=PIPELINE_LEFT) if rows else None,
        gallery=gallery(
            "As the model hears it",
            ((p.name, p.thumbnail) for p in report.pipelines),
            "Time goes to the right, frequency up; all in the colours of the first pipeline's"
            " range, without the padding.",
            wide=True,
        ),
    )
    pairs = tuple(dict(zip(PAIR_COLUMNS, row, strict=True)) for row in pair_rows(report))
    if pairs:
        yield Section("Differences", table=Table(pairs, left=PAIR_LEFT))
