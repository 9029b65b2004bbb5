"""The charts of results, in Vega-Lite. The only room that knows the plotting library.

A kind of result joins by one function, from the result to its :class:`Charts`. Colours are
names of the page's style, so that they follow the reader's choice of dark or light.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import vl_convert

from ggufnorm.core.diff import DiffReport
from ggufnorm.core.drift import DriftReport, DriftSet, OperationDrift
from ggufnorm.core.metrics import Difference
from ggufnorm.core.model import Inspection, InspectionSet
from ggufnorm.core.result import Result
from ggufnorm.report.html.chart import Chart, Charts
from ggufnorm.report.text import layer_cell, printable, types

Rows = list[dict[str, Any]]

_COLORS = [f"var(--c{i})" for i in range(1, 9)]
_SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]
_HEIGHT = 260
_ROW_HEIGHT = 17


@cache
def library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle


def charts_of(result: Result) -> tuple[Charts, ...]:
    """The charts of each of a result's outlines, as far as they have any."""
    if isinstance(result, Inspection):
        return (_inspection(result),)
    if isinstance(result, InspectionSet):
        return tuple(map(_inspection, result.models))
    if isinstance(result, DriftReport):
        return (_drift(result),)
    if isinstance(result, DriftSet):
        return (_drift_set(result),)
    if isinstance(result, DiffReport):
        return (_diff(result),)
    return ()


# -- drift -------------------------------------------------------------------------------


def _drift(report: DriftReport) -> Charts:
    depth = _Depth([o.layer for o in report.operations])
    fault = report.culprit.node if report.culprit else None
    rows = [
        _operation(o, x, slot, o.node == fault)
        for o, x, slot in zip(report.operations, depth.positions, depth.slots, strict=True)
    ]
    at = {o.node: x for o, x in zip(report.operations, depth.positions, strict=True)}
    layers = [
        {"x": at[layer.node], "layer": layer.layer, "cumulative": _round(layer.rel_l2)}
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
        percentiles = [{"percent": p, "kld": _round(v)} for p, v in found.items() if v > 0]
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
        "layer": layer_cell(o.layer),
        "role": printable(o.role),
        "group": _what(o) if o.role == "matmul" else printable(o.role),
        "own": _drift_of(o.local),
        "cumulative": _drift_of(o.cumulative),
        "cosine": o.cumulative.cosine,
        "max": _round(o.cumulative.max_abs),
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


def _drift_of(d: Difference) -> float | None:
    return _round(d.rel_l2)


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
    depth: _Depth, rows: Rows, field: str, title: str, *, line: bool = False
) -> dict[str, Any]:
    x = {"field": "x", "type": "quantitative", "axis": depth.axis(), "scale": depth.scale()}
    y = {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": _LOG,
        "axis": _LOG_AXIS,
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
            **_told_apart("group", groups, [g for g in groups if g in drawn]),
            "opacity": {"condition": {"param": "chosen", "value": 0.9}, "value": 0.08},
            "tooltip": _OPERATION_TOOLTIP,
        },
    }
    ring = {
        "transform": [{"filter": f"datum.fault && datum.{field} > 0"}],
        "mark": {"type": "point", "size": 260, "stroke": "var(--wrong)", "strokeWidth": 2.5},
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
    return _spec("operations", layer=layers)


def _heat(depth: _Depth, rows: Rows, *, switch: bool) -> dict[str, Any]:
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
        "scale": {"type": "log", "scheme": "viridis"},
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
        "mark": {"type": "rect", "fill": None, "stroke": "var(--wrong)", "strokeWidth": 2},
        "encoding": place,
    }
    return _spec(
        "operations",
        height=_ROW_HEIGHT * len({row["what"] for row in rows}),
        params=[choice if switch else {"name": "shown", "value": _CUMULATIVE}],
        transform=[
            {"calculate": f"shown == '{_OWN}' ? datum.own : datum.cumulative", "as": "value"}
        ],
        layer=[filled, *([framed] if any(row["bad"] or row["fault"] for row in rows) else [])],
    )


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
                "axis": _LOG_AXIS,
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
    return _spec("kld", height=200, layer=layers)


def _drift_set(result: DriftSet) -> Charts:
    names = _distinct(Path(r.quant.path).name for r in result.reports)
    rows = [
        {
            "model": name,
            "n": n,
            "layer": layer.layer,
            "node": printable(layer.node),
            "drift": _round(layer.rel_l2),
            "growth": _round(layer.growth),
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
            "scale": _LOG,
            "axis": _LOG_AXIS,
        },
    }
    tooltip = [
        {"field": "model"},
        {"field": "layer"},
        {"field": "node"},
        {"field": "drift", "type": "quantitative", "format": ".3~g"},
        {"field": "growth", "type": "quantitative", "format": ".3~f"},
    ]
    spec = _spec(
        "depths",
        layer=[
            {"mark": {"type": "line"}, "encoding": {**place, "stroke": _stroke("model")}},
            {
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
                "encoding": {**place, **_told_apart("model"), "tooltip": tooltip},
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


# -- inspect -----------------------------------------------------------------------------


def _inspection(model: Inspection) -> Charts:
    norms = [n for n in model.norms if n.weight is not None]
    depth = _Depth([n.layer for n in norms])
    rows = [
        {
            "x": x,
            "tensor": printable(n.tensor or "–"),
            "role": printable(n.role),
            "layer": layer_cell(n.layer),
            "kind": n.kind or "?",
            "epsilon": n.epsilon,
            **{f: _round(getattr(n.weight, f)) for f in ("mean", "rms", "minimum", "maximum")},
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
    spec = _spec(
        "weights",
        layer=[
            {
                "mark": {"type": "rule", "strokeWidth": 3, "opacity": 0.45},
                "encoding": {
                    **shared,
                    "y": {"field": "minimum", **y},
                    "y2": {"field": "maximum"},
                    "stroke": _stroke("role"),
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
                "encoding": {
                    **shared,
                    "y": {"field": "mean", **y},
                    **_told_apart("role"),
                },
            },
        ],
    )
    chart = Chart(
        "Weights over depth", spec, "Lines from the smallest to the largest, mean marked."
    )
    return Charts({"weights": chart}, {"weights": rows})


# -- diff --------------------------------------------------------------------------------


def _diff(report: DiffReport) -> Charts:
    changed = [t for t in report.tensors if t.rel_l2]
    if not changed:
        return Charts({}, {})
    roles = list(dict.fromkeys(t.role for t in sorted(changed, key=lambda t: t.tensor)))
    ordered = sorted(
        changed, key=lambda t: (t.layer is None, t.layer or 0, roles.index(t.role), t.tensor)
    )
    depth = _Depth([t.layer for t in ordered])
    rows = [
        {
            "x": x,
            "tensor": printable(t.tensor),
            "types": printable(types(t.dtype_a, t.dtype_b)),
            "shape": "×".join(map(str, t.shape)),
            "layer": layer_cell(t.layer),
            "rel_l2": _round(t.rel_l2),
            "sqnr": _round(t.sqnr_db),
            "max": _round(t.max_abs),
            "share": t.share,
        }
        for t, x in zip(ordered, depth.positions, strict=True)
    ]
    spec = _spec(
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
                "scale": _LOG,
                "axis": _LOG_AXIS,
            },
            **_told_apart("types"),
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


# -- shared ------------------------------------------------------------------------------


class _Depth:
    """Where things stand on an axis of layers.

    Each run of things of one layer takes a slot of width 1, and its members share it out in
    their order; a short run between two of another layer stands with these. So what is
    before the first layer and behind the last has a place, and the layers of a decoder follow
    on those of its encoder.

    Args:
        layers: of each thing, in order; None outside the blocks.
    """

    def __init__(self, layers: Sequence[int | None]) -> None:
        runs = [(layer, len(list(run))) for layer, run in groupby(layers)]
        self.slots: list[int] = []
        self._labels: list[str] = []
        current: int | None = None
        for i, (layer, length) in enumerate(runs):
            following, its_length = runs[i + 1] if i + 1 < len(runs) else (layer, 0)
            within = following == current and length < its_length
            if not self._labels or (layer != current and not within):
                self._labels.append("" if layer is None else str(layer))
                current = layer
            self.slots += [len(self._labels) - 1] * length
        width, seen = Counter(self.slots), Counter[int]()
        self.positions: list[float] = []
        for slot in self.slots:
            seen[slot] += 1
            self.positions.append(round(slot + (seen[slot] - 0.5) / width[slot], 4))

    def axis(self, *, ticks: bool = True) -> dict[str, Any]:
        """Labelled by layer, at most some forty labels."""
        every = -(-len(self._labels) // _MOST_LABELS)
        axis: dict[str, Any] = {
            "title": "layer",
            "labelExpr": f"{json.dumps(self._labels)}[datum.value]",
            "values": list(range(0, len(self._labels), every)),
            "labelAngle": 0,
            "labelOverlap": True,
        }
        return axis if ticks else axis | {"ticks": False, "domain": False}

    def scale(self) -> dict[str, Any]:
        """From the first slot to the last."""
        return {"domain": [0, max(1, len(self._labels))], "nice": False}


_MOST_LABELS = 40
_LOG = {"type": "log", "nice": False, "padding": 14}
_LOG_AXIS = {"format": ".1~g", "labelOverlap": True, "tickCount": 6}


def _told_apart(
    field: str, domain: Sequence[str] | None = None, shown: Sequence[str] | None = None
) -> dict[str, Any]:
    """By colour and by shape, with a legend.

    Args:
        field: that is told apart.
        domain: its values, in the order of colours; by default as the data come.
        shown: those that the legend names; by default all.
    """
    legend = {
        "orient": "top",
        "title": None,
        "labelLimit": 115,
        "columns": {"expr": "max(2, floor(width / 145))"},
        **({"values": shown} if shown else {}),
    }
    named = {"field": field, "type": "nominal", "sort": None, "legend": legend}
    order = {"domain": domain} if domain else {}
    return {
        "color": {**named, "scale": {"range": _COLORS, **order}},
        "shape": {**named, "scale": {"range": _SHAPES, **order}},
    }


def _stroke(field: str) -> dict[str, Any]:
    """The colours of :func:`_told_apart` for lines, which have no shape."""
    colors = {"range": _COLORS}
    return {"field": field, "type": "nominal", "sort": None, "legend": None, "scale": colors}


def _round(value: float | None) -> float | None:
    """Four digits: more cannot be seen."""
    return None if value is None else float(f"{value:.4g}")


def _spec(data: str, **parts: Any) -> dict[str, Any]:
    axis = {
        "labelColor": "var(--soft)",
        "titleColor": "var(--soft)",
        "gridColor": "var(--line)",
        "tickColor": "var(--line)",
        "domainColor": "var(--line)",
        "titleFontWeight": "normal",
    }
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container",
        "height": _HEIGHT,
        "background": None,
        "data": {"name": data},
        "config": {
            "font": "system-ui, sans-serif",
            "view": {"stroke": None},
            "axis": axis,
            "legend": {"labelColor": "var(--soft)", "titleColor": "var(--soft)"},
        },
        **parts,
    }
