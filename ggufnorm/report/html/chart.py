"""What a chart is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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
    """The charts of one outline.

    Attributes:
        charts: by the names that sections call them.
        datasets: rows by the names that charts call them.
    """

    charts: dict[str, Chart]
    datasets: dict[str, list[dict[str, Any]]]
