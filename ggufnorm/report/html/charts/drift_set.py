"""The chart of several drift reports."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ggufnorm.core.drift import DriftSet
from ggufnorm.report.formatting import printable
from ggufnorm.report.html.charts.parts import (
    LOG,
    LOG_AXIS,
    Chart,
    Charts,
    rounded,
    stroke,
    told_apart,
    vega_lite,
)


def drift_set_charts(result: DriftSet) -> Charts:
    """Drift after each layer, a line for each model."""
    names = _distinct(Path(r.quant.path).name for r in result.reports)
    rows = [
        {
            "model": name,
            "n": n,
            "layer": layer.layer,
            "node": printable(layer.node),
            "drift": rounded(layer.rel_l2),
            "growth": rounded(layer.growth),
        }
        for name, report in zip(names, result.reports, strict=True)
        for n, layer in enumerate(report.localisation.layers)
        if layer.rel_l2 > 0
    ]
    if not rows:
        return Charts({}, {})
    place = {
        "x": {
            "field": "n",
            "type": "quantitative",
            "title": "layer",
            "axis": {"tickMinStep": 1, "format": "d"},
            "scale": {"zero": False, "nice": False, "padding": 12},
        },
        "y": {
            "field": "drift",
            "type": "quantitative",
            "title": "drift (relative L2)",
            "scale": LOG,
            "axis": LOG_AXIS,
        },
    }
    tooltip = [
        {"field": "model"},
        {"field": "layer"},
        {"field": "node"},
        {"field": "drift", "type": "quantitative", "format": ".3~g"},
        {"field": "growth", "type": "quantitative", "format": ".3~f"},
    ]
    spec = vega_lite(
        "depths",
        layer=[
            {"mark": {"type": "line"}, "encoding": {**place, "stroke": stroke("model")}},
            {
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
                "encoding": {**place, **told_apart("model"), "tooltip": tooltip},
            },
        ],
    )
    chart = Chart("Drift of the hidden state that leaves each layer", spec, "Logarithmic.")
    return Charts({"depths": chart}, {"depths": rows})


def _distinct(names: Iterable[str]) -> list[str]:
    """Names for a legend, numbered where two are the same."""
    seen: list[str] = []
    for name in map(printable, names):
        n = 2
        free = name
        while free in seen:
            free, n = f"{name} ({n})", n + 1
        seen.append(free)
    return seen
