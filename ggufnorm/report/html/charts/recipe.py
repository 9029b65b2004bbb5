"""The chart of a recipe."""

from __future__ import annotations

from ggufnorm.core.recipe import RecipeReport, Trial
from ggufnorm.report.formatting import printable
from ggufnorm.report.html.charts.parts import LOG, LOG_AXIS, Chart, Charts, rounded, vega_lite


def recipe_charts(report: RecipeReport) -> Charts:
    """KL divergence over size."""
    predicted = Trial("recipe, predicted", report.bytes, report.predicted_kld, None)
    tried = (report.measured_quant, predicted, report.measured, *report.uniform)
    rows = [
        {"file": printable(t.name), "MB": t.bytes / 1e6, "kld": rounded(t.kld)}
        for t in tried
        if t is not None and t.kld is not None and t.kld > 0
    ]
    if not rows:
        return Charts({}, {})
    place = {
        "x": {"field": "MB", "type": "quantitative", "scale": {"zero": False, "padding": 30}},
        "y": {
            "field": "kld",
            "type": "quantitative",
            "title": "KL divergence (nats)",
            "scale": LOG,
            "axis": LOG_AXIS,
        },
    }
    spec = vega_lite(
        "trials",
        layer=[
            {
                "mark": {"type": "point", "filled": True, "size": 70, "color": "var(--c1)"},
                "encoding": {
                    **place,
                    "tooltip": [
                        {"field": "file"},
                        {"field": "MB", "type": "quantitative", "format": ",.2f"},
                        {"field": "kld", "type": "quantitative", "format": ".3~g"},
                    ],
                },
            },
            {
                "mark": {"type": "text", "dy": -12, "fill": "var(--ink)"},
                "encoding": {**place, "text": {"field": "file"}},
            },
        ],
    )
    return Charts({"trials": Chart("KL divergence over size", spec)}, {"trials": rows})
