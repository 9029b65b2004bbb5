"""Numbers, names and histograms as text and as cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufnorm.core.printable import printable as printable
from ggufnorm.report.view import Cell

if TYPE_CHECKING:
    from ggufnorm.core.drift import ModelFacts
    from ggufnorm.core.metrics import Difference

BLOCKS = "▁▂▃▄▅▆▇█"


def number(value: float | None, digits: int = 3) -> str:
    """A number in as few characters as ``digits`` significant digits allow; – for none."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    return f"{value:.{digits}g}" if 1e-4 <= abs(value) < 1e5 else f"{value:.{digits - 1}e}"


def plus_minus(value: float | None, error: float | None, digits: int, unit: float = 1.0) -> str:
    """A value with its standard error; – for none."""
    if value is None:
        return "–"
    text = f"{value * unit:.{digits}f}"
    return text if error is None else f"{text} ± {error * unit:.{digits}f}"


def percent(share: float | None) -> str:
    """A share of one, in percent; – for none."""
    return "–" if share is None else f"{100 * share:.1f} %"


def megabytes(n_bytes: int, digits: int = 1) -> str:
    """A size in units of 10⁶ bytes, without the unit."""
    return f"{n_bytes / 1e6:,.{digits}f}"


def counted(n: int, noun: str) -> str:
    """``1 norm``, ``2 norms``."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def types(before: str | None, after: str | None) -> str:
    """A tensor's type, or both if they differ: ``F16→Q4_K``."""
    return (after or "–") if before in (None, after) else f"{before}→{after or '–'}"


def shape_text(shape: Sequence[int] | None) -> str:
    """A shape: ``16×4``; – for none."""
    return "×".join(map(str, shape or ())) or "–"


def place_text(row: int | None, column: int | None) -> str:
    """Where a value stands: ``3:14``; – for nowhere."""
    return "–" if row is None else f"{row}:{column}"


def layer_text(layer: int | None) -> str:
    """A block number; – for outside the blocks."""
    return "–" if layer is None else str(layer)


_VALUE_WIDTH = 24


def value_text(value: Any) -> str:
    """A value of the metadata, cut if it is long."""
    if value is None:
        return "–"
    text = printable(f"{value:g}" if isinstance(value, float) else str(value))
    return text if len(text) <= _VALUE_WIDTH else f"{text[: _VALUE_WIDTH - 1]}…"


def model_line(m: ModelFacts) -> str:
    """A model file in one line."""
    parts = [Path(m.path).name, m.architecture, m.file_type or "", f"{megabytes(m.n_bytes)} MB"]
    return "  ".join(p for p in parts if p)


# -- cells -------------------------------------------------------------------------------


def numeric(value: float | None, digits: int = 3) -> Cell:
    """A number in ``digits`` significant digits."""
    return Cell(number(value, digits), value)


def fixed(value: float | None, digits: int) -> Cell:
    """A number with ``digits`` digits behind the point."""
    return Cell(plus_minus(value, None, digits), value)


def share(value: float | None) -> Cell:
    """A share of one, in percent."""
    return Cell(percent(value), value)


def integer(value: int | None) -> Cell:
    """An integer with thousands separated."""
    return Cell("–" if value is None else f"{value:,}", value)


def layer(value: int | None) -> Cell:
    """A block number."""
    return Cell(layer_text(value), value)


def drift(d: Difference | None) -> Cell:
    """A relative L2, or NaN where rows had to be left out."""
    if d is None:
        return Cell("–")
    return Cell("NaN", status="error") if d.non_finite_rows else numeric(d.rel_l2)


# -- drawings ----------------------------------------------------------------------------


def sparkline(histogram: Sequence[int]) -> str:
    """A histogram as a row of blocks: a dot is an empty bin."""
    most = max(histogram, default=0)
    return "".join(BLOCKS[-(-n * len(BLOCKS) // most) - 1] if n else "·" for n in histogram)


def halved(histogram: Sequence[int]) -> list[int]:
    """A histogram of half as many bins."""
    return [a + b for a, b in zip(histogram[::2], histogram[1::2], strict=False)]


def bars(values: Sequence[float], most: int = 40) -> str:
    """Values as a row of blocks, from zero to the largest.

    Args:
        values: not negative, in order.
        most: blocks; of more values, neighbours share one, which shows the largest of them.
    """
    each = max(1, -(-len(values) // most))
    values = [max(values[i : i + each]) for i in range(0, len(values), each)]
    top = max(values, default=0.0)
    if top <= 0:
        return BLOCKS[0] * len(values)
    last = len(BLOCKS) - 1
    return "".join(BLOCKS[max(0, min(last, int(len(BLOCKS) * v / top)))] for v in values)


def bar(value: float | None, top: float, length: int = 12) -> str:
    """A value as a bar of at most ``length`` blocks."""
    return BLOCKS[-1] * round(length * value / top) if value and top > 0 else ""
