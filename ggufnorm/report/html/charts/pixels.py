"""The chart of a comparison of pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggufnorm.core.pixel_report import Pipeline, PixelReport
from ggufnorm.report.formatting import printable
from ggufnorm.report.html.charts.parts import Chart, Charts, histogram, histogram_rows
from ggufnorm.report.views.pixels import CHANNELS


def pixel_charts(report: PixelReport) -> Charts:
    """How often each channel has each value, in each pipeline."""
    rows = [row for p in report.pipelines for row in _rows(p)]
    if not rows:
        return Charts({}, {})
    spec = histogram("values", "channel")
    lines = "A line for each channel of each pipeline: red solid, green dashed, blue dotted."
    chart = Chart("Values of each channel", spec, lines)
    return Charts({"values": chart}, {"values": rows})


def _rows(p: Pipeline) -> Iterator[dict[str, Any]]:
    if p.minimum is None or p.maximum is None:
        return
    for channel, counts, low, high in zip(
        CHANNELS, p.histogram, p.minimum, p.maximum, strict=False
    ):
        yield from histogram_rows(counts, low, high, pipeline=printable(p.name), channel=channel)
