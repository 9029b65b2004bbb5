"""The chart of a comparison of two files."""

from __future__ import annotations

from ggufnorm.core.diff import DiffReport
from ggufnorm.report.formatting import layer_text, printable, types
from ggufnorm.report.html.charts.parts import (
    LOG,
    LOG_AXIS,
    Chart,
    Charts,
    Depth,
    rounded,
    told_apart,
    vega_lite,
)


def diff_charts(report: DiffReport) -> Charts:
    """The difference of every tensor over depth."""
    changed = [t for t in report.tensors if t.rel_l2]
    if not changed:
        return Charts({}, {})
    roles = list(dict.fromkeys(t.role for t in sorted(changed, key=lambda t: t.tensor)))
    ordered = sorted(
        changed, key=lambda t: (t.layer is None, t.layer or 0, roles.index(t.role), t.tensor)
    )
    depth = Depth([t.layer for t in ordered])
    rows = [
        {
            "x": x,
            "tensor": printable(t.tensor),
            "types": printable(types(t.dtype_a, t.dtype_b)),
            "shape": "×".join(map(str, t.shape)),
            "layer": layer_text(t.layer),
            "rel_l2": rounded(t.rel_l2),
            "sqnr": rounded(t.sqnr_db),
            "max": rounded(t.max_abs),
            "share": t.share,
        }
        for t, x in zip(ordered, depth.positions, strict=True)
    ]
    spec = vega_lite(
        "tensors",
        mark={"type": "point", "filled": True, "size": 55, "opacity": 0.9},
        encoding={
            "x": {
                "field": "x",
                "type": "quantitative",
                "axis": depth.axis(),
                "scale": depth.scale(),
            },
            "y": {
                "field": "rel_l2",
                "type": "quantitative",
                "title": "difference (relative L2)",
                "scale": LOG,
                "axis": LOG_AXIS,
            },
            **told_apart("types"),
            "tooltip": [
                {"field": "tensor"},
                {"field": "types"},
                {"field": "shape"},
                {"field": "layer"},
                {"field": "rel_l2", "title": "relative L2", "format": ".3~g"},
                {"field": "sqnr", "title": "SQNR (dB)", "format": ".1f"},
                {"field": "max", "title": "largest difference", "format": ".3~g"},
                {"field": "share", "title": "share of the file", "format": ".1%"},
            ],
        },
    )
    chart = Chart("Difference of every tensor", spec, "Logarithmic; identical ones are not drawn.")
    return Charts({"tensors": chart}, {"tensors": rows})
