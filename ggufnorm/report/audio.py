"""Words and tables that the faces of a comparison of spectrograms share."""

from __future__ import annotations

from collections.abc import Iterator

from ggufnorm.core.audio_report import AudioPipeline, AudioReport
from ggufnorm.report.text import halved, number, printable, sparkline

PIPELINE_COLUMNS = ("Pipeline", "Mel bins × frames", "Mean", "Std", "Min", "Max", "Gain",
                    "Offset", "Values")  # fmt: skip
PIPELINE_LEFT = ("Pipeline", "Values")
PAIR_COLUMNS = ("Pipelines", "Rel L2", "Rest", "Difference")
PAIR_LEFT = ("Pipelines", "Difference")


def sound_line(report: AudioReport) -> str:
    """What was given."""
    s = report.sound
    channels = "1 channel" if s.channels == 1 else f"{s.channels} channels"
    peak = f"peak {number(s.peak)}"
    return printable(f"{s.path}: {s.seconds:.3g} s, {s.rate:,} Hz, {channels}, {peak}")


def expected_line(report: AudioReport) -> str:
    """What should be fed, and who says so."""
    e = report.expected
    if e is None:
        return "what the feature extractor gives: its formula is not known here"
    return printable(
        f"(max(log10 energy, maximum - 8) + 4) / 4 of {e.n_mel} mel bins and {e.n_frames:,}"
        f" frames, windows of {e.n_fft} samples every {e.hop} at {e.rate:,} Hz ({e.source})"
    )


def pipeline_rows(report: AudioReport) -> Iterator[tuple[str, ...]]:
    """One row of :data:`PIPELINE_COLUMNS` for each pipeline."""
    for p in report.pipelines:
        n, n_mel, n_frames = p.shape
        figures = (p.mean, p.std, p.minimum, p.maximum, p.gain, p.offset)
        yield (
            printable(p.name),
            f"{n_mel}×{n_frames}" + (f" ×{n}" if n > 1 else ""),
            *map(number, figures),
            sparkline(halved(p.histogram)),
        )


def done_line(p: AudioPipeline) -> str:
    """What a pipeline did, in one line."""
    rest = "" if p.residual is None else f"; residual {number(p.residual)}"
    return printable(f"{p.name}: {p.normalization}{rest}")


def pair_rows(report: AudioReport) -> Iterator[tuple[str, ...]]:
    """One row of :data:`PAIR_COLUMNS` for each comparison."""
    for c in report.comparisons:
        yield (
            printable(f"{c.a}, {c.b}"),
            number(c.rel_l2),
            number(c.residual),
            printable(c.explanation),
        )
