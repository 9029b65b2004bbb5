"""The charts of an attribution."""

from __future__ import annotations

from ggufnorm.core.attribution import AttributionReport, Restoration, Share
from ggufnorm.report.formatting import layer_text, printable
from ggufnorm.report.html.charts.parts import (
    Chart,
    Charts,
    Depth,
    Rows,
    rounded,
    vega_lite,
)

_MOST_SHARES = 30
_LINE = 20
"""Pixels of a bar with the space beside it."""


def attribution_charts(report: AttributionReport) -> Charts:
    """Shares as bars, and what is left behind each norm."""
    charts, datasets = {}, {}
    shares = [s for s in report.shares if s.share][:_MOST_SHARES]
    if shares:
        charts["shares"], datasets["shares"] = _shares(shares)
    restored = [r for r in report.restorations if r.share is not None]
    if restored:
        charts["restorations"], datasets["restorations"] = _restorations(restored)
    return Charts(charts, datasets)


def _shares(shares: list[Share]) -> tuple[Chart, Rows]:
    rows = [
        {
            "tensor": printable(s.tensor or s.role or f"layer {layer_text(s.layer)}"),
            "type": printable(s.dtype or "mixed"),
            "share": rounded(s.share),
            "kld": rounded(s.kld),
            "error": rounded(s.kld_se),
            "own": rounded(s.local_rel_l2),
        }
        for s in shares
    ]
    spec = vega_lite(
        "shares",
        mark={"type": "bar", "color": "var(--c1)"},
        encoding={
            "y": {"field": "tensor", "type": "nominal", "sort": None, "title": None},
            "x": {
                "field": "share",
                "type": "quantitative",
                "title": "share of the KL divergence",
                "axis": {"format": "%"},
            },
            "tooltip": [
                {"field": "tensor"},
                {"field": "type"},
                {"field": "share", "format": ".1%"},
                {"field": "kld", "title": "KL divergence", "format": ".3~g"},
                {"field": "error", "title": "±", "format": ".2~g"},
                {"field": "own", "title": "own error", "format": ".3~g"},
            ],
        },
    )
    spec["height"] = _LINE * len(rows)
    return Chart("What each costs by itself", spec), rows


def _restorations(restorations: list[Restoration]) -> tuple[Chart, Rows]:
    depth = Depth([r.layer for r in restorations])
    rows = [
        {
            "x": x,
            "norm": printable(r.tensor or r.node),
            "layer": layer_text(r.layer),
            "left": rounded(r.share),
            "kld": rounded(r.kld),
        }
        for r, x in zip(restorations, depth.positions, strict=True)
    ]
    spec = vega_lite(
        "restorations",
        mark={"type": "line", "point": {"filled": True, "size": 55}, "color": "var(--c1)"},
        encoding={
            "x": {
                "field": "x",
                "type": "quantitative",
                "axis": depth.axis(),
                "scale": depth.scale(),
            },
            "y": {
                "field": "left",
                "type": "quantitative",
                "title": "left of the KL divergence",
                "axis": {"format": "%"},
            },
            "tooltip": [
                {"field": "norm"},
                {"field": "layer"},
                {"field": "left", "format": ".1%"},
                {"field": "kld", "title": "KL divergence", "format": ".3~g"},
            ],
        },
    )
    note = "The input of one norm is made the reference's; a step down is where the loss arises."
    return Chart("What is left when a norm's input is right", spec, note), rows
