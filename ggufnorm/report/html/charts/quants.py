"""The chart of several files beside one reference: KL divergence over size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ggufnorm.core.quants import TOLD_APART, QuantsReport
from ggufnorm.report.formatting import printable
from ggufnorm.report.html.charts.parts import (
    LOG,
    LOG_AXIS,
    Chart,
    Charts,
    Rows,
    rounded,
    told_apart,
    vega_lite,
)

_STANDINGS = ["frontier", "undecided", "dominated", "not ranked"]
_APART = 0.07
"""Of each axis: a name whose point is nearer than this to another one's is left out."""


def quants_charts(report: QuantsReport) -> Charts:
    """Files as points, the frontier as steps, and what the text leaves uncertain as bars."""
    rows = _rows(report)
    if not rows:
        return Charts({}, {})
    place: dict[str, Any] = {
        "x": {
            "field": "MB",
            "type": "quantitative",
            "title": "size (MB)",
            "scale": {"zero": False, "nice": False, "padding": 40},
            "axis": {"format": "~s", "labelOverlap": True, "tickCount": 6},
        },
        "y": {
            "field": "kld",
            "type": "quantitative",
            "title": "KL divergence (nats)",
            "scale": LOG,
            "axis": LOG_AXIS,
        },
    }
    tooltip = [
        {"field": "file"},
        {"field": "standing"},
        {"field": "MB", "type": "quantitative", "format": ",.1f"},
        {"field": "kld", "title": "KL divergence", "type": "quantitative", "format": ".3~g"},
        {"field": "error", "title": "standard error", "type": "quantitative", "format": ".2~g"},
        {"field": "top", "title": "same top token", "type": "quantitative", "format": ".2~%"},
    ]
    bounds = {**place, "y": {**place["y"], "field": "low"}, "y2": {"field": "high"}}
    sides = ("below", "above")
    shown = [s for s in _STANDINGS if any(r["standing"] == s for r in rows)]
    spec = vega_lite(
        "files",
        layer=[
            *_steps(place, rows),
            {"mark": {"type": "rule", "stroke": "var(--soft)"}, "encoding": bounds},
            {
                "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
                "encoding": {
                    **place,
                    **told_apart("standing", _STANDINGS, shown),
                    "tooltip": tooltip,
                },
            },
            *(_labels(place, side) for side in sides if any(r["name"] == side for r in rows)),
        ],
    )  # fmt: skip
    note = (
        "Down and to the left is better. Bars are three standard errors to either side; the"
        " dashes are the frontier, which no file of at most that size is closer than. What is"
        " undecided is not told apart from a smaller file."
    )
    return Charts({"pareto": Chart("KL divergence over size", spec, note)}, {"files": rows})


def _steps(place: dict[str, Any], rows: Rows) -> Iterator[dict[str, Any]]:
    """The frontier, if there is one."""
    if any(row["standing"] == "frontier" for row in rows):
        mark = {"type": "line", "interpolate": "step-after", "stroke": "var(--soft)"}
        yield {
            "transform": [{"filter": "datum.standing == 'frontier'"}],
            "mark": {**mark, "strokeDash": [4, 3]},
            "encoding": place,
        }


def _labels(place: dict[str, Any], side: str) -> dict[str, Any]:
    """Names: those of the frontier below it, where no point can be; others above."""
    below = {"dy": 11, "dx": -5, "align": "right"}
    offset = below if side == "below" else {"dy": -9, "dx": 5}
    return {
        "transform": [{"filter": f"datum.name == '{side}'"}],
        "mark": {"type": "text", "align": "left", "limit": 110, "fill": "var(--ink)", **offset},
        "encoding": {**place, "text": {"field": "label"}},
    }


def _rows(report: QuantsReport) -> Rows:
    names = [printable(Path(f.model.path).name) for f in report.files]
    rows: Rows = []
    for file, name, label in zip(report.files, names, _short(names), strict=True):
        s = file.logits
        if s is None or s.mean_kld is None or s.mean_kld <= 0 or file.standing == "broken":
            continue
        error = TOLD_APART * (s.mean_kld_se or 0.0)
        rows.append(
            {
                "file": name,
                "label": label,
                "standing": file.standing,
                "MB": file.model.n_bytes / 1e6,
                "kld": rounded(s.mean_kld),
                "low": rounded(max(s.mean_kld / 10, s.mean_kld - error)),
                "high": rounded(s.mean_kld + error),
                "error": rounded(s.mean_kld_se),
                "top": rounded(s.same_top1),
            }
        )
    return [row | {"name": name} for row, name in zip(rows, _named(rows), strict=True)]


def _named(rows: Rows) -> list[str]:
    """On which side of its point a name stands; empty for one that has no room."""
    x = _scaled([row["MB"] for row in rows])
    y = _scaled([math.log(row["kld"]) for row in rows])
    found: list[str] = []

    def crowded(i: int, others: range, named: bool) -> bool:
        return any(
            abs(x[i] - x[k]) < _APART and abs(y[i] - y[k]) < _APART
            for k in others
            if k != i and (not named or found[k] == "below")
        )

    for i, row in enumerate(rows):
        if row["standing"] in ("frontier", "not ranked"):
            found.append("" if crowded(i, range(i), named=True) else "below")
        else:
            found.append("" if crowded(i, range(len(rows)), named=False) else "above")
    return found


def _scaled(values: list[float]) -> list[float]:
    """From 0 to 1."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    return [(v - low) / ((high - low) or 1.0) for v in values]


def _short(names: list[str]) -> list[str]:
    """Names without what all share: ``Q4_K_M`` of ``model-Q4_K_M.gguf``."""
    if len(names) < 2:
        return names
    start = _shared(names)
    # Types begin alike too (Q4_K_M, Q4_K_S): what is cut ends with a separator.
    start = start[: max(start.rfind("-"), start.rfind(".")) + 1]
    end = _shared([name[::-1] for name in names])
    end = end[: end.find(".") + 1][::-1]
    return [name[len(start) : len(name) - len(end)] or name for name in names]


def _shared(names: list[str]) -> str:
    """What all names begin with."""
    first, last = min(names), max(names)
    n = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:n]
