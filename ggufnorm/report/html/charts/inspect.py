"""The chart of an inspection."""

from __future__ import annotations

from ggufnorm.core.model import Inspection, InspectionSet
from ggufnorm.report.formatting import layer_text, printable
from ggufnorm.report.html.charts.parts import (
    Chart,
    Charts,
    Depth,
    rounded,
    stroke,
    told_apart,
    vega_lite,
)


def inspection_set_charts(result: InspectionSet) -> tuple[Charts, ...]:
    """Those of each report: what could not be read stands first, and has none."""
    unread = (Charts({}, {}),) if result.failed else ()
    return (*unread, *map(inspect_charts, result.models))


def inspect_charts(model: Inspection) -> Charts:
    """The range of every norm's weight over depth."""
    norms = [n for n in model.norms if n.weight is not None]
    depth = Depth([n.layer for n in norms])
    rows = [
        {
            "x": x,
            "tensor": printable(n.tensor or "–"),
            "role": printable(n.role),
            "layer": layer_text(n.layer),
            "kind": n.kind or "?",
            "epsilon": n.epsilon,
            **{f: rounded(getattr(n.weight, f)) for f in ("mean", "rms", "minimum", "maximum")},
        }
        for n, x in zip(norms, depth.positions, strict=True)
        if n.weight is not None and n.weight.mean is not None
    ]
    if not rows:
        return Charts({}, {})
    tooltip = [
        {"field": "tensor"},
        {"field": "layer"},
        {"field": "role"},
        {"field": "kind"},
        {"field": "epsilon", "type": "quantitative", "format": "~g"},
        *(
            {"field": f, "type": "quantitative", "format": ".4~g"}
            for f in ("mean", "rms", "minimum", "maximum")
        ),
    ]
    shared = {
        "x": {"field": "x", "type": "quantitative", "axis": depth.axis(), "scale": depth.scale()},
        "tooltip": tooltip,
    }
    y = {"type": "quantitative", "title": "weight", "scale": {"type": "symlog"}}
    spec = vega_lite(
        "weights",
        layer=[
            {
                "mark": {"type": "rule", "strokeWidth": 3, "opacity": 0.45},
                "encoding": {
                    **shared,
                    "y": {"field": "minimum", **y},
                    "y2": {"field": "maximum"},
                    "stroke": stroke("role"),
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
                "encoding": {
                    **shared,
                    "y": {"field": "mean", **y},
                    **told_apart("role"),
                },
            },
        ],
    )
    chart = Chart(
        "Weights over depth", spec, "Lines from the smallest to the largest, mean marked."
    )
    return Charts({"weights": chart}, {"weights": rows})
