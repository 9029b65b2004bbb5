"""The view of a comparison of spectrograms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ggufnorm.core.audio_report import AudioComparison, AudioPipeline, AudioReport
from ggufnorm.core.log_mel import WHISPERS_FORMULA
from ggufnorm.report.formatting import counted, halved, number, numeric, sparkline
from ggufnorm.report.view import (
    Column,
    Columns,
    Figure,
    Report,
    Section,
    Sentence,
    Status,
    table,
)
from ggufnorm.report.views.common import feed_findings_section, feed_status, gallery

_HEADLINES: dict[Status, str] = {
    "error": "{} are not as expected",
    "warning": "Whether {} are as expected cannot be told",
    "neutral": "Normalized as expected, but not the same",
    "ok": "As expected",
}


def audio_view(report: AudioReport) -> tuple[Report, ...]:
    """Whether spectrograms are normalized as expected, and what each pipeline feeds."""
    answer = feed_status(report.findings)
    what = "Waveforms" if report.waveform else "Spectrograms"
    return (
        Report(
            f"{what} of {Path(report.sound.path).name}",
            subject=report.sound.path,
            headline=_HEADLINES[answer].format(what if answer == "error" else what.lower()),
            status=answer,
            figures=tuple(_figures(report)),
            verdict=(Sentence(report.verdict, answer),),
            sections=(
                feed_findings_section(report.findings),
                Section(
                    "What each pipeline feeds",
                    gallery=gallery(
                        "As the model hears it",
                        ((p.name, p.thumbnail) for p in report.pipelines),
                        "Time goes to the right, frequency up; all in the colours of the first"
                        " pipeline's range, without the padding.",
                        wide=True,
                    ),
                    charts=("values",),
                    sentences=tuple(_sentences(report)),
                    table=table("pipelines", _PIPELINES, report.pipelines),
                ),
                Section(
                    "Differences",
                    table=table("comparisons", _COMPARISONS, report.comparisons, notes=_REST),
                ),
            ),
        ),
    )


def _figures(report: AudioReport) -> Iterator[Figure]:
    for c in report.comparisons:
        if c.rel_l2 is not None:
            note = f"relative L2, {number(c.residual)} if scaled alike"
            yield Figure(f"{c.a} to {c.b}", number(c.rel_l2), note)


def _sentences(report: AudioReport) -> Iterator[Sentence]:
    yield Sentence(_sound(report), label="sound")
    yield Sentence(_expected(report), label="expected")
    for p in report.pipelines:
        rest = "" if p.residual is None else f"; residual {number(p.residual)}"
        yield Sentence(f"{p.normalization}{rest}", "error" if p.mistakes else "neutral", p.name)


def _sound(report: AudioReport) -> str:
    s = report.sound
    channels = counted(s.channels, "channel")
    return f"{s.path}: {s.seconds:.3g} s, {s.rate:,} Hz, {channels}, peak {number(s.peak)}"


def _expected(report: AudioReport) -> str:
    e, w = report.expected, report.waveform
    if w is not None:
        how = "of zero mean and unit variance" if w.normalized else "from -1 to 1, as they are"
        return f"samples at {w.rate:,} Hz, {how} ({w.source})"
    if e is None:
        return "the feature extractor's output: its formula is not known here"
    return (
        f"{e.formula or WHISPERS_FORMULA} of {e.n_mel} mel bins and {e.n_frames:,}"
        f" frames, windows of {e.n_fft} samples every {e.hop} at {e.rate:,} Hz ({e.source})"
    )


def _size(p: AudioPipeline) -> str:
    n, n_mel, n_frames = p.shape
    size = f"{n_mel}×{n_frames}" if n_mel > 1 else f"{n_frames} samples"
    return size + (f" ×{n}" if n > 1 else "")


_PIPELINES: Columns[AudioPipeline] = (
    Column("Pipeline", lambda p: p.name, left=True),
    Column("Mel bins × frames", _size, short="Mel × frames", priority=3),
    Column("Mean", lambda p: numeric(p.mean)),
    Column("Std", lambda p: numeric(p.std)),
    Column("Min", lambda p: numeric(p.minimum), priority=2),
    Column("Max", lambda p: numeric(p.maximum), priority=1),
    Column("Gain", lambda p: numeric(p.gain)),
    Column("Offset", lambda p: numeric(p.offset)),
    Column("Values", lambda p: sparkline(halved(p.histogram)), left=True, priority=4),
)

_COMPARISONS: Columns[AudioComparison] = (
    Column("Pipelines", lambda c: f"{c.a}, {c.b}", left=True, least=20),
    Column("Rel L2", lambda c: numeric(c.rel_l2)),
    Column("Rest", lambda c: numeric(c.residual)),
    Column("Difference", lambda c: c.explanation, left=True, prose=True),
)
_REST = (Sentence("Rest: the difference when both are scaled alike"),)
