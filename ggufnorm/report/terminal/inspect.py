"""An inspection as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ggufnorm.core.model import Inspection, NormSite, TensorFacts
from ggufnorm.report.terminal.common import cells, new_table, skipped_lines
from ggufnorm.report.text import (
    NORM_COLUMNS,
    counted,
    norm_row,
    notes,
    printable,
    summary,
    title,
)

_LEFT = ("Norm", "Kind", "Type", "Weights", "Outlier", "Tensor")
_DROPPED_FIRST = ("Tensor", "RMS", "Mean", "Shape", "Type", "Weights", "Epsilon", "Min", "Max")
"""Columns that go, in this order, until a table fits."""
_WIDEST_NORM = 24
_GAPS = (2, 1)
"""Spaces between columns: as many as leave room for all of them."""


def inspection_parts(result: Inspection, width: int) -> Iterable[RenderableType]:
    """The parts of the text, from top to bottom, for ``width`` columns."""
    yield Text(title(result), style="bold")
    if result.norms:
        yield ""
        yield _norm_table(result.norms, width)
    yield ""
    yield from map(Text, summary(result))
    yield from (Text(note, style="yellow") for note in notes(result))
    yield from skipped_lines(result.skipped)
    if result.tensors is not None:
        yield ""
        yield from _tensor_parts(result.tensors)


def _norm_table(norms: Sequence[NormSite], width: int) -> Table:
    rows = [norm_row(n) for n in norms]
    shown, gap = _that_fit(rows, width)
    table = new_table(*shown, left=_LEFT)
    table.padding = (0, gap - 1, 0, 0)
    norm = table.columns[shown.index("Norm")]
    norm.max_width, norm.overflow = _WIDEST_NORM, "ellipsis"
    for row, site in zip(rows, norms, strict=True):
        table.add_row(*cells(_styled(column, row[column], site) for column in shown))
    return table


def _that_fit(rows: Sequence[Mapping[str, str]], width: int) -> tuple[list[str], int]:
    """The columns to show, and the spaces between them."""
    shown = [c for c in NORM_COLUMNS if c != "Outlier" or any(row[c] for row in rows)]
    widths = {c: max(len(c), *(len(row[c]) for row in rows)) for c in shown}
    widths["Norm"] = min(widths["Norm"], _WIDEST_NORM)

    def fits(gap: int) -> bool:
        return sum(widths[c] + gap for c in shown) - gap <= width

    for column in _DROPPED_FIRST:
        if fits(_GAPS[-1]):
            break
        shown.remove(column)
    return shown, next((gap for gap in _GAPS if fits(gap)), _GAPS[-1])


def _styled(column: str, cell: str, site: NormSite) -> Text:
    odd_type = column == "Type" and site.dtype not in (None, "F32")
    broken = column == "Outlier" and site.weight is not None and site.weight.non_finite
    return Text(cell, style="bold red" if broken else "yellow" if odd_type else "")


def _tensor_parts(tensors: Sequence[TensorFacts]) -> Iterable[RenderableType]:
    n_bytes = sum(t.n_bytes for t in tensors)
    yield Text(f"{counted(len(tensors), 'tensor')}, {n_bytes:,} bytes", style="bold")
    yield ""
    table = new_table("Tensor", "Type", "Shape", "Bytes", "Offset", left=("Tensor", "Type"))
    table.columns[0].overflow = "ellipsis"
    for t in tensors:
        shape = "×".join(map(str, t.shape))
        table.add_row(
            *cells([printable(t.name), t.dtype, shape, f"{t.n_bytes:,}", f"{t.offset:,}"])
        )
    yield table
