"""The charts of a drift report."""

from __future__ import annotations

from typing import Any

from ggufnorm.core.drift import DriftReport, OperationDrift
from ggufnorm.report.formatting import layer_text, printable, types
from ggufnorm.report.html.charts.parts import (
    LOG,
    LOG_AXIS,
    Chart,
    Charts,
    Depth,
    Rows,
    rounded,
    told_apart,
    vega_lite,
)

_ROW_HEIGHT = 17


def drift_charts(report: DriftReport) -> Charts:
    """Own error and drift over depth, both as a heat map, and the KL divergence."""
    depth = Depth([o.layer for o in report.operations])
    fault = report.culprit.node if report.culprit else None
    rows = [
        _operation(o, x, slot, o.node == fault)
        for o, x, slot in zip(report.operations, depth.positions, depth.slots, strict=True)
    ]
    at = {o.node: x for o, x in zip(report.operations, depth.positions, strict=True)}
    layers = [
        {"x": at[layer.node], "layer": layer.layer, "cumulative": rounded(layer.rel_l2)}
        for layer in report.localisation.layers
        if layer.node in at
    ]
    charts = {}
    own, cumulative = (any(row[f] for row in rows) for f in ("own", "cumulative"))
    if own:
        charts["own"] = Chart(
            "Own error of every operation, given the reference's input",
            _over_depth(depth, rows, "own", "own error (relative L2)"),
            "Relative L2, logarithmic; what adds nothing is not drawn. A click on the legend"
            " singles out what it names.",
        )
    if cumulative:
        charts["heat"] = Chart(
            "Layer by layer, operation by operation", _heat(depth, rows, switch=own)
        )
        charts["cumulative"] = Chart(
            "Drift up to every operation",
            _over_depth(depth, rows, "cumulative", "drift (relative L2)", line=bool(layers)),
            "All that is upstream counts; the line is the hidden state that leaves each layer.",
        )
    percentiles: Rows = []
    if report.logits is not None:
        found = report.logits.kld_percentiles
        percentiles = [
            {"percent": printable(p), "kld": rounded(v)} for p, v in found.items() if v > 0
        ]
    if percentiles:
        mean = report.logits.mean_kld if report.logits else None
        charts["kld"] = Chart(
            "KL divergence, percentiles over the positions",
            _percentiles(percentiles, mean),
            "In nats, logarithmic; the line is the mean.",
        )
    return Charts(charts, {"operations": rows, "layers": layers, "kld": percentiles})


def _operation(o: OperationDrift, x: float, slot: int, fault: bool) -> dict[str, Any]:
    return {
        "x": x,
        "slot": slot,
        "what": _what(o),
        "node": printable(o.node),
        "tensor": printable(o.tensor or "–"),
        "type": printable(types(o.dtype_ref, o.dtype)),
        "layer": layer_text(o.layer),
        "role": printable(o.role),
        "group": _what(o) if o.role == "matmul" else printable(o.role),
        "own": rounded(o.local.rel_l2),
        "cumulative": rounded(o.cumulative.rel_l2),
        "cosine": o.cumulative.cosine,
        "max": rounded(o.cumulative.max_abs),
        "bad": bool(o.cumulative.non_finite_rows or o.local.non_finite_rows),
        "fault": fault,
    }


def _what(o: OperationDrift) -> str:
    """The operation's name without its layer: the same in all layers."""
    name = o.tensor or o.node
    if o.layer is not None:
        parts = [p for p in name.split(".") if p not in ("blk", str(o.layer), "weight", "bias")]
        name = ".".join(parts).removesuffix(f"-{o.layer}")
    return printable(name.removesuffix(".weight"))


_OPERATION_TOOLTIP = [
    {"field": "node"},
    {"field": "tensor"},
    {"field": "type"},
    {"field": "layer"},
    {"field": "role"},
    {"field": "own", "title": "own error", "format": ".3~g", "type": "quantitative"},
    {"field": "cumulative", "title": "drift up to here", "format": ".3~g", "type": "quantitative"},
    {"field": "cosine", "format": ".6f", "type": "quantitative"},
    {"field": "max", "title": "largest difference", "format": ".3~g", "type": "quantitative"},
]


def _over_depth(
    depth: Depth, rows: Rows, field: str, title: str, *, line: bool = False
) -> dict[str, Any]:
    x = {"field": "x", "type": "quantitative", "axis": depth.axis(), "scale": depth.scale()}
    y = {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": LOG,
        "axis": LOG_AXIS,
    }
    groups = list(dict.fromkeys(row["group"] for row in rows))
    drawn = {row["group"] for row in rows if row[field]}
    points = {
        "transform": [{"filter": f"datum.{field} > 0"}],
        "params": [
            {"name": "chosen", "select": {"type": "point", "fields": ["group"]}, "bind": "legend"}
        ],
        "mark": {"type": "point", "filled": True, "size": 45},
        "encoding": {
            "x": x,
            "y": y,
            **told_apart("group", groups, [g for g in groups if g in drawn]),
            "opacity": {"condition": {"param": "chosen", "value": 0.9}, "value": 0.08},
            "tooltip": _OPERATION_TOOLTIP,
        },
    }
    ring = {
        "transform": [{"filter": f"datum.fault && datum.{field} > 0"}],
        "mark": {"type": "point", "size": 260, "stroke": "var(--error)", "strokeWidth": 2.5},
        "encoding": {"x": x, "y": y, "tooltip": _OPERATION_TOOLTIP},
    }
    under = {
        "data": {"name": "layers"},
        "transform": [{"filter": f"datum.{field} > 0"}],
        "mark": {"type": "line", "stroke": "var(--ink)", "strokeWidth": 1.5, "opacity": 0.6},
        "encoding": {"x": x, "y": y},
    }
    ringed = any(row["fault"] and row[field] for row in rows)
    layers = [*([under] if line else []), points, *([ring] if ringed else [])]
    return vega_lite("operations", layer=layers)


def _heat(depth: Depth, rows: Rows, *, switch: bool) -> dict[str, Any]:
    """Layers by operations.

    Args:
        depth: where the operations stand.
        rows: the operations.
        switch: whether there are own errors, to switch to and from.
    """
    choice = {
        "name": "shown",
        "value": _OWN if switch else _CUMULATIVE,
        "bind": {"input": "radio", "options": [_OWN, _CUMULATIVE], "name": " "},
    }
    place = {
        "x": {"field": "slot", "type": "ordinal", "axis": depth.axis(ticks=False)},
        "y": {"field": "what", "type": "nominal", "sort": None, "title": None},
        "tooltip": _OPERATION_TOOLTIP,
    }
    color = {
        "field": "value",
        "type": "quantitative",
        "scale": {"type": "log", "scheme": "viridis", "clamp": True, **_of_layers(rows)},
        "legend": {
            "title": "relative L2",
            "orient": "top",
            "gradientLength": 160,
            "format": ".1~g",
        },
    }
    filled = {
        "transform": [{"filter": "datum.value > 0"}],
        "mark": {"type": "rect"},
        "encoding": {**place, "color": color},
    }
    framed = {
        "transform": [{"filter": "datum.bad || datum.fault"}],
        "mark": {"type": "rect", "fill": None, "stroke": "var(--error)", "strokeWidth": 2},
        "encoding": place,
    }
    return vega_lite(
        "operations",
        height=_ROW_HEIGHT * len({row["what"] for row in rows}),
        params=[choice if switch else {"name": "shown", "value": _CUMULATIVE}],
        transform=[
            {"calculate": f"shown == '{_OWN}' ? datum.own : datum.cumulative", "as": "value"}
        ],
        layer=[filled, *([framed] if any(row["bad"] or row["fault"] for row in rows) else [])],
    )


def _of_layers(rows: Rows) -> dict[str, Any]:
    """The ends of the scale of colours: those of the layers.

    An embedding that is off by a hundredth of what the layers are, or an attention that adds
    a millionth, would leave all of them one colour.
    """
    ends: dict[str, Any] = {}
    for end, at in (("domainMin", _LOWEST), ("domainMax", 1.0)):
        found = []
        for field in ("own", "cumulative"):
            values = sorted(r[field] for r in rows if r[field] and r["layer"] != _OUTSIDE)
            found.append(values[int(at * (len(values) - 1))] if values else None)
        if None in found:
            return {}
        ends[end] = {"expr": f"shown == '{_OWN}' ? {found[0]} : {found[1]}"}
    return ends


_LOWEST = 0.05
"""The share of the layers' values that have the scale's lowest colour."""
_OUTSIDE = layer_text(None)
_OWN, _CUMULATIVE = "own error", "drift up to here"


def _percentiles(rows: Rows, mean: float | None) -> dict[str, Any]:
    lowest = min(row["kld"] for row in rows) / 2
    scale = {"type": "log", "domainMin": lowest, "nice": False}
    bars = {
        "mark": {"type": "bar", "color": "var(--c1)"},
        "encoding": {
            "x": {
                "field": "percent",
                "type": "ordinal",
                "sort": [row["percent"] for row in rows],
                "title": "percentile",
                "axis": {"labelAngle": 0},
            },
            "y": {
                "field": "kld",
                "type": "quantitative",
                "title": "KL divergence (nats)",
                "scale": scale,
                "axis": LOG_AXIS,
            },
            "y2": {"datum": lowest},
            "tooltip": [
                {"field": "percent", "title": "percentile"},
                {"field": "kld", "title": "KL divergence", "format": ".4~g"},
            ],
        },
    }
    line = {
        "mark": {"type": "rule", "stroke": "var(--ink)", "strokeDash": [4, 3], "tooltip": True},
        "encoding": {"y": {"datum": mean, "type": "quantitative"}},
    }
    layers = [bars, line] if mean is not None and mean > lowest else [bars]
    return vega_lite("kld", height=200, layer=layers)
