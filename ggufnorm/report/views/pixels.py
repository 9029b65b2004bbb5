"""The view of a comparison of pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ggufnorm.core.pixel_report import ExpectedPixels, Pipeline, PixelComparison, PixelReport
from ggufnorm.core.pixels import Three, whose_model
from ggufnorm.report.formatting import halved, number, numeric, sparkline
from ggufnorm.report.view import (
    Cell,
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

_SURE = 0.02
"""Residual up to which a picture is said to be the one."""
CHANNELS = ("red", "green", "blue")
_HEADLINES: dict[Status, str] = {
    "error": "Pixels are not as expected",
    "warning": "Whether pixels are as expected cannot be told",
    "neutral": "Normalized as expected",
    "ok": "As expected",
}


def pixel_view(report: PixelReport) -> tuple[Report, ...]:
    """Whether pixels are normalized as expected, and what each pipeline feeds."""
    answer = feed_status(report.findings)
    source = report.image or next((p.source for p in report.pipelines), "nothing")
    return (
        Report(
            f"Pixels of {Path(source).name}",
            subject=source,
            headline=_HEADLINES[answer],
            status=answer,
            figures=tuple(_figures(report)),
            sections=(
                feed_findings_section(report.findings),
                Section(
                    "What each pipeline feeds",
                    gallery=gallery(
                        "As the model sees it",
                        ((p.name, p.thumbnail) for p in report.pipelines),
                        "What each pipeline feeds, turned back into levels by the expected"
                        " normalization: a wrong pipeline looks wrong.",
                    ),
                    charts=("values",),
                    sentences=tuple(_sentences(report)),
                    table=table("pipelines", _PIPELINES, _channels(report)),
                ),
                Section(
                    "Differences",
                    table=table("comparisons", _COMPARISONS, report.comparisons, notes=_REST),
                ),
            ),
            verdict=(Sentence(report.verdict, answer),),
        ),
    )


def _figures(report: PixelReport) -> Iterator[Figure]:
    for c in report.comparisons:
        if c.rel_l2 is not None:
            note = f"relative L2, {number(c.residual)} if normalized alike"
            yield Figure(f"{c.a} to {c.b}", number(c.rel_l2), note)


def _sentences(report: PixelReport) -> Iterator[Sentence]:
    yield Sentence(_expected(report.expected), label="expected")
    for p in report.pipelines:
        yield Sentence(_done(p), "error" if p.mistakes else "neutral", p.name)
    if (m := report.model_input) is not None:
        yield Sentence(f"{m.name} takes {m.dtype}, {'×'.join(m.shape)} ({m.path})", label="ONNX")


def _expected(e: ExpectedPixels) -> str:
    n = e.normalization
    of = f", the constants of {whose_model(e.owner)}" if e.owner else ""
    mean, std = (", ".join(f"{x:.6g}" for x in numbers) for numbers in (n.mean, n.std))
    scale = "level" if n.scale == 1 else f"level / {1 / n.scale:.6g}"
    return f"({scale} - mean) / std with mean {mean} and std {std}{of} ({e.source})"


def _done(p: Pipeline) -> str:
    parts = [p.normalization]
    if p.residual is not None:
        parts.append(f"residual {number(p.residual)}")
    if p.picture is not None:
        known = p.picture_residual is not None and p.picture_residual < _SURE
        parts.append(f"picture {p.picture}" if known else f"picture most like {p.picture}")
    return "; ".join(parts)


Channel = tuple[Pipeline, int]


def _channels(report: PixelReport) -> Iterator[Channel]:
    return ((p, c) for p in report.pipelines for c in range(len(CHANNELS)))


def _size(channel: Channel) -> str:
    n, height, width, _channels = channel[0].shape
    return f"{width}×{height}" + (f" ×{n}" if n > 1 else "")


def _of(values: Callable[[Pipeline], Three | None]) -> Callable[[Channel], Cell]:
    def cell(channel: Channel) -> Cell:
        found = values(channel[0])
        return numeric(None if found is None else found[channel[1]])

    return cell


def _histogram(channel: Channel) -> str:
    p, c = channel
    return sparkline(halved(p.histogram[c])) if c < len(p.histogram) else ""


_PIPELINES: Columns[Channel] = (
    Column("Pipeline", lambda c: c[0].name, left=True),
    Column("Size", _size, priority=3),
    Column("Channel", lambda c: CHANNELS[c[1]], left=True),
    Column("Mean", _of(lambda p: p.mean)),
    Column("Std", _of(lambda p: p.std)),
    Column("Min", _of(lambda p: p.minimum), priority=2),
    Column("Max", _of(lambda p: p.maximum), priority=1),
    Column("Mean used", _of(lambda p: p.mean_used)),
    Column("Std used", _of(lambda p: p.std_used)),
    Column("Values", _histogram, left=True, priority=4),
)

_COMPARISONS: Columns[PixelComparison] = (
    Column("Pipelines", lambda c: f"{c.a}, {c.b}", left=True, least=20),
    Column("Rel L2", lambda c: numeric(c.rel_l2)),
    Column("Rest", lambda c: numeric(c.residual)),
    Column("Difference", lambda c: c.explanation, left=True, prose=True),
)
_REST = (Sentence("Rest: the difference when both are normalized alike"),)
