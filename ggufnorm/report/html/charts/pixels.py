"""The chart of a comparison of pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggufnorm.core.pixel_report import Pipeline, PixelReport
from ggufnorm.report.html.charts.parts import Chart, Charts, rounded, stroke, vega_lite
from ggufnorm.report.pixels import CHANNELS
from ggufnorm.report.text import printable


def pixel_charts(report: PixelReport) -> Charts:
    """How often each channel has each value, in each pipeline."""
    rows = [row for p in report.pipelines for row in _rows(p)]
    if not rows:
        return Charts({}, {})
    spec = vega_lite(
        "values",
        layer=[
            {
                # Points that are not seen: a line is hardly to be pointed at.
                "mark": {"type": "line", "strokeWidth": 1.5, "point": {"size": 90, "opacity": 0}},
                "encoding": {
                    "x": {"field": "value", "type": "quantitative"},
                    "y": {"field": "share", "type": "quantitative", "axis": {"format": "%"}},
                    "stroke": stroke("pipeline"),
                    "detail": {"field": "channel"},
                    "tooltip": [
                        {"field": "pipeline"},
                        {"field": "channel"},
                        {"field": "value", "type": "quantitative", "format": ".3~g"},
                        {"field": "share", "type": "quantitative", "format": ".2~%"},
                    ],
                },
            }
        ],
    )
    chart = Chart("Values of each channel", spec, "A line for each channel of each pipeline.")
    return Charts({"values": chart}, {"values": rows})


def _rows(p: Pipeline) -> Iterator[dict[str, Any]]:
    if p.minimum is None or p.maximum is None:
        return
    for channel, counts, low, high in zip(
        CHANNELS, p.histogram, p.minimum, p.maximum, strict=False
    ):
        total = max(1, sum(counts))
        for i, count in enumerate(counts):
            yield {
                "pipeline": printable(p.name),
                "channel": channel,
                "value": rounded(low + (high - low) * (i + 0.5) / len(counts)),
                "share": rounded(count / total),
            }
