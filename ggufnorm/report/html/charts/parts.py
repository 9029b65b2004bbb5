"""What charts are made of.

Colours are names of the page's style, so that they follow the reader's choice of dark or light.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

Rows = list[dict[str, Any]]

_COLORS = [f"var(--c{i})" for i in range(1, 9)]
_SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]
_HEIGHT = 260
_MOST_LABELS = 40


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        title: what it shows.
        spec: in Vega-Lite; its data are named.
        note: how to read it.
    """

    title: str
    spec: dict[str, Any]
    note: str = ""


@dataclass(frozen=True)
class Charts:
    """The charts of one report.

    Attributes:
        charts: by the names that sections call them.
        datasets: rows by the names that charts call them.
    """

    charts: dict[str, Chart]
    datasets: dict[str, list[dict[str, Any]]]


class Depth:
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


LOG = {"type": "log", "nice": False, "padding": 14}
LOG_AXIS = {"format": ".1~g", "labelOverlap": True, "tickCount": 6}


def told_apart(
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


def stroke(field: str) -> dict[str, Any]:
    """The colours of :func:`told_apart` for lines, which have no shape."""
    colors = {"range": _COLORS}
    return {"field": field, "type": "nominal", "sort": None, "legend": None, "scale": colors}


def rounded(value: float | None) -> float | None:
    """Four digits: more cannot be seen."""
    return None if value is None else float(f"{value:.4g}")


def vega_lite(data: str, **parts: Any) -> dict[str, Any]:
    """A chart's specification.

    Args:
        data: name of its rows.
        parts: in Vega-Lite's names.
    """
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


def histogram(data: str, part: str | None = None) -> dict[str, Any]:
    """The specification of how often pipelines have a value, a line for each.

    Args:
        data: name of rows of :func:`histogram_rows`.
        part: a field that parts a pipeline's rows into lines: solid, dashed and dotted.
    """
    mark = {
        "type": "line",
        "strokeWidth": 1.5,
        # Points that are not seen: a line is hardly to be pointed at.
        "point": {"size": 90, "opacity": 0},
    }
    named = {"orient": "top", "title": None, "symbolType": "stroke", "symbolSize": 300}
    dashes = {"range": [[1, 0], [6, 3], [2, 2]]}
    parts = {"field": part, "type": "nominal", "sort": None, "legend": None, "scale": dashes}
    encoding = {
        "x": {"field": "value", "type": "quantitative"},
        "y": {"field": "share", "type": "quantitative", "axis": {"format": "%"}},
        "stroke": {**stroke("pipeline"), "legend": named},
        **({"strokeDash": parts} if part else {}),
        "tooltip": [
            {"field": "pipeline"},
            *([{"field": part}] if part else []),
            {"field": "value", "type": "quantitative", "format": ".3~g"},
            {"field": "share", "type": "quantitative", "format": ".2~%"},
        ],
    }
    return vega_lite(data, layer=[{"mark": mark, "encoding": encoding}])


def histogram_rows(
    counts: Sequence[int], low: float, high: float, **fields: str
) -> Iterator[dict[str, Any]]:
    """A row for each bin, with the middle of its values and its share.

    Args:
        counts: of values in bins of one width.
        low: where the first begins.
        high: where the last ends.
        fields: that each row has, too; ``pipeline`` among them.
    """
    total = max(1, sum(counts))
    for i, count in enumerate(counts):
        value = rounded(low + (high - low) * (i + 0.5) / len(counts))
        yield {**fields, "value": value, "share": rounded(count / total)}
