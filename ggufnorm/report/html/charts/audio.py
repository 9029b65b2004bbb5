"""The chart of a comparison of spectrograms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggufnorm.core.audio_report import AudioPipeline, AudioReport
from ggufnorm.report.formatting import printable
from ggufnorm.report.html.charts.parts import Chart, Charts, histogram, histogram_rows


def audio_charts(report: AudioReport) -> Charts:
    """How often each pipeline has each value."""
    rows = [row for p in report.pipelines for row in _rows(p)]
    if not rows:
        return Charts({}, {})
    chart = Chart("Values", histogram("values"), "A line for each pipeline, without the padding.")
    return Charts({"values": chart}, {"values": rows})


def _rows(p: AudioPipeline) -> Iterator[dict[str, Any]]:
    if p.minimum is not None and p.maximum is not None:
        yield from histogram_rows(p.histogram, p.minimum, p.maximum, pipeline=printable(p.name))
