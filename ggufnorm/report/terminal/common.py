"""What all text reports share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ggufnorm.core.drift import ModelFacts
from ggufnorm.core.model import Skipped
from ggufnorm.report.text import printable

_MOST_SKIPPED = 10


def new_table(*columns: str, left: Iterable[str] = ()) -> Table:
    """A table without edges; the columns that are not ``left`` are aligned to the right."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    return table


def cells(row: Iterable[str | Text]) -> list[RenderableType]:
    """A row's cells, none of them read as markup."""
    return [cell if isinstance(cell, Text) else Text(cell) for cell in row]


def layer_cell(layer: int | None) -> str:
    """A block number; – for outside the blocks."""
    return "–" if layer is None else str(layer)


def model_line(m: ModelFacts) -> str:
    """A model file in one line."""
    parts = [Path(m.path).name, m.architecture, m.file_type or "", f"{m.n_bytes / 1e6:,.1f} MB"]
    return printable("  ".join(p for p in parts if p))


def skipped_lines(skipped: Sequence[Skipped]) -> Iterable[Text]:
    """What was not looked at, and why."""
    if not skipped:
        return
    yield Text(f"\nSkipped: {len(skipped)}", style="bold")
    for s in skipped[:_MOST_SKIPPED]:
        yield Text(f"  {printable(s.what)}: {printable(s.reason)}")
    if len(skipped) > _MOST_SKIPPED:
        yield Text(f"  … and {len(skipped) - _MOST_SKIPPED} more (see --format json)")
